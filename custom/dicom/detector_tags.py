"""Tags of the detector: which part of the picture saw the beam, and where the picture lies on its detector.

Collimator (PS3.3 C.8.7.3) and shutter (C.7.6.11) count rows and columns from 1; detector areas (C.8.11.4) count from
the top left corner of the physical detector in its own pixels, before Field of View Rotation and Flip.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pydicom

from custom.dicom.header import numbers, tag, text

__all__ = ["active_area", "tagged_exposure"]

Mask = npt.NDArray[np.bool_]


def tagged_exposure(dataset: pydicom.Dataset, shape: tuple[int, int]) -> tuple[Mask, list[str]]:
    """Pixels inside every collimator and shutter that the tags describe.

    Args:
        dataset: the header.
        shape: rows and columns as stored.

    Returns:
        bool (V, U), and the attributes that were used.
    """
    field_mask = np.ones(shape, dtype=bool)
    used = []
    rows = np.arange(1, shape[0] + 1)[:, None]
    columns = np.arange(1, shape[1] + 1)[None, :]
    for kind in ("Collimator", "Shutter"):
        shapes = text(dataset, f"{kind}Shape").split("\\")
        inside = []
        if "RECTANGULAR" in shapes:
            edges = [
                numbers(dataset, f"{kind}{edge}")
                for edge in ("LeftVerticalEdge", "RightVerticalEdge", "UpperHorizontalEdge", "LowerHorizontalEdge")
            ]
            if None not in edges:
                left, right, upper, lower = (edge[0] for edge in edges if edge is not None)
                inside.append((columns >= left) & (columns <= right) & (rows >= upper) & (rows <= lower))
        if "CIRCULAR" in shapes:
            center = numbers(dataset, f"CenterOfCircular{kind}", 2)
            radius = numbers(dataset, f"RadiusOfCircular{kind}")
            if center is not None and radius is not None:
                inside.append((rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius[0] ** 2)
        if "POLYGONAL" in shapes:
            vertices = numbers(dataset, f"VerticesOfThePolygonal{kind}", None)
            if vertices is not None and 6 <= len(vertices) <= 2000 and len(vertices) % 2 == 0:
                inside.append(_polygon(np.array(vertices).reshape(-1, 2), shape))
        for mask in inside:
            field_mask &= mask
        if inside:
            used.append(f"{kind} Shape {tag(f'{kind}Shape')}")
    return field_mask, used


def _polygon(vertices: npt.NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """Pixels inside a polygon of (row, column) vertices, counted from 1."""
    from matplotlib.path import Path as Outline

    corners = np.clip(vertices, -1e5, 1e5)
    # Row by row, so that a large picture needs no list of all its pixels at once.
    outline = Outline(np.vstack([corners, corners[:1]]), closed=True)
    columns = np.arange(1, shape[1] + 1, dtype=float)
    mask = np.zeros(shape, dtype=bool)
    first, last = (int(np.clip(f(corners[:, 0]), 1, shape[0])) for f in (np.min, np.max))
    for row in range(first, last + 1):
        mask[row - 1] = outline.contains_points(np.column_stack([np.full_like(columns, row), columns]), radius=1e-9)
    return mask


def active_area(
    dataset: pydicom.Dataset, shape: tuple[int, int], pixel_mm: tuple[float, float]
) -> tuple[tuple[float, float], Mask] | None:
    """Where the middle of the picture lies beside the middle of the detector's active area.

    Field of View Origin (0018,7030), Detector Active Origin (0018,7028) and Dimensions (0018,7026), Detector Element
    Spacing (0018,7022), Field of View Rotation (0018,7032) and Horizontal Flip (0018,7034).

    Args:
        dataset: the header.
        shape: rows and columns as stored.
        pixel_mm: distance of rows and of columns as stored.

    Returns:
        Offset [mm] along increasing columns and rows of the stored picture, and the pixels inside the active area,
        bool (V, U). None where an attribute is missing, or they contradict each other.
    """
    origin, active, size, element = (
        numbers(dataset, key, 2)
        for key in ("FieldOfViewOrigin", "DetectorActiveOrigin", "DetectorActiveDimensions", "DetectorElementSpacing")
    )
    if origin is None or active is None or size is None or element is None or min(*size, *element) <= 0:
        return None
    turns = int((numbers(dataset, "FieldOfViewRotation") or (0.0,))[0]) // 90 % 4
    extent = (shape[0] * pixel_mm[0], shape[1] * pixel_mm[1])
    before = extent[::-1] if turns % 2 else extent
    down, right = (origin[i] * element[i] + before[i] / 2 - active[i] * element[i] - size[i] / 2 for i in range(2))
    if abs(down) > size[0] / 2 or abs(right) > size[1] / 2:
        return None
    for _ in range(turns):  # clockwise: what was right of the middle goes below it
        down, right = right, -down
    height, width = size[::-1] if turns % 2 else size
    if text(dataset, "FieldOfViewHorizontalFlip") == "YES":
        right = -right
    rows = (np.arange(shape[0]) - (shape[0] - 1) / 2) * pixel_mm[0] + down
    columns = (np.arange(shape[1]) - (shape[1] - 1) / 2) * pixel_mm[1] + right
    mask = (np.abs(rows) <= height / 2 + 1e-6)[:, None] & (np.abs(columns) <= width / 2 + 1e-6)[None, :]
    return (right, down), mask
