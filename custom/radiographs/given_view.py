"""Views that a geometry file gives whole: their metadata, and what sidecar and tags say against them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from custom.core.angles import angle_difference_deg
from custom.geometry import ViewRow
from custom.radiographs.acquisition_metadata import Contradiction, MetadataValue, Origin
from custom.radiographs.readings import Reading, found, merge
from custom.radiographs.sidecar import GivenView
from custom.radiographs.view_from_metadata import (
    OTHER_VIEW_DEG,
    VIEW_ANGLES_DEG,
    Flips,
    Placement,
    StoredPose,
    find_flips,
    letters,
)

__all__ = ["place_given_view", "reading_of_view"]

#: A view whose angle differs from what a tag says by less is no contradiction: nobody stands exactly AP.
_LOOK_DEG = 5.0
#: Less exact than what sidecars say: a detector's own angle follows from its position.
_DETECTOR_ANGLE_DEG = 0.5


def reading_of_view(given: GivenView) -> Reading:
    """What a whole view says, in the words of a sidecar."""
    row = ViewRow.from_tensor(given.view.double())
    head, center, toward = (part.numpy() for part in (row.head, row.detector_center, row.toward_source))
    pixel = tuple(row.pixel_mm.tolist())
    u, v = row.u_step.numpy() / pixel[1], row.v_step.numpy() / pixel[0]
    ray = -toward / np.linalg.norm(toward)
    values: dict[str, Any] = {
        "beam": "cone" if bool(row.is_cone) else "parallel",
        "angle_deg": round(float(row.angle_deg), 9) % 360,
        "elevation_deg": math.degrees(math.asin(float(np.clip(-ray[2], -1, 1)))),
        "pixel_mm": pixel,
        "isocenter_mm": given.geometry.isocenter_mm,
    }
    along = float(ray @ np.cross(u, v))
    if along >= 1e-3:
        origin = head if bool(row.is_cone) else np.zeros(3)
        distance = float((center - origin) @ np.cross(u, v)) / along
        beside, level = center - origin - distance * ray, np.array([ray[1], -ray[0], 0.0])
        tilt = (float(ray @ u), -float(ray @ v))
        values |= {
            "detector_offset_mm": (float(beside @ u), -float(beside @ v)),
            "detector_angles_deg": tuple(math.degrees(math.atan2(part, along)) for part in tilt),
            "detector_roll_deg": math.degrees(math.atan2(float(level @ v), float(level @ u))),
        }
        if bool(row.is_cone):
            values |= {"source_to_isocenter_mm": float(np.linalg.norm(head)), "source_to_detector_mm": distance}
    tolerances = {"angle_deg": _LOOK_DEG, "detector_angles_deg": _DETECTOR_ANGLE_DEG}
    read = (found(key, value, given.origin, given.where, tolerances.get(key, 0.0)) for key, value in values.items())
    return sum(read, Reading())


def place_given_view(
    name: str, given: GivenView, others: Reading, pose: StoredPose, shape: tuple[int, int]
) -> tuple[Placement | None, Reading]:
    """Where a radiograph stands whose view is given whole, and all readings of it.

    A geometry file describes pictures as seen from the source. How a picture is stored its orientation says: Patient
    Orientation (0020,0020) of a DICOM file, of an RTIMAGE gantry and patient position, or a sidecar. Where there is
    none, it is taken as seen from the source. Values that differ are contradictions; another view is asked about.

    Args:
        name: of the radiograph.
        given: the view.
        others: what sidecar and tags say.
        pose: of the tags, in the axes of the stored picture.
        shape: rows and columns as stored.

    Returns:
        None where the files contradict each other; and everything that is known, of the view and the others.

    Raises:
        ValueError: for a detector of another size.
    """
    own = reading_of_view(given)
    flips, by_flips = _flips(given, others)
    # What the others lack, the view says.
    by_angle = _other_angles(given, own, others)
    everything = own + _comparable(others.without_questions(), flips) + by_angle
    if not all(one.settled for one in by_angle.contradictions):
        return None, everything
    if flips is None:
        return None, everything + by_flips
    rows, columns = shape[::-1] if flips.transpose else shape
    expected = given.geometry.detector_shape
    if expected != (rows, columns):
        described = f"{expected[1]} x {expected[0]}"
        raise ValueError(f"{name}: {columns} x {rows} pixels, but {given.provenance} describes {described}")
    return Placement(given.view.clone(), flips), everything + pose.flipped(flips) + by_flips


def _comparable(others: Reading, flips: Flips | None) -> Reading:
    """The others' values as a view has them: pixels as seen from the source; angles are compared on their own."""
    transpose = flips is not None and flips.transpose
    values = (
        replace(one, value=one.value[::-1]) if transpose and one.key == "pixel_mm" else one
        for one in others.values
        if one.key != "angle_deg"
    )
    return replace(others, values=tuple(values))


def _other_angles(given: GivenView, own: Reading, others: Reading) -> Reading:
    """Angles and views' names that differ from the view's angle."""
    known, angle = merge(others), merge(own).angle_deg
    assert angle is not None
    said: list[tuple[float, str, MetadataValue[Any]]] = []
    if known.angle_deg is not None:
        by = f"{known.angle_deg.value:g} degrees by {known.angle_deg.provenance}"
        said.append((known.angle_deg.value, by, known.angle_deg))
    position = known.view_position
    if position is not None and position.value in VIEW_ANGLES_DEG:
        nominal = VIEW_ANGLES_DEG[position.value]
        said.append((nominal, f"{position.value} ({nominal:g} degrees) by {position.provenance}", position))
    differences = []
    for value, text, other in said:
        apart = abs(angle_difference_deg(value, angle.value))
        if apart > OTHER_VIEW_DEG:
            problem = f"it was taken from another side than its view: {text}, but {angle.value:g} degrees"
            return _exclusion(given, problem, angle, other)
        if apart > angle.tolerance:
            problem = f"angle_deg is {angle.value:g} by {angle.provenance}, but {text}; the first is used"
            differences.append(Contradiction(problem, ("angle_deg",), values=(angle, other), settled=True))
    return Reading(contradictions=tuple(differences))


def _flips(given: GivenView, others: Reading) -> tuple[Flips | None, Reading]:
    orientation = merge(others).orientation
    if orientation is None:
        return Flips(), Reading()
    row = ViewRow.from_tensor(given.view.double())
    u, v = (axis.numpy() / np.linalg.norm(axis.numpy()) for axis in (row.u_step, row.v_step))
    flips = find_flips(orientation.value, u, v)
    if flips is not None:
        return flips, found("flips", str(flips), Origin.DERIVED, f"orientation and {given.provenance}")
    problem = (
        f"Patient Orientation {orientation.value} (by {orientation.provenance}) cannot be seen in its view, where "
        f"columns run towards {letters(u)} or {letters(-u)},"
    )
    return None, _exclusion(given, problem, orientation)


def _exclusion(given: GivenView, problem: str, *values: MetadataValue[Any]) -> Reading:
    angles = ", ".join(f"{angle:g}" for angle in given.geometry.angles_deg)
    order = f" (at {angles} degrees)" if given.origin is Origin.GEOMETRY_FILE else ""
    advice = (
        f"are the files in another order than the views{order}? Name each file, in the order of the views, instead of "
        "a folder; where the tags are wrong, say so in a sidecar instead of a geometry"
    )
    problem = f"{problem} by {given.provenance}"
    return Reading(contradictions=(Contradiction(problem, ("angle_deg",), advice=advice, values=values),))
