"""Thresholds of the trust checks: the file that `fewview-ct calibrate` makes, with what it was made from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator, ConfigDict, FiniteFloat

from custom.core.files import read_json_object, write_json
from custom.core.json_models import validated
from custom.geometry import BEAMS
from custom.trust.calibrated_intervals import CalibratedIntervals
from custom.trust.check_results import Verdict
from custom.trust.check_statistics import STATISTICS, Quantiles
from custom.trust.expected_error import ExpectedError

__all__ = ["FORMAT", "Threshold", "Thresholds", "TrainedRange", "fit_thresholds", "group_name"]

FORMAT = "fewview-ct thresholds 1"

#: Statistics that are positive and span orders of magnitude, and what counts as zero.
_LOGARITHMIC = {"reprojection": 1e-4, "agreement": 1e-4, "truncation": 1e-3}
#: What limits a result without breaking it is never refused.
LIMITING = frozenset({"truncation", "samples", "expected_error"})
#: Log ratios whose sign a mistake turns round, so that they need no limit but zero for REVIEW.
_SYMMETRIC = {"orientation"}
#: Share of the cases that says how long a statistic's upper tail is.
_TAIL = 0.1
#: Fewest cases that a threshold is made from.
FEWEST_CASES = 10


def _checked_group(name: str) -> str:
    beam, _, count = name.partition(" ")
    if beam not in BEAMS or not count.isdigit() or int(count) < 1:
        raise ValueError(f"{name!r} names no beam and number of views")
    return name


def _checked_statistic(name: str) -> str:
    if name not in STATISTICS:
        raise ValueError(f"{name!r} is no statistic of this version")
    return name


GroupName = Annotated[str, AfterValidator(_checked_group)]
StatisticName = Annotated[str, AfterValidator(_checked_statistic)]


@dataclass(frozen=True)
class Threshold:
    """Of one statistic, for one beam and number of views.

    Attributes:
        review_above, reject_above: the limits; no second one where a result is limited and not broken.
        median, quantile_90, quantile_95, largest: of the statistic among the cases of calibration.
        cases: how many had it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    review_above: float
    reject_above: float | None
    median: float
    quantile_90: float
    quantile_95: float
    largest: float
    cases: int

    def __post_init__(self) -> None:
        if self.reject_above is not None and self.reject_above < self.review_above:
            raise ValueError(f"reject_above ({self.reject_above}) is below review_above ({self.review_above})")

    def verdict(self, value: float) -> Verdict:
        """What a statistic means; one that is no number is the worst."""
        if value <= self.review_above:
            return Verdict.PASS
        return Verdict.REVIEW if self.reject_above is None or value <= self.reject_above else Verdict.REJECT


@dataclass(frozen=True)
class TrainedRange:
    """Acquisitions that the model was trained for.

    Attributes:
        views: numbers of views.
        beams: "parallel", "cone".
        source_to_isocenter_mm, source_to_detector_mm: smallest and largest, cone beam.
        tilt_deg: largest angle of central ray and detector rows with the axial plane.
        reject_beyond: share of a range's width by which a geometry may lie outside before it is refused.

    Raises:
        ValueError: for what is no range.
    """

    views: tuple[int, ...]
    beams: tuple[str, ...]
    source_to_isocenter_mm: tuple[float, float]
    source_to_detector_mm: tuple[float, float]
    tilt_deg: float
    reject_beyond: float

    def __post_init__(self) -> None:
        if not self.views or min(self.views) < 1 or not self.beams or not set(self.beams) <= set(BEAMS):
            raise ValueError(f"needs numbers of views and beams (parallel, cone), got {self.views} and {self.beams}")
        for low, high in (self.source_to_isocenter_mm, self.source_to_detector_mm):
            if not 0 < low <= high < math.inf:
                raise ValueError(f"a range of distances must be positive, smallest first, got {low}, {high}")
        if not (0 <= self.tilt_deg < 90 and 0 <= self.reject_beyond < math.inf):
            raise ValueError(f"tilt_deg or reject_beyond makes no sense: {self.tilt_deg}, {self.reject_beyond}")


@dataclass(frozen=True)
class Thresholds:
    """All that decides between PASS, REVIEW and REJECT.

    Attributes:
        groups: by `group_name`, then by statistic.
        quantiles: by beam, the usual distribution of line integrals.
        trained: acquisitions that the model was trained for.
        made_from: data lists and model with their SHA-256, simulation, number of cases, false-alarm level, software.
        expected_error: by `group_name`; files of older versions have none.
        intervals: likewise.
        calibrated: by `group_name` and statistic the values of the patients, sorted; likewise.
    """

    groups: Mapping[GroupName, Mapping[StatisticName, Threshold]]
    quantiles: Mapping[str, Quantiles]
    trained: TrainedRange
    made_from: Mapping[str, Any]
    expected_error: Mapping[GroupName, ExpectedError] = field(default_factory=dict)
    intervals: Mapping[GroupName, CalibratedIntervals] = field(default_factory=dict)
    calibrated: Mapping[GroupName, Mapping[StatisticName, tuple[FiniteFloat, ...]]] = field(default_factory=dict)

    def of(self, beam: str, views: int) -> tuple[Mapping[str, Threshold], str] | None:
        """Thresholds for a beam and a number of views, and the name of their group.

        Where that number was not calibrated, those of the next one by ratio; None if the beam was not calibrated, or
        a single view is asked for and only several were, or the other way round.
        """
        counts = [int(name.split()[1]) for name in self.groups if name.split()[0] == beam]
        counts = [count for count in counts if (count == 1) == (views == 1)]
        if not counts:
            return None
        nearest = group_name(beam, min(counts, key=lambda count: (abs(math.log(count / views)), count)))
        return self.groups[nearest], nearest

    def require_model(
        self, sha256: str, name: str, path: str | os.PathLike[str], sampling: Mapping[str, Any] | None = None
    ) -> None:
        """Raises ValueError unless they were made with these weights: how good other weights are they do not know.

        Args:
            sha256: of the model's weights.
            name: of the model.
            path: of the thresholds.
            sampling: settings of the samples that are to be judged; None: there are none.
        """
        model = self.made_from.get("model")
        known = model if isinstance(model, Mapping) else {}
        if known.get("sha256") != sha256:
            raise ValueError(
                f"{path}: thresholds of another model ({known.get('name')}, SHA-256 {str(known.get('sha256'))[:12]}), "
                f"not of {name} ({sha256[:12]}): make its own with 'fewview-ct calibrate'"
            )
        made = known.get("sampling")
        if sampling and not made:
            raise ValueError(
                f"{path}: thresholds of the one volume of {name}, not of samples: draw none, or make thresholds of "
                "samples with 'fewview-ct calibrate --samples N'"
            )
        if made and sampling:
            differ = [key for key in sorted({*made, *sampling}) if made.get(key) != sampling.get(key)]
            if differ:
                before, now = made.get(differ[0]), sampling.get(differ[0])
                raise ValueError(
                    f"{path}: thresholds of samples with {differ[0]} {before}, not {now}: draw them so, or make "
                    "thresholds of these with 'fewview-ct calibrate'"
                )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write as JSON, whole or not at all."""
        return write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Thresholds:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: naming the file and what is wrong with it.
        """
        try:
            content = read_json_object(Path(path), "no such thresholds; 'fewview-ct calibrate' makes them")
            if content.pop("format", None) != FORMAT:
                raise ValueError(f"{path}: its format is not {FORMAT!r}")
            return validated(cls, content, str(path))
        except ValueError as error:
            raise ValueError(
                f"{error}; not thresholds of fewview-ct: make them anew with 'fewview-ct calibrate'"
            ) from error


def group_name(beam: str, views: int) -> str:
    """Key of `Thresholds.groups`, such as "cone 2"."""
    return f"{beam} {views}"


def check_shares(false_alarms: float, reject_factor: float) -> None:
    """Raises ValueError for what `fit_thresholds` cannot take."""
    if not 0 < false_alarms < 1 or not 1 <= reject_factor < math.inf:
        raise ValueError(
            f"false_alarms must lie between 0 and 1 and reject_factor be 1 or more, got {false_alarms}, {reject_factor}"
        )


def fit_thresholds(
    cases: Sequence[Mapping[str, float | None]], false_alarms: float, reject_factor: float
) -> dict[str, Threshold]:
    """Thresholds of one group so that a given share of its cases has any statistic above its `review_above`.

    Every statistic is centred at its median and divided by the distance from there to the mean of its highest tenth,
    after taking the logarithm where it spans orders of magnitude. A case's largest such score is its alarm; one limit
    for all statistics leaves `false_alarms` of the cases above it. `reject_above` lies `reject_factor` times as far
    out. "orientation" is left out of this: it is negative for a picture that looks right as it is. So are the
    statistics of what limits a result without breaking it: a review is asked for what no case showed.

    Args:
        cases: statistics of each, None where it could not be measured.
        false_alarms: share of all checks together, such as 0.05.
        reject_factor: at least 1.

    Raises:
        ValueError: for too few cases, or a share or factor that makes no sense.
    """
    check_shares(false_alarms, reject_factor)
    if len(cases) < FEWEST_CASES:
        raise ValueError(f"thresholds need at least {FEWEST_CASES} cases, got {len(cases)}")
    scales: dict[str, tuple[float, float]] = {}
    for name in STATISTICS:
        values = sorted(_to_scale(name, v) for case in cases if (v := case.get(name)) is not None)
        if len(values) >= FEWEST_CASES:
            middle = float(np.quantile(values, 0.5))
            highest = values[-math.ceil(_TAIL * len(values)) :]
            scales[name] = middle, max(math.fsum(highest) / len(highest) - middle, 1e-3 * max(abs(middle), 1.0))
    scored = [name for name in scales if name not in _SYMMETRIC | LIMITING]
    alarms = sorted(
        max(
            ((_to_scale(n, v) - scales[n][0]) / scales[n][1] for n in scored if (v := case.get(n)) is not None),
            default=-math.inf,
        )
        for case in cases
    )
    limit = max(0.0, alarms[min(len(alarms), math.ceil(len(alarms) * (1 - false_alarms))) - 1])
    found = {}
    for name, (middle, spread) in scales.items():
        values = sorted(v for case in cases if (v := case.get(name)) is not None)
        review_above, reject_above = (_from_scale(name, middle + f * limit * spread) for f in (1.0, reject_factor))
        if name in _SYMMETRIC:
            review_above, reject_above = 0.0, max(reject_above, 0.0)
        elif name in LIMITING:
            review_above = values[-1]
        median, q90, q95 = (float(value) for value in np.quantile(values, (0.5, 0.9, 0.95)))
        reject = None if name in LIMITING else reject_above
        found[name] = Threshold(review_above, reject, median, q90, q95, values[-1], len(values))
    return found


def _to_scale(name: str, value: float) -> float:
    return math.log(max(value, _LOGARITHMIC[name])) if name in _LOGARITHMIC else value


def _from_scale(name: str, value: float) -> float:
    return math.exp(value) if name in _LOGARITHMIC else value
