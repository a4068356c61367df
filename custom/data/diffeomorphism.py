"""Random diffeomorphisms (a stationary velocity field, integrated by scaling and squaring), and rotations.

Source: Arsigny et al., MICCAI 2006.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["largest_gradient", "lattice", "random_diffeomorphism", "rotation_matrix"]

SQUARING_STEPS = 5


def random_diffeomorphism(
    rng: np.random.RandomState,
    span_mm: Sequence[float],
    nodes: Sequence[int],
    peak_mm: float,
    control_spacing_mm: float = 60.0,
    max_gradient: float = 0.6,
) -> torch.Tensor:
    """Displacement of the exponential of a random velocity field (Arsigny et al. 2006), provably invertible.

    Args:
        rng: source of randomness.
        span_mm: extents (x, y, z) of the lattice, from its first to its last node, mm.
        nodes: number of nodes along each axis.
        peak_mm: largest speed, mm; smaller where ``max_gradient`` asks for it.
        control_spacing_mm: distance of the control points of the cubic spline that the velocity is, mm.
        max_gradient: bound on the Frobenius norm of the displacement's gradient, below 1.

    Returns:
        float32 (3, *nodes), mm.
    """
    matrices = [
        _spline_matrix(length, count, control_spacing_mm, float(rng.random_sample()))
        for length, count in zip(span_mm, nodes, strict=True)
    ]
    control = rng.normal(size=(3, *(m.shape[1] for m in matrices)))
    velocity = torch.as_tensor(np.einsum("kabc,xa,yb,zc->kxyz", control, *matrices, optimize=True)).float()
    velocity = velocity * (peak_mm / velocity.square().sum(0).max().sqrt())
    displacement = _integrate(velocity, span_mm)
    gradient = largest_gradient(displacement, span_mm)
    while gradient > max_gradient:
        velocity = velocity * min(0.9, 0.95 * max_gradient / gradient)
        displacement = _integrate(velocity, span_mm)
        gradient = largest_gradient(displacement, span_mm)
    return displacement


def rotation_matrix(degrees: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rotations (3, 3) about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (
        np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    )


def largest_gradient(displacement_mm: torch.Tensor, span_mm: Sequence[float]) -> float:
    """Bound on the Frobenius norm of the gradient of a trilinear displacement (3, a, b, c) over ``span_mm``."""
    total = 0.0
    for axis, length in enumerate(span_mm):
        step = length / (displacement_mm.shape[axis + 1] - 1)
        total += float((torch.diff(displacement_mm, dim=axis + 1) / step).square().sum(0).max())
    return math.sqrt(total)


def lattice(span_mm: Sequence[float], nodes: Sequence[int]) -> torch.Tensor:
    axes = [torch.linspace(-length / 2, length / 2, count) for length, count in zip(span_mm, nodes, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _spline_matrix(span_mm: float, nodes: int, control_mm: float, phase: float) -> np.ndarray:
    """Values (nodes, controls) of cubic B-splines at ``control_mm`` distance, their grid displaced by ``phase``."""
    controls = math.ceil(span_mm / control_mm) + 4
    t = np.abs(np.linspace(0, span_mm / control_mm, nodes)[:, None] + phase - np.arange(-1, controls - 1)[None])
    inner = 2 / 3 - t**2 + t**3 / 2
    outer = np.clip(2 - t, 0, None) ** 3 / 6
    return np.where(t < 1, inner, outer)


def _integrate(velocity_mm: torch.Tensor, span_mm: Sequence[float]) -> torch.Tensor:
    """Displacement of the flow at time one, by scaling and squaring.

    Source: Arsigny et al., MICCAI 2006.
    """
    identity = lattice(span_mm, velocity_mm.shape[1:])
    scale = torch.tensor([2.0 / length for length in span_mm])[:, None, None, None]
    displacement = velocity_mm / 2**SQUARING_STEPS
    for _ in range(SQUARING_STEPS):
        grid = ((identity + displacement) * scale).flip(0).permute(1, 2, 3, 0)
        moved = F.grid_sample(displacement[None], grid[None], padding_mode="border", align_corners=True)[0]
        displacement = displacement + moved
    return displacement
