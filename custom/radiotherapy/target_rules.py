"""Targets by rule: breast and chest wall, in front of the lungs on one side. None with the reason, never a guess."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from custom.core.morphology import ball, largest_piece
from custom.radiotherapy.planning_ct import PlanningCT
from custom.radiotherapy.planning_numbers import NUMBERS, BreastRule, ChestWallRule

__all__ = ["breast", "chest_wall", "thorax_hull"]

BoolArray = npt.NDArray[np.bool_]
Masks = Mapping[str, BoolArray]


def thorax_hull(lungs: BoolArray) -> BoolArray:
    """What the chest wall encloses: the lungs' convex hull in each axial slice, which grows narrower only upwards.

    Where the diaphragm takes the lungs' place the chest is as wide as above it.

    Returns:
        bool (X, Y, Z).
    """
    from skimage.morphology import convex_hull_image

    hull = np.zeros_like(lungs)
    for k in np.flatnonzero(lungs.sum((0, 1)) > 8):
        hull[:, :, k] = convex_hull_image(lungs[:, :, k])
    return np.logical_or.accumulate(hull[:, :, ::-1], axis=2)[:, :, ::-1]


def _front(ct: PlanningCT, masks: Masks, side: str, rule: BreastRule | ChestWallRule) -> tuple[BoolArray, BoolArray]:
    """The front of one side at the height of its lung's front part, and the thorax's hull."""
    both = masks["Lung_L"] | masks["Lung_R"]
    hull = thorax_hull(both)
    x, y, z = (ct.grid.axis_mm(axis).numpy() for axis in range(3))
    front = y > float(y[np.nonzero(both)[1]].mean()) + rule.from_middle_mm
    own = np.flatnonzero((masks[f"Lung_{side}"] & front[None, :, None]).any((0, 1)))
    low, high = (own[0] + s * (own[-1] - own[0]) for s in rule.lung_height_share)
    across = [float(x[np.nonzero(masks[f"Lung_{s}"])[0]].mean()) for s in "LR"]
    lateral = (x - sum(across) / 2) * (1 if side == "R" else -1)
    inside = (lateral > rule.from_midline_mm)[:, None, None] & front[None, :, None]
    return inside & ((np.arange(len(z)) >= low) & (np.arange(len(z)) <= high))[None, None, :], hull


def breast(ct: PlanningCT, masks: Masks, side: str) -> BoolArray | str:
    """Tissue in front of the chest wall on one side.

    The chest wall ends `wall_mm` outside the convex hull of the lungs; the outermost `rim_mm` below the skin, whose
    dose cannot be trusted, are left out. What is thin or small is no breast that could be told from other tissue.

    Args:
        ct: the CT.
        masks: "External", "Lung_L", "Lung_R", bool (X, Y, Z).
        side: "L" or "R".

    Returns:
        bool (X, Y, Z), or the reason why there is none.
    """
    rule = NUMBERS.breast
    region, hull = _front(ct, masks, side, rule)
    from_hull = ndimage.distance_transform_edt(~hull, sampling=ct.grid.spacing_mm)
    tissue = masks["External"] & region & (from_hull > rule.wall_mm)
    piece = largest_piece(ndimage.binary_opening(tissue, ball(rule.opening_mm, ct.grid.spacing_mm)))
    found = piece & _below_skin(ct, masks["External"], rule.rim_mm)
    volume = float(found.sum()) * float(np.prod(ct.grid.spacing_mm)) / 1000
    if volume < rule.smallest_cm3:
        return f"{volume:.0f} cm3 of tissue in front of the chest wall, a breast has {rule.smallest_cm3:g} or more"
    thickness = float(np.percentile(from_hull[piece], rule.thickness_percentile)) - rule.wall_mm
    if thickness < rule.thinnest_mm:
        return f"{thickness:.1f} mm of tissue in front of the chest wall, a breast has {rule.thinnest_mm:g} mm or more"
    return found


def chest_wall(ct: PlanningCT, masks: Masks, side: str) -> BoolArray | str:
    """The chest wall of one side: from the lung outward `depth_mm`, as far as it lies `rim_mm` below the skin.

    Args, returns: as `breast`.
    """
    rule = NUMBERS.chest_wall
    region, hull = _front(ct, masks, side, rule)
    from_hull = ndimage.distance_transform_edt(~hull, sampling=ct.grid.spacing_mm)
    wall = masks["External"] & region & (from_hull > 0) & (from_hull <= rule.depth_mm)
    found = largest_piece(wall & _below_skin(ct, masks["External"], rule.rim_mm))
    volume = float(found.sum()) * float(np.prod(ct.grid.spacing_mm)) / 1000
    if volume < rule.smallest_cm3:
        return f"{volume:.0f} cm3 between lung and skin, a chest wall has {rule.smallest_cm3:g} or more"
    return found


def _below_skin(ct: PlanningCT, external: BoolArray, rim_mm: float) -> BoolArray:
    """What is deeper in the body than the rim; where the volume ends there is no skin."""
    reach = [int(np.ceil(rim_mm / s)) for s in ct.grid.spacing_mm]
    padded = np.pad(external, [(r, r) for r in reach], mode="edge")
    deep = ndimage.distance_transform_edt(padded, sampling=ct.grid.spacing_mm) > rim_mm
    return deep[tuple(slice(r, r + n) for r, n in zip(reach, external.shape, strict=True))]
