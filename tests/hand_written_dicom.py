"""DICOM headers written by hand after the text of PS3.3, and pictures of a phantom that a room's own geometry gives.

Nothing here uses the package: directions are written down in the patient's letters, as Patient Orientation names them,
or in the axes of IEC 61217, and line integrals of ellipsoids are exact.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CLASSES = {
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1.1",
    "DX presentation": "1.2.840.10008.5.1.4.1.1.1.1",
    "XA": "1.2.840.10008.5.1.4.1.1.12.1",
    "RF": "1.2.840.10008.5.1.4.1.1.12.2",
    "RTIMAGE": "1.2.840.10008.5.1.4.1.1.481.1",
}
#: Directions in RAS+.
R, L = np.array([1.0, 0, 0]), np.array([-1.0, 0, 0])
A, P = np.array([0, 1.0, 0]), np.array([0, -1.0, 0])
H, F = np.array([0, 0, 1.0]), np.array([0, 0, -1.0])

#: A heart: left of the midline, in front, above the middle [mm, RAS+], and its radius.
HEART, HEART_RADIUS = np.array([-50.0, 40.0, 30.0]), 8.0
#: centre, semi-axes, attenuation [1/mm]: a body without symmetry, and the heart.
ELLIPSOIDS = (
    (np.array([0.0, 0.0, 0.0]), np.array([110.0, 80.0, 120.0]), 0.008),
    (np.array([40.0, -30.0, -40.0]), np.array([30.0, 20.0, 30.0]), 0.01),
    (HEART, np.full(3, HEART_RADIUS), 0.25),
)


def integrals(source: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Exact line integrals from the source through detector points (..., 3)."""
    direction = points - source
    direction = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    total = np.zeros(points.shape[:-1])
    for center, axes, attenuation in ELLIPSOIDS:
        o, d = (source - center) / axes, direction / axes
        a, b, c = (d * d).sum(-1), (d @ o if o.ndim == 1 else (d * o).sum(-1)), (o @ o) - 1
        root = np.clip(b * b - a * c, 0, None)
        total += attenuation * 2 * np.sqrt(root) / a
    return total


def picture(
    source: np.ndarray,
    middle: np.ndarray,
    along_columns: np.ndarray,
    along_rows: np.ndarray,
    pixel: tuple[float, float] = (4.0, 3.0),
    shape: tuple[int, int] = (96, 120),
) -> np.ndarray:
    """Line integrals of a picture as stored: from one column (row) to the next it goes along the named direction."""
    rows = (np.arange(shape[0]) - (shape[0] - 1) / 2) * pixel[0]
    columns = (np.arange(shape[1]) - (shape[1] - 1) / 2) * pixel[1]
    return integrals(source, middle + rows[:, None, None] * along_rows + columns[:, None] * along_columns)


def base(kind: str, stored: np.ndarray, **attributes: Any) -> Dataset:
    """The least that every image has, then what the test writes; a value of None is an empty (type 2) attribute."""
    dataset = Dataset()
    dataset.SOPClassUID = CLASSES[kind]
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[kind, stored.tobytes().hex()[:4000], repr(attributes)])
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    dataset.Modality = kind.split()[0]
    dataset.PatientID, dataset.PatientName, dataset.StudyDate = "P1", "Hand^Written", "20260102"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LIN", 1
    if kind.startswith("DX"):
        dataset.PresentationIntentType = "FOR PRESENTATION" if "presentation" in kind else "FOR PROCESSING"
    dataset.PixelData = np.ascontiguousarray(stored.astype("<u2")).tobytes()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def intensity(line_integrals: np.ndarray, air: float = 50000.0) -> np.ndarray:
    """Linear detector values of a clean beam."""
    return np.rint(air * np.exp(-line_integrals))


def to_bytes(dataset: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def save(path: Path, dataset: Dataset) -> Path:
    path.write_bytes(to_bytes(dataset))
    return path


def without(dataset: Dataset, *keywords: str) -> Dataset:
    for keyword in keywords:
        delattr(dataset, keyword)
    return dataset


def dx(stored_directions: str = "L\\F", position: str = "AP", **attributes: Any) -> Dataset:
    """A DX image of the phantom: source 1800 mm from the detector, 1500 mm from the middle of the patient."""
    toward_source = {"AP": A, "PA": P, "LL": R, "RL": L}[position]
    names = dict(zip("RLAPHF", (R, L, A, P, H, F), strict=True))
    columns, rows = (names[letter] for letter in stored_directions.split("\\"))
    values = intensity(picture(1500 * toward_source, -300 * toward_source, columns, rows))
    written = {
        "PatientOrientation": stored_directions.split("\\"),
        "ViewPosition": position,
        "DistanceSourceToDetector": 1800,
        "DistanceSourceToPatient": 1500,
        "EstimatedRadiographicMagnificationFactor": 1.2,
        "ImagerPixelSpacing": [4, 3],
    }
    return base("DX", values, **{**written, **attributes})


def stored_dx(stored: np.ndarray, **attributes: Any) -> Dataset:
    """A DX image with these stored values."""
    return dx(PixelData=np.ascontiguousarray(stored).astype("<u2").tobytes(), **attributes)
