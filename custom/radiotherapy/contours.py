"""Contours for planning: the external by one rule for every CT, organs from `seg_guidance`, targets by rule.

They are drafts: lungs and heart of `seg_guidance` have Dice coefficients of 0.92 to 0.95 and 0.79 to 0.82 against
clinical contours, and nobody has drawn the breast that a rule finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from custom.core.hu_window import hu_to_unit
from custom.core.morphology import ball, largest_piece
from custom.geometry import VolumeGrid
from custom.networks import SegmentationUNet
from custom.radiotherapy.planning_ct import AIR_HU, PlanningCT, resampled
from custom.radiotherapy.planning_numbers import NUMBERS

__all__ = [
    "ORGANS",
    "Contours",
    "NotPossible",
    "Structure",
    "external_contour",
    "heart_warnings",
    "organ_masks",
    "require_chest",
]

BoolArray = npt.NDArray[np.bool_]

#: Beyond it no heart is: in a mirrored CT the segmenter may take something else for it. docs/how-to/radiotherapy.md.
_FARTHEST_HEART_MM = 60.0

#: Names of structures (AAPM TG-263 where it has one) and the class of `seg_guidance` that each is.
ORGANS = {"Lung_L": "lung_left", "Lung_R": "lung_right", "Heart": "heart", "Spine": "spine"}


class NotPossible(ValueError):
    """No plan of this kind is possible on this CT. The message is the reason; it is a result, and is counted."""


@dataclass(frozen=True)
class Structure:
    """One contour.

    Attributes:
        name: such as "Lung_L".
        kind: RT ROI Interpreted Type (3006,00A4): EXTERNAL, ORGAN or CTV.
        mask: bool (X, Y, Z) on the planning CT's grid.
        origin: in words, how it was found.
    """

    name: str
    kind: str
    mask: BoolArray
    origin: str


@dataclass(frozen=True)
class Contours:
    """What was found on a CT, and what was not.

    Attributes:
        structures: by name.
        missing: name of what was looked for in vain, and the reason.
    """

    structures: Mapping[str, Structure]
    missing: Mapping[str, str] = field(default_factory=dict)

    def mask(self, name: str) -> BoolArray:
        """bool (X, Y, Z).

        Raises:
            NotPossible: it was not found, saying why.
        """
        if name not in self.structures:
            raise NotPossible(f"no {name}: {self.missing.get(name, 'it was not looked for')}")
        return self.structures[name].mask


def external_contour(ct: PlanningCT) -> BoolArray:
    """The patient's outline by one rule: above -500 HU, opened, the largest piece, its holes filled in axial slices.

    The same rule must serve every CT of a comparison: another one moves the dose at the isocentre by 0.1 to 0.2 %.

    Returns:
        bool (X, Y, Z).

    Raises:
        NotPossible: there is no body.
    """
    rule = NUMBERS.external
    # Beyond the volume's end the body goes on: without a margin the opening would take its first and last slices.
    reach = [int(rule.opening_mm // s) for s in ct.grid.spacing_mm]
    solid = np.pad(ct.hu > rule.threshold_hu, [(r, r) for r in reach], mode="edge")
    opened = ndimage.binary_opening(solid, ball(rule.opening_mm, ct.grid.spacing_mm))
    body = largest_piece(opened[tuple(slice(r, r + n) for r, n in zip(reach, ct.hu.shape, strict=True))])
    if not body.any():
        raise NotPossible(f"no body: nothing of the CT is denser than {rule.threshold_hu:g} HU")
    return np.stack([ndimage.binary_fill_holes(body[:, :, k]) for k in range(body.shape[2])], axis=2)


def organ_masks(ct: PlanningCT, segmenter: SegmentationUNet) -> dict[str, BoolArray]:
    """What `seg_guidance` finds of `ORGANS`, the largest piece of each, on the CT's grid.

    Args:
        ct: of a chest.
        segmenter: `custom.networks.segmentation_unet.load_segmenter`.

    Returns:
        bool (X, Y, Z) by name; empty where nothing was found.

    Raises:
        ValueError: a segmenter without these classes.
    """
    absent = [name for name in ORGANS.values() if name not in segmenter.classes]
    if absent:
        raise ValueError(f"the segmenter has no class {', '.join(absent)}; it has {', '.join(segmenter.classes)}")
    spacing = segmenter.grid.spacing_mm
    shape = tuple(int(np.ceil(2 * h / s)) for h, s in zip(ct.grid.half_extent_mm, spacing, strict=True))
    coarse = VolumeGrid((shape[0], shape[1], shape[2]), spacing, ct.grid.center_mm)
    hu = torch.from_numpy(resampled(ct.hu, ct.grid.affine(), coarse, AIR_HU)).to(next(segmenter.parameters()).device)
    with torch.inference_mode():
        logits = segmenter(hu_to_unit(hu[None, None], segmenter.hu_window))[0].cpu().numpy()
    found = {}
    for name, kind in ORGANS.items():
        channel = logits[segmenter.classes.index(kind)]
        found[name] = largest_piece(resampled(channel, coarse.affine(), ct.grid, float(channel.min())) > 0)
    return found


def require_chest(ct: PlanningCT, lungs: Mapping[str, BoolArray]) -> None:
    """Refuse a CT without two lungs where they belong.

    Args:
        ct: the CT.
        lungs: masks of "Lung_L" and "Lung_R".

    Raises:
        NotPossible: a lung is missing, too small, not of air, or on the wrong side: no chest, or one that is mirrored.
    """
    rule, voxel_cm3 = NUMBERS.chest, float(np.prod(ct.grid.spacing_mm)) / 1000
    low, high = rule.lung_median_hu
    for name in ("Lung_L", "Lung_R"):
        volume = float(lungs[name].sum()) * voxel_cm3
        if volume < rule.smallest_lung_cm3:
            raise NotPossible(
                f"{name} has {volume:.0f} cm3, at least {rule.smallest_lung_cm3:g} are needed: not a CT of a chest, or "
                "a lung that is missing, collapsed or outside of the volume"
            )
        median = float(np.median(ct.hu[lungs[name]]))
        if not low <= median <= high:
            raise NotPossible(
                f"{name} measures {median:.0f} HU, a lung {low:g} to {high:g}: not a CT of a chest, or not in HU"
            )
    if _middle(lungs["Lung_L"]) > _middle(lungs["Lung_R"]):
        raise NotPossible("Lung_L lies to the right of Lung_R: the CT is mirrored, or its orientation is wrong")


def heart_warnings(contours: Contours, spacing_mm: float) -> list[str]:
    """What is said of a heart that does not lie on the left: the CT may be mirrored. Hearts on the right exist.

    Args:
        contours: of `Heart` and both lungs; where one is missing nothing is said.
        spacing_mm: from left to right.
    """
    if not {"Heart", "Lung_L", "Lung_R"} <= contours.structures.keys():
        return []
    heart, left, right = (_middle(contours.mask(name)) for name in ("Heart", "Lung_L", "Lung_R"))
    aside_mm = spacing_mm * ((left + right) / 2 - heart)
    if 0 < aside_mm < _FARTHEST_HEART_MM:
        return []
    return [
        f"The heart was found {abs(aside_mm):.0f} mm {'left' if aside_mm > 0 else 'right'} of the lungs' middle, usual "
        "are 5 to 35 mm left: the CT may be mirrored, or the heart is on the right (dextrocardia). Make sure which "
        "before anything is done with this plan."
    ]


def _middle(mask: BoolArray) -> float:
    """Mean index from left to right of a mask that is not empty."""
    return float(np.nonzero(mask)[0].mean())
