"""From facts about a radiograph to its `view` row, and how to turn the picture to the one seen from the source."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from custom.geometry import BEAMS
from custom.radiographs.acquisition_metadata import (
    DEFAULT_ISOCENTER_TO_DETECTOR_MM,
    DEFAULT_SOURCE_TO_DETECTOR_MM,
    FactSheet,
)

__all__ = ["VIEW_ANGLES_DEG", "Turn", "letters", "place", "turn_of", "turned_tilt"]

#: Angle of the source by View Position (0018,5101): the first word is the side that the beam enters, a left lateral
#: has the left side at the detector. PS3.3 C.8.1.1 (CR Series) and C.8.11.5 (DX Positioning).
VIEW_ANGLES_DEG = {"AP": 90.0, "PA": 270.0, "LL": 0.0, "RL": 180.0}

_LETTERS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
#: Largest angle between a side named by a letter and the detector's axis: cos of about 60 degrees.
_ALONG = 0.5


@dataclass(frozen=True)
class Turn:
    """How a stored picture becomes the one seen from the source: transposed first, then columns and rows reversed."""

    transpose: bool = False
    reverse_columns: bool = False
    reverse_rows: bool = False

    def picture(self, pixels: Tensor) -> Tensor:
        """Turn (V, U) pixels."""
        pixels = pixels.mT if self.transpose else pixels
        axes = [axis for axis, reverse in ((-1, self.reverse_columns), (-2, self.reverse_rows)) if reverse]
        return pixels.flip(axes).contiguous() if axes else pixels.contiguous()

    def vector(self, along_columns: float, along_rows: float) -> tuple[float, float]:
        """Components (increasing column, increasing row) of the stored picture as components along u and v."""
        u, v = (along_rows, along_columns) if self.transpose else (along_columns, along_rows)
        return (-u if self.reverse_columns else u), (-v if self.reverse_rows else v)

    def __str__(self) -> str:
        done = [
            word
            for word, on in (
                ("transposed", self.transpose),
                ("columns reversed", self.reverse_columns),
                ("rows reversed", self.reverse_rows),
            )
            if on
        ]
        return ", ".join(done) or "none"


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


def _axes(angle_deg: float, elevation_deg: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors u, v and the ray from the source through the isocentre; (u, v, ray) is right-handed."""
    a, e = math.radians(angle_deg), math.radians(elevation_deg)
    ray = -np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    u = np.array([-math.sin(a), math.cos(a), 0.0])
    return u, np.cross(ray, u), ray


def _angle(sheet: FactSheet) -> float | None:
    angle, position = sheet.get("angle_deg"), sheet.get("view_position")
    nominal = VIEW_ANGLES_DEG.get(position) if position else None
    if angle is None and nominal is not None:
        sheet.offer("angle_deg", nominal, f"{position} by {sheet.source('view_position')}")
        angle = nominal
    if angle is None:
        said = f" (View Position (0018,5101) is {position!r})" if position else ""
        sheet.gap(
            f"from where it was taken: no angle and no usable View Position (0018,5101){said}",
            '"view_position": "AP", "PA", "LL" or "RL", or "angle_deg": 90',
        )
    elif nominal is not None and abs((angle - nominal + 180) % 360 - 180) > 45:
        sheet.gap(
            f"two views that exclude each other: {position} by {sheet.source('view_position')} is "
            f"{nominal:g} degrees, but angle_deg is {angle:g} by {sheet.source('angle_deg')}",
            '"angle_deg" and "view_position"',
        )
        return None
    return angle


def _distances(sheet: FactSheet) -> tuple[float, float] | None:
    if sheet.get("beam") == "parallel":
        return sheet.get("source_to_detector_mm") or 1500.0, sheet.get("source_to_isocenter_mm") or 1000.0
    default = "option --accept default-distances"
    names = {
        "source_to_detector_mm": (
            "the distance from source to detector: Distance Source to Detector (0018,1110), or RT Image SID (3002,0026)"
        ),
        "source_to_isocenter_mm": (
            "the distance from source to the middle of the patient: Distance Source to Patient (0018,1111), Estimated "
            "Radiographic Magnification Factor (0018,1114), or Radiation Machine SAD (3002,0022)"
        ),
    }
    if sheet.accepts("default-distances"):
        if sheet.get("source_to_detector_mm") is None:
            sheet.offer("source_to_detector_mm", DEFAULT_SOURCE_TO_DETECTOR_MM, default)
        if sheet.get("source_to_isocenter_mm") is None:
            nearer = sheet.get("source_to_detector_mm") - DEFAULT_ISOCENTER_TO_DETECTOR_MM
            sheet.offer("source_to_isocenter_mm", nearer, default)
    missing = [key for key in names if sheet.get(key) is None]
    for key in missing:
        sheet.gap(names[key] + sheet.missing(key), f'"{key}": {_example(sheet, key)}', ["default-distances"])
    if missing:
        return None
    detector, isocenter = (float(sheet.get(key)) for key in names)
    if not 0 < isocenter < detector:
        sheet.gap(
            f"distances that cannot be: source to detector {detector:g} mm by {sheet.source('source_to_detector_mm')}, "
            f"source to the middle of the patient {isocenter:g} mm by {sheet.source('source_to_isocenter_mm')}",
            '"source_to_detector_mm" and a smaller "source_to_isocenter_mm"',
        )
        return None
    return detector, isocenter


def _example(sheet: FactSheet, key: str) -> int:
    """A distance that would be taken beside the other one, if that is known."""
    detector, isocenter = sheet.get("source_to_detector_mm"), sheet.get("source_to_isocenter_mm")
    if key == "source_to_detector_mm":
        return 1500 if isocenter is None or isocenter < 1500 else round(1.2 * isocenter)
    return 1000 if detector is None or detector > 1000 else round(detector / 1.5)


def _turn(sheet: FactSheet, angle: float, u: np.ndarray, v: np.ndarray) -> Turn | None:
    orientation = sheet.get("orientation")
    if orientation is None:
        frontal = abs(math.sin(math.radians(angle))) >= math.sqrt(0.5)
        named = None
        if frontal and sheet.accepts("as-displayed"):
            named, orientation = "as-displayed", "L\\F"
        elif sheet.accepts("seen-from-source"):
            named, orientation = "seen-from-source", f"{letters(u)}\\{letters(v)}"
        elif sheet.accepts("seen-from-detector"):
            named, orientation = "seen-from-detector", f"{letters(-u)}\\{letters(v)}"
        if named is None:
            sheet.gap(
                "which way round it is stored: Patient Orientation (0020,0020) is empty",
                f'"orientation": "{letters(u)[:1]}/F" if it is stored as seen from the source (directions of columns '
                "and of rows)",
                (["as-displayed"] if frontal else []) + ["seen-from-source", "seen-from-detector"],
            )
            return None
        sheet.offer("orientation", orientation, f"option --accept {named}")
    turn = turn_of(orientation, u, v)
    if turn is None:
        sheet.gap(
            f"Patient Orientation {orientation} (by {sheet.source('orientation')}) cannot be seen from {angle:g} "
            f"degrees ({sheet.get('view_position') or 'no View Position'}, by {sheet.source('angle_deg')}), where "
            f"columns run towards {letters(u)} or {letters(-u)}",
            '"orientation" and "view_position" or "angle_deg"',
        )
    return turn


def turn_of(orientation: str, u: np.ndarray, v: np.ndarray) -> Turn | None:
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
        return Turn(False, bool(columns @ u < 0), bool(rows @ v < 0))
    return Turn(True, bool(rows @ u < 0), bool(columns @ v < 0))


def turned_tilt(turn: Turn, stored_tilt_deg: tuple[float, float]) -> tuple[float, float]:
    """Detector Primary and Secondary Angle in the axes seen from the source.

    Positive primary: the beam tilts to higher columns; positive secondary: to lower rows (PS3.3 C.8.7.5.1.4).
    """
    primary, secondary = (math.tan(math.radians(t)) for t in stored_tilt_deg)
    along_u, along_v = turn.vector(primary, -secondary)
    return math.degrees(math.atan(along_u)), math.degrees(math.atan(-along_v))


def place(
    sheet: FactSheet,
    stored_offset_mm: tuple[float, float] | None = None,
    stored_offset_source: str = "",
    stored_tilt_deg: tuple[float, float] | None = None,
    stored_tilt_source: str = "",
) -> tuple[Tensor, Turn] | None:
    """The view of a radiograph, or None where gaps were noted on the sheet.

    Args:
        sheet: facts; `detector_offset_mm`, `flips` and others are added to it.
        stored_offset_mm: middle of the picture beside the central ray, along increasing columns and rows as stored.
        stored_offset_source: its provenance.
        stored_tilt_deg: Detector Primary and Secondary Angle (0018,1530/1531), in the axes of the stored picture.
        stored_tilt_source: its provenance.

    Returns:
        (13,) float64 in the isocentre frame, and how to turn the stored picture.
    """
    angle = _angle(sheet)
    distances = _distances(sheet)
    pixel = sheet.get("pixel_mm")
    if pixel is None:
        sheet.gap(
            "the size of its pixels on the detector: Imager Pixel Spacing (0018,1164), or Image Plane Pixel Spacing "
            f"(3002,0011){sheet.missing('pixel_mm')}",
            '"pixel_mm": [0.14, 0.14] (distance of rows, distance of columns)',
        )
    if angle is None:
        return None
    sheet.default("elevation_deg", 0.0, "default: the central ray is horizontal in the patient")
    u, v, ray = _axes(angle, float(sheet.get("elevation_deg")))
    turn = _turn(sheet, angle, u, v)
    if turn is None or distances is None or pixel is None:
        return None
    sheet.offer("flips", str(turn), "from orientation and angle_deg")
    if stored_offset_mm is not None:
        along_u, along_v = turn.vector(*stored_offset_mm)
        sheet.offer("detector_offset_mm", (along_u, -along_v), stored_offset_source, tolerance=0.5)
    sheet.default("detector_offset_mm", (0.0, 0.0), "default: the central ray meets the middle of the picture")
    sheet.default("detector_roll_deg", 0.0, "default: the detector stands upright")
    if stored_tilt_deg is not None:
        sheet.offer("detector_angles_deg", turned_tilt(turn, stored_tilt_deg), stored_tilt_source, tolerance=0.1)
    sheet.default("detector_angles_deg", (0.0, 0.0), "default: the beam meets the detector at a right angle")
    row_mm, column_mm = pixel[::-1] if turn.transpose else pixel
    to_detector, to_isocenter = distances
    roll = math.radians(float(sheet.get("detector_roll_deg")))
    u, v = math.cos(roll) * u - math.sin(roll) * v, math.cos(roll) * v + math.sin(roll) * u
    u, v = _tilted(u, v, ray, sheet.get("detector_angles_deg"))
    offset_u, offset_up = sheet.get("detector_offset_mm")
    center = (to_detector - to_isocenter) * ray + offset_u * u - offset_up * v
    beam = sheet.get("beam") or "cone"
    head = ray if beam == "parallel" else -to_isocenter * ray
    if beam == "cone":
        sheet.offer("magnification", to_detector / to_isocenter, "from the two distances")
    view = np.concatenate([head, center, u * column_mm, v * row_mm, [BEAMS[beam]]])
    # Cosines of right angles leave 1e-17: zeros are easier to read.
    view[np.abs(view) < 1e-12] = 0.0
    return torch.from_numpy(view), turn


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
