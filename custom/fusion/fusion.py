"""Fusion of the features of all views: projection of every voxel centre, bilinear sampling, mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from custom.fusion.sampling import sample_features
from custom.geometry import VolumeGrid

__all__ = ["FeatureFusion", "fuse_features", "fuse_points"]

REDUCTIONS = ("seen", "plain")


def fuse_points(
    features: Tensor,
    views: Tensor,
    points: Tensor,
    detector_shape: Sequence[int],
    view_mask: Tensor | None = None,
    reduction: str = "seen",
    with_count: bool = False,
    chunk: int = 65536,
) -> Tensor:
    """Mean over the views of their features at points in space.

    Args:
        features: (B, K, C, V', U').
        views: (B, K, 13) or (K, 13).
        points: (B, N, 3) or (N, 3) [mm, isocentre frame].
        detector_shape: rows and columns (V, U) that `views` count in.
        view_mask: bool (B, K) or (K,), False for padding; None: all views exist.
        reduction: "seen": mean over the existing views that see the point, 0 where none does. "plain": sum over the
            views that see it, divided by the number of views that exist (the mean of the papers).
        with_count: append a channel with the number of views that see the point, divided by the number that exist
            (0..1).
        chunk: points that are handled at a time.

    Returns:
        (B, C, N), or (B, C + 1, N) with the count, in the dtype of `features`.

    Raises:
        ValueError: for shapes that do not match or an unknown reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    batch, count = features.shape[:2]
    if view_mask is None:
        view_mask = torch.ones(batch, count, dtype=torch.bool, device=features.device)
    if view_mask.shape not in ((count,), (batch, count)):
        raise ValueError(f"view_mask must have shape ({batch}, {count}) or ({count},), got {tuple(view_mask.shape)}")
    exist = view_mask.to(features.device, torch.bool).expand(batch, count)[:, :, None]
    present = exist.sum(1, keepdim=True).clamp(min=1)
    parts = []
    for piece in points.split(chunk, -2):
        values, seen = sample_features(features, views, piece, detector_shape)
        seen = seen & exist
        number = seen.sum(1, keepdim=True)
        divisor = number.clamp(min=1) if reduction == "seen" else present
        dtype = torch.promote_types(values.dtype, torch.float32)
        mean = torch.where(seen[:, :, None], values, 0).sum(1, dtype=dtype) / divisor
        if with_count:
            mean = torch.cat([mean, (number / present).to(dtype)], 1)
        parts.append(mean.to(features.dtype))
    return torch.cat(parts, -1)


def fuse_features(
    features: Tensor,
    views: Tensor,
    grid: VolumeGrid,
    detector_shape: Sequence[int],
    view_mask: Tensor | None = None,
    reduction: str = "seen",
    with_count: bool = False,
    antialias: bool = True,
    chunk: int = 65536,
) -> Tensor:
    """Mean over the views of their features at every voxel centre of a grid; arguments as in `FeatureFusion`.

    Returns:
        (B, C, X, Y, Z), or (B, C + 1, X, Y, Z) with the count, in channels_last_3d memory.
    """
    points = grid.points(features.device, torch.promote_types(views.dtype, torch.float32)).reshape(-1, 3)
    fused = fuse_points(features, views, points, detector_shape, view_mask, reduction, with_count, chunk)
    return fused.unflatten(-1, grid.shape).contiguous(memory_format=torch.channels_last_3d)


class FeatureFusion(nn.Module):
    """Image features of K views to features on a volume grid.

    Every voxel centre is projected into every view, the view's feature map is sampled there bilinearly, and the mean
    over the views is taken: any number of views, any pose, parallel and cone beam.

    Args:
        grid: output voxels, in the isocentre frame.
        detector_shape: rows and columns (V, U) that `views` count in; the feature maps may be coarser or finer.
        reduction: "seen": mean over the existing views that see the voxel, 0 where none does. "plain": sum over the
            views that see it, divided by the number of views that exist (the mean of the papers).
        with_count: append a channel with the number of views that see the voxel, divided by the number that exist.
        antialias: average feature maps that are at least twice as fine as the grid over blocks of pixels first.
        chunk: voxels that are handled at a time where the general path is taken.
    """

    def __init__(
        self,
        grid: VolumeGrid,
        detector_shape: Sequence[int],
        reduction: str = "seen",
        with_count: bool = False,
        antialias: bool = True,
        chunk: int = 65536,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
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
