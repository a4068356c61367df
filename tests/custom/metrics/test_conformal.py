"""Limits that hold for a share of patients: against theory, a second implementation, and a shift of the population."""

from __future__ import annotations

import numpy as np
import pytest

from custom.metrics.conformal import fewest_patients, interval_score, patientwise_limit


def patients(draw: np.random.Generator, count: int, voxels: int = 200) -> list[np.ndarray]:
    """Absolute errors; each patient has a scale of its own, so that voxels of one patient stand or fall together."""
    return [abs(draw.normal(0, draw.lognormal(0, 0.5), voxels)) for _ in range(count)]


@pytest.mark.parametrize(("count", "coverage"), [(9, 0.9), (36, 0.9), (20, 0.5)])
def test_exchangeable_patients_are_covered_in_the_mean(count: int, coverage: float) -> None:
    draw = np.random.default_rng(count)
    held = []
    for _ in range(400):
        limit = patientwise_limit(patients(draw, count), coverage)
        held.append(float(np.mean(patients(draw, 1)[0] <= limit)))
    # Conformal risk control: at least the nominal share, and at most 2 / (n + 1) more, beside the error of 400 draws.
    error = 3 * float(np.std(held)) / 20
    assert coverage - error < np.mean(held) < coverage + 2 / (count + 1) + error


def test_patients_count_alike_whatever_their_number_of_voxels() -> None:
    scores = [np.full(10_000, 1.0)] + [np.full(10, 2.0)] * 20
    assert patientwise_limit(scores, 0.9) == 2.0
    weighted = [np.array([1.0, 2.0, 3.0])] * 20
    assert patientwise_limit(weighted, 0.9, [np.array([0.0, 1.0, 0.0])] * 20) == 2.0


def test_a_patient_who_is_missed_altogether_counts_as_the_worst_share() -> None:
    """One of twenty is broken. In full it takes all slack; as a half, (0.5 + 0.5 + 19 * 0.05) / 21 are at most 10 %."""
    scores = [np.linspace(0.01, 1, 100) for _ in range(19)] + [np.full(100, 50.0)]
    assert patientwise_limit(scores, 0.9) == 1.0
    assert patientwise_limit(scores, 0.9, worst=0.5) == pytest.approx(0.95)
    with pytest.raises(ValueError, match="worst above its rest"):
        patientwise_limit(scores, 0.9, worst=0.05)


def test_a_shift_between_patients_is_not_covered() -> None:
    draw = np.random.default_rng(0)
    limit = patientwise_limit(patients(draw, 40), 0.9)
    shifted = [float(np.mean(3 * one <= limit)) for one in patients(draw, 200)]
    assert np.mean(shifted) < 0.75


def test_pooled_voxels_would_not_do() -> None:
    """With few patients the quantile of all voxels, as if they were independent, is too low on average."""
    draw = np.random.default_rng(1)
    pooled, by_patient = [], []
    for _ in range(500):
        known, new = patients(draw, 10), patients(draw, 1)[0]
        pooled.append(np.mean(new <= np.quantile(np.concatenate(known), 0.9)))
        by_patient.append(np.mean(new <= patientwise_limit(known, 0.9)))
    assert np.mean(pooled) < 0.89 < 0.9 <= np.mean(by_patient)


@pytest.mark.parametrize("count", [10, 25, 36, 57, 98])
def test_one_score_a_patient_is_split_conformal_prediction(count: int) -> None:
    crepes = pytest.importorskip("crepes")
    residuals = np.random.default_rng(count).normal(size=count)
    oracle = crepes.ConformalRegressor()
    oracle.fit(residuals=residuals)
    low, high = oracle.predict_int(np.zeros(1), confidence=0.9)[0]
    found = patientwise_limit([np.array([abs(one)]) for one in residuals], 0.9)
    assert found == pytest.approx(high) == pytest.approx(-low)


@pytest.mark.parametrize(
    ("count", "coverage", "message"),
    [(8, 0.9, "at least 9 patients, got 8"), (9, 1.0, "between 0 and 1"), (18, 0.95, "at least 19")],
)
def test_too_few_patients_are_refused(count: int, coverage: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patientwise_limit([np.ones(3)] * count, coverage)
    assert fewest_patients(0.9) == 9


def test_a_patient_without_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="patient 10 of 10 has no scores"):
        patientwise_limit([np.ones(3)] * 9 + [np.zeros(0)], 0.9)


def test_the_interval_score_is_width_and_penalty() -> None:
    low, high = np.array([0.0, 0.0, 0.0]), np.array([10.0, 10.0, 10.0])
    assert interval_score(low, high, np.array([5.0, -1.0, 12.0])).tolist() == pytest.approx([10.0, 30.0, 50.0])
