"""Fusion of the features of all views: projection of every voxel centre, bilinear sampling, mean.

INRR3CT, section 2; DIFR3CT, eq. (10) (the projection of a voxel into a view) and the average pooling after it, which is
the reduction "plain". The default "seen" leaves out views that do not see the voxel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from custom.fusion.feature_sampling import check_inputs, feature_rows, needs_pose_gradient, sample_differentiably
from custom.fusion.plans import PointPlan, parallel_plan
from custom.fusion.rows import gather_rows
from custom.geometry import VolumeGrid, is_vertical_parallel, projection_matrices

__all__ = ["FeatureFusion", "fuse_features", "fuse_points"]

REDUCTIONS = ("seen", "plain")
CHUNK = 65536
# Stands in for padding, whose 13 numbers may be zeros and would divide by zero: rays along -x, 1 mm pixels.
PADDING_VIEW = (-1.0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, -1, 0)


def fuse_points(
    features: Float[Tensor, "B K C V2 U2"],
    views: Float[Tensor, "*_ K 13"],
    points: Float[Tensor, "*_ N 3"],
    detector_shape: Sequence[int],
    view_mask: Bool[Tensor, "*_ K"] | None = None,
    reduction: str = "seen",
    with_count: bool = False,
    chunk: int = CHUNK,
) -> Float[Tensor, "B _ N"]:
    """Mean over the views of their features at points in space.

    Args:
        features: (B, K, C, V', U').
        views: (B, K, 13) or (K, 13), see `custom.geometry`.
        points: (B, N, 3) or (N, 3) [mm, isocentre frame].
        detector_shape: rows and columns (V, U) that `views` count in; the feature maps cover the same area.
        view_mask: bool (B, K) or (K,), False for padding; None: all views exist.
        reduction: "seen": mean over the existing views that see the point, 0 where none does. "plain": sum over the
            views that see it, divided by the number of views that exist (the mean of the papers).
        with_count: append a channel with the number of views that see the point, divided by the number that exist
            (0..1).
        chunk: points that are handled at a time.

    Returns:
        (B, C, N), or (B, C + 1, N) with the count, in the dtype of `features`, channels innermost in memory.
        Differentiable in features, and in views and points if they require a gradient.

    Raises:
        ValueError: for shapes that do not match or an unknown reduction.
    """
    views, points = check_inputs(features, views, points)
    features, views, exist = _without_padding(features, views, view_mask)
    _check_reduction(reduction)
    with torch.autocast(features.device.type, enabled=False):
        return _fuse_points(features, views, points, detector_shape, exist, reduction, with_count, chunk)


def fuse_features(
    features: Float[Tensor, "B K C V2 U2"],
    views: Float[Tensor, "*_ K 13"],
    grid: VolumeGrid,
    detector_shape: Sequence[int],
    view_mask: Bool[Tensor, "*_ K"] | None = None,
    reduction: str = "seen",
    with_count: bool = False,
    antialias: bool = True,
    chunk: int = CHUNK,
) -> Float[Tensor, "B _ X Y Z"]:
    """Mean over the views of their features at every voxel centre of a grid: see `FeatureFusion`, its module.

    Args:
        features: (B, K, C, V', U').
        views: (B, K, 13) or (K, 13), see `custom.geometry`.
        grid: output voxels, in the isocentre frame.
        detector_shape: rows and columns (V, U) that `views` count in; the feature maps cover the same area.
        view_mask: bool (B, K) or (K,), False for padding; None: all views exist.
        reduction: "seen" or "plain", as in `fuse_points`.
        with_count: append a channel with the number of views that see the voxel, divided by the number that exist.
        antialias: see `antialiasing_factors`.
        chunk: voxels that are handled at a time where the beam is not parallel and upright.

    Returns:
        (B, C, X, Y, Z), or (B, C + 1, X, Y, Z) with the count, in the dtype of `features` and channels_last_3d memory.

    Raises:
        ValueError: for shapes that do not match or an unknown reduction.
    """
    dtype = torch.promote_types(views.dtype, torch.float32)
    points = grid.points(features.device, dtype).reshape(-1, 3)
    views, points = check_inputs(features, views, points)
    features, views, exist = _without_padding(features, views, view_mask)
    _check_reduction(reduction)
    with torch.autocast(features.device.type, enabled=False):
        if not antialias:
            return _fuse_grid(features, views, points, grid, detector_shape, exist, reduction, with_count, chunk)
        factors = antialiasing_factors(views, grid, detector_shape, features.shape[-2:])
        groups = torch.unique(factors[exist], dim=0).tolist() or [[1, 1]]
        if len(groups) == 1:
            pooled = _pool(features, groups[0])
            return _fuse_grid(pooled, views, points, grid, detector_shape, exist, reduction, with_count, chunk)
        # Views of different magnification: one sum for each factor, then the mean of all.
        total: Tensor | None = None
        for group in groups:
            members = exist & (factors == factors.new_tensor(group)).all(-1)
            pooled = _pool(features.to(torch.promote_types(features.dtype, torch.float32)), group)
            mean = _fuse_grid(pooled, views, points, grid, detector_shape, members, "plain", True, chunk)
            part = mean * members.sum(1)[:, None, None, None, None]
            total = part if total is None else total + part
        assert total is not None
        total, number = total[:, :-1], total[:, -1:].detach()
        present = exist.sum(1).clamp(min=1)[:, None, None, None, None]
        total = total / (number.clamp(min=1) if reduction == "seen" else present)
        if with_count:
            total = torch.cat([total, number / present], 1)
        return total.to(features.dtype, memory_format=torch.channels_last_3d)


def antialiasing_factors(
    views: Float[Tensor, "*batch 13"], grid: VolumeGrid, detector_shape: Sequence[int], map_shape: Sequence[int]
) -> Int64[Tensor, "*batch 2"]:
    """Over how many pixels feature maps are averaged before they are sampled at the voxels of a grid.

    A map that is much finer than the grid would be sampled at some of its pixels only (aliasing). The factor is the
    greatest power of two at which the map's pixels, seen at the isocentre, are still no larger than the voxels: 1 for
    maps less than twice as fine, 2 from twice as fine on, 4 from four times.

    Args:
        views: (..., K, 13).
        grid: the voxels; only their spacing counts.
        detector_shape: rows and columns (V, U) that `views` count in.
        map_shape: rows and columns (V', U') of the feature maps.

    Returns:
        int64 (..., K, 2), factors along (V', U').
    """
    matrices = projection_matrices(views.detach(), detector_shape)
    index, depth = matrices[..., :2, 3:], matrices[..., 2:, 3:]
    # Derivative of the detector index with respect to the position, at the isocentre.
    slope = (matrices[..., :2, :3] - index / depth * matrices[..., 2:, :3]) / depth
    pixels = (slope * slope.new_tensor(grid.spacing_mm)).norm(dim=-1).flip(-1)
    ratio = pixels * pixels.new_tensor([map_shape[0] / detector_shape[0], map_shape[1] / detector_shape[1]])
    limit = ratio.new_tensor([map_shape[0], map_shape[1]])
    exponent = torch.log2(torch.minimum(ratio.nan_to_num(1), limit).clamp(min=1) * (1 + 1e-4)).floor()
    return (2**exponent).to(torch.int64)


class FeatureFusion(nn.Module):
    """Image features of K views to features on a volume grid.

    Every voxel centre is projected into every view, the view's feature map is sampled there bilinearly, and the mean
    over the views is taken: any number of views, any pose, parallel and cone beam. No parameters.

    Args:
        grid: output voxels, in the isocentre frame.
        detector_shape: rows and columns (V, U) that `views` count in; the feature maps may be coarser or finer.
        reduction: "seen": mean over the existing views that see the voxel, 0 where none does. "plain": sum over the
            views that see it, divided by the number of views that exist (the mean of the papers).
        with_count: append a channel with the number of views that see the voxel, divided by the number that exist
            (0..1).
        antialias: average feature maps that are at least twice as fine as the grid down to its resolution first
            (`antialiasing_factors`), so that a coarse grid reads all of a map and not every n-th pixel.
        chunk: voxels that are handled at a time where the beam is not parallel and upright; bounds the memory.

    Raises:
        ValueError: for an unknown reduction.
    """

    def __init__(
        self,
        grid: VolumeGrid,
        detector_shape: Sequence[int],
        reduction: str = "seen",
        with_count: bool = False,
        antialias: bool = True,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__()
        _check_reduction(reduction)
        self.grid = grid
        self.detector_shape = (int(detector_shape[0]), int(detector_shape[1]))
        self.reduction = reduction
        self.with_count = with_count
        self.antialias = antialias
        self.chunk = chunk

    def forward(
        self, features: Tensor, views: Tensor, view_mask: Tensor | None = None, grid: VolumeGrid | None = None
    ) -> Tensor:
        """Fuse.

        Args:
            features: (B, K, C, V', U').
            views: (B, K, 13) or (K, 13).
            view_mask: bool (B, K) or (K,), False for padding.
            grid: another output grid than the module's, for example a patch of it.

        Returns:
            (B, C, X, Y, Z), or (B, C + 1, X, Y, Z) with the count, in channels_last_3d memory.
        """
        return fuse_features(
            features,
            views,
            grid or self.grid,
            self.detector_shape,
            view_mask,
            self.reduction,
            self.with_count,
            self.antialias,
            self.chunk,
        )


def _fuse_grid(
    features: Tensor,
    views: Tensor,
    points: Tensor,
    grid: VolumeGrid,
    detector_shape: Sequence[int],
    exist: Tensor,
    reduction: str,
    with_count: bool,
    chunk: int,
) -> Tensor:
    if not needs_pose_gradient(views) and bool(is_vertical_parallel(views).all()):
        return _fuse_parallel(features, views, grid, detector_shape, exist, reduction, with_count)
    fused = _fuse_points(features, views, points, detector_shape, exist, reduction, with_count, chunk)
    return fused.unflatten(-1, grid.shape).contiguous(memory_format=torch.channels_last_3d)


def _fuse_parallel(
    features: Tensor,
    views: Tensor,
    grid: VolumeGrid,
    detector_shape: Sequence[int],
    exist: Tensor,
    reduction: str,
    with_count: bool,
) -> Tensor:
    """Resample along v to the grid's heights, then take all heights and channels of a map column as one table row."""
    batch, count, channels, rows, width = features.shape
    plan = parallel_plan(views, exist, grid, (rows, width), detector_shape, reduction)
    channels += int(with_count)
    height = grid.shape[2]
    table = gather_rows(feature_rows(features, int(with_count)).view(-1, width * channels), plan.along_v)
    table = table.view(batch * count, height, width, channels).transpose(1, 2)
    out = gather_rows(table.reshape(-1, height * channels), plan.along_u, features.dtype)
    if plan.scale is not None:
        out = (out.view(batch, -1, height, channels) * plan.scale[..., None].to(out.dtype)).flatten(2)
    if with_count:
        # The channel is fed by zeros that were appended to the features, so no gradient passes through it.
        out.detach().view(batch, -1, height, channels)[..., -1] = plan.fraction
    return out.view(batch, *grid.shape, channels).permute(0, 4, 1, 2, 3)


def _fuse_points(
    features: Tensor,
    views: Tensor,
    points: Tensor,
    detector_shape: Sequence[int],
    exist: Tensor,
    reduction: str,
    with_count: bool,
    chunk: int,
) -> Tensor:
    if needs_pose_gradient(views, points):
        parts = [
            checkpoint(
                _mean_differentiably,
                features,
                views,
                piece,
                detector_shape,
                exist,
                reduction,
                with_count,
                use_reentrant=False,
            )
            for piece in points.split(chunk, 1)
        ]
        return torch.cat(parts, -1)
    batch, map_shape = len(features), features.shape[-2:]
    plan = PointPlan(views, points, exist, map_shape, detector_shape, reduction, chunk)
    out = gather_rows(feature_rows(features, int(with_count)), plan, features.dtype)
    if with_count:
        out.detach()[:, -1] = (plan.number / exist.sum(1, keepdim=True).clamp(min=1)).flatten()
    return out.view(batch, points.shape[1], -1).mT


def _mean_differentiably(
    features: Tensor,
    views: Tensor,
    points: Tensor,
    detector_shape: Sequence[int],
    exist: Tensor,
    reduction: str,
    with_count: bool,
) -> Tensor:
    values, seen = sample_differentiably(features, views, points, detector_shape)
    seen = seen & exist[:, :, None]
    number = seen.sum(1, keepdim=True)
    present = exist.sum(1).clamp(min=1)[:, None, None]
    dtype = torch.promote_types(values.dtype, torch.float32)
    total = values.masked_fill(~seen[:, :, None], 0).sum(1, dtype=dtype)
    mean = total / (number.clamp(min=1) if reduction == "seen" else present)
    if with_count:
        mean = torch.cat([mean, (number / present).to(dtype)], 1)
    return mean.to(features.dtype)


def _pool(features: Tensor, factor: Sequence[int]) -> Tensor:
    """Average over blocks of (rows, columns) pixels; blocks overlap where the factor does not divide the map."""
    if max(factor) == 1:
        return features
    rows, width = features.shape[-2:]
    images = features.flatten(0, 1)
    if rows % factor[0] == 0 and width % factor[1] == 0:
        pooled = F.avg_pool2d(images, tuple(factor))
    else:
        pooled = F.adaptive_avg_pool2d(images, (math.ceil(rows / factor[0]), math.ceil(width / factor[1])))
    return pooled.unflatten(0, features.shape[:2])


def _without_padding(features: Tensor, views: Tensor, view_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Features, views and mask (B, K); what padding holds is replaced, so that not even a NaN gets through."""
    batch, count = features.shape[:2]
    if view_mask is None:
        return features, views, torch.ones(batch, count, dtype=torch.bool, device=features.device)
    if view_mask.shape not in ((count,), (batch, count)):
        raise ValueError(f"view_mask must have shape ({batch}, {count}) or ({count},), got {tuple(view_mask.shape)}")
    exist = view_mask.to(features.device, torch.bool).expand(batch, count)
    if not bool(exist.all()):
        features = features.masked_fill(~exist[:, :, None, None, None], 0)
        views = torch.where(exist[..., None], views, views.new_tensor(PADDING_VIEW))
    return features, views, exist


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
