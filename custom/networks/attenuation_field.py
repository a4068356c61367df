"""Attenuation field: the network of Neural Attenuation Fields (Zha et al., MICCAI 2022), a function of position.

A point becomes features by a multi-resolution hash grid (Mueller et al., ACM TOG 41:102, 2022) or Fourier features
(Tancik et al. 2020), and a small perceptron makes an attenuation of them. Everything is plain PyTorch, the same on a
CPU and on a GPU, without a kernel to compile. One field is one patient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.networks.fourier_mlp import FourierFeatures

__all__ = ["ENCODINGS", "AttenuationField", "HashEncoding"]

ENCODINGS = ("hash", "fourier")
# Of Mueller et al., equation 4; the first is 1, so that neighbours along x stay neighbours in memory.
_PRIMES = (1, 2654435761, 805459861)
_LARGEST_TABLE_LOG2 = 24


class HashEncoding(nn.Module):
    """Learnt features on grids of growing resolution, interpolated trilinearly and concatenated.

    A level of n cells a side has (n + 1)^3 corners. Where the table holds them all, it is a dense grid; else corners
    share entries by a hash, and training settles what collides.

    Args:
        levels: number of grids.
        features: numbers per corner.
        base_resolution: cells a side of the first level.
        growth: from one level's resolution to the next.
        table_log2: entries of a level's table at most, as a power of two.
        scale: corners begin uniform in [-scale, scale].

    Raises:
        ValueError: for numbers that make no grid.
    """

    def __init__(
        self,
        levels: int = 16,
        features: int = 2,
        base_resolution: int = 16,
        growth: float = 2.0,
        table_log2: int = 19,
        scale: float = 1e-4,
    ) -> None:
        super().__init__()
        if levels < 1 or features < 1 or base_resolution < 1:
            raise ValueError(
                "levels, features and base_resolution must be at least 1, got "
                f"{levels}, {features} and {base_resolution}"
            )
        if growth < 1:
            raise ValueError(f"growth must be at least 1, got {growth}")
        if not 1 <= table_log2 <= _LARGEST_TABLE_LOG2:
            raise ValueError(f"table_log2 must lie in 1 to {_LARGEST_TABLE_LOG2}, got {table_log2}")
        self.resolutions = [math.ceil(base_resolution * growth**level) for level in range(levels)]
        self.features, self.scale, self.out_channels = features, scale, levels * features
        self.entries = 2**table_log2
        # A dense level is stored as grid_sample reads it, a hashed one as rows.
        self.tables = nn.ParameterList(
            torch.zeros(1, features, *(3 * [n + 1])) if self._is_dense(n) else torch.zeros(self.entries, features)
            for n in self.resolutions
        )
        self.reset()

    def _is_dense(self, resolution: int) -> bool:
        return (resolution + 1) ** 3 <= self.entries

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw all corners anew (on the CPU, whatever device they are on)."""
        for table in self.tables:
            table.copy_((torch.rand(table.shape, generator=generator) * 2 - 1) * self.scale)

    def forward(self, points: Tensor) -> Tensor:
        """Points (N, 3) in [-1, 1] to features (N, levels * features), float32; outside as at the border."""
        with torch.autocast(points.device.type, enabled=False):
            points = points.float().clamp(-1, 1)
            return torch.cat([self._level(i, points) for i in range(len(self.resolutions))], -1)

    def _level(self, level: int, points: Tensor) -> Tensor:
        resolution, table = self.resolutions[level], self.tables[level]
        if self._is_dense(resolution):
            where = points.flip(-1)[None, None, None]  # grid_sample names the fastest axis first
            return F.grid_sample(table, where, align_corners=True)[0, :, 0, 0].T
        scaled = (points + 1) * (resolution / 2)
        low = scaled.floor().clamp(max=resolution - 1)
        upper = scaled - low
        shares = torch.stack([1 - upper, upper], -1)
        corner = low.long()
        x, y, z = (torch.stack([c, c + 1], -1) * prime for c, prime in zip(corner.unbind(-1), _PRIMES, strict=True))
        index = (x[:, :, None, None] ^ y[:, None, :, None] ^ z[:, None, None, :]) % self.entries
        share = shares[:, 0, :, None, None] * shares[:, 1, None, :, None] * shares[:, 2, None, None, :]
        # Gathered and added up: on CPUs half the time of embedding_bag, whose gradient sorts the indices.
        rows = table.index_select(0, index.flatten()).view(len(points), 8, self.features)
        return (rows * share.view(len(points), 8, 1)).sum(1)


class AttenuationField(nn.Module):
    """Attenuation at any point of a box, in units of water's.

    Args:
        half_side_mm: of the cube that the encoding covers; points are in it.
        center_mm: its centre in the isocentre frame.
        encoding: "hash" or "fourier".
        hash_grid: keywords of `HashEncoding`.
        fourier: keywords of `FourierFeatures`.
        width: neurons per layer.
        depth: linear layers, the last one included.
        skip: layer (counted from 0) that sees the encoding again, None for none.
        bounds: smallest and largest attenuation, over that of water; a sigmoid keeps it within.
        initial: attenuation that the field begins with, everywhere, over that of water.

    Raises:
        ValueError: for an unknown encoding, or numbers that do not fit each other.
    """

    center_mm: Tensor

    def __init__(
        self,
        half_side_mm: float,
        center_mm: Sequence[float] = (0.0, 0.0, 0.0),
        encoding: str = "hash",
        hash_grid: Mapping[str, Any] | None = None,
        fourier: Mapping[str, Any] | None = None,
        width: int = 32,
        depth: int = 4,
        skip: int | None = 2,
        bounds: Sequence[float] = (0.0, 2.0),
        initial: float | None = None,
    ) -> None:
        super().__init__()
        low, high = (float(bound) for bound in bounds)
        initial = (low + high) / 2 if initial is None else initial
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding must be one of {ENCODINGS}, got {encoding!r}")
        if depth < 2 or width < 1:
            raise ValueError(f"a field needs at least two layers and one neuron, got depth {depth}, width {width}")
        if skip is not None and not 0 < skip < depth:
            raise ValueError(f"skip must be a layer from 1 to {depth - 1}, or null, got {skip}")
        if not low < initial < high:
            raise ValueError(f"initial must lie between the bounds {low} and {high}, got {initial}")
        self.encoding: HashEncoding | FourierFeatures
        if encoding == "hash":
            self.encoding = HashEncoding(**(hash_grid or {}))
        else:
            self.encoding = FourierFeatures(**(fourier or {}))
        self.half_side_mm, self.bounds, self.skip = float(half_side_mm), (low, high), skip
        self.register_buffer("center_mm", torch.tensor(list(center_mm), dtype=torch.float32), persistent=False)
        channels = self.encoding.out_channels
        inputs = [channels] + [width + channels * (layer == skip) for layer in range(1, depth)]
        self.layers = nn.ModuleList(nn.Linear(n, 1 if layer == depth - 1 else width) for layer, n in enumerate(inputs))
        self.initial_logit = math.log((initial - low) / (high - initial))
        self.reset()

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Begin anew: draw all weights (on the CPU, whatever device they are on)."""
        if isinstance(self.encoding, HashEncoding):
            self.encoding.reset(generator)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            bound = 1 / math.sqrt(layer.in_features)
            for parameter in (layer.weight, layer.bias):
                parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
        assert isinstance(layer, nn.Linear)
        layer.bias.fill_(self.initial_logit)

    def forward(self, points: Tensor) -> Tensor:
        """Points (..., 3) [mm, isocentre frame] to attenuation over that of water (...), float32."""
        with torch.autocast(points.device.type, enabled=False):
            where = (points.float().reshape(-1, 3) - self.center_mm) / self.half_side_mm
            encoded = self.encoding(where)
            x = encoded
            for index, layer in enumerate(self.layers):
                x = layer(torch.cat([x, encoded], -1) if index == self.skip else x)
                if index < len(self.layers) - 1:
                    x = F.leaky_relu(x)
            low, high = self.bounds
            return (low + (high - low) * torch.sigmoid(x[:, 0])).reshape(points.shape[:-1])
