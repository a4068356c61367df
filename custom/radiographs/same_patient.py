"""Whether radiographs can be of one patient, by what their headers say."""

from __future__ import annotations

from collections.abc import Sequence

from custom.dicom.header import tag, text
from custom.radiographs.acquisition_metadata import MissingField
from custom.radiographs.radiograph import Radiograph

__all__ = ["check_patient"]

_KEYWORDS = ("PatientID", "PatientBirthDate", "PatientSex", "StudyDate")


def check_patient(
    radiographs: Sequence[Radiograph], accept: frozenset[str]
) -> tuple[list[Radiograph], tuple[MissingField, ...]]:
    """Different patients are a question; different study dates, and files that do not say whose they are, a warning.

    Returns:
        The radiographs with those warnings, and the questions.
    """
    first: dict[str, tuple[str, str]] = {}
    checked, questions = [], []
    for radiograph in radiographs:
        warnings = []
        for keyword in _KEYWORDS:
            value = "" if radiograph.header is None else text(radiograph.header, keyword)
            name, other = first.setdefault(keyword, (radiograph.name, value)) if value else ("", value)
            if other == value:
                continue
            what = f"{keyword} {tag(keyword)}"
            if keyword == "StudyDate":
                warnings.append(f"{radiograph.name}: taken on another day than {name} by {what}")
            elif "several-patients" in accept:
                warnings.append(f"{radiograph.name}: another patient than in {name} by {what}")
            else:
                advice = "leave one out, or give --accept several-patients if they are one person"
                problem = f"whose it is: {what} differs from {name}"
                questions.append(MissingField(problem, advice=advice, file=radiograph.name))
                break
        checked.append(radiograph.with_warnings(*warnings))
    for index, sentence in _unidentified(radiographs).items():
        checked[index] = checked[index].with_warnings(sentence)
    return checked, tuple(questions)


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
