"""Conversion between Hounsfield units and linear attenuation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "ENERGY_PRESETS_KEV",
    "LARGEST_LINE_INTEGRAL",
    "attenuation_bounds",
    "attenuation_to_hu",
    "hu_to_attenuation",
    "water_attenuation_per_mm",
]

# Mass attenuation of liquid water, mu/rho [cm^2/g] at photon energy [keV]: NIST Standard Reference Database 126
# (Hubbell and Seltzer), https://physics.nist.gov/PhysRefData/XrayMassCoef/ComTab/water.html. Density 1 g/cm^3.
_WATER_CM2_PER_G = {
    20.0: 0.8096,
    30.0: 0.3756,
    40.0: 0.2683,
    50.0: 0.2269,
    60.0: 0.2059,
    80.0: 0.1837,
    100.0: 0.1707,
    150.0: 0.1505,
    200.0: 0.1370,
}

#: Effective photon energy of the papers' simulators. INRR3CT states 50 keV (Plastimatch); DIFR3CT (TIGRE) integrates
#: CT values without an energy, so its preset only fixes the constant factor.
ENERGY_PRESETS_KEV = {"inrr3ct": 50.0, "difr3ct": 70.0}

#: Behind 2.5 m of water at 70 keV; no detector sees anything there.
LARGEST_LINE_INTEGRAL = 50.0


def water_attenuation_per_mm(energy_kev: float) -> float:
    """Linear attenuation coefficient of water [1/mm], interpolated log-log in the NIST table.

    Raises:
        ValueError: for an energy outside 20 to 200 keV.
    """
    energies = sorted(_WATER_CM2_PER_G)
    if not energies[0] <= energy_kev <= energies[-1]:
        raise ValueError(f"energy_kev must be within {energies[0]:g} to {energies[-1]:g} keV, got {energy_kev}")
    above = next(e for e in energies if e >= energy_kev)
    below = max(e for e in energies if e <= energy_kev)
    if above == below:
        return _WATER_CM2_PER_G[above] / 10
    share = math.log(energy_kev / below) / math.log(above / below)
    low, high = math.log(_WATER_CM2_PER_G[below]), math.log(_WATER_CM2_PER_G[above])
    return math.exp(low + share * (high - low)) / 10


def hu_to_attenuation(hu: Tensor, energy_kev: float = 70.0) -> Tensor:
    """Attenuation [1/mm] of CT values: mu_water * (1 + HU / 1000), negative values clipped to zero."""
    return (hu / 1000 + 1).clamp(min=0) * water_attenuation_per_mm(energy_kev)


def attenuation_bounds(hu_window: Sequence[float] = (-1000.0, 1000.0), energy_kev: float = 70.0) -> tuple[float, float]:
    """Attenuation [1/mm] at both ends of a window of CT values."""
    low, high = hu_to_attenuation(torch.tensor(hu_window, dtype=torch.float32), energy_kev).tolist()
    return low, high


def attenuation_to_hu(attenuation: Tensor, energy_kev: float = 70.0) -> Tensor:
    """The inverse of `hu_to_attenuation` for HU >= -1000."""
    return (attenuation / water_attenuation_per_mm(energy_kev) - 1) * 1000
