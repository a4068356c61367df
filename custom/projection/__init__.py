"""From a volume to its radiographs: line integrals, their exact adjoint, and what makes them look like X-rays."""

from custom.projection.attenuation import (
    ENERGY_PRESETS_KEV,
    attenuation_to_hu,
    hu_to_attenuation,
    water_attenuation_per_mm,
)
from custom.projection.classical import fdk, total_variation, tv
from custom.projection.degradation import DetectorBlur, QuantumNoise, Scatter, focal_spot_blur_mm
from custom.projection.iterative import sirt
from custom.projection.operators import JosephOperator, LinearOperator, ParallelOperator, joseph, make_operator
from custom.projection.projector import BoundProjector, Projector, ProjectorCache
from custom.projection.simulation import SIMULATION_PRESETS, simulate_fine, simulate_paper

__all__ = [
    "ENERGY_PRESETS_KEV",
    "SIMULATION_PRESETS",
    "BoundProjector",
    "DetectorBlur",
    "JosephOperator",
    "LinearOperator",
    "ParallelOperator",
    "Projector",
    "ProjectorCache",
    "QuantumNoise",
    "Scatter",
    "attenuation_to_hu",
    "fdk",
    "focal_spot_blur_mm",
    "hu_to_attenuation",
    "joseph",
    "make_operator",
    "simulate_fine",
    "simulate_paper",
    "sirt",
    "total_variation",
    "tv",
    "water_attenuation_per_mm",
]
