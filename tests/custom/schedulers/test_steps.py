"""Timesteps, history, prediction types, noise schedules and errors of the schedulers."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import DiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler, Scheduler
from torch import Tensor

from custom.schedulers import DPMSolverPPScheduler
from tests.custom.schedulers.closed_forms import (
    MEAN,
    METHODS,
    PREDICTION_TYPES,
    SCHEDULES,
    SPACINGS,
    STD,
    Z,
    as_output,
    gaussian_network,
    ideal,
    on_path,
    sample,
)

# --- Timesteps


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_number_of_training_timesteps_does_not_matter(schedule: str, spacing: str) -> None:
    found = []
    for timesteps in (300, 1000):
        scheduler = DPMSolverPPScheduler(timesteps, schedule=schedule, spacing=spacing)
        scheduler.set_timesteps(20)
        assert scheduler.timesteps[0] == timesteps - 1 and scheduler.timesteps[-1] == 0
        found.append(sample(scheduler, gaussian_network(scheduler), Z))
    # What is left: timestep 0 is at 1/T of the course, and timesteps are whole.
    assert (found[0] - found[1]).norm() / found[1].norm() < 0.012


def test_betas_that_are_not_rescaled_matter() -> None:
    """The test above can fail: MONAI's linear betas at T = 300 end with 5% of the signal's power."""
    found = []
    for timesteps in (300, 1000):
        scheduler = DPMSolverPPScheduler(timesteps, schedule="linear_beta")
        scheduler.set_timesteps(20)
        found.append(sample(scheduler, gaussian_network(scheduler), Z))
    assert (found[0] - found[1]).norm() / found[1].norm() > 0.05


@settings(max_examples=40, deadline=None)
@given(
    timesteps=st.integers(1, 1500),
    share=st.floats(0, 1),
    order=st.integers(1, 3),
    method=st.sampled_from(METHODS),
    spacing=st.sampled_from(SPACINGS),
    schedule=st.sampled_from(SCHEDULES),
    lower_order_final=st.booleans(),
    integer_timesteps=st.booleans(),
)
def test_any_grid_descends_to_the_data(
    timesteps: int,
    share: float,
    order: int,
    method: str,
    spacing: str,
    schedule: str,
    lower_order_final: bool,
    integer_timesteps: bool,
) -> None:
    """Whatever the grid: if the network always predicts the same x_0, every step stays on the line and ends there."""
    scheduler = DPMSolverPPScheduler(
        timesteps,
        schedule,
        "sample",
        order,
        method,
        spacing,
        lower_order_final=lower_order_final,
        integer_timesteps=integer_timesteps,
    )
    steps = 1 + round(share * (min(timesteps, 60) - 1))
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    assert len(times) == steps == scheduler.num_inference_steps
    assert times[0] == timesteps - 1 and times[-1] == (0 if steps > 1 else timesteps - 1)
    assert torch.all(times.diff() < 0)
    assert times.dtype == (torch.int64 if integer_timesteps else torch.float32)

    noise = torch.tensor([-1.3, 0.4], dtype=torch.float64)
    x = original = torch.tensor([0.7, -0.2], dtype=torch.float64)
    for i, t in enumerate(times):
        alpha, sigma = scheduler.alpha_sigma(t)
        if i == 0:
            x = alpha * original + sigma * noise
        torch.testing.assert_close(x, alpha * original + sigma * noise, rtol=1e-9, atol=1e-9)
        x, predicted = scheduler.step(original, t, x)
        assert predicted is original
    torch.testing.assert_close(x, original, rtol=0, atol=0)


def test_spacings() -> None:
    def times(spacing: str, **options: Any) -> Tensor:
        scheduler = DPMSolverPPScheduler(spacing=spacing, **options)
        scheduler.set_timesteps(20)
        half_log_snr = [math.log(a / s) for a, s in (scheduler.alpha_sigma(t) for t in scheduler.timesteps)]
        return torch.stack([scheduler.timesteps, torch.tensor(half_log_snr)]).double()

    ddim = DDIMScheduler(1000)
    ddim.set_timesteps(20)
    assert torch.equal(times("time_uniform")[0], ddim.timesteps.double())
    log_snr = times("log_snr_uniform", integer_timesteps=False)[1]
    torch.testing.assert_close(log_snr, torch.linspace(log_snr[0], log_snr[-1], 20).double(), rtol=1e-4, atol=1e-4)
    roots = (times("time_quadratic", integer_timesteps=False)[0] + 1).sqrt()
    torch.testing.assert_close(roots, torch.linspace(math.sqrt(1000), 1, 20).double(), rtol=1e-4, atol=1e-4)
    for spacing in SPACINGS:
        whole, real = times(spacing)[0], times(spacing, integer_timesteps=False)[0]
        # Pushed away only where the nearest whole timestep is taken.
        assert (whole - real).abs()[:12].max() <= 0.5


def test_singlestep_blocks_lie_uniformly_in_log_snr() -> None:
    scheduler = DPMSolverPPScheduler(
        order=3, method="singlestep", integer_timesteps=False, lower_order_final=False, spacing="log_snr_uniform"
    )
    scheduler.set_timesteps(12)  # 11 for the steps: 2 + 3 + 3 + 3
    lambdas = np.array([math.log(a / s) for a, s in (scheduler.alpha_sigma(t) for t in scheduler.timesteps)])
    np.testing.assert_allclose(np.diff(lambdas), np.diff(lambdas).mean(), rtol=1e-3)
    assert scheduler._block_starts == {0, 2, 5, 8, 11}


def test_every_timestep_is_visited_once_when_all_are_asked_for() -> None:
    for spacing in SPACINGS:
        for method in METHODS:
            scheduler = DPMSolverPPScheduler(90, order=3, method=method, spacing=spacing)
            assert torch.equal(scheduler.timesteps, torch.arange(89, -1, -1))


# --- What a step remembers


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", [2, 3])
def test_runs_do_not_see_each_other(order: int, method: str) -> None:
    scheduler = DPMSolverPPScheduler(order=order, method=method)
    scheduler.set_timesteps(12)
    network = gaussian_network(scheduler)
    first = sample(scheduler, network, Z)
    assert torch.equal(sample(scheduler, network, Z), first)

    x = Z + 5  # a run that is given up
    for t in scheduler.timesteps[:5]:
        x, _ = scheduler.step(network(x, t), t, x)
    assert torch.equal(sample(scheduler, network, Z), first)

    t = scheduler.timesteps[0]
    scheduler.step(network(Z + 5, t), t, Z + 5)
    scheduler.set_timesteps(12)
    assert scheduler._nodes == [] and scheduler._base is None
    assert torch.equal(sample(scheduler, network, Z), first)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_run_may_start_anywhere(order: int, method: str) -> None:
    """From a partly noised sample, also within a singlestep block."""
    scheduler = DPMSolverPPScheduler(order=order, method=method, spacing="log_snr_uniform")
    scheduler.set_timesteps(50)
    network = gaussian_network(scheduler)
    for start in range(20, 50):
        x = on_path(scheduler, scheduler.timesteps[start])
        for t in scheduler.timesteps[start:]:
            x, _ = scheduler.step(network(x, t), t, x)
        assert (x - ideal(scheduler)).abs().max() < (0.06 if order == 1 else 0.012)


# --- Prediction types, and the predicted x_0 in the caller's hands


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_original_can_be_corrected(prediction_type: str, method: str) -> None:
    scheduler = DPMSolverPPScheduler(prediction_type=prediction_type, order=3, method=method)
    scheduler.set_timesteps(13)
    network = gaussian_network(scheduler)
    plain = copy.deepcopy(scheduler)
    x = y = Z
    for t in scheduler.timesteps:
        original = scheduler.predict_original(network(x, t), t, x)
        x, returned = scheduler.step_from_original(original, t, x)
        y, expected = plain.step(network(y, t), t, y)
        assert torch.equal(x, y) and torch.equal(returned, expected)
    # A caller who knows the truth gets it.
    truth = torch.full_like(Z, 0.123)
    for t in scheduler.timesteps:
        predicted = scheduler.predict_original(network(x, t), t, x)
        x, returned = scheduler.step_from_original(predicted + (truth - predicted), t, x)
        torch.testing.assert_close(returned, truth)
    torch.testing.assert_close(x, truth)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", [*SCHEDULES, "linear_beta", "scaled_linear_beta", "sigmoid_beta", "cosine"])
def test_original_of_a_perfect_prediction(schedule: str, prediction_type: str) -> None:
    scheduler = DPMSolverPPScheduler(schedule=schedule, prediction_type=prediction_type)
    generator = torch.Generator().manual_seed(0)
    original, noise = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    # The noisiest timestep of "cosine" is clipped: the solver sees a little more signal there than there is.
    for t in scheduler.timesteps[1 if schedule == "cosine" else 0 :: 150]:
        steps = torch.full((3,), int(t))
        x = scheduler.add_noise(original, noise, steps)
        velocity = scheduler.get_velocity(original, noise, steps)
        output = {"sample": original, "epsilon": noise, "v_prediction": velocity}[prediction_type]
        torch.testing.assert_close(scheduler.predict_original(output, t, x), original, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("method", METHODS)
def test_no_signal_at_the_noisiest_timestep(method: str, prediction_type: str) -> None:
    """alpha-bar = 0: the half log-SNR is clipped, nothing is divided by 0."""
    options: dict[str, Any] = {"schedule": "test_zero_terminal_snr", "prediction_type": prediction_type}
    scheduler = DPMSolverPPScheduler(order=3, method=method, **options)
    alpha, sigma = scheduler.alpha_sigma(999)
    assert math.log(alpha / sigma) == pytest.approx(-5.1)
    for spacing in SPACINGS:
        scheduler = DPMSolverPPScheduler(order=2, method=method, spacing=spacing, **options)
        scheduler.set_timesteps(50)
        assert scheduler.timesteps[0] == 999
        alpha_bar = scheduler.alphas_cumprod

        def network(x: Tensor, t: Tensor, alpha_bar: Tensor = alpha_bar) -> Tensor:
            alpha, sigma = math.sqrt(alpha_bar[t]), math.sqrt(1 - alpha_bar[t])
            original = MEAN + alpha * STD**2 * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
            return as_output(original, x, alpha, sigma, prediction_type)

        assert (sample(scheduler, network, Z) - (MEAN + STD * Z)).abs().max() < 0.05, spacing


def test_timesteps_beyond_lambda_min_are_not_visited() -> None:
    scheduler = DPMSolverPPScheduler(schedule="cosine")
    alpha_bar = scheduler.alphas_cumprod.double()
    half_log_snr = 0.5 * torch.log(alpha_bar / (1 - alpha_bar))
    first = int(scheduler.timesteps[0])
    assert first < 999 and half_log_snr[first] <= -5.1 < half_log_snr[first - 1]
    assert len(scheduler.timesteps) == first + 1
    earlier = DPMSolverPPScheduler(schedule="cosine", lambda_min=-2.0)
    assert earlier.timesteps[0] < first
    alpha, sigma = earlier.alpha_sigma(earlier.timesteps[0])
    assert math.log(alpha / sigma) == pytest.approx(-2.0)


def test_dynamic_thresholding() -> None:
    steps = torch.linspace(-1, 1, 101)
    batch = torch.stack([0.5 * steps, 4 * steps]).reshape(2, 1, 101)

    def original(**options: Any) -> Tensor:
        return DPMSolverPPScheduler(prediction_type="sample", **options).predict_original(batch, 500, batch)

    assert torch.equal(original(), batch)  # off unless asked for
    # Sample by sample: within the range nothing changes; beyond it the quantile becomes the range's end.
    found = original(threshold_ratio=0.9)
    torch.testing.assert_close(found[0], batch[0])
    bound = float(batch[1].abs().flatten().sort().values[90])  # rank ceil(0.9 * 101) = 91
    torch.testing.assert_close(found[1], batch[1].clamp(-bound, bound) / bound)
    torch.testing.assert_close(original(threshold_ratio=1.0, threshold_max=2.0)[1], batch[1] / 2)


# --- In MONAI's hands


@pytest.mark.parametrize("integer_timesteps", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_monais_inferer_drives_it(method: str, integer_timesteps: bool) -> None:
    scheduler = DPMSolverPPScheduler(100, order=3, method=method, integer_timesteps=integer_timesteps)
    scheduler.set_timesteps(8)
    torch.manual_seed(0)
    network = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        num_res_blocks=1,
        channels=(4, 4),
        attention_levels=(False, False),
        norm_num_groups=2,
        num_head_channels=4,
    ).eval()
    noise = torch.randn(2, 1, 8, 8)
    found = DiffusionInferer(scheduler).sample(noise, network, verbose=False)
    again = DiffusionInferer(scheduler).sample(noise, network, verbose=False)
    with torch.no_grad():
        expected = sample(scheduler, lambda x, t: network(x, t.float().expand(len(x))), noise)
    assert torch.equal(found, again)
    torch.testing.assert_close(found, expected)
    assert found.dtype == torch.float32 and torch.isfinite(found).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_samples(dtype: torch.dtype) -> None:
    scheduler = DPMSolverPPScheduler(prediction_type="v_prediction")
    scheduler.set_timesteps(20)
    network = gaussian_network(scheduler)
    exact = sample(scheduler, network, Z)
    # MONAI's add_noise casts its table to the samples' type for good; the solver's is its own.
    scheduler.add_noise(Z.to(dtype), Z.to(dtype), torch.tensor([3, 700]))
    assert scheduler.alphas_cumprod.dtype == dtype
    assert torch.equal(sample(scheduler, network, Z), exact)
    x, original = Z.to(dtype), Z
    for t in scheduler.timesteps:
        x, original = scheduler.step(network(x.double(), t).to(dtype), t, x)
        assert x.dtype == dtype and original.dtype == torch.float32
    torch.testing.assert_close(x.double(), exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, PNDMScheduler])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_schedules_serve_monais_schedulers(schedule: str, kind: type[Scheduler]) -> None:
    scheduler: Any = kind(200, schedule=schedule)
    scheduler.set_timesteps(20)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert scheduler.add_noise(x, x, torch.tensor([0, 199])).dtype == torch.float32
    for t in scheduler.timesteps:
        x, _ = scheduler.step(torch.zeros_like(x), int(t), x)
    assert x.dtype == torch.float32 and torch.isfinite(x).all()


# --- Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, r"order must be one of \(1, 2, 3\), got 4"),
        ({"method": "both"}, "method must be one of .*'both'"),
        ({"spacing": "karras"}, "spacing must be one of .*'karras'"),
        ({"prediction_type": "v"}, "prediction_type must be one of .*'v'"),
        ({"threshold_ratio": 1.5}, r"threshold_ratio must lie in \(0, 1\].* got 1.5"),
        ({"threshold_ratio": 0.9, "threshold_max": 0.0}, "threshold_max must be greater than 0, got 0"),
        ({"lambda_min": 7.0}, "lambda_min must be below .* got 7"),
        ({"schedule": "gamma_linear", "alpha_bar_min": 0.0}, "alpha_bar_min must lie between 0 and 1, got 0"),
        ({"schedule": "cosine_floor", "s": -0.1}, "s must be at least 0, got -0.1"),
        ({"beta_end": 1.0}, "beta_start <= beta_end < 1, got 0.0001 and 1"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be at least 1, got 0"),
        ({"reference_timesteps": 0}, "reference_timesteps must be at least 1, got 0"),
        ({"schedule": "linear_beta", "beta_start": 0.0}, "must fall strictly from below 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPMSolverPPScheduler(**options)


def test_bad_steps() -> None:
    scheduler = DPMSolverPPScheduler(100)
    for steps in (0, 101):
        with pytest.raises(ValueError, match=f"at most 100, got {steps}; integer_timesteps=False"):
            scheduler.set_timesteps(steps)
    DPMSolverPPScheduler(100, integer_timesteps=False).set_timesteps(101)
    with pytest.raises(ValueError, match="is 2, more than float32 timesteps from 0 to 0 can tell apart"):
        DPMSolverPPScheduler(1, integer_timesteps=False).set_timesteps(2)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=r"one of the 10 in `timesteps` \(99 to 0\), got 98"):
        scheduler.step(Z, 98, Z)
    with pytest.raises(ValueError, match=r"shape of sample \(2, 2\), got \(2, 4\)"):
        scheduler.step(torch.cat([Z, Z], dim=1), 99, Z)
    with pytest.raises(ValueError, match="original must have the shape"):
        scheduler.step_from_original(Z[:1], 99, Z)
