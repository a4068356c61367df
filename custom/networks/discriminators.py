"""Discriminators of volumes and of their axial slices (DIFR3CT, section IV-B)."""

from __future__ import annotations

from typing import Any, NamedTuple

from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn

from custom.core.precision import check_precision, mixed_precision

__all__ = ["DiscriminatorOutput", "VolumeSliceDiscriminator"]


class DiscriminatorOutput(NamedTuple):
    """Features of the layers of both discriminators, the logits last; empty for one that is absent."""

    volume: list[Tensor]
    slices: list[Tensor]


class VolumeSliceDiscriminator(nn.Module):
    """A 3D PatchGAN on volumes and a 2D PatchGAN on their axial slices, in one module.

    One module, because a distributed training wants one forward pass for each backward pass.

    Args:
        volume: keywords of MONAI's `PatchDiscriminator` (`channels`, `num_layers_d`, `norm`, ...); None for none.
        slices: the same for the 2D one.
        precision: "auto", "bf16" or "fp32", as of the autoencoder.

    Raises:
        ValueError: if there is neither.
    """

    def __init__(
        self,
        volume: dict[str, Any] | None,
        slices: dict[str, Any] | None,
        precision: str = "auto",
    ) -> None:
        super().__init__()
        if volume is None and slices is None:
            raise ValueError("a discriminator of volumes or of slices is needed; to train without, set its weight to 0")
        self.volume = None if volume is None else PatchDiscriminator(spatial_dims=3, in_channels=1, **volume)
        self.slices = None if slices is None else PatchDiscriminator(spatial_dims=2, in_channels=1, **slices)
        self.precision = check_precision(precision)

    def forward(self, volume: Tensor, slices: Tensor) -> DiscriminatorOutput:
        """Volumes (B, 1, X, Y, Z) and axial slices (N, 1, X, Y), both in [-1, 1].

        Raises:
            ValueError: if they are too small for the layers.
        """
        with mixed_precision(self.precision, volume.device):
            return DiscriminatorOutput(_judge(self.volume, volume), _judge(self.slices, slices))


def _judge(network: PatchDiscriminator | None, image: Tensor) -> list[Tensor]:
    if network is None:
        return []
    try:
        features = network(image)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"a discriminator of {network.num_layers_d} layers cannot take {tuple(image.shape[2:])}: {error}; use "
            "fewer layers (num_layers_d), or larger volumes or patches"
        ) from error
    return [feature.float() for feature in features]
