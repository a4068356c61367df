"""Comparison of the patients in radiographs' headers, and of the days of their studies."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import pydicom

from custom.dicom.header import tag, text
from custom.dicom.identity import Difference, differences, patient_of
from custom.radiographs.acquisition_metadata import MissingField

__all__ = ["check_patient"]

_OPTION, _DATES_OPTION = "several-patients", "study-dates-apart"
_DATES = ("StudyDate", "AcquisitionDate", "ContentDate", "SeriesDate")
#: Studies that are further apart are asked about: in a week a body changes little.
_MOST_DAYS = 7


class _File(Protocol):
    """A `Radiograph`, or one of which something has to be asked first."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def header(self) -> pydicom.Dataset | None: ...
    def with_warnings(self: F, *sentences: str) -> F: ...
    def with_allowed(self: F, key: str, value: str, option: str, warning: str) -> F: ...


F = TypeVar("F", bound=_File)


def check_patient(radiographs: Sequence[F], accept: frozenset[str]) -> tuple[list[F], tuple[MissingField, ...]]:
    """Different patients, and studies more than a week apart, are questions.

    Studies of different days of a week, and files that do not say whose they are, are warnings.

    Returns:
        The radiographs with those warnings and what an option allowed, and the questions.
    """
    checked, questions = list(radiographs), []
    dicom = [k for k, radiograph in enumerate(radiographs) if radiograph.header is not None]
    headers = [header for radiograph in radiographs if (header := radiograph.header) is not None]
    for one in differences([patient_of(header) for header in headers]):
        index, name = dicom[one.index], radiographs[dicom[one.other]].name
        problem = f"whose it is: {_said(one, name)}"
        if _OPTION not in accept:
            advice = f"leave one out, or give --accept {_OPTION} if they are one person"
            questions.append(MissingField(problem, (), "", (_OPTION,), advice, radiographs[index].name))
            continue
        warning = f"another patient than in {name}: {_said(one, name)}"
        checked[index] = checked[index].with_allowed("patient", f"that of {name}", _OPTION, warning)
    checked, apart = _check_dates(checked, dicom, accept)
    for index, sentence in _unidentified(radiographs).items():
        checked[index] = checked[index].with_warnings(sentence)
    return checked, (*questions, *apart)


def _check_dates(
    radiographs: Sequence[F], dicom: Sequence[int], accept: frozenset[str]
) -> tuple[list[F], list[MissingField]]:
    """The same for the days of the studies, each against the first that has one; `dicom` has a header."""
    checked, questions = list(radiographs), []
    dates = [(k, *found) for k in dicom if (header := checked[k].header) and (found := _day(header))]
    for index, keyword, day in dates:
        (other, known_by, first), name = dates[0], checked[index].name
        if day == first:
            continue
        both = f"{_readable(day)}, and {checked[other].name} on {_readable(first)}, by {keyword} {tag(keyword)}"
        both += "" if known_by == keyword else f" and {known_by} {tag(known_by)}"
        if (days := _days_apart(day, first)) is None or days <= _MOST_DAYS:
            checked[index] = checked[index].with_warnings(f"{name}: taken on another day: on {both}")
            continue
        problem = f"whether the body is still the same: it was taken on {both}, {days} days apart"
        if _DATES_OPTION not in accept:
            advice = f"give radiographs of one day, or --accept {_DATES_OPTION} if nothing changed or a date is wrong"
            questions.append(MissingField(problem, (), "", (_DATES_OPTION,), advice, name))
            continue
        apart = f"{days} days from {checked[other].name}"
        warning = f"taken on {both}, {days} days apart"
        checked[index] = checked[index].with_allowed("study_date", apart, _DATES_OPTION, warning)
    return checked, questions


def _day(header: pydicom.Dataset) -> tuple[str, str] | None:
    """The attribute that says when a radiograph was taken, and what it says: the first that does."""
    return next(((keyword, day) for keyword in _DATES if (day := text(header, keyword))), None)


def _date(day: str) -> datetime.date | None:
    """A DICOM date (PS3.5 6.2): YYYYMMDD, in old files with dots between."""
    try:
        return datetime.datetime.strptime(day.replace(".", ""), "%Y%m%d").date()
    except ValueError:
        return None


def _readable(day: str) -> str:
    return str(_date(day) or repr(day[:20]))


def _days_apart(day: str, other: str) -> int | None:
    one, two = _date(day), _date(other)
    return None if one is None or two is None else abs((one - two).days)


def _said(one: Difference, name: str) -> str:
    if one.keyword:
        return f"{one.keyword} {tag(one.keyword)} differs from {name}"
    both = f"Patient's Name {tag('PatientName')} and Patient ID {tag('PatientID')}"
    return f"of {both} it has only one, and {name} only the other"


def _unidentified(radiographs: Sequence[_File]) -> dict[int, str]:
    """What to say, and of which radiograph, where nothing in the files says that they are of one patient."""
    dicom = [k for k, r in enumerate(radiographs) if r.header is not None]
    pictures = [k for k, r in enumerate(radiographs) if r.header is None]
    nameless = [
        r.name
        for r in radiographs
        if r.header is not None and not any(text(r.header, key).strip("^ ") for key in ("PatientName", "PatientID"))
    ]
    found = {}
    if nameless and len(dicom) > 1:
        found[dicom[0]] = (
            f"{', '.join(nameless)}: neither Patient's Name (0010,0010) nor Patient ID (0010,0020); nothing says that "
            "the radiographs are of one patient"
        )
    if dicom and pictures:
        names = ", ".join(dict.fromkeys(radiographs[k].path.name for k in pictures))
        found[pictures[0]] = (
            f"{names}: nothing says that this is of the same patient as {radiographs[dicom[0]].name}, whose name and "
            "study the result gets"
        )
    return found
