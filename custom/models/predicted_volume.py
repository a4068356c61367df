"""A network's output as a volume in HU, and as a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from custom import __version__
from custom.core.files import write_nifti
from custom.core.hu_window import require_finite, unit_to_hu
from custom.geometry import VolumeGrid

__all__ = ["reconstruct_volume", "save_volume"]


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
    return unit_to_hu(pred[0, 0], network.hu_window, type(network).__name__).cpu()  # type: ignore[arg-type]


def save_volume(
    path: str | os.PathLike[str],
    volume: Tensor,
    grid: VolumeGrid,
    isocenter_mm: Sequence[float] | None = None,
    dtype: torch.dtype = torch.int16,
) -> Path:
    """Write a volume as NIfTI in HU; never half-written, equal content in equal bytes.

    Args:
        path: ends in .nii or .nii.gz.
        volume: (X, Y, Z) HU; rounded where `dtype` is an integer type.
        grid: its grid; with `isocenter_mm` the affine is in the CT's own frame, else in the isocentre's.
        isocenter_mm: the isocentre in the CT's frame.
        dtype: in the file.

    Raises:
        ValueError: for another file type.
        OSError: if it cannot be written, naming the file.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: the output must end in .nii or .nii.gz")
    require_finite(volume, f"{path}: the reconstruction")
    values = volume.cpu() if dtype.is_floating_point else volume.cpu().float().round()
    note = f"fewview-ct {__version__}, HU, not for primary planning"
    write_nifti(path, values.to(dtype).numpy(), grid.affine(isocenter_mm), note)
    return path
