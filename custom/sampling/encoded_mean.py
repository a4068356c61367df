"""`EncodedMean`: a deterministic reconstruction as a latent, from which a denoiser's residuals start."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from custom.core.checkpoints import definition, load_checkpoint
from custom.geometry import VolumeGrid

__all__ = ["EncodedMean"]


class EncodedMean:
    """What a deterministic network makes of the radiographs, encoded: what a denoiser with `known_channels` is told.

    Args:
        checkpoint: model.pt of `inr_recon`.
        autoencoder: a `VQGAN`, which encodes on its grid, or its model.pt.
        device: of both.
        precision: of both.

    Attributes:
        hash: SHA-256 of the checkpoint.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`, or if the two read CT values differently.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        autoencoder: Any,
        device: str | torch.device = "cpu",
        precision: str = "auto",
    ) -> None:
        if isinstance(autoencoder, str | os.PathLike):
            autoencoder = load_checkpoint(autoencoder).network().to(device)
        loaded = load_checkpoint(checkpoint)
        self.hash, self.autoencoder = loaded.hash, autoencoder
        network: Any = loaded.network(grid=definition(autoencoder.grid), precision=precision).to(device)
        if tuple(network.hu_window) != tuple(autoencoder.hu_window):
            raise ValueError(
                f"{checkpoint}: HU window {network.hu_window}, the autoencoder's is {autoencoder.hu_window}"
            )
        self.network = network

    @torch.no_grad()
    def __call__(self, image: Tensor, views: Tensor, view_mask: Tensor | None = None) -> Tensor:
        """Radiographs (B, K, V, U) to latents (B, C, x, y, z), not normalised."""
        return self.autoencoder.encode(self.volume(image, views, view_mask))

    @torch.no_grad()
    def volume(self, image: Tensor, views: Tensor, view_mask: Tensor | None = None) -> Tensor:
        """Radiographs (B, K, V, U) to the reconstruction (B, 1, X, Y, Z), `hu_window` as [-1, 1], clipped."""
        return self.network(image, views, view_mask).clamp(-1, 1)

    @torch.no_grad()
    def first_stage(self, image: Tensor, views: Tensor) -> tuple[Tensor, VolumeGrid]:
        """The same before the network adds detail, on a grid of its own: in a third of the time or less.

        Of a network that has a single stage, the reconstruction.
        """
        if self.network.volume_network is None:
            return self.volume(image, views), self.network.grid
        return self.network(image, views, coarse=True).clamp(-1, 1), self.network.coarse_grid
