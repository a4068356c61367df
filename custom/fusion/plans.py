"""Sampling plans: which pixels of which feature maps a point in space averages, and with what weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from custom.fusion.rows import SinglePlan, Taps
from custom.geometry import VIEW_SIZE, VolumeGrid, pixel_coordinates, projection_matrices

__all__ = ["ParallelPlan", "PointPlan", "parallel_plan"]


def linear_taps(index: Tensor, seen: Tensor, size: int, detector_size: int) -> tuple[Tensor, Tensor]:
    """First of the two map pixels that a detector index lies between (int64), and the weight of the second.

    The outermost pixels reach to the detector's border. Where `seen` is False the values are valid but meaningless.
    """
    position = ((torch.where(seen, index, 0) + 0.5) * (size / detector_size) - 0.5).clamp(0, size - 1)
    first = position.floor().clamp(max=max(size - 2, 0))
    return first.to(torch.int64), position - first


class PointPlan:
    """Bilinear sampling in every view and mean over the views, at points in space; any geometry.

    Table rows are the pixels of all maps (b, k, v, u); output rows the points (b, n). Taps are computed a chunk of
    points at a time whenever they are needed, so that they take no memory between forward and backward.

    Args:
        views: (B, K, 13).
        points: (B, N, 3) mm.
        exist: bool (B, K).
        map_shape: rows and columns (V', U') of the feature maps.
        detector_shape: rows and columns (V, U) that `views` count in.
        reduction: "seen" or "plain".
        chunk: points at a time.
    """

    def __init__(
        self,
        views: Tensor,
        points: Tensor,
        exist: Tensor,
        map_shape: Sequence[int],
        detector_shape: Sequence[int],
        reduction: str,
        chunk: int,
    ) -> None:
        self.views, self.points, self.exist = views.detach(), points.detach(), exist
        self.map_shape, self.detector_shape = map_shape, detector_shape
        self.reduction, self.chunk = reduction, chunk
        batch, self.views_per_item = exist.shape
        self.rows = batch * points.shape[1]
        self.columns_per_item = self.views_per_item * map_shape[0] * map_shape[1]
        self.columns = batch * self.columns_per_item
        self.number = points.new_zeros(batch, points.shape[1])
        """How many existing views see each point, (B, N); filled by `pieces`."""

    def pieces(self) -> Iterator[tuple[slice, slice, Taps]]:
        count = self.points.shape[1]
        for item in range(len(self.views)):
            columns = slice(item * self.columns_per_item, (item + 1) * self.columns_per_item)
            for start in range(0, count, self.chunk):
                stop = min(start + self.chunk, count)
                yield slice(item * count + start, item * count + stop), columns, self._taps(item, start, stop)

    def _taps(self, item: int, start: int, stop: int) -> Taps:
        (rows, width), (detector_rows, detector_width) = self.map_shape, self.detector_shape
        index, seen = pixel_coordinates(self.points[item, start:stop], self.views[item], self.detector_shape)
        seen = seen & self.exist[item, :, None]
        number = seen.sum(0).to(index.dtype)
        self.number[item, start:stop] = number
        u, weight_u = linear_taps(index[..., 0], seen, width, detector_width)
        v, weight_v = linear_taps(index[..., 1], seen, rows, detector_rows)
        divisor = number if self.reduction == "seen" else self.exist[item].sum().to(index.dtype)
        share = seen / divisor.clamp(min=1)
        view = torch.arange(self.views_per_item, device=u.device)[:, None]
        first = ((view * rows + v) * width + u).to(torch.int32)
        right, down = min(1, width - 1), min(1, rows - 1) * width
        lower = share * weight_v
        upper = share - lower
        indices = torch.stack([first, first + right, first + down, first + down + right], -1)
        weights = torch.stack(
            [upper - upper * weight_u, upper * weight_u, lower - lower * weight_u, lower * weight_u], -1
        )
        taps = 4 * self.views_per_item
        return Taps(
            indices.transpose(0, 1).reshape(-1, taps), weights.transpose(0, 1).reshape(-1, taps), self.columns_per_item
        )


@dataclass(frozen=True)
class ParallelPlan:
    """Fusion onto a grid where every view is parallel beam, upright and level: u depends on (x, y), v on z alone.

    Attributes:
        along_v: maps (b, k, v) to grid heights (b, k, z); 0 at heights that the view does not see.
        along_u: map columns (b, k, u) to grid columns (b, x, y), averaged over the views.
        scale: None, or the divisor's inverse (B, XY, Z) where views do not see the same heights, so that the number of
            views that see a voxel is no product of a function of (x, y) and one of z.
        fraction: share of the existing views that see a voxel, (B, XY, Z).
    """

    along_v: SinglePlan
    along_u: SinglePlan
    scale: Tensor | None
    fraction: Tensor


def parallel_plan(
    views: Tensor,
    exist: Tensor,
    grid: VolumeGrid,
    map_shape: Sequence[int],
    detector_shape: Sequence[int],
    reduction: str,
) -> ParallelPlan:
    """The plan for views (B, K, 13); the latest ones are kept, since most callers keep their geometry."""
    return _parallel_plan(
        views.detach().cpu().numpy().tobytes(),
        exist.cpu().numpy().tobytes(),
        tuple(exist.shape),
        views.dtype,
        views.device,
        grid,
        (int(map_shape[0]), int(map_shape[1])),
        (int(detector_shape[0]), int(detector_shape[1])),
        reduction,
    )


@lru_cache(maxsize=8)
def _parallel_plan(
    view_bytes: bytes,
    exist_bytes: bytes,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    grid: VolumeGrid,
    map_shape: tuple[int, int],
    detector_shape: tuple[int, int],
    reduction: str,
) -> ParallelPlan:
    batch, count = shape
    views = torch.frombuffer(bytearray(view_bytes), dtype=dtype).view(batch, count, VIEW_SIZE).to(device)
    exist = torch.frombuffer(bytearray(exist_bytes), dtype=torch.bool).view(batch, count).to(device)
    x, y, z = (grid.axis_mm(axis, device, dtype) for axis in range(3))
    columns = torch.cat([torch.cartesian_prod(x, y), torch.zeros(len(x) * len(y), 1, device=device, dtype=dtype)], 1)
    heights = torch.stack([torch.zeros_like(z), torch.zeros_like(z), z], 1)
    u = pixel_coordinates(columns, views, detector_shape)[0][..., 0]
    v = pixel_coordinates(heights, views, detector_shape)[0][..., 1]
    in_front = projection_matrices(views, detector_shape)[..., 2, 3:] > 1e-9
    seen_u = (u >= -0.5) & (u <= detector_shape[1] - 0.5) & in_front & exist[..., None]
    seen_v = (v >= -0.5) & (v <= detector_shape[0] - 0.5)
    number = torch.einsum("bkp,bkz->bpz", seen_u.to(dtype), seen_v.to(dtype))
    present = exist.sum(1).clamp(min=1).to(dtype)[:, None, None]
    scale = None
    divisor = present
    if reduction == "seen":
        same_heights = bool(((seen_v == (seen_v & exist[..., None]).any(1, keepdim=True)) | ~exist[..., None]).all())
        divisor = seen_u.sum(1, keepdim=True).clamp(min=1).to(dtype) if same_heights else torch.ones_like(present)
        scale = None if same_heights else 1 / number.clamp(min=1)
    base = torch.arange(batch * count, device=device).view(batch, count, 1)

    def taps(index: Tensor, share: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        size = map_shape[axis]
        first, second_weight = linear_taps(index, share > 0, size, detector_shape[axis])
        first = (first + base * size).to(torch.int32)
        indices = torch.stack([first, first + min(1, size - 1)], -1)
        return indices, torch.stack([share * (1 - second_weight), share * second_weight], -1)

    indices_u, weights_u = taps(u, seen_u / divisor, 1)
    indices_v, weights_v = taps(v, seen_v.to(dtype), 0)
    return ParallelPlan(
        along_v=SinglePlan(indices_v.reshape(-1, 2), weights_v.reshape(-1, 2), batch * count * map_shape[0]),
        along_u=SinglePlan(
            indices_u.transpose(1, 2).reshape(-1, 2 * count),
            weights_u.transpose(1, 2).reshape(-1, 2 * count),
            batch * count * map_shape[1],
        ),
        scale=scale,
        fraction=number / present,
    )
