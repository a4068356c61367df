"""`VoxelIdentity`: an autoencoder that changes nothing, for diffusion on the voxels themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from custom.geometry import VolumeGrid

__all__ = ["VoxelIdentity"]


class VoxelIdentity(nn.Module):
    """Stands where a `VQGAN` stands: a volume is its own latent, of one channel on the same grid. It has no weights.

    Args:
        grid: of the volumes.
        hu_window: CT values at -1 and 1.
    """

    embedding_dim = 1

    def __init__(self, grid: VolumeGrid, hu_window: Sequence[float] = (-1000.0, 1000.0)) -> None:
        super().__init__()
        self.grid, self.hu_window = grid, tuple(hu_window)

    @property
    def latent_grid(self) -> VolumeGrid:
        """`grid`."""
        return self.grid

    def encode(self, image: Tensor) -> Tensor:
        """Volumes (B, 1, X, Y, Z) in [-1, 1], as they are.

        Raises:
            ValueError: for another shape, or values that are not finite.
        """
        if image.ndim != 5 or tuple(image.shape[1:]) != (1, *self.grid.shape):
            raise ValueError(f"expected volumes (B, 1, X, Y, Z) on {self.grid.shape}, got shape {tuple(image.shape)}")
        if not torch.isfinite(image).all():
            raise ValueError("the volume holds NaN or infinite values")
        return image

    def decode(self, latent: Tensor, quantise: bool = False) -> Tensor:
        """The inverse of `encode`: (B, 1, X, Y, Z) as it is, not clipped.

        Raises:
            ValueError: for `quantise`: there is no codebook.
        """
        if quantise:
            raise ValueError("quantise: voxels have no codebook, leave it off")
        return latent
