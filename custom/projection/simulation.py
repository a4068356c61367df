"""Simulation of radiographs of a CT, as in the papers (`paper`) or without their simplifications (`fine`).

Two settings. `paper`: project the network's own cube, with the operator and the grid that reconstruct, HU clipped to
the window, nothing outside the cube: what the papers do, and flattering (an inverse crime). `fine`: project the CT as
it was before it was resized, HU not clipped, tissue outside the cube included, onto a detector with finer pixels that
are averaged down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from custom.core.attenuation import hu_to_attenuation
from custom.geometry import Geometry, VolumeGrid
from custom.projection.operators import make_operator

__all__ = ["SIMULATION_PRESETS", "SimulationPreset", "grid_of_ct", "simulate_fine", "simulate_paper"]


@dataclass(frozen=True)
class SimulationPreset:
    """What a named setting stands for.

    Args:
        from_source: project the uncropped CT instead of the cube.
        hu_window: CT values are clipped to it before projection, None for no clipping.
        oversampling: detector pixels are split into this many along u and along v, and averaged.
    """

    from_source: bool
    hu_window: tuple[float, float] | None
    oversampling: int


SIMULATION_PRESETS = {
    "fine": SimulationPreset(from_source=True, hu_window=None, oversampling=2),
    "paper": SimulationPreset(from_source=False, hu_window=(-1000.0, 1000.0), oversampling=1),
}


def grid_of_ct(shape: Sequence[int], affine: np.ndarray, isocenter_mm: Sequence[float]) -> VolumeGrid:
    """The grid of a CT in the isocentre frame.

    Args:
        shape: (X, Y, Z).
        affine: (4, 4) voxel to world RAS+ mm; axes must be x, y, z in this order and direction.
        isocenter_mm: the isocentre in the CT's world.

    Raises:
        ValueError: for an affine with other axes, or that is rotated.
    """
    affine = np.asarray(affine, dtype=float)
    spacing = affine[:3, :3].diagonal()
    off = np.abs(affine[:3, :3] - np.diag(spacing)).max()
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or (spacing <= 0).any() or off > 1e-4 * spacing.min():
        raise ValueError(
            f"the CT's axes must be RAS+ and unrotated, got the affine {affine.tolist()}; reorient it "
            "(nibabel.as_closest_canonical) and resample it"
        )
    center = affine[:3, 3] + (np.asarray(shape) - 1) / 2 * spacing - np.asarray(isocenter_mm, dtype=float)
    return VolumeGrid(tuple(shape), tuple(spacing.tolist()), tuple(center.tolist()))  # type: ignore[arg-type]


@torch.no_grad()
def simulate_paper(
    cube_hu: Tensor | np.ndarray,
    geometry: Geometry,
    energy_kev: float = 70.0,
    hu_window: tuple[float, float] | None = SIMULATION_PRESETS["paper"].hu_window,
    oversampling: int = SIMULATION_PRESETS["paper"].oversampling,
) -> Float[Tensor, "K V U"]:
    """Radiographs of the cube itself.

    Args:
        cube_hu: CT values [HU], (X, Y, Z) on the geometry's grid.
        geometry: views, detector and grid.
        energy_kev: photon energy that converts HU to attenuation.
        hu_window: CT values are clipped to it.
        oversampling: see `SimulationPreset`.

    Returns:
        Line integrals (K, V, U), float32.

    Raises:
        ValueError: if the cube is not on the grid, or holds NaN.
    """
    if tuple(cube_hu.shape) != geometry.grid.shape:
        raise ValueError(f"the cube {tuple(cube_hu.shape)} is not on the geometry's grid {geometry.grid.shape}")
    return _project(cube_hu, geometry, energy_kev, hu_window, oversampling)


@torch.no_grad()
def simulate_fine(
    source_hu: Tensor | np.ndarray,
    source_affine: np.ndarray,
    geometry: Geometry,
    energy_kev: float = 70.0,
    oversampling: int = SIMULATION_PRESETS["fine"].oversampling,
) -> Float[Tensor, "K V U"]:
    """Radiographs of the CT before it was resized, tissue outside the cube included.

    Args:
        source_hu: CT values [HU], (X, Y, Z), any size and spacing; not clipped.
        source_affine: (4, 4) voxel to world RAS+ mm, unrotated.
        geometry: views and detector; its `isocenter_mm` places the CT, its grid plays no part.
        energy_kev: photon energy that converts HU to attenuation.
        oversampling: pixels along u and v that are averaged into one.

    Returns:
        Line integrals (K, V, U), float32.

    Raises:
        ValueError: if the geometry has no isocentre, the CT has other axes or holds NaN, or a source stands in it.
    """
    if geometry.isocenter_mm is None:
        raise ValueError("the geometry has no isocenter_mm, so the CT cannot be placed; give the cube's centre")
    grid = grid_of_ct(tuple(source_hu.shape), source_affine, geometry.isocenter_mm)
    return _project(source_hu, replace(geometry, grid=grid), energy_kev, None, oversampling)


def _project(
    hu: Tensor | np.ndarray,
    geometry: Geometry,
    energy_kev: float,
    hu_window: tuple[float, float] | None,
    oversampling: int,
) -> Tensor:
    fine = geometry.oversampled(oversampling)
    volume = torch.as_tensor(np.ascontiguousarray(hu) if isinstance(hu, np.ndarray) else hu).float()
    if not torch.isfinite(volume).all():
        raise ValueError(f"the CT holds {int((~torch.isfinite(volume)).sum())} values that are not finite numbers")
    if hu_window is not None:
        volume = volume.clamp(*hu_window)
    attenuation = hu_to_attenuation(volume, energy_kev)[None]
    # View by view where it costs nothing: a big CT's sampling coordinates should not pile up.
    operators = (make_operator(view[None].to(attenuation), fine.grid, fine.detector_shape) for view in fine.views)
    images = [F.avg_pool2d(operator.forward(attenuation), oversampling)[0, 0] for operator in operators]
    return torch.stack(images)
