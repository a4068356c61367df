"""A view that a geometry file gives whole, and what the tags of a DICOM file say against it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from custom.dicom.header import Header
from custom.radiographs import dicom_pose, rt_image_pose
from custom.radiographs.acquisition_metadata import FactSheet
from custom.radiographs.radiograph import Gap, Sourced
from custom.radiographs.sidecar import Sidecar
from custom.radiographs.view_from_metadata import VIEW_ANGLES_DEG, Turn, letters, turn_of, turned_tilt

__all__ = ["check_tags", "known_view"]

#: Angles between the view and what a tag says: above the first a warning, above the second another view.
_LOOK_DEG, _OTHER_VIEW_DEG = 5.0, 45.0
_DISTANCES = ("source_to_isocenter_mm", "source_to_detector_mm")
#: Tags that are compared with the view, and the difference that is no conflict.
_TOLERANCES = {"elevation_deg": 0.5, "pixel_mm": 1e-3, "detector_roll_deg": 0.1, **dict.fromkeys(_DISTANCES, 1e-3)}


def _facts(view: np.ndarray) -> dict[str, Any]:
    """What a view says in the words of a sidecar."""
    head, center, u, v = (view[i : i + 3] for i in (0, 3, 6, 9))
    cone = bool(view[12] > 0.5)
    column, row = float(np.linalg.norm(u)), float(np.linalg.norm(v))
    u, v = u / column, v / row
    ray = (-head if cone else head) / np.linalg.norm(head)
    facts: dict[str, Any] = {
        "beam": "cone" if cone else "parallel",
        "angle_deg": round(math.degrees(math.atan2(-ray[1], -ray[0])), 9) % 360,
        "elevation_deg": math.degrees(math.asin(float(np.clip(-ray[2], -1, 1)))),
        "pixel_mm": (row, column),
    }
    normal = np.cross(u, v)
    along = float(ray @ normal)
    if not cone or along < 1e-3:
        return facts
    distance = float((center - head) @ normal) / along
    offset = center - head - distance * ray
    tilt = (math.degrees(math.atan2(float(ray @ u), along)), math.degrees(math.atan2(-float(ray @ v), along)))
    level = np.array([ray[1], -ray[0], 0.0])
    return {
        **facts,
        "source_to_isocenter_mm": float(np.linalg.norm(head)),
        "source_to_detector_mm": distance,
        "detector_offset_mm": (float(offset @ u), -float(offset @ v)),
        "detector_angles_deg": tilt,
        "detector_roll_deg": math.degrees(math.atan2(float(level @ v), float(level @ u))),
    }


def known_view(
    sheet: FactSheet, given: Sidecar, shape: tuple[int, int], header: Header | None = None, frame: int = 1
) -> tuple[Tensor, Turn, dicom_pose.Pose]:
    """The view that a geometry file gives whole, and how to turn the stored picture to it.

    Args:
        sheet: facts; those of the view are added.
        given: with the view and, maybe, its detector's rows and columns.
        shape: rows and columns as stored.
        header: of a DICOM file, whose tags are compared with the view (`check_tags`); None for other pictures, which
            are stored as seen from the source.
        frame: number of the frame from 1.

    Returns:
        (13,) float64, the turn, and what the tags say about the detector's active area.

    Raises:
        ValueError: for a detector of another size.
    """
    assert given.view is not None
    facts = _facts(given.view.double().numpy())
    turn, found = Turn(), dicom_pose.Pose()
    if header is not None:
        turn, found = check_tags(sheet, given, facts, header, shape, frame)
    turned = shape[::-1] if turn.transpose else shape
    if given.shape is not None and tuple(given.shape) != tuple(turned):
        described = f"{given.shape[1]} x {given.shape[0]}"
        raise ValueError(f"{sheet.name}: {turned[1]} x {turned[0]} pixels, but {given.source} describes {described}")
    for key in ("beam", "angle_deg", "pixel_mm", *_DISTANCES):
        if key in facts:
            sheet.offer(key, facts[key], given.source)
    return given.view.clone(), turn, found


def check_tags(
    sheet: FactSheet, given: Sidecar, facts: dict[str, Any], header: Header, shape: tuple[int, int], frame: int
) -> tuple[Turn, dicom_pose.Pose]:
    """Compare a view with the tags of the file that it is said to describe, and turn the picture as they say.

    A geometry file describes pictures as seen from the source. How a DICOM file is stored its Patient Orientation
    (0020,0020) says (of an RTIMAGE, gantry and patient position), so that decides the flips. Where it is empty, the
    picture is taken as seen from the source. Values that differ are warnings; another view is a gap.

    Args:
        sheet: facts of the file; those of the tags are added.
        given: where the view comes from.
        facts: what the view says.
        header: of the file.
        shape: rows and columns as stored.
        frame: number of the frame from 1.

    Returns:
        The turn, and what the tags say about the detector's active area.
    """
    for key in ("beam", *_DISTANCES):
        sheet.offer(key, facts.get(key), given.source)
    if facts["beam"] == "parallel":
        sheet.warn(f"beam is parallel by {given.source}, but a {header.modality} has a point source; the first is used")
    known = len(sheet.gaps)
    locate = rt_image_pose.locate_rt if header.modality == "RTIMAGE" else dicom_pose.locate
    found = locate(header, sheet, shape, frame)
    # What the tags lack, the view says.
    del sheet.gaps[known:]
    told = {key: sheet.facts.pop(key) for key in (*_TOLERANCES, "angle_deg") if key in sheet.facts}
    sheet.refused = {key: why for key, why in sheet.refused.items() if key not in facts}
    _check_angle(sheet, given, facts["angle_deg"], told.get("angle_deg"))
    turn = _turn(sheet, given)
    if turn.transpose and "pixel_mm" in told:
        told["pixel_mm"] = Sourced(told["pixel_mm"].value[::-1], told["pixel_mm"].source)
    if found.offset_mm is not None:
        right, down = turn.vector(*found.offset_mm)
        told["detector_offset_mm"] = Sourced((right, -down), found.offset_source)
    if found.tilt_deg is not None:
        told["detector_angles_deg"] = Sourced(turned_tilt(turn, found.tilt_deg), found.tilt_source)
    for key, tag in told.items():
        if key not in facts or key == "angle_deg" or "option" in tag.source:
            continue
        sheet.offer(key, facts[key], given.source)
        sheet.offer(key, tag.value, tag.source, _TOLERANCES.get(key, 0.5))
    return turn, found


def _check_angle(sheet: FactSheet, given: Sidecar, angle: float, told: Sourced | None) -> None:
    position = sheet.get("view_position")
    said = [(told.value, f"{told.value:g} degrees by {told.source}")] if told is not None else []
    if position in VIEW_ANGLES_DEG:
        nominal = VIEW_ANGLES_DEG[position]
        said.append((nominal, f"{position} ({nominal:g} degrees) by {sheet.source('view_position')}"))
    for value, text in said:
        apart = abs((value - angle + 180) % 360 - 180)
        if apart > _OTHER_VIEW_DEG:
            _refuse(sheet, given, f"it was taken from another side than its view: {text}, but {angle:g} degrees")
            return
        if apart > _LOOK_DEG:
            sheet.warn(f"angle_deg is {angle:g} by {given.source}, but {text}; the first is used")


def _turn(sheet: FactSheet, given: Sidecar) -> Turn:
    orientation = sheet.get("orientation")
    if orientation is None:
        return Turn()
    assert given.view is not None
    u, v = (axis / np.linalg.norm(axis) for axis in (given.view.double().numpy()[i : i + 3] for i in (6, 9)))
    turn = turn_of(orientation, u, v)
    if turn is None:
        by = f"Patient Orientation {orientation} (by {sheet.source('orientation')})"
        where = f"where columns run towards {letters(u)} or {letters(-u)}"
        _refuse(sheet, given, f"{by} cannot be seen in its view, {where},")
        return Turn()
    sheet.offer("flips", str(turn), f"from orientation and {given.source}")
    return turn


def _refuse(sheet: FactSheet, given: Sidecar, problem: str) -> None:
    if sheet.gaps:
        return
    order = f" (at {', '.join(f'{a:g}' for a in given.angles_deg)} degrees)" if given.angles_deg else ""
    remedy = (
        f"are the files in another order than the views{order}? Name each file, in the order of the views, instead of "
        "a folder; where the tags are wrong, say so in a sidecar instead of a geometry"
    )
    sheet.gaps.append(Gap(sheet.name, f"{problem} by {given.source}", remedy))
