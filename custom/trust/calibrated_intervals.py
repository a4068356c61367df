"""What `fewview-ct calibrate` learns about intervals: for one beam and number of views, of voxels and of measures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict
from torch import Tensor

from custom.core.angles import angle_difference_deg
from custom.geometry import VolumeGrid
from custom.metrics.conformal import fewest_patients
from custom.networks import SegmentationUNet
from custom.trust.body_measures import MEASURES, measure_body
from custom.trust.measure_intervals import Kind, MeasureInterval, fit_measure_intervals
from custom.trust.voxel_intervals import VoxelIntervals, fit_voxel_intervals, residual_table

__all__ = ["COVERAGE", "CalibratedIntervals", "DoseIntervals", "fit_intervals", "interval_record"]

logger = logging.getLogger(__name__)

#: Of all intervals, unless another is asked for.
COVERAGE = 0.9
#: A view may stand so far from where the calibrated ones did [degrees].
ANGLE_TOLERANCE_DEG = 5.0


def _checked_measure(name: str) -> str:
    if name not in MEASURES:
        raise ValueError(f"{name!r} is no measure of this version")
    return name


@dataclass(frozen=True)
class DoseIntervals:
    """Of the dose at the isocentre that a plan on a reconstruction gives to the patient.

    Attributes:
        rules: what plans and doses were made by (`custom.radiotherapy.dose_rules`); of others nothing is known.
        templates: by name of a plan's template, of dose delivered / dose planned.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    rules: Mapping[str, str]
    templates: Mapping[str, MeasureInterval]


@dataclass(frozen=True)
class CalibratedIntervals:
    """Of one beam and number of views.

    Attributes:
        coverage: such as 0.9, in the mean over new patients.
        patients: how many were calibrated.
        spacing_mm: of the voxels that intervals are about.
        angles_deg: sets of angles that were calibrated.
        samples: drawn of each case; 0: the model's one volume.
        segmenter_sha256: of what found the organs; None: nothing did.
        voxels: intervals of voxels.
        measures: of `MEASURES`, as far as enough patients had them.
        doses: of plans; None: they were not calibrated.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    coverage: float
    patients: int
    spacing_mm: tuple[float, float, float]
    angles_deg: tuple[tuple[float, ...], ...]
    samples: int
    segmenter_sha256: str | None
    voxels: VoxelIntervals
    measures: Mapping[Annotated[str, AfterValidator(_checked_measure)], MeasureInterval]
    doses: DoseIntervals | None = None

    def __post_init__(self) -> None:
        if not 0 < self.coverage < 1 or min(self.spacing_mm) <= 0 or self.samples < 0:
            raise ValueError("coverage, spacing_mm or samples make no sense")

    def knows_angles(self, angles_deg: Sequence[float]) -> bool:
        """Whether views at these angles were calibrated; one from the opposite side shows the same lines."""
        return any(_alike(angles_deg, known) and _alike(known, angles_deg) for known in self.angles_deg)

    def spread_as_evenly(self, angles_deg: Sequence[float]) -> bool:
        """Whether views at these angles, more than were calibrated, leave no larger gap than they; not for one view."""
        views = min(len(known) for known in self.angles_deg)
        most = min(_largest_gap(known) for known in self.angles_deg) + 2 * ANGLE_TOLERANCE_DEG
        return len(angles_deg) > views > 1 and _largest_gap(angles_deg) <= most

    def blocks(self, grid: VolumeGrid) -> tuple[int, int, int] | None:
        """How many voxels of a grid make one of those that were calibrated; None: no whole number does."""
        ratios = [own / given for own, given in zip(self.spacing_mm, grid.spacing_mm, strict=True)]
        x, y, z = (max(1, round(ratio)) for ratio in ratios)
        fits = all(abs(r - n) < 1e-3 * n for r, n in zip(ratios, (x, y, z), strict=True))
        return (x, y, z) if fits and not any(s % n for s, n in zip(grid.shape, (x, y, z), strict=True)) else None


def _alike(some: Sequence[float], others: Sequence[float]) -> bool:
    def apart(a: float, b: float) -> float:
        difference = abs(angle_difference_deg(a, b))
        return min(difference, 180 - difference)

    return all(min(apart(a, b) for b in others) <= ANGLE_TOLERANCE_DEG for a in some)


def _largest_gap(angles_deg: Sequence[float]) -> float:
    """Between neighbouring lines of sight, of which opposite ones are the same, degrees."""
    lines = sorted(angle % 180 for angle in angles_deg)
    return max(after - before for before, after in zip(lines, [*lines[1:], lines[0] + 180], strict=True))


def interval_record(hu: Tensor, truth: Tensor, grid: VolumeGrid, segmenter: SegmentationUNet | None) -> dict[str, Any]:
    """What the intervals need of a case, as plain numbers.

    Args:
        hu: reconstruction (X, Y, Z), HU within the window.
        truth: likewise.
        grid: of both.
        segmenter: finds organs; None: there is none.
    """
    return {
        "residuals": residual_table(hu, truth),
        "measures": dict(measure_body(hu, grid, segmenter).values),
    }


def fit_intervals(
    records: Sequence[Mapping[str, Any]],
    truths: Sequence[Mapping[str, float | None]],
    patients: Sequence[str],
    acquisition: Mapping[str, Any],
    kinds: Mapping[str, Kind] | None = None,
    growth: float = 1.0,
    coverage: float = COVERAGE,
    dose_rules: Mapping[str, str] | None = None,
) -> CalibratedIntervals | None:
    """The intervals of one group; None, with a warning, for too few patients.

    Args:
        records: of `interval_record`, one a case; with `dose_rules` also "planned_gy" and "delivered_gy" by template,
            None where no plan was possible.
        truths: measures of the true CTs.
        patients: whose each case is.
        acquisition: spacing_mm, angles_deg, samples and segmenter_sha256 of `CalibratedIntervals`.
        kinds, growth, coverage: as in `fit_measure_intervals`.
        dose_rules: of `DoseIntervals`; None: there are no doses.
    """
    count = len(set(patients))
    if count < fewest_patients(coverage):
        logger.warning(
            "%d patients: intervals that hold for %.0f %% of them need at least %d, none are calibrated",
            count, 100 * coverage, fewest_patients(coverage),
        )  # fmt: skip
        return None
    voxels = fit_voxel_intervals([record["residuals"] for record in records], patients, coverage)
    found = [record["measures"] for record in records]
    measures = fit_measure_intervals(found, truths, patients, coverage, kinds, growth)
    doses = None
    if dose_rules is not None:
        planned, delivered = ([record[key] for record in records] for key in ("planned_gy", "delivered_gy"))
        positive = dict.fromkeys(planned[0], True)
        fitted = fit_measure_intervals(planned, delivered, patients, coverage, kinds, growth, positive)
        doses = DoseIntervals(dose_rules, fitted)
    return CalibratedIntervals(coverage, count, voxels=voxels, measures=measures, doses=doses, **acquisition)
