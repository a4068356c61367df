"""Tiny chests as arrays, NIfTI, DICOM series and RTSTRUCT, made on the spot for tests of data preparation."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian

SPACING = 5.0
SHAPE = (80, 64, 48)
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
ROOT = "1.2.826.0.1.3680043.8.498"


def affine(spacing: float = SPACING) -> npt.NDArray[np.float64]:
    """RAS+ affine with the volume around the origin."""
    result = np.diag([spacing, spacing, spacing, 1.0])
    result[:3, 3] = [-0.5 * spacing * (n - 1) for n in SHAPE]
    return result


def chest(couch: bool = True, noise: float = 8.0, seed: int = 0, width_mm: float = 150.0) -> npt.NDArray[np.int16]:
    """(80, 64, 48) HU at 5 mm, RAS+: body, two lungs (the left one smaller), spine, a heart on the left, a couch."""
    grid = np.indices(SHAPE, dtype=np.float32)
    x, y, z = (SPACING * (g - 0.5 * (n - 1)) for g, n in zip(grid, SHAPE, strict=True))

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> npt.NDArray[np.bool_]:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1

    volume = np.full(SHAPE, -1000.0, dtype=np.float32)
    volume[ellipse(0, 10, width_mm, 100)] = 20.0
    volume[ellipse(65, 10, 50, 65) & (np.abs(z) < 90)] = -850.0
    volume[ellipse(-65, 10, 45, 60) & (np.abs(z) < 90)] = -850.0
    volume[ellipse(-25, 45, 30, 25) & (np.abs(z) < 50)] = 45.0
    volume[ellipse(0, -60, 18, 18)] = 400.0
    if couch:
        volume[(y < -110) & (y > -117) & (np.abs(x) < 180)] = -50.0
        volume[(y < -130) & (y > -137) & (np.abs(x) < 180)] = 100.0
    volume += np.random.default_rng(seed).normal(0, noise, SHAPE).astype(np.float32)
    return np.clip(np.rint(volume), -1024, 3000).astype(np.int16)


def write_nifti(path: Path, volume: npt.NDArray[Any], matrix: npt.NDArray[np.float64] | None = None) -> Path:
    """A NIfTI file with scanner coordinates."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume, affine() if matrix is None else matrix)
    image.set_sform(image.affine, 1)
    nib.save(image, path)
    return path


def save(dataset: Dataset, path: Path, sop_class: str, sop_uid: str) -> None:
    """Write a dataset as a DICOM file, with pydicom 2 and 3 alike."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = sop_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, sop_uid
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        pydicom.dcmwrite(str(path), dataset, write_like_original=False)


def slice_dataset(
    pixels: npt.NDArray[np.int16], position: Sequence[float], series: str, number: int, **tags: Any
) -> Dataset:
    """One CT image; ``pixels`` are HU (rows, columns), ``position`` LPS mm; a tag of None is left out."""
    dataset = Dataset()
    values: dict[str, Any] = {
        "Modality": "CT", "PatientID": "P1", "PatientName": "One", "PatientBirthDate": "", "PatientSex": "F",
        "StudyInstanceUID": f"{ROOT}.1", "SeriesInstanceUID": f"{ROOT}.{series}", "FrameOfReferenceUID": f"{ROOT}.9",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "InstanceNumber": number,
        "ImagePositionPatient": [float(p) for p in position], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [SPACING, SPACING], "SliceThickness": SPACING, "Rows": pixels.shape[0],
        "Columns": pixels.shape[1], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0,
        "RescaleIntercept": -1024, "RescaleSlope": 1,
    }  # fmt: skip
    values.update(tags)
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = (pixels.astype(np.int32) + 1024).astype(np.uint16).tobytes()
    return dataset


def write_series(
    folder: Path, volume: npt.NDArray[np.int16], series: str = "11", skip: Sequence[int] = (), **tags: Any
) -> list[Path]:
    """A CT series of an RAS+ volume around the origin, in files whose names do not follow the slices' order."""
    paths = []
    low = affine()[:3, 3]
    # RAS+ x = -(LPS x): the first column is the array's last x, the first row its last y.
    corner = [-(low[axis] + SPACING * (volume.shape[axis] - 1)) for axis in (0, 1)]
    for k in range(volume.shape[2]):
        if k in skip:
            continue
        pixels = volume[::-1, ::-1, k].T
        dataset = slice_dataset(pixels, (*corner, low[2] + SPACING * k), series, k + 1, **tags)
        path = folder / f"{(k * 29) % 97:02d}-{series}.dcm"
        save(dataset, path, CT_CLASS, f"{ROOT}.{series}.{k + 1}")
        paths.append(path)
    return paths


def write_rtstruct(
    path: Path, rois: dict[str, list[npt.NDArray[np.float64]]], series: str = "11", patient: str = "P1"
) -> None:
    """An RTSTRUCT whose ROIs are closed contours given in RAS+ mm."""
    dataset = Dataset()
    dataset.Modality, dataset.PatientID, dataset.StudyInstanceUID = "RTSTRUCT", patient, f"{ROOT}.1"
    dataset.SeriesInstanceUID = f"{ROOT}.77"
    referenced, study, frame = Dataset(), Dataset(), Dataset()
    referenced.SeriesInstanceUID = f"{ROOT}.{series}"
    study.RTReferencedSeriesSequence = DicomSequence([referenced])
    frame.FrameOfReferenceUID = f"{ROOT}.9"
    frame.RTReferencedStudySequence = DicomSequence([study])
    dataset.ReferencedFrameOfReferenceSequence = DicomSequence([frame])
    names, contours = [], []
    for number, (name, polygons) in enumerate(rois.items(), start=5):
        roi, contour = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        contour.ReferencedROINumber = number
        items = []
        for points in polygons:
            item = Dataset()
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.NumberOfContourPoints = len(points)
            item.ContourData = [f"{v:.4f}" for v in (points * [-1, -1, 1]).ravel()]
            items.append(item)
        contour.ContourSequence = DicomSequence(items)
        names.append(roi)
        contours.append(contour)
    dataset.StructureSetROISequence = DicomSequence(names)
    dataset.ROIContourSequence = DicomSequence(contours)
    save(dataset, path, RTSTRUCT_CLASS, f"{ROOT}.77.1")


def circle(radius_mm: float, z_mm: float, centre: tuple[float, float] = (0.0, 0.0)) -> npt.NDArray[np.float64]:
    """A closed contour in RAS+ mm."""
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    x, y = centre[0] + radius_mm * np.cos(angle), centre[1] + radius_mm * np.sin(angle)
    return np.column_stack([x, y, np.full(90, z_mm)])
