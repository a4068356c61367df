"""From radiographs to a CT: the one function behind command line, demonstration and clinical applications."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from custom import __version__
from custom.checkpoints import load_checkpoint, sha256
from custom.geometry import VolumeGrid
from custom.transforms import LoadRadiographsd
from custom.values import unit_to_hu

__all__ = ["reconstruct", "reconstruct_volume", "save_volume"]

logger = logging.getLogger(__name__)


@torch.inference_mode()
def reconstruct_volume(network: nn.Module, image: Tensor, views: Tensor) -> Tensor:
    """Reconstruct one case.

    Args:
        network: in evaluation mode, with `hu_window`.
        image: line integrals (K, V, U).
        views: (K, 13).

    Returns:
        HU (X, Y, Z), float32, on the network's grid, clipped to its window.
    """
    device = next(network.parameters()).device
    pred = network(image[None].to(device), views[None].to(device))
    return unit_to_hu(pred[0, 0], network.hu_window).cpu()  # type: ignore[arg-type]


def save_volume(
    path: str | os.PathLike[str], hu: Tensor, grid: VolumeGrid, isocenter_mm: Sequence[float] | None = None
) -> Path:
    """Write a volume as int16 NIfTI; never half-written.

    Args:
        path: ends in .nii or .nii.gz.
        hu: (X, Y, Z).
        grid: its grid; with `isocenter_mm` the affine is in the CT's own frame, else in the isocentre's.
        isocenter_mm: the isocentre in the CT's frame.

    Raises:
        ValueError: for another file type.
        OSError: if it cannot be written, naming the file.
    """
    path, suffix = _check_output(path)
    image = nib.Nifti1Image(hu.round().to(torch.int16).numpy(), grid.affine(isocenter_mm))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"fewview-ct {__version__}, HU, not for primary planning".encode()[:79]
    partial = path.with_name(f".{path.name.removesuffix(suffix)}.partial{suffix}")
    try:
        nib.save(image, partial)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: the volume could not be written (disk full?): {error}") from error
    return path


def _check_output(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """The path and its suffix, its folder made: what can fail for the output fails before long work."""
    path = Path(path)
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else ".nii"
    if not path.name.endswith(suffix):
        raise ValueError(f"{path}: the output must end in .nii or .nii.gz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path}: the volume could not be written: {error}") from error
    return path, suffix


def reconstruct(
    radiographs: str,
    geometry: str,
    output: str,
    checkpoint: str,
    angles_deg: Sequence[float] | float | None = None,
    precision: str = "auto",
    device: str | None = None,
) -> Path:
    """Reconstruct a CT from stored radiographs.

    Beside the volume a JSON file of the same name says what it was made from: hashes of radiographs and checkpoint,
    the views, the software.

    Args:
        radiographs: NIfTI stack (U, V, K) of line integrals at the energy that the checkpoint names, usually 70 keV.
        geometry: geometry file of the radiographs (JSON).
        output: volume to write, .nii or .nii.gz, int16 HU.
        checkpoint: weights, such as bundles/inr_recon/models/model.pt.
        angles_deg: views to use, by angle; all by default.
        precision: "auto" (bf16 where the device is fast at it), "bf16" or "fp32".
        device: torch device; a GPU where there is one, else the CPU.

    Returns:
        Path of the volume.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for files that do not fit each other.
    """
    _check_output(output)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loaded = load_checkpoint(checkpoint)
    network: Any = loaded.network(precision=precision).to(chosen)
    angles = [angles_deg] if isinstance(angles_deg, int | float) else angles_deg
    loader = LoadRadiographsd(angles_deg=angles, pixel_at_isocenter_mm=network.grid.spacing_mm[0])
    case = loader({"image": radiographs, "geometry": geometry})
    start = time.perf_counter()
    hu = reconstruct_volume(network, case["image"], case["views"])
    seconds = time.perf_counter() - start
    path = save_volume(output, hu, network.grid, case["isocenter_mm"].tolist())
    record = {
        "software": f"fewview-ct {__version__}",
        "radiographs": {"file": os.path.basename(radiographs), "sha256": sha256(radiographs)},
        "checkpoint": {
            "file": os.path.basename(checkpoint),
            "sha256": loaded.hash,
            "preset": loaded.meta.get("preset"),
        },
        "views": np.asarray(case["views"]).tolist(),
        "isocenter_mm": case["isocenter_mm"].tolist(),
        "seconds": round(seconds, 2),
        "warning": "A CT from few radiographs is mostly prior knowledge. Not for diagnosis or primary planning.",
    }
    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    partial = sidecar.with_name(sidecar.name + ".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, sidecar)
    logger.info("%s: %d views, %.1f s", path, len(case["views"]), seconds)
    return path
