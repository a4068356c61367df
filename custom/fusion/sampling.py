"""Features of single views at points in space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.geometry import VIEW_SIZE, pixel_coordinates

__all__ = ["sample_features"]


def sample_features(
    features: Tensor, views: Tensor, points: Tensor, detector_shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """What every view shows at points in space: each point is projected into the view and its feature map sampled.

    Args:
        features: (B, K, C, V', U'). The map may be coarser or finer than the detector; both cover the same area, so
            detector index i is map index (i + 0.5) V' / V - 0.5.
        views: (B, K, 13) or (K, 13), see `custom.geometry`.
        points: (B, N, 3) or (N, 3) [mm, isocentre frame].
        detector_shape: rows and columns (V, U) that `views` count in.

    Returns:
        Values (B, K, C, N) in the dtype of `features`: bilinear, the map's outermost pixels reach to the detector's
        border; 0 where the point is not seen. And seen, bool (B, K, N): in front of the source and within the
        detector's borders. Differentiable in features, views and points. Coordinates are computed in float32 (or the
        dtype of `views`, if wider), whatever autocast says.

    Raises:
        ValueError: for shapes that do not match.
    """
    views, points = check_inputs(features, views, points)
    batch, count, channels = features.shape[:3]
    with torch.autocast(features.device.type, enabled=False):
        indices, seen = pixel_coordinates(points, views, detector_shape)
        size = indices.new_tensor([detector_shape[1], detector_shape[0]])
        grid = (indices + 0.5) * (2 / size) - 1
        dtype = torch.promote_types(features.dtype, torch.float32)
        values = F.grid_sample(
            features.to(dtype).flatten(0, 1),
            grid.to(dtype).reshape(batch * count, 1, -1, 2),
            padding_mode="border",
            align_corners=False,
        )
        values = values.view(batch, count, channels, -1).masked_fill(~seen[:, :, None], 0)
    return values.to(features.dtype), seen


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
    return views.to(dtype).expand(batch, -1, -1), points.to(dtype).expand(batch, -1, -1)
