"""Writer of simulated radiographs as DICOM DX files with full tags, for tests, demonstration and documentation.

It writes what the standard asks for (PS3.3 A.26, C.8.11) and shares no code with the reader, which would prove nothing.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from custom.core.files import write_bytes
from custom.dicom.strict import file_bytes
from custom.dicom.subject import code

__all__ = ["LOG_SCALE", "write_dx"]

_PROCESSING, _PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
_HIGHEST = 2**14 - 1
#: Stored value of the unattenuated beam, for processing: below saturation, as detectors are calibrated.
_AIR = 12000
#: Stored values for one unit of line integral, for presentation: 8 units fill 14 bits.
LOG_SCALE = _HIGHEST / 8.0

#: View Position, its SNOMED CT code and meaning (CID 4010), and Patient Orientation of the stored picture, by angle. A
#: PA picture is stored as it is shown, with the patient's left at the right: mirrored as seen from the source.
_VIEWS = {
    0: ("LL", "399173006", "left lateral", ["A", "F"]),
    90: ("AP", "399348003", "antero-posterior", ["L", "F"]),
    180: ("RL", "399198007", "right lateral", ["P", "F"]),
    270: ("PA", "272479007", "postero-anterior", ["L", "F"]),
}


def _number(value: float) -> str:
    """A decimal string (DS) of at most 16 characters."""
    return f"{value:.10g}"[:16]


def _geometry(view: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Angle, distances, pixel and offset of an upright cone-beam view whose central ray is horizontal."""
    source, center, u, v = (view[i : i + 3] for i in (0, 3, 6, 9))
    distance = float(np.linalg.norm(source))
    column, row = float(np.linalg.norm(u)), float(np.linalg.norm(v))
    ray = -source / distance
    upright = abs(source[2]) < 1e-6 * distance and np.allclose(v / row, [0, 0, -1], atol=1e-6)
    square = np.allclose(np.cross(u / column, v / row), ray, atol=1e-6)
    if view[12] < 0.5 or not upright or not square:
        raise ValueError("a DX file is written for an upright cone-beam view at a right angle to its detector only")
    foot = center - source
    return {
        "angle": math.degrees(math.atan2(source[1], source[0])) % 360,
        "to_isocenter": distance,
        "to_detector": float(foot @ ray),
        "pixel": (row, column),
        "offset": (float(foot @ u) / column, float(foot @ v) / row),
    }


def write_dx(
    path: str | os.PathLike[str],
    line_integrals: Any,
    view: Any,
    *,
    patient_name: str = "Phantom^Fewview",
    patient_id: str = "FEWVIEW-1",
    birth_date: str = "19600101",
    sex: str = "O",
    study_date: str = "20260102",
    study: str = "fewview",
    charset: str = "ISO_IR 192",
    photons: float | None = 20000.0,
    seed: int = 0,
    presentation: bool = False,
    monochrome1: bool = False,
    drop: Sequence[str] = (),
    empty: Sequence[str] = (),
) -> Path:
    """Write one Digital X-Ray image, 14 bits, explicit little endian, from line integrals.

    FOR PROCESSING stores the intensity (LIN, sign 1), 12000 in the unattenuated beam. FOR PRESENTATION stores line
    integrals times `LOG_SCALE` (LOG), bones bright: rising in MONOCHROME2, falling from 16383 in MONOCHROME1.

    Args:
        path: target.
        line_integrals: (V, U), as seen from the source, row 0 superior.
        view: (13,), cone beam, upright detector, isocentre frame.
        patient_name: and the other patient and study attributes.
        patient_id: see PS3.3 C.7.1.1.
        birth_date: YYYYMMDD.
        sex: "M", "F", "O" or "".
        study_date: YYYYMMDD.
        study: files with the same text share the study; UIDs follow from it, the patient's ID, the angle and the seed.
        charset: Specific Character Set (0008,0005).
        photons: counted by a pixel in the unattenuated beam, for quantum noise; None for none.
        seed: of the noise.
        presentation: for presentation instead of processing.
        monochrome1: MONOCHROME1 instead of MONOCHROME2.
        drop: keywords of attributes that are left out at the end.
        empty: keywords of attributes that are emptied at the end.

    Returns:
        The path.

    Raises:
        ValueError: another kind of view, or line integrals that are not (V, U).
    """
    path = Path(path)
    clean = np.asarray(line_integrals, dtype=np.float64)
    if clean.ndim != 2:
        raise ValueError(f"line_integrals must be (V, U), got shape {clean.shape}")
    place = _geometry(np.asarray(view, dtype=np.float64))
    generator = np.random.default_rng([seed, zlib.crc32(f"{patient_id} {place['angle']:.3f}".encode())])
    transmission = np.exp(-clean)
    if photons is not None:
        transmission = np.maximum(generator.poisson(transmission * photons), 0.5) / photons
    if presentation:
        rising = np.clip(-np.log(transmission), 0, None) * LOG_SCALE
        stored = _HIGHEST - rising if monochrome1 else rising
    else:
        stored = transmission * _AIR
    values = np.clip(np.rint(stored), 0, _HIGHEST).astype("<u2")
    mirrored = _is_mirrored(place["angle"])
    if mirrored:
        values = values[:, ::-1]

    def uid(*parts: object) -> str:
        return generate_uid(entropy_srcs=["fewview-ct write_dx", study, patient_id, *map(str, parts)])

    what = (round(place["angle"], 3), seed, presentation, monochrome1, photons, zlib.crc32(values.tobytes()))
    dataset = Dataset()
    dataset.SpecificCharacterSet = charset
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.SOPClassUID = _PRESENTATION if presentation else _PROCESSING
    dataset.SOPInstanceUID = uid("instance", *what)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid("series", presentation, what[0])
    for kind in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{kind}Date", study_date)
        setattr(dataset, f"{kind}Time", "101500")
    dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.StudyID = "", "", "1"
    dataset.Modality, dataset.Manufacturer = "DX", "fewview-ct simulator"
    dataset.StudyDescription = "Simulated radiographs"
    dataset.SeriesNumber, dataset.InstanceNumber = str(1 + round(place["angle"])), "1"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = (
        patient_name, patient_id, birth_date, sex,
    )  # fmt: skip
    dataset.BodyPartExamined = "CHEST"
    dataset.AnatomicRegionSequence = pydicom.Sequence([code("51185008", "SCT", "Chest")])
    dataset.ImageLaterality = "U"
    dataset.PresentationIntentType = "FOR PRESENTATION" if presentation else "FOR PROCESSING"
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    dataset.AcquisitionContextSequence = pydicom.Sequence([])
    dataset.KVP = "120"
    _write_geometry(dataset, place, values.shape, mirrored)
    _write_pixels(dataset, values, presentation, monochrome1)
    for keyword in drop:
        if keyword in dataset:
            delattr(dataset, keyword)
    for keyword in empty:
        setattr(dataset, keyword, None)
    class_uid, instance_uid = dataset.get("SOPClassUID", _PROCESSING), dataset.get("SOPInstanceUID") or generate_uid()
    write_bytes(path, file_bytes(dataset, class_uid, instance_uid))
    return path


def _is_mirrored(angle_deg: float) -> bool:
    return abs((angle_deg - 270 + 180) % 360 - 180) < 0.05


def _write_geometry(dataset: Dataset, place: dict[str, Any], shape: tuple[int, ...], mirrored: bool) -> None:
    """DX Positioning (C.8.11.5), DX Detector (C.8.11.4) and Patient Orientation (C.7.6.1.1.1)."""
    angle, pixel = place["angle"], place["pixel"]
    named = _VIEWS.get(round(angle)) if abs(angle - round(angle)) < 0.05 else None
    if named is not None:
        dataset.ViewPosition, value, meaning, orientation = named
        dataset.ViewCodeSequence = pydicom.Sequence([code(value, "SCT", meaning)])
        dataset.PatientOrientation = orientation
        dataset.PositionerType = "NONE"
    else:
        dataset.PositionerType = "CARM"
        # C.8.7.5.1.2: the detector's angle, 0 in front of the chest, 90 at the patient's left.
        dataset.PositionerPrimaryAngle = _number((angle + 90 + 180) % 360 - 180)
        dataset.PositionerSecondaryAngle = "0"
        across = (-math.sin(math.radians(angle)), math.cos(math.radians(angle)))
        sides = [("R" if across[0] > 0 else "L", abs(across[0])), ("A" if across[1] > 0 else "P", abs(across[1]))]
        sides.sort(key=lambda side: -side[1])
        dataset.PatientOrientation = ["".join(letter for letter, size in sides if size > 0.1), "F"]
    dataset.DistanceSourceToDetector = _number(place["to_detector"])
    dataset.DistanceSourceToPatient = _number(place["to_isocenter"])
    dataset.EstimatedRadiographicMagnificationFactor = _number(place["to_detector"] / place["to_isocenter"])
    dataset.DetectorType, dataset.DetectorConfiguration = "SCINTILLATOR", "AREA"
    dataset.ImagerPixelSpacing = [_number(p) for p in pixel]
    dataset.DetectorElementSpacing = [_number(p) for p in pixel]
    dataset.FieldOfViewShape, dataset.DetectorActiveShape = "RECTANGLE", "RECTANGLE"
    size = [shape[i] * pixel[i] for i in (0, 1)]
    dataset.FieldOfViewDimensions = [str(round(s)) for s in size]
    # The central ray meets the middle of the active area; a picture beside it is a part of that area.
    right, down = place["offset"]
    right = -right if mirrored else right
    dataset.DetectorActiveDimensions = [_number(size[0] + 2 * abs(down)), _number(size[1] + 2 * abs(right))]
    dataset.DetectorActiveOrigin = ["0", "0"]
    dataset.FieldOfViewOrigin = [_number((abs(s) + s) / p) for s, p in zip((down, right), pixel, strict=True)]
    dataset.FieldOfViewRotation, dataset.FieldOfViewHorizontalFlip = "0", "NO"


def _write_pixels(dataset: Dataset, values: npt.NDArray[np.uint16], presentation: bool, monochrome1: bool) -> None:
    """Image Pixel (C.7.6.3), DX Image (C.8.11.3) and, for presentation, VOI LUT (C.11.2)."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if monochrome1 else "MONOCHROME2"
    dataset.PresentationLUTShape = "INVERSE" if monochrome1 else "IDENTITY"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 14, 13, 0
    dataset.PixelIntensityRelationship = "LOG" if presentation else "LIN"
    dataset.PixelIntensityRelationshipSign = -1 if presentation and not monochrome1 else 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    if presentation:
        dataset.WindowCenter, dataset.WindowWidth = str((_HIGHEST + 1) // 2), str(_HIGHEST + 1)
    dataset.PixelData = np.ascontiguousarray(values).tobytes()
