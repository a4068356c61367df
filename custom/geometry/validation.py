"""Validation of acquisitions: each error says which view is impossible and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from custom.geometry.grid import VolumeGrid, require_positive
from custom.geometry.views import CONE, PARALLEL, VIEW_SIZE, is_cone, pixel_coordinates, rays

__all__ = ["rays_through_box", "validate"]

_PROBES = 33


def validate(views: Tensor, detector_shape: Sequence[int], grid: VolumeGrid) -> None:
    """Raise for an acquisition that cannot be.

    Args:
        views: (K, 13), float64.
        detector_shape: rows and columns (V, U).
        grid: the volume.

    Raises:
        ValueError: for NaN, unknown beam flags, a degenerate or back-to-front detector, a source inside the volume, or
            a detector that misses the volume.
    """
    if views.ndim != 2 or views.shape[1] != VIEW_SIZE or len(views) == 0:
        raise ValueError(f"views must have shape (K, {VIEW_SIZE}) with at least one view, got {tuple(views.shape)}")
    if len(detector_shape) != 2:
        raise ValueError(f"detector_shape must be (rows, columns), got {tuple(detector_shape)}")
    require_positive("detector_shape", detector_shape)
    if not torch.isfinite(views).all():
        bad = (~torch.isfinite(views)).any(1).nonzero().flatten().tolist()
        raise ValueError(f"views must be finite numbers; view {bad[0]} is {views[bad[0]].tolist()}")
    if not ((views[:, 12] == PARALLEL) | (views[:, 12] == CONE)).all():
        raise ValueError(f"beam flags must be 0 (parallel) or 1 (cone), got {views[:, 12].tolist()}")
    for index, view in enumerate(views):
        _validate_detector(index, view)
    half = torch.tensor(grid.half_extent_mm, dtype=views.dtype)
    middle = torch.tensor(grid.center_mm, dtype=views.dtype)
    inside = is_cone(views) & ((views[:, 0:3] - middle).abs() <= half).all(-1)
    for index in inside.nonzero().flatten().tolist():
        raise ValueError(
            f"view {index}: the source {views[index, 0:3].tolist()} mm is inside the volume "
            f"(centre {middle.tolist()}, half extent {half.tolist()} mm); move it out or make the grid smaller"
        )
    for index in (~_sees_volume(views, detector_shape, grid)).nonzero().flatten().tolist():
        raise ValueError(
            f"view {index}: the detector misses the volume: no ray of detector centre {views[index, 3:6].tolist()} mm "
            f"passes through it (centre {middle.tolist()}, half extent {half.tolist()} mm)"
        )


def _validate_detector(index: int, view: Tensor) -> None:
    head, center, u_step, v_step = (view[i : i + 3] for i in (0, 3, 6, 9))
    normal = torch.linalg.cross(u_step, v_step)
    area = float(u_step.norm() * v_step.norm())
    if area < 1e-12 or float(normal.norm()) < 1e-3 * area:
        raise ValueError(f"view {index}: u and v steps must be nonzero and not parallel, got {view[6:12].tolist()} mm")
    ray = center - head if view[12] == CONE else head
    along = float(ray @ normal)
    if float(ray.norm()) < 1e-9 or abs(along) < 1e-6 * float(ray.norm() * normal.norm()):
        raise ValueError(f"view {index}: the rays run along the detector plane (or have no direction)")
    if along < 0:
        raise ValueError(
            f"view {index}: (u step, v step, ray direction) must be right-handed, the picture as seen from the source; "
            "reverse u_step or v_step, and the radiograph's columns or rows with it"
        )


def _sees_volume(views: Tensor, detector_shape: Sequence[int], grid: VolumeGrid) -> Tensor:
    """Which views have a ray through the volume, bool (K,).

    Some rays may pass between the probed voxels of a coarse detector, and some voxels between the probed rays of a
    fine one, so both are tried.
    """
    points = grid.resized([min(n, 12) for n in grid.shape]).points(dtype=views.dtype).reshape(-1, 3)
    _, seen = pixel_coordinates(points, views, detector_shape)
    rows, columns = (min(n, _PROBES) for n in detector_shape)
    probes = views.clone()
    probes[:, 6:9] *= (detector_shape[1] - 1) / max(columns - 1, 1)
    probes[:, 9:12] *= (detector_shape[0] - 1) / max(rows - 1, 1)
    hit = rays_through_box(*rays(probes, (rows, columns)), grid)
    return seen.any(-1) | hit.flatten(1).any(-1)


def rays_through_box(origin: Tensor, direction: Tensor, grid: VolumeGrid) -> Tensor:
    """Which lines (..., 3) pass through the grid's box, bool (...); slab method (Kay and Kajiya 1986)."""
    half = torch.tensor(grid.half_extent_mm, dtype=origin.dtype, device=origin.device)
    middle = torch.tensor(grid.center_mm, dtype=origin.dtype, device=origin.device)
    safe = torch.where(direction.abs() < 1e-12, torch.full_like(direction, 1e-12), direction)
    first, second = (middle - half - origin) / safe, (middle + half - origin) / safe
    return torch.minimum(first, second).amax(-1) <= torch.maximum(first, second).amin(-1)
