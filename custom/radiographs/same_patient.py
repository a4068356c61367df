"""Comparison of the patients in radiographs' headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from custom.dicom.header import tag, text
from custom.dicom.identity import Difference, differences, patient_of
from custom.radiographs.acquisition_metadata import MetadataValue, MissingField, Origin
from custom.radiographs.radiograph import Radiograph

__all__ = ["check_patient"]

_OPTION = "several-patients"


def check_patient(
    radiographs: Sequence[Radiograph], accept: frozenset[str]
) -> tuple[list[Radiograph], tuple[MissingField, ...]]:
    """Different patients are a question; different study dates, and files that do not say whose they are, a warning.

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
            questions.append(MissingField(problem, advice=advice, file=radiographs[index].name))
            continue
        allowed = MetadataValue("patient", f"that of {name}", Origin.OPTION, _OPTION)
        known = replace(radiographs[index].metadata, patient=allowed)
        warning = f"{radiographs[index].name}: another patient than in {name}: {_said(one, name)}"
        checked[index] = replace(checked[index], metadata=known).with_warnings(warning)
    dates = [(k, day) for k, header in zip(dicom, headers, strict=True) if (day := text(header, "StudyDate"))]
    for index, day in dates:
        if day != dates[0][1]:
            said = f"taken on another day than {radiographs[dates[0][0]].name} by StudyDate {tag('StudyDate')}"
            checked[index] = checked[index].with_warnings(f"{radiographs[index].name}: {said}")
    for index, sentence in _unidentified(radiographs).items():
        checked[index] = checked[index].with_warnings(sentence)
    return checked, tuple(questions)


def _said(one: Difference, name: str) -> str:
    if one.keyword:
        return f"{one.keyword} {tag(one.keyword)} differs from {name}"
    both = f"Patient's Name {tag('PatientName')} and Patient ID {tag('PatientID')}"
    return f"of {both} it has only one, and {name} only the other"


def _unidentified(radiographs: Sequence[Radiograph]) -> dict[int, str]:
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
