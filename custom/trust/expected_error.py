"""How wrong a reconstruction is expected to be: calibrated errors as a linear model of what the checks measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

__all__ = ["ExpectedError", "fit_expected_error"]

#: Beyond so many spreads a statistic says no more about the error.
_FARTHEST = 3.0
#: Weight of the penalty that keeps a statistic which says little from being believed, in cases.
_PENALTY = 4.0


@dataclass(frozen=True)
class ExpectedError:
    """Of one beam and number of views: log(error) = intercept + sum of weight * (statistic - centre) / spread.

    The error is the root mean square difference from the CT over the model's cube, within its HU window.

    Attributes:
        intercept: log of HU.
        center, spread, weight: by statistic. No weight is negative: statistics are larger for what is less trustworthy.
        upper: what is added to the log for a bound that holds for a share `coverage` of cases like the calibrated ones
            (split conformal, on residuals of cases that were left out of the fit).
        coverage: such as 0.9.
        lowest, highest: errors among the calibrated cases [HU].
    """

    intercept: float
    center: Mapping[str, float]
    spread: Mapping[str, float]
    weight: Mapping[str, float]
    upper: float
    coverage: float
    lowest: float
    highest: float

    def of(self, statistics: Mapping[str, float | None]) -> tuple[float, float]:
        """Expected error and its upper bound [HU]; a statistic that was not measured counts as usual."""
        log = self.intercept
        for name, weight in self.weight.items():
            if (value := statistics.get(name)) is not None:
                log += weight * min(max((value - self.center[name]) / self.spread[name], -_FARTHEST), _FARTHEST)
        return math.exp(log), math.exp(log + self.upper)


def fit_expected_error(
    cases: Sequence[Mapping[str, float | None]], errors_hu: Sequence[float], coverage: float = 0.9
) -> ExpectedError:
    """The model for one group of cases.

    Args:
        cases: statistics of each; those that half of the cases lack are left out.
        errors_hu: root mean square error of each [HU].
        coverage: of the upper bound.

    Raises:
        ValueError: for too few cases for such a bound, or an error that is not positive.
    """
    if len(cases) != len(errors_hu) or not all(0 < error < math.inf for error in errors_hu):
        raise ValueError("every case needs a positive error")
    rank = math.ceil((len(cases) + 1) * coverage)
    if rank > len(cases):
        raise ValueError(f"a bound that holds for {coverage:.0%} needs more than {len(cases)} cases")
    names = [name for name in cases[0] if sum(case.get(name) is not None for case in cases) > len(cases) / 2]
    table = np.array([[math.nan if (v := case.get(name)) is None else v for name in names] for case in cases], float)
    center = np.nanmedian(table, axis=0)
    spread = np.maximum(np.nanquantile(np.abs(table - center), 0.68, axis=0), 1e-9)
    design = np.nan_to_num(np.clip((table - center) / spread, -_FARTHEST, _FARTHEST))
    logs = np.log(errors_hu)
    left_out = []
    for k in range(len(cases)):
        kept = np.arange(len(cases)) != k
        weights, intercept = _fit(design[kept], logs[kept])
        left_out.append(logs[k] - intercept - design[k] @ weights)
    weights, intercept = _fit(design, logs)
    return ExpectedError(
        float(intercept),
        dict(zip(names, center.tolist(), strict=True)),
        dict(zip(names, spread.tolist(), strict=True)),
        dict(zip(names, weights.tolist(), strict=True)),
        float(sorted(left_out)[rank - 1]),
        coverage,
        float(min(errors_hu)),
        float(max(errors_hu)),
    )


def _fit(design: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights, none negative, and intercept of a ridge regression."""
    middle = design.mean(0)
    penalty = math.sqrt(_PENALTY) * np.eye(design.shape[1])
    target = np.concatenate([logs - logs.mean(), np.zeros(design.shape[1])])
    weights = nnls(np.vstack([design - middle, penalty]), target)[0]
    return weights, float(logs.mean() - middle @ weights)
