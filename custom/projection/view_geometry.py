"""Checked views and their pixel sizes, for classical inversion."""

from __future__ import annotations

import torch
from torch import Tensor

from custom.geometry import ViewRow
from custom.projection.projector import Projector

__all__ = ["isocenter_pixels_mm", "views_of_each"]


def views_of_each(projector: Projector, image: Tensor, views: Tensor | None) -> Tensor:
    """Checked views (B, K, 13) on the device of the image."""
    projector.check_image(image, views)
    chosen = projector.views if views is None else views
    assert chosen is not None  # check_image has seen to it
    return chosen.detach().to(image.device).expand(len(image), -1, -1)


def isocenter_pixels_mm(views: Tensor) -> Tensor:
    """Size of a pixel along v and u, seen along the central ray and demagnified to the isocentre, (B, K, 2)."""
    row = ViewRow.from_tensor(views)
    steps, direction = torch.stack([row.v_step, row.u_step], -2), row.head[..., None, :]
    across = steps - (steps * direction).sum(-1, keepdim=True) * direction
    shrunk = row.pixel_mm * (row.source_to_isocenter_mm / row.source_to_detector_mm)[..., None]
    return torch.where(row.is_cone[..., None], shrunk, across.norm(dim=-1))
