"""Radiographs as DICOM files, made on the spot for tests of what is derived from them and of the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.8.498.77"
DX_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
MODEL = {"name": "inr_recon", "sha256": "0123456789abcdef" * 4, "version": "0.1.0"}


def dx(number: int = 1, **tags: Any) -> Dataset:
    """A digital radiograph FOR PROCESSING of study 1; a tag of None is left out."""
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100", "ImageType": ["ORIGINAL", "PRIMARY", ""], "SOPClassUID": DX_PROCESSING,
        "SOPInstanceUID": f"{ROOT}.1.{number}", "StudyDate": "20260102", "StudyTime": "101500",
        "AccessionNumber": "A17", "Modality": "DX", "PresentationIntentType": "FOR PROCESSING", "Manufacturer": "Maker",
        "ReferringPhysicianName": "House^Gregory", "StudyDescription": "Thorax in two planes",
        "PatientName": "Doe^Jane", "PatientID": "4711", "IssuerOfPatientID": "HOSPITAL",
        "PatientBirthDate": "19600229", "PatientSex": "F",
        "BodyPartExamined": "CHEST", "ViewPosition": "PA" if number == 1 else "LL", "StudyInstanceUID": f"{ROOT}.1",
        "SeriesInstanceUID": f"{ROOT}.1.0.{number}", "StudyID": "S1", "SeriesNumber": number, "InstanceNumber": 1,
        "PatientOrientation": ["L", "F"] if number == 1 else ["A", "F"], "ImageLaterality": "U", "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "Rows": 40, "Columns": 30, "BitsAllocated": 16, "BitsStored": 14,
        "HighBit": 13, "PixelRepresentation": 0, "PixelIntensityRelationship": "LIN",
        "PixelIntensityRelationshipSign": 1,
        "RescaleIntercept": 0, "RescaleSlope": 1, "RescaleType": "US", "ImagerPixelSpacing": [0.2, 0.2],
        "DetectorType": "DIRECT", "BurnedInAnnotation": "NO", "LossyImageCompression": "00",
        "DistanceSourceToDetector": 1800, "DistanceSourceToPatient": 1600, "KVP": 120, "AcquisitionContextSequence": [],
    }  # fmt: skip
    values |= tags
    dataset = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    pixels = np.random.default_rng(number).integers(0, 2**14, (40, 30)).astype("<u2")
    dataset.add_new("PixelData", "OW", pixels.tobytes())
    return dataset


def save(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a dataset as a DICOM file."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def header(path: Path) -> Dataset:
    """What the reader hands over: the header without pixels."""
    return pydicom.dcmread(path, stop_before_pixels=True)
