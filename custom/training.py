"""Handlers that steady a training: averaged weights, bounded gradients, a schedule with warm-up."""

from __future__ import annotations

import math

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.engines.utils import IterationEvents

__all__ = ["GradientClip", "WeightAverage", "warmup_cosine"]


class WeightAverage:
    """Exponential moving average of the weights (ignite's `EMAHandler`), as a MONAI handler.

    Args:
        network: the network that is trained.
        momentum: share of the new weights at each step.

    Attributes:
        network: the averaged copy, for validation and for use.
    """

    def __init__(self, network: torch.nn.Module, momentum: float = 0.002) -> None:
        self._handler = EMAHandler(network, momentum=momentum, momentum_warmup=0.1, warmup_iters=500)
        self.network = self._handler.ema_model

    def attach(self, engine: Engine) -> None:
        """Update after every iteration."""
        self._handler.attach(engine, event=Events.ITERATION_COMPLETED)


class GradientClip:
    """Clips the norm of the gradient before the optimizer's step.

    Args:
        network: whose parameters are clipped.
        max_norm: largest norm.

    Raises:
        RuntimeError: at the first gradient that is not finite, before it spoils the weights.
    """

    def __init__(self, network: torch.nn.Module, max_norm: float = 1.0) -> None:
        self.parameters, self.max_norm = [p for p in network.parameters() if p.requires_grad], max_norm

    def attach(self, engine: Engine) -> None:
        """Runs between backward pass and optimizer step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Engine) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        if not torch.isfinite(norm):
            raise RuntimeError(
                f"the gradient is not finite at iteration {engine.state.iteration}: lower learning_rate, or set "
                "precision to 'fp32'; the last checkpoint is intact"
            )


def warmup_cosine(optimizer: torch.optim.Optimizer, warmup: int, total: int, final: float = 0.02) -> object:
    """Learning rate factor: linear over `warmup` steps, then a half cosine to `final` at step `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, total - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
