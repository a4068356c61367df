"""The section of a report that states intervals, or says why there are none."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from custom.geometry import VolumeGrid
from custom.report.document import image
from custom.report.volume_pictures import planes_picture
from custom.trust import StatedIntervals
from custom.trust.body_measures import MEASURES

__all__ = ["interval_section"]

#: End of the scale of widths [HU].
WIDEST_HU = 1200.0


def interval_section(
    intervals: StatedIntervals | None, hu: Tensor, grid: VolumeGrid, grey_wider_than_hu: float | None
) -> dict[str, Any]:
    """What the template is given: sentences, a table of measures, and planes with the width of the intervals.

    Args:
        intervals: None: nothing was calibrated.
        hu: the reconstruction (X, Y, Z), HU.
        grid: of it.
        grey_wider_than_hu: where intervals are wider, a flat colour hides the CT; None: nowhere.
    """
    found: dict[str, Any] = {"measures": [], "interval_planes": None, "hidden": None}
    if intervals is None:
        return {**found, "interval_basis": "No interval is stated: no thresholds came with the model."}
    found["interval_basis"] = intervals.basis
    if intervals.lower is None or intervals.upper is None:
        return found
    for one in intervals.measures:
        words, unit, _ = MEASURES[one.name]
        value = "–" if one.value is None else f"{one.value:,.0f} {unit}".replace(",", " ")
        found["measures"].append([words, value, str(one).removeprefix(f"{words}: ")])
    width = (intervals.upper - intervals.lower).numpy()
    hidden = None if grey_wider_than_hu is None else width > grey_wider_than_hu
    picture = planes_picture(
        hu.cpu().float().numpy(), grid.spacing_mm, width, limit_hu=WIDEST_HU,
        words=("width", "width of the interval in HU"), hidden=hidden,
    )  # fmt: skip
    found["interval_planes"] = image(picture, "Planes of the CT, below them the width of the intervals", True)
    if hidden is not None:
        body = hu.cpu().numpy() > -500
        share = float(np.mean(hidden[body])) if body.any() else 0.0
        found["hidden"] = (
            f"Blue-grey hides where the interval is wider than {grey_wider_than_hu:g} HU: {share:.0%} of the tissue."
        )
    return found
