"""Connected pieces of masks, and balls in millimetres to open and close them with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["ball", "largest_piece", "pieces"]


def ball(radius_mm: float, spacing_mm: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Voxels within a radius; at least the middle one."""
    reach = [int(radius_mm // s) for s in spacing_mm]
    axes = np.meshgrid(*[np.arange(-r, r + 1) * s for r, s in zip(reach, spacing_mm, strict=True)], indexing="ij")
    return sum(a**2 for a in axes) <= radius_mm**2 + 1e-6


def pieces(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The number of each voxel's piece, from 1 on, 0 outside the mask; and the pieces' voxels, 0 for the outside."""
    labelled, _ = ndimage.label(mask)
    sizes = np.bincount(labelled.ravel(), minlength=1)
    sizes[0] = 0
    return labelled, sizes


def largest_piece(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The largest piece; an empty mask stays empty."""
    labelled, sizes = pieces(mask)
    return (labelled == sizes.argmax()) & mask
