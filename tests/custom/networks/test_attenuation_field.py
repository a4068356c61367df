"""The field's encodings and its perceptron: by hand, and by the sizes that the released code has."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from custom.networks.attenuation_field import AttenuationField, HashEncoding


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def by_hand(encoding: HashEncoding, level: int, point: Tensor) -> Tensor:
    """Mueller et al. 2022, section 3: eight corners, each with its entry and its share."""
    n, table = encoding.resolutions[level], encoding.tables[level].detach()
    where = ((point.double() + 1) / 2 * n).tolist()
    low = [min(math.floor(c), n - 1) for c in where]
    total = torch.zeros(encoding.features, dtype=torch.float64)
    for offset in itertools.product((0, 1), repeat=3):
        corner = [a + b for a, b in zip(low, offset, strict=True)]
        share = math.prod(1 - abs(c - w) for c, w in zip(corner, where, strict=True))
        if table.ndim == 5:
            entry = table[0, :, corner[0], corner[1], corner[2]]
        else:
            number = corner[0] ^ corner[1] * 2654435761 ^ corner[2] * 805459861
            entry = table[number % len(table)]
        total += share * entry.double()
    return total


def test_the_papers_network_has_the_size_of_the_released_one() -> None:
    field = AttenuationField(300.0, hash_grid={"levels": 16, "base_resolution": 16, "growth": 2.0, "table_log2": 19})
    assert size(field.encoding) == 14_262_438
    assert size(field.layers) == 4_225
    assert field.encoding.resolutions[-1] == 16 * 2**15  # type: ignore[index]


def test_levels_grow_and_share_entries_where_the_table_is_too_small() -> None:
    encoding = HashEncoding(levels=4, features=3, base_resolution=4, growth=1.5, table_log2=9)
    assert encoding.resolutions == [4, 6, 9, 14]
    assert [tuple(t.shape) for t in encoding.tables] == [(1, 3, 5, 5, 5), (1, 3, 7, 7, 7), (512, 3), (512, 3)]
    assert encoding.out_channels == 12 and encoding(drawn(5)).shape == (5, 12)


def test_features_are_interpolated_between_the_corners_of_every_level() -> None:
    encoding = HashEncoding(levels=4, features=2, base_resolution=3, growth=2.0, table_log2=8, scale=1.0)
    border = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [1.0, -1.0, 0.25]])
    points = torch.cat([drawn(20), border])
    found = encoding(points).detach().double()
    assert [t.ndim for t in encoding.tables] == [5, 2, 2, 2]
    for i, point in enumerate(points):
        expected = torch.cat([by_hand(encoding, level, point) for level in range(4)])
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoding(torch.full((1, 3), 7.0)), encoding(torch.ones(1, 3)))


def test_only_the_corners_of_a_point_learn_from_it() -> None:
    encoding = HashEncoding(levels=2, features=2, base_resolution=4, growth=4.0, table_log2=7)
    encoding(drawn(1)).sum().backward()
    for table in encoding.tables:
        assert table.grad is not None
        assert float(table.grad.sum()) == pytest.approx(2, abs=1e-5), "the shares of a point add up to one"
        assert 1 <= int((table.grad != 0).sum()) <= 2 * 8


def test_a_seed_draws_the_same_field_again() -> None:
    fields = [AttenuationField(100.0, hash_grid={"levels": 2}) for _ in range(2)]
    for field in fields:
        field.reset(torch.Generator().manual_seed(3))
    points = drawn(50) * 100
    assert torch.equal(fields[0](points), fields[1](points))
    fields[1].reset(torch.Generator().manual_seed(4))
    assert not torch.equal(fields[0](points), fields[1](points))


@pytest.mark.parametrize("encoding", ["hash", "fourier"])
def test_attenuation_begins_near_its_start_and_keeps_to_its_bounds(encoding: str) -> None:
    torch.manual_seed(0)
    options = {"hash_grid": {"levels": 2, "scale": 0.3}, "fourier": {"count": 8, "scale": 1.0}}
    field = AttenuationField(100.0, encoding=encoding, bounds=(0.2, 1.8), initial=0.4, **options)  # type: ignore[arg-type]
    points = (drawn(200) * 100).reshape(10, 20, 3)
    values = field(points).detach()
    assert values.shape == (10, 20) and values.dtype == torch.float32
    assert float(values.mean()) == pytest.approx(0.4, abs=0.15)
    torch.nn.init.normal_(field.layers[-1].weight, 0, 1e3)  # type: ignore[arg-type]
    low, high = field(points).detach().aminmax()
    assert 0.2 - 1e-6 < float(low) < 0.3 and 1.7 < float(high) < 1.8 + 1e-6


@pytest.mark.parametrize("encoding", ["hash", "fourier"])
def test_it_learns_a_ball_off_centre_in_millimetres(encoding: str) -> None:
    torch.manual_seed(0)
    options = {"hash_grid": {"levels": 3, "base_resolution": 4}, "fourier": {"count": 32, "scale": 1.0}}
    field = AttenuationField(100.0, (50.0, 0.0, -200.0), encoding, **options)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(field.parameters(), 1e-2, fused=True)
    for step in range(100):
        points = drawn(500, step) * 100 + field.center_mm
        truth = torch.where((points - torch.tensor([80.0, 20.0, -180.0])).norm(dim=-1) < 50, 1.5, 0.2)
        loss = (field(points) - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.02, "a constant leaves 0.1"


def test_it_is_float32_under_autocast() -> None:
    field = AttenuationField(100.0, hash_grid={"levels": 2})
    points = drawn(10) * 100
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(field(points), field(points.double()))
    assert torch.equal(field(points), field(points.double()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "hsah"}, r"encoding must be one of \('hash', 'fourier'\), got 'hsah'"),
        ({"depth": 1}, "at least two layers"),
        ({"skip": 4}, "skip must be a layer from 1 to 3, or null, got 4"),
        ({"initial": 2.0}, "initial must lie between the bounds 0.0 and 2.0, got 2.0"),
        ({"hash_grid": {"levels": 0}}, "must be at least 1, got 0, 2 and 16"),
        ({"hash_grid": {"growth": 0.5}}, "growth must be at least 1, got 0.5"),
        ({"hash_grid": {"table_log2": 40}}, "table_log2 must lie in 1 to 24, got 40"),
    ],
)
def test_what_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttenuationField(100.0, **options)
