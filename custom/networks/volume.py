"""The 3D network after the fusion: thin where voxels are many, wide where they are few."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.networks.initialisation import initialise_he

__all__ = ["VolumeUNet"]


class _Block(nn.Module):
    """x + C2(silu(C1(silu(x)))), C2 zero at the start. No normalisation: attenuation is an absolute quantity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class VolumeUNet(nn.Module):
    """A 3D U-Net that reads a fine volume (a rough reconstruction) and fused features of half its resolution.

    Args:
        fine_channels: channels of the fine input.
        fused_channels: channels of the half-resolution input.
        widths: channels of the levels, the first at the fine resolution.
        blocks: residual blocks of each level below the first, on the way down and again on the way up.
        out_channels: features given to the implicit network, besides one prediction.
    """

    def __init__(
        self,
        fine_channels: int,
        fused_channels: int,
        widths: Sequence[int] = (16, 48, 96, 128),
        blocks: Sequence[int] = (1, 2, 2),
        out_channels: int = 16,
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths) - 1:
            raise ValueError(f"blocks must name one number per level below the first, got {blocks} for {widths}")
        self.widths, self.out_channels = tuple(widths), out_channels
        self.stem = nn.Conv3d(fine_channels, widths[0], 3, padding=1)
        self.enter_fused = nn.Conv3d(fused_channels, widths[1], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv3d(before, after, 2, stride=2) for before, after in pairwise(widths))
        self.encoder = nn.ModuleList(
            nn.Sequential(*[_Block(width) for _ in range(n)]) for width, n in zip(widths[1:], blocks, strict=True)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(below, above, 2, stride=2)
            for above, below in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(*[_Block(width) for _ in range(n)])
            for width, n in zip(widths[-2:0:-1], tuple(blocks)[-2::-1], strict=True)
        )
        self.head = nn.Conv3d(2 * widths[0], out_channels + 1, 3, padding=1)
        initialise_he(self)
        for module in self.modules():
            if isinstance(module, _Block):
                nn.init.zeros_(module.second.weight)
        nn.init.zeros_(self.head.weight[-1:])

    def forward(self, fine: Tensor, fused: Tensor) -> tuple[Tensor, Tensor]:
        """fine (B, fine_channels, X, Y, Z) and fused (B, fused_channels, X/2, Y/2, Z/2) to features
        (B, out_channels, X, Y, Z) and a correction (B, 1, X, Y, Z)."""
        top = self.stem(fine)
        x, skips = top, []
        for level, (down, block) in enumerate(zip(self.down, self.encoder, strict=True)):
            x = down(F.silu(x))
            if level == 0:
                x = x + self.enter_fused(fused)
            x = block(x)
            skips.append(x)
        skips.pop()
        for up, block in zip(self.up[:-1], self.decoder, strict=True):
            x = block(up(F.silu(x)) + skips.pop())
        x = self.head(F.silu(torch.cat([top, self.up[-1](F.silu(x))], 1)))
        return x[:, :-1], x[:, -1:]
