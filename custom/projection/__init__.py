"""Projection of volumes to radiographs, its exact adjoint, classical inversion, and detector effects."""

from custom.projection.degradation import (
    DetectorBlur,
    QuantumNoise,
    RandRadiograph,
    Scatter,
    blur_on_detector,
    focal_spot_blur_mm,
    without_scatter,
)
from custom.projection.filtered_backprojection import fdk
from custom.projection.operators import JosephOperator, LinearOperator, ParallelOperator, joseph, make_operator
from custom.projection.projector import BoundProjector, Projector, ProjectorCache
from custom.projection.simulation import SIMULATION_PRESETS, simulate_fine, simulate_paper
from custom.projection.sirt_solver import sirt
from custom.projection.tv_minimisation import total_variation, tv

__all__ = [
    "SIMULATION_PRESETS",
    "BoundProjector",
    "DetectorBlur",
    "JosephOperator",
    "LinearOperator",
    "ParallelOperator",
    "Projector",
    "ProjectorCache",
    "QuantumNoise",
    "RandRadiograph",
    "Scatter",
    "blur_on_detector",
    "fdk",
    "focal_spot_blur_mm",
    "joseph",
    "make_operator",
    "simulate_fine",
    "simulate_paper",
    "sirt",
    "total_variation",
    "tv",
    "without_scatter",
]
