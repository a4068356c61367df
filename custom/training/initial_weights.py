"""Initial weights of a training: a fitted population prior, or the weights of a checkpoint."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from custom.core.checkpoints import load_checkpoint
from custom.core.tensor_files import load_tensors
from custom.data.augmentation import RandThoraxAugment
from custom.networks.population_prior import OutOfFoldPriors

__all__ = ["fit_prior", "load_weights", "take_over_priors"]

logger = logging.getLogger(__name__)


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
        take_over_priors(out_of_fold, Path(priors_from))
        out_of_fold = None
    if prior.fitted and not out_of_fold:
        return
    logger.info("fitting the prior to %d warped CTs", members)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(torch.tensor(weights), members, replacement=True, generator=generator)
    augment.set_random_state(seed)
    folds = torch.tensor([int(case.get("fold", 0)) for case in dataset])[drawn]
    knows = _folds_that_enter(folds, len(out_of_fold or ()), augment.shapes is not None, generator)
    population = torch.empty(members, *prior.grid.shape)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the warps are small: a second thread makes them twice as slow
    try:
        for n, index in enumerate(tqdm(drawn.tolist(), desc="population", disable=None)):
            case = dataset[index]
            augment.randomize({"case": case.get("case"), "shape_folds": knows[n].nonzero().flatten().tolist()})
            population[n] = augment(case[key], randomize=False)[0].clamp(*network.hu_window) / 1000 + 1
    finally:
        torch.set_num_threads(threads)
    if out_of_fold:
        out_of_fold.fit(population, knows)
        logger.info("%d priors are fitted, each without its own fold of the patients", len(out_of_fold))
    if not prior.fitted:
        prior.fit(population)
        logger.info("the prior has %d components", len(prior.components))


def _folds_that_enter(own: torch.Tensor, folds: int, shapes: bool, generator: torch.Generator) -> torch.Tensor:
    """Whose patients give each member tissue or shape, bool (N, folds).

    Its own fold does, and where shapes are mixed a random choice of the others, 3 in 5 of all at most: few enough that
    most members know nothing of any given fold.
    """
    folds = max(folds, int(own.max()) + 1)
    size = torch.ones(len(own), 1, dtype=torch.long)
    if shapes:
        size = torch.randint(1, max(1, round(0.6 * folds)) + 1, size.shape, generator=generator)
    order = torch.rand(len(own), folds, generator=generator)
    order[torch.arange(len(own)), own] = -1.0
    return order.argsort(1).argsort(1) < size


def take_over_priors(priors: OutOfFoldPriors, checkpoint: Path) -> None:
    """The priors out of fold that a training kept in its checkpoint_last.pt.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it holds no priors of this kind.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint to take priors from: pass a checkpoint_last.pt")
    state = load_tensors(checkpoint)
    try:
        priors.load_state_dict(state["out_of_fold"])
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{checkpoint} holds no priors of this grid, size and number of folds: {error}") from error
    logger.info("priors out of fold are those of %s", checkpoint)


def load_weights(network: torch.nn.Module, checkpoint: str | os.PathLike[str] | None) -> None:
    """Begin with the weights of another training, for example of a coarser stage; None: with what the network has.

    Its prior comes along, and stages that the checkpoint lacks begin untrained. A training that resumes from its own
    checkpoint takes that one's weights afterwards.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it is of another architecture.
    """
    if checkpoint is not None:
        load_checkpoint(checkpoint).load_into(network, stages=True)
