"""`VolumeUNet`: the 3D network after the fusion, with most of its work where voxels are few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn

from custom.networks.initialisation import initialise_he

__all__ = ["VolumeUNet", "VoxelNorm", "concatenate_channels"]


class _Block(nn.Module):
    """x + C2(silu(N(C1(silu(N(x)))))).

    The normalisations stand in the branch only: what passes by keeps its absolute size. Without them a few steps of
    Adam, coherent over thousands of inputs, drive all units to where silu is flat, and nothing is learnt any more.
    """

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)
        self.norms = nn.ModuleList(_norm(channels, norm) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        replace = not torch.is_grad_enabled()  # what the normalisation gave is the largest tensor
        inner = self.first(F.silu(self.norms[0](x), inplace=replace))
        inner = F.silu(self.norms[1](inner), inplace=replace)
        return x + self.second(inner)


class VoxelNorm(nn.LayerNorm):
    """Layer normalisation of every voxel's channels. On channels_last_3d nothing is copied."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def _norm(channels: int, norm: str) -> nn.Module:
    return VoxelNorm(channels) if norm == "voxel" else nn.GroupNorm(math.gcd(8, channels), channels)


class VolumeUNet(nn.Module):
    """A 3D U-Net that reads fine volumes (a rough reconstruction) and fused features of half their resolution.

    `out_channels`, the width of the first level, is the number of features that it gives besides one prediction.

    No convolution runs at the fine resolution: groups of 2 x 2 x 2 voxels become channels on the way in and voxels
    again on the way out, which is several times faster at the same width.

    Args:
        fine_channels: channels of the fine input.
        fused_channels: channels of the half-resolution input.
        widths: channels of the levels, the first at half the fine resolution.
        encoder_blocks: residual blocks of each level on the way down, the deepest last.
        decoder_blocks: residual blocks of each level but the deepest on the way up, in the order of `widths`.
        norm: "group" normalises groups of channels over the whole volume; "voxel" each voxel's channels, so that a part
            of a volume comes out as it does in the whole.

    Raises:
        ValueError: for an unknown norm, or numbers of blocks that do not fit the widths.
    """

    def __init__(
        self,
        fine_channels: int,
        fused_channels: int,
        widths: Sequence[int] = (32, 96, 128),
        encoder_blocks: Sequence[int] = (0, 1, 2),
        decoder_blocks: Sequence[int] = (1, 1),
        norm: str = "group",
    ) -> None:
        super().__init__()
        if norm not in ("group", "voxel"):
            raise ValueError(f"norm must be 'group' or 'voxel', got {norm!r}")
        if len(encoder_blocks) != len(widths) or len(decoder_blocks) != len(widths) - 1:
            raise ValueError(
                f"{len(widths)} widths need {len(widths)} encoder_blocks and {len(widths) - 1} decoder_blocks, got "
                f"{list(encoder_blocks)} and {list(decoder_blocks)}"
            )
        self.out_channels = widths[0]
        self.enter = nn.Conv3d(8 * fine_channels + fused_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv3d(before, after, 2, stride=2) for before, after in pairwise(widths))
        self.encoder = nn.ModuleList(_level(width, n, norm) for width, n in zip(widths, encoder_blocks, strict=True))
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(below, above, 2, stride=2)
            for above, below in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.decoder = nn.ModuleList(
            _level(width, n, norm) for width, n in zip(widths[-2::-1], tuple(decoder_blocks)[::-1], strict=True)
        )
        self.norm = _norm(widths[0], norm)
        self.leave = nn.Conv3d(widths[0], 8, 3, padding=1)
        initialise_he(self)
        # Small, not zero: behind a zero layer nothing is learnt until it has grown.
        with torch.no_grad():
            self.leave.weight.mul_(0.1)

    def forward(self, fine: Tensor, fused: Tensor) -> tuple[Tensor, Tensor]:
        """fine (B, fine_channels, X, Y, Z) and fused (B, fused_channels, X/2, Y/2, Z/2) to features
        (B, out_channels, X/2, Y/2, Z/2) and a correction (B, 1, X, Y, Z), small before training."""
        joint = concatenate_channels(pixelunshuffle(fine, 3, 2), fused)
        x, skips = self.enter(joint), []
        del joint
        for level, blocks in enumerate(self.encoder):
            if level:
                x = self.down[level - 1](F.silu(x))
            x = blocks(x)
            skips.append(x)
        skips.pop()
        for up, blocks in zip(self.up, self.decoder, strict=True):
            x = blocks(up(F.silu(x)) + skips.pop())
        x = F.silu(self.norm(x))
        return x, pixelshuffle(self.leave(x), 3, 2)


def concatenate_channels(*volumes: Tensor) -> Tensor:
    """Volumes (B, C, X, Y, Z) joined along C, channels_last_3d and in the precision of autocast where it is on.

    The convolution that follows reads them so in any case; joined in single precision they are the largest tensors of a
    reconstruction.
    """
    first, place = volumes[0], 0
    kind = first.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else first.dtype
    shape = (len(first), sum(one.shape[1] for one in volumes), *first.shape[2:])
    joint = torch.empty(shape, dtype=dtype, device=first.device, memory_format=torch.channels_last_3d)
    for volume in volumes:
        joint[:, place : place + volume.shape[1]] = volume
        place += volume.shape[1]
    return joint


def _level(width: int, blocks: int, norm: str) -> nn.Sequential:
    return nn.Sequential(*[_Block(width, norm) for _ in range(blocks)])
