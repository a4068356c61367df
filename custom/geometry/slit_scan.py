"""Views of a slit scan: a fan in the axial plane that moves along the superior axis.

A CT scanner's localizer (scout, topogram) and slot-scanning units take their picture row by row while tube and
detector move relative to the patient. The picture is magnified from column to column, as a cone beam's is, and not from
row to row, as a parallel beam's. No single view of a pinhole camera does both; a row of its own for each line of the
picture does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from custom.geometry.views import views_from_angles

__all__ = ["slit_scan_views"]


def slit_scan_views(
    rows: int,
    pixel_mm: float | Sequence[float],
    source_to_isocenter_mm: float,
    source_to_detector_mm: float,
    angle_deg: float = 90.0,
    axis_mm: Sequence[float] = (0.0, 0.0),
    middle_mm: Sequence[float] = (0.0, 0.0),
    rows_per_view: int = 1,
) -> Tensor:
    """Views of a picture that was scanned line by line, each line (or strip of lines) with its own source position.

    With one row per view the rays are exact. In a frontal scan (`angle_deg` 90) about the axis (0, 0) a point (x, y, z)
    is seen at row (top - z) / row distance and, from the picture's middle, at column -x SOD / (SOD - y) / column
    distance, with SOD = `source_to_isocenter_mm` and pixels as at the isocentre. With more rows per view each strip is
    a cone beam: exact in its middle and in the plane of the axis; elsewhere z is off by the distance from the strip's
    middle times y / (SOD - y).

    Args:
        rows: lines of the whole picture; row 0 is superior.
        pixel_mm: size of a pixel at the isocentre; a pair is (row distance, column distance), as DICOM's Pixel Spacing
            of a localizer.
        source_to_isocenter_mm: from the source to the axis, in the axial plane.
        source_to_detector_mm: from the source to the detector.
        angle_deg: angle of the source about the superior axis; 90: tube in front of the patient (AP), 270: behind.
        axis_mm: x and y of the scanner's axis in the isocentre frame.
        middle_mm: where the picture's middle is: along +u from the axis, as at the isocentre, and z, in the isocentre
            frame.
        rows_per_view: lines that share a source position; `rows` must be a multiple of it.

    Returns:
        Tensor (rows / rows_per_view, 13), float64, from superior to inferior, for a detector of `rows_per_view` rows:
        a picture (rows, columns) is the stack (rows / rows_per_view, rows_per_view, columns) of its strips.

    Raises:
        ValueError: for rows that are not a multiple of `rows_per_view`, or numbers that are not finite and positive.
    """
    if rows < 1 or rows_per_view < 1 or rows % rows_per_view:
        raise ValueError(f"rows must be a multiple of rows_per_view, at least 1; got {rows} and {rows_per_view}")
    if len(axis_mm) != 2 or len(middle_mm) != 2 or not all(map(math.isfinite, [*axis_mm, *middle_mm])):
        raise ValueError(f"axis_mm and middle_mm must be two finite numbers each, got {axis_mm} and {middle_mm}")
    row_mm, column_mm = pixel_mm if isinstance(pixel_mm, Sequence) else (pixel_mm, pixel_mm)
    magnification = source_to_detector_mm / source_to_isocenter_mm
    view = views_from_angles(
        [angle_deg],
        "cone",
        source_to_isocenter_mm,
        source_to_detector_mm,
        (row_mm * magnification, column_mm * magnification),
        (middle_mm[0] * magnification, 0.0),
    )
    count = rows // rows_per_view
    views = view.repeat(count, 1)
    height = middle_mm[1] + ((count - 1) / 2 - torch.arange(count, dtype=views.dtype)) * rows_per_view * row_mm
    for first in (0, 3):  # source and detector
        views[:, first : first + 2] += torch.tensor(list(axis_mm), dtype=views.dtype)
        views[:, first + 2] = height
    return views
