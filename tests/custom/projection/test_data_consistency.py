"""SIRT from a drawn volume: nearer to the radiographs, nothing to do where it fits them, tissue outside kept out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from custom.core.attenuation import hu_to_attenuation
from custom.evaluation.posterior_evaluator import reprojection_error_mm
from custom.geometry import Geometry, VolumeGrid
from custom.projection import Projector
from custom.projection.data_consistency import ReprojectionCorrection

GRID = VolumeGrid.cube(16, 320)
WIDE = GRID.padded([4, 0, 0])


def body(grid: VolumeGrid = GRID, half_width_mm: float = 110.0) -> Tensor:
    """An elliptic cylinder of water along z with a vertebra of 500 HU, (1, 1, X, Y, Z) HU."""
    x, y, _ = grid.points().unbind(-1)
    hu = torch.where((x / half_width_mm) ** 2 + (y / 90) ** 2 < 1, 0.0, -1000.0)
    return torch.where((x.abs() < 25) & ((y + 50).abs() < 25), 500.0, hu)[None, None]


def radiographs(hu: Tensor, grid: VolumeGrid = GRID, beam: str = "parallel") -> tuple[Tensor, Tensor]:
    geometry = Geometry.from_angles([0.0, 90.0], beam, grid=GRID, detector_shape=(16, 32))  # type: ignore[arg-type]
    views = geometry.tensor()[None]
    return Projector(grid, (16, 32))(hu_to_attenuation(hu, 70.0), views), views


def rmse(unit: Tensor, hu: Tensor) -> float:
    return float((unit * 1000 - hu).square().mean().sqrt())


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_the_error_against_the_radiographs_falls_and_so_does_that_of_the_volume(beam: str) -> None:
    truth = body()
    image, views = radiographs(truth, beam=beam)
    drawn = torch.where(truth > -900, truth * 0.8 - 100, truth) / 1000
    before, after = (
        reprojection_error_mm(volume[0, 0] * 1000, image[0], views[0], GRID, 70.0)
        for volume in (drawn, ReprojectionCorrection(GRID)(drawn, image, views))
    )
    assert before > 9 and after < 0.2 * before
    assert rmse(ReprojectionCorrection(GRID)(drawn, image, views), truth) < 0.6 * rmse(drawn, truth)


@pytest.mark.parametrize("iterations", [1, 10])
def test_a_volume_that_fits_is_left_alone(iterations: int) -> None:
    truth = body()
    moved = ReprojectionCorrection(GRID, iterations)(truth / 1000, *radiographs(truth))
    torch.testing.assert_close(moved, truth / 1000, atol=2e-3, rtol=0)


def test_tissue_outside_the_cube_is_not_put_into_it() -> None:
    """A body wider than the cube: with air around it, the right volume would be made wrong."""
    whole = body(WIDE, half_width_mm=200.0)
    inside = whole[(..., *GRID.middle_of(WIDE))]
    image, views = radiographs(whole, WIDE)
    own, naive = (
        rmse(ReprojectionCorrection(GRID, margin_mm=margin)(inside / 1000, image, views), inside)
        for margin in ((60.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    )
    assert own < 0.6 * naive


def test_cases_have_views_of_their_own_and_padding_counts_nothing() -> None:
    truth = torch.cat([body(), body(half_width_mm=70.0)])
    parts = [radiographs(one[None]) for one in truth]
    image, views = torch.cat([parts[0][0], parts[1][0].flip(1)]), torch.cat([parts[0][1], parts[1][1].flip(1)])
    mask = torch.tensor([[True, True], [True, False]])
    correction, start = ReprojectionCorrection(GRID), torch.full_like(truth, -0.2)
    together = correction(start, image, views, mask)
    torch.testing.assert_close(together[:1], correction(start[:1], *parts[0]), atol=1e-4, rtol=0)
    alone = correction(start[1:], image[1:, :1], views[1:, :1])
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=0)
    assert together.abs().max() <= 1


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="at least 1 iteration, got 0"):
        ReprojectionCorrection(GRID, 0)
    with pytest.raises(ValueError, match="margin_mm must not be negative"):
        ReprojectionCorrection(GRID, margin_mm=(-1.0, 0.0, 0.0))
