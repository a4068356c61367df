"""Null rows: volumes that know little or nothing of the patient, made of true CTs, beside which results are read.

A number on which they do well says little of a reconstruction. The mean training CT (`methods`) and a method with
another patient's radiographs ("shuffled") are null rows too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from custom.geometry import VolumeGrid
from custom.radiotherapy.contours import external_contour
from custom.radiotherapy.planning_ct import AIR_HU, PlanningCT

__all__ = ["ANOTHER_CT", "NULL_ROWS", "is_control"]

BULK_LUNG_HU, BLUR_MM = -750.0, 5.0
#: Inside the body what is thinner is lung.
_LUNG_BELOW_HU = -400.0
#: The row that gets the next patient's CT.
ANOTHER_CT = "another_ct"


def _water(hu: Tensor, grid: VolumeGrid) -> Tensor:
    return torch.where(_body(hu, grid), 0.0, AIR_HU)


def _bulk(hu: Tensor, grid: VolumeGrid) -> Tensor:
    return torch.where(_body(hu, grid), torch.where(hu < _LUNG_BELOW_HU, BULK_LUNG_HU, 0.0), AIR_HU)


def _blurred(hu: Tensor, grid: VolumeGrid) -> Tensor:
    sigma = [BLUR_MM / s for s in grid.spacing_mm]
    return torch.from_numpy(ndimage.gaussian_filter(hu.numpy(), sigma, mode="nearest"))


def _body(hu: Tensor, grid: VolumeGrid) -> Tensor:
    return torch.from_numpy(external_contour(PlanningCT(hu.numpy().astype(np.float32), grid)))


#: By key of the methods file: name of the row, and from a true CT (X, Y, Z) HU and its grid to the row's volume.
NULL_ROWS: dict[str, tuple[str, Callable[[Tensor, VolumeGrid], Tensor]]] = {
    ANOTHER_CT: ("another patient's CT", lambda hu, grid: hu),
    "water": ("water in the true outline", _water),
    "bulk": ("true outline, lungs -750 HU, rest water", _bulk),
    "blurred": ("truth blurred, sigma 5 mm", _blurred),
}


def is_control(method: str) -> bool:
    """Whether a row cannot win: it saw the truth, or another patient."""
    return "another patient's" in method or method in {name for name, _ in NULL_ROWS.values()}
