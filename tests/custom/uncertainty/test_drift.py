"""Drift: ranks that are uniform, martingales that stay small, changes that are found."""

from __future__ import annotations

import numpy as np
import pytest

from custom.trust.check_statistics import STATISTICS
from custom.uncertainty import Case, alarm_limit, cases_until_alarm, find_drift
from custom.uncertainty.drift import JUMPING, SLOPES, conformal_p_values, jumper, rewards


def stream(values: np.ndarray, group: str = "cone 2") -> list[Case]:
    """Cases with a statistic for each column."""
    return [Case(group, dict(zip(STATISTICS, map(float, row), strict=False))) for row in values]


def test_every_bet_is_fair() -> None:
    # With p = u^4, dp = 4 u^3 du the midpoint rule meets no pole at p = 0, and with 1 - u^4 none at p = 1.
    u = (np.arange(20_000) + 0.5) / 20_000
    low, high = ((rewards(p) * 4 * u[:, None] ** 3).mean(0) for p in (u**4, 1 - u**4))
    np.testing.assert_allclose(low[:4], 1, atol=1e-3)
    np.testing.assert_allclose(high[4], 1, atol=1e-3)


def test_the_jumper_is_that_of_crepes() -> None:
    martingales = pytest.importorskip("crepes.martingales")

    class Bets:
        apply = staticmethod(rewards)

    p = np.random.default_rng(0).random(60) ** 1.5
    oracle = martingales.SimpleJumper(JUMPING, Bets()).apply(p)
    np.testing.assert_allclose(jumper(p), oracle)
    np.testing.assert_allclose(rewards(p)[:, :3], martingales.EpsilonBettingFunction(SLOPES).apply(p))


def test_ranks_are_those_of_each_case_among_all_before_it() -> None:
    p = conformal_p_values([1.0, 2.0, 3.0], [2.5, 9.0, 2.0], [0.5, 0.5, 0.0])
    np.testing.assert_allclose(p, [(1 + 0.5) / 4, 0.5 / 5, 3 / 6])
    # Equal values share their ranks evenly.
    np.testing.assert_allclose(conformal_p_values([1.0, 1.0], [1.0], [0.25]), [0.25])


def test_ranks_of_exchangeable_cases_are_uniform_and_know_nothing_of_each_other() -> None:
    random = np.random.default_rng(1)
    p = np.array([conformal_p_values(v[:5], v[5:], random.random(3)) for v in random.integers(0, 4, (20_000, 8))])
    for column in p.T:
        np.testing.assert_allclose(np.quantile(column, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.015)
    np.testing.assert_allclose(np.corrcoef(p.T), np.eye(3), atol=0.025)


def test_without_a_change_there_is_seldom_an_alarm() -> None:
    # Heavy tails and statistics that follow each other change nothing; two groups of their own.
    false_alarms, runs, found = 0.2, 300, 0
    for seed in range(runs):
        values = np.random.default_rng(seed).standard_cauchy((80, 2)) @ [[1.0, 0.7], [0.0, 1.0]]
        known = {"cone 2": dict(zip(STATISTICS, values[:30].T.tolist(), strict=False))}
        cases = stream(values[30:60]) + stream(5 + values[60:], "parallel 1")
        found += any(d.alarm is not None for d in find_drift(cases, known, false_alarms, seed))
    # Two martingales, each at most 10 %: of 300 runs 60 are expected at most; 3 standard deviations above are 81.
    assert found <= 81


@pytest.mark.parametrize("calibrated", [40, 0])
@pytest.mark.parametrize("shift", [3.0, -3.0])
def test_a_change_is_found_when_it_came(calibrated: int, shift: float) -> None:
    random = np.random.default_rng(2)
    before = 40 - calibrated + 10
    values = random.normal(size=(calibrated + before + 25, 3))
    values[calibrated + before :, 1] += shift
    known = {"cone 2": dict(zip(STATISTICS, values[:calibrated].T.tolist(), strict=False))} if calibrated else {}
    first, changed, last = find_drift(stream(values[calibrated:]), known)
    assert first.alarm is last.alarm is None
    assert changed.statistic == STATISTICS[1]
    assert changed.alarm is not None and before + 3 <= changed.alarm < before + 20
    assert changed.since is not None and abs(changed.since - before) <= 3
    assert (changed.above > 0.85) if shift > 0 else (changed.above < 0.15)
    assert changed.largest >= alarm_limit(0.05, 3)


def test_cases_that_lack_a_statistic_are_left_out_of_it() -> None:
    values = np.random.default_rng(3).normal(size=(60, 1))
    missing = [Case("cone 2", {STATISTICS[0]: None})] * 5
    found = find_drift([*missing, *stream(values[:20]), *missing, *stream(9 + values[20:])], {})[0]
    assert found.cases == 60
    assert found.alarm is not None and 30 < found.alarm < 50
    assert found.since is not None and 24 <= found.since <= 33  # 24 is the last case before the change
    assert find_drift([], {}) == find_drift(missing, {}) == []


def test_further_cases_leave_what_was_found_before_as_it_was() -> None:
    values = np.random.default_rng(6).integers(0, 3, (60, 4)).astype(float)  # ranks of equal values are drawn
    values[20:] += 9
    one, two = (find_drift(stream(values[:count]), {}, 0.5) for count in (45, 60))
    assert all(drift.alarm is not None for drift in one)
    assert [(d.alarm, d.since, d.above) for d in one] == [(d.alarm, d.since, d.above) for d in two]


def test_how_soon_an_alarm_can_come() -> None:
    few, many = cases_until_alarm(30, 160.0), cases_until_alarm(300, 160.0)
    assert few is not None and many is not None and 3 <= many < few < 15
    assert cases_until_alarm(0, 160.0) is None
    values = np.concatenate([np.random.default_rng(4).normal(size=30), 50 + np.random.default_rng(5).normal(size=40)])
    found = find_drift(stream(values[30:, None]), {"cone 2": {STATISTICS[0]: values[:30].tolist()}}, 1 / 160)[0]
    assert found.alarm is not None and abs(found.alarm + 1 - few) <= 4


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_a_share_that_makes_no_sense(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        find_drift([], {}, share)
