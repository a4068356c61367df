"""`AcquisitionMetadata`: how a radiograph was taken, each value with unit and origin; gaps and contradictions.

Every reader returns a `Reading`, the values that it found, and `merge` makes one `AcquisitionMetadata` of all of them
(`custom.radiographs.readings`). Everything here is immutable; sentences are made of it at the end, for people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Generic, TypeVar

from custom.core.angles import angle_difference_deg

__all__ = [
    "SAID",
    "AcquisitionMetadata",
    "Contradiction",
    "MetadataValue",
    "MissingField",
    "MissingMetadata",
    "Origin",
    "Quantity",
    "UnusableValue",
    "names_direction",
    "plain_text",
    "quantity",
    "value_of",
]

T = TypeVar("T", covariant=True)
V = TypeVar("V")


class Origin(Enum):
    """Where a value comes from. This is the order of belief: of several values, that of the first origin is used."""

    ANSWER = "answer"  # what the user of the page of `fewview-ct app` said there
    GEOMETRY_FILE = "geometry file"  # named by --geometry
    SIDECAR = "sidecar"  # the JSON beside the radiograph
    FILE = "file"  # the radiograph's own file: its tags or its format
    DERIVED = "derived"  # follows from other values, which it names
    ESTIMATE = "estimate"  # seen in the picture
    OPTION = "option"  # an assumption that --accept allowed
    USUAL_VALUE = "usual value"  # holds for nearly all radiographs, and nothing says otherwise


#: What a person said of a radiograph beside its own file.
SAID = (Origin.ANSWER, Origin.GEOMETRY_FILE, Origin.SIDECAR)

_PROVENANCE = {
    Origin.ANSWER: "your answer in the form", Origin.GEOMETRY_FILE: "--geometry {}",
    Origin.SIDECAR: "sidecar {}", Origin.FILE: "{}", Origin.DERIVED: "{}", Origin.ESTIMATE: "estimated from {}",
    Origin.OPTION: "option --accept {}", Origin.USUAL_VALUE: "default: {}",
}  # fmt: skip


@dataclass(frozen=True)
class Quantity:
    """What holds for all values of one key.

    Args:
        unit: "mm", "deg", "kV", or "" for texts and ratios.
        limits: lowest and highest value that can be: beyond them a sidecar is refused, and a tag is not used.
        absolute: difference of two values, in the unit, that is no contradiction.
        relative: likewise, as a share of the larger value.
        asks: two different values in one file are a question, not a warning.
        settled_by: another key that answers that question, where a sidecar or geometry file gives it.
    """

    unit: str = ""
    limits: tuple[float, float] = (-math.inf, math.inf)
    absolute: float = 0.0
    relative: float = 0.0
    asks: bool = False
    settled_by: str = ""

    def is_possible(self, value: Any) -> bool:
        """Whether all numbers of a value lie within the limits."""
        numbers = value if isinstance(value, tuple) else (value,)
        return all(self.limits[0] <= n <= self.limits[1] for n in numbers if isinstance(n, int | float))

    def agree(self, one: Any, other: Any, tolerance: float = 0.0) -> bool:
        """Whether two values differ by no more than the tolerance, or the larger one that is given."""
        if isinstance(one, tuple) and isinstance(other, tuple):
            same = (self.agree(a, b, tolerance) for a, b in zip(one, other, strict=False))
            return len(one) == len(other) and all(same)
        if not (isinstance(one, int | float) and isinstance(other, int | float)):
            return bool(one == other)
        if self.unit == "deg":
            return abs(angle_difference_deg(one, other)) <= max(self.absolute, tolerance)
        if self.absolute:
            return abs(one - other) <= max(self.absolute, tolerance)
        return math.isclose(one, other, rel_tol=max(self.relative, tolerance))


def names_direction(word: str) -> bool:
    """Whether letters name a direction as Patient Orientation (0020,0020) does: one to three, each of another axis."""
    axes = ["RLAPHF".find(letter) // 2 for letter in word]
    return bool(axes) and min(axes) >= 0 and len(set(axes)) == len(axes)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    # Adding 0 makes -0.0 a plain 0.
    return round(value, 6) + 0.0 if isinstance(value, float) else value


def plain_text(value: Any) -> str:
    """A value as messages write it."""
    return "(" + ", ".join(map(plain_text, value)) + ")" if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class MetadataValue(Generic[T]):
    """One value, and where it comes from.

    Args:
        key: of the value, a field of `AcquisitionMetadata`.
        value: number, text, or tuple of numbers; numbers are rounded to 6 decimals.
        origin: kind of the place that it comes from.
        where: the place: attributes such as "DICOM (0018,1110)", a file's name, an option's name, or what else tells
            it from other places of that kind.
        tolerance: difference to another value that is no contradiction, where it is known less exactly than others of
            its quantity: in the unit if the quantity's tolerance is absolute, else relative.
    """

    key: str
    value: T
    origin: Origin
    where: str
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _plain(self.value))

    @property
    def unit(self) -> str:
        """ "mm", "deg", "kV", or "" for texts and ratios."""
        return quantity(self.key).unit

    @property
    def provenance(self) -> str:
        """Origin and place in words, such as "option --accept default-distances"."""
        return _PROVENANCE[self.origin].format(self.where)

    def __str__(self) -> str:
        return f"{plain_text(self.value)} by {self.provenance}"


def value_of(found: MetadataValue[V] | None) -> V | None:
    """The value itself, None where it is not known."""
    return None if found is None else found.value


@dataclass(frozen=True)
class UnusableValue:
    """A value that stands in the file and cannot be.

    Args:
        value: as the file has it.
        reason: what is wrong with it.
    """

    value: MetadataValue[Any]
    reason: str = "cannot be"

    def __str__(self) -> str:
        return f"{self.value} {self.reason}"


@dataclass(frozen=True)
class _Question:
    """Something that has to be answered before the radiograph can be used.

    Args:
        problem: what is not known, with the attribute and its tag.
        keys: of the fields that would answer it.
        example: JSON members that a sidecar would need, such as '"angle_deg": 90'.
        accept: names of `--accept` that would do.
        advice: what to do, where it is not writing the example into a sidecar.
        file: the radiograph's name.
        sidecar: the name of the file to write into.
    """

    problem: str
    keys: tuple[str, ...] = ()
    example: str = ""
    accept: tuple[str, ...] = ()
    advice: str = ""
    file: str = ""
    sidecar: str = ""

    @property
    def remedy(self) -> str:
        """What to write into the sidecar, or which --accept name says it."""
        if self.advice:
            return self.advice
        options = ", or give --accept " + " or --accept ".join(self.accept) if self.accept else ""
        return f"write {self.example} into {self.sidecar} or the file of --geometry{options}"

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}; {self.remedy}"


@dataclass(frozen=True)
class MissingField(_Question):
    """Something that no file says, and that must not be assumed in silence."""


@dataclass(frozen=True)
class Contradiction(_Question):
    """Values that exclude each other, of one key or of several.

    Args:
        values: all of them, the one that is used first.
        settled: the order of belief decides, so that it is a warning; else it is asked about.
    """

    values: tuple[MetadataValue[Any], ...] = ()
    settled: bool = False


#: One question about more files than so many is written once, with as many of their names.
_MOST_NAMES = 2


def _together(questions: tuple[MissingField | Contradiction, ...]) -> list[MissingField | Contradiction]:
    """One question for all files to which the same is asked, where they are many."""
    same: dict[_Question, list[MissingField | Contradiction]] = {}
    for one in questions:
        same.setdefault(replace(one, file="", sidecar=""), []).append(one)
    joined = (
        [replace(group[0], file=_several([q.file for q in group]), sidecar=_several([q.sidecar for q in group]))]
        if len(group) > _MOST_NAMES
        else group
        for group in same.values()
    )
    return [one for group in joined for one in group]


def _several(names: list[str]) -> str:
    return f"{', '.join(names[:_MOST_NAMES])} and {len(names) - _MOST_NAMES} more"


class MissingMetadata(ValueError):
    """All that is missing or contradicts itself, in every file, in one message of one line.

    Args:
        questions: one by one.
        known: what is known of every radiograph, by its name, the complete ones too.
    """

    def __init__(
        self,
        questions: tuple[MissingField | Contradiction, ...],
        known: Mapping[str, AcquisitionMetadata] | None = None,
    ) -> None:
        self.questions = questions
        self.known = known or {}
        things = "1 thing is" if len(questions) == 1 else f"{len(questions)} things are"
        listed = " | ".join(f"({i}) {question}" for i, question in enumerate(_together(questions), 1))
        super().__init__(f"{things} not known about the radiographs and will not be assumed in silence: {listed}")


@dataclass(frozen=True)
class AcquisitionMetadata:
    """All that is known of how one radiograph was taken; None where it is not known. The order is a report's.

    Angles and axes are those of `docs/explanation/conventions.md`; what each field means and which attributes tell it
    stands in `docs/reference/radiographs.md`.
    """

    modality: MetadataValue[str] | None = None
    beam: MetadataValue[str] | None = None
    view_position: MetadataValue[str] | None = None
    angle_deg: MetadataValue[float] | None = None
    elevation_deg: MetadataValue[float] | None = None
    source_to_detector_mm: MetadataValue[float] | None = None
    source_to_isocenter_mm: MetadataValue[float] | None = None
    magnification: MetadataValue[float] | None = None
    pixel_mm: MetadataValue[tuple[float, float]] | None = None
    detector_offset_mm: MetadataValue[tuple[float, float]] | None = None
    detector_angles_deg: MetadataValue[tuple[float, float]] | None = None
    detector_roll_deg: MetadataValue[float] | None = None
    patient_position: MetadataValue[str] | None = None
    orientation: MetadataValue[str] | None = None
    flips: MetadataValue[str] | None = None
    isocenter_mm: MetadataValue[tuple[float, float, float]] | None = None
    kvp: MetadataValue[float] | None = None
    frame: MetadataValue[float] | None = None
    intent: MetadataValue[str] | None = None
    tone_curve: MetadataValue[str] | None = None
    photometric: MetadataValue[str] | None = None
    presentation_lut_shape: MetadataValue[str] | None = None
    intensity_relationship: MetadataValue[str] | None = None
    intensity_sign: MetadataValue[int] | None = None
    rescale: MetadataValue[str] | None = None
    rescale_type: MetadataValue[str] | None = None
    zero_intensity: MetadataValue[float] | None = None
    log_scale: MetadataValue[float] | None = None
    unattenuated: MetadataValue[float] | None = None
    exposed_field: MetadataValue[str] | None = None
    patient: MetadataValue[str] | None = None
    study_date: MetadataValue[str] | None = None
    exposure: MetadataValue[str] | None = None
    questions: tuple[MissingField | Contradiction, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
    unusable: tuple[UnusableValue, ...] = ()
    notes: tuple[str, ...] = ()

    def get(self, key: str) -> MetadataValue[Any] | None:
        """The value of a field, by its name."""
        found = getattr(self, key, None)
        return found if isinstance(found, MetadataValue) else None

    def known(self) -> dict[str, MetadataValue[Any]]:
        """All values that are known, in the order of a report."""
        return {f.name: found for f in fields(self) if (found := self.get(f.name)) is not None}

    def state_of_tag(self, key: str) -> str:
        """What to say of an attribute that is asked for: that it is absent, or that it is there and cannot be used."""
        said = next((one for one in self.unusable if one.value.key == key), None)
        return "is absent" if said is None else f"is {said.value.value!r}, which {said.reason}"

    def warnings(self) -> tuple[str, ...]:
        """Sentences about what is not as it should be, each once."""
        said = [f"{one.value.key} {one} and is not used" for one in self.unusable]
        said += [one.problem for one in self.contradictions if one.settled]
        return tuple(dict.fromkeys([*said, *self.notes]))


#: What holds for the values of a field; fields that are not here are texts or plain numbers, which have to be equal.
_QUANTITIES = {
    "view_position": Quantity(asks=True, settled_by="angle_deg"),
    "angle_deg": Quantity("deg", absolute=0.5),
    "elevation_deg": Quantity("deg", (-85, 85), absolute=0.5),
    "source_to_detector_mm": Quantity("mm", (10, 10000), relative=1e-3),
    "source_to_isocenter_mm": Quantity("mm", (10, 10000), relative=1e-3),
    "magnification": Quantity(relative=1e-3),
    "pixel_mm": Quantity("mm", (1e-3, 50), relative=1e-3, asks=True),
    "detector_offset_mm": Quantity("mm", (-2000, 2000), absolute=0.5),
    "detector_angles_deg": Quantity("deg", (-80, 80), absolute=0.1),
    "detector_roll_deg": Quantity("deg", absolute=0.1),
    "isocenter_mm": Quantity("mm", absolute=1e-3),
    "kvp": Quantity("kV", (1, 1e5), relative=1e-3),
    "log_scale": Quantity(relative=1e-3),
    "zero_intensity": Quantity(absolute=0.5),
    "unattenuated": Quantity(relative=1e-3),
}


def quantity(key: str) -> Quantity:
    """What holds for all values of a key."""
    return _QUANTITIES.get(key, Quantity())
