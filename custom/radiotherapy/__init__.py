"""Radiotherapy on a CT from radiographs: contours, plans, doses, and how wrong they are. Research, not clinical."""

from custom.radiotherapy.comparison_modes import (
    MODES,
    Mode,
    ModeResult,
    Patient,
    compare_modes,
    delivered_at_isocenter,
    plan_patient,
)
from custom.radiotherapy.contours import Contours, NotPossible, Structure
from custom.radiotherapy.ct_reference import CTReference, first_header, has_ct_series, read_ct_reference
from custom.radiotherapy.dose_engine import DoseEngine, PencilBeamEngine
from custom.radiotherapy.dose_interval import CalibratedDoses, DoseInterval, dose_interval, read_calibrated_doses
from custom.radiotherapy.plan_reader import read_rt_plan
from custom.radiotherapy.planning import PlannedCase, contour, dose_numbers, external_alone, plan_case
from custom.radiotherapy.planning_ct import PlanningCT, planning_ct, read_planning_ct
from custom.radiotherapy.planning_numbers import NUMBERS, dose_rules, find_template
from custom.radiotherapy.rt_objects import RT_FILES, write_rt_objects
from custom.radiotherapy.sample_intervals import INTERVAL_PERCENT, Interval, SampleDoses, sample_doses
from custom.radiotherapy.treatment_plan import Field, Leaves, Plan

__all__ = [
    "INTERVAL_PERCENT",
    "MODES",
    "NUMBERS",
    "RT_FILES",
    "CTReference",
    "CalibratedDoses",
    "Contours",
    "DoseEngine",
    "DoseInterval",
    "Field",
    "Interval",
    "Leaves",
    "Mode",
    "ModeResult",
    "NotPossible",
    "Patient",
    "PencilBeamEngine",
    "Plan",
    "PlannedCase",
    "PlanningCT",
    "SampleDoses",
    "Structure",
    "compare_modes",
    "contour",
    "delivered_at_isocenter",
    "dose_interval",
    "dose_numbers",
    "dose_rules",
    "external_alone",
    "find_template",
    "first_header",
    "has_ct_series",
    "plan_case",
    "plan_patient",
    "planning_ct",
    "read_calibrated_doses",
    "read_ct_reference",
    "read_planning_ct",
    "read_rt_plan",
    "sample_doses",
    "write_rt_objects",
]
