"""What is said of the dose that an isocentre gets: the limits of a result, or a reason why there are none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from thorax_phantom import patient, thorax, with_hu

from custom.radiotherapy import (
    CalibratedDoses,
    Patient,
    PencilBeamEngine,
    delivered_at_isocenter,
    dose_interval,
    dose_rules,
    external_alone,
    read_calibrated_doses,
)

RULES = dose_rules("an engine", "5e9")
LIMITS = {"coverage": 0.9, "rules": RULES, "templates": {"ap_pa": {"lower": 0.9, "upper": 1.05, "patients": 30}}}
ENGINE = PencilBeamEngine()
CT, MASKS = thorax()
CASE = patient(CT, MASKS, ENGINE).case
assert CASE is not None
PLAN = CASE.plan


def test_limits_scale_with_the_planned_dose() -> None:
    found = read_calibrated_doses({"abstained": None, "isocenter_dose": LIMITS}, "result.json")
    assert isinstance(found, CalibratedDoses)
    stated = dose_interval(found, PLAN, 2.0, RULES)
    assert stated is not None and (stated.lower_gy, stated.upper_gy) == pytest.approx((1.8, 2.1))
    assert str(stated).endswith("90% of patients like the 30 that were calibrated get 180.0 to 210.0 cGy")


@pytest.mark.parametrize(
    ("intervals", "template", "rules", "why"),
    [
        (None, "ap_pa", RULES, "not calibrated; ask whoever maintains the model"),
        ({"abstained": "a trust check says REJECT", "isocenter_dose": None}, "ap_pa", RULES, "says REJECT"),
        ({"abstained": None}, "ap_pa", RULES, "not calibrated for this model; ask whoever maintains"),
        ({"abstained": None, "isocenter_dose": LIMITS}, "pa", RULES, "not calibrated for this model; ask whoever"),
        ({"abstained": None, "isocenter_dose": LIMITS}, "ap_pa", dose_rules("other", "5e9"), "another dose engine"),
        ({"abstained": None, "isocenter_dose": LIMITS}, "ap_pa", dose_rules("an engine", "5"), "another network that"),
    ],
)
def test_nothing_is_stated_without_limits_that_fit(intervals: Any, template: str, rules: Any, why: str) -> None:
    stated = dose_interval(read_calibrated_doses(intervals, "r"), replace(PLAN, template=template), 2.0, rules)
    assert stated is not None and stated.lower_gy is None and why in str(stated)
    assert "fewview-ct" not in str(stated)


def test_of_a_plan_that_is_not_normalised_at_its_isocentre_nothing_is_said() -> None:
    other = replace(PLAN, normalisation="median of target", target="Breast_L")
    assert dose_interval(read_calibrated_doses(None, "r"), other, 50.0, RULES) is None


@pytest.mark.parametrize(
    "change",
    [
        {"coverage": 1.5},
        {"templates": {"ap_pa": {"lower": 1, "upper": 2}}},
        {"more": 1},
        {"templates": {"ap_pa": {"lower": 1, "upper": 1e308, "patients": 30}}},
    ],
)
def test_a_damaged_part_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^here"):
        read_calibrated_doses({"isocenter_dose": {**LIMITS, **change}}, "here")


def test_a_denser_reconstruction_gives_the_patient_more() -> None:
    """As the mode `delivered` says, of which this is the number at the isocentre."""
    truth = Patient(CT, external_alone(CT), None)
    same = delivered_at_isocenter(patient(CT, MASKS, ENGINE), truth, ENGINE)
    assert same == pytest.approx((2.0, 2.0), rel=2e-3)
    dense = patient(with_hu(CT, np.where(MASKS["External"], CT.hu + 40, CT.hu)), MASKS, ENGINE)
    planned, delivered = delivered_at_isocenter(dense, truth, ENGINE) or (0.0, 0.0)
    assert planned == pytest.approx(2.0, rel=1e-3) and 2.006 < delivered < 2.06
    assert delivered_at_isocenter(Patient(CT, truth.contours, None, "no lungs"), truth, ENGINE) is None
