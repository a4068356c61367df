"""Intervals of numbers that are read off a reconstruction (`MEASURES`), from CTs that are known.

The error of a positive number is the logarithm of truth / reconstruction, that of a CT value truth - reconstruction.
Their median is taken off; how far a new patient's error may lie from it is a conformal limit over patients
(`patientwise_limit`), on errors of patients that the median does not know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from custom.metrics.conformal import fewest_patients, patientwise_limit
from custom.trust.body_measures import MEASURES
from custom.trust.voxel_intervals import FOLDS

__all__ = ["MeasureInterval", "fit_measure_intervals"]


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

    def around(self, name: str, value: float) -> tuple[float, float]:
        """Lower and upper limit of the truth, given what the reconstruction says."""
        low, high = self.center - self.reach, self.center + self.reach
        if MEASURES[name][2]:
            return value * math.exp(low), value * math.exp(high)
        return value + low, value + high


def fit_measure_intervals(
    found: Sequence[Mapping[str, float | None]],
    truths: Sequence[Mapping[str, float | None]],
    patients: Sequence[str],
    coverage: float = 0.9,
) -> dict[str, MeasureInterval]:
    """Intervals of all measures that enough patients have.

    Args:
        found: of each case's reconstruction.
        truths: of its CT, by the same rule.
        patients: whose each case is; cases of one patient count as one.
        coverage: share of new patients in whom the interval holds.
    """
    intervals = {}
    for name, (_, _, positive) in MEASURES.items():
        errors: dict[str, list[float]] = {}
        known = []
        for one, truth, patient in zip(found, truths, patients, strict=True):
            value, true = one.get(name), truth.get(name)
            if value is not None and true is not None:
                errors.setdefault(patient, []).append(math.log(true / value) if positive else true - value)
                known.append(true)
        names = sorted(errors)
        if len(names) < fewest_patients(coverage):
            continue
        scores = [np.zeros(0)] * len(names)
        folds = min(FOLDS, len(names))
        for fold in range(folds):
            others = _median([errors[n] for i, n in enumerate(names) if i % folds != fold])
            for i in range(fold, len(names), folds):
                scores[i] = np.abs(np.array(errors[names[i]]) - others)
        reach = patientwise_limit(scores, coverage)
        center = _median([errors[n] for n in names])
        intervals[name] = MeasureInterval(center, reach, min(known), max(known), len(names))
    return intervals


def _median(errors: Sequence[Sequence[float]]) -> float:
    """Of the patients' mean errors."""
    return float(np.median([np.mean(own) for own in errors]))
