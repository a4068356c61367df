"""Conformal limits where the unit that repeats itself is the patient, not the voxel.

Voxels of one patient stand or fall together, so a thousand of them are no thousand observations. What is exchangeable
are patients: the next one is as likely to be the worst of all as any of those that were calibrated. Each patient's
share of scores above a limit is one loss between 0 and 1, and `patientwise_limit` bounds its expectation for the next
patient.

Sources: Vovk, Gammerman, Shafer, "Algorithmic learning in a random world", 2005 (exchangeability, the + 1); Lei et al.,
JASA 113:1094, 2018 (split conformal); Dunn, Wasserman, Ramdas, JASA 118:2491, 2023 (groups of observations: the
average of the groups' distributions); Angelopoulos et al., "Conformal risk control", ICLR 2024 (theorem 1, here with
losses of at most `worst`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["fewest_patients", "interval_score", "patientwise_limit"]

FloatArray = npt.NDArray[np.floating]


def fewest_patients(coverage: float) -> int:
    """How many patients a limit of this coverage needs: 9 for 90 %."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def patientwise_limit(
    scores: Sequence[FloatArray],
    coverage: float,
    weights: Sequence[FloatArray] | None = None,
    worst: float = 1.0,
) -> float:
    """The smallest limit that in the mean over patients a share `coverage` of a new patient's scores stays below.

    With n patients it is the smallest q for which (sum of the patients' shares above q, plus `worst`) / (n + 1) is at
    most 1 - coverage. With one score a patient this is split conformal prediction.

    Args:
        scores: of each patient, one or many; larger is worse.
        coverage: between 0 and 1, such as 0.9.
        weights: of each score, such as voxels, not negative; None: all alike. Every patient counts the same.
        worst: a patient of whom a larger share lies above the limit counts as if it were this one. What is promised is
            the mean of shares that are cut off there; less than 1 asks for less slack for the patient to come.

    Raises:
        ValueError: for a coverage or worst share that is none, too few patients for it, or a patient without scores.
    """
    if not 0 < coverage < 1 or not 1 - coverage < worst <= 1:
        raise ValueError(f"coverage must lie between 0 and 1, and worst above its rest, got {coverage} and {worst}")
    fewest = math.ceil(worst / (1 - coverage) - 1 - 1e-9)
    if len(scores) < fewest:
        raise ValueError(f"a limit that holds for {coverage:.0%} needs at least {fewest} patients, got {len(scores)}")
    patients = []
    for k, own in enumerate(scores):
        weight = np.ones(len(own)) if weights is None else np.asarray(weights[k], float)
        if len(own) == 0 or not weight.sum() > 0:
            raise ValueError(f"patient {k + 1} of {len(scores)} has no scores")
        order = np.argsort(own)
        patients.append((np.asarray(own, float)[order], np.cumsum(weight[order]) / weight.sum()))

    def expected(limit: float) -> float:
        """Of the share above, over the patients and the worst that may come."""
        total = worst
        for own, share in patients:
            below = int(np.searchsorted(own, limit, side="right"))
            total += min(worst, 1.0 - (float(share[below - 1]) if below else 0.0))
        return total / (len(patients) + 1)

    values = np.unique(np.concatenate([own for own, _ in patients]))
    first, last = 0, len(values) - 1  # nothing lies above the last
    while first < last:
        middle = (first + last) // 2
        if expected(float(values[middle])) <= 1 - coverage + 1e-9:
            last = middle
        else:
            first = middle + 1
    return float(values[last])


def interval_score(lower: FloatArray, upper: FloatArray, truth: FloatArray, coverage: float = 0.9) -> FloatArray:
    """Width, plus 2 / (1 - coverage) for each unit by which the truth lies outside; smaller is better.

    Source: Gneiting and Raftery, JASA 102:359, 2007, equation 43.
    """
    outside = np.maximum(lower - truth, 0) + np.maximum(truth - upper, 0)
    return upper - lower + 2 / (1 - coverage) * outside
