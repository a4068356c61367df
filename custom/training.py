"""Handlers that steady a training: averaged weights, bounded gradients, warm-up, the best model."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.engines.utils import IterationEvents
from tqdm import tqdm

from custom.augmentation import RandThoraxAugment
from custom.checkpoints import load_checkpoint, save_checkpoint, sha256
from custom.networks.prior import OutOfFoldPriors

__all__ = [
    "BestModelSaver",
    "FinalValidation",
    "GradientClip",
    "UpdateAverage",
    "WeightAverage",
    "fit_prior",
    "load_weights",
    "warmup_cosine",
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
    """Writes `model.pt` (see `custom.checkpoints`) whenever the evaluator's key metric is the best so far, or always.

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
        if idist.get_rank() != 0 or not (self.always or value > self.best):
            return
        best = max(self.best, value)
        meta = {**self.meta, "validation": {name: value}, "epoch": getattr(engine.state, "epoch", None)}
        if self.data_list_file is not None:
            meta["datalist_sha256"] = sha256(self.data_list_file)
        save_checkpoint(self.path, self.network, meta)
        self.best = best  # not before: a stop in between would keep the file from ever being written
        logger.info("%s: %s %.3f, best so far %.3f", self.path, name, value, self.best)


def fit_prior(
    network: Any,
    dataset: Sequence[Mapping[str, Any]],
    weights: Sequence[float],
    augment: RandThoraxAugment,
    members: int,
    out_of_fold: OutOfFoldPriors | None = None,
    known_from: str | os.PathLike[str] | None = None,
    priors_from: str | os.PathLike[str] | None = None,
    key: str = "source",
    seed: int = 0,
) -> None:
    """Fit a network's `PopulationPrior` to training CTs that are warped at random, again and again.

    Args:
        network: left alone if it has no prior, or one that came with its weights.
        dataset: training cases; `key` is a CT (1, X, Y, Z) in HU around the isocentre, "fold" its part of the patients.
        weights: how often each case is drawn.
        augment: the warp, to the prior's grid.
        members: of the population. More is better, slowly: the prior knows what it has seen.
        out_of_fold: fitted to the same population.
        known_from: checkpoint that brings all of them, so that nothing is fitted, if that file is there.
        priors_from: checkpoint_last.pt of another stage, whose priors out of fold are taken over.
        key: of the CT.
        seed: of cases and warps.

    Raises:
        FileNotFoundError, ValueError: if priors_from is missing, or holds no priors of this kind.
    """
    prior = getattr(network, "prior", None)
    if prior is None or (known_from is not None and Path(known_from).is_file()):
        return
    if out_of_fold and priors_from is not None:
        _take_over(out_of_fold, Path(priors_from))
        out_of_fold = None
    if prior.fitted and not out_of_fold:
        return
    logger.info("fitting the prior to %d warped CTs", members)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(torch.tensor(weights), members, replacement=True, generator=generator)
    augment.set_random_state(seed)
    population = torch.empty(members, *prior.grid.shape)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the warps are small: a second thread makes them twice as slow
    try:
        for member, case in zip(population, tqdm(drawn.tolist(), desc="population", disable=None), strict=True):
            member.copy_(augment(dataset[case][key])[0].clamp(*network.hu_window) / 1000 + 1)
    finally:
        torch.set_num_threads(threads)
    if out_of_fold:
        out_of_fold.fit(population, torch.tensor([int(case["fold"]) for case in dataset])[drawn])
        logger.info("%d priors are fitted, each without its own fold of the patients", len(out_of_fold))
    if not prior.fitted:
        prior.fit(population)
        logger.info("the prior has %d components", len(prior.components))


def _take_over(priors: OutOfFoldPriors, checkpoint: Path) -> None:
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint to take priors from: pass a checkpoint_last.pt")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    try:
        priors.load_state_dict(state["out_of_fold"])
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{checkpoint} holds no priors of this grid, size and number of folds: {error}") from error
    logger.info("priors out of fold are those of %s", checkpoint)


def load_weights(network: torch.nn.Module, checkpoint: str | os.PathLike[str] | None) -> None:
    """Begin with the weights of another training, for example of a coarser stage; None: with what the network has.

    Its prior comes along. A training that resumes from its own checkpoint takes that one's weights afterwards.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it is of another architecture.
    """
    if checkpoint is not None:
        load_checkpoint(checkpoint).load_into(network)


def warmup_cosine(optimizer: torch.optim.Optimizer, warmup: int, total: int, final: float = 0.02) -> object:
    """Learning rate factor: linear over `warmup` steps, then a half cosine to `final` at step `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, total - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
