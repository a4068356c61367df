"""The rays of a field through a CT: the water that they meet before the isocentre plane, and how many it cuts off."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from custom.radiotherapy.planning_ct import PlanningCT
from custom.radiotherapy.treatment_plan import Field, Plan

__all__ = ["cut_share", "water_equivalent_paths"]

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

#: Distance of the rays at the isocentre plane, and of the points along them.
RAY_MM, STEP_MM = 5.0, 2.0


def _rays(ct: PlanningCT, plan: Plan, field: Field) -> npt.NDArray[np.float64]:
    """Points of each ray from the source's side to the isocentre plane, (R, S, 3) mm; the last lies on the plane."""
    x1, x2, y1, y2 = field.jaws_mm

    def middles(low: float, high: float) -> npt.NDArray[np.float64]:
        count = max(1, round((high - low) / RAY_MM))
        return low + (np.arange(count) + 0.5) * (high - low) / count

    xb, yb = (a.ravel() for a in np.meshgrid(middles(x1, x2), middles(y1, y2), indexing="ij"))
    xg, yg = field.on_gantry(xb, yb)
    to_source, x_axis, y_axis = field.axes
    isocenter = np.asarray(plan.isocenter_mm)
    ends = isocenter + xg[:, None] * x_axis + yg[:, None] * y_axis
    source = isocenter + plan.source_to_axis_mm * to_source
    # Nothing of the volume is farther from the isocentre than its own diagonal.
    corner = np.abs(isocenter - ct.grid.center_mm) + ct.grid.half_extent_mm
    back = np.arange(math.ceil(float(np.linalg.norm(corner)) / STEP_MM), -1, -1) * STEP_MM
    away = source - ends
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    return ends[:, None] + back[None, :, None] * away[:, None]


def _at(ct: PlanningCT, volume: FloatArray, points_mm: npt.NDArray[np.float64], order: int) -> FloatArray:
    index = ct.index(points_mm)
    return ndimage.map_coordinates(volume, np.moveaxis(index, -1, 0), np.float32, order=order, mode="constant")


def water_equivalent_paths(ct: PlanningCT, density: FloatArray, plan: Plan) -> list[FloatArray]:
    """Water-equivalent path from the skin to the isocentre plane, for rays all over each field.

    Args:
        ct: whose grid it is.
        density: (X, Y, Z) relative density.
        plan: its fields.

    Returns:
        For each field (R,) mm; the same rays for every CT on the same grid.
    """
    return [_at(ct, density, _rays(ct, plan, field), 1).sum(-1) * STEP_MM for field in plan.fields]


def cut_share(ct: PlanningCT, external: BoolArray, plan: Plan) -> list[float]:
    """The share of each field whose way to the isocentre plane the volume does not hold.

    A ray is cut where it meets the volume inside the body instead of at the skin, or where it never meets it though
    the body goes on beyond the volume's side.

    Returns:
        For each field 0 to 1.
    """
    body, shares = external.astype(np.float32), []
    upper = np.array(ct.grid.shape) - 1
    for field in plan.fields:
        index = ct.index(_rays(ct, plan, field))
        beyond = np.maximum(-0.5 - index, index - upper - 0.5).max(axis=-1)
        within: BoolArray = beyond <= 0
        first = np.where(within.any(-1), within.argmax(-1), index.shape[1] - 1)
        # Where a ray misses the volume, the nearest voxel says whether there would have been body.
        place = np.clip(index[np.arange(len(index)), first].round(), 0, upper).astype(int)
        end = np.clip(index[:, -1].round(), 0, upper).astype(int)
        cut = (body[tuple(place.T)] > 0) | (~within[:, -1] & (body[tuple(end.T)] > 0))
        shares.append(float(cut.mean()))
    return shares
