"""From a volume to its radiographs: line integrals, their exact adjoint, and what makes them look like X-rays."""

from custom.projection.attenuation import (
    ENERGY_PRESETS_KEV,
    attenuation_to_hu,
    hu_to_attenuation,
    water_attenuation_per_mm,
)
from custom.projection.iterative import sirt
from custom.projection.operators import JosephOperator, LinearOperator, ParallelOperator, joseph, make_operator
from custom.projection.projector import BoundProjector, Projector

__all__ = [
    "ENERGY_PRESETS_KEV",
    "BoundProjector",
    "JosephOperator",
    "LinearOperator",
    "ParallelOperator",
    "Projector",
    "attenuation_to_hu",
    "hu_to_attenuation",
    "joseph",
    "make_operator",
    "sirt",
    "water_attenuation_per_mm",
]
