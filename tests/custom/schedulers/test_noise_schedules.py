"""Noise schedules of the papers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.schedulers import NoiseSchedules

from custom.schedulers import cosine_floor, ddpm_linear, gamma_linear

# --- Noise schedules


@settings(max_examples=50, deadline=None)
@given(timesteps=st.integers(1, 5000), schedule=st.sampled_from([ddpm_linear, gamma_linear, cosine_floor]))
def test_noise_schedules_end_at_the_same_alpha_bar(timesteps: int, schedule: Any) -> None:
    betas, alphas, alpha_bar = schedule(timesteps)
    assert betas.shape == alphas.shape == alpha_bar.shape == (timesteps,)
    assert alpha_bar.dtype == torch.float64
    assert float(alpha_bar[-1]) == pytest.approx(4.036e-5 if schedule is ddpm_linear else 4e-5, rel=1e-3)
    assert betas.min() > 0 and betas.max() < 1 and torch.all(alpha_bar.diff() < 0)
    torch.testing.assert_close(alphas.cumprod(0), alpha_bar)
    torch.testing.assert_close(alphas + betas, torch.ones_like(betas))


def test_noise_schedules_are_those_of_the_papers() -> None:
    torch.testing.assert_close(ddpm_linear(1000)[0].float(), NoiseSchedules["linear_beta"](1000), rtol=1e-5, atol=0)
    coarse = ddpm_linear(250)[2]
    torch.testing.assert_close(coarse, ddpm_linear(1000)[2][3::4])
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    torch.testing.assert_close(gamma_linear(100)[2], 1 - t, rtol=0, atol=4.1e-5)
    torch.testing.assert_close(cosine_floor(100)[2].float(), NoiseSchedules["cosine"](100)[2], rtol=0, atol=5e-5)
    assert float(gamma_linear(10, alpha_bar_min=1e-9)[2][-1]) == pytest.approx(1e-9)
