"""`ResidualGaussian`: mean and deviation of residuals, learnt from what they depend on."""

from __future__ import annotations

import torch
from torch import Tensor

from custom.networks.residual_gaussian import ResidualGaussian


def entry(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals of deviation 2 and mean 3 where the reconstruction is bright, of a quarter and 0 elsewhere; twice as
    wide from one view as from eight."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.zeros(1, 2, 8, 8, 8)
    known[:, :, seed % 5 :, : 3 + seed % 4] = 1
    share = torch.tensor([1.0 if seed % 2 else 0.125])
    bright = known[:, :1].expand_as(known)
    noise = torch.randn(known.shape, generator=generator)
    return known, share, 3 * bright + noise * (0.25 + 1.75 * bright) * (1 if seed % 2 else 2)


def test_it_finds_mean_and_deviation_by_place_and_number_of_views() -> None:
    torch.manual_seed(0)
    network = ResidualGaussian(2, width=16)
    likelihood = network.fit([entry(seed) for seed in range(32)], steps=500, learning_rate=0.006)
    known, _, _ = entry(100)
    bright = known[:, :1].expand_as(known) > 0
    few, many = (network(known, torch.tensor([share])) for share in (0.125, 1.0))
    assert many[0][bright].mean() > 2 > 0.3 > many[0][~bright].mean().abs()
    assert many[1][bright].mean() > 3 * many[1][~bright].mean()
    for place in (bright, ~bright):
        assert 1.4 < few[1][place].mean() / many[1][place].mean() < 2.8
    assert likelihood < 0.6


def test_it_is_a_standard_normal_before_and_moves_by_its_fit_alone() -> None:
    network = ResidualGaussian(2, width=4)
    known, share, _ = entry(0)
    mean, std = network(known, share)
    assert torch.equal(mean, torch.zeros_like(mean)) and torch.equal(std, torch.ones_like(std))
    network.fit([entry(0)], steps=2)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not torch.equal(network(known, share)[1], std)
