"""A CT on the grid that doses are computed on: axes along RAS+, one voxel size for every CT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from custom.core.limits import check_count
from custom.data.case import load
from custom.data.scan import scan
from custom.data.volume_files import not_hu
from custom.geometry import VolumeGrid
from custom.radiotherapy.planning_numbers import NUMBERS

__all__ = ["AIR_HU", "PlanningCT", "planning_ct", "read_planning_ct", "resampled"]

AIR_HU = -1000.0
#: A chest of 600 mm on each side at 2.5 mm has 14 million.
LARGEST_VOXELS = 2**25
#: Shortest side of what may be a chest.
_SHORTEST_MM = 30.0

FloatArray = npt.NDArray[np.floating]
Affine = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PlanningCT:
    """A CT that plans are made on.

    Attributes:
        hu: (X, Y, Z) float32 HU, RAS+ axes.
        grid: of it; `center_mm` is in the CT's own frame (RAS+ mm), as are all points of plans.
    """

    hu: npt.NDArray[np.float32]
    grid: VolumeGrid

    def __post_init__(self) -> None:
        if self.hu.shape != self.grid.shape:
            raise ValueError(f"the CT has shape {self.hu.shape}, its grid {self.grid.shape}")

    def index(self, point_mm: Sequence[float] | FloatArray) -> npt.NDArray[np.float64]:
        """Voxel coordinates (..., 3) of points (..., 3), not rounded."""
        first = self.grid.affine()[:3, 3]
        return (np.asarray(point_mm, dtype=float) - first) / np.asarray(self.grid.spacing_mm)


def resampled(volume: FloatArray, affine: Affine, grid: VolumeGrid, outside: float = AIR_HU) -> npt.NDArray[np.float32]:
    """Trilinear values of a volume on a grid. Where that is coarser, the volume is smoothed first.

    Args:
        volume: (I, J, K).
        affine: (4, 4), its voxels to RAS+ mm; axes may point anywhere.
        grid: in the same frame.
        outside: value beyond the volume.
    """
    spacing = nib.affines.voxel_sizes(affine)
    toward = np.abs(affine[:3, :3]).argmax(0)  # the world's axis that each of the volume's runs along
    blur = [max(0.0, (grid.spacing_mm[w] / s - 1) / 2) for w, s in zip(toward, spacing, strict=True)]
    smooth = ndimage.gaussian_filter(volume.astype(np.float32), blur, mode="nearest") if any(blur) else volume
    # The outer half of the outermost voxels lies beyond their centres; it is theirs all the same.
    to_voxel = np.linalg.inv(affine) @ grid.affine()
    return ndimage.affine_transform(
        np.pad(smooth, 1, mode="edge"),
        to_voxel[:3, :3],
        to_voxel[:3, 3] + 1,
        grid.shape,
        np.float32,
        order=1,
        mode="constant",
        cval=outside,
    )


def planning_ct(volume: FloatArray, affine: Affine, grid: VolumeGrid | None = None) -> PlanningCT:
    """A CT on the dose grid.

    Args:
        volume: (I, J, K) HU.
        affine: (4, 4), voxels to RAS+ mm.
        grid: of another CT in the same frame, to compare the two; None: the CT's own box with voxels of
            `dose_grid_mm` (planning.json).

    Raises:
        ValueError: more voxels than are computed.
    """
    if grid is None:
        corners = np.array([[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (-0.5, 0.5)])
        corners = (corners + 0.5) * np.array(volume.shape) - 0.5
        world = corners @ affine[:3, :3].T + affine[:3, 3]
        low, high = world.min(0), world.max(0)
        counts = np.maximum(1, np.round((high - low) / NUMBERS.dose_grid_mm)).astype(int)
        check_count("CT", "voxels of the dose grid", float(np.prod(counts.astype(float))), LARGEST_VOXELS)
        grid = VolumeGrid(tuple(counts), tuple((high - low) / counts), tuple((low + high) / 2))
    clipped = np.maximum(resampled(volume, affine, grid), AIR_HU)  # padding outside a scanner's circle is below air
    return PlanningCT(clipped, grid)


def read_planning_ct(path: Path, grid: VolumeGrid | None = None) -> PlanningCT:
    """A CT from a file (NIfTI, MetaImage) or a folder with a DICOM series.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: naming the path: no CT, several, damaged, or not in HU.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    found, rejected = scan(path)
    if not found:
        reason = f": {rejected[0].reason}" if rejected else ""
        raise ValueError(f"{path}: no CT was found in it{reason}")
    if len(found) > 1:
        raise ValueError(f"{path}: holds {len(found)} CTs ({', '.join(c.source for c in found[:3])}, ...): name one")
    try:
        volume, affine = load(found[0])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if said := not_hu(volume):
        raise ValueError(f"{path}: not a CT in HU, {said}")
    sides = np.array(volume.shape) * nib.affines.voxel_sizes(affine)
    if sides.min() < _SHORTEST_MM:
        text = " x ".join(f"{side:.3g}" for side in sides)
        raise ValueError(f"{path}: a volume of {text} mm holds no chest; are its voxel sizes in mm?")
    return planning_ct(np.asarray(volume, dtype=np.float32), affine, grid)
