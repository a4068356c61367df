"""The three-plane viewer of a report: volumes packed into the page, NiiVue, and the controls around it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from custom.core.files import compressed, nifti_bytes
from custom.geometry import VolumeGrid
from custom.report.figures import SPREAD_COLOURS
from custom.report.volume_pictures import SPREAD_LIMIT_HU

__all__ = ["PackedVolume", "pack_volumes", "viewer_content", "viewer_scripts"]

WINDOWS_HU = {
    "Wide": (-1000, 400),
    "Soft tissue": (-160, 240),
    "Lung": (-1350, 150),
    "Bone": (-300, 1000),
}
LAYOUTS = {
    "planes": "Three planes",
    "axial": "Axial",
    "coronal": "Coronal",
    "sagittal": "Sagittal",
    "render": "Rendering in 3D",
}
AXES = {"x": "Left to right", "y": "Back to front", "z": "Foot to head"}
#: Opacity of the uncertainty, none to begin with: one or the other, so that it never colours the CT.
SPREADS = {"0": "Not shown", "1": f"Instead of the CT, 0 to {SPREAD_LIMIT_HU:g} HU"}
_SMALLEST = 16


@dataclass(frozen=True)
class PackedVolume:
    """A volume as it lies in the page.

    Attributes:
        name: of the element that holds it.
        label: what the reader picks.
        content: NIfTI, int16 HU, gzip.
        spacing_mm: of its voxels.
        reduced: whether these are coarser than what was reconstructed.
    """

    name: str
    label: str
    content: bytes
    spacing_mm: tuple[float, float, float]
    reduced: bool


def pack_volumes(
    hu: Tensor, grid: VolumeGrid, std_hu: Tensor | None, samples: Sequence[Tensor], most_bytes: int
) -> list[PackedVolume]:
    """Volumes as compressed NIfTI files that together stay below a size.

    Where they would not, the samples' voxels are averaged to half the resolution, again and again, and when that is not
    enough all volumes are.

    Args:
        hu: the reconstruction (X, Y, Z), HU.
        grid: of it.
        std_hu: standard deviation on the same grid; named "volume-spread" in the result.
        samples: (X, Y, Z) HU each, of the same box in space, on grids of their own.
        most_bytes: of all of them, as they are in the page (Base64).

    Returns:
        The reconstruction first, then the standard deviation if there is one, then the samples.

    Raises:
        ValueError: if even 16 voxels a side are too much, or there are fewer to begin with.
    """
    first = [("volume-ct", "Reconstruction", hu)] + ([("volume-spread", "", std_hu)] if std_hu is not None else [])
    drawn = [(f"volume-sample-{i}", f"Sample {i}", sample) for i, sample in enumerate(samples, 1)]
    for step in itertools.count():
        halvings, of_samples = step // 2, (step + 1) // 2
        if min(hu.shape) >> halvings < _SMALLEST:
            raise ValueError(f"the report's volumes do not fit into {most_bytes} bytes, however coarse: allow it more")
        packed = [_pack(*entry, grid, halvings) for entry in first]
        packed += [_pack(*entry, grid, of_samples) for entry in drawn]
        if sum(4 * math.ceil(len(volume.content) / 3) for volume in packed) <= most_bytes:
            break
    return packed


def _pack(name: str, label: str, volume: Tensor, grid: VolumeGrid, halvings: int) -> PackedVolume:
    shape = [max(1, math.ceil(n / 2**halvings)) for n in volume.shape]
    values = volume.detach().cpu().float()
    if halvings:
        values = F.interpolate(values[None, None], size=shape, mode="area")[0, 0]
    own = grid.resized(shape)
    numbers = values.round().clamp(-32768, 32767).to(torch.int16).numpy()
    content = compressed(nifti_bytes(numbers, own.affine()))
    return PackedVolume(name, label, content, own.spacing_mm, halvings > 0)


def viewer_scripts() -> list[str]:
    """NiiVue and what drives it, for `render_page`."""
    folder = resources.files("custom.report")
    files = (folder / "vendor" / "niivue.umd.js", folder / "assets" / "viewer.js")
    return [file.read_text(encoding="utf-8") for file in files]


def viewer_content(volumes: Sequence[PackedVolume]) -> dict[str, Any]:
    """What templates/viewer.html is given, on a page whose scripts are `viewer_scripts`.

    Args:
        volumes: of `pack_volumes`.
    """
    spread = any(volume.name == "volume-spread" for volume in volumes)
    settings = {
        "spread": "volume-spread" if spread else None,
        "limits": [0, SPREAD_LIMIT_HU],
        "colormap": _spread_colours(),
    }
    return {
        "volumes": {volume.name: volume.label for volume in volumes if volume.name != "volume-spread"},
        "windows": {f"{low} {high}": f"{name}, {low} to {high}" for name, (low, high) in WINDOWS_HU.items()},
        "layouts": LAYOUTS,
        "spreads": SPREADS,
        "axes": AXES,
        "data": {"viewer-settings": json.dumps(settings).encode()} | {one.name: one.content for one in volumes},
    }


def _spread_colours() -> dict[str, list[int]]:
    """The colours of the spread as NiiVue takes them: red, green, blue, alpha at indices 0 to 255, all opaque."""
    at = np.linspace(0, 255, 16).round().astype(int)
    colours = (np.asarray(matplotlib.colormaps[SPREAD_COLOURS](at / 255)) * 255).round().astype(int)
    channels = dict(zip("RGB", colours[:, :3].T.tolist(), strict=True))
    return channels | {"A": [255] * len(at), "I": at.tolist()}
