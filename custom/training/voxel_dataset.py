"""Data set of warped training CTs for diffusion in voxel space, in the form of `latent_dataset`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import Dataset
from torch import Tensor

from custom.core.hu_window import hu_to_unit
from custom.geometry import VolumeGrid

__all__ = ["VoxelDataset"]


class VoxelDataset(Dataset):
    """CTs that are warped when they are asked for: "latent" (1, x, y, z), the middle of the warped CT with `hu_window`
    as [-1, 1], and "source" (1, X, Y, Z), all of it in HU.

    Args:
        data: cases; `key` is a CT (1, X, Y, Z) in HU on `loading_grid`.
        transform: warps them to `body_grid`.
        grid: of "latent".
        body_grid: of the warped CT; of the same spacing, with the same margin on both sides.
        loading_grid: of the CTs.
        hu_window: CT values that become -1 and 1.
        key: of the CT.

    Attributes:
        latent_mean, latent_std: (1,), of the voxels of all cases in the box of `grid`, before the warp.

    Raises:
        ValueError: if the grids do not fit each other, or a case is not on `loading_grid`.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        grid: VolumeGrid,
        body_grid: VolumeGrid,
        loading_grid: VolumeGrid,
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        key: str = "source",
    ) -> None:
        super().__init__(data, transform)
        self.cube = (..., *grid.middle_of(body_grid))
        self.hu_window, self.key = tuple(hu_window), key
        units = (hu_to_unit(_inside(case[key], loading_grid, grid), hu_window).double() for case in data)
        moments = torch.stack([torch.stack([unit.mean(), unit.square().mean()]) for unit in units]).mean(0).float()
        self.latent_mean, self.latent_std = moments[:1], (moments[1:] - moments[:1].square()).clamp(min=0).sqrt()

    def _transform(self, index: int) -> dict[str, Tensor]:
        volume = torch.as_tensor(super()._transform(index)[self.key]).float()
        return {"latent": hu_to_unit(volume[self.cube], self.hu_window), "source": volume}


def _inside(volume: Tensor, own: VolumeGrid, box: VolumeGrid) -> Tensor:
    """The voxels of a volume (1, X, Y, Z) on `own` whose centres lie in `box`."""
    if tuple(volume.shape) != (1, *own.shape):
        raise ValueError(f"expected a CT on the loading_grid {own.shape}, got shape {tuple(volume.shape)}")
    for axis in range(3):
        far = (own.axis_mm(axis) - box.center_mm[axis]).abs()
        volume = volume.index_select(axis + 1, torch.nonzero(far < box.half_extent_mm[axis])[:, 0])
    return volume
