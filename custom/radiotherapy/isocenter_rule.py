"""Where the isocentre of a field on the thoracic spine lies, found from the lungs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from custom.radiotherapy.contours import NotPossible
from custom.radiotherapy.planning_ct import PlanningCT
from custom.radiotherapy.planning_numbers import NUMBERS

__all__ = ["thoracic_spine_isocenter"]

Point = tuple[float, float, float]


def thoracic_spine_isocenter(ct: PlanningCT, masks: Mapping[str, npt.NDArray[np.bool_]]) -> Point:
    """A point in a thoracic vertebral body, at the height of the lungs' centre.

    30 mm in front of the most posterior lung, midway between the lungs' medial borders at that depth. Bone is not
    looked for: the densest voxels near the midline may be an aorta with contrast medium, and a reconstruction's bone
    is blurred.

    Args:
        ct: the CT.
        masks: "External", "Lung_L", "Lung_R", bool (X, Y, Z).

    Returns:
        x, y, z in mm, RAS+, in the CT's frame.

    Raises:
        NotPossible: the lungs do not reach there, or the point lies outside the body.
    """
    rule = NUMBERS.isocenter
    x, y, z = (ct.grid.axis_mm(axis).double().numpy() for axis in range(3))
    lungs = masks["Lung_L"] | masks["Lung_R"]
    height = float(z[np.nonzero(lungs)[2]].mean())
    slab = np.abs(z - height) <= rule.slab_mm / 2
    depths = y[np.nonzero(lungs & slab)[1]]
    depth = float(np.percentile(depths, rule.posterior_percentile)) + rule.in_front_of_posterior_lung_mm
    row = int(np.abs(y - depth).argmin())
    borders = []
    for k in np.flatnonzero(slab):
        left, right = (np.flatnonzero(masks[name][:, row, k]) for name in ("Lung_L", "Lung_R"))
        if left.size and right.size:
            borders.append((x[left[-1]] + x[right[0]]) / 2)
    if not borders:
        raise NotPossible(
            f"no isocentre: {rule.in_front_of_posterior_lung_mm:g} mm in front of the most posterior lung there is no "
            "lung on both sides of the spine"
        )
    point = (float(np.median(borders)), depth, height)
    if not inside(ct, masks["External"], point):
        raise NotPossible(f"the isocentre ({point[0]:.0f}, {point[1]:.0f}, {point[2]:.0f}) mm lies outside the body")
    return point


def inside(ct: PlanningCT, mask: npt.NDArray[np.bool_], point_mm: Point) -> bool:
    """Whether a point lies in a mask; what is outside the volume does not."""
    voxel = np.round(ct.index(point_mm)).astype(int)
    if (voxel < 0).any() or (voxel >= ct.grid.shape).any():
        return False
    return bool(mask[tuple(voxel)])
