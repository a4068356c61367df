"""What is said of one reconstruction: intervals of its voxels and measures, or why there are none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import Tensor

from custom.geometry import ViewRow, VolumeGrid
from custom.networks import SegmentationUNet
from custom.trust.body_measures import MEASURES, POSITIVE, measure_body
from custom.trust.calibrated_intervals import CalibratedIntervals, DoseIntervals
from custom.trust.check_results import CheckResult, Verdict
from custom.trust.evidence import Evidence
from custom.trust.thresholds import Threshold, Thresholds, group_name

__all__ = ["StatedIntervals", "StatedMeasure", "state_intervals"]

#: Statistics that must not be larger than in any calibrated case: beyond them nothing is known.
_FARTHEST = {
    "population": "the radiographs are farther from the population than those of any calibrated case",
    "expected_error": "the error is expected to be larger than that of any calibrated case",
}


@dataclass(frozen=True)
class StatedMeasure:
    """A number with its interval.

    Attributes:
        name: of `MEASURES`.
        value: what the reconstruction says; None where it could not be measured.
        lower, upper: of the truth; None where there is no interval.
        why_not: in words, where something is None.
    """

    name: str
    value: float | None
    lower: float | None = None
    upper: float | None = None
    why_not: str | None = None

    def __str__(self) -> str:
        words, unit, _ = MEASURES[self.name]
        if self.lower is None or self.upper is None:
            return f"{words}: {self.why_not}"
        return f"{words}: {_rounded(self.lower, math.floor)} to {_rounded(self.upper, math.ceil)} {unit}"


@dataclass(frozen=True)
class StatedIntervals:
    """Of one reconstruction.

    Attributes:
        abstained: why there are no intervals; None: there are.
        lower, upper: (X, Y, Z) HU on the reconstruction's grid; of a block of voxels as large as those that were
            calibrated each voxel has the limits of the block's mean. None where abstained.
        block_mm: side of those blocks.
        measures: numbers with intervals.
        coverage, patients: on what they rest.
        lowest: share of the body's voxels that held in the worst calibrated patient.
        views: how many were calibrated, where that is fewer than there are; None: as many.
        doses: of plans on it; None: they were not calibrated, or not with so many views.
    """

    abstained: str | None
    lower: Tensor | None = None
    upper: Tensor | None = None
    block_mm: tuple[float, float, float] | None = None
    measures: Sequence[StatedMeasure] = field(default=())
    coverage: float | None = None
    patients: int = 0
    lowest: float | None = None
    views: int | None = None
    doses: DoseIntervals | None = None

    @property
    def basis(self) -> str:
        """What the statement rests on, in words."""
        if self.abstained is not None or self.coverage is None or self.block_mm is None or self.lowest is None:
            return f"No interval is stated: {self.abstained}."
        fewer = (
            ""
            if self.views is None
            else f" Calibrated were {self.views} radiographs, no more evenly spread than these: with more the "
            "intervals are wider than they would have to be."
        )
        block = " x ".join(f"{side:g}" for side in self.block_mm)
        return (
            f"Each interval holds in {self.coverage:.0%} of patients like the {self.patients} that it was calibrated "
            f"on; of the intervals of single places (means over {block} mm) {self.coverage:.0%} hold in the mean over "
            f"such patients, and at least {math.floor(100 * self.lowest)}% held in each of the calibrated. Of a "
            f"patient unlike them they say nothing.{fewer}"
        )

    def wider_than(self, width_hu: float) -> Tensor | None:
        """bool (X, Y, Z), where an interval is wider; None where abstained."""
        return None if self.lower is None or self.upper is None else self.upper - self.lower > width_hu


def state_intervals(
    evidence: Evidence,
    checks: Sequence[CheckResult],
    thresholds: Thresholds,
    hu_window: tuple[float, float],
    samples: int = 0,
    segmenter: tuple[SegmentationUNet, str] | None = None,
) -> StatedIntervals:
    """Intervals of a reconstruction, or an abstention with its reason.

    Args:
        evidence: radiographs and reconstruction.
        checks: of `run_checks` on it.
        thresholds: of the model.
        hu_window: of the model.
        samples: that the reconstruction is the mean of; 0: it is the model's one volume.
        segmenter: finds organs, with its SHA-256; None: there is none.
    """
    angles = [float(ViewRow.from_tensor(view.double()).angle_deg) for view in evidence.views]
    found, views = _calibrated_for(thresholds, evidence.beam, angles)
    why = _why_not(evidence, angles, checks, thresholds, found, samples)
    blocks = None if found is None else found.blocks(evidence.grid)
    if why is not None or found is None or blocks is None or evidence.hu is None:
        return StatedIntervals(why or "there is no reconstruction")
    low, high = hu_window
    coarse = F.avg_pool3d(evidence.hu.float().clamp(low, high)[None], blocks)[0]
    voxels = found.voxels
    if views < len(angles):
        # With more views bone is shown more boldly than any that was calibrated: of it nothing is known.
        voxels = replace(voxels, factor={**voxels.factor, "bone": None})
    lower, upper = voxels.around(coarse, hu_window)
    for axis, factor in enumerate(blocks):
        lower, upper = (limit.repeat_interleave(factor, axis) for limit in (lower, upper))
    nx, ny, nz = coarse.shape
    grid = VolumeGrid((nx, ny, nz), found.spacing_mm, evidence.grid.center_mm)
    return StatedIntervals(
        None,
        lower,
        upper,
        found.spacing_mm,
        _measures(coarse, grid, found, segmenter),
        found.coverage,
        found.patients,
        found.voxels.lowest,
        None if views == len(angles) else views,
        # Of three views, with the limits of two, they held in 3 of 10 plans.
        found.doses if views == len(angles) else None,
    )


def _calibrated_for(
    thresholds: Thresholds, beam: str, angles_deg: Sequence[float]
) -> tuple[CalibratedIntervals | None, int]:
    """Intervals for so many views, or of the largest smaller number that was spread no more evenly; and that number."""
    views = len(angles_deg)
    exact = thresholds.intervals.get(group_name(beam, views))
    if exact is not None:
        return exact, views
    for fewer in range(views - 1, 1, -1):
        found = thresholds.intervals.get(group_name(beam, fewer))
        if found is not None and found.spread_as_evenly(angles_deg):
            return found, fewer
    return None, views


def _measures(
    hu: Tensor, grid: VolumeGrid, found: CalibratedIntervals, segmenter: tuple[SegmentationUNet, str] | None
) -> list[StatedMeasure]:
    other = segmenter is not None and segmenter[1] != found.segmenter_sha256
    measured = measure_body(hu, grid, None if segmenter is None or other else segmenter[0])
    stated = []
    for name, value in measured.values.items():
        interval = found.measures.get(name)
        if value is None:
            why = "another network finds the organs than in the calibration" if other else measured.missing[name]
            stated.append(StatedMeasure(name, None, why_not=why))
        elif interval is None:
            stated.append(StatedMeasure(name, value, why_not="too few calibrated patients had it"))
        else:
            stated.append(StatedMeasure(name, value, *interval.around(value, POSITIVE[name])))
    return stated


def _why_not(
    evidence: Evidence,
    angles: Sequence[float],
    checks: Sequence[CheckResult],
    thresholds: Thresholds,
    found: CalibratedIntervals | None,
    samples: int,
) -> str | None:
    if not thresholds.intervals:
        return "no intervals are calibrated for this model; ask whoever maintains the model"
    here = group_name(evidence.beam, len(evidence.views))
    if found is None:
        known = ", ".join(thresholds.intervals)
        return (
            f"beam and number of radiographs ({here}) were not calibrated, nor fewer that are spread no more evenly; "
            f"there are {known}"
        )
    if not found.knows_angles(angles) and not found.spread_as_evenly(angles):
        sets = " or ".join(", ".join(f"{a:g}" for a in known) for known in found.angles_deg)
        return f"radiographs at {', '.join(f'{a:.0f}' for a in angles)} degrees were not calibrated; there are {sets}"
    if samples != found.samples:
        return f"it is the mean of {samples} samples, and {found.samples} were calibrated"
    if found.blocks(evidence.grid) is None:
        calibrated, own = ([f"{s:g}" for s in one] for one in (found.spacing_mm, evidence.grid.spacing_mm))
        return f"voxels of {' x '.join(calibrated)} mm were calibrated, and those of {' x '.join(own)} mm do not fit"
    rejected = [check for check in checks if check.verdict is Verdict.REJECT]
    if rejected:
        return f"a trust check says REJECT ({rejected[0].name.replace('_', ' ')})"
    limits, _ = thresholds.of(evidence.beam, len(evidence.views)) or ({}, "")
    return _too_far({check.name: check.statistic for check in checks}, limits)


def _too_far(statistics: Mapping[str, float | None], limits: Mapping[str, Threshold]) -> str | None:
    for name, words in _FARTHEST.items():
        value, limit = statistics.get(name), limits.get(name)
        if value is not None and limit is not None and not value <= limit.largest:
            return f"{words} ({value:.3g}, at most {limit.largest:.3g})"
    return None


def _rounded(value: float, outward: Callable[[float], int]) -> str:
    """Two or three digits, as volumes and depths are read, and never nearer."""
    step = 10 if abs(value) >= 200 else 1
    return f"{outward(value / step) * step:,}".replace(",", " ")
