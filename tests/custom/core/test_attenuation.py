"""Hounsfield units and attenuation."""

from __future__ import annotations

import pytest
import torch

from custom.core.attenuation import ENERGY_PRESETS_KEV, attenuation_to_hu, hu_to_attenuation, water_attenuation_per_mm


@pytest.mark.parametrize(("energy", "per_cm"), [(50.0, 0.2269), (60.0, 0.2059), (100.0, 0.1707), (20.0, 0.8096)])
def test_water_is_that_of_the_table(energy: float, per_cm: float) -> None:
    assert water_attenuation_per_mm(energy) == pytest.approx(per_cm / 10)


def test_water_between_the_tables_energies() -> None:
    """70 keV: NIST XCOM gives 0.1929 cm^2/g, computed rather than interpolated."""
    assert water_attenuation_per_mm(70.0) == pytest.approx(0.01929, rel=0.01)


def test_values() -> None:
    water = water_attenuation_per_mm(70.0)
    hu = torch.tensor([-2000.0, -1000.0, -500.0, 0.0, 1000.0, 3000.0])
    expected = torch.tensor([0.0, 0.0, 0.5, 1.0, 2.0, 4.0]) * water
    torch.testing.assert_close(hu_to_attenuation(hu), expected)
    torch.testing.assert_close(attenuation_to_hu(expected)[1:], hu[1:])


@pytest.mark.parametrize("energy", [19.9, 201.0, float("nan"), -5.0])
def test_energies_beyond_the_table_are_refused(energy: float) -> None:
    with pytest.raises(ValueError, match="energy_kev must be within 20 to 200 keV"):
        water_attenuation_per_mm(energy)


def test_presets_are_usable() -> None:
    assert ENERGY_PRESETS_KEV["inrr3ct"] == 50.0
    assert all(water_attenuation_per_mm(energy) > 0 for energy in ENERGY_PRESETS_KEV.values())
