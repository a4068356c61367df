"""Calibration of posterior samples against the truth: bias, variance, coverage.

Source: DIFR3CT paper, section IV-C and figure 8. docs/explanation/uncertainty.md says how the numbers are to be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import special, stats
from torch import Tensor

from custom.metrics.sample_statistics import SampleStatistics, Volume, check_shape, one_volume

__all__ = [
    "COVERAGE_LEVELS",
    "interval_coverage",
    "mean_error",
    "summarise_case",
]

COVERAGE_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def mean_error(statistics: SampleStatistics, truth_hu: Volume) -> Tensor:
    """Mean - truth, (X, Y, Z) HU, float64."""
    truth, mean = one_volume(truth_hu, "the truth"), statistics.mean()
    check_shape("the truth", truth.shape, "the samples", mean.shape)
    bad = int((~torch.isfinite(truth)).sum())
    if bad:
        raise ValueError(f"the truth holds {bad} voxels of {truth.numel()} that are NaN or infinite: repair the CT")
    return mean - truth.to(torch.float64).clamp(*statistics.hu_window)


def interval_coverage(
    statistics: SampleStatistics, truth_hu: Volume, levels: Sequence[float] = COVERAGE_LEVELS
) -> list[dict[str, float]]:
    """The calibration curve: in how many voxels of the body the truth lies within the interval of a nominal level.

    The interval is mean +- t std sqrt(1 + m), the prediction interval for one more draw: m the samples'
    `mean_variance_share` (1/N for independent ones), t the two-sided quantile of Student's distribution with N - 1
    degrees of freedom. A calibrated posterior that is Gaussian in each voxel covers every level at any N; for large N
    the interval becomes mean +- z std.

    Args:
        statistics: of two or more samples.
        truth_hu: (X, Y, Z) HU on the samples' grid; clipped to their window.
        levels: nominal, each between 0 and 1, both excluded.

    Returns:
        ``{"level": nominal, "coverage": share of voxels}`` per level.

    Raises:
        ValueError: fewer than two samples, shapes that differ, NaN in the truth, a level outside (0, 1).
    """
    wrong = [level for level in levels if not 0 < level < 1]
    if wrong:
        raise ValueError(f"levels must lie between 0 and 1, both excluded (0.9 for 90 %); got {wrong}")
    body, count = statistics.body(), statistics.count
    error = mean_error(statistics, truth_hu)[body].abs_()
    reach = statistics.std()[body] * math.sqrt(1 + statistics.mean_variance_share())
    quantiles = [float(special.stdtrit(count - 1, (1 + level) / 2)) for level in levels]
    return [
        {"level": float(level), "coverage": (error <= quantile * reach).double().mean().item()}
        for level, quantile in zip(levels, quantiles, strict=True)
    ]


def _pearson(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> float:
    """Correlation coefficient, NaN where one of the two is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    first, second = first - first.mean(), second - second.mean()
    return float(first @ second / math.sqrt((first @ first) * (second @ second)))


def summarise_case(statistics: SampleStatistics, truth_hu: Volume | None = None) -> dict[str, float]:
    """The numbers of one case, taken inside the body.

    Let v be the mean unbiased variance and e the mean squared error of the samples' mean. If truth and samples are
    draws of one posterior of variance s^2, then mean - truth has variance s^2 + m s^2, m the samples'
    `mean_variance_share` (1/N for independent ones), so that e is expected to be (1 + m) v.

    Args:
        statistics: of two or more samples.
        truth_hu: (X, Y, Z) HU on the samples' grid, clipped to their window; None where it is not known.

    Returns:
        ``samples``, N, and ``std_hu_body``, sqrt(v), the single number of a case. With a truth also:
        ``rmse_mean_hu_body``, sqrt(e); ``rmse_sample_hu_body``, root mean square over samples and voxels of a
        sample's error; ``variance_ratio``, v / e; ``calibration_ratio``, (1 + m) v / e: about 1 for a calibrated
        posterior, below 1 for samples that agree with each other more than with the truth; ``coverage_90``, share of
        voxels inside their 90 % interval (`interval_coverage`); ``pearson_std_error`` and ``spearman_std_error``,
        correlation over voxels of std and abs(mean - truth), NaN where one is constant.

    Raises:
        ValueError: fewer than two samples, shapes that differ, NaN in the truth, no body in the mean.
    """
    body, count = statistics.body(), statistics.count
    std = statistics.std()[body]
    variance = std.square().mean()
    values: dict[str, float] = {"samples": count, "std_hu_body": variance.sqrt().item()}
    if truth_hu is None:
        return values
    error = mean_error(statistics, truth_hu)[body].abs_()
    squared, share = error.square().mean(), statistics.mean_variance_share()
    ratio = (variance / squared).item()  # of tensors: infinite, not an error, where the mean is the truth
    deviations, errors = std.numpy(), error.numpy()
    return values | {
        "rmse_mean_hu_body": squared.sqrt().item(),
        "rmse_sample_hu_body": (squared + (1 - share) * variance).sqrt().item(),
        "variance_ratio": ratio,
        "calibration_ratio": (1 + share) * ratio,
        "coverage_90": interval_coverage(statistics, truth_hu, [0.9])[0]["coverage"],
        "pearson_std_error": _pearson(deviations, errors),
        "spearman_std_error": _pearson(stats.rankdata(deviations), stats.rankdata(errors)),
    }
