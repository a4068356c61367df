"""Guard of a training against discriminators: stops at a collapse, keeps the last good checkpoint."""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.utils.enums import AdversarialIterationEvents
from torch import nn

from custom.core.tensor_files import load_tensors, not_finite
from custom.training.resuming import ResumableCheckpoint
from custom.training.training_handlers import GradientClip

__all__ = ["CollapseGuard", "DiscriminatorClip", "GuardedCheckpoint"]

logger = logging.getLogger(__name__)


class DiscriminatorClip(GradientClip):
    """`GradientClip` of a `VQGANTrainer`'s discriminators."""

    def attach(self, engine: Engine) -> None:
        """Runs between the discriminators' backward pass and their optimizer's step."""
        engine.add_event_handler(AdversarialIterationEvents.DISCRIMINATOR_BACKWARD_COMPLETED, self._clip)


class CollapseGuard:
    """Stops a training that has gone wrong, and knows before whether a checkpoint is still worth writing.

    Users of the upstream code report NaN and collapse once the discriminators start. The running mean of the absolute
    error (about the last 50 steps) is compared with its lowest value so far, the perplexity of the codebook with its
    highest: when the first is `factor` times as large, or the second `perplexity_factor` times as small, the training
    ends. From the root of these factors on it is in doubt.

    Args:
        factor: above 1.
        perplexity_factor: above 1.
        warmup: steps at the start that are not looked at.

    Raises:
        ValueError: for factors that would stop everything.
    """

    MEMORY = 0.98

    def __init__(self, factor: float = 3.0, perplexity_factor: float = 10.0, warmup: int = 200) -> None:
        if min(factor, perplexity_factor) <= 1:
            raise ValueError(f"the factors must be above 1, got {factor} and {perplexity_factor}")
        self.factor, self.perplexity_factor, self.warmup = factor, perplexity_factor, warmup
        self.checkpoint: Path | None = None
        self.steps = 0
        self.error, self.perplexity = math.nan, math.nan
        self.best_error, self.best_perplexity = math.inf, 0.0

    def state_dict(self) -> dict[str, float]:
        """What it remembers."""
        names = ("steps", "error", "perplexity", "best_error", "best_perplexity")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """The inverse of `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)

    @property
    def doubtful(self) -> bool:
        """Whether the training seems to be on its way down."""
        return self.steps > self.warmup and (
            self.error > math.sqrt(self.factor) * self.best_error
            or self.perplexity < self.best_perplexity / math.sqrt(self.perplexity_factor)
        )

    def check(self, step: int, loss: float, terms: Mapping[str, float]) -> None:
        """Look at a step before its gradient is computed.

        Args:
            step: for the message.
            loss: weighted sum.
            terms: with "l1" and "perplexity".

        Raises:
            RuntimeError: if the loss is not finite, or reconstruction or codebook have collapsed.
        """
        if not math.isfinite(loss):
            wrong = [name for name, term in terms.items() if not math.isfinite(term)]
            self._stop(f"the loss is {loss} at iteration {step}, because of {wrong}")
        self.error = self._mean(self.error, terms["l1"])
        self.perplexity = self._mean(self.perplexity, terms["perplexity"])
        self.steps += 1
        if self.steps <= self.warmup:
            return
        self.best_error = min(self.best_error, self.error)
        self.best_perplexity = max(self.best_perplexity, self.perplexity)
        if self.error > self.factor * self.best_error:
            self._stop(
                f"the reconstruction has collapsed: its mean absolute error rose from {self.best_error:.4f} to "
                f"{self.error:.4f} by iteration {step}"
            )
        if self.perplexity < self.best_perplexity / self.perplexity_factor:
            self._stop(
                f"the codebook has collapsed: its perplexity fell from {self.best_perplexity:.1f} to "
                f"{self.perplexity:.1f} by iteration {step}"
            )

    def _mean(self, mean: float, value: float) -> float:
        return value if math.isnan(mean) else self.MEMORY * mean + (1 - self.MEMORY) * value

    def _stop(self, reason: str) -> None:
        raise RuntimeError(
            f"{reason}. {self._left()} Go on with lower adversarial weights, a later disc_start_step, a lower "
            "learning_rate, or precision 'fp32'"
        )

    def _left(self) -> str:
        """What is known of the checkpoint, after a look into it."""
        path = self.checkpoint
        if path is None or not path.is_file():
            return "No checkpoint was written."
        try:
            bad = not_finite(load_tensors(path))
        except (ValueError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            return f"The last checkpoint, {path}, cannot be read ({error}): begin anew."
        if bad:
            return f"The last checkpoint, {path}, holds NaN or infinity in {bad}: remove it and begin anew."
        return f"The last checkpoint, {path}, is intact."


class GuardedCheckpoint(ResumableCheckpoint):
    """`ResumableCheckpoint` that keeps the last good state while the guard is in doubt.

    Args:
        guard: of the trainer.
        **kwargs: of `ResumableCheckpoint`; the guard's state belongs among the objects.
    """

    def __init__(self, guard: CollapseGuard, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.guard = guard
        guard.checkpoint = self.path

    def _save(self, engine: Engine, epoch_completed: bool) -> None:
        if self.guard.doubtful:
            logger.warning("%s is left as it was: error or codebook are getting worse", self.path)
            return
        states = {name: item.state_dict() for name, item in self.objects.items() if isinstance(item, nn.Module)}
        bad = not_finite(states)
        if bad:
            logger.warning("%s is left as it was: %s holds NaN or infinity", self.path, bad)
            return
        super()._save(engine, epoch_completed)
