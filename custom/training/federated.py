"""Federated training: what of a network leaves a site, and how it comes together with what stays there.

A `PopulationPrior` holds statistics of the patients that it was fitted to (a mean chest and how chests differ), so it
never leaves a site. The average of two would mean nothing, either: their components are different directions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom.core.checkpoints import load_checkpoint, save_checkpoint

__all__ = ["join_weights", "shared_weights"]

PRIVATE = "prior."


def shared_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a network's state, what a site sends: everything but the prior.

    Raises:
        ValueError: something in it is no floating-point number, and has no mean.
    """
    shared = {name: value.detach().cpu() for name, value in weights.items() if not name.startswith(PRIVATE)}
    whole = [name for name, value in shared.items() if not value.is_floating_point()]
    if whole:
        raise ValueError(f"{', '.join(whole)}: only floating-point weights can be averaged over sites")
    return shared


def join_weights(weights: Mapping[str, Any], site: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Write a checkpoint of the global weights and a site's own prior.

    Args:
        weights: global weights by name, as the server keeps them.
        site: checkpoint of a network of the same kind, which brings the prior.
        target: file to write.

    Raises:
        ValueError: the weights are those of another network.
    """
    checkpoint = load_checkpoint(site)
    network = checkpoint.network()
    own = shared_weights(network.state_dict())
    given = {name: torch.as_tensor(value) for name, value in weights.items()}
    if {name: tuple(value.shape) for name, value in own.items()} != {
        name: tuple(value.shape) for name, value in given.items()
    }:
        raise ValueError(f"{site}: the global weights are not those of this network")
    network.load_state_dict(given, strict=False)
    meta = {key: value for key, value in checkpoint.meta.items() if key not in ("network_def", "format", "software")}
    return save_checkpoint(Path(target), network, {**meta, "federated": True})
