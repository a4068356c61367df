"""A dose with its uncertainty: every number once more for each sample of the posterior.

The plan is the one made on the mean volume, with its monitor units; each sample is a CT that the radiographs allow,
with contours of its own. The dose on the samples' mean is not the mean of their doses, so both stand side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from custom.networks import SegmentationUNet
from custom.radiotherapy.contours import NotPossible
from custom.radiotherapy.dose_engine import DoseEngine
from custom.radiotherapy.dose_metrics import dvh
from custom.radiotherapy.planning import PlannedCase, contour, dose_numbers
from custom.radiotherapy.planning_ct import PlanningCT
from custom.radiotherapy.relative_density import relative_density

__all__ = ["INTERVAL_PERCENT", "Interval", "SampleDoses", "dvh_doses", "sample_doses"]

FloatArray = npt.NDArray[np.floating]

#: Percentiles of the samples that bound an interval: nine tenths of them lie inside.
INTERVAL_PERCENT = (5.0, 95.0)
_DVH_POINTS = 201


@dataclass(frozen=True)
class Interval:
    """Of one number over the samples.

    Attributes:
        low, high: percentiles of `INTERVAL_PERCENT`, interpolated.
        median: of the samples.
        count: samples that have the number.
    """

    low: float
    median: float
    high: float
    count: int

    def holds(self, value: float) -> bool:
        """Whether a value lies inside."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class SampleDoses:
    """What the samples say of a plan.

    Attributes:
        intervals: of every number of `dose_numbers`.
        histograms: by structure (samples, points) percent, at `dvh_doses`.
        refused: reasons of samples on which nothing could be contoured.
    """

    intervals: Mapping[str, Interval]
    histograms: Mapping[str, FloatArray]
    refused: Sequence[str] = field(default_factory=tuple)

    def coverage(self, true: Mapping[str, float]) -> float | None:
        """The share of the true numbers that lie in their intervals; None where there is nothing to compare."""
        inside = [self.intervals[name].holds(value) for name, value in true.items() if name in self.intervals]
        return sum(inside) / len(inside) if inside else None


def dvh_doses(prescription_gy: float) -> npt.NDArray[np.float64]:
    """Doses at which histograms are drawn: 0 to 125 % of the prescription, Gy."""
    return np.linspace(0, 1.25 * prescription_gy, _DVH_POINTS)


def sample_doses(
    case: PlannedCase, samples: Iterable[PlanningCT], segmenter: SegmentationUNet, engine: DoseEngine
) -> SampleDoses:
    """Doses of a plan on each sample.

    Args:
        case: the plan, made on the samples' mean.
        samples: on its grid; one is held at a time.
        segmenter: that contours them.
        engine: that computes.

    Raises:
        ValueError: a sample on another grid.
    """
    doses, numbers, refused = dvh_doses(case.plan.prescription_gy), [], []
    histograms: dict[str, list[FloatArray]] = {}
    for sample in samples:
        if sample.grid != case.ct.grid:
            raise ValueError(f"a sample on the grid {sample.grid}, the plan's is {case.ct.grid}")
        try:
            contours = contour(sample, segmenter, case.plan.target)
        except NotPossible as error:
            refused.append(str(error))
            continue
        density = relative_density(sample.hu, contours.mask("External"), case.plan.density_table)
        dose = engine.dose(density, sample.grid, case.plan) * np.float32(case.plan.fractions)
        numbers.append(dose_numbers(sample, contours, case.plan, dose))
        for name, one in contours.structures.items():
            if one.kind != "EXTERNAL":
                histograms.setdefault(name, []).append(dvh(dose, one.mask, doses))
    names = dict.fromkeys(name for row in numbers for name in row)
    found = {name: [row[name] for row in numbers if name in row] for name in names}
    return SampleDoses(
        {name: _interval(values) for name, values in found.items()},
        {name: np.stack(rows) for name, rows in histograms.items()},
        tuple(refused),
    )


def _interval(values: Sequence[float]) -> Interval:
    low, high = np.percentile(values, INTERVAL_PERCENT)
    return Interval(float(low), float(np.median(values)), float(high), len(values))
