"""Validation of DICOM data against the standard before they are written."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from custom.dicom.opener import looks_like_dicom, reason

__all__ = ["dicom_files", "encode", "file_bytes", "is_uid", "new_uid", "set_value", "strict_validation", "tag_text"]

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_BINARY = ("OB", "OW", "OF", "OD", "OL", "OV", "UN")


@contextlib.contextmanager
def strict_validation() -> Iterator[None]:
    """Values that break the standard raise instead of being written; pydicom's settings are restored afterwards.

    Without it pydicom 2 and 3 only warn, and write an 80-character Patient ID. The settings are pydicom's own and hold
    for the whole process while the context is open.
    """
    settings = pydicom.config.settings
    reading, writing = settings._reading_validation_mode, settings._writing_validation_mode
    settings.reading_validation_mode = settings.writing_validation_mode = pydicom.config.RAISE
    try:
        yield
    finally:
        settings._reading_validation_mode, settings._writing_validation_mode = reading, writing


def tag_text(keyword: str) -> str:
    """An attribute as people look it up: "PatientID (0010,0020)"."""
    tag = tag_for_keyword(keyword)
    return keyword if tag is None else f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def set_value(dataset: Dataset, keyword: str, value: Any, origin: str) -> None:
    """Set an attribute, checked against its value representation.

    Args:
        dataset: changed in place.
        keyword: DICOM keyword.
        value: what pydicom takes for it.
        origin: where the value comes from, for the message.

    Raises:
        ValueError: the value breaks the standard (too long, a date that is none, ...).
    """
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    try:
        dataset[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=pydicom.config.RAISE)
    except (ValueError, TypeError, OverflowError, LookupError) as error:
        raise ValueError(f"{origin}: {tag_text(keyword)} is not valid DICOM ({reason(error)}); correct it") from error


def new_uid(role: str, seed: str | None) -> UID:
    """A UID of the root 2.25 (PS3.5 B.2): a function of seed and role, or a new random one where the seed is None."""
    if seed is None:
        number = uuid.uuid4().int
    else:
        number = uuid.UUID(bytes=hashlib.sha256(f"{seed}\n{role}".encode()).digest()[:16], version=4).int
    return UID(f"2.25.{number}")


def _check_values(dataset: Dataset) -> None:
    """Raise ValueError for a value that got into the dataset unchecked: pydicom does not look again when it writes."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _check_values(item)
        elif element.VR not in _BINARY:
            try:
                DataElement(element.tag, element.VR, element.value, validation_mode=pydicom.config.RAISE)
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"{tag_text(element.keyword)} is not valid DICOM ({reason(error)})") from error


def is_uid(text: str) -> bool:
    """Whether the text is a UID (PS3.5 chapter 9): digits and dots, at most 64. Nothing else becomes a file name."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def encode(dataset: Dataset) -> bytes:
    """A dataset as the bytes of a DICOM file, explicit VR little endian, with pydicom 2 and 3 alike.

    Args:
        dataset: with SOP Class UID (0008,0016) and SOP Instance UID (0008,0018).

    Raises:
        ValueError: a value breaks the standard, or its text does not fit the character set of the dataset.
    """
    class_uid, instance_uid = dataset.SOPClassUID, dataset.SOPInstanceUID
    try:
        with strict_validation():
            _check_values(dataset)
            return file_bytes(dataset, class_uid, instance_uid)
    except (UnicodeError, LookupError, OverflowError, TypeError, AttributeError, struct.error) as error:
        charset = dataset.get("SpecificCharacterSet", "ISO_IR 6")
        raise ValueError(f"cannot be written as DICOM with character set {charset}: {reason(error)}") from error


def file_bytes(dataset: Dataset, class_uid: str, instance_uid: str) -> bytes:
    """`encode` of a dataset that may break the standard and lack both UIDs."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(class_uid), UID(instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    if not getattr(dataset, "preamble", None):
        dataset.preamble = b"\0" * 128
    target = io.BytesIO()
    if int(pydicom.__version__.split(".")[0]) >= 3:
        pydicom.dcmwrite(target, dataset, enforce_file_format=True)
    else:
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        pydicom.dcmwrite(target, dataset, write_like_original=False)
    return target.getvalue()


def dicom_files(source: Path) -> list[Path]:
    """The DICOM files at a path: the file itself, or every file below a folder that `looks_like_dicom`.

    Hidden files and folders (what a killed run left) are passed over, sorted by path.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: no DICOM file among what is there.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    if source.is_file():
        candidates = [source]
    else:
        below = (p for p in source.rglob("*") if p.is_file())
        candidates = sorted(p for p in below if not any(x.startswith(".") for x in p.relative_to(source).parts))
    found = [path for path in candidates if looks_like_dicom(path)]
    if not found:
        raise ValueError(f"{source} holds no DICOM file (none of its files begins as one)")
    return found
