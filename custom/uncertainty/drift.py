"""Whether new cases still come from where the earlier ones came from: conformal test martingales.

As long as cases are exchangeable, the rank of each among itself and all before it (a conformal p-value) is uniform and
independent of the ranks before (Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2nd edition, 2022,
section 2.9). Whoever bets on ranks that are not uniform wins nothing in the mean: the capital is a martingale that
begins at 1, and the chance that it ever reaches c is at most 1 / c (Ville 1939), however long one looks and however
often. Bets move between accounts as in the simple jumper (section 8.2; algorithm 8.1 with other accounts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from custom.trust.check_statistics import STATISTICS

__all__ = ["Case", "Drift", "alarm_limit", "cases_until_alarm", "conformal_p_values", "find_drift", "jumper", "rewards"]

#: Slopes of the linear bets 1 + slope (p - 1/2), which win by many ranks that are a little too large or small.
SLOPES = (-1.9, 0.0, 1.9)
#: Power of the bets power * p^(power - 1), likewise of 1 - p, which win by ranks at the very end.
POWER = 0.4
#: Share of the capital that is spread evenly over the accounts before every case.
JUMPING = 0.01

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """What was measured of one patient.

    Attributes:
        group: beam and number of views, such as "cone 2"; ranks are taken within it.
        statistics: by name, None where it could not be measured.
    """

    group: str
    statistics: Mapping[str, float | None]


@dataclass(frozen=True)
class Drift:
    """What became of one statistic.

    Attributes:
        statistic: its name.
        cases: how many had it.
        martingale: after the last of them; 1 before the first.
        largest: that it ever was.
        alarm: index, among all cases, of the first at which the limit was reached; None: it never was.
        since: index of the case since which the martingale rose to the alarm, an estimate of when the change began.
        above: share of the earlier cases that those since then lie above, in the mean (of all cases without an alarm);
            about 0.5 where nothing changed.
    """

    statistic: str
    cases: int
    martingale: float
    largest: float
    alarm: int | None
    since: int | None
    above: float


def find_drift(
    cases: Sequence[Case],
    calibrated: Mapping[str, Mapping[str, Sequence[float]]],
    false_alarms: float = 0.05,
    seed: int = 0,
) -> list[Drift]:
    """One martingale a statistic; with no change the chance that any of them ever gives an alarm is `false_alarms`.

    The bound is shared evenly among the statistics (Bonferroni), which needs no assumption of how they hang together.

    Args:
        cases: one a patient, in the order in which they came.
        calibrated: by group and statistic the values of cases from before; empty: cases are compared with those before
            them alone.
        false_alarms: at most so often, such as 0.05.
        seed: of the random numbers that ranks of equal values are told apart by.

    Returns:
        Of each statistic that any case has, in the order of `STATISTICS`.

    Raises:
        ValueError: for a share that makes no sense.
    """
    names = [name for name in STATISTICS if any(case.statistics.get(name) is not None for case in cases)]
    limit = alarm_limit(false_alarms, len(names))
    return [_of_statistic(name, cases, calibrated, limit, _draws(seed, name, len(cases))) for name in names]


def _draws(seed: int, name: str, count: int) -> FloatArray:
    """By case and statistic: neither further cases nor another statistic change what was drawn before, else every look
    would be a new test."""
    return np.random.default_rng([seed, *name.encode()]).random(count)


def alarm_limit(false_alarms: float, statistics: int) -> float:
    """What a martingale must reach for an alarm.

    Args:
        false_alarms: chance that any of the statistics ever gives one although nothing changed.
        statistics: how many are followed.
    """
    if not 0 < false_alarms < 1:
        raise ValueError(f"false_alarms must lie between 0 and 1, got {false_alarms}")
    return max(1, statistics) / false_alarms


def cases_until_alarm(calibrated: int, limit: float, most: int = 1000) -> int | None:
    """After how many cases beyond all that were calibrated an alarm comes; None: not within `most`.

    Of k such cases the next one's rank is taken to be in their middle.
    """
    counts = np.arange(1, most + 1)
    reached = np.nonzero(jumper(counts / 2 / (calibrated + counts)) >= limit)[0]
    return int(reached[0]) + 1 if len(reached) else None


def _of_statistic(
    name: str,
    cases: Sequence[Case],
    calibrated: Mapping[str, Mapping[str, Sequence[float]]],
    limit: float,
    draws: FloatArray,
) -> Drift:
    values = {k: value for k, case in enumerate(cases) if (value := case.statistics.get(name)) is not None}
    indices, p = list(values), np.empty(len(values))
    groups = np.array([cases[k].group for k in indices])
    for group in np.unique(groups):
        own = np.nonzero(groups == group)[0]
        before = calibrated.get(str(group), {}).get(name, ())
        places = [indices[i] for i in own]
        p[own] = conformal_p_values(before, [values[k] for k in places], draws[places])
    path = jumper(p)
    alarms = np.nonzero(path >= limit)[0]
    if not len(alarms):
        return Drift(name, len(p), float(path[-1]), float(path.max()), None, None, float(1 - p.mean()))
    alarm = int(alarms[0])
    # The last place before the alarm where the capital, with the 1 that it begins with, was least.
    since = alarm - int(np.argmin(np.array([1.0, *path[:alarm]])[::-1]))
    above = float(1 - p[since : alarm + 1].mean())
    return Drift(name, len(p), float(path[-1]), float(path.max()), indices[alarm], indices[since], above)


def conformal_p_values(
    before: Sequence[float], values: Sequence[float], draws: Sequence[float] | FloatArray
) -> FloatArray:
    """Of each value the share of those before it that are larger, equal ones and itself told apart by a draw.

    Args:
        before: values of earlier cases, in any order.
        values: of new cases, in theirs.
        draws: uniform on [0, 1), one a new case.

    Returns:
        (N,) within [0, 1]: uniform and independent where all cases are exchangeable; small for large values.
    """
    known = np.concatenate([np.asarray(before, dtype=np.float64), np.asarray(values, dtype=np.float64)])
    p = np.empty(len(values))
    for k, value in enumerate(values):
        bag = known[: len(before) + k + 1]
        p[k] = ((bag > value).sum() + draws[k] * (bag == value).sum()) / len(bag)
    return p


def rewards(p: FloatArray) -> FloatArray:
    """What each account's capital is multiplied by, (N, accounts) for p-values (N,); 1 in the mean of a uniform p."""
    p = np.clip(p, 1e-9, 1 - 1e-9)
    linear = [1 + slope * (p - 0.5) for slope in SLOPES]
    ends = [POWER * end ** (POWER - 1) for end in (p, 1 - p)]
    return np.stack([*linear, *ends], axis=1)


def jumper(p: FloatArray) -> FloatArray:
    """The martingale after each of the p-values (N,): of simple bets, between which a small share moves every time."""
    factors = rewards(p)
    accounts = np.full(factors.shape[1], 1 / factors.shape[1])
    path = np.empty(len(p))
    for k, factor in enumerate(factors):
        accounts = accounts * factor
        path[k] = accounts.sum()
        accounts = (1 - JUMPING) * accounts + JUMPING * path[k] / len(accounts)
    return path
