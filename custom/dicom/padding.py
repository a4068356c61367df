"""Padding in DICOM radiographs: stored values that lie beside the picture, not within it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["padding_beside"]

Mask = npt.NDArray[np.bool_]


def padding_beside(stored: npt.NDArray[Any], low: float, high: float, thickness: int = 1) -> Mask:
    """Pixels with a padding value beside the picture, bool (V, U).

    Pixel Padding Value (0028,0120) fills what lies outside the field or the circle of reconstruction (PS3.3
    C.7.5.1.1.2), which touches the border. Where measured pixels can have that value too, such as 0 HU, it is found in
    the middle of the patient as well, and is no padding there.

    Args:
        stored: (V, U) stored values.
        low: lowest value of padding.
        high: highest value of padding.
        thickness: padding is somewhere as thick as that, in pixels; lines of equal values may end at the border.
    """
    candidates: Mask = (stored >= low) & (stored <= high)
    if not candidates.any():
        return candidates
    regions, count = ndimage.label(candidates)
    border = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    beside = np.zeros(count + 1, dtype=bool)
    beside[border] = True
    if thickness > 1:
        thick = np.zeros(count + 1, dtype=bool)
        thick[regions[ndimage.binary_erosion(candidates, np.ones((thickness, thickness)), border_value=1)]] = True
        beside &= thick
    beside[0] = False
    padding: Mask = beside[regions]
    return padding
