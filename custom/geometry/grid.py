"""The volume's grid in the isocentre frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from custom.core.limits import check_count

__all__ = ["VolumeGrid", "require_positive"]

LARGEST_VOXELS = 2**30


def require_positive(name: str, values: Sequence[float]) -> None:
    for value in values:
        if not math.isfinite(value) or value <= 0:
            raise ValueError(f"{name} must be finite and greater than zero, got {tuple(values)}")


@dataclass(frozen=True)
class VolumeGrid:
    """A regular grid of voxels in the isocentre frame.

    Args:
        shape: number of voxels (X, Y, Z).
        spacing_mm: distance between voxel centres along x, y, z.
        center_mm: position of the grid's centre in the isocentre frame.

    Raises:
        ValueError: for a shape or spacing that is not positive and finite.
    """

    shape: tuple[int, int, int] = (128, 128, 128)
    spacing_mm: tuple[float, float, float] = (2.5, 2.5, 2.5)
    center_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name, length in (("shape", 3), ("spacing_mm", 3), ("center_mm", 3)):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} must have {length} numbers, got {getattr(self, name)}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "spacing_mm", tuple(float(s) for s in self.spacing_mm))
        object.__setattr__(self, "center_mm", tuple(float(c) for c in self.center_mm))
        require_positive("shape", self.shape)
        require_positive("spacing_mm", self.spacing_mm)
        check_count("grid", "voxels", math.prod(self.shape), LARGEST_VOXELS)
        if not all(map(math.isfinite, self.center_mm)):
            raise ValueError(f"center_mm must be finite, got {self.center_mm}")

    @classmethod
    def cube(cls, size: int, side_mm: float) -> VolumeGrid:
        """The cube of `size`^3 voxels with the given side, centred at the isocentre."""
        return cls((size,) * 3, (side_mm / size,) * 3)

    @property
    def half_extent_mm(self) -> tuple[float, float, float]:
        """Half the grid's side along x, y, z, voxel borders included."""
        return tuple(n * s / 2 for n, s in zip(self.shape, self.spacing_mm, strict=True))  # type: ignore[return-value]

    def axis_mm(
        self, axis: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, " N"]:
        """Voxel centres along one axis [mm], shape (shape[axis],)."""
        n, step, center = self.shape[axis], self.spacing_mm[axis], self.center_mm[axis]
        return (torch.arange(n, device=device, dtype=dtype or torch.float32) - (n - 1) / 2) * step + center

    def points(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "X Y Z 3"]:
        """Every voxel centre [mm], shape (X, Y, Z, 3)."""
        axes = [self.axis_mm(axis, device, dtype) for axis in range(3)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)

    def resized(self, shape: Sequence[int]) -> VolumeGrid:
        """The same box in space with another number of voxels."""
        spacing = [n * s / m for n, s, m in zip(self.shape, self.spacing_mm, shape, strict=True)]
        return VolumeGrid(tuple(shape), tuple(spacing), self.center_mm)  # type: ignore[arg-type]

    def padded(self, voxels: Sequence[int]) -> VolumeGrid:
        """The grid with `voxels` more on both sides of each axis."""
        shape = tuple(n + 2 * p for n, p in zip(self.shape, voxels, strict=True))
        return replace(self, shape=shape)  # type: ignore[arg-type]

    def coarser(self, factor: int) -> VolumeGrid:
        """The same box in space with voxels `factor` times as long along each side.

        Raises:
            ValueError: unless `factor` divides the shape.
        """
        if factor < 1 or any(n % factor for n in self.shape):
            raise ValueError(f"the factor must divide the grid's shape {self.shape}, got {factor}")
        return self.resized([n // factor for n in self.shape])

    def with_margin(self, margin_mm: Sequence[float], spacing_mm: float | None = None) -> VolumeGrid:
        """The grid with more space on both sides of each axis.

        Args:
            margin_mm: of x, y and z [mm].
            spacing_mm: of the result's voxels; None: as in this grid.

        Raises:
            ValueError: if voxels of this size do not fill that box.
        """
        spacing = self.spacing_mm if spacing_mm is None else (float(spacing_mm),) * 3
        sides = [2 * (half + margin) for half, margin in zip(self.half_extent_mm, margin_mm, strict=True)]
        shape = tuple(round(side / step) for side, step in zip(sides, spacing, strict=True))
        if not all(math.isclose(n * step, side) for n, step, side in zip(shape, spacing, sides, strict=True)):
            raise ValueError(f"voxels of {spacing} mm do not fill a box of {sides} mm: choose another margin")
        return VolumeGrid(shape, spacing, self.center_mm)  # type: ignore[arg-type]

    def part(self, corner: Sequence[int], shape: Sequence[int]) -> VolumeGrid:
        """The box of `shape` voxels whose first one is voxel `corner` of this grid."""
        center = [
            c + (first + (part - n) / 2) * s
            for c, first, part, n, s in zip(self.center_mm, corner, shape, self.shape, self.spacing_mm, strict=True)
        ]
        return VolumeGrid(tuple(shape), self.spacing_mm, tuple(center))  # type: ignore[arg-type]

    def middle_of(self, wider: VolumeGrid) -> tuple[slice, slice, slice]:
        """Where this grid's voxels stand in a volume (..., X, Y, Z) on a wider grid.

        Raises:
            ValueError: unless that has the same voxels, with the same margin on both sides of each axis.
        """
        margin = [(wide - n) // 2 for wide, n in zip(wider.shape, self.shape, strict=True)]
        fits = all(m >= 0 and 2 * m + n == w for m, n, w in zip(margin, self.shape, wider.shape, strict=True))
        if not fits or wider.spacing_mm != self.spacing_mm or wider.center_mm != self.center_mm:
            raise ValueError(f"the wider grid must be this one with the same margin on both sides, got {wider}, {self}")
        return tuple(slice(m, m + n) for m, n in zip(margin, self.shape, strict=True))  # type: ignore[return-value]

    def affine(self, isocenter_mm: Sequence[float] | None = None) -> np.ndarray:
        """Voxel index to millimetres, shape (4, 4): the CT's frame if its isocentre is given, else the isocentre's."""
        affine = np.diag([*self.spacing_mm, 1.0])
        first = np.array(self.center_mm) - (np.array(self.shape) - 1) / 2 * np.array(self.spacing_mm)
        affine[:3, 3] = first + (np.zeros(3) if isocenter_mm is None else np.asarray(isocenter_mm, float))
        return affine
