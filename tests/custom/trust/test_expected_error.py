"""What is expected of a case's error, of statistics whose effect on it is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from custom.trust.expected_error import fit_expected_error


def cohort(count: int, seed: int = 0) -> tuple[list[dict[str, float | None]], list[float]]:
    """Errors that grow with "population" and fall with "angles", which must not be believed."""
    random = np.random.RandomState(seed)
    population, angles, other, noise = random.normal(size=(4, count))
    errors = 150 * np.exp(0.2 * population - 0.1 * angles + 0.05 * noise)
    cases = [
        {"population": p, "angles": a, "reprojection": o, "samples": None}
        for p, a, o in zip(population.tolist(), angles.tolist(), other.tolist(), strict=True)
    ]
    return cases, errors.tolist()


def test_errors_follow_what_they_depend_on() -> None:
    found = fit_expected_error(*cohort(400))
    assert found.weight["population"] / found.spread["population"] == pytest.approx(0.2, abs=0.02)
    assert found.weight["angles"] == 0
    assert found.weight["reprojection"] < 0.02
    assert "samples" not in found.weight
    assert found.of({})[0] == pytest.approx(150, rel=0.03)


def test_the_bound_holds_for_its_share_of_new_cases() -> None:
    held = []
    for seed in range(40):
        found = fit_expected_error(*cohort(30, seed))
        cases, errors = cohort(100, seed + 1000)
        held.append(np.mean([error <= found.of(case)[1] for case, error in zip(cases, errors, strict=True)]))
    assert np.mean(held) == pytest.approx(0.9, abs=0.03)


def test_a_statistic_beyond_all_that_was_seen_does_not_explode() -> None:
    found = fit_expected_error(*cohort(100))
    assert found.of({"population": 1e9}) == found.of({"population": 1e6})
    assert math.isfinite(found.of({"population": 1e9})[1])


@pytest.mark.parametrize(("count", "errors"), [(5, None), (20, [0.0] * 20)])
def test_what_cannot_be_fitted(count: int, errors: list[float] | None) -> None:
    cases, right = cohort(count)
    with pytest.raises(ValueError, match=r"needs more than 5 cases|positive error"):
        fit_expected_error(cases, errors or right)
