"""Geometry of DX, CR, XA and RF from their tags; RTIMAGE: `rt_image_pose`.

References: PS3.3 C.8.11.5 (DX Positioning), C.8.1.2 (CR Image), C.8.7.5 (XA Positioner), C.8.7.6 (XRF Positioner),
C.8.11.4 (DX Detector), 10.7 (Pixel Spacing Calibration), C.7.6.1.1.1 (Patient Orientation). Every attribute may be
absent or, of type 2, empty.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pydicom

from custom.dicom.detector_tags import active_area
from custom.dicom.header import Header, numbers, tag, text
from custom.radiographs.acquisition_metadata import (
    AcquisitionMetadata,
    MetadataValue,
    Origin,
    names_direction,
    value_of,
)
from custom.radiographs.readings import Reading, ask, found, merge, note, unusable
from custom.radiographs.view_from_metadata import VIEW_ANGLES_DEG, StoredPose

__all__ = ["common_tags", "read_pose", "tagged"]

#: View codes (CID 4010) where View Position is empty: SNOMED CT and the older SRT.
_VIEW_CODES = {
    "399348003": "AP", "R-10206": "AP", "272479007": "PA", "R-10214": "PA",
    "399173006": "LL", "R-10236": "LL", "399198007": "RL", "R-10232": "RL",
}  # fmt: skip


def tagged(key: str, value: Any, *keywords: str, tolerance: float = 0.0) -> Reading:
    """A value of these attributes; nothing where it is None."""
    return found(key, value, Origin.FILE, f"DICOM {', '.join(map(tag, keywords))}", tolerance)


#: Attributes that should be numbers, how many, and the value that they tell.
_NUMBERS = {
    "kvp": (1, ("KVP",)),
    "source_to_detector_mm": (1, ("DistanceSourceToDetector", "RTImageSID")),
    "source_to_isocenter_mm": (
        1, ("DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor", "RadiationMachineSAD"),
    ),
    "pixel_mm": (
        2, ("ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelSpacing", "ImagePlanePixelSpacing"),
    ),
    "angle_deg": (1, ("PositionerPrimaryAngle", "GantryAngle")),
    "elevation_deg": (1, ("PositionerSecondaryAngle",)),
    "detector_angles_deg": (1, ("DetectorPrimaryAngle", "DetectorSecondaryAngle", "ColumnAngulation")),
    "detector_roll_deg": (1, ("XRayImageReceptorAngle",)),
    "detector_offset_mm": (
        2, ("FieldOfViewOrigin", "DetectorActiveOrigin", "DetectorActiveDimensions", "DetectorElementSpacing",
            "RTImagePosition"),
    ),
    "intensity_sign": (1, ("PixelIntensityRelationshipSign",)),
    "rescale": (1, ("RescaleSlope", "RescaleIntercept")),
}  # fmt: skip


#: Attributes that must be more than 0, or than 1; 0 is how some devices write "not known".
_LEAST = {"DistanceSourceToDetector": 0, "DistanceSourceToPatient": 0, "EstimatedRadiographicMagnificationFactor": 1}


def _unusable(header: Header) -> Reading:
    """Numbers that stand in the file and cannot be read, such as those with decimal commas, or cannot be."""
    own = Reading()
    for key, (count, keywords) in _NUMBERS.items():
        for keyword in keywords:
            own += unusable(key, header.unreadable(keyword, count), "cannot be read", tag(keyword))
            value = numbers(header.dataset, keyword) if keyword in _LEAST else None
            if value is not None and value[0] != 0 and value[0] < _LEAST[keyword]:
                own += unusable(key, value[0], f"cannot be, it must be more than {_LEAST[keyword]}", tag(keyword))
    return own


def _positive(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """A length or ratio; zero and negative ones are how some devices write "not known"."""
    values = numbers(dataset, keyword)
    return values[0] if values is not None and values[0] > 0 else None


#: Body Part Examined (0018,0015), the terms of PS3.16 annex L that show no chest, and what says that it is a person.
_ELSEWHERE = (
    "ABDOMEN", "ANKLE", "ARM", "BREAST", "CALCANEUS", "COCCYX", "CSPINE", "ELBOW", "EXTREMITY", "FEMUR", "FINGER",
    "FOOT", "FOREARM", "HAND", "HEAD", "HIP", "HUMERUS", "JAW", "KNEE", "LEG", "LSPINE", "MANDIBLE", "MAXILLA", "NECK",
    "ORBIT", "PATELLA", "PELVIS", "SKULL", "SSPINE", "THUMB", "TOE", "WRIST", "ZYGOMA",
)  # fmt: skip
_PEOPLE = ("", "HUMAN", "HOMO SAPIENS")


def _meaning(dataset: pydicom.Dataset, keyword: str) -> str:
    """Code Meaning (0008,0104) of the first item of a sequence, in capitals."""
    try:
        return text(dataset[keyword][0], "CodeMeaning")
    except Exception:  # absent, empty or damaged
        return ""


def _no_chest(dataset: pydicom.Dataset) -> list[str]:
    """What is to be said of a picture of something else than a person's chest."""
    said = []
    part = text(dataset, "BodyPartExamined") or _meaning(dataset, "AnatomicRegionSequence")
    if part in _ELSEWHERE:
        said.append(
            f"it shows another part of the body by Body Part Examined {tag('BodyPartExamined')} or Anatomic Region: "
            f"{part}; a model that has learnt chests makes a chest of any picture"
        )
    species = text(dataset, "PatientSpeciesDescription") or _meaning(dataset, "PatientSpeciesCodeSequence")
    if species not in _PEOPLE:
        said.append(
            f"it shows an animal by Patient Species {tag('PatientSpeciesDescription')}: {species[:40]}; a model that "
            "has learnt people makes a person's chest of any picture"
        )
    return said


def _code(dataset: pydicom.Dataset) -> str | None:
    try:
        return _VIEW_CODES.get(str(dataset.ViewCodeSequence[0].CodeValue).strip())
    except Exception:  # absent, empty or damaged
        return None


def common_tags(header: Header) -> Reading:
    """What every modality shares: modality, beam, kVp, Patient Orientation."""
    dataset = header.dataset
    own = (
        _unusable(header)
        + tagged("modality", header.modality, "SOPClassUID")
        + tagged("kvp", _positive(dataset, "KVP"), "KVP")
    )
    own += found("beam", "cone", Origin.DERIVED, f"modality: a {header.modality} has a point source")
    own += note(*_no_chest(dataset))
    orientation = text(dataset, "PatientOrientation")
    parts = orientation.split("\\")
    if len(parts) == 2 and all(map(names_direction, parts)):
        return own + tagged("orientation", orientation, "PatientOrientation")
    said = orientation[:40] if orientation.strip("\\") else None
    return own + unusable("orientation", said, "cannot be read", tag("PatientOrientation"))


def _view(header: Header, known: AcquisitionMetadata, frame: int) -> Reading:
    dataset = header.dataset
    position = text(dataset, "ViewPosition")
    own = tagged("view_position", position if position in VIEW_ANGLES_DEG else None, "ViewPosition")
    if not own.values:
        own += unusable("view_position", position[:40], "names no angle", tag("ViewPosition"))
    own += tagged("view_position", _code(dataset), "ViewCodeSequence")
    primary, secondary = (numbers(dataset, f"Positioner{k}Angle") for k in ("Primary", "Secondary"))
    c_arm = header.modality == "XA" or text(dataset, "PositionerType") == "CARM"
    if primary is None or not c_arm:
        # Wall stands write 0 here whatever the view, so only a C-arm's angles are those of PS3.3 C.8.7.5.
        return own
    angles = [primary[0], secondary[0] if secondary is not None else 0.0]
    for k, name in enumerate(("Primary", "Secondary")):
        steps = numbers(dataset, f"Positioner{name}AngleIncrement", None)
        if frame > 1 and steps is not None:
            angles[k] += sum(steps[1:frame]) if len(steps) > 1 else steps[0] * (frame - 1)
    if not (abs(angles[0]) <= 360 and abs(angles[1]) <= 85):
        said = f"positioner angles {angles[0]:g} and {angles[1]:g} degrees are out of range and are not used"
        return own + note(said)
    # The angles are the detector's: 0 in front of the chest, +90 at the patient's left, cranial positive.
    own += tagged("angle_deg", (angles[0] - 90) % 360, "PositionerPrimaryAngle")
    return own + tagged("elevation_deg", None if secondary is None else -angles[1], "PositionerSecondaryAngle")


def _distances(header: Header, others: Reading) -> Reading:
    dataset = header.dataset
    detector, patient, factor = (
        _positive(dataset, k)
        for k in ("DistanceSourceToDetector", "DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor")
    )
    own = tagged("source_to_detector_mm", detector, "DistanceSourceToDetector")
    known = merge(others, own)
    to_detector = value_of(known.source_to_detector_mm)
    implied = to_detector / factor if to_detector is not None and factor is not None and factor > 1 else None
    agree = implied is not None and patient is not None and abs(implied / patient - 1) <= 0.01
    by_factor = ("DistanceSourceToDetector", "EstimatedRadiographicMagnificationFactor")
    # Factors are written with two or three digits.
    from_factor = tagged("source_to_isocenter_mm", implied, *by_factor, tolerance=0.01)
    if header.modality in ("XA", "RF") or agree:
        # C.8.7.5: to the isocentre.
        return own + tagged("source_to_isocenter_mm", patient, "DistanceSourceToPatient") + from_factor
    # C.8.11.5: to the table or bucky. The factor is the ratio at the object, so it knows better.
    own += from_factor + tagged("source_to_isocenter_mm", patient, "DistanceSourceToPatient", tolerance=0.01)
    if implied is not None or patient is None or known.source_to_isocenter_mm is not None:
        return own
    return own + note(
        f"the middle of the patient is taken to be {patient:g} mm from the source, by Distance Source to Patient "
        "(0018,1111); the standard measures that to the table or bucky, so if the device does, the scale of the "
        'result is a little wrong: "source_to_isocenter_mm" in a sidecar says it better'
    )


def _pixel_spacing(header: Header, others: Reading, accept: frozenset[str]) -> Reading:
    """Imager Pixel Spacing before Pixel Spacing, which may be corrected to a depth in the patient (10.7.1.1)."""
    dataset = header.dataset
    imager, nominal, plain = (
        pair if (pair := numbers(dataset, k, 2)) is not None and min(pair) > 0 else None
        for k in ("ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelSpacing")
    )
    calibration = text(dataset, "PixelSpacingCalibrationType")
    factor = _positive(dataset, "EstimatedRadiographicMagnificationFactor")
    known = merge(others)
    if imager is not None or nominal is not None or known.pixel_mm is not None:
        pairs = (("ImagerPixelSpacing", imager), ("NominalScannedPixelSpacing", nominal))
        own = sum((tagged("pixel_mm", pair, keyword) for keyword, pair in pairs), Reading())
        return own + _cross_check(merge(others, own), plain, calibration)
    if plain is None:
        return _impossible_spacing(dataset)
    if calibration == "GEOMETRY" and factor is not None and factor > 1:
        size = tuple(p * factor for p in plain)
        return tagged("pixel_mm", size, "PixelSpacing", "EstimatedRadiographicMagnificationFactor")
    detector, isocenter = value_of(known.source_to_detector_mm), value_of(known.source_to_isocenter_mm)
    option, size = "", plain
    if not calibration and "pixel-spacing-at-detector" in accept:
        option = "pixel-spacing-at-detector"
    elif "pixel-spacing-at-isocenter" in accept and detector and isocenter:
        option, size = "pixel-spacing-at-isocenter", tuple(p * detector / isocenter for p in plain)
    if option:
        where = f"{option}, DICOM {tag('PixelSpacing')}"
        return found("pixel_mm", size, Origin.OPTION, where)
    what = f"is calibrated ({calibration})" if calibration else "does not say at which depth it is measured"
    problem = (
        f"Pixel Spacing {tag('PixelSpacing')} {plain[0]:g} x {plain[1]:g} mm {what}, and Imager Pixel Spacing "
        f"{tag('ImagerPixelSpacing')} {known.state_of_tag('pixel_mm')}"
    )
    example = f'"pixel_mm": [{plain[0]:g}, {plain[1]:g}] if that is measured on the detector'
    options = (*(() if calibration else ("pixel-spacing-at-detector",)), "pixel-spacing-at-isocenter")
    return ask(problem, ("pixel_mm",), example, *options)


def _impossible_spacing(dataset: pydicom.Dataset) -> Reading:
    """Sizes of zero, as some plate readers write them: said where the size is asked for."""
    pairs = ((key, numbers(dataset, key, 2)) for key in ("ImagerPixelSpacing", "PixelSpacing"))
    return sum((unusable("pixel_mm", pair, "cannot be", tag(key)) for key, pair in pairs), Reading())


def _cross_check(known: AcquisitionMetadata, plain: tuple[float, ...] | None, calibration: str) -> Reading:
    """Say so where Pixel Spacing fits neither the detector nor the patient's depth."""
    pixel = value_of(known.pixel_mm)
    detector, isocenter = value_of(known.source_to_detector_mm), value_of(known.source_to_isocenter_mm)
    if plain is None or pixel is None or calibration == "FIDUCIAL":
        return Reading()
    ratio = pixel[0] / plain[0]
    expected = detector / isocenter if detector and isocenter else None
    if abs(ratio - 1) <= 0.01 or (expected is not None and abs(ratio / expected - 1) <= 0.05):
        return Reading()
    shown = f"the distances give {expected:.3f}" if expected is not None else "no distances are known"
    return note(
        f"Pixel Spacing (0028,0030) implies a magnification of {ratio:.3f}, {shown}; the size on the detector, "
        f"{pixel[0]:g} mm, is used"
    )


def _tilt(dataset: pydicom.Dataset, known: AcquisitionMetadata) -> Reading:
    """Detector angles in the axes of the stored picture, and what is to be said or asked about them."""
    primary, secondary = (numbers(dataset, f"Detector{k}Angle") for k in ("Primary", "Secondary"))
    if primary is not None or secondary is not None:
        tilt = tuple(0.0 if angle is None else angle[0] for angle in (primary, secondary))
        if max(map(abs, tilt)) > 80:
            return note(f"detector angles of {tilt[0]:g} and {tilt[1]:g} degrees are out of range and are not used")
        return tagged("detector_angles_deg", tilt, "DetectorPrimaryAngle", "DetectorSecondaryAngle")
    column = numbers(dataset, "ColumnAngulation")
    if column is None or abs(column[0]) <= 0.5 or known.detector_angles_deg is not None:
        return Reading()
    return ask(
        f"how the beam meets the detector: Column Angulation {tag('ColumnAngulation')} is {column[0]:g} degrees "
        "towards the head of the table, not of the patient",
        ("detector_angles_deg", "elevation_deg"),
        f'"detector_angles_deg": [0, {abs(column[0]):g}] (beam tilted to higher columns, to lower rows) and '
        '"elevation_deg"',
    )


def read_pose(
    header: Header, others: Reading, shape: tuple[int, int], frame: int = 1, accept: frozenset[str] = frozenset()
) -> tuple[Reading, StoredPose]:
    """All geometry that the tags hold.

    Args:
        header: of a DX, CR, XA or RF image.
        others: what geometry file and sidecar say; it decides what the tags are asked for, and is not part of the
            result.
        shape: rows and columns as stored.
        frame: number of the frame from 1, for positioners that move.
        accept: assumptions that are allowed, of `ACCEPT`.

    Returns:
        What the tags say, and what of it is in the axes of the stored picture.
    """
    own = common_tags(header) + _view(header, merge(others), frame) + _distances(header, others)
    own += _pixel_spacing(header, others + own, accept)
    tilt = _tilt(header.dataset, merge(others))
    own, turned = own + replace(tilt, values=()), next(iter(tilt.values), None)
    pixel = value_of(merge(others, own).pixel_mm)
    area = active_area(header.dataset, shape, pixel) if pixel is not None else None
    if area is None:
        return own, StoredPose(tilt=turned)
    keywords = ("FieldOfViewOrigin", "DetectorActiveOrigin", "DetectorActiveDimensions")
    where = f"DICOM {', '.join(map(tag, keywords))}; the central ray meets the middle of the active area"
    return own, StoredPose(MetadataValue("detector_offset_mm", area[0], Origin.FILE, where), turned, area[1])
