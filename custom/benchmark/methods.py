"""`Method`, a row of the comparison, with the network, SIRT and mean CT rows; view sets, its columns.

The simple rows come first, because a network that does not beat them has learnt nothing: the mean training CT, and SIRT
clipped to the HU window.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from custom.core.attenuation import attenuation_bounds, attenuation_to_hu, hu_to_attenuation
from custom.core.checkpoints import definition, load_checkpoint
from custom.core.nifti_files import open_nifti
from custom.data.datalist import load_cases
from custom.geometry import VolumeGrid
from custom.geometry.detector import match_detector
from custom.models import reconstruct_volume
from custom.projection import Projector, sirt

__all__ = ["VIEW_SETS", "Method", "mean_training_ct", "network_row", "read_volume", "sirt_row"]

#: Columns of the table: name to (radiograph set, angles in degrees).
VIEW_SETS: dict[str, tuple[str, tuple[float, ...]]] = {
    "1 frontal": ("parallel", (90.0,)),
    "1 lateral": ("parallel", (0.0,)),
    "2": ("parallel", (0.0, 90.0)),
    "4": ("parallel", (0.0, 45.0, 90.0, 135.0)),
    "8": ("parallel", tuple(22.5 * i for i in range(8))),
    "2 cone": ("cone", (0.0, 90.0)),
}


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: as printed.
        run: from line integrals (K, V, U) and views (K, 13) to HU (X, Y, Z). It raises ValueError, saying why, for
            views that the method is not made for.
        grid: of its volumes, in the isocentre frame; None: that of the prepared cube.
        draw: for a method that gives samples: from the same to one volume after the other.
        of_truth: for a null row: from a true CT (X, Y, Z) HU and its grid to the row's volume; `run` is then not asked.
    """

    name: str
    run: Callable[[Tensor, Tensor], Tensor]
    grid: VolumeGrid | None = None
    draw: Callable[[Tensor, Tensor], Iterator[Tensor]] | None = None
    of_truth: Callable[[Tensor, VolumeGrid], Tensor] | None = None


def mean_training_ct(data_list_file: str | os.PathLike[str], hu_window: Sequence[float] = (-1000, 1000)) -> Method:
    """The mean of the training CTs, whatever the radiographs show."""
    cases = load_cases(data_list_file, "training")
    total = read_volume(cases[0]["label"]).clamp(*hu_window).double()
    for case in cases[1:]:
        volume = read_volume(case["label"])
        if volume.shape != total.shape:
            raise ValueError(
                f"{case['label']}: shape {tuple(volume.shape)}, but {cases[0]['label']} {tuple(total.shape)}: the mean "
                "of the training CTs needs one grid; prepare them together"
            )
        total += volume.clamp(*hu_window)
    mean = (total / len(cases)).float()
    return Method("mean training CT", lambda image, views: mean)


def sirt_row(grid: VolumeGrid, energy_kev: float = 70.0, iterations: int = 100, start: Method | None = None) -> Method:
    """SIRT on the cube, clipped to -1000 to 1000 HU, from air or from what another method gives.

    From the mean training CT it is the least that a prior can do: no network is needed for it.
    """
    bounds = attenuation_bounds(energy_kev=energy_kev)

    def run(image: Tensor, views: Tensor) -> Tensor:
        projector, initial = Projector(grid, image.shape[1:]), None
        if start is not None:
            hu = F.adaptive_avg_pool3d(start.run(image, views)[None], grid.shape)
            initial = hu_to_attenuation(hu[None], energy_kev).to(image)
        volume = sirt(projector, image[None], views, iterations, bounds, initial)
        return attenuation_to_hu(volume[0, 0], energy_kev)

    origin = "" if start is None else f" from the {start.name}"
    return Method(f"SIRT{origin}, {iterations} iterations (clipped)", run, grid=grid)


def network_row(
    name: str,
    checkpoint: str | os.PathLike[str],
    grid: VolumeGrid | None = None,
    pixel_at_isocenter_mm: float | None = None,
    device: str | torch.device = "cpu",
    **overrides: Any,
) -> Method:
    """A trained network, as a clinic would run it; on another grid than its own, if that is given.

    Args:
        name: of the row.
        checkpoint: model.pt.
        grid: to reconstruct on; None: the network's own.
        pixel_at_isocenter_mm: of the radiographs that it reads; None: what its checkpoint says, else its voxels' size.
        device: that it runs on.
        overrides: arguments of the network that hold no weights, such as precision.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`, or for a network that does not reconstruct volumes.
    """
    loaded = load_checkpoint(checkpoint)
    if grid is not None:
        overrides = {**overrides, "grid": definition(grid)}
    network: Any = loaded.network(**overrides).to(device)
    missing = [name for name in ("grid", "hu_window", "energy_kev") if not hasattr(network, name)]
    if missing:
        raise ValueError(
            f"{loaded.path}: a {type(network).__name__} does not turn radiographs into a CT: it has no {missing[0]}"
        )
    pixel_mm = pixel_at_isocenter_mm
    if pixel_mm is None:
        pixel_mm = network.grid.spacing_mm[0] if grid is not None else None
    if pixel_mm is None:
        pixel_mm = loaded.meta.get("pixel_at_isocenter_mm") or network.grid.spacing_mm[0]

    def run(image: Tensor, views: Tensor) -> Tensor:
        return reconstruct_volume(network, *match_detector(image, views, pixel_mm))

    return Method(name, run, network.grid)


def read_volume(path: str) -> Tensor:
    """A prepared cube, (X, Y, Z) HU, float32."""
    return torch.from_numpy(np.asarray(open_nifti(Path(path)).dataobj, dtype=np.float32))
