"""Reading datalists and mixing cohorts."""

from __future__ import annotations

import pytest

from custom.data.cohort import load_cases, mixing_weights


def test_an_optional_cohort_has_no_cases() -> None:
    assert load_cases(None, "training") == []


def test_phantoms_get_their_share_of_the_draws() -> None:
    weights = mixing_weights(10, 40, 0.25)
    assert len(weights) == 50 and sum(weights) == pytest.approx(1)
    assert sum(weights[10:]) == pytest.approx(0.25) and len(set(weights[:10])) == len(set(weights[10:])) == 1
    assert mixing_weights(4, 0, 0.25) == [0.25] * 4


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="phantom_share must lie between 0 and 1"):
        mixing_weights(1, 1, share)
