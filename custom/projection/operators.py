"""Line integrals as linear operators, and their exact transposes.

`ParallelOperator`: parallel beam with upright detectors factorises: one sparse matrix over an axial slice serves all
slices, then rows are interpolated from the slices' z to the detector's v. `JosephOperator`: any pose, by Joseph's
method (IEEE TMI 1:192, 1982): march through the planes of the axis closest to the central ray, interpolate in plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.geometry import VolumeGrid, is_vertical_parallel, rays

__all__ = ["JosephOperator", "LinearOperator", "ParallelOperator", "make_operator"]

_PLANE_CHUNK_BYTES = 256 * 2**20


class _Apply(torch.autograd.Function):
    """A linear map whose gradient is its transpose; differentiable any number of times."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, apply: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.maps = apply, transpose
        return apply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        apply, transpose = ctx.maps
        return _Apply.apply(gradients[0], transpose, apply), None, None


class LinearOperator:
    """Volume (B, X, Y, Z) to radiographs (B, K, V, U) for one set of views, with the exact transpose.

    Args:
        views: (K, 13).
        grid: the volume's grid.
        detector_shape: rows and columns (V, U).
    """

    def __init__(self, views: Tensor, grid: VolumeGrid, detector_shape: Sequence[int]) -> None:
        self.views, self.grid, self.detector_shape = views, grid, tuple(detector_shape)

    def forward(self, volume: Tensor) -> Tensor:
        """Line integrals, in the volume's unit times mm."""
        return _Apply.apply(volume, self._forward, self._transpose)

    def transpose(self, image: Tensor) -> Tensor:
        """The adjoint: <forward(x), y> = <x, transpose(y)>."""
        return _Apply.apply(image, self._transpose, self._forward)

    def _forward(self, volume: Tensor) -> Tensor:
        raise TypeError("use a subclass")

    def _transpose(self, image: Tensor) -> Tensor:
        raise TypeError("use a subclass")


class ParallelOperator(LinearOperator):
    """Parallel beam with upright detectors (`is_vertical_parallel`): one sparse matrix for all axial slices."""

    def __init__(self, views: Tensor, grid: VolumeGrid, detector_shape: Sequence[int]) -> None:
        super().__init__(views, grid, detector_shape)
        self._matrix = _axial_matrix(views, grid, self.detector_shape[1])
        self._matrix_t: Tensor | None = None
        self._rows = _row_map(views, grid, self.detector_shape[0])

    def _forward(self, volume: Tensor) -> Tensor:
        batch, (rows, columns), count = len(volume), self.detector_shape, len(self.views)
        x, y, z = self.grid.shape
        slices = volume.reshape(batch, x * y, z).transpose(0, 1).reshape(x * y, batch * z)
        integrals = (self._matrix @ slices).reshape(count, columns, batch, z)
        if self._rows is None:
            return integrals.permute(2, 0, 3, 1).flip(2).contiguous()
        mapped = integrals.permute(0, 2, 1, 3).reshape(count, batch * columns, z) @ self._rows.mT
        return mapped.reshape(count, batch, columns, rows).permute(1, 0, 3, 2).contiguous()

    def _transpose(self, image: Tensor) -> Tensor:
        batch, count, rows, columns = image.shape
        x, y, z = self.grid.shape
        if self._matrix_t is None:
            self._matrix_t = _transposed_csr(self._matrix)
        if self._rows is None:
            integrals = image.flip(2).permute(1, 3, 0, 2)
        else:
            mapped = image.permute(1, 0, 3, 2).reshape(count, batch * columns, rows) @ self._rows
            integrals = mapped.reshape(count, batch, columns, z).permute(0, 2, 1, 3)
        slices = self._matrix_t @ integrals.reshape(count * columns, batch * z)
        return slices.reshape(x * y, batch, z).transpose(0, 1).reshape(batch, x, y, z)


def _axial_matrix(views: Tensor, grid: VolumeGrid, columns: int) -> Tensor:
    """Joseph's method in an axial slice as a CSR matrix (K * U, X * Y) [mm]."""
    views = views.detach()
    entries = []
    for k, view in enumerate(views):
        direction, center, step = view[0:2], view[3:5], view[6:8]
        direction = direction / direction.norm()
        march = int(direction[1].abs() > direction[0].abs())
        across = 1 - march
        offsets = torch.arange(columns, device=views.device, dtype=views.dtype) - (columns - 1) / 2
        pixel = center + offsets[:, None] * step
        planes = grid.axis_mm(march, views.device, views.dtype)
        slope = direction[across] / direction[march]
        position = pixel[:, across, None] + (planes - pixel[:, march, None]) * slope
        n, spacing = grid.shape[across], grid.spacing_mm[across]
        index = (position - grid.center_mm[across]) / spacing + (n - 1) / 2
        low = index.floor()
        weight = index - low
        low = low.to(torch.int64)
        length = grid.spacing_mm[march] / direction[march].abs()
        row = (k * columns + torch.arange(columns, device=views.device))[:, None, None].expand(-1, len(planes), 2)
        across_index = torch.stack([low, low + 1], -1)
        values = torch.stack([1 - weight, weight], -1) * length
        plane_index = torch.arange(len(planes), device=views.device)[None, :, None]
        if march == 0:
            column = plane_index * grid.shape[1] + across_index
        else:
            column = across_index * grid.shape[1] + plane_index
        keep = (across_index >= 0) & (across_index < n)
        entries.append((row[keep], column[keep], values[keep]))
    row, column, values = (torch.cat(parts) for parts in zip(*entries, strict=True))
    count = len(views) * columns
    pointer = torch.zeros(count + 1, dtype=torch.int64, device=views.device)
    pointer[1:] = torch.bincount(row, minlength=count).cumsum(0)
    return _csr(pointer, column, values, (count, grid.shape[0] * grid.shape[1]))


def _csr(pointer: Tensor, column: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    # 32-bit indices let MKL work on the arrays as they are.
    return torch.sparse_csr_tensor(
        pointer.to(torch.int32), column.to(torch.int32), values, size=shape, check_invariants=False
    )


def _transposed_csr(matrix: Tensor) -> Tensor:
    """The transpose, again as CSR, so that both directions multiply at full speed."""
    count, width = matrix.shape
    pointer, column, values = matrix.crow_indices().long(), matrix.col_indices().long(), matrix.values()
    row = torch.repeat_interleave(torch.arange(count, device=values.device), pointer.diff())
    order = torch.argsort(column, stable=True)
    transposed = torch.zeros(width + 1, dtype=torch.int64, device=values.device)
    transposed[1:] = torch.bincount(column, minlength=width).cumsum(0)
    return _csr(transposed, row[order], values[order], (width, count))


def _row_map(views: Tensor, grid: VolumeGrid, rows: int) -> Tensor | None:
    """Linear interpolation from slices to detector rows, (K, V, Z); None where rows are the slices, upside down."""
    views = views.detach()
    z = grid.axis_mm(2, views.device, views.dtype)
    offsets = torch.arange(rows, device=views.device, dtype=views.dtype) - (rows - 1) / 2
    heights = views[:, 5, None] + offsets * views[:, 11, None]
    if rows == len(z) and torch.allclose(heights, z.flip(0).expand_as(heights), rtol=0, atol=1e-4 * grid.spacing_mm[2]):
        return None
    index = (heights - grid.center_mm[2]) / grid.spacing_mm[2] + (len(z) - 1) / 2
    return (1 - (index[..., None] - torch.arange(len(z), device=views.device)).abs()).clamp(min=0)


class JosephOperator(LinearOperator):
    """Any pose, parallel or cone, tilted or not. `forward_with_pose_gradient` differentiates in the pose as well."""

    def _forward(self, volume: Tensor) -> Tensor:
        return joseph(volume, self.views.detach(), self.grid, self.detector_shape)

    def _transpose(self, image: Tensor) -> Tensor:
        zeros = torch.zeros(len(image), *self.grid.shape, dtype=image.dtype, device=image.device)
        with torch.enable_grad():
            zeros.requires_grad_(True)
            # One view at a time: the graph of all views together would hold every plane of every view.
            total = torch.zeros_like(zeros)
            for k in range(len(self.views)):
                shadow = joseph(zeros, self.views[k : k + 1].detach(), self.grid, self.detector_shape)
                total = total + torch.autograd.grad(shadow, zeros, image[:, k : k + 1])[0]
        return total.detach()


def joseph(volume: Tensor, views: Tensor, grid: VolumeGrid, detector_shape: Sequence[int]) -> Tensor:
    """Line integrals (B, K, V, U) of a volume (B, X, Y, Z), plain autograd in volume and views."""
    origins, directions = rays(views, detector_shape)
    images = []
    for origin, direction in zip(origins, directions, strict=True):
        images.append(_joseph_view(volume, origin, direction, grid))
    return torch.stack(images, 1)


def _joseph_view(volume: Tensor, origin: Tensor, direction: Tensor, grid: VolumeGrid) -> Tensor:
    rows, columns = direction.shape[:2]
    central = direction.detach()[rows // 2, columns // 2].abs()
    march = int(central.argmax())
    first, second = (axis for axis in range(3) if axis != march)
    slope = direction / direction[..., march : march + 1]
    planes = grid.axis_mm(march, volume.device, direction.dtype)
    # Planes as batch, volumes as channels: (P, B, first, second).
    stack = volume.movedim(march + 1, 0)
    chunk = max(1, _PLANE_CHUNK_BYTES // (rows * columns * (2 + len(volume)) * volume.element_size()))
    total = torch.zeros(len(volume), rows, columns, dtype=volume.dtype, device=volume.device)
    for start in range(0, len(planes), chunk):
        distance = planes[start : start + chunk, None, None] - origin[None, ..., march]
        coordinates = [
            (origin[..., axis] + distance * slope[..., axis] - grid.center_mm[axis]) / grid.half_extent_mm[axis]
            for axis in (second, first)
        ]
        sampled = F.grid_sample(
            stack[start : start + chunk], torch.stack(coordinates, -1), padding_mode="zeros", align_corners=False
        )
        total = total + sampled.sum(0)
    return total * (slope.norm(dim=-1) * grid.spacing_mm[march])


def make_operator(views: Tensor, grid: VolumeGrid, detector_shape: Sequence[int]) -> LinearOperator:
    """The fastest operator that is exact for these views (K, 13)."""
    if bool(is_vertical_parallel(views).all()):
        return ParallelOperator(views, grid, detector_shape)
    return JosephOperator(views, grid, detector_shape)
