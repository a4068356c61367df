"""Diffusions whose solution is known in closed form, and ideal networks for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from monai.networks.schedulers import NoiseSchedules
from torch import Tensor

from custom.schedulers import DPMSolverPPScheduler

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
METHODS = ("multistep", "singlestep")
SPACINGS = ("time_uniform", "log_snr_uniform", "time_quadratic")
SCHEDULES = ("ddpm_linear", "gamma_linear", "cosine_floor")

# Data N(MEAN, STD^2); a path of the diffusion ODE is x_t = alpha MEAN + sqrt(alpha^2 STD^2 + sigma^2) z for a fixed z.
MEAN, STD = 0.3, 0.5
Z = torch.tensor([[-2.0, -0.5], [0.3, 1.7]], dtype=torch.float64)

Network = Callable[[Tensor, Any], Tensor]


@NoiseSchedules.add_def("test_zero_terminal_snr", "alpha-bar(t) = 1 - t down to 0 itself")
def zero_terminal_snr(num_train_timesteps: int) -> tuple[Tensor, Tensor, Tensor]:
    alpha_bar = 1 - torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    alphas = alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]])
    return 1 - alphas, alphas, alpha_bar


def as_output(original: Tensor, x: Tensor, alpha: float, sigma: float, prediction_type: str) -> Tensor:
    """What a network that believes in `original` gives at x."""
    noise = (x - alpha * original) / sigma
    return {"sample": original, "epsilon": noise, "v_prediction": alpha * noise - sigma * original}[prediction_type]


def gaussian_network(scheduler: Any) -> Network:
    """The ideal network. Its noise level at a whole timestep is the training schedule's own, not the solver's word."""
    alpha_bar = scheduler.alphas_cumprod.double().tolist()

    def network(x: Tensor, t: Any) -> Tensor:
        whole = float(t) == int(t)
        alpha = math.sqrt(alpha_bar[int(t)]) if whole else scheduler.alpha_sigma(t)[0]
        sigma = math.sqrt(1 - alpha**2)
        original = MEAN + alpha * STD**2 * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return as_output(original, x, alpha, sigma, scheduler.prediction_type)

    return network


def on_path(scheduler: DPMSolverPPScheduler, timestep: Any) -> Tensor:
    alpha, sigma = scheduler.alpha_sigma(timestep)
    return alpha * MEAN + math.sqrt(alpha**2 * STD**2 + sigma**2) * Z


def ideal(scheduler: DPMSolverPPScheduler) -> Tensor:
    """x_0 that the ideal network predicts at timestep 0 on the exact path: where an exact solver ends."""
    alpha, sigma = scheduler.alpha_sigma(0)
    return MEAN + alpha * STD**2 * Z / math.sqrt(alpha**2 * STD**2 + sigma**2)


def sample(scheduler: Any, network: Network, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        x, _ = scheduler.step(network(x, t), t, x)
    return x


def gaussian_error(steps: int, **options: Any) -> float:
    scheduler = DPMSolverPPScheduler(**options)
    scheduler.set_timesteps(steps)
    found = sample(scheduler, gaussian_network(scheduler), on_path(scheduler, scheduler.timesteps[0]))
    return float((found - ideal(scheduler)).abs().max())
