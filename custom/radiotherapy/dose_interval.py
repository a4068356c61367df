"""What a calibration allows to say of a plan on a reconstruction: how much dose its isocentre gets in the patient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from custom.core.json_models import StrictModel, validated
from custom.radiotherapy.treatment_plan import ISOCENTER, Plan

__all__ = ["CalibratedDoses", "DoseInterval", "dose_interval", "read_calibrated_doses"]

#: Keys of `dose_rules`, in words.
_RULES = {
    "engine": "dose engine",
    "segmenter_sha256": "network that finds the organs",
    "planning_sha256": "set of planning rules",
}

_NONE = "such plans on a CT from so many radiographs are not calibrated for this model; ask whoever maintains the model"

#: Dose delivered / dose planned. Beyond it a file is damaged.
_Ratio = Annotated[float, Field(gt=0, le=1e6)]


class DoseLimits(StrictModel):
    """Of dose delivered / dose planned, and from how many patients."""

    lower: _Ratio
    upper: _Ratio
    patients: int = Field(gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> DoseLimits:
        if self.lower > self.upper:
            raise ValueError(f"lower ({self.lower}) is above upper ({self.upper})")
        return self


class CalibratedDoses(StrictModel):
    """What result.json holds of them: in which share of patients they hold, `dose_rules`, limits by template."""

    coverage: float = Field(gt=0, lt=1)
    rules: dict[str, str]
    templates: dict[str, DoseLimits]


@dataclass(frozen=True)
class DoseInterval:
    """Of the dose that the isocentre of one plan gets in the patient.

    Attributes:
        planned_gy: Gy of all fractions, on the reconstruction.
        lower_gy, upper_gy: in the patient; None where no interval is stated.
        coverage: share of patients like the calibrated in whom it holds.
        patients: how many were calibrated.
        why_not: in words, where there is none.
    """

    planned_gy: float
    lower_gy: float | None = None
    upper_gy: float | None = None
    coverage: float | None = None
    patients: int = 0
    why_not: str | None = None

    def __str__(self) -> str:
        planned = f"{100 * self.planned_gy:.0f} cGy are planned"
        if self.lower_gy is None or self.upper_gy is None or self.coverage is None:
            return f"{planned}; what the patient gets has no interval: {self.why_not}"
        low, high = math.floor(1000 * self.lower_gy) / 10, math.ceil(1000 * self.upper_gy) / 10
        return (
            f"{planned}; {self.coverage:.0%} of patients like the {self.patients} that were calibrated get "
            f"{low:.1f} to {high:.1f} cGy"
        )


def read_calibrated_doses(intervals: Any, where: str) -> CalibratedDoses | str:
    """From "intervals" of result.json, which is not trusted; or why there are none, in words.

    Args:
        intervals: of the file.
        where: the file, for errors.

    Raises:
        ValueError: naming the file, for what is nothing of the kind.
    """
    if intervals is None:
        return "the model that made the CT is not calibrated; ask whoever maintains the model"
    found = intervals.get("isocenter_dose", {}) if isinstance(intervals, Mapping) else None
    if not isinstance(intervals, Mapping) or not isinstance(found, Mapping | None):
        raise ValueError(f"{where}: 'intervals' is no object, or its 'isocenter_dose' is none")
    if intervals.get("abstained") is not None:
        return str(intervals["abstained"])
    return validated(CalibratedDoses, found, f"{where}, isocenter_dose") if found else _NONE


def dose_interval(
    found: CalibratedDoses | str, plan: Plan, planned_gy: float, rules: Mapping[str, str]
) -> DoseInterval | None:
    """What the isocentre gets, or why nothing is said; None for a plan that is not normalised there.

    Args:
        found: of the reconstruction.
        plan: made on it.
        planned_gy: at the isocentre, Gy of all fractions.
        rules: of `dose_rules`, that plan and dose were made by.
    """
    if plan.normalisation != ISOCENTER:
        return None
    if isinstance(found, str):
        return DoseInterval(planned_gy, why_not=found)
    other = [words for name, words in _RULES.items() if found.rules.get(name) != rules[name]]
    if other:
        return DoseInterval(planned_gy, why_not=f"plans were calibrated with another {', another '.join(other)}")
    limits = found.templates.get(plan.template)
    if limits is None:
        return DoseInterval(planned_gy, why_not=_NONE)
    low, high = planned_gy * limits.lower, planned_gy * limits.upper
    return DoseInterval(planned_gy, low, high, found.coverage, limits.patients)
