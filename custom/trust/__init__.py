"""Trust checks of a reconstruction, with thresholds that were measured, not chosen."""

from custom.trust.check_results import CheckResult, Verdict, overall
from custom.trust.checks import NAMES, run_checks
from custom.trust.evidence import Evidence, find_prior
from custom.trust.stated_intervals import StatedIntervals, state_intervals
from custom.trust.thresholds import Thresholds

__all__ = [
    "NAMES",
    "CheckResult",
    "Evidence",
    "StatedIntervals",
    "Thresholds",
    "Verdict",
    "find_prior",
    "overall",
    "run_checks",
    "state_intervals",
]
