"""Handlers of a training: averaged weights, clipped gradients, best model, last validation."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.engines.utils import IterationEvents

from custom.core.checkpoints import save_checkpoint
from custom.core.files import sha256_file

__all__ = [
    "BestModelSaver",
    "FinalValidation",
    "GradientClip",
    "UpdateAverage",
    "WeightAverage",
]

logger = logging.getLogger(__name__)

#: Steps over which the average becomes slow: at first it would remember the network's random weights.
AVERAGE_WARMUP_ITERATIONS = 500


class WeightAverage:
    """Exponential moving average of the weights (ignite's `EMAHandler`), as a MONAI handler.

    Args:
        network: the network that is trained.
        momentum: share of the new weights at each step.

    Attributes:
        network: the averaged copy, for validation and for use.
    """

    def __init__(self, network: torch.nn.Module, momentum: float = 0.002) -> None:
        self.momentum = momentum
        self._handler = EMAHandler(network, momentum=momentum)
        self.network = self._handler.ema_model

    def attach(self, engine: Engine) -> None:
        """Update after every iteration."""
        self._handler.attach(engine, event=Events.ITERATION_COMPLETED)
        engine.add_event_handler(Events.ITERATION_STARTED, self._warm_up)

    def _warm_up(self, engine: Engine) -> None:
        """Ignite's own warm-up counts from where a training was resumed, and would throw the average away there."""
        share = min(1.0, engine.state.iteration / AVERAGE_WARMUP_ITERATIONS)
        first = max(0.1, self.momentum)
        engine.state.ema_momentum = first + (self.momentum - first) * share  # type: ignore[attr-defined]


class UpdateAverage:
    """Handler that keeps a `WeightAverage` up to date.

    An entry of its own in a config's handlers: MONAI's property check reads "_target_" of each of them, so that a mere
    "@ema" among them makes it fail.

    Args:
        average: to update after every iteration.
    """

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def attach(self, engine: Engine) -> None:
        """Registers with a trainer."""
        self.average.attach(engine)


class FinalValidation:
    """Handler that validates at the end of a training whose last epoch is none of those that are validated anyway.

    Args:
        validator: evaluator.
        interval: epochs between two validations.
    """

    def __init__(self, validator: Any, interval: int) -> None:
        self.validator, self.interval = validator, interval

    def attach(self, engine: Engine) -> None:
        """Registers with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self._validate)

    def _validate(self, engine: Engine) -> None:
        if engine.state.epoch % self.interval:
            self.validator.run(engine.state.epoch)


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


class BestModelSaver:
    """Writes `model.pt` (`custom.core.checkpoints`) whenever the evaluator's key metric is the best so far, or always.

    Args:
        path: the weights file.
        network: the network that was evaluated, usually the averaged one.
        data_list_file: datalist that the network was trained on; its hash goes into the meta.
        meta: more for the meta, such as the preset's name.
        always: write at every evaluation, for networks that the metric does not judge.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        network: torch.nn.Module,
        data_list_file: str | os.PathLike[str] | None = None,
        meta: Mapping[str, Any] | None = None,
        always: bool = False,
    ) -> None:
        self.path, self.network, self.data_list_file, self.meta = Path(path), network, data_list_file, dict(meta or {})
        self.always = always
        self.best = -math.inf

    def attach(self, engine: Engine) -> None:
        """Registers with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self._save)

    def state_dict(self) -> dict[str, float]:
        """The best metric, so that a resumed training does not overwrite a better model."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """The inverse of `state_dict`."""
        self.best = state["best"]

    def _save(self, engine: Engine) -> None:
        name = engine.state.key_metric_name  # type: ignore[attr-defined]
        value = float(engine.state.metrics[name])
        if idist.get_rank() != 0:
            return
        if not (self.always or value > self.best):  # MONAI forgets the best one of before a resumption
            logger.info("%s stays as it is: %s %.3f, best so far %.3f", self.path, name, value, self.best)
            return
        best = max(self.best, value)
        meta = {**self.meta, "validation": {name: value}, "epoch": getattr(engine.state, "epoch", None)}
        if self.data_list_file is not None:
            meta["datalist_sha256"] = sha256_file(self.data_list_file)
        save_checkpoint(self.path, self.network, meta)
        self.best = best  # not before: a stop in between would keep the file from ever being written
        logger.info("%s: %s %.3f, best so far %.3f", self.path, name, value, self.best)
