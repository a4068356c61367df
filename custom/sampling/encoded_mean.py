"""`EncodedMean`: a deterministic reconstruction as a latent, from which a denoiser's residuals start."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from custom.core.checkpoints import definition, load_checkpoint

__all__ = ["EncodedMean"]


class EncodedMean:
    """What deterministic networks make of the radiographs, encoded: what a denoiser with `known_channels` is told.

    In training there is one network for each fold of the patients, which has not seen them: a network that knows its
    few training CTs by heart leaves no residual to learn. In use there is one that has seen all.

    Args:
        checkpoints: model.pt of `inr_recon`; network i serves fold i.
        autoencoder: a `VQGAN`, which encodes on its grid, or its model.pt.
        device: of all of them.
        precision: of all of them.

    Attributes:
        hashes: SHA-256 of the checkpoints.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`, or if there is none; while running, for a fold without one.
    """

    def __init__(
        self,
        checkpoints: Sequence[str | os.PathLike[str]],
        autoencoder: Any,
        device: str | torch.device = "cpu",
        precision: str = "auto",
    ) -> None:
        if not checkpoints:
            raise ValueError("a mean needs at least one checkpoint of inr_recon")
        if isinstance(autoencoder, str | os.PathLike):
            autoencoder = load_checkpoint(autoencoder).network().to(device)
        grid = definition(autoencoder.grid)
        loaded = [load_checkpoint(path) for path in checkpoints]
        self.hashes = [checkpoint.hash for checkpoint in loaded]
        self.networks: list[Any] = [
            checkpoint.network(grid=grid, precision=precision).to(device) for checkpoint in loaded
        ]
        for path, network in zip(checkpoints, self.networks, strict=True):
            if tuple(network.hu_window) != tuple(autoencoder.hu_window):
                raise ValueError(f"{path}: HU window {network.hu_window}, the autoencoder's is {autoencoder.hu_window}")
        self.autoencoder = autoencoder

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        views: Tensor,
        view_mask: Tensor | None = None,
        batch: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Radiographs (B, K, V, U) to latents (B, C, x, y, z), not normalised; `batch` may hold "fold" (B,)."""
        folds = [0] * len(image) if batch is None or "fold" not in batch else [int(f) for f in batch["fold"]]
        volumes = []
        for b, fold in enumerate(folds):
            if fold >= len(self.networks):
                raise ValueError(
                    f"a case of fold {fold}, but there are {len(self.networks)} mean networks: write the latents with "
                    "as many folds as there are fold_mean_checkpoints"
                )
            case = slice(b, b + 1)
            volumes.append(
                self.networks[fold](image[case], views[case], None if view_mask is None else view_mask[case])
            )
        return self.autoencoder.encode(torch.cat(volumes).clamp(-1, 1))
