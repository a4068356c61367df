"""The `views` tensor: how it is made from angles, and where its rays run.

A view is a row of 13 numbers, see the package's table. Everything here is differentiable in the views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "BEAMS",
    "CONE",
    "PARALLEL",
    "VIEW_SIZE",
    "detector_pixels",
    "is_cone",
    "is_upright",
    "is_vertical_parallel",
    "pixel_coordinates",
    "projection_matrices",
    "rays",
    "views_from_angles",
]

VIEW_SIZE = 13
PARALLEL, CONE = 0.0, 1.0
BEAMS = {"parallel": PARALLEL, "cone": CONE}


def views_from_angles(
    angles_deg: Tensor | Sequence[float],
    beam: str = "cone",
    source_to_isocenter_mm: float | Tensor = 1000.0,
    source_to_detector_mm: float | Tensor = 1500.0,
    pixel_mm: float | Tensor | Sequence[float] = 2.5,
    detector_offset_mm: Sequence[float] = (0.0, 0.0),
) -> Float[Tensor, "*batch 13"]:
    """Views around the superior axis. Differentiable in every tensor argument.

    Args:
        angles_deg: angle of the source about the superior axis, any shape (..., K). 0: source at the patient's right
            (lateral); 90: source anterior (AP); 180: lateral from the left; 270: PA.
        beam: "cone" or "parallel".
        source_to_isocenter_mm: a number or a tensor that broadcasts with the angles.
        source_to_detector_mm: likewise; perpendicular distance from the source to the detector.
        pixel_mm: size of a detector pixel; a pair is (row distance, column distance), i.e. along v and u.
        detector_offset_mm: shift of the detector along +u and along +z.

    Returns:
        Tensor (..., K, 13).

    Raises:
        ValueError: for an unknown beam, or numbers that are not finite and positive.
    """
    if beam not in BEAMS:
        raise ValueError(f"beam must be one of {sorted(BEAMS)}, got {beam!r}")
    angles = torch.as_tensor(angles_deg)
    if not angles.is_floating_point():
        angles = angles.to(torch.float64)
    elif not isinstance(angles_deg, Tensor):
        angles = torch.as_tensor(angles_deg, dtype=torch.float64)
    if not torch.isfinite(angles).all():
        raise ValueError(f"angles_deg must be finite, got {angles_deg}")

    def like_angles(name: str, value: float | Tensor) -> Tensor:
        tensor = torch.as_tensor(value, dtype=angles.dtype, device=angles.device)
        if not (torch.isfinite(tensor).all() and (tensor > 0).all()):
            raise ValueError(f"{name} must be finite and greater than zero, got {value}")
        return tensor.expand(angles.shape).unsqueeze(-1)

    to_isocenter = like_angles("source_to_isocenter_mm", source_to_isocenter_mm)
    to_detector = like_angles("source_to_detector_mm", source_to_detector_mm)
    if (to_detector <= to_isocenter).any() and beam == "cone":
        raise ValueError(
            f"source_to_detector_mm ({source_to_detector_mm}) must be greater than "
            f"source_to_isocenter_mm ({source_to_isocenter_mm}): the detector stands behind the patient"
        )
    if isinstance(pixel_mm, Sequence):
        pixel_v, pixel_u = (like_angles("pixel_mm", p) for p in pixel_mm)
    else:
        pixel_v = pixel_u = like_angles("pixel_mm", pixel_mm)
    if len(detector_offset_mm) != 2 or not all(map(math.isfinite, detector_offset_mm)):
        raise ValueError(f"detector_offset_mm must be two finite numbers (along +u, +z), got {detector_offset_mm}")
    radians = torch.deg2rad(angles)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    outward = torch.stack([cos, sin, zero], -1)
    along_u = torch.stack([-sin, cos, zero], -1)
    up = torch.stack([zero, zero, zero + 1], -1)
    center = -(to_detector - to_isocenter) * outward + detector_offset_mm[0] * along_u + detector_offset_mm[1] * up
    source = to_isocenter * outward if beam == "cone" else -outward
    flag = (zero + BEAMS[beam]).unsqueeze(-1)
    return torch.cat([source, center, along_u * pixel_u, -up * pixel_v, flag], -1)


def is_cone(views: Float[Tensor, "*batch 13"]) -> Bool[Tensor, "*batch"]:
    """Which views are cone beam: bool (..., K)."""
    return views[..., 12] > 0.5


def is_upright(views: Float[Tensor, "*batch 13"], tolerance: float = 1e-6) -> Bool[Tensor, "*batch"]:
    """Which views have detector columns along the superior axis: bool (..., K)."""
    v_step = views[..., 9:12]
    return v_step[..., :2].abs().amax(-1) <= tolerance * v_step[..., 2].abs()


def is_vertical_parallel(views: Float[Tensor, "*batch 13"], tolerance: float = 1e-6) -> Bool[Tensor, "*batch"]:
    """Which views factorise over axial slices: parallel rays in the axial plane, upright detector. Bool (..., K)."""
    direction, u_step = views[..., 0:3], views[..., 6:9]
    level = u_step[..., 2].abs() <= tolerance * u_step[..., :2].norm(dim=-1)
    axial = direction[..., 2].abs() <= tolerance
    return ~is_cone(views) & is_upright(views, tolerance) & level & axial


def detector_pixels(views: Float[Tensor, "*batch 13"], detector_shape: Sequence[int]) -> Float[Tensor, "*batch V U 3"]:
    """Position of every detector pixel's centre [mm]: (..., K, V, U, 3)."""
    rows, columns = detector_shape
    v = torch.arange(rows, device=views.device, dtype=views.dtype) - (rows - 1) / 2
    u = torch.arange(columns, device=views.device, dtype=views.dtype) - (columns - 1) / 2
    center, u_step, v_step = (views[..., None, None, i : i + 3] for i in (3, 6, 9))
    return center + u[:, None] * u_step + v[:, None, None] * v_step


def rays(
    views: Float[Tensor, "*batch 13"], detector_shape: Sequence[int]
) -> tuple[Float[Tensor, "*batch V U 3"], Float[Tensor, "*batch V U 3"]]:
    """Origin [mm] and unit direction of the ray that ends in every pixel, both (..., K, V, U, 3).

    The origin is the source (cone beam) or the pixel itself (parallel beam).
    """
    pixels = detector_pixels(views, detector_shape)
    head = views[..., None, None, 0:3]
    cone = is_cone(views)[..., None, None, None]
    direction = torch.where(cone, pixels - head, head.expand_as(pixels))
    origin = torch.where(cone, head.expand_as(pixels), pixels)
    return origin, torch.nn.functional.normalize(direction, dim=-1)


def projection_matrices(
    views: Float[Tensor, "*batch 13"], detector_shape: Sequence[int]
) -> Float[Tensor, "*batch 3 4"]:
    """Homogeneous matrices from a point [mm] to detector indices, (..., K, 3, 4).

    With (a, b, w) = M @ (x, y, z, 1) the point is seen at column a / w and row b / w (index 0 is the first pixel's
    centre); w > 0 in front of the source. Parallel and cone beam have the same form.
    """
    rows, columns = detector_shape
    head, center, u_step, v_step = (views[..., i : i + 3] for i in (0, 3, 6, 9))
    normal = torch.linalg.cross(u_step, v_step)
    volume = (normal * normal).sum(-1, keepdim=True)
    u_dual = torch.linalg.cross(v_step, normal) / volume
    v_dual = torch.linalg.cross(normal, u_step) / volume

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1, keepdim=True)

    def plane(vector: Tensor, point: Tensor) -> Tensor:
        return torch.cat([vector, -dot(vector, point)], -1)

    depth = plane(normal, head)
    along = dot(normal, head)
    constant = torch.cat([torch.zeros_like(head), along], -1)
    w = torch.where(is_cone(views)[..., None], depth, constant)

    def row(dual: Tensor, count: int) -> Tensor:
        cone = dot(dual, head - center) * depth + dot(normal, center - head) * plane(dual, head)
        parallel = along * plane(dual, center) - dot(dual, head) * plane(normal, center)
        return torch.where(is_cone(views)[..., None], cone, parallel) + (count - 1) / 2 * w

    return torch.stack([row(u_dual, columns), row(v_dual, rows), w], -2)


def pixel_coordinates(
    points: Float[Tensor, "*#batch N 3"], views: Float[Tensor, "*#batch K 13"], detector_shape: Sequence[int]
) -> tuple[Float[Tensor, "*batch K N 2"], Bool[Tensor, "*batch K N"]]:
    """Where points are seen on the detectors.

    Args:
        points: (..., N, 3) [mm, isocentre frame], leading dimensions broadcast with those of `views` before K.
        views: (..., K, 13).
        detector_shape: rows and columns (V, U).

    Returns:
        Detector indices (..., K, N, 2) as (column u, row v), and bool (..., K, N): seen, i.e. in front of the source
        and within the detector's outermost pixel borders.
    """
    matrices = projection_matrices(views, detector_shape)
    seen_at = points.unsqueeze(-3) @ matrices[..., :3].mT + matrices[..., 3].unsqueeze(-2)
    w = seen_at[..., 2:]
    in_front = w > 1e-9
    indices = seen_at[..., :2] / torch.where(in_front, w, torch.ones_like(w))
    limit = torch.tensor([detector_shape[1], detector_shape[0]], device=views.device) - 0.5
    inside = ((indices >= -0.5) & (indices <= limit)).all(-1) & in_front.squeeze(-1)
    return indices, inside
