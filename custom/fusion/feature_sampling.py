"""Bilinear sampling of the features of single views at points in space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from custom.fusion.plans import PointPlan
from custom.fusion.rows import channels_innermost, gather_rows
from custom.geometry import VIEW_SIZE, pixel_coordinates

__all__ = ["sample_features"]


def sample_features(
    features: Float[Tensor, "B K C V2 U2"],
    views: Float[Tensor, "*_ K 13"],
    points: Float[Tensor, "*_ N 3"],
    detector_shape: Sequence[int],
    chunk: int = 65536,
) -> tuple[Float[Tensor, "B K C N"], Bool[Tensor, "B K N"]]:
    """What every view shows at points in space: each point is projected into the view and its feature map sampled.

    Args:
        features: (B, K, C, V', U'). The map may be coarser or finer than the detector; both cover the same area, so
            detector index i is map index (i + 0.5) V' / V - 0.5.
        views: (B, K, 13) or (K, 13), see `custom.geometry`.
        points: (B, N, 3) or (N, 3) [mm, isocentre frame].
        detector_shape: rows and columns (V, U) that `views` count in.
        chunk: points that are handled at a time; bounds the memory for coordinates.

    Returns:
        Values (B, K, C, N) in the dtype of `features`: bilinear, the map's outermost pixels reach to the detector's
        border; 0 where the point is not seen. The channels are innermost in memory. And seen, bool (B, K, N): in front
        of the source and within the detector's borders. Differentiable in features, views and points. Coordinates are
        computed in float32 (or the dtype of `views`, if wider), whatever autocast says.

    Raises:
        ValueError: for shapes that do not match.
    """
    views, points = check_inputs(features, views, points)
    with torch.autocast(features.device.type, enabled=False):
        if needs_pose_gradient(views, points):
            return sample_differentiably(features, views, points, detector_shape)
        batch, count, channels, *map_shape = features.shape
        plan = PointPlan(
            views.reshape(batch * count, 1, VIEW_SIZE),
            points[:, None].expand(-1, count, -1, -1).flatten(0, 1),
            torch.ones(batch * count, 1, dtype=torch.bool, device=features.device),
            map_shape,
            detector_shape,
            "plain",
            chunk,
        )
        values = gather_rows(feature_rows(features), plan, features.dtype)
    return values.view(batch, count, -1, channels).mT, plan.number.view(batch, count, -1) > 0


def sample_differentiably(
    features: Tensor, views: Tensor, points: Tensor, detector_shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`sample_features` through `grid_sample`, which also has gradients with respect to the coordinates."""
    batch, count, channels = features.shape[:3]
    indices, seen = pixel_coordinates(points, views, detector_shape)
    size = indices.new_tensor([detector_shape[1], detector_shape[0]])
    grid = torch.where(seen[..., None], (indices + 0.5) * (2 / size) - 1, 0)
    dtype = torch.promote_types(features.dtype, torch.float32)
    values = F.grid_sample(
        features.to(dtype).flatten(0, 1),
        grid.to(dtype).reshape(batch * count, 1, -1, 2),
        padding_mode="border",
        align_corners=False,
    )
    values = values.view(batch, count, channels, -1).masked_fill(~seen[:, :, None], 0)
    return values.to(features.dtype), seen


def feature_rows(features: Tensor, extra_channels: int = 0) -> Tensor:
    """(B, K, C, V', U') to a table (B K V' U', C) in at least float32, with channels of zeros appended."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    maps = channels_innermost(features.flatten(0, 1).to(dtype))
    if extra_channels:
        maps = F.pad(maps, (0, extra_channels))
    return maps.reshape(-1, maps.shape[-1])


def needs_pose_gradient(views: Tensor, points: Tensor | None = None) -> bool:
    """Whether the coordinates are part of an autograd graph."""
    return torch.is_grad_enabled() and (views.requires_grad or (points is not None and points.requires_grad))


def check_inputs(features: Tensor, views: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Views (B, K, 13) and points (B, N, 3) in at least float32, checked against the features."""
    if features.ndim != 5 or not features.is_floating_point():
        raise ValueError(
            f"features must be floating point (B, K, C, V, U), got {features.dtype} {tuple(features.shape)}"
        )
    batch, count = features.shape[:2]
    if views.ndim not in (2, 3) or views.shape[-2:] != (count, VIEW_SIZE) or views.shape[:-2] not in ((), (batch,)):
        raise ValueError(
            f"features are of {batch} x {count} views, so views must have shape ({batch}, {count}, {VIEW_SIZE}) or "
            f"({count}, {VIEW_SIZE}), got {tuple(views.shape)}"
        )
    if points.ndim not in (2, 3) or points.shape[-1] != 3 or points.shape[:-2] not in ((), (batch,)):
        raise ValueError(f"points must have shape ({batch}, N, 3) or (N, 3), got {tuple(points.shape)}")
    dtype = torch.promote_types(torch.promote_types(views.dtype, points.dtype), torch.float32)
    views, points = (tensor.to(features.device, dtype) for tensor in (views, points))
    return views.expand(batch, -1, -1), points.expand(batch, -1, -1)
