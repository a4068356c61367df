"""Checks of a network's inputs, radiographs and views, before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from custom.geometry import VIEW_SIZE

__all__ = ["batched_views", "check_radiographs"]


def batched_views(image: Tensor, views: Tensor | None, view_mask: Tensor | None = None) -> Tensor:
    """Views (B, K, 13) of radiographs (B, K, V, U), from views of each case or (K, 13) of all of them.

    Args:
        image: line integrals (B, K, V, U).
        views: (B, K, 13) or (K, 13).
        view_mask: bool (B, K).

    Raises:
        ValueError: no views, or shapes that do not match.
    """
    if image.ndim != 4:
        raise ValueError(f"image must be (B, K, V, U), got {tuple(image.shape)}")
    if views is None:
        raise ValueError("no views: pass views (B, K, 13) with the image")
    views = views.expand(len(image), -1, -1) if views.ndim == 2 else views
    if views.shape != (*image.shape[:2], VIEW_SIZE):
        raise ValueError(
            f"{image.shape[1]} radiographs of {len(image)} cases do not match views of shape {tuple(views.shape)}"
        )
    if view_mask is not None and view_mask.shape != image.shape[:2]:
        raise ValueError(f"view_mask must be {tuple(image.shape[:2])}, got {tuple(view_mask.shape)}")
    return views


def check_radiographs(image: Tensor, views: Tensor, view_mask: Tensor | None = None) -> Tensor:
    """As `batched_views`, and looks at the values too.

    Raises:
        ValueError: also for no radiograph at all, NaN or infinity.
    """
    if image.ndim != 4 or image.shape[1] == 0:
        raise ValueError(f"image must be (B, K, V, U) with at least one view, got {tuple(image.shape)}")
    views = batched_views(image, views, view_mask)
    if not torch.isfinite(image).all() or not torch.isfinite(views).all():
        raise ValueError("a radiograph or its view holds NaN or infinity: look for saturated or masked pixels")
    return views
