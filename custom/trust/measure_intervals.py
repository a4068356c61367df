"""Intervals of numbers that are read off a reconstruction, such as `MEASURES`, from CTs that are known.

The error of a positive number is the logarithm of truth / reconstruction, that of a CT value truth - reconstruction.
The patients' median is taken off, not that of phantoms, which are always wrong by something else. How far a new error
may lie from it is a conformal limit over patients and phantoms (`patientwise_limit`), on errors of patients that the
median does not know. Where the network was trained on a patient's CT its errors are too small: they are multiplied by
how much larger those of new patients are (`growth_of_errors`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from custom.metrics.conformal import fewest_patients, patientwise_limit
from custom.trust.body_measures import POSITIVE
from custom.trust.voxel_intervals import FOLDS

__all__ = ["Kind", "MeasureInterval", "errors_of_measures", "fit_measure_intervals", "growth_of_errors"]

#: By measure and patient: errors of the patient's cases.
Errors = Mapping[str, Mapping[str, Sequence[float]]]


class Kind(StrEnum):
    """What a calibrated case is to the network."""

    TRAINED_ON = "trained on"
    NEW = "new"
    PHANTOM = "phantom"


@dataclass(frozen=True)
class MeasureInterval:
    """Of one measure, one beam and one number of views.

    Attributes:
        center: median error: log(truth / reconstruction) of what is positive, truth - reconstruction of a CT value.
        reach: how far from it the error of a new patient lies, at most, with the stated coverage.
        lowest, highest: truths among the calibrated cases.
        patients: how many had it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    center: float
    reach: float
    lowest: float
    highest: float
    patients: int

    def __post_init__(self) -> None:
        if self.reach < 0:
            raise ValueError(f"reach must not be negative, got {self.reach}")

    def around(self, value: float, positive: bool) -> tuple[float, float]:
        """Lower and upper limit of the truth, given what the reconstruction says."""
        low, high = self.center - self.reach, self.center + self.reach
        if positive:
            return value * math.exp(low), value * math.exp(high)
        return value + low, value + high


def errors_of_measures(
    found: Sequence[Mapping[str, float | None]],
    truths: Sequence[Mapping[str, float | None]],
    patients: Sequence[str],
    positive: Mapping[str, bool] = POSITIVE,
) -> dict[str, dict[str, list[float]]]:
    """Errors by measure and patient: log(truth / reconstruction) of what is positive, truth - reconstruction else.

    Args:
        found: of each case's reconstruction.
        truths: of its CT, by the same rule.
        patients: whose each case is.
        positive: by measure, whether it is.
    """
    errors: dict[str, dict[str, list[float]]] = {name: {} for name in positive}
    for one, truth, patient in zip(found, truths, patients, strict=True):
        for name in positive:
            value, true = one.get(name), truth.get(name)
            if value is not None and true is not None:
                error = math.log(true / value) if positive[name] else true - value
                errors[name].setdefault(patient, []).append(error)
    return errors


def growth_of_errors(groups: Sequence[Errors], kinds: Mapping[str, Kind]) -> float:
    """How many times larger the errors of new patients are than those of patients that the network was trained on.

    One number for all measures and groups, since new patients are few: the root mean square over them of the distance
    from the median of those trained on, in units of these. Never below 1; 1 where either kind is missing.

    Args:
        groups: of `errors_of_measures`, one for each beam and number of views.
        kinds: by patient.
    """
    shares = []
    for errors in (own for group in groups for own in group.values()):
        seen, new = ([e for p, e in errors.items() if kinds[p] is kind] for kind in (Kind.TRAINED_ON, Kind.NEW))
        if len(seen) < 2 or not new:
            continue
        center = _median(seen)
        usual, larger = ([float(np.mean(np.square(np.array(e) - center))) for e in some] for some in (seen, new))
        if np.mean(usual) > 0:
            shares += [one / np.mean(usual) for one in larger]
    return max(1.0, math.sqrt(np.mean(shares))) if shares else 1.0


def fit_measure_intervals(
    found: Sequence[Mapping[str, float | None]],
    truths: Sequence[Mapping[str, float | None]],
    patients: Sequence[str],
    coverage: float = 0.9,
    kinds: Mapping[str, Kind] | None = None,
    growth: float = 1.0,
    positive: Mapping[str, bool] = POSITIVE,
) -> dict[str, MeasureInterval]:
    """Intervals of all measures that enough patients have.

    Args:
        found, truths, positive: as in `errors_of_measures`.
        patients: whose each case is; cases of one patient count as one.
        coverage: share of new patients in whom the interval holds.
        kinds: by patient; None: all are new.
        growth: of `growth_of_errors`.
    """
    kinds = kinds or dict.fromkeys(patients, Kind.NEW)
    intervals = {}
    for name, errors in errors_of_measures(found, truths, patients, positive).items():
        names = sorted(errors)
        if len(names) < fewest_patients(coverage):
            continue
        # Phantoms alone have a median of their own.
        central = [n for n in names if kinds[n] is not Kind.PHANTOM]
        central = central if len(central) >= FOLDS else names
        scores = []
        for own in names:
            fold = central.index(own) % FOLDS if own in central else None
            center = _median([errors[n] for i, n in enumerate(central) if i % FOLDS != fold])
            stretch = growth if kinds[own] is Kind.TRAINED_ON else 1.0
            scores.append(stretch * np.abs(np.array(errors[own]) - center))
        known = [true for truth, patient in zip(truths, patients, strict=True)
                 if patient in errors and (true := truth.get(name)) is not None]  # fmt: skip
        center = _median([errors[n] for n in central])
        reach = patientwise_limit(scores, coverage)
        intervals[name] = MeasureInterval(center, reach, min(known), max(known), len(names))
    return intervals


def _median(errors: Sequence[Sequence[float]]) -> float:
    """Of the patients' mean errors."""
    return float(np.median([np.mean(own) for own in errors]))
