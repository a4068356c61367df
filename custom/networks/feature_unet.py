"""The 2D network that turns one radiograph into a feature image (INRR3CT, section 2: X-ray CNN)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.core.checkpoints import describes_itself
from custom.geometry.detector import isocenter_pixel_mm
from custom.networks.initialisation import initialise_he

__all__ = ["FeatureUNet", "averaging_factor", "encode_views"]


@describes_itself
class FeatureUNet(nn.Module):
    """A plain U-Net, without normalisation unless it is asked for.

    With its defaults it is the network of INRR3CT's released code, 20,284,224 parameters: 5 x 5 convolutions,
    LeakyReLU 0.2, and no skip at full resolution.

    Args:
        out_channels: features per pixel.
        widths: channels of the encoder's levels.
        kernel_size: of all convolutions.
        output_stride: 1 gives features at the radiograph's resolution, 2 at half of it, and so on (powers of two).
        full_resolution_skip: concatenate the encoder's first level as well. The released code does not.
        negative_slope: of the LeakyReLU.
        normalise: group normalisation after every convolution but the last: without it the features of a fast learner
            grow without bound. Absolute line integrals do not survive it; SIRT has them.
        initialisation: "he" keeps the variance from layer to layer, which a network without normalisation needs to
            learn from few steps; "torch" is the library's default, as in the released code, under which a radiograph
            has nearly vanished after so many layers.
        in_channels: of the input; 1 for radiographs alone.
    """

    def __init__(
        self,
        out_channels: int = 128,
        widths: Sequence[int] = (64, 128, 256, 512),
        kernel_size: int = 5,
        output_stride: int = 1,
        full_resolution_skip: bool = False,
        negative_slope: float = 0.2,
        normalise: bool = False,
        initialisation: str = "torch",
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        if initialisation not in ("he", "torch"):
            raise ValueError(f"initialisation must be 'he' or 'torch', got {initialisation!r}")
        last = output_stride.bit_length() - 1
        if output_stride != 2**last or not 0 <= last < len(widths):
            raise ValueError(f"output_stride must be a power of two below 2^{len(widths)}, got {output_stride}")
        self.out_channels, self.output_stride, self.levels = out_channels, output_stride, len(widths)

        def double_convolution(before: int, after: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for channels in (before, after):
                layers.append(nn.Conv2d(channels, after, kernel_size, padding=kernel_size // 2))
                layers += [nn.GroupNorm(math.gcd(8, after), after)] if normalise else []
                layers.append(nn.LeakyReLU(negative_slope, inplace=True))
            return nn.Sequential(*layers)

        self.encoder = nn.ModuleList(
            double_convolution(before, after) for before, after in zip((in_channels, *widths[:-1]), widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.up, self.decoder = nn.ModuleList(), nn.ModuleList()
        channels = widths[-1]
        for level in range(len(widths) - 2, last - 1, -1):
            skip = level > 0 or full_resolution_skip
            after = widths[level] if skip else channels
            self.up.append(nn.ConvTranspose2d(channels, after, 2, stride=2))
            self.decoder.append(double_convolution(2 * after, after) if skip else nn.Identity())
            channels = after
        self.head = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2)
        if initialisation == "he":
            initialise_he(self, negative_slope)

    def forward(self, image: Tensor) -> Tensor:
        """Radiographs (N, in_channels, V, U) to features (N, out_channels, V / output_stride, U / output_stride).

        What cannot be halved often enough is padded with zeros (air) for the time being.

        Raises:
            ValueError: if V or U are not multiples of output_stride.
        """
        if any(n % self.output_stride for n in image.shape[2:]):
            raise ValueError(
                f"radiograph rows and columns must be multiples of {self.output_stride}, got {tuple(image.shape[2:])}"
            )
        rows, columns = (n // self.output_stride for n in image.shape[2:])
        short = [-n % 2 ** (self.levels - 1) for n in image.shape[2:]]
        if any(short):
            image = F.pad(image, (0, short[1], 0, short[0]))
        x, skips = image, []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        for step, (up, block) in enumerate(zip(self.up, self.decoder, strict=True)):
            x = up(x)
            if not isinstance(block, nn.Identity):
                x = block(torch.cat([x, skips[self.levels - 2 - step]], 1))
        return self.head(x)[..., :rows, :columns]


def averaging_factor(spacing_mm: float | None, views: Tensor) -> int:
    """Pixels of radiographs that are averaged to one of this size, along each side.

    Args:
        spacing_mm: at the isocentre; None: pixels stay as they are.
        views: (..., 13).
    """
    if spacing_mm is None:
        return 1
    return max(1, round(spacing_mm / float(isocenter_pixel_mm(views.reshape(-1, views.shape[-1])).mean())))


def encode_views(encoder: nn.Module, image: Tensor, factor: int, scale: float) -> Tensor:
    """Feature images of radiographs, each encoded by itself.

    Args:
        encoder: from (N, 1, V, U) to (N, C, V', U').
        image: line integrals (B, K, V, U).
        factor: pixels along each side that are averaged to one before.
        scale: a constant that the line integrals are multiplied by.

    Returns:
        (B, K, C, V', U').

    Raises:
        ValueError: if rows and columns are not multiples of factor.
    """
    stack = (image.float() * scale).flatten(0, 1).unsqueeze(1)
    if any(n % factor for n in stack.shape[2:]):
        raise ValueError(
            f"radiograph rows and columns must be multiples of {factor}, the pixels that the encoder reads as one; got "
            f"{tuple(stack.shape[2:])}"
        )
    if factor > 1:
        stack = F.avg_pool2d(stack, factor)
    return encoder(stack.to(memory_format=torch.channels_last)).unflatten(0, image.shape[:2])
