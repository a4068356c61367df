"""`VQGAN`: the autoencoder whose latents the diffusion model works on (DIFR3CT, section IV-B)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn

from custom.core.checkpoints import describes_itself
from custom.core.precision import check_precision, mixed_precision
from custom.geometry import VolumeGrid
from custom.networks.codebook_quantiser import CodebookQuantiser
from custom.networks.volume_unet import VoxelNorm

__all__ = ["VQGAN", "CodedVolume"]


class CodedVolume(NamedTuple):
    """What a training step needs of the autoencoder.

    Attributes:
        pred: reconstruction (B, 1, X, Y, Z), float32.
        commitment: mean squared distance of the latents to their codes.
        latent: continuous latents (B, D, x, y, z), float32.
        indices: of their codes (B, x, y, z).
    """

    pred: Tensor
    commitment: Tensor
    latent: Tensor
    indices: Tensor


@dataclass(frozen=True)
class _Style:
    """What all residual blocks of a network have in common."""

    normalisation: str
    groups: int
    padding_mode: Literal["zeros", "replicate"]

    def __post_init__(self) -> None:
        if self.normalisation not in ("channel", "group", "none"):
            raise ValueError(f"normalisation must be 'channel', 'group' or 'none', got {self.normalisation!r}")
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")
        if self.padding_mode not in ("zeros", "replicate"):
            raise ValueError(f"padding_mode must be 'zeros' or 'replicate', got {self.padding_mode!r}")

    def norm(self, channels: int) -> nn.Module:
        if self.normalisation == "group":
            return nn.GroupNorm(math.gcd(self.groups, channels), channels, eps=1e-6)
        return VoxelNorm(channels, eps=1e-6) if self.normalisation == "channel" else nn.Identity()

    def convolution(self, before: int, after: int) -> nn.Conv3d:
        return nn.Conv3d(before, after, 3, padding=1, padding_mode=self.padding_mode)

    def level(self, width: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(*[_ResidualBlock(width, self) for _ in range(blocks)])


class _ResidualBlock(nn.Module):
    """x + C2(silu(N(C1(silu(N(x)))))), normalised in the branch only.

    What passes by keeps its absolute size. Without end_norms a wholly linear path leads from the input to the latents
    and from them to the output; it finds the principal components of the voxels within a few steps.
    """

    def __init__(self, channels: int, style: _Style) -> None:
        super().__init__()
        self.first, self.second = style.convolution(channels, channels), style.convolution(channels, channels)
        self.norms = nn.ModuleList(style.norm(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.norms[1](self.first(F.silu(self.norms[0](x))))))


@describes_itself
class VQGAN(nn.Module):
    """Convolutional autoencoder of CT volumes with a codebook between its halves.

    With `space_to_depth` 2 no convolution runs at the full resolution: groups of 2 x 2 x 2 voxels become channels on
    the way in and voxels again on the way out, which is several times faster at the same width. 1 is the usual way.

    Widths and blocks are given from the finest level to that of the latents. Each level halves the one before, so the
    compression is `space_to_depth * 2 ** (levels - 1)` along each axis.

    Args:
        grid: the voxels that it is trained on, for whoever builds on it. The network takes any shape that the
            compression divides.
        space_to_depth: voxels along each side that become channels at the entry.
        encoder_widths: channels of the encoder's levels.
        encoder_blocks: residual blocks of the encoder's levels.
        decoder_widths: channels of the decoder's levels.
        decoder_blocks: residual blocks of the decoder's levels.
        resample_kernel: of the convolutions with stride 2: 2, or 4 as upstream.
        normalisation: in the blocks: "channel", over the channels of each voxel; "group", over groups of channels and
            all voxels, as upstream; "none". With "group" a patch and a whole volume are not normalised alike.
        groups: at most this many groups.
        end_norms: normalise before the latents and after them too, as upstream does. The latents then no longer know
            how large the values of a volume were as a whole.
        padding_mode: of the convolutions: "zeros", or "replicate" as upstream, which is slower.
        codes: K, size of the codebook.
        embedding_dim: D, channels of the latents.
        code_decay, restart_share: see `CodebookQuantiser`.
        hu_window: CT values at -1 and 1.
        precision: "auto" (bf16 where the device is fast at it), "bf16" or "fp32", of the convolutions. The codebook
            is always float32.

    Raises:
        ValueError: if the numbers do not fit each other.

    Source: codebook 4096 x 8, DIFR3CT; the rest is not stated there. `space_to_depth` 1, widths (16, 32, 64) and
    (32, 64, 64), blocks (0, 1, 1) and (2, 2, 0), kernel 4, 32 groups and end_norms give the upstream code's layers.
    """

    def __init__(
        self,
        grid: VolumeGrid,
        space_to_depth: int = 2,
        encoder_widths: Sequence[int] = (32, 80),
        encoder_blocks: Sequence[int] = (1, 1),
        decoder_widths: Sequence[int] = (32, 80),
        decoder_blocks: Sequence[int] = (1, 2),
        resample_kernel: int = 2,
        normalisation: str = "channel",
        groups: int = 8,
        end_norms: bool = False,
        padding_mode: Literal["zeros", "replicate"] = "zeros",
        codes: int = 4096,
        embedding_dim: int = 8,
        code_decay: float = 0.99,
        restart_share: float = 0.2,
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        precision: str = "auto",
    ) -> None:
        super().__init__()
        levels = len(encoder_widths)
        if {len(encoder_blocks), len(decoder_widths), len(decoder_blocks)} != {levels}:
            raise ValueError(
                "encoder and decoder need the same number of levels, got widths "
                f"{list(encoder_widths)} and {list(decoder_widths)}, blocks {list(encoder_blocks)} and "
                f"{list(decoder_blocks)}"
            )
        if space_to_depth < 1 or resample_kernel not in (2, 4):
            raise ValueError(
                f"space_to_depth must be at least 1, and resample_kernel 2 or 4, got {space_to_depth} and "
                f"{resample_kernel}"
            )
        self.grid, self.hu_window, self.precision = grid, tuple(hu_window), check_precision(precision)
        self.space_to_depth, self.embedding_dim = space_to_depth, embedding_dim
        self.compression = space_to_depth * 2 ** (levels - 1)
        self.latent_shape(grid.shape)
        style = _Style(normalisation, groups, padding_mode)
        self.encoder = _encoder(space_to_depth**3, encoder_widths, encoder_blocks, resample_kernel, end_norms, style)
        self.to_latent = nn.Conv3d(encoder_widths[-1], embedding_dim, 1)
        self.quantiser = CodebookQuantiser(codes, embedding_dim, code_decay, restart_share=restart_share)
        self.from_latent = nn.Conv3d(embedding_dim, decoder_widths[-1], 1)
        self.decoder = _decoder(space_to_depth**3, decoder_widths, decoder_blocks, resample_kernel, end_norms, style)
        _initialise(self)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Voxels (x, y, z) of the latents of a volume of this shape.

        Raises:
            ValueError: if the compression does not divide it.
        """
        if any(n % self.compression for n in shape):
            raise ValueError(f"every side of a volume must be a multiple of {self.compression}, got {tuple(shape)}")
        return tuple(n // self.compression for n in shape)

    @property
    def latent_grid(self) -> VolumeGrid:
        """Where the latents of a volume on `grid` lie."""
        spacing = tuple(s * self.compression for s in self.grid.spacing_mm)
        return VolumeGrid(self.latent_shape(self.grid.shape), spacing, self.grid.center_mm)  # type: ignore[arg-type]

    def encode(self, image: Tensor) -> Tensor:
        """Volumes (B, 1, X, Y, Z) in [-1, 1] to continuous latents (B, D, X/c, Y/c, Z/c), float32.

        These, before the codebook, are what the diffusion model learns.

        Raises:
            ValueError: if the shape does not fit, or (in evaluation mode) values are not finite.
        """
        if image.ndim != 5 or image.shape[1] != 1:
            raise ValueError(f"expected volumes (B, 1, X, Y, Z), got shape {tuple(image.shape)}")
        self.latent_shape(image.shape[2:])
        if not self.training and not torch.isfinite(image).all():
            raise ValueError("the volume holds NaN or infinite values")
        with mixed_precision(self.precision, image.device):
            x = pixelunshuffle(image, 3, self.space_to_depth) if self.space_to_depth > 1 else image
            return self.to_latent(self.encoder(x.contiguous(memory_format=torch.channels_last_3d))).float()

    def quantise(self, latent: Tensor) -> Tensor:
        """The nearest code of every latent, (B, D, x, y, z)."""
        return self.quantiser.embed(self.quantiser.indices(latent))

    def decode(self, latent: Tensor, quantise: bool = False) -> Tensor:
        """Latents (B, D, x, y, z) to volumes (B, 1, X, Y, Z), float32, about [-1, 1] and not clipped.

        Args:
            latent: continuous latents.
            quantise: decode their codes instead. The decoder serves both where `continuous_prob` of the training was
                neither 0 nor 1.
        """
        latent = self.quantise(latent) if quantise else latent
        with mixed_precision(self.precision, latent.device):
            x = self.decoder(self.from_latent(latent.contiguous(memory_format=torch.channels_last_3d)))
            return (pixelshuffle(x, 3, self.space_to_depth) if self.space_to_depth > 1 else x).float()

    def forward(self, image: Tensor, quantise: bool | Tensor = False, with_codes: bool = False) -> Tensor | CodedVolume:
        """Encode and decode.

        Args:
            image: (B, 1, X, Y, Z) in [-1, 1].
            quantise: decode codes instead of continuous latents: for all, or for each volume of the batch (B,).
            with_codes: return a `CodedVolume`; in training mode the codebook learns.
        """
        latent = self.encode(image)
        if not with_codes:
            if isinstance(quantise, Tensor):
                raise ValueError("quantise for each volume of the batch needs with_codes")
            return self.decode(latent, quantise)
        codes, commitment, indices = self.quantiser(latent)
        chosen = torch.as_tensor(quantise, device=latent.device).expand(len(latent))
        mixed = torch.where(chosen[:, None, None, None, None], codes, latent)
        return CodedVolume(self.decode(mixed), commitment, latent, indices)


def _encoder(
    channels: int, widths: Sequence[int], blocks: Sequence[int], kernel: int, end_norms: bool, style: _Style
) -> nn.Sequential:
    layers: list[nn.Module] = [style.convolution(channels, widths[0]), style.level(widths[0], blocks[0])]
    for (finer, coarser), count in zip(pairwise(widths), blocks[1:], strict=True):
        layers.append(nn.Conv3d(finer, coarser, kernel, stride=2, padding=kernel // 2 - 1))
        layers.append(style.level(coarser, count))
    return nn.Sequential(*layers, *_end_norm(widths[-1], end_norms, style))


def _decoder(
    channels: int, widths: Sequence[int], blocks: Sequence[int], kernel: int, end_norms: bool, style: _Style
) -> nn.Sequential:
    layers = [*_end_norm(widths[-1], end_norms, style), style.level(widths[-1], blocks[-1])]
    for (coarser, finer), count in zip(pairwise(widths[::-1]), blocks[-2::-1], strict=True):
        layers.append(nn.ConvTranspose3d(coarser, finer, kernel, stride=2, padding=kernel // 2 - 1))
        layers.append(style.level(finer, count))
    return nn.Sequential(*layers, style.convolution(widths[0], channels))


def _end_norm(width: int, end_norms: bool, style: _Style) -> list[nn.Module]:
    return [style.norm(width), nn.SiLU()] if end_norms else []


def _initialise(network: VQGAN) -> None:
    """Keep the variance through every layer; branches start small, so that the linear path is learnt first."""
    for module in network.modules():
        if isinstance(module, _ResidualBlock):
            for convolution, gain in ((module.first, math.sqrt(2.0)), (module.second, 0.2)):
                _draw(convolution, gain, math.prod(convolution.kernel_size))
    for module in (*network.encoder, *network.decoder, network.to_latent, network.from_latent):
        if isinstance(module, nn.ConvTranspose3d):
            # Each output voxel sees the kernel's taps that overlap there, not all of them.
            _draw(module, 1.0, math.prod(module.kernel_size) // math.prod(module.stride))
        elif isinstance(module, nn.Conv3d):
            _draw(module, 1.0, math.prod(module.kernel_size))


def _draw(convolution: nn.Conv3d | nn.ConvTranspose3d, gain: float, taps: int) -> None:
    nn.init.normal_(convolution.weight, std=gain / math.sqrt(convolution.in_channels * taps))
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
