"""Distances and pixel sizes of views, for classical inversion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.geometry import is_cone
from custom.projection.projector import Projector

__all__ = ["detector_normal", "isocenter_pixels_mm", "source_distances_mm", "views_of_each"]


def views_of_each(projector: Projector, image: Tensor, views: Tensor | None) -> Tensor:
    """Checked views (B, K, 13) on the device of the image."""
    projector.check_image(image, views)
    chosen = projector.views if views is None else views
    assert chosen is not None  # check_image has seen to it
    return chosen.detach().to(image.device).expand(len(image), -1, -1)


def detector_normal(views: Tensor) -> Tensor:
    """Unit normal of the detector, away from the source."""
    return F.normalize(torch.linalg.cross(views[..., 6:9], views[..., 9:12]), dim=-1)


def source_distances_mm(views: Tensor) -> tuple[Tensor, Tensor]:
    """From the source to the detector and to the isocentre along the detector's normal, (..., )."""
    normal = detector_normal(views)
    to_detector = ((views[..., 3:6] - views[..., 0:3]) * normal).sum(-1)
    return to_detector, (-views[..., 0:3] * normal).sum(-1)


def isocenter_pixels_mm(views: Tensor) -> Tensor:
    """Size of a pixel along v and u, seen along the central ray and demagnified to the isocentre, (B, K, 2)."""
    steps = torch.stack([views[..., 9:12], views[..., 6:9]], -2)
    to_detector, to_isocenter = source_distances_mm(views)
    direction = views[..., None, 0:3]
    across = steps - (steps * direction).sum(-1, keepdim=True) * direction
    shrunk = steps.norm(dim=-1) * (to_isocenter / to_detector)[..., None]
    return torch.where(is_cone(views)[..., None], shrunk, across.norm(dim=-1))
