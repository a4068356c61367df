"""Lateral and frontal planes of networks that have them built in: which views fit, and how they are turned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.geometry import ViewRow, VolumeGrid, is_cone, pixel_coordinates

__all__ = ["FRONTAL", "LATERAL", "PLANES", "face_picture", "ray_deviation_deg", "swap_frame"]

#: Planes, numbered by the volume axis that their rays run along.
LATERAL, FRONTAL = 0, 1
PLANES = ("lateral", "frontal")


def ray_deviation_deg(views: Tensor, grid: VolumeGrid) -> Tensor:
    """Largest angle between a view's rays through the grid and the direction that a lateral, a frontal view's have.

    Args:
        views: (..., 13).
        grid: a cone beam is judged by its rays through the grid's corners.

    Returns:
        Degrees (..., 2): to the x axis, to the y axis.
    """
    views = views.cpu().double()
    middle, half = (torch.tensor(v, dtype=torch.float64) for v in (grid.center_mm, grid.half_extent_mm))
    corners = middle + half * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    head = ViewRow.from_tensor(views).head[..., None, :]
    rays = torch.where(is_cone(views)[..., None, None], corners - head, head.expand(*head.shape[:-2], 8, 3))
    cosines = F.normalize(rays, dim=-1)[..., :2].abs().amin(-2)
    return torch.rad2deg(torch.arccos(cosines.clamp(max=1)))


def face_picture(image: Tensor, views: Tensor, grid: VolumeGrid, plane: int) -> Tensor:
    """Radiographs as a branch sees them: what the voxels of the grid's middle slice across the rays project to.

    Mirrored pictures (lateral from the left, PA), other pixels, shifted and tilted detectors and a cone beam's
    magnification at the isocentre all come out the same way round. What lies beside the detector is air.

    Args:
        image: line integrals (B, V, U).
        views: (B, 13).
        grid: of the volume.
        plane: `LATERAL` or `FRONTAL`.

    Returns:
        (B, 1, Y, Z) for lateral views, (B, 1, X, Z) for frontal ones, float32.
    """
    axes = [grid.axis_mm(axis, image.device) for axis in range(3)]
    axes[plane] = torch.tensor([grid.center_mm[plane]], device=image.device)
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).squeeze(plane)
    with torch.autocast(image.device.type, enabled=False):
        indices, _ = pixel_coordinates(points.reshape(1, -1, 3), views[:, None].float(), image.shape[1:])
        size = torch.tensor([image.shape[2], image.shape[1]], device=image.device)
        where = ((indices[:, 0] + 0.5) / size * 2 - 1).reshape(len(image), *points.shape[:2], 2)
        return F.grid_sample(image[:, None].float(), where, padding_mode="zeros", align_corners=False)


def swap_frame(features: Tensor, plane: int) -> Tensor:
    """Between a branch's axes (depth along the rays, across, z) and the volume's (x, y, z); its own inverse.

    Args:
        features: (B, C, N, N, N).
        plane: `LATERAL` or `FRONTAL`.
    """
    return features if plane == LATERAL else features.transpose(2, 3)
