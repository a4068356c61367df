"""Noise schedules that are added to MONAI's `NoiseSchedules`, so that every MONAI scheduler can use them.

Each is a course of alpha-bar in continuous time t from 0 to 1, read at the T timesteps t = (i + 1) / T: another T
changes how finely the course is sampled, never where it ends.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.networks.schedulers import NoiseSchedules
from torch import Tensor

__all__ = ["ALPHA_BAR_MIN", "cosine_floor", "ddpm_linear", "gamma_linear"]

# Where DDPM's own schedule ends (4.04e-5). Closer to 0, an error of the predicted noise, which is divided by
# alpha = sqrt(alpha-bar), would be blown up by more than the 158 that it is there.
ALPHA_BAR_MIN = 4e-5

Schedule = tuple[Tensor, Tensor, Tensor]


@NoiseSchedules.add_def("ddpm_linear", "DDPM's linear betas, rescaled: alpha-bar ends at the same value for any T")
def ddpm_linear(
    num_train_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2, reference_timesteps: int = 1000
) -> Schedule:
    """The linear betas of Ho et al. (2020, arXiv 2006.11239), sampled at T times of the same course of alpha-bar.

    With T = `reference_timesteps` this is MONAI's "linear_beta". With another T, alpha-bar is read from the same
    course, log alpha-bar interpolated linearly. The betas themselves at T = 300 would leave 5% of the signal's power
    at the noisy end, and betas times 1000 / T exceed 1 for small T.

    Args:
        num_train_timesteps: T, at least 1.
        beta_start: first beta, in (0, 1).
        beta_end: last beta, in [beta_start, 1).
        reference_timesteps: number of timesteps that the betas are meant for.

    Returns:
        (betas, alphas, alphas_cumprod), each float64 (T,), so that 1 - alpha-bar keeps its digits at the clean end.

    Raises:
        ValueError: if an argument is outside its range.
    """
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"betas must satisfy 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
    betas = np.linspace(beta_start, beta_end, _positive("reference_timesteps", reference_timesteps))
    log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
    times = _times(num_train_timesteps) * reference_timesteps
    return _schedule(np.exp(np.interp(times, np.arange(reference_timesteps + 1), log_alpha_bar)))


@NoiseSchedules.add_def("gamma_linear", "alpha-bar falls linearly in time (Chen 2023)")
def gamma_linear(num_train_timesteps: int, alpha_bar_min: float = ALPHA_BAR_MIN) -> Schedule:
    """alpha-bar(t) = 1 - t the "linear" schedule of Chen (2023, arXiv 2301.10972, Algorithm 1).

    The paper clips alpha-bar at 1e-9; here it falls to `alpha_bar_min` by an affine map, so that no two timesteps
    coincide, and every scheduler has a finite log-SNR and a noise prediction that it can divide by alpha.

    Args:
        num_train_timesteps: T, at least 1.
        alpha_bar_min: alpha-bar of the last timestep, in (0, 1).

    Returns:
        (betas, alphas, alphas_cumprod), each float64 (T,).

    Raises:
        ValueError: if an argument is outside its range.
    """
    return _schedule(_with_floor(1 - _times(num_train_timesteps), alpha_bar_min))


@NoiseSchedules.add_def("cosine_floor", "Cosine schedule (Nichol & Dhariwal 2021) that ends at a given alpha-bar")
def cosine_floor(num_train_timesteps: int, s: float = 8e-3, alpha_bar_min: float = ALPHA_BAR_MIN) -> Schedule:
    """alpha-bar(t) = f(t) / f(0), f(t) = cos^2(pi/2 (t + s) / (1 + s)) (arXiv 2102.09672, equation 17).

    MONAI's "cosine" clips beta at 0.999, which leaves alpha-bar 2e-9 at T = 1000; here alpha-bar falls to
    `alpha_bar_min`, as in `gamma_linear`.

    Args:
        num_train_timesteps: T, at least 1.
        s: offset, at least 0, that keeps the first steps from being too small.
        alpha_bar_min: alpha-bar of the last timestep, in (0, 1).

    Returns:
        (betas, alphas, alphas_cumprod), each float64 (T,).

    Raises:
        ValueError: if an argument is outside its range.
    """
    if s < 0:
        raise ValueError(f"s must be at least 0, got {s}")
    signal = np.cos(math.pi / 2 * (np.append(0.0, _times(num_train_timesteps)) + s) / (1 + s)) ** 2
    return _schedule(_with_floor(signal[1:] / signal[0], alpha_bar_min))


def _positive(name: str, count: int) -> int:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count


def _times(num_train_timesteps: int) -> np.ndarray:
    """The T timesteps on the continuous axis of the papers, 1/T to 1."""
    return np.arange(1, _positive("num_train_timesteps", num_train_timesteps) + 1) / num_train_timesteps


def _with_floor(alpha_bar: np.ndarray, alpha_bar_min: float) -> np.ndarray:
    if not 0 < alpha_bar_min < 1:
        raise ValueError(f"alpha_bar_min must lie between 0 and 1, got {alpha_bar_min}")
    return alpha_bar_min + (1 - alpha_bar_min) * alpha_bar


def _schedule(alpha_bar: np.ndarray) -> Schedule:
    """What MONAI's `Scheduler` wants to know: betas, alphas, alphas_cumprod."""
    alphas = alpha_bar / np.append(1.0, alpha_bar[:-1])
    return torch.from_numpy(1 - alphas), torch.from_numpy(alphas), torch.from_numpy(alpha_bar)
