"""Patient and study of derived objects: those of the radiographs, or new ones where there are none."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from custom.dicom.header import reason
from custom.dicom.identity import PATIENT_ATTRIBUTES, differences
from custom.dicom.strict import encode, new_uid, set_value, tag_text

__all__ = ["PATIENT_KEYS", "code", "common_text", "references", "source_name", "subject"]

logger = logging.getLogger(__name__)

#: Attributes that a caller may give where no DICOM file does.
PATIENT_KEYS = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")

_IDENTITY = (*PATIENT_ATTRIBUTES, "StudyInstanceUID")
_TYPE_2 = (*PATIENT_KEYS, "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID")
_TYPE_3 = ("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription")
_DEIDENTIFICATION = (
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
)


def source_name(header: Dataset, index: int) -> str:
    """The file's name where pydicom knows it, else "radiograph 1"."""
    name = getattr(header, "filename", None)
    return Path(name).name if isinstance(name, str | Path) and str(name) else f"radiograph {index + 1}"


def _value(header: Dataset, keyword: str, name: str) -> Any:
    """An attribute as pydicom decodes it, None where it is absent; what cannot be decoded is a ValueError."""
    try:
        return header.get(keyword)
    except Exception as error:  # pydicom lets through whatever a damaged element provokes
        raise ValueError(f"{name}: {tag_text(keyword)} cannot be read ({reason(error)}); correct it") from error


def _text(header: Dataset, keyword: str, name: str) -> str:
    """An attribute of one value as decoded text, "" where it is absent or empty."""
    value = _value(header, keyword, name)
    if isinstance(value, MultiValue | list | tuple):
        raise ValueError(f"{name}: {tag_text(keyword)} has {len(value)} values, it must have one; correct it")
    return "" if value is None else str(value).strip(" \0")


def common_text(sources: Sequence[Dataset], keyword: str) -> str:
    """The value on which the radiographs that have one agree, "" where none has one, they differ or one is damaged."""
    found = {_text_or_nothing(h, keyword, source_name(h, i)) for i, h in enumerate(sources)} - {""}
    return found.pop() if len(found) == 1 else ""


def _text_or_nothing(header: Dataset, keyword: str, name: str) -> str:
    """`_text` of an attribute that does not say who the patient is: "" and a warning where it breaks the standard."""
    try:
        return _text(header, keyword, name)
    except ValueError as error:
        logger.warning("%s; left out of what is derived from it", error)
        return ""


def _check_one_subject(sources: Sequence[Dataset]) -> None:
    """Raise ValueError where the radiographs belong to several patients or studies, or do not say to which study."""
    names = [source_name(header, index) for index, header in enumerate(sources)]
    read = [{k: _text(h, k, name) for k in _IDENTITY} for h, name in zip(sources, names, strict=True)]
    for one in differences(read):
        a, b = ((names[k], read[k]) for k in (one.other, one.index))
        told = f"{tag_text('PatientName')} alone is in one of {a[0]} and {b[0]}, {tag_text('PatientID')} in the other"
        if one.keyword:
            values = f"{a[1][one.keyword]!r} in {a[0]} and {b[1][one.keyword]!r} in {b[0]}"
            told = f"{tag_text(one.keyword)} is {values}"
        raise ValueError(f"the radiographs are of several patients: {told}; give radiographs of one patient only")
    studies = [values["StudyInstanceUID"] for values in read]
    for name, study in zip(names, studies, strict=True):
        if not study:
            raise ValueError(
                f"{name} has no {tag_text('StudyInstanceUID')}: the study that the CT belongs to is unknown"
            )
        if study != studies[0]:
            raise ValueError(
                f"the radiographs are of several studies: {tag_text('StudyInstanceUID')} is {studies[0]!r} in "
                f"{names[0]} and {study!r} in {name}; give radiographs of one study only"
            )


def _character_set(sources: Sequence[Dataset]) -> list[str] | None:
    """Specific Character Set (0008,0005) of the radiographs; Unicode where they differ; None where none has one."""
    found: list[list[str]] = []
    for index, header in enumerate(sources):
        value = _value(header, "SpecificCharacterSet", source_name(header, index))
        values = [str(v) for v in value] if isinstance(value, MultiValue | list | tuple) else [str(value or "")]
        if values not in found:
            found.append(values)
    if found == [[""]]:
        return None
    return found[0] if len(found) == 1 else ["ISO_IR 192"]


def _copy_deidentification(sources: Sequence[Dataset], target: Dataset) -> None:
    """Patient Identity Removed (0012,0062) and its method, only where every radiograph says so."""
    if any(_text(h, "PatientIdentityRemoved", source_name(h, i)) != "YES" for i, h in enumerate(sources)):
        return
    name = source_name(sources[0], 0)
    set_value(target, "PatientIdentityRemoved", "YES", name)
    for keyword in _DEIDENTIFICATION:
        value = _value(sources[0], keyword, name)
        if value not in (None, ""):
            set_value(target, keyword, value, name)


def _copy_lossy(sources: Sequence[Dataset], target: Dataset) -> None:
    """Lossy Image Compression (0028,2110) is never taken back: 01 where any radiograph was compressed so."""
    names = [source_name(header, index) for index, header in enumerate(sources)]
    lossy = [(h, n) for h, n in zip(sources, names, strict=True) if _text(h, "LossyImageCompression", n) == "01"]
    target.LossyImageCompression = "01" if lossy else "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        for header, name in lossy:
            value = _value(header, keyword, name)
            if value not in (None, ""):
                set_value(target, keyword, value, name)
                break


def references(sources: Sequence[Dataset]) -> tuple[list[Dataset], list[Dataset]]:
    """Items of Source Image Sequence (0008,2112) and of Referenced Series Sequence (0008,1115).

    Raises:
        ValueError: a radiograph without SOP Class, SOP Instance or Series Instance UID.
    """
    images: list[Dataset] = []
    series: dict[str, list[Dataset]] = {}
    for index, header in enumerate(sources):
        name = source_name(header, index)
        uids = {k: _text(header, k, name) for k in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")}
        missing = [tag_text(k) for k, value in uids.items() if not value]
        if missing:
            raise ValueError(f"{name} has no {' and no '.join(missing)}: it cannot be named as the source of the CT")
        image, reference = Dataset(), Dataset()
        for item in (image, reference):
            set_value(item, "ReferencedSOPClassUID", uids["SOPClassUID"], name)
            set_value(item, "ReferencedSOPInstanceUID", uids["SOPInstanceUID"], name)
        purpose = code("121322", "DCM", "Source image for image processing operation")
        image.SpatialLocationsPreserved = "NO"
        image.PurposeOfReferenceCodeSequence = [purpose]
        images.append(image)
        series.setdefault(uids["SeriesInstanceUID"], []).append(reference)
    items = []
    for uid, references_of_series in series.items():
        item = Dataset()
        set_value(item, "SeriesInstanceUID", uid, "radiographs")
        item.ReferencedInstanceSequence = references_of_series
        items.append(item)
    return images, items


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """One item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def subject(
    sources: Sequence[Dataset], patient: Mapping[str, str], uid_seed: str | None, now: datetime.datetime
) -> Dataset:
    """Attributes of the Patient, Patient Study and General Study modules (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2).

    Args:
        sources: headers of the radiographs. They must be of one patient and one study; an empty value says nothing.
        patient: `PATIENT_KEYS` to text, for radiographs that are not DICOM; empty where ``sources`` are given.
        uid_seed: makes the new study's UID a function of it.
        now: date and time of a new study.

    Returns:
        A dataset with SpecificCharacterSet (0008,0005), patient, study, de-identification flags where every source
        has them, and LossyImageCompression (0028,2110).

    Raises:
        ValueError: several patients or studies, values that break the standard, or ``patient`` beside ``sources``.
    """
    unknown = sorted(set(patient) - set(PATIENT_KEYS))
    if unknown:
        raise ValueError(f"patient has the unknown key {unknown[0]!r}; there are {', '.join(PATIENT_KEYS)}")
    if sources and patient:
        raise ValueError("the radiographs are DICOM and say who the patient is: give no patient beside them")
    target = Dataset()
    if sources:
        _check_one_subject(sources)
        charset = _character_set(sources)
        if charset is not None:
            set_value(target, "SpecificCharacterSet", charset, source_name(sources[0], 0))
        for keyword in ("StudyInstanceUID", *_TYPE_2, *_TYPE_3):
            name, value = _first(sources, keyword)
            if value or keyword in _TYPE_2:
                _copy(target, keyword, value, name)
        _copy_deidentification(sources, target)
    else:
        set_value(target, "SpecificCharacterSet", "ISO_IR 192", "patient")
        target.StudyInstanceUID = new_uid("study", uid_seed)
        study = {"StudyDate": now.strftime("%Y%m%d"), "StudyTime": now.strftime("%H%M%S")}
        for keyword in _TYPE_2:
            set_value(target, keyword, patient.get(keyword, study.get(keyword, "")), f"patient {keyword}")
        if target.PatientSex not in ("", None, "M", "F", "O"):
            raise ValueError(f"PatientSex is {target.PatientSex!r}: give M, F, O or nothing")
    _copy_lossy(sources, target)
    _check_text(target)
    return target


def _first(sources: Sequence[Dataset], keyword: str) -> tuple[str, str]:
    """Name and value of the first radiograph that has the attribute."""
    read = _text if keyword in _IDENTITY else _text_or_nothing
    for index, header in enumerate(sources):
        value = read(header, keyword, source_name(header, index))
        if value:
            return source_name(header, index), value
    return source_name(sources[0], 0), ""


def _copy(target: Dataset, keyword: str, value: str, name: str) -> None:
    """Copy a value; one that breaks the standard is an error where it says who the patient is, else left empty."""
    if keyword == "PatientSex" and value not in ("", "M", "F", "O"):
        logger.warning("%s: %s is %r, none of M, F, O: left empty", name, tag_text(keyword), value)
        value = ""
    try:
        set_value(target, keyword, value, name)
    except ValueError as error:
        if keyword in _IDENTITY:
            raise
        logger.warning("%s; left out of what is derived from it", error)
        if keyword in _TYPE_2:
            set_value(target, keyword, "", name)


def _check_text(target: Dataset) -> None:
    """Raise ValueError early where the text does not fit the character set, before a hundred slices are made."""
    trial = Dataset()
    trial.update(target)
    trial.SOPClassUID, trial.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "2.25.1"
    encode(trial)
