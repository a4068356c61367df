"""The DICOM CT series that a plan belongs to: whose it is, its slices and its frame of reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from custom.core.limits import check_count
from custom.dicom.opener import open_dicom
from custom.dicom.strict import dicom_files, is_uid

__all__ = ["CTReference", "first_header", "has_ct_series", "read_ct_reference"]

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
MOST_SLICES = 4000
_TAGS = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "IssuerOfPatientID",
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID", "StudyDescription",
    "PatientPosition", "ImageOrientationPatient", "ImagePositionPatient", "PatientIdentityRemoved",
    "DeidentificationMethod", "DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified",
)  # fmt: skip


@dataclass(frozen=True)
class CTReference:
    """A CT series of axial slices of a patient who lies supine, head first.

    Attributes:
        headers: of the slices, from feet to head, without pixels.
        frame_of_reference_uid: (0020,0052).
    """

    headers: Sequence[Dataset]
    frame_of_reference_uid: str

    @property
    def heights_mm(self) -> list[float]:
        """z of the slices, rising."""
        return [float(one.ImagePositionPatient[2]) for one in self.headers]


def has_ct_series(folder: Path) -> bool:
    """Whether any DICOM file of a folder is a CT slice."""
    return first_header(folder) is not None


def first_header(folder: Path) -> Dataset | None:
    """Of the first CT slice among a folder's files, without pixels; None where there is none."""
    if not folder.is_dir():
        return None
    try:
        headers = (open_dicom(path, False, _TAGS) for path in dicom_files(folder))
        return next((one for one in headers if _is_ct(one)), None)
    except ValueError:
        return None


def _is_ct(header: Dataset) -> bool:
    return str(header.get("SOPClassUID", "")) == CT_CLASS


def read_ct_reference(folder: Path) -> CTReference:
    """The one CT series below a folder.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no series or several, or slices that are not axial, of another position than head first and
            supine (the plan's angles would mean something else), or without the UIDs that a reference needs.
    """
    headers = [one for one in (open_dicom(path, False, _TAGS) for path in dicom_files(folder)) if _is_ct(one)]
    check_count(folder, "CT slices", len(headers), MOST_SLICES)
    series = {str(one.get("SeriesInstanceUID", "")) for one in headers}
    if len(series) != 1:
        raise ValueError(f"{folder}: holds {len(series) or 'no'} CT series; a plan belongs to one")
    frames = set()
    for one in headers:
        name = Path(str(one.filename or folder)).name
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            if not is_uid(str(one.get(keyword, ""))):
                raise ValueError(f"{name}: no valid {keyword}: a plan cannot refer to this slice")
        frames.add(str(one.FrameOfReferenceUID))
        position = str(one.get("PatientPosition") or "HFS")
        if position != "HFS":
            raise ValueError(
                f"{name}: Patient Position is {position}; plans are written for HFS (head first, supine) alone"
            )
        _check_place(one, name)
    if len(frames) != 1:
        raise ValueError(f"{folder}: its slices have {len(frames)} frames of reference; a plan belongs to one")
    return CTReference(sorted(headers, key=lambda one: float(one.ImagePositionPatient[2])), frames.pop())


def _check_place(header: Dataset, name: str) -> None:
    try:
        turned = [float(v) for v in header.ImageOrientationPatient]
        place = [float(v) for v in header.ImagePositionPatient]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: no readable Image Orientation and Position (Patient)") from error
    axial = len(turned) == 6 and np.allclose(turned, [1, 0, 0, 0, 1, 0], atol=1e-3)
    if not axial or len(place) != 3 or not np.isfinite(place).all():
        raise ValueError(f"{name}: Image Orientation (Patient) is {turned}; plans are written for axial slices alone")
