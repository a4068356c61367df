"""`custom.metrics.spectrum`: power by wavelength, against waves and noise of known power."""

from __future__ import annotations

import pytest
import torch

from custom.metrics.spectrum import SPECTRUM_BANDS_MM, band_power, spectrum_ratio


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("wavelength_mm", [9.0, 12.0, 17.0, 24.0, 34.0])
def test_a_wave_has_its_power_in_its_band(axis: int, wavelength_mm: float) -> None:
    position = torch.arange(96) * 2.5
    wave = torch.sin(2 * torch.pi * position / wavelength_mm).reshape([-1 if a == axis else 1 for a in range(3)])
    power = band_power(wave.expand(96, 96, 96), (2.5, 2.5, 2.5))
    own = [low < wavelength_mm <= high for low, high in SPECTRUM_BANDS_MM].index(True)
    assert power[own] > 0.9 * sum(power)


def test_noise_has_as_much_power_as_there_are_frequencies_in_a_band() -> None:
    generator = torch.Generator().manual_seed(0)
    bands = [(8, 16), (16, 32)]
    powers = [band_power(torch.randn(64, 64, 64, generator=generator), (2.5, 2.5, 2.5), bands) for _ in range(16)]
    assert sum(p[0] for p in powers) / sum(p[1] for p in powers) == pytest.approx(8, rel=0.1)


def test_the_ratio_is_that_of_squared_amplitudes_and_leaves_out_what_voxels_do_not_show() -> None:
    truth = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    ratio = spectrum_ratio(2 * truth + 7, truth, (5, 5, 5))
    assert list(ratio) == ["spectrum_10_14_mm", "spectrum_14_20_mm", "spectrum_20_28_mm", "spectrum_28_40_mm"]
    assert list(ratio.values()) == pytest.approx([4] * 4)
    with pytest.raises(ValueError, match="above 10 mm"):
        band_power(truth, (5, 5, 5), [(8, 12)])
