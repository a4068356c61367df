"""Numbers that are read off a CT by one rule, the same for a reconstruction and for the true CT."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from custom.core.files import sha256_file
from custom.core.hu_window import hu_to_unit, unit_to_hu
from custom.core.morphology import largest_piece
from custom.geometry import VolumeGrid
from custom.models import find_model
from custom.models.model_files import SEGMENTER
from custom.networks import SegmentationUNet
from custom.networks.segmentation_unet import load_segmenter

__all__ = ["MEASURES", "POSITIVE", "Measured", "loaded_segmenter", "measure_body"]

logger = logging.getLogger(__name__)

#: What `seg_guidance` calls that whose volume is measured.
_ORGANS = {
    "body_volume_ml": ("body",),
    "lung_volume_ml": ("lung_left", "lung_right"),
    "heart_volume_ml": ("heart",),
}
#: Smaller organs are taken for mistakes [ml].
SMALLEST_ML = 100.0
#: Side of the column around the ray through the isocentre along which depth is averaged [mm].
COLUMN_MM = 20.0

#: Name in a report, unit, and whether it is positive, so that errors are shares of it.
MEASURES: dict[str, tuple[str, str, bool]] = {
    "lung_volume_ml": ("Lungs", "ml", True),
    "lung_density_hu": ("Mean lung density", "HU", False),
    "heart_volume_ml": ("Heart", "ml", True),
    "body_volume_ml": ("Body within the cube", "ml", True),
    "frontal_depth_mm": ("Water-equivalent depth of the isocentre from the front", "mm", True),
    "lateral_depth_mm": ("Water-equivalent depth of the isocentre from the patient's left", "mm", True),
}
POSITIVE = {name: positive for name, (_, _, positive) in MEASURES.items()}


@dataclass(frozen=True)
class Measured:
    """Of one CT.

    Attributes:
        values: by name of `MEASURES`; None where it could not be measured.
        missing: why, by name.
    """

    values: Mapping[str, float | None]
    missing: Mapping[str, str]


def measure_body(hu: Tensor, grid: VolumeGrid, segmenter: SegmentationUNet | None = None) -> Measured:
    """All of `MEASURES`, within the cube.

    Body, lungs and heart are what the segmenter finds, of the heart the largest piece: on blurred volumes it errs a
    third as much as thresholds do. Depth is the sum of 1 + HU / 1000 from the cube's side to the isocentre.

    Args:
        hu: (X, Y, Z) HU, RAS+.
        grid: of it.
        segmenter: `seg_guidance`; None: no organ is measured.
    """
    hu = hu.float()
    values: dict[str, float | None] = dict.fromkeys(MEASURES)
    missing: dict[str, str] = {}
    found = _organs(hu, grid, segmenter)
    if isinstance(found, str):
        missing |= dict.fromkeys([*_ORGANS, "lung_density_hu"], found)
    else:
        shown, masks, voxel_ml = found
        for name, mask in masks.items():
            volume = float(mask.sum()) * voxel_ml
            if volume < SMALLEST_ML:
                missing[name] = f"{_ORGANS[name][0].replace('_', ' ')}: none was found ({volume:.0f} ml)"
            else:
                values[name] = volume
        if values["lung_volume_ml"] is None:
            missing["lung_density_hu"] = missing["lung_volume_ml"]
        else:
            values["lung_density_hu"] = float(shown[masks["lung_volume_ml"]].double().mean())
    for name, axis in (("frontal_depth_mm", 1), ("lateral_depth_mm", 0)):
        depth = _depth_mm(hu, grid, axis)
        if depth < COLUMN_MM / 2:
            missing[name] = "the isocentre lies outside of the body"
        else:
            values[name] = depth
    return Measured(values, missing)


def _organs(
    hu: Tensor, grid: VolumeGrid, segmenter: SegmentationUNet | None
) -> tuple[Tensor, dict[str, Tensor], float] | str:
    """HU at the segmenter's voxels, masks by measure, and millilitres of a voxel; or why there are none."""
    if segmenter is None:
        return "the network that finds organs (seg_guidance) is not installed"
    absent = [one for classes in _ORGANS.values() for one in classes if one not in segmenter.classes]
    if absent:
        return f"the segmenter does not know {', '.join(absent)}"
    try:
        shown = segmenter.at_its_resolution(hu_to_unit(hu[None, None], segmenter.hu_window), grid.spacing_mm)
    except ValueError as error:
        return str(error)
    with torch.inference_mode():
        logits = segmenter(shown)[0].cpu()
    masks = {
        name: (logits[[segmenter.classes.index(one) for one in classes]] > 0).any(0)
        for name, classes in _ORGANS.items()
    }
    masks["heart_volume_ml"] = torch.from_numpy(largest_piece(masks["heart_volume_ml"].numpy()))
    voxel_ml = float(np.prod(segmenter.grid.spacing_mm)) / 1000
    return unit_to_hu(shown[0, 0], segmenter.hu_window), masks, voxel_ml


def _depth_mm(hu: Tensor, grid: VolumeGrid, axis: int) -> float:
    """Water-equivalent path [mm] to the isocentre from the end of an axis: front, +y; the patient's left, -x."""
    water = 1 + hu.double().clamp(min=-1000) / 1000
    for other in {0, 1, 2} - {axis}:
        where = grid.axis_mm(other).abs() <= max(COLUMN_MM, grid.spacing_mm[other]) / 2
        shape = [-1 if i == other else 1 for i in range(3)]
        chosen = where.double() / where.sum()
        water = (water * chosen.reshape(shape)).sum(other, keepdim=True)
    line, middle = water.flatten(), grid.shape[axis] / 2 - grid.center_mm[axis] / grid.spacing_mm[axis]
    index = torch.arange(grid.shape[axis])
    weight = (index + 1 - middle).clamp(0, 1) if axis == 1 else (middle - index).clamp(0, 1)
    return float((line * weight).sum()) * grid.spacing_mm[axis]


@functools.lru_cache(maxsize=1)
def loaded_segmenter() -> tuple[SegmentationUNet, str] | None:
    """`seg_guidance` and its SHA-256, kept by the process; None, with a warning, where it is not installed."""
    try:
        weights = find_model(SEGMENTER).model
    except FileNotFoundError as error:
        logger.warning("without %s no organ is measured: %s", SEGMENTER, error)
        return None
    return load_segmenter(weights), sha256_file(weights)
