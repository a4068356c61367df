"""DPM-Solver++ in MONAI's `Scheduler` interface: which timesteps, what is remembered between them, and the updates of
`solver_updates`. Timesteps are the network's own: 0 (least noise) to T - 1, for any T."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from monai.networks.schedulers import Scheduler
from torch import Tensor

from custom.schedulers.solver_timesteps import SPACINGS, SnrTable, distinct_integers, singlestep_blocks
from custom.schedulers.solver_updates import Node, alpha, dpm_solver_update, sigma

__all__ = ["DPMSolverPPScheduler"]

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
METHODS = ("multistep", "singlestep")

Choice = TypeVar("Choice", int, str)


class DPMSolverPPScheduler(Scheduler):
    """DPM-Solver++: a deterministic solver of the diffusion ODE that needs 10 to 20 evaluations of the network.

    Every timestep in `timesteps` is one evaluation. The last is timestep 0 (unless there is only one), and the data
    prediction there is the result. MONAI's `DiffusionInferer` can drive it, and any loop like this::

        scheduler.set_timesteps(20)
        for t in scheduler.timesteps:
            output = network(x, t.expand(len(x)))
            x, original = scheduler.step(output, t, x)

    To correct the predicted x_0 on the way (data consistency), replace the last line by::

            original = scheduler.predict_original(output, t, x)
            x, original = scheduler.step_from_original(correct(original), t, x)

    What a step remembers of earlier ones belongs to one run. `set_timesteps` begins another, and so does a timestep
    that does not follow the last one (the first, or a later one to start from a partly noised sample). Two runs at a
    time need two schedulers.

    Args:
        num_train_timesteps: T, number of timesteps that the network was trained with.
        schedule: name in `NoiseSchedules`: ours ("ddpm_linear", "gamma_linear", "cosine_floor") or MONAI's.
        prediction_type: what the network gives: "epsilon", "sample" (x_0) or "v_prediction" (alpha epsilon -
            sigma x_0).
        order: 1 (DDIM), 2 or 3.
        method: "multistep" remembers the predictions of earlier steps; "singlestep" spends `order` evaluations on each
            step, which is then as many times longer.
        spacing: of the steps: "time_uniform" in the timestep, "log_snr_uniform" in lambda, "time_quadratic" in the root
            of time. The latter two have shorter steps at the clean end.
        lower_order_final: the step that ends at timestep 0 is of order 1, and in multistep the one before of order 2 at
            most. It is the longest step in lambda where time is uniform, and a polynomial does not reach that far.
        integer_timesteps: visit whole timesteps only, as in training, each once: the nearest to where spacing and order
            put them. False: real numbers, with log alpha interpolated linearly in between, as in the authors' code.
        lambda_min: half log-SNR of the noisiest timestep that is visited. Of the timesteps at or below it the cleanest
            is kept and taken to lie there; so alpha-bar = 0 is allowed, and nothing is divided by less than
            alpha(lambda_min). The default, -5.1, is alpha-bar 3.7e-5, below the end of all our schedules.
        threshold_ratio: quantile of dynamic thresholding, in (0, 1]: |x_0| beyond it is clipped, and x_0 scaled back to
            `threshold_max` (Saharia et al. 2022, arXiv 2205.11487). None: off. Latents have no bounds: leave it off.
        threshold_max: greatest |x_0| of the data.
        schedule_args: for the noise schedule.

    Raises:
        ValueError: if an argument is outside its choices or range, or alpha-bar does not fall from below 1.
    """

    # What a run remembers: data predictions and their lambdas, the sample that the step starts from, the next position.
    _nodes: list[Node]
    _base: Tensor | None
    _next: int

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        schedule: str = "ddpm_linear",
        prediction_type: str = "epsilon",
        order: int = 2,
        method: str = "multistep",
        spacing: str = "time_uniform",
        lower_order_final: bool = True,
        integer_timesteps: bool = True,
        lambda_min: float = -5.1,
        threshold_ratio: float | None = None,
        threshold_max: float = 1.0,
        **schedule_args: float,
    ) -> None:
        super().__init__(num_train_timesteps, schedule, **schedule_args)
        self.prediction_type = _one_of("prediction_type", prediction_type, PREDICTION_TYPES)
        self.order = _one_of("order", order, (1, 2, 3))
        self.method = _one_of("method", method, METHODS)
        self.spacing = _one_of("spacing", spacing, SPACINGS)
        self.lower_order_final, self.integer_timesteps = lower_order_final, integer_timesteps
        if threshold_ratio is not None and not 0 < threshold_ratio <= 1:
            raise ValueError(f"threshold_ratio must lie in (0, 1] (None: no thresholding), got {threshold_ratio}")
        if not threshold_max > 0:
            raise ValueError(f"threshold_max must be greater than 0, got {threshold_max}")
        self.threshold_ratio, self.threshold_max = threshold_ratio, threshold_max
        self._table = SnrTable(self.alphas_cumprod, lambda_min)
        self.set_timesteps(len(self._table))

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Chooses the timesteps that the network is asked at, and forgets earlier steps.

        Args:
            num_inference_steps: number of evaluations of the network, at least 1; with whole timesteps at most as many
                as there are (T, less those beyond `lambda_min`).
            device: of `timesteps`: int64 (N,), or float32 if not `integer_timesteps`, strictly decreasing to 0.

        Raises:
            ValueError: if the number is outside that range, or too large for timesteps that differ in float32.
        """
        available = len(self._table)
        if num_inference_steps < 1 or (self.integer_timesteps and num_inference_steps > available):
            raise ValueError(
                f"num_inference_steps must be at least 1 and, with whole timesteps, at most {available}, got "
                f"{num_inference_steps}; integer_timesteps=False allows any number"
            )
        times = self._table.spaced(num_inference_steps, self.spacing)
        if self.method == "singlestep":
            blocks = singlestep_blocks(num_inference_steps - 1, self.order, self.lower_order_final)
            ends = np.cumsum([0, *blocks])
            # Within a block the evaluations lie uniformly in lambda: r = 1/2, or 1/3 and 2/3.
            uniform = self._table.time(
                np.interp(np.arange(num_inference_steps), ends, self._table.half_log_snr(times[ends]))
            )
            uniform[ends] = times[ends]
            times, self._block_starts = uniform, set(ends.tolist())
        # As the network will see them, so that solver and network mean the same noise.
        times = distinct_integers(times, available) if self.integer_timesteps else times.astype(np.float32)
        if np.any(np.diff(times) >= 0):
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}, more than float32 timesteps from {available - 1} to 0 "
                f"can tell apart; ask for fewer"
            )

        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.from_numpy(times).to(device)
        self._position = {float(time): position for position, time in enumerate(times)}
        self._lambdas = self._table.half_log_snr(times).tolist()
        self._forget()

    def step(self, model_output: Tensor, timestep: int | float | Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the solver, from a timestep to the next in `timesteps` (from the last to x_0).

        Args:
            model_output: what the network gave at `timestep` for `sample`, (B, ...), of `prediction_type`.
            timestep: one of `timesteps`, a single number.
            sample: x_t, (B, ...).

        Returns:
            The sample at the next timestep, in `sample`'s type, and the predicted x_0, in float32 at least. Inside a
            singlestep block the sample is the solver's intermediate point, where it asks the network again.

        Raises:
            ValueError: if the timestep is not one of `timesteps`, or the shapes differ.
        """
        return self.step_from_original(self.predict_original(model_output, timestep, sample), timestep, sample)

    def predict_original(self, model_output: Tensor, timestep: int | float | Tensor, sample: Tensor) -> Tensor:
        """The x_0 that the network's output means, thresholded if that is on. Arguments and errors as in `step`."""
        _check_shape("model_output", model_output, sample)
        half_log_snr = self._lambdas[self._index(timestep)]
        alpha_t, sigma_t = alpha(half_log_snr), sigma(half_log_snr)
        sample, output = _at_least_float32(sample), _at_least_float32(model_output)
        if self.prediction_type == "epsilon":
            original = (sample - sigma_t * output) / alpha_t
        elif self.prediction_type == "v_prediction":
            original = alpha_t * sample - sigma_t * output
        else:
            original = output
        if self.threshold_ratio is not None:
            original = _dynamic_threshold(original, self.threshold_ratio, self.threshold_max)
        return original

    def step_from_original(
        self, original: Tensor, timestep: int | float | Tensor, sample: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`step` from a predicted x_0, (B, ...), that the caller may have corrected, whatever the prediction type."""
        _check_shape("original", original, sample)
        index = self._index(timestep)
        if index != self._next:
            self._forget()
        node, last = (self._lambdas[index], _at_least_float32(original)), len(self._lambdas) - 1
        if self.method == "multistep":
            # Algorithm 2: from here, with the latest predictions behind.
            self._nodes, self._base = [node, *self._nodes][: self.order], sample
            order = min(self.order, last - index) if self.lower_order_final else self.order
        else:
            # Algorithm 1: from where the block began, with the predictions inside it.
            if index in self._block_starts or self._base is None:
                self._nodes, self._base = [], sample
            self._nodes, order = [*self._nodes, node], self.order
        if index == last:
            self._forget()
            return original.to(sample.dtype), original
        self._next = index + 1
        moved = dpm_solver_update(_at_least_float32(self._base), self._nodes[:order], self._lambdas[index + 1])
        return moved.to(sample.dtype), original

    def alpha_sigma(self, timestep: int | float | Tensor) -> tuple[float, float]:
        """Scale of signal and of noise (alpha, sigma), as the solver sees them, at any real timestep in [0, T - 1].

        Timesteps beyond the noisiest that is visited count as that one.
        """
        half_log_snr = float(self._table.half_log_snr(float(timestep)))
        return alpha(half_log_snr), sigma(half_log_snr)

    def _forget(self) -> None:
        self._nodes, self._base, self._next = [], None, 0

    def _index(self, timestep: int | float | Tensor) -> int:
        index = self._position.get(float(timestep))
        if index is None:
            raise ValueError(
                f"timestep must be one of the {len(self.timesteps)} in `timesteps` ({self.timesteps[0].item():g} to "
                f"{self.timesteps[-1].item():g}), got {float(timestep):g}; iterate over `timesteps` after set_timesteps"
            )
        return index


def _one_of(name: str, value: Choice, choices: Sequence[Choice]) -> Choice:
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}")
    return value


def _check_shape(name: str, tensor: Tensor, sample: Tensor) -> None:
    if tensor.shape != sample.shape:
        raise ValueError(f"{name} must have the shape of sample {tuple(sample.shape)}, got {tuple(tensor.shape)}")


def _dynamic_threshold(original: Tensor, ratio: float, limit: float) -> Tensor:
    """Clips each sample of the batch at a quantile of |x_0| (nearest rank) beyond `limit`, and scales to `limit`."""
    magnitudes = original.abs().flatten(1)
    # torch.quantile refuses more than 2^24 elements.
    rank = max(1, math.ceil(ratio * magnitudes.shape[1]))
    bound = magnitudes.kthvalue(rank, dim=1).values.clamp(min=limit)
    bound = bound.reshape(-1, *[1] * (original.ndim - 1))
    return original.clamp(-bound, bound) * (limit / bound)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
