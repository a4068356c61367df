"""The `view` of a radiograph from its metadata, and how to flip the stored picture to the one seen from the source."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from custom.core.angles import angle_difference_deg
from custom.geometry import CONE, PARALLEL
from custom.radiographs.accepted_assumptions import DEFAULT_ISOCENTER_TO_DETECTOR_MM, DEFAULT_SOURCE_TO_DETECTOR_MM
from custom.radiographs.acquisition_metadata import AcquisitionMetadata, MetadataValue, Origin, value_of
from custom.radiographs.readings import Reading, ask, exclude, found, merge

__all__ = [
    "OTHER_VIEW_DEG",
    "VIEW_ANGLES_DEG",
    "Flips",
    "Placement",
    "StoredPose",
    "check_sizes",
    "find_flips",
    "letters",
    "view_from_metadata",
]

#: Angle of the source by View Position (0018,5101): the first word is the side that the beam enters, a left lateral
#: has the left side at the detector. PS3.3 C.8.1.1 (CR Series) and C.8.11.5 (DX Positioning).
VIEW_ANGLES_DEG = {"AP": 90.0, "PA": 270.0, "LL": 0.0, "RL": 180.0}
#: Angles that are further apart belong to different views.
OTHER_VIEW_DEG = 45.0

_LETTERS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
#: Largest angle between a side named by a letter and the detector's axis: cos of about 60 degrees.
_ALONG = 0.5
_DISTANCES = {
    "source_to_detector_mm": (
        "the distance from source to detector: the file has no usable Distance Source to Detector (0018,1110), nor RT "
        "Image SID (3002,0026)"
    ),
    "source_to_isocenter_mm": (
        "the distance from source to the middle of the patient: the file has no usable Distance Source to Patient "
        "(0018,1111), Estimated Radiographic Magnification Factor (0018,1114), nor Radiation Machine SAD (3002,0022)"
    ),
}


@dataclass(frozen=True)
class Flips:
    """How a stored picture becomes the one seen from the source: transposed first, then columns and rows reversed."""

    transpose: bool = False
    reverse_columns: bool = False
    reverse_rows: bool = False

    def picture(self, pixels: Tensor) -> Tensor:
        """Flip (V, U) pixels."""
        pixels = pixels.mT if self.transpose else pixels
        axes = [axis for axis, reverse in ((-1, self.reverse_columns), (-2, self.reverse_rows)) if reverse]
        return pixels.flip(axes).contiguous() if axes else pixels.contiguous()

    def vector(self, along_columns: float, along_rows: float) -> tuple[float, float]:
        """Components (increasing column, increasing row) of the stored picture as components along u and v."""
        u, v = (along_rows, along_columns) if self.transpose else (along_columns, along_rows)
        return (-u if self.reverse_columns else u), (-v if self.reverse_rows else v)

    def tilt_deg(self, stored_tilt_deg: tuple[float, float]) -> tuple[float, float]:
        """Detector Primary and Secondary Angle of the stored picture in the axes seen from the source.

        Positive primary: the beam tilts to higher columns; positive secondary: to lower rows (PS3.3 C.8.7.5.1.4).
        """
        primary, secondary = (math.tan(math.radians(t)) for t in stored_tilt_deg)
        along_u, along_v = self.vector(primary, -secondary)
        return math.degrees(math.atan(along_u)), math.degrees(math.atan(-along_v))

    def __str__(self) -> str:
        words = {"transposed": self.transpose, "columns reversed": self.reverse_columns,
                 "rows reversed": self.reverse_rows}  # fmt: skip
        return ", ".join(word for word, on in words.items() if on) or "none"


@dataclass(frozen=True, eq=False)
class StoredPose:
    """What tags say about the detector in the axes of the stored picture, which flips turn to those of the view.

    Args:
        offset: `detector_offset_mm`, but along increasing columns and rows: middle of the picture beside the central
            ray.
        tilt: `detector_angles_deg`: Detector Primary and Secondary Angle (0018,1530/1531).
        active: bool (V, U), pixels within the detector's active area; None where it is not told.
        seen_from_source: a picture without orientation is known to be stored so.
    """

    offset: MetadataValue[tuple[float, float]] | None = None
    tilt: MetadataValue[tuple[float, float]] | None = None
    active: npt.NDArray[np.bool_] | None = None
    seen_from_source: bool = False

    def flipped(self, flips: Flips) -> Reading:
        """Offset (+u, +z) and tilt as seen from the source."""
        own = Reading()
        if self.offset is not None:
            right, down = flips.vector(*self.offset.value)
            own += found("detector_offset_mm", (right, -down), self.offset.origin, self.offset.where)
        if self.tilt is not None:
            own += found("detector_angles_deg", flips.tilt_deg(self.tilt.value), self.tilt.origin, self.tilt.where)
        return own


@dataclass(frozen=True, eq=False)
class Placement:
    """Where a radiograph stands: its view (13,), float64 in the isocentre frame, and how its picture is stored."""

    view: Tensor
    flips: Flips


def letters(direction: np.ndarray) -> str:
    """The direction of an image axis in RAS+ as Patient Orientation (0020,0020) writes it, main letter first."""
    names = [("R", "L"), ("A", "P"), ("H", "F")]
    order = np.argsort(-np.abs(direction), kind="stable")
    return "".join(names[i][0 if direction[i] > 0 else 1] for i in order if abs(direction[i]) > 0.1)


def _direction(text: str) -> np.ndarray:
    """Unit vector of letters such as "LF"; PS3.3 C.7.6.1.1.1: further letters name smaller deviations."""
    total = np.zeros(3)
    for rank, letter in enumerate(text[:3]):
        total += np.array(_LETTERS[letter]) * 0.5**rank
    return total / max(float(np.linalg.norm(total)), 1e-9)


def find_flips(orientation: str, u: np.ndarray, v: np.ndarray) -> Flips | None:
    """How a picture whose columns and rows go in these directions becomes one along u and v; None where it cannot.

    Args:
        orientation: letters of both directions, as Patient Orientation (0020,0020) has them, such as "L\\F".
        u: unit vector along increasing columns, as seen from the source, RAS+.
        v: the same of rows.
    """
    columns, rows = (_direction(text) for text in orientation.split("\\"))
    straight = min(abs(columns @ u), abs(rows @ v))
    across = min(abs(columns @ v), abs(rows @ u))
    if max(straight, across) < _ALONG:
        return None
    if straight >= across:
        return Flips(False, bool(columns @ u < 0), bool(rows @ v < 0))
    return Flips(True, bool(rows @ u < 0), bool(columns @ v < 0))


def _axes(angle_deg: float, elevation_deg: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors u, v and the ray from the source through the isocentre; (u, v, ray) is right-handed."""
    a, e = math.radians(angle_deg), math.radians(elevation_deg)
    ray = -np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    u = np.array([-math.sin(a), math.cos(a), 0.0])
    return u, np.cross(ray, u), ray


def _angle(known: AcquisitionMetadata) -> Reading:
    """The angle by the view's name where no angle is known, and what contradicts it."""
    angle, position = known.angle_deg, known.view_position
    nominal = VIEW_ANGLES_DEG.get(position.value) if position is not None else None
    if angle is None and position is not None and nominal is not None:
        return found("angle_deg", nominal, Origin.DERIVED, f"{position.value} by {position.provenance}")
    if angle is None:
        problem = "from where it was taken: no angle, and View Position (0018,5101) "
        problem += known.state_of_tag("view_position") if position is None else f"is {position.value!r}"
        example = '"view_position": "AP", "PA", "LL" or "RL", or "angle_deg": 90'
        return ask(problem, ("angle_deg", "view_position"), example)
    if position is None or nominal is None or abs(angle_difference_deg(angle.value, nominal)) <= OTHER_VIEW_DEG:
        return Reading()
    problem = (
        f"two views that exclude each other: {position} is {nominal:g} degrees, but angle_deg is {angle.value:g} by "
        f"{angle.provenance}"
    )
    return exclude(problem, ("angle_deg", "view_position"), '"angle_deg" and "view_position"', angle, position)


def _distances(others: Reading, accept: frozenset[str]) -> Reading:
    """Distances that an option allows, and what is missing or cannot be."""
    known, own = merge(others), Reading()
    if value_of(known.beam) == "parallel":
        return own
    if "default-distances" in accept:
        to_detector = value_of(known.source_to_detector_mm) or DEFAULT_SOURCE_TO_DETECTOR_MM
        for key, value in zip(_DISTANCES, (to_detector, to_detector - DEFAULT_ISOCENTER_TO_DETECTOR_MM), strict=True):
            own += found(key, value, Origin.OPTION, "default-distances")
        known = merge(others, own)
    detector, isocenter = known.source_to_detector_mm, known.source_to_isocenter_mm
    if detector is None or isocenter is None:
        for key in (key for key in _DISTANCES if known.get(key) is None):
            problem = _DISTANCES[key]
            own += ask(problem, (key,), f'"{key}": {_example(known, key)}', "default-distances")
        return own
    if 0 < isocenter.value < detector.value:
        return own
    problem = (
        f"distances that cannot be: source to detector {detector.value:g} mm by {detector.provenance}, source to the "
        f"middle of the patient {isocenter.value:g} mm by {isocenter.provenance}"
    )
    example = '"source_to_detector_mm" and a smaller "source_to_isocenter_mm"'
    return own + exclude(problem, tuple(_DISTANCES), example, detector, isocenter)


#: A beam wider than so many distances, a larger magnification, pixels longer than so many times their width, and plates
#: beyond these sizes [mm] are of no radiograph of a body: lengths in cm or m, percents, or numbers in the wrong place.
_WIDEST, _MOST_MAGNIFIED, _LONGEST, _PLATE_MM = 1.5, 4.0, 3.0, (60.0, 1500.0)


def check_sizes(others: Reading, shape: tuple[int, int]) -> Reading:
    """Questions about lengths that exclude each other, unless geometry file or sidecar say all of them.

    Args:
        others: what is known of the radiograph.
        shape: rows and columns.
    """
    known, own = merge(others), Reading()
    detector, isocenter, pixel = known.source_to_detector_mm, known.source_to_isocenter_mm, known.pixel_mm
    if pixel is None:
        return own
    side = max(n * mm for n, mm in zip(shape, pixel.value, strict=True))
    asked: list[tuple[str, tuple[MetadataValue[Any], ...]]] = []
    if max(pixel.value) > _LONGEST * min(pixel.value):
        asked.append((f"pixels of {pixel.value[0]:g} x {pixel.value[1]:g} mm, far from square", (pixel,)))
    elif not _PLATE_MM[0] <= side <= _PLATE_MM[1]:
        asked.append((f"a picture of {side:.3g} mm, which shows no body", (pixel,)))
    elif detector is not None and value_of(known.beam) != "parallel" and side > _WIDEST * detector.value:
        asked.append((f"a picture of {side:.0f} mm at {detector.value:g} mm from the source", (detector, pixel)))
    if detector is not None and isocenter is not None and detector.value > _MOST_MAGNIFIED * isocenter.value > 0:
        times = detector.value / isocenter.value
        asked.append((f"distances that magnify the patient {times:.3g} times", (detector, isocenter)))
    for problem, values in asked:
        if not all(one.origin in (Origin.GEOMETRY_FILE, Origin.SIDECAR) for one in values):
            keys = tuple(one.key for one in values)
            said = ", ".join(f"{one.key} {one}" for one in values)
            example = " and ".join(f'"{key}"' for key in keys) + " in mm"
            own += exclude(f"lengths that cannot be: {problem} ({said}); are they in cm?", keys, example, *values)
    return own


def _example(known: AcquisitionMetadata, key: str) -> int:
    """A distance that would be taken beside the other one, if that is known."""
    detector, isocenter = value_of(known.source_to_detector_mm), value_of(known.source_to_isocenter_mm)
    if key == "source_to_detector_mm":
        return 1500 if isocenter is None or isocenter < 1500 else round(1.2 * isocenter)
    return 1000 if detector is None or detector > 1000 else round(detector / 1.5)


def _orientation_by_option(
    known: AcquisitionMetadata, angle: float, u: np.ndarray, v: np.ndarray, accept: frozenset[str]
) -> Reading:
    """How a picture without orientation is stored, if an option says so."""
    frontal = abs(math.sin(math.radians(angle))) >= math.sqrt(0.5)
    ways = {"as-displayed": "L\\F"} if frontal else {}
    ways |= {"seen-from-source": f"{letters(u)}\\{letters(v)}", "seen-from-detector": f"{letters(-u)}\\{letters(v)}"}
    for name, orientation in ways.items():
        if name in accept:
            return found("orientation", orientation, Origin.OPTION, name)
    problem = f"which way round it is stored: Patient Orientation (0020,0020) {known.state_of_tag('orientation')}"
    example = f'"orientation": "{letters(u)[:1]}/F" if it is stored as seen from the source (directions of columns '
    example += "and of rows)"
    return ask(problem, ("orientation",), example, *ways)


def _not_seen(known: AcquisitionMetadata, u: np.ndarray, v: np.ndarray) -> Reading:
    """An orientation that the angle cannot show."""
    orientation, angle = known.orientation, known.angle_deg
    assert orientation is not None and angle is not None
    problem = (
        f"Patient Orientation {orientation.value} (by {orientation.provenance}) cannot be seen from {angle.value:g} "
        f"degrees (by {angle.provenance}), where columns run towards {letters(u)} or {letters(-u)}"
    )
    example = '"orientation" and "view_position" or "angle_deg"'
    return exclude(problem, ("orientation", "angle_deg"), example, orientation, angle)


#: What holds where nothing says otherwise.
_USUAL_VALUES = (
    ("elevation_deg", 0.0, "the central ray is horizontal in the patient"),
    ("detector_offset_mm", (0.0, 0.0), "the central ray meets the middle of the picture"),
    ("detector_roll_deg", 0.0, "the detector stands upright"),
    ("detector_angles_deg", (0.0, 0.0), "the beam meets the detector at a right angle"),
)


def view_from_metadata(others: Reading, pose: StoredPose, accept: frozenset[str]) -> tuple[Placement | None, Reading]:
    """Where a radiograph stands, by what its files say.

    Args:
        others: what geometry file, sidecar and tags say; not part of the result.
        pose: of the tags, in the axes of the stored picture.
        accept: assumptions that are allowed, of `ACCEPT`.

    Returns:
        None where something is missing, and what follows or is asked: `flips`, usual values and others.
    """
    asked_before = {key for one in others.missing for key in one.keys}
    known = merge(others)
    by_name, distances = _angle(known), _distances(others, accept)
    usual = (found(key, value, Origin.USUAL_VALUE, where) for key, value, where in _USUAL_VALUES)
    own = sum(usual, Reading()) + by_name + distances
    pixel = known.pixel_mm
    if pixel is None:
        problem = (
            "the size of its pixels on the detector: the file has no usable Imager Pixel Spacing (0018,1164), Nominal "
            "Scanned Pixel Spacing (0018,2010), nor Image Plane Pixel Spacing (3002,0011)"
        )
        example = '"pixel_mm": [0.14, 0.14] (distance of rows, distance of columns)'
        own += ask(problem, ("pixel_mm",), example)
    known = merge(others, own)
    angle = known.angle_deg
    flips: Flips | None = None
    if angle is not None and not by_name.contradictions:
        u, v, ray = _axes(angle.value, value_of(known.elevation_deg) or 0.0)
        if known.orientation is None and not pose.seen_from_source:
            own += _orientation_by_option(known, angle.value, u, v, accept)
            known = merge(others, own)
        if known.orientation is not None:
            flips = find_flips(known.orientation.value, u, v)
            own += _not_seen(known, u, v) if flips is None else Reading()
        elif pose.seen_from_source:
            flips = Flips()
    # What a question of the tags explains is not asked for a second time in general words.
    if flips is None or pixel is None or distances.missing or own.contradictions:
        own = replace(own, missing=tuple(m for m in own.missing if not asked_before & set(m.keys)))
        return None, replace(own, contradictions=tuple(c for c in own.contradictions if not asked_before & set(c.keys)))
    own += found("flips", str(flips), Origin.DERIVED, "orientation and angle_deg") + pose.flipped(flips)
    view, magnification = _view_row(merge(others, own), flips, u, v, ray)
    return Placement(view, flips), own + found("magnification", magnification, Origin.DERIVED, "the two distances")


def _view_row(
    known: AcquisitionMetadata, flips: Flips, u: np.ndarray, v: np.ndarray, ray: np.ndarray
) -> tuple[Tensor, float | None]:
    """The view (13,) of complete metadata, and the magnification of a cone beam."""
    to_detector = value_of(known.source_to_detector_mm) or 1500.0
    to_isocenter = value_of(known.source_to_isocenter_mm) or 1000.0
    assert known.pixel_mm is not None
    row_mm, column_mm = known.pixel_mm.value[:: -1 if flips.transpose else 1]
    roll = math.radians(value_of(known.detector_roll_deg) or 0.0)
    u, v = math.cos(roll) * u - math.sin(roll) * v, math.cos(roll) * v + math.sin(roll) * u
    u, v = _tilted(u, v, ray, value_of(known.detector_angles_deg) or (0.0, 0.0))
    offset_u, offset_up = value_of(known.detector_offset_mm) or (0.0, 0.0)
    center = (to_detector - to_isocenter) * ray + offset_u * u - offset_up * v
    parallel = value_of(known.beam) == "parallel"
    head = ray if parallel else -to_isocenter * ray
    view = np.concatenate([head, center, u * column_mm, v * row_mm, [PARALLEL if parallel else CONE]])
    # Cosines of right angles leave 1e-17: zeros are easier to read.
    view[np.abs(view) < 1e-12] = 0.0
    return torch.from_numpy(view), None if parallel else to_detector / to_isocenter


def _tilted(u: np.ndarray, v: np.ndarray, ray: np.ndarray, tilt_deg: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """Axes of a detector whose normal the central ray leaves by tan(primary) along u and -tan(secondary) along v."""
    along_u, along_v = math.tan(math.radians(tilt_deg[0])), -math.tan(math.radians(tilt_deg[1]))
    if along_u == 0 and along_v == 0:
        return u, v
    normal = ray - along_u * u - along_v * v
    normal /= np.linalg.norm(normal)
    u = u - (u @ normal) * normal
    u /= np.linalg.norm(u)
    return u, np.cross(normal, u)
