"""Building blocks of the implicit network: Fourier features and point-wise MLPs (INRR3CT, section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from custom.core.checkpoints import describes_itself

__all__ = ["FourierFeatures", "PointMLP"]


@describes_itself
class FourierFeatures(nn.Module):
    """[p, cos(2 pi B p), sin(2 pi B p)] with a fixed Gaussian B (Tancik et al. 2020).

    Args:
        frequencies: B, rows of three numbers. None draws `count` rows from N(0, scale^2).
        count: number of rows drawn.
        scale: standard deviation of the rows drawn, in cycles per unit of p.
        axes: order in which x, y, z enter; the released code of INRR3CT counts (z, y, x), i.e. (2, 1, 0).
        seed: of the draw, so that two networks of the same definition agree.
    """

    matrix: Tensor

    def __init__(
        self,
        frequencies: Sequence[Sequence[float]] | None = None,
        count: int = 16,
        scale: float = 2.0,
        axes: Sequence[int] = (0, 1, 2),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if frequencies is None:
            drawn = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) * scale
        else:
            drawn = torch.as_tensor(frequencies, dtype=torch.float32)
        if drawn.ndim != 2 or drawn.shape[1] != 3:
            raise ValueError(f"frequencies must be rows of three numbers, got shape {tuple(drawn.shape)}")
        self.register_buffer("matrix", drawn)
        self.axes = list(axes)
        self.out_channels = 3 + 2 * len(drawn)

    def forward(self, points: Tensor) -> Tensor:
        """Points (..., 3), about [-1, 1], to (..., 3 + 2 * count). Always float32: bf16 phases are 16% wrong."""
        with torch.autocast(points.device.type, enabled=False):
            points = points.float()[..., self.axes]
            phase = 2 * math.pi * points @ self.matrix.T
            return torch.cat([points, phase.cos(), phase.sin()], -1)


class _Sine(nn.Module):
    def __init__(self, w0: float) -> None:
        super().__init__()
        self.w0 = w0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.w0 * x)


class _ResidualBlock(nn.Module):
    """sine: sin(w0 (W' sin(w0 (W x + b)) + b') + x), as released, W' = W where tied; silu: x + W' silu(W silu(x))."""

    def __init__(self, width: int, activation: str, w0: float, tied: bool) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = self.first if tied else nn.Linear(width, width)
        self.activation, self.w0 = activation, w0

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "sine":
            return torch.sin(self.w0 * self.second(torch.sin(self.w0 * self.first(x))) + x)
        return x + self.second(nn.functional.silu(self.first(nn.functional.silu(x))))


class PointMLP(nn.Module):
    """A multilayer perceptron that is applied to every point.

    Args:
        in_features: numbers per point.
        width: neurons per layer.
        depth: number of blocks after the stem.
        block: "residual" (the paper) or "plain" (the h_tau of the released code).
        activation: "sine" (SIREN: initialisation after Sitzmann et al. 2020) or "silu".
        w0: frequency factor of the sines.
        tied: both layers of a residual block share their weights, as in the released code.
        stem: whether a layer maps in_features to width first; without it in_features must be width.
        out_features: a last linear layer to so many numbers; None for none.
    """

    def __init__(
        self,
        in_features: int,
        width: int = 128,
        depth: int = 3,
        block: str = "residual",
        activation: str = "sine",
        w0: float = 50.0,
        tied: bool = True,
        stem: bool = True,
        out_features: int | None = None,
    ) -> None:
        super().__init__()
        if block not in ("residual", "plain"):
            raise ValueError(f"block must be 'residual' or 'plain', got {block!r}")
        if activation not in ("sine", "silu"):
            raise ValueError(f"activation must be 'sine' or 'silu', got {activation!r}")
        if not stem and in_features != width:
            raise ValueError(f"without a stem in_features must be the width, got {in_features} and {width}")
        self.activation = activation

        def layer(before: int) -> list[nn.Module]:
            return [nn.Linear(before, width), _Sine(w0) if activation == "sine" else nn.SiLU()]

        layers: list[nn.Module] = layer(in_features) if stem else []
        for _ in range(depth):
            layers += [_ResidualBlock(width, activation, w0, tied)] if block == "residual" else layer(width)
        if out_features is not None:
            layers.append(nn.Linear(width, out_features))
        self.layers = nn.Sequential(*layers)
        self.out_features = width if out_features is None else out_features
        if activation == "sine":
            self._initialise(stem, w0)

    def _initialise(self, stem: bool, w0: float) -> None:
        linear = [m for m in self.layers.modules() if isinstance(m, nn.Linear)]
        for index, module in enumerate(linear):
            fan_in = module.in_features
            bound = 1 / fan_in if stem and index == 0 else math.sqrt(6 / fan_in) / w0
            nn.init.uniform_(module.weight, -bound, bound)

    def zero_last(self) -> None:
        """Set the last linear layer to zero, so that the output is zero whatever the input."""
        linear = [m for m in self.layers.modules() if isinstance(m, nn.Linear)][-1]
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features). Sines are computed in float32 whatever autocast says."""
        if self.activation == "sine":
            with torch.autocast(x.device.type, enabled=False):
                return self.layers(x.float())
        return self.layers(x)
