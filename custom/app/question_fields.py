"""What is missing about a radiograph, as fields of a form in a clinician's words, and answers back as a sidecar's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from custom.radiographs import ACCEPT
from custom.radiographs.accepted_assumptions import DEFAULT_ISOCENTER_TO_DETECTOR_MM, DEFAULT_SOURCE_TO_DETECTOR_MM
from custom.radiographs.sidecar import KEYS

__all__ = [
    "ASSUMPTIONS",
    "FIELDS",
    "SKETCHED",
    "Field",
    "asked_about",
    "called",
    "chosen",
    "parse_answer",
    "sentence",
    "written",
]


class Field(NamedTuple):
    """How a value is asked for: one of some choices, or one number or two.

    Attributes:
        label: the question.
        unit: of numbers.
        help: what to write.
        choices: JSON of each value, and its words.
        numbers: how many.
    """

    label: str
    unit: str = ""
    help: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    numbers: int = 1


#: By the keys of a sidecar; the order is that of the form.
FIELDS: dict[str, Field] = {
    "view_position": Field(
        "From which side was it taken?",
        choices=(
            ('"PA"', "PA: the beam enters at the back"),
            ('"AP"', "AP: the beam enters at the front"),
            ('"LL"', "Left lateral: left side at the detector"),
            ('"RL"', "Right lateral: right side at the detector"),
        ),
    ),
    "angle_deg": Field(
        "Or the angle of the source", "degrees", "0 at the patient's right, 90 in front, 180 left, 270 behind"
    ),
    "source_to_detector_mm": Field("Distance A, source to detector", "mm", "often 1800 at a wall stand"),
    "source_to_isocenter_mm": Field(
        "Distance B, source to the middle of the patient", "mm", "shorter than A by some 100 to 250 mm"
    ),
    "pixel_mm": Field("Size of a pixel on the detector", "mm", "such as 0.14; two numbers if rows and columns differ"),
    "orientation": Field(
        "Which way round is the picture?",
        choices=tuple(
            (json.dumps(f"{across}\\{down}"), f"Patient's {side} at the right edge of the picture, {up}")
            for down, up in (("F", "head up"), ("H", "head down"))
            for across, side in (("L", "left"), ("R", "right"), ("A", "front"), ("P", "back"))
        ),
    ),
    "patient_position": Field(
        "How did the patient lie?",
        choices=(
            ('"HFS"', "Head first, on the back"),
            ('"HFP"', "Head first, face down"),
            ('"FFS"', "Feet first, on the back"),
            ('"FFP"', "Feet first, face down"),
        ),
    ),
    "elevation_deg": Field("Tilt of the beam towards the head", "degrees", "0 if it was level with the patient"),
    "detector_angles_deg": Field("Tilt of the detector", "degrees", "two numbers, such as 0 15", numbers=2),
    "intent": Field(
        "What was the file made for?",
        choices=(
            ('"processing"', "For processing: physical values, not yet edited for viewing"),
            ('"presentation"', "For viewing: contrast was edited"),
        ),
    ),
    "intensity_relationship": Field(
        "How do the stored values follow the X-rays that arrived?",
        choices=(('"LIN"', "In proportion (LIN)"), ('"LOG"', "As their logarithm (LOG)")),
        help="the unit's documentation says it; it cannot be seen",
    ),
    "intensity_sign": Field(
        "What do high stored values mean?",
        choices=(
            ("1", "More X-rays arrived: air is high, bone is low"),
            ("-1", "Fewer X-rays arrived: air is low, bone is high"),
        ),
    ),
    "zero_intensity": Field("Stored value where no X-rays arrive", help="behind lead"),
    "log_scale": Field("Stored values for one unit of the logarithm", help="of the unit's documentation"),
    "unattenuated": Field("Stored value beside the patient, where nothing is in the beam"),
}

#: Keys that the sketch explains.
SKETCHED = frozenset({"view_position", "angle_deg", "source_to_detector_mm", "source_to_isocenter_mm", "pixel_mm"})

#: What an assumption means, in a clinician's words; others as `ACCEPT` has them.
ASSUMPTIONS = {
    **ACCEPT,
    "default-distances": f"I do not know: take a wall stand, A = {DEFAULT_SOURCE_TO_DETECTOR_MM:g} mm unless known, "
    f"B {DEFAULT_ISOCENTER_TO_DETECTOR_MM:g} mm shorter than A",
    "pixel-spacing-at-detector": "Take the file's Pixel Spacing as measured on the detector",
    "pixel-spacing-at-isocenter": "Take the file's Pixel Spacing as measured in the middle of the patient",
    "as-displayed": "As radiographs are hung up: the patient's left at the right edge, head up",
    "seen-from-source": "As seen from the X-ray tube, head up",
    "seen-from-detector": "As seen from the detector, head up",
    "head-first-supine": "Assume head first, on the back",
    "for-presentation": "Use it all the same: tone curves cannot be undone, the CT is then only roughly right",
    "log-range": "I do not know: take the densest part as about 25 cm of water",
    "brightest-as-air": "I do not know: take the brightest values as the beam with nothing in it",
    "repeated-exposures": "They are two exposures, and both views are right",
    "study-dates-apart": "The body has not changed between them, or a date is wrong",
    "several-patients": "They are one person; no DICOM CT will be made",
}


def parse_answer(key: str, text: str) -> Any:
    """The value of a sidecar that an answer means; None for an empty one.

    Raises:
        ValueError: in words for the page.
    """
    field, text = FIELDS[key], text.strip()
    if not text:
        return None
    if field.choices:
        if text not in [value for value, _ in field.choices]:
            raise ValueError(f"{field.label} That is none of the choices.")
        return json.loads(text)
    several = field.numbers > 1 or key == "pixel_mm"
    words = re.split(r"[\s;x×]+", text.strip("[]() ")) if several else [text]
    try:
        numbers = [float(word.replace(",", ".")) for word in words if word]
        value = numbers[0] if len(numbers) == 1 else numbers
        KEYS[key](value)
    except ValueError as error:
        reason = "must be a number" if "convert" in str(error) else str(error)
        raise ValueError(f"{field.label}: “{text[:40]}” {reason}") from error
    return value


def called(key: str, label: str) -> str:
    """What a value is called: as the form asks for it where the sketch shows it as a distance, else `label`."""
    return f"{FIELDS[key].label} [mm]" if key in ("source_to_detector_mm", "source_to_isocenter_mm") else label


def chosen(key: str, value: str) -> str:
    """A value as it was read, in the words of the form's choices where it is one of them."""
    words = dict(FIELDS[key].choices) if key in FIELDS else {}
    return words.get(json.dumps(value), words.get(value, value))


def written(key: str, answers: Mapping[str, Any]) -> str:
    """An earlier answer as its field shows it."""
    value = answers.get(key)
    if value is None:
        return ""
    if FIELDS[key].choices:
        return json.dumps(value)
    return " ".join(f"{number:g}" for number in (value if isinstance(value, list) else [value]))


def asked_about(reading: dict[str, Any], file: str) -> list[dict[str, Any]]:
    """What is asked about a radiograph; an assumption that answers several questions stands below the last of them.

    Each question's `instead_of` says then which of them it answers.
    """
    questions = [one for one in reading["questions"] if one["file"] == file]
    everything = [{*one["accept"]} for one in questions]
    for number, one in enumerate(questions):
        later = {name for other in questions[number + 1 :] for name in other["accept"]}
        one["accept"] = [name for name in one["accept"] if name not in later]
        first = min((k for k, other in enumerate(everything) if other & {*one["accept"]}), default=number)
        and_or_to = "and" if number == first + 1 else "to"
        one["instead_of"] = f" of answers {first + 1} {and_or_to} {number + 1}" if first < number else ""
    return questions


def sentence(text: str) -> str:
    """A message as a sentence: a capital first, a full stop or question mark last."""
    return text[:1].upper() + (text[1:] if text.endswith("?") else text[1:].rstrip(".") + ".")
