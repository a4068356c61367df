"""Trust checks of a reconstruction, with thresholds that were measured, not chosen."""

from custom.trust.check_results import CheckResult, Verdict, overall
from custom.trust.checks import NAMES, run_checks
from custom.trust.evidence import Evidence, find_prior
from custom.trust.pose_refinement import PoseRefinement, PoseTolerance, refine_poses
from custom.trust.stated_intervals import StatedIntervals, state_intervals
from custom.trust.thresholds import Thresholds

__all__ = [
    "NAMES",
    "CheckResult",
    "Evidence",
    "PoseRefinement",
    "PoseTolerance",
    "StatedIntervals",
    "Thresholds",
    "Verdict",
    "find_prior",
    "overall",
    "refine_poses",
    "run_checks",
    "state_intervals",
]
