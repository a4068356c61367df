"""`Reading`, what one reader finds, and `merge`, which alone decides whom to believe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from custom.radiographs.acquisition_metadata import (
    AcquisitionMetadata,
    Contradiction,
    MetadataValue,
    MissingField,
    Origin,
    UnusableValue,
    quantity,
)

__all__ = ["Reading", "ask", "exclude", "found", "merge", "note", "unusable"]

_BELIEF = {origin: rank for rank, origin in enumerate(Origin)}
#: Origins that stand in where nothing is known: that another one knows better is no contradiction.
_STAND_INS = (Origin.OPTION, Origin.USUAL_VALUE)


@dataclass(frozen=True)
class Reading:
    """What one reader found; readings of several readers are added.

    Args:
        values: of any keys, also several of one: the first of one origin is believed.
        missing: what the reader needs and nobody says.
        contradictions: between values of different keys; those of one key are found by `merge`.
        unusable: what stands in the file and cannot be.
        notes: sentences for the reader of the report.
    """

    values: tuple[MetadataValue[Any], ...] = ()
    missing: tuple[MissingField, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
    unusable: tuple[UnusableValue, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: Reading) -> Reading:
        return Reading(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(Reading)})

    def without_questions(self) -> Reading:
        """The same where something else answers what was asked."""
        return dataclasses.replace(self, missing=(), contradictions=tuple(c for c in self.contradictions if c.settled))


def found(key: str, value: Any, origin: Origin, where: str, tolerance: float = 0.0) -> Reading:
    """One value (see `MetadataValue`); nothing where it is None."""
    return Reading() if value is None else Reading((MetadataValue(key, value, origin, where, tolerance),))


def note(*sentences: str) -> Reading:
    """Sentences for the reader of the report."""
    return Reading(notes=sentences)


def unusable(key: str, value: Any, reason: str, *tags: str) -> Reading:
    """What stands in the file and is not used; nothing where it is empty."""
    if value in (None, ""):
        return Reading()
    where = MetadataValue(key, value, Origin.FILE, f"DICOM {', '.join(tags)}")
    return Reading(unusable=(UnusableValue(where, reason),))


def ask(problem: str, keys: tuple[str, ...], example: str, *accept: str) -> Reading:
    """Something missing, see `MissingField`."""
    return Reading(missing=(MissingField(problem, keys, example, accept),))


def exclude(
    problem: str, keys: tuple[str, ...], example: str, *values: MetadataValue[Any], accept: tuple[str, ...] = ()
) -> Reading:
    """Values of different keys that exclude each other, which is asked about."""
    return Reading(contradictions=(Contradiction(problem, keys, example, accept, values=values),))


def merge(*readings: Reading) -> AcquisitionMetadata:
    """One record of all readings: of every key the value of the origin that is believed most.

    The order of belief is that of `Origin`: answer, geometry file, sidecar, the radiograph's own file, what follows
    from other values or is seen in the picture, options, usual values; within one origin the value that comes first.
    Other values that disagree are contradictions. Where the origin decides they are settled; where a file contradicts
    itself, some quantities are asked about (`Quantity.asks`). A value of the file beyond its limits is not used.
    """
    everything = sum(readings, Reading())
    used: dict[str, MetadataValue[Any]] = {}
    not_used, rivals = list(everything.unusable), []
    for value in sorted(everything.values, key=lambda one: _BELIEF[one.origin]):
        if value.origin is Origin.FILE and not quantity(value.key).is_possible(value.value):
            not_used.append(UnusableValue(value))
            continue
        first = used.setdefault(value.key, value)
        tolerance = max(first.tolerance, value.tolerance)
        if value.origin not in _STAND_INS and not quantity(value.key).agree(first.value, value.value, tolerance):
            rivals.append((first, value))
    contradictions = [*(_contradiction(*pair, used) for pair in rivals), *everything.contradictions]
    return AcquisitionMetadata(
        **used,
        questions=(
            *(_with_reason(one, not_used) for one in everything.missing),
            *(one for one in contradictions if not one.settled),
        ),
        contradictions=tuple(contradictions),
        unusable=tuple(dict.fromkeys(not_used)),
        notes=tuple(dict.fromkeys(everything.notes)),
    )


def _with_reason(question: MissingField, unusable: Sequence[UnusableValue]) -> MissingField:
    """The question, with what the file has there and cannot be used."""
    said = (str(one) for one in dict.fromkeys(unusable) if one.value.key in question.keys)
    new = [one for one in said if one.split(" by ")[0] not in question.problem]
    return replace(question, problem="; ".join([question.problem, *new]))


def _contradiction(
    first: MetadataValue[Any], other: MetadataValue[Any], used: Mapping[str, MetadataValue[Any]]
) -> Contradiction:
    key, kind = first.key, quantity(first.key)
    answer = used.get(kind.settled_by)
    told = answer is not None and _BELIEF[answer.origin] < _BELIEF[other.origin]
    if kind.asks and first.origin is other.origin and not told:
        words = key.replace("_", " ")
        return Contradiction(
            f"two values of {words} that exclude each other: {first}, but {other}",
            (key, kind.settled_by),
            f'"{key}": {" or ".join(f"{one.value!r}" for one in (first, other))}'.replace("'", '"'),
            values=(first, other),
        )
    return Contradiction(
        f"{key} is {first}, but {other}; the first is used", (key,), values=(first, other), settled=True
    )
