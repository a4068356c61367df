"""Geometry of DX, CR, XA and RF from their tags, as facts with provenance; RTIMAGE: `rt_image_pose`.

Sources: PS3.3 C.8.11.5 (DX Positioning), C.8.1.2 (CR Image), C.8.7.5 (XA Positioner), C.8.7.6 (XRF Positioner),
C.8.11.4 (DX Detector), 10.7 (Pixel Spacing Calibration), C.7.6.1.1.1 (Patient Orientation). Every attribute may be
absent or, of type 2, empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from torch import Tensor

from custom.dicom.detector_tags import active_area
from custom.dicom.header import Header, numbers, tag, text
from custom.radiographs.acquisition_metadata import FactSheet
from custom.radiographs.view_from_metadata import VIEW_ANGLES_DEG, Turn, place

__all__ = ["Pose", "locate", "offer_common"]

#: View codes (CID 4010) where View Position is empty: SNOMED CT and the older SRT.
_VIEW_CODES = {
    "399348003": "AP", "R-10206": "AP", "272479007": "PA", "R-10214": "PA",
    "399173006": "LL", "R-10236": "LL", "399198007": "RL", "R-10232": "RL",
}  # fmt: skip


@dataclass
class Pose:
    """Where a picture stands, in the axes of the stored picture.

    Args:
        offset_mm: middle of the picture beside the central ray, along increasing columns and rows.
        offset_source: its provenance.
        tilt_deg: Detector Primary and Secondary Angle.
        active: bool (V, U), pixels within the detector's active area; None where it is not told.
    """

    offset_mm: tuple[float, float] | None = None
    offset_source: str = ""
    tilt_deg: tuple[float, float] | None = None
    tilt_source: str = ""
    active: npt.NDArray[np.bool_] | None = None

    def place(self, sheet: FactSheet) -> tuple[Tensor, Turn] | None:
        """View and turn, see `custom.radiographs.view_from_metadata.place`."""
        return place(sheet, self.offset_mm, self.offset_source, self.tilt_deg, self.tilt_source)


def _source(*keywords: str) -> str:
    return "DICOM " + ", ".join(tag(k) for k in keywords)


def _positive(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """A length or ratio; zero and negative ones are how some devices write "not known"."""
    found = numbers(dataset, keyword)
    return found[0] if found is not None and found[0] > 0 else None


def _code(dataset: pydicom.Dataset) -> str | None:
    try:
        return _VIEW_CODES.get(str(dataset.ViewCodeSequence[0].CodeValue).strip())
    except Exception:  # absent, empty or damaged
        return None


def offer_common(header: Header, sheet: FactSheet) -> None:
    """Facts that every modality shares: modality, beam, kVp, Patient Orientation."""
    dataset = header.dataset
    sheet.offer("modality", header.modality, _source("SOPClassUID"))
    sheet.default("beam", "cone", f"{header.modality}: a point source")
    kvp = _positive(dataset, "KVP")
    sheet.offer("kvp", kvp, _source("KVP"))
    orientation = text(dataset, "PatientOrientation")
    parts = orientation.split("\\")
    if len(parts) == 2 and all(0 < len(p) <= 3 and set(p) <= set("RLAPHF") for p in parts):
        sheet.offer("orientation", orientation, _source("PatientOrientation"))
    elif orientation.strip("\\"):
        sheet.warn(f"Patient Orientation {tag('PatientOrientation')} is {orientation[:40]!r}, which is not understood")


def _offer_view(header: Header, sheet: FactSheet, frame: int) -> None:
    dataset = header.dataset
    position = text(dataset, "ViewPosition")
    if position in VIEW_ANGLES_DEG:
        sheet.offer("view_position", position, _source("ViewPosition"))
    elif position and sheet.get("view_position") is None:
        sheet.warn(f"View Position {tag('ViewPosition')} is {position[:40]!r}, which names no angle")
    code = _code(dataset)
    own = sheet.source("view_position") == _source("ViewPosition")
    if own and code is not None and code != position and sheet.get("angle_deg") is None:
        sheet.gap(
            f"two views that exclude each other: {position} by {_source('ViewPosition')}, but {code} by "
            f"{_source('ViewCodeSequence')}",
            f'"view_position": "{position}" or "{code}"',
        )
    else:
        sheet.offer("view_position", code, _source("ViewCodeSequence"))
    primary, secondary = (numbers(dataset, f"Positioner{k}Angle") for k in ("Primary", "Secondary"))
    c_arm = header.modality == "XA" or text(dataset, "PositionerType") == "CARM"
    if primary is None or not c_arm:
        # Wall stands write 0 here whatever the view, so only a C-arm's angles are those of PS3.3 C.8.7.5.
        return
    angles = [primary[0], secondary[0] if secondary is not None else 0.0]
    for k, name in enumerate(("Primary", "Secondary")):
        steps = numbers(dataset, f"Positioner{name}AngleIncrement", None)
        if frame > 1 and steps is not None:
            angles[k] += sum(steps[1:frame]) if len(steps) > 1 else steps[0] * (frame - 1)
    if not (abs(angles[0]) <= 360 and abs(angles[1]) <= 85):
        sheet.warn(f"positioner angles {angles[0]:g} and {angles[1]:g} degrees are out of range and are not used")
        return
    # The angles are the detector's: 0 in front of the chest, +90 at the patient's left, cranial positive.
    sheet.offer("angle_deg", (angles[0] - 90) % 360, _source("PositionerPrimaryAngle"), tolerance=0.5)
    if secondary is not None:
        sheet.offer("elevation_deg", -angles[1], _source("PositionerSecondaryAngle"), tolerance=0.5)


def _offer_distances(header: Header, sheet: FactSheet) -> None:
    dataset = header.dataset
    detector, patient, factor = (
        _positive(dataset, k)
        for k in ("DistanceSourceToDetector", "DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor")
    )
    sheet.offer("source_to_detector_mm", detector, _source("DistanceSourceToDetector"))
    detector = sheet.get("source_to_detector_mm")
    implied = detector / factor if detector is not None and factor is not None and factor > 1 else None
    by_factor = _source("DistanceSourceToDetector", "EstimatedRadiographicMagnificationFactor")
    stated = sheet.get("source_to_isocenter_mm") is not None
    agree = implied is not None and patient is not None and abs(implied / patient - 1) <= 0.01
    if header.modality in ("XA", "RF") or agree:
        # C.8.7.5: to the isocentre.
        sheet.offer("source_to_isocenter_mm", patient, _source("DistanceSourceToPatient"))
        sheet.offer("source_to_isocenter_mm", implied, by_factor, tolerance=0.01)
        return
    # C.8.11.5: to the table or bucky. The factor is the ratio at the object, so it knows better.
    sheet.offer("source_to_isocenter_mm", implied, by_factor)
    sheet.offer("source_to_isocenter_mm", patient, _source("DistanceSourceToPatient"), tolerance=0.01)
    if implied is None and patient is not None and not stated:
        sheet.warn(
            f"the middle of the patient is taken to be {patient:g} mm from the source, by Distance Source to Patient "
            "(0018,1111); the standard measures that to the table or bucky, so if the device does, the scale of the "
            'result is a little wrong: "source_to_isocenter_mm" in a sidecar says it better'
        )


def _pixel_spacing(header: Header, sheet: FactSheet) -> None:
    """Imager Pixel Spacing before Pixel Spacing, which may be corrected to a depth in the patient (10.7.1.1)."""
    dataset = header.dataset
    imager, nominal, plain = (
        found if (found := numbers(dataset, k, 2)) is not None and min(found) > 0 else None
        for k in ("ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelSpacing")
    )
    calibration = text(dataset, "PixelSpacingCalibrationType")
    factor = _positive(dataset, "EstimatedRadiographicMagnificationFactor")
    if imager is not None or nominal is not None or sheet.get("pixel_mm") is not None:
        sheet.offer("pixel_mm", imager, _source("ImagerPixelSpacing"))
        if imager is None:
            sheet.offer("pixel_mm", nominal, _source("NominalScannedPixelSpacing"))
        _cross_check(sheet, plain, calibration)
        return
    if plain is None:
        return
    if calibration == "GEOMETRY" and factor is not None and factor > 1:
        source = _source("PixelSpacing", "EstimatedRadiographicMagnificationFactor")
        sheet.offer("pixel_mm", tuple(p * factor for p in plain), source)
        return
    detector, isocenter = sheet.get("source_to_detector_mm"), sheet.get("source_to_isocenter_mm")
    if not calibration and sheet.accepts("pixel-spacing-at-detector"):
        sheet.offer("pixel_mm", plain, f"{_source('PixelSpacing')}, option --accept pixel-spacing-at-detector")
    elif sheet.accepts("pixel-spacing-at-isocenter") and detector and isocenter:
        scaled = tuple(p * detector / isocenter for p in plain)
        sheet.offer("pixel_mm", scaled, f"{_source('PixelSpacing')}, option --accept pixel-spacing-at-isocenter")
    else:
        what = f"is calibrated ({calibration})" if calibration else "does not say at which depth it is measured"
        sheet.gap(
            f"Pixel Spacing {tag('PixelSpacing')} {plain[0]:g} x {plain[1]:g} mm {what}, and Imager Pixel Spacing "
            f"{tag('ImagerPixelSpacing')} is absent",
            f'"pixel_mm": [{plain[0]:g}, {plain[1]:g}] if that is measured on the detector',
            ([] if calibration else ["pixel-spacing-at-detector"]) + ["pixel-spacing-at-isocenter"],
        )


def _cross_check(sheet: FactSheet, plain: tuple[float, ...] | None, calibration: str) -> None:
    """Say so where Pixel Spacing fits neither the detector nor the patient's depth."""
    pixel, detector, isocenter = (sheet.get(k) for k in ("pixel_mm", "source_to_detector_mm", "source_to_isocenter_mm"))
    if plain is None or pixel is None:
        return
    ratio = pixel[0] / plain[0]
    expected = detector / isocenter if detector and isocenter else None
    if abs(ratio - 1) <= 0.01 or calibration == "FIDUCIAL":
        return
    if expected is None or abs(ratio / expected - 1) > 0.05:
        shown = f"the distances give {expected:.3f}" if expected is not None else "no distances are known"
        sheet.warn(
            f"Pixel Spacing (0028,0030) implies a magnification of {ratio:.3f}, {shown}; the size on the detector, "
            f"{pixel[0]:g} mm, is used"
        )


def _offer_tilt(header: Header, sheet: FactSheet, pose: Pose) -> None:
    dataset = header.dataset
    primary, secondary = (numbers(dataset, f"Detector{k}Angle") for k in ("Primary", "Secondary"))
    if primary is not None or secondary is not None:
        tilt = tuple(0.0 if found is None else found[0] for found in (primary, secondary))
        if max(map(abs, tilt)) > 80:
            sheet.warn(f"detector angles of {tilt[0]:g} and {tilt[1]:g} degrees are out of range and are not used")
        else:
            pose.tilt_deg = (tilt[0], tilt[1])
            pose.tilt_source = _source("DetectorPrimaryAngle", "DetectorSecondaryAngle")
        return
    column = numbers(dataset, "ColumnAngulation")
    if column is not None and abs(column[0]) > 0.5 and sheet.get("detector_angles_deg") is None:
        sheet.gap(
            f"how the beam meets the detector: Column Angulation {tag('ColumnAngulation')} is {column[0]:g} degrees "
            "towards the head of the table, not of the patient",
            f'"detector_angles_deg": [0, {abs(column[0]):g}] (beam tilted to higher columns, to lower rows) and '
            '"elevation_deg"',
        )


def locate(header: Header, sheet: FactSheet, shape: tuple[int, int], frame: int = 1) -> Pose:
    """Offer all geometry that the tags hold to the sheet.

    Args:
        header: of a DX, CR, XA or RF image.
        sheet: facts so far (sidecar first); what cannot be told is noted there.
        shape: rows and columns as stored.
        frame: number of the frame from 1, for positioners that move.

    Returns:
        What `place` needs besides the facts.
    """
    offer_common(header, sheet)
    _offer_view(header, sheet, frame)
    _offer_distances(header, sheet)
    _pixel_spacing(header, sheet)
    pose = Pose()
    _offer_tilt(header, sheet, pose)
    pixel: Any = sheet.get("pixel_mm")
    found = active_area(header.dataset, shape, pixel) if pixel is not None else None
    if found is not None:
        pose.offset_mm, pose.active = found
        pose.offset_source = (
            f"{_source('FieldOfViewOrigin', 'DetectorActiveOrigin', 'DetectorActiveDimensions')}; the central ray "
            "meets the middle of the active area"
        )
    return pose
