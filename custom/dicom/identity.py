"""Comparison of patient identities in DICOM objects, by the Patient Module (PS3.3 C.7.1.1).

The one check of it: what refuses a CT series of two patients asks about their radiographs too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

__all__ = ["PATIENT_ATTRIBUTES", "Difference", "count_patients", "differences", "meaning", "patient_of"]

#: Attributes that have to be equal where two objects have them.
PATIENT_ATTRIBUTES = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "IssuerOfPatientID")
#: One of these has to be the same in two objects that say whose they are.
_NAMES = ("PatientName", "PatientID")


@dataclass(frozen=True)
class Difference:
    """An object that is not of the patient of an earlier one.

    Args:
        index: of the object.
        other: index of the earlier one.
        keyword: of the attribute that differs; "" where one has only a name and the other only an ID.
    """

    index: int
    other: int
    keyword: str = ""


def patient_of(dataset: Dataset) -> dict[str, str]:
    """The attributes as text; "" where one is absent, empty, of several values, or cannot be decoded."""
    return {keyword: _text(dataset, keyword) for keyword in PATIENT_ATTRIBUTES}


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
        return "" if value is None or isinstance(value, list | tuple) else str(value).strip(" \0")
    except Exception:  # whatever pydicom lets through of a damaged element
        return ""


def meaning(keyword: str, value: str) -> str:
    """What has to be equal for two values to mean the same: names may be padded and differ in case.

    One letter may be written as one character or as two (a letter and its accent), or in the width of ideographs;
    characters that nobody sees, such as a byte order mark, mean nothing; a date may have dots (before DICOM).
    """
    value = unicodedata.normalize("NFKC" if keyword == "PatientName" else "NFC", value)
    value = " ".join("".join(c for c in value if unicodedata.category(c) != "Cf").split())
    if keyword == "PatientBirthDate":
        return value.replace(".", "")
    if keyword == "PatientName":
        return "=".join(part.rstrip("^ ") for part in value.split("=")).rstrip("=").strip("^ ").casefold()
    return value.casefold() if keyword == "PatientSex" else value


def _same(keyword: str, one: str, other: str) -> bool:
    """Whether two meanings agree; names in the groups of letters (PS3.5 6.2.1) that both have, at least one."""
    if keyword != "PatientName":
        return one == other
    shared = [pair for pair in zip(one.split("="), other.split("="), strict=False) if all(pair)]
    return bool(shared) and all(mine == others for mine, others in shared)


def differences(patients: Sequence[Mapping[str, str]]) -> list[Difference]:
    """What tells that these are not of one patient, at most one difference an object.

    An empty value says nothing, and an object with neither name nor ID is not compared with the others by them.

    Args:
        patients: of every object the attributes of `patient_of`.
    """
    meant = [{key: meaning(key, patient.get(key, "")) for key in PATIENT_ATTRIBUTES} for patient in patients]
    found: list[Difference] = []
    for index, patient in enumerate(meant):
        for key in PATIENT_ATTRIBUTES:
            first = next((k for k in range(index) if meant[k][key]), None)
            if first is not None and patient[key] and not _same(key, patient[key], meant[first][key]):
                found.append(Difference(index, first, key))
                break
    if found:
        return found
    linked: list[int] = []
    waiting = [index for index, patient in enumerate(meant) if any(patient[key] for key in _NAMES)]
    while waiting:
        following = [k for k in waiting if not linked or any(meant[k][n] and _has(meant, linked, n) for n in _NAMES)]
        if not following:
            return [Difference(index, linked[0]) for index in waiting]
        linked.append(following[0])
        waiting.remove(following[0])
    return []


def count_patients(patients: Iterable[Mapping[str, str]]) -> int:
    """How many patients these are, of those that have a name or an ID.

    Args:
        patients: of every object the attributes of `patient_of`.
    """
    found: list[Mapping[str, str]] = []
    for patient in {tuple(sorted(one.items())): one for one in patients}.values():
        if any(patient.get(key) for key in _NAMES) and all(differences([one, patient]) for one in found):
            found.append(patient)
    return len(found)


def _has(patients: Sequence[Mapping[str, str]], indices: Sequence[int], key: str) -> bool:
    return any(patients[index][key] for index in indices)
