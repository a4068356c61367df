"""A phantom of five ellipsoids whose line integrals are known exactly: the projector's yardstick.

The density is sum A (1 - q)^p where q = |M (x - c)|^2 < 1, M = diag(1 / semi-axes) R(theta about z). p = 2 is smooth,
p = 0 uniform. A ray s + t d meets an ellipsoid with o = M (s - c), d' = M d, a = d'.d', h = 1 - (o.o - (o.d')^2 / a);
its integral is A B_p h^(p + 1/2) / sqrt(a) with B_0 = 2, B_2 = 16 / 15.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from custom.geometry import VolumeGrid, rays

#: centre [mm], semi-axes [mm], rotation about z [rad], density A [1/mm].
ELLIPSOIDS = (
    ((0, 0, 0), (140, 100, 135), 0.0, 0.02),
    ((55, 5, 10), (45, 65, 95), 0.15, -0.015),
    ((-55, 0, 5), (48, 60, 100), -0.1, -0.015),
    ((15, -20, -15), (40, 35, 45), 0.5, 0.012),
    ((0, 70, 0), (15, 14, 120), 0.0, 0.02),
)
SMOOTH, UNIFORM = 2, 0
_FACTORS = {UNIFORM: 2.0, SMOOTH: 16 / 15}


def _frame(index: int) -> tuple[Tensor, Tensor, float]:
    center, semi_axes, angle, density = ELLIPSOIDS[index]
    theta = torch.tensor(angle, dtype=torch.float64)
    cos, sin = float(theta.cos()), float(theta.sin())
    rotation = torch.tensor([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    matrix = rotation / torch.tensor(semi_axes, dtype=torch.float64)[:, None]
    return torch.tensor(center, dtype=torch.float64), matrix, density


def ellipsoid_volume(grid: VolumeGrid, power: int = SMOOTH, supersampling: int = 1) -> Tensor:
    """Density [1/mm] at the voxel centres, (1, 1, X, Y, Z) in float64; uniform ellipsoids need supersampling."""
    fine = grid.resized([n * supersampling for n in grid.shape])
    x, y, z = (fine.axis_mm(axis, dtype=torch.float64) for axis in range(3))
    density = torch.zeros(fine.shape, dtype=torch.float64)
    for index in range(len(ELLIPSOIDS)):
        center, matrix, amplitude = _frame(index)
        # The rotation is about z, so that axis stands alone.
        plane = torch.stack(torch.meshgrid(x - center[0], y - center[1], indexing="ij"), -1) @ matrix[:2, :2].mT
        q = plane.square().sum(-1)[..., None] + ((z - center[2]) * matrix[2, 2]).square()
        density += amplitude * ((q < 1) if power == UNIFORM else (1 - q).clamp_(min=0) ** power)
    return torch.nn.functional.avg_pool3d(density[None, None], supersampling)


def ellipsoid_integrals(views: Tensor, detector_shape: Sequence[int], power: int = SMOOTH) -> Tensor:
    """Exact line integrals (K, V, U), float64."""
    origin, direction = rays(views.double(), detector_shape)
    total = torch.zeros(origin.shape[:-1], dtype=torch.float64)
    for index in range(len(ELLIPSOIDS)):
        center, matrix, amplitude = _frame(index)
        o, d = (origin - center) @ matrix.mT, direction @ matrix.mT
        a = d.square().sum(-1)
        h = (1 - (o.square().sum(-1) - (o * d).sum(-1) ** 2 / a)).clamp(min=0)
        total += amplitude * _FACTORS[power] * h ** (power + 0.5) / a.sqrt()
    return total


def turned(views: Tensor, seed: int = 3) -> Tensor:
    """The views (K, 13), float64, after an arbitrary rotation of the gantry."""
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).double())[0]
    rotation = rotation * torch.linalg.det(rotation)
    return torch.cat([(views[:, :12].reshape(-1, 4, 3) @ rotation.mT).reshape(-1, 12), views[:, 12:]], -1)


def relative_error(found: Tensor, truth: Tensor) -> float:
    """|found - truth| / |truth| in the L2 norm."""
    return float((found.double() - truth.double()).norm() / truth.double().norm())
