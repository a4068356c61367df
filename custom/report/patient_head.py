"""Whose a page is: name, ID and study date as facts, as a line, and at the head of every printed page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pydicom

from custom.report.document import visible

__all__ = ["NOT_GIVEN", "patient_facts", "patient_line", "running_head"]

#: Stands for what no header says.
NOT_GIVEN = "not in the radiographs' headers"


def patient_facts(headers: Sequence[pydicom.Dataset | None], not_given: str = NOT_GIVEN) -> dict[str, str]:
    """Patient's name, ID and study date as they stand in headers, every different one.

    Args:
        headers: of the radiographs or of a CT; None where a file has none.
        not_given: stands for what none of them says.

    Returns:
        Texts by label: Patient Name (0010,0010), Patient ID (0010,0020), Study Date (0008,0020).
    """
    found = {}
    for label, keyword in (("Patient", "PatientName"), ("Patient ID", "PatientID"), ("Study date", "StudyDate")):
        texts = dict.fromkeys(_read(header, keyword) for header in headers if header is not None)
        found[label] = "; ".join(text for text in texts if text) or not_given
    return found


def _read(header: pydicom.Dataset, keyword: str) -> str:
    try:
        value = header.get(keyword)
        text = "" if value is None else str(value).strip(" \0")
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError):
        return "(cannot be read)"
    if keyword == "StudyDate" and re.fullmatch(r"\d{8}", text):
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    if keyword == "PatientName":
        groups = [" ".join(filter(None, group.split("^"))) for group in text.split("=")]
        return " = ".join(filter(None, groups))
    return text


def patient_line(facts: Mapping[str, str], not_given: str = NOT_GIVEN, nameless: str = "patient not named") -> str:
    """Facts of `patient_facts` in a line; `nameless` where there is neither name nor ID."""
    name, identity, date = ("" if text == not_given else text[:40] for text in facts.values())
    who = [name, identity] if name or identity else [nameless]
    return " · ".join(dict.fromkeys(filter(None, [*who, f"study {date}" if date else ""])))


def running_head(text: str) -> str:
    """Rule that prints a text on every page: one that lies alone must still say whose it is."""
    # Letters and digits of ASCII stand for themselves, everything else by its number: no text ends the string.
    safe = "".join(c if c.isascii() and c.isalnum() else f"\\{ord(c):06x}" for c in visible(text))
    return f'@page {{ @top-right {{ content: "{safe}"; font: 8pt system-ui, sans-serif; }} }}\n'
