"""How wrong a plan on a reconstruction is, in three modes that must never be confused.

| mode | contours, isocentre, plan and monitor units | dose |
|---|---|---|
| `same_mu` | of the truth | on the truth, and on the reconstruction |
| `papers` | of each CT by itself | on each CT by itself |
| `delivered` | of the reconstruction | on the truth, with the truth's organs: what would happen to the patient |

`delivered` is the headline. `papers` rewards a reconstruction that agrees with itself: where the prescription is met at
the isocentre, its isocentre error is zero by definition.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from custom.networks import SegmentationUNet
from custom.radiotherapy.beam_paths import water_equivalent_paths
from custom.radiotherapy.contours import Contours, NotPossible
from custom.radiotherapy.dose_engine import DoseEngine
from custom.radiotherapy.dose_metrics import dose_at, dose_error_percent, gamma_pass_percent
from custom.radiotherapy.planning import PlannedCase, contour, dose_numbers, external_alone, plan_case
from custom.radiotherapy.planning_ct import PlanningCT
from custom.radiotherapy.planning_numbers import find_template
from custom.radiotherapy.relative_density import relative_density
from custom.radiotherapy.treatment_plan import Plan

__all__ = ["MODES", "Mode", "ModeResult", "Patient", "compare_modes", "delivered_at_isocenter", "plan_patient"]

FloatArray = npt.NDArray[np.float32]
Mode = Literal["same_mu", "papers", "delivered"]
MODES: tuple[Mode, ...] = ("delivered", "same_mu", "papers")


@dataclass(frozen=True)
class Patient:
    """A CT with its contours, whether or not a plan is possible on it.

    Attributes:
        ct: the CT.
        contours: found on it; without a chest the external alone.
        case: its own plan; None: none is possible.
        reason: why.
    """

    ct: PlanningCT
    contours: Contours
    case: PlannedCase | None
    reason: str = ""

    @property
    def has_chest(self) -> bool:
        """Whether there are two lungs where they belong, without which nothing is planned."""
        return {"Lung_L", "Lung_R"} <= self.contours.structures.keys()

    @functools.cached_property
    def density(self) -> FloatArray:
        """(X, Y, Z) relative density."""
        return relative_density(self.ct.hu, self.contours.mask("External"))


@dataclass(frozen=True)
class ModeResult:
    """One mode's comparison of a reconstruction with the truth.

    Attributes:
        mode: which.
        true: numbers of `dose_numbers` of the dose that counts: on the truth.
        estimated: the same of the dose that the reconstruction shows.
        errors: of the two doses; `isocenter_error_percent` is signed, positive where the reconstruction shows too much.
            Empty where no plan is possible.
        reason: why no plan is possible; empty where one is.
        true_dose_gy: (X, Y, Z) Gy of all fractions.
    """

    mode: Mode
    true: Mapping[str, float] = field(default_factory=dict)
    estimated: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    true_dose_gy: FloatArray | None = field(default=None, repr=False, compare=False)

    @property
    def possible(self) -> bool:
        return not self.reason


def plan_patient(ct: PlanningCT, template: str | Plan, segmenter: SegmentationUNet, engine: DoseEngine) -> Patient:
    """Contour a CT and make a template's plan on it, or compute one that is given, if it is possible.

    Raises:
        ValueError: an unknown template.
    """
    target = template.target if isinstance(template, Plan) else find_template(template).target
    contours = Contours({})
    try:
        contours = external_alone(ct)
        contours = contour(ct, segmenter, target)
        return Patient(ct, contours, plan_case(ct, template, contours, engine))
    except NotPossible as error:
        return Patient(ct, contours, None, str(error))


def compare_modes(estimate: Patient, truth: Patient, engine: DoseEngine) -> dict[Mode, ModeResult]:
    """All three modes of one patient.

    Args:
        estimate: the reconstruction.
        truth: the true CT, on the same grid.
        engine: that made both plans.

    Raises:
        ValueError: two grids.
    """
    if estimate.ct.grid != truth.ct.grid:
        raise ValueError("reconstruction and truth must be on one grid: read the truth with planning_ct(..., grid)")
    for where, unusable, one in (
        ("truth", not truth.has_chest, truth),
        ("reconstruction", not estimate.contours.structures, estimate),
    ):
        if unusable:
            return {mode: ModeResult(mode, reason=f"on the {where}: {one.reason}") for mode in MODES}
    return {
        "delivered": _delivered(estimate, truth, engine),
        "same_mu": _same_mu(estimate, truth, engine),
        "papers": _papers(estimate, truth),
    }


def delivered_at_isocenter(estimate: Patient, truth: Patient, engine: DoseEngine) -> tuple[float, float] | None:
    """Dose at the isocentre of the plan on a reconstruction, as planned and as the patient gets it, mode `delivered`.

    Args:
        estimate: the reconstruction.
        truth: the true CT, on the same grid; its external alone is needed.
        engine: that made the plan.

    Returns:
        Gy of all fractions; None: no plan is possible on the reconstruction.
    """
    if estimate.case is None:
        return None
    where = estimate.case.plan.isocenter_mm
    delivered = _dose(truth, estimate.case.plan, engine)
    return dose_at(estimate.ct, estimate.case.dose_gy, where), dose_at(truth.ct, delivered, where)


def _same_mu(estimate: Patient, truth: Patient, engine: DoseEngine) -> ModeResult:
    if truth.case is None:
        return ModeResult("same_mu", reason=f"on the truth: {truth.reason}")
    plan = truth.case.plan
    dose = _dose(estimate, plan, engine)
    true = dose_numbers(truth.ct, truth.contours, plan, truth.case.dose_gy)
    shown = dose_numbers(estimate.ct, truth.contours, plan, dose)
    errors = _errors(estimate, truth, plan, true, shown, truth.case.dose_gy, dose)
    return ModeResult("same_mu", true, shown, errors, "", truth.case.dose_gy)


def _papers(estimate: Patient, truth: Patient) -> ModeResult:
    for where, one in (("truth", truth), ("reconstruction", estimate)):
        if one.case is None:
            return ModeResult("papers", reason=f"on the {where}: {one.reason}")
    assert truth.case is not None and estimate.case is not None
    true, shown = (dose_numbers(c.ct, c.contours, c.plan, c.dose_gy) for c in (truth.case, estimate.case))
    errors = _isocenter_error(shown, true)
    errors |= _plan_errors(estimate.case.plan, truth.case.plan)
    return ModeResult("papers", true, shown, errors, "", truth.case.dose_gy)


def _delivered(estimate: Patient, truth: Patient, engine: DoseEngine) -> ModeResult:
    if estimate.case is None:
        return ModeResult("delivered", reason=f"on the reconstruction: {estimate.reason}")
    plan = estimate.case.plan
    dose = _dose(truth, plan, engine)
    true = dose_numbers(truth.ct, truth.contours, plan, dose)
    shown = dose_numbers(estimate.ct, estimate.contours, plan, estimate.case.dose_gy)
    errors = _errors(estimate, truth, plan, true, shown, dose, estimate.case.dose_gy)
    if truth.case is not None:
        errors |= _plan_errors(plan, truth.case.plan)
    return ModeResult("delivered", true, shown, errors, "", dose)


def _dose(patient: Patient, plan: Plan, engine: DoseEngine) -> FloatArray:
    return engine.dose(patient.density, patient.ct.grid, plan) * np.float32(plan.fractions)


def _percent(value: float, reference: float) -> float:
    return 100 * (value - reference) / reference


def _isocenter_error(shown: Mapping[str, float], true: Mapping[str, float]) -> dict[str, float]:
    """Of plans that are normalised at their isocentre."""
    if "isocenter_gy" not in true:
        return {}
    return {"isocenter_error_percent": _percent(shown["isocenter_gy"], true["isocenter_gy"])}


def _plan_errors(plan: Plan, reference: Plan) -> dict[str, float]:
    apart = np.asarray(plan.isocenter_mm) - np.asarray(reference.isocenter_mm)
    return {
        "isocenter_distance_mm": float(np.linalg.norm(apart)),
        "monitor_units_error_percent": _percent(plan.monitor_units, reference.monitor_units),
    }


def _errors(
    estimate: Patient,
    truth: Patient,
    plan: Plan,
    true: Mapping[str, float],
    shown: Mapping[str, float],
    true_dose: FloatArray,
    dose: FloatArray,
) -> dict[str, float]:
    """Of two doses of one plan with the same monitor units."""
    found = _isocenter_error(shown, true)
    external = truth.contours.mask("External")
    found |= gamma_pass_percent(truth.ct, true_dose, dose, external, plan.prescription_gy)
    found["dose_mae_percent"] = dose_error_percent(dose, true_dose, external, plan.prescription_gy)
    paths = [water_equivalent_paths(one.ct, one.density, plan) for one in (estimate, truth)]
    found["wepl_field_mm"] = float(np.mean([np.abs(a - b).mean() for a, b in zip(*paths, strict=True)]))
    return found
