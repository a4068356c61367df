"""Timesteps of a solver with few steps, between whole timesteps, spaced in half the log-SNR (lambda) or in time."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

__all__ = ["SPACINGS", "SnrTable", "distinct_integers", "singlestep_blocks"]

SPACINGS = ("time_uniform", "log_snr_uniform", "time_quadratic")


class SnrTable:
    """Timesteps of a noise schedule and their lambda, with log alpha interpolated linearly in between.

    Args:
        alphas_cumprod: alpha-bar of timesteps 0 (least noise) to T - 1.
        lambda_min: of the noisiest timestep that is visited, see `DPMSolverPPScheduler`.

    Raises:
        ValueError: if alpha-bar does not fall from below 1, or begins below `lambda_min`.
    """

    def __init__(self, alphas_cumprod: Tensor, lambda_min: float) -> None:
        # float64, and the solver's own: `add_noise` casts `alphas_cumprod` to its samples' type.
        alpha_bar = alphas_cumprod.double().cpu().numpy()
        if not (alpha_bar[0] < 1 and alpha_bar[-1] >= 0 and np.all(np.diff(alpha_bar) < 0)):
            raise ValueError(
                f"the noise schedule's alphas_cumprod must fall strictly from below 1 to 0 or more, got "
                f"{alpha_bar[0]:g} ... {alpha_bar[-1]:g}"
            )
        with np.errstate(divide="ignore"):
            half_log_snr = 0.5 * (np.log(alpha_bar) - np.log1p(-alpha_bar))
        if not lambda_min < half_log_snr[0]:
            raise ValueError(
                f"lambda_min must be below the half log-SNR of timestep 0, {half_log_snr[0]:.3g}, got {lambda_min}"
            )
        visited = np.count_nonzero(half_log_snr > lambda_min) + 1
        self._log_alpha = -0.5 * np.logaddexp(0, -2 * np.maximum(half_log_snr[:visited], lambda_min))

    def __len__(self) -> int:
        """Number of timesteps that are visited."""
        return len(self._log_alpha)

    def half_log_snr(self, time: np.ndarray | float) -> np.ndarray:
        """lambda at real timesteps; those beyond the noisiest that is visited count as that one."""
        log_alpha = np.interp(time, np.arange(len(self._log_alpha)), self._log_alpha)
        return log_alpha - 0.5 * np.log(-np.expm1(2 * log_alpha))

    def time(self, half_log_snr: np.ndarray) -> np.ndarray:
        """Inverse of `half_log_snr`. `np.interp` wants its table to increase."""
        log_alpha = -0.5 * np.logaddexp(0, -2 * half_log_snr)
        return np.interp(-log_alpha, -self._log_alpha, np.arange(len(self._log_alpha)))

    def spaced(self, count: int, spacing: str) -> np.ndarray:
        """Real timesteps from the noisiest to 0, by one of `SPACINGS`."""
        noisiest = len(self) - 1.0
        if spacing == "time_uniform":
            times = np.linspace(noisiest, 0, count)
        elif spacing == "time_quadratic":
            # In the continuous time of the papers, (timestep + 1) / T.
            times = np.linspace(math.sqrt(noisiest + 1), 1, count) ** 2 - 1
        else:
            times = self.time(np.linspace(self.half_log_snr(noisiest), self.half_log_snr(0.0), count))
        times[-1], times[0] = 0, noisiest  # without rounding errors; a single evaluation is at the noisiest
        return times


def singlestep_blocks(evaluations: int, order: int, lower_order_final: bool) -> list[int]:
    """Orders of the steps, which sum to the number of evaluations.

    What is left over comes first: among noise a step of lower order costs least.
    """
    final = [1] if lower_order_final and evaluations else []
    full, rest = divmod(evaluations - len(final), order)
    return [rest] * (rest > 0) + [order] * full + final


def distinct_integers(times: np.ndarray, available: int) -> np.ndarray:
    """The nearest whole timesteps, int64, pushed apart where two would be the same."""
    room = np.arange(len(times))[::-1]
    upwards = np.maximum.accumulate((np.rint(times) - room)[::-1])[::-1] + room
    return np.minimum(upwards, available - len(times) + room).astype(np.int64)
