"""Weight initialisation (He et al.) for networks without normalisation."""

from __future__ import annotations

import math

from torch import nn

__all__ = ["initialise_he"]


def initialise_he(network: nn.Module, negative_slope: float = 0.0) -> None:
    """Draw the weights of convolutions so that variance is kept through rectifiers (He et al. 2015); biases are zero.

    A transposed convolution whose kernel is its stride gives every output voxel one input per channel, so its fan-in
    is the number of input channels.
    """
    gain = math.sqrt(2 / (1 + negative_slope**2))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            fan_in = module.in_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            fan_in = module.in_channels
        else:
            continue
        nn.init.normal_(module.weight, std=gain / math.sqrt(fan_in))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
