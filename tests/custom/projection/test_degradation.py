"""Noise, blur and scatter: their statistics, units and seeds."""

from __future__ import annotations

import math

import pytest
import torch
from monai.transforms import Compose

from custom.geometry import views_from_angles
from custom.projection import DetectorBlur, QuantumNoise, Scatter, focal_spot_blur_mm

VIEWS = views_from_angles([0.0, 90.0], "cone", 1000.0, 1500.0, (2.0, 4.0))


@pytest.mark.parametrize("photons", [1e3, 1e5])
@pytest.mark.parametrize("integral", [0.0, 2.0])
def test_quantum_noise_has_poisson_variance(photons: float, integral: float) -> None:
    """The variance of -log(N / N0) is 1 / N for many photons."""
    noise = QuantumNoise(photons).set_random_state(seed=1)(torch.full((1, 1, 200, 200), integral)) - integral
    counted = photons * math.exp(-integral)
    assert float(noise.std()) == pytest.approx(counted**-0.5, rel=0.05)
    assert abs(float(noise.mean())) < 4 * counted**-0.5 / 200 + 1 / counted


def test_quantum_noise_without_photons_stays_finite() -> None:
    found = QuantumNoise(10.0).set_random_state(seed=1)(torch.full((1, 1, 50, 50), 30.0))
    assert torch.isfinite(found).all()
    assert float(found.max()) == pytest.approx(math.log(20.0))


def test_quantum_noise_repeats_with_its_seed() -> None:
    image = torch.rand(2, 3, 8, 8)
    noise = QuantumNoise(1e4)
    first = noise.set_random_state(seed=5)(image)
    second = noise(image)
    assert not torch.equal(first, second)
    assert torch.equal(noise.set_random_state(seed=5)(image), first)
    assert first.shape == image.shape and first.dtype == image.dtype
    chain = Compose([QuantumNoise(1e4)])
    assert torch.equal(chain.set_random_state(seed=7)(image), chain.set_random_state(seed=7)(image))


def test_blur_has_its_width_in_millimetres() -> None:
    """A bright dot on a detector with pixels of 2 mm by 4 mm becomes a round Gaussian."""
    image = torch.zeros(1, 2, 81, 61)
    image[:, :, 40, 30] = 1e-3
    blurred = DetectorBlur(20.0)(image.double(), VIEWS)[0, 0]
    rows, columns = (torch.arange(n).double() for n in blurred.shape)
    for profile, positions, pixel in ((blurred.sum(1), rows, 2.0), (blurred.sum(0), columns, 4.0)):
        mean = (profile * positions).sum() / profile.sum()
        variance = (profile * (positions - mean) ** 2).sum() / profile.sum()
        assert float(variance.sqrt()) * pixel * 2.3548 == pytest.approx(20.0, rel=0.01)
    assert float(blurred.sum()) == pytest.approx(1e-3, rel=1e-3)


def test_blur_averages_transmission_not_line_integrals() -> None:
    image = torch.zeros(1, 2, 8, 64)
    image[..., 32:] = 3.0
    edge = DetectorBlur(20.0)(image, VIEWS)[0, 0, 4]
    assert float(edge[0]) == pytest.approx(0.0, abs=1e-5) and float(edge[-1]) == pytest.approx(3.0, abs=1e-5)
    assert float(edge[31:33].mean()) < 1.0, "half the light is much more than exp(-1.5)"
    assert torch.equal(DetectorBlur(0.0)(image, VIEWS), image)


def test_scatter_adds_its_share_smoothly() -> None:
    image = torch.zeros(1, 2, 64, 64)
    image[:, :, 16:48, 16:48] = 3.0
    image[:, :, 30, 30] = 1.0
    ratio = 0.4
    added = (-Scatter(ratio, sigma_mm=30.0)(image, VIEWS).double()).exp() - (-image.double()).exp()
    shadow = image > 0.05
    for k in range(2):
        part = shadow[0, k]
        primary = (-image[0, k][part].double()).exp().sum()
        assert float(added[0, k][part].sum() / primary) == pytest.approx(ratio, rel=1e-4)
    assert (added >= 0).all()
    steps = added.diff(dim=-1).abs().max() / added.max()
    assert float(steps) < 0.2, "scatter has no edges"
    torch.testing.assert_close(Scatter(0.0)(image, VIEWS), image, atol=1e-6, rtol=0)


def test_open_beam_scatters_nothing() -> None:
    image = torch.zeros(1, 2, 16, 16)
    assert torch.equal(Scatter(0.5)(image, VIEWS), image)


def test_batches_and_single_acquisitions_agree() -> None:
    image = torch.rand(3, 2, 20, 24) * 3
    own = VIEWS.expand(3, -1, -1).clone()
    for transform in (DetectorBlur(5.0), Scatter(0.3)):
        together = transform(image, own)
        torch.testing.assert_close(together, transform(image, VIEWS))
        torch.testing.assert_close(together[1], transform(image[1], VIEWS))


def test_focal_spot_is_magnified() -> None:
    found = focal_spot_blur_mm(0.6, torch.cat([VIEWS, views_from_angles([0.0], "parallel")]))
    assert found.tolist() == pytest.approx([0.3, 0.3, 0.0])
    assert focal_spot_blur_mm(1.0, views_from_angles([0.0], "cone", 500.0, 2000.0)).item() == pytest.approx(3.0)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_impossible_amounts_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="photons must be"):
        QuantumNoise(value)
    with pytest.raises(ValueError, match="fwhm_mm must be"):
        DetectorBlur(value)
    with pytest.raises(ValueError, match="scatter_to_primary must be"):
        Scatter(value)
    with pytest.raises(ValueError, match="sigma_mm must be"):
        Scatter(0.3, value)


def test_count_of_views_must_fit() -> None:
    with pytest.raises(ValueError, match="there are 2 views, but image"):
        DetectorBlur(2.0)(torch.zeros(1, 3, 4, 4), VIEWS)
