"""A small X2CT, and views for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from custom.geometry import VolumeGrid, views_from_angles
from custom.networks import X2CT

GRID = VolumeGrid((16, 16, 16), (10.0, 10.0, 10.0))
TINY: dict[str, Any] = {
    "dense_layers": (2, 1),
    "decoder_channels": (4, 4, 6),
    "stem_channels": 4,
    "growth": 4,
    "bottleneck": 2,
    "precision": "fp32",
}


def network(view_count: int = 2, grid: VolumeGrid = GRID, **changes: Any) -> X2CT:
    torch.manual_seed(0)
    return X2CT(grid, view_count, **{**TINY, **changes})


def views_at(*angles: float, beam: str = "parallel", **keywords: Any) -> Tensor:
    return views_from_angles(angles, beam, **{"pixel_mm": 10.0, **keywords}).float()[None]
