"""Projection of parallel beams around the superior axis: one sparse matrix serves all axial slices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from custom.geometry import VolumeGrid
from custom.projection.linear_operator import LinearOperator, csr, exact_matmul, transposed_csr

__all__ = ["ParallelOperator"]


class ParallelOperator(LinearOperator):
    """Parallel beam with upright detectors (`is_vertical_parallel`).

    The projection factorises: Joseph's method in the axial plane, the same for every slice, then rows are interpolated
    from the slices' z to the detector's v.
    """

    def __init__(self, views: Tensor, grid: VolumeGrid, detector_shape: Sequence[int]) -> None:
        super().__init__(views, grid, detector_shape)
        self._matrix = _axial_matrix(self.views, grid, self.detector_shape[1])
        self._matrix_t: Tensor | None = None
        self._rows = _row_map(self.views, grid, self.detector_shape[0])

    def _forward(self, volume: Tensor) -> Tensor:
        batch, (rows, columns), count = len(volume), self.detector_shape, len(self.views)
        x, y, z = self.grid.shape
        slices = volume.reshape(batch, x * y, z).transpose(0, 1).reshape(x * y, batch * z)
        integrals = (self._matrix @ slices).reshape(count, columns, batch, z)
        if self._rows is None:
            return integrals.permute(2, 0, 3, 1).flip(2).contiguous()
        with exact_matmul():
            mapped = integrals.permute(0, 2, 1, 3).reshape(count, batch * columns, z) @ self._rows.mT
        return mapped.reshape(count, batch, columns, rows).permute(1, 0, 3, 2).contiguous()

    def _transpose(self, image: Tensor) -> Tensor:
        batch, count, rows, columns = image.shape
        x, y, z = self.grid.shape
        if self._matrix_t is None:
            self._matrix_t = transposed_csr(self._matrix)
        if self._rows is None:
            integrals = image.flip(2).permute(1, 3, 0, 2)
        else:
            with exact_matmul():
                mapped = image.permute(1, 0, 3, 2).reshape(count, batch * columns, rows) @ self._rows
            integrals = mapped.reshape(count, batch, columns, z).permute(0, 2, 1, 3)
        slices = self._matrix_t @ integrals.reshape(count * columns, batch * z)
        return slices.reshape(x * y, batch, z).transpose(0, 1).reshape(batch, x, y, z)


def _axial_matrix(views: Tensor, grid: VolumeGrid, columns: int) -> Tensor:
    """Joseph's method in an axial slice as a CSR matrix (K * U, X * Y) [mm].

    Every ray has two entries for each plane that it crosses. Entries outside the slice are kept, with weight zero at
    the border voxel: rows of equal length make the matrix some times faster to build than to compact.
    """
    exact = views.double()
    directions = torch.nn.functional.normalize(exact[:, 0:2], dim=-1)
    offsets = torch.arange(columns, device=views.device, dtype=exact.dtype) - (columns - 1) / 2
    along_y = directions[:, 1].abs() > directions[:, 0].abs()
    values: list[Tensor] = [views] * len(views)
    entries: list[Tensor] = [views] * len(views)
    for march in (0, 1):
        chosen = (along_y == bool(march)).nonzero().flatten()
        across = 1 - march
        direction, center, step = (part[chosen] for part in (directions, exact[:, 3:5], exact[:, 6:8]))
        slope = direction[:, across] / direction[:, march]
        n, spacing = grid.shape[across], grid.spacing_mm[across]
        planes = grid.axis_mm(march, views.device, exact.dtype)
        # A ray crosses the plane at `first + slope * plane`, linear in the column.
        first = (center[:, across] - slope * center[:, march])[:, None] + offsets * (
            step[:, across] - slope * step[:, march]
        )[:, None]
        index = ((first - grid.center_mm[across]) / spacing + (n - 1) / 2)[..., None] + (slope / spacing)[
            :, None, None
        ] * planes
        low = index.floor()
        length = (grid.spacing_mm[march] / direction[:, march].abs())[:, None, None]
        upper = ((index - low) * length).to(views.dtype)
        lower = length.to(views.dtype) - upper
        low = low.clamp(-2, n).to(torch.int32)
        taps = torch.stack([low, low + 1], -1)
        weights = torch.stack([lower, upper], -1) * ((taps >= 0) & (taps < n))
        taps = taps.clamp(0, n - 1)
        plane = torch.arange(len(planes), device=views.device, dtype=torch.int32)[:, None]
        columns_of = plane * grid.shape[1] + taps if march == 0 else taps * grid.shape[1] + plane
        for i, k in enumerate(chosen.tolist()):
            values[k], entries[k] = weights[i].flatten(), columns_of[i].flatten()
    per_ray = torch.where(along_y, 2 * grid.shape[1], 2 * grid.shape[0]).repeat_interleave(columns)
    pointer = torch.nn.functional.pad(per_ray.cumsum(0), (1, 0))
    return csr(pointer, torch.cat(entries), torch.cat(values), (len(views) * columns, grid.shape[0] * grid.shape[1]))


def _row_map(views: Tensor, grid: VolumeGrid, rows: int) -> Tensor | None:
    """Linear interpolation from slices to detector rows, (K, V, Z); None where rows are the slices, upside down."""
    exact = views.double()
    z = grid.axis_mm(2, views.device, exact.dtype)
    offsets = torch.arange(rows, device=views.device, dtype=exact.dtype) - (rows - 1) / 2
    heights = exact[:, 5, None] + offsets * exact[:, 11, None]
    if rows == len(z) and torch.allclose(heights, z.flip(0).expand_as(heights), rtol=0, atol=1e-4 * grid.spacing_mm[2]):
        return None
    index = (heights - grid.center_mm[2]) / grid.spacing_mm[2] + (len(z) - 1) / 2
    slices = torch.arange(len(z), device=views.device)
    return (1 - (index[..., None] - slices).abs()).clamp(min=0).to(views.dtype)
