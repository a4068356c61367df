"""What a calibration works with: a model, and priors that do not know a patient."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from custom.core.files import sha256_file
from custom.core.tensor_files import load_tensors
from custom.models import Model
from custom.networks.population_prior import OutOfFoldPriors, PopulationPrior
from custom.training.initial_weights import take_over_priors
from custom.trust.check_statistics import Meter
from custom.trust.evidence import find_prior, modules_of
from custom.trust.reference_ct import model_on

__all__ = ["OutOfFold", "loaded_model", "meeting"]


@dataclass(frozen=True)
class OutOfFold:
    """Priors that do not know one part of the training patients each.

    Args:
        checkpoint: checkpoint_last.pt of the training.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it holds none.
    """

    checkpoint: str
    folds: int = field(init=False)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        path = Path(self.checkpoint)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such checkpoint to take priors from: pass a checkpoint_last.pt")
        found = [name for name in load_tensors(path).get("out_of_fold", {}) if name.endswith(".mean")]
        if not found:
            raise ValueError(f"{path} holds no priors out of fold: it must be the checkpoint_last.pt of a training")
        object.__setattr__(self, "folds", len(found))
        object.__setattr__(self, "sha256", sha256_file(path))


@functools.lru_cache(maxsize=1)
def loaded_model(
    model: str, size: int | None, device: str | None, priors: OutOfFold | None = None
) -> tuple[Model, Meter, OutOfFoldPriors]:
    """A model, a meter, and priors out of fold (none without `priors`), kept by a process that works on many cases.

    Raises:
        ValueError: for priors that are not of the model's kind.
    """
    loaded = model_on(model, size, device)
    own = find_prior(loaded.network)
    if priors is not None and own is None:
        raise ValueError(f"{model} has no prior, so that priors out of fold have no place in it")
    others = OutOfFoldPriors(own, priors.folds if priors else 0)
    if priors is not None:
        take_over_priors(others, Path(priors.checkpoint))
    return loaded, Meter(), others


@contextmanager
def meeting(model: Model, prior: PopulationPrior | None) -> Iterator[None]:
    """While it lasts the model holds another prior; None: its own."""
    own = find_prior(model.network)
    if prior is None or own is None:
        yield
        return
    holders = [module for module in modules_of(model.network) if getattr(module, "prior", None) is own]
    try:
        for holder in holders:
            holder.prior = prior
        yield
    finally:
        for holder in holders:
            holder.prior = own
