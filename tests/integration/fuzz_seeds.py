"""Clean DICOM radiographs of every kind that is read, written by hand, to be damaged by a fuzz run."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from tests.hand_written_dicom import A, F, L, P, R, base, intensity, picture, to_bytes

SHAPE, PIXEL = (32, 40), (11.0, 9.0)

#: Who and when, so that there is something to damage in what the CT takes over.
_SUBJECT: dict[str, Any] = {
    "SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "PatientBirthDate": "19600229", "PatientSex": "F", "PatientAge": "065Y", "PatientSize": "1.7",
    "PatientWeight": "70", "IssuerOfPatientID": "HOSPITAL", "StudyTime": "101500.25", "AccessionNumber": "A17",
    "ReferringPhysicianName": "House^Gregory", "StudyID": "S1", "StudyDescription": "Thorax in two planes",
    "BodyPartExamined": "CHEST", "KVP": "120", "LossyImageCompression": "00", "PatientIdentityRemoved": "NO",
    "BurnedInAnnotation": "NO", "SeriesNumber": "1", "InstanceNumber": "1", "ImageType": ["ORIGINAL", "PRIMARY", ""],
    "PatientPosition": "HFS",
}  # fmt: skip


def _code() -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "399348003", "SCT", "antero-posterior"
    return item


def _flat(kind: str, source: np.ndarray, columns: np.ndarray, **written: Any) -> Dataset:
    """A radiograph of 32 x 40 pixels from 1500 mm; the detector stands 300 mm behind."""
    direction = source / np.linalg.norm(source)
    values = intensity(picture(source, -300 * direction, columns, F, PIXEL, SHAPE))
    return base(kind, values, **(_SUBJECT | written))


def _wall(kind: str, source: np.ndarray, columns: np.ndarray, position: str, letters: str, **more: Any) -> Dataset:
    written = {
        "ViewPosition": position, "PatientOrientation": [letters, "F"], "DistanceSourceToDetector": 1800,
        "DistanceSourceToPatient": 1500, "EstimatedRadiographicMagnificationFactor": 1.2,
        "ImagerPixelSpacing": list(PIXEL), "PositionerType": "NONE", "RescaleSlope": 1, "RescaleIntercept": 0,
    } | more  # fmt: skip
    return _flat(kind, source, columns, **written)


def seeds() -> dict[str, bytes]:
    """Name to a clean file; each is read without an option."""
    detector = {
        "CollimatorShape": ["RECTANGULAR", "CIRCULAR"], "CollimatorLeftVerticalEdge": 1,
        "CollimatorRightVerticalEdge": 40, "CollimatorUpperHorizontalEdge": 1, "CollimatorLowerHorizontalEdge": 32,
        "CenterOfCircularCollimator": [16, 20], "RadiusOfCircularCollimator": 60,
        "DetectorActiveDimensions": [352, 360], "DetectorActiveOrigin": [0, 0], "DetectorElementSpacing": [11, 9],
        "FieldOfViewOrigin": [0, 0], "FieldOfViewRotation": 0, "FieldOfViewHorizontalFlip": "NO",
        "PixelPaddingValue": 3, "NumberOfFrames": 1, "ViewCodeSequence": [_code()], "DetectorPrimaryAngle": 0,
        "DetectorSecondaryAngle": 0, "PixelSpacing": [9.17, 7.5], "PixelSpacingCalibrationType": "GEOMETRY",
    }  # fmt: skip
    arm = {
        "PositionerPrimaryAngle": 180, "PositionerSecondaryAngle": 0, "DistanceSourceToPatient": 1500,
        "DistanceSourceToDetector": 1800, "ImagerPixelSpacing": list(PIXEL), "PatientOrientation": ["L", "F"],
        "DetectorPrimaryAngle": 0, "DetectorSecondaryAngle": 0, "CollimatorShape": "POLYGONAL",
        "VerticesOfThePolygonalCollimator": [1, 1, 1, 40, 32, 40, 32, 1], "ShutterShape": "RECTANGULAR",
        "ShutterLeftVerticalEdge": 0, "ShutterRightVerticalEdge": 41, "ShutterUpperHorizontalEdge": 0,
        "ShutterLowerHorizontalEdge": 33, "PositionerPrimaryAngleIncrement": [0],
    }  # fmt: skip
    linac = {
        "GantryAngle": 0, "PatientPosition": "HFS", "RadiationMachineSAD": 1500, "RTImageSID": 1800,
        "ImagePlanePixelSpacing": list(PIXEL), "RTImagePosition": [-175.5, 170.5], "RTImagePlane": "NORMAL",
        "RTImageOrientation": [1, 0, 0, 0, -1, 0], "XRayImageReceptorTranslation": [0, 0, -300],
        "XRayImageReceptorAngle": 0, "PatientSupportAngle": 0, "RTImageLabel": "front",
    }  # fmt: skip
    lookup = Dataset()
    lookup.LUTDescriptor, lookup.ModalityLUTType = [256, 0, 16], "US"
    lookup.add_new("LUTData", "OW", (np.arange(256) * 200).astype("<u2").tobytes())
    xa = _flat("XA", 1500 * A, L, **arm)
    logarithm = _flat("XA", 1500 * A, L, **arm, ModalityLUTSequence=[lookup])
    logarithm.PixelIntensityRelationship = "LOG"
    shown = np.frombuffer(logarithm.PixelData, "<u2") / 65535 * 255
    logarithm.PixelData, logarithm.BitsStored, logarithm.HighBit = shown.astype("<u2").tobytes(), 8, 7
    found = {
        "dx-ap": _wall("DX", 1500 * A, L, "AP", "L", **detector),
        "dx-pa": _wall("DX", 1500 * P, L, "PA", "L"),
        "dx-ll": _wall("DX", 1500 * R, A, "LL", "A"),
        "dx-rl": _wall("DX", 1500 * L, P, "RL", "P"),
        "cr": _wall("CR", 1500 * P, L, "PA", "L", PlateID="7"),
        "rf": _wall("RF", 1500 * A, L, "AP", "L", ColumnAngulation=0),
        "xa": xa,
        "xa-lut": logarithm,
        "rtimage": _flat("RTIMAGE", 1500 * A, L, **linac),
    }
    contents = {name: to_bytes(dataset) for name, dataset in found.items()}
    packed = pydicom.dcmread(BytesIO(contents["dx-ll"]))
    packed.compress(RLELossless, generate_instance_uid=False)
    contents["dx-rle"] = _written(packed)
    contents.update(_compressed(contents["dx-ap"]))
    return contents


def _written(dataset: Dataset) -> bytes:
    stream = BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def _compressed(content: bytes) -> dict[str, bytes]:
    """The same picture as JPEG 2000, where the encoder is there."""
    dataset = pydicom.dcmread(BytesIO(content))
    try:
        dataset.compress("1.2.840.10008.1.2.4.90", generate_instance_uid=False)
    except (RuntimeError, ImportError, NotImplementedError):
        return {}
    return {"dx-jpeg2000": _written(dataset)}
