"""`ResidualGaussian`: mean and deviation of what a reconstruction misses, at every voxel of the latent."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ResidualGaussian"]

logger = logging.getLogger(__name__)

#: Natural logarithm of the smallest and largest deviation, as a share of the channel's.
LOG_STD_BOUNDS = (-2.3, 2.0)


class ResidualGaussian(nn.Module):
    """Three convolutions from a reconstruction's latent and the number of views to mean and deviation of its residual.

    In air a reconstruction misses nothing, at the lung's edge a lot, from one view twice as much as from eight. A
    denoiser that is given residuals over this deviation has the same variance to explain everywhere and for any number
    of views; without it, it has to learn first where to let noise through.

    Args:
        channels: C of the latent.
        width: of the convolutions between.
    """

    def __init__(self, channels: int, width: int = 48) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(channels + 1, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv3d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv3d(width, 2 * channels, 3, padding=1),
        )
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]
        self.requires_grad_(False)  # `fit` alone moves it

    def forward(self, known: Tensor, view_share: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation, each (B, C, X, Y, Z) as a share of the residual's deviation in its channel.

        Args:
            known: (B, C, X, Y, Z), normalised.
            view_share: number of views over the largest (B,).
        """
        count = view_share.to(known)[:, None, None, None, None].expand(-1, 1, *known.shape[2:])
        mean, log_std = self.layers(torch.cat([known, count], 1)).chunk(2, 1)
        return mean, log_std.clamp(*LOG_STD_BOUNDS).exp()

    def fit(self, entries: Sequence[tuple[Tensor, Tensor, Tensor]], steps: int, learning_rate: float = 0.003) -> float:
        """Maximise the likelihood of residuals, the same way in every process of a training.

        Args:
            entries: `known`, `view_share` (see `forward`) and the residual over its channel's deviation, of one case
                each.
            steps: of AdamW, one case each.
            learning_rate: at first; it falls to 0.

        Returns:
            The negative log-likelihood a voxel (without its constant), over the last tenth of the steps.
        """
        self.requires_grad_(True)
        optimizer = torch.optim.AdamW(self.parameters(), learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses = []
        generator = torch.Generator().manual_seed(0)
        for index in torch.randint(len(entries), (steps,), generator=generator).tolist():
            known, view_share, residual = entries[index]
            with torch.enable_grad():
                mean, std = self(known, view_share)
                loss = (std.log() + 0.5 * ((residual - mean) / std).square()).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        self.requires_grad_(False)
        last = losses[-max(1, steps // 10) :]
        return sum(last) / len(last)
