"""Methods without a network and without training: filtered back-projection and total variation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from custom.benchmark.methods import Method
from custom.core.attenuation import attenuation_bounds, attenuation_to_hu, water_attenuation_per_mm
from custom.geometry import VolumeGrid
from custom.projection import Projector
from custom.projection.filtered_backprojection import fdk
from custom.projection.tv_minimisation import tv

__all__ = ["fdk_row", "tv_row"]


def fdk_row(grid: VolumeGrid, energy_kev: float = 70.0, window: str = "hann", cutoff: float | None = None) -> Method:
    """Filtered back-projection, clipped to -1000 to 1000 HU. Tissue outside the grid does not matter to it.

    Args:
        grid: of the volume.
        energy_kev: of the line integrals.
        window, cutoff: as in `fdk`. Views that are tilted are refused there.
    """

    def run(image: Tensor, views: Tensor) -> Tensor:
        projector = Projector(grid, image.shape[1:])
        volume = fdk(projector, image[None], views, window, cutoff, attenuation_bounds(energy_kev=energy_kev))
        return attenuation_to_hu(volume[0, 0], energy_kev)

    return Method(f"FDK, {window} (clipped)", run, grid=grid)


def tv_row(
    grid: VolumeGrid,
    energy_kev: float = 70.0,
    iterations: int = 200,
    weight_mm: float = 0.1,
    margin_mm: Sequence[float] = (0.0, 0.0, 0.0),
) -> Method:
    """Least squares with total variation within -1000 to 1000 HU.

    Args:
        grid: of the volume.
        energy_kev: of the line integrals.
        iterations: of `tv`.
        weight_mm: of the total variation, for attenuation over that of water.
        margin_mm: how far the grid of the iterations reaches beyond `grid` on both sides of x, y and z, as room for
            tissue outside it. None by default, as in `sirt_row`: on chests the room cost more than it brought.
    """
    wide = grid.padded([round(mm / spacing) for mm, spacing in zip(margin_mm, grid.spacing_mm, strict=True)])
    weight = weight_mm * water_attenuation_per_mm(energy_kev)

    def run(image: Tensor, views: Tensor) -> Tensor:
        projector = Projector(wide, image.shape[1:])
        volume = tv(projector, image[None], views, weight, iterations, attenuation_bounds(energy_kev=energy_kev))
        return attenuation_to_hu(volume[(0, 0, *grid.middle_of(wide))], energy_kev)

    return Method(f"total variation, {iterations} iterations (clipped)", run, grid=grid)
