"""Radiographs of a CT: from the cube itself, and from the CT before it was resized."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import ellipsoid_integrals, ellipsoid_volume, relative_error

from custom.core.attenuation import attenuation_to_hu, hu_to_attenuation
from custom.geometry import Geometry, VolumeGrid
from custom.projection import Projector, simulate_fine, simulate_paper
from custom.projection.simulation import grid_of_ct

ISOCENTER = (12.0, -180.0, 900.0)
CUBE = VolumeGrid.cube(32, 320.0)


def acquisition(beam: str, **keywords: object) -> Geometry:
    return Geometry.from_angles([0.0, 40.0, 90.0], beam, grid=CUBE, isocenter_mm=ISOCENTER, **keywords)  # type: ignore[arg-type]


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_fine_is_exact_for_a_ct_of_any_size_and_place(beam: str) -> None:
    """The ellipsoids in a CT with its own spacing, size and origin: their integrals lie where the geometry says."""
    grid = VolumeGrid((106, 79, 104), (3.0, 3.0, 3.0), (1.5, 2.0, -3.0))
    hu = attenuation_to_hu(ellipsoid_volume(grid)[0, 0]).numpy()
    geometry = acquisition(beam)
    found = simulate_fine(hu, grid.affine(ISOCENTER), geometry)
    assert found.dtype == torch.float32 and found.shape == (3, *geometry.detector_shape)
    fine = geometry.oversampled(4)
    exact = torch.nn.functional.avg_pool2d(ellipsoid_integrals(fine.views, fine.detector_shape)[None], 4)[0]
    # The phantom has no negative attenuation, so nothing is lost in HU.
    assert relative_error(found, exact) < 0.01


def test_fine_sees_tissue_outside_the_cube_and_above_the_window() -> None:
    grid = VolumeGrid((48, 40, 40), (10.0, 10.0, 10.0))
    hu = np.full(grid.shape, -1000, np.int16)
    hu[0, 20, 20] = 3000
    geometry = acquisition("parallel", pixel_mm=10.0, detector_shape=(40, 64))
    found = simulate_fine(hu, grid.affine(ISOCENTER), geometry)
    peak = float(hu_to_attenuation(torch.tensor(3000.0))) * 10
    lateral, frontal = found[0], found[2]
    assert float(lateral.sum()) == pytest.approx(peak, rel=1e-5), "voxels of 10 mm, pixels of 10 mm"
    # Far to the patient's left: in the frontal picture beyond the cube's 32 columns, on the right.
    columns = torch.arange(64)[frontal.amax(0) > 0]
    assert int(columns.min()) >= 32 + 16
    cube = np.full(CUBE.shape, -1000, np.int16)
    assert simulate_paper(cube, geometry).abs().max() == 0


def test_paper_clips_to_the_window_and_is_the_projector() -> None:
    hu = torch.randint(-1200, 2500, CUBE.shape, generator=torch.Generator().manual_seed(0)).to(torch.int16)
    geometry = acquisition("parallel")
    found = simulate_paper(hu, geometry, energy_kev=50.0)
    clipped = hu_to_attenuation(hu.float().clamp(-1000, 1000), 50.0)[None, None]
    torch.testing.assert_close(found, Projector.from_geometry(geometry)(clipped)[0])
    torch.testing.assert_close(simulate_paper(hu.numpy(), geometry, energy_kev=50.0), found)


def test_energy_scales_the_picture() -> None:
    hu = np.zeros(CUBE.shape, np.int16)
    low, high = (simulate_paper(hu, acquisition("parallel"), energy).max() for energy in (50.0, 100.0))
    assert float(low / high) == pytest.approx(0.2269 / 0.1707, rel=1e-5)


def test_oversampling_averages_the_pixel() -> None:
    hu = attenuation_to_hu(ellipsoid_volume(CUBE)[0, 0]).numpy()
    affine = CUBE.affine(ISOCENTER)
    geometry = acquisition("cone", detector_shape=(8, 12), pixel_mm=50.0)
    fine = geometry.oversampled(2)
    exact = torch.nn.functional.avg_pool2d(simulate_fine(hu, affine, fine, oversampling=1)[None], 2)[0]
    torch.testing.assert_close(simulate_fine(hu, affine, geometry, oversampling=2), exact)


def test_grid_of_ct() -> None:
    grid = VolumeGrid((6, 5, 4), (1.0, 2.0, 3.0), (10.0, 20.0, -30.0))
    assert grid_of_ct(grid.shape, grid.affine(ISOCENTER), ISOCENTER) == grid


def test_what_is_refused() -> None:
    hu = np.zeros(CUBE.shape, np.int16)
    geometry = acquisition("cone")
    flipped = CUBE.affine(ISOCENTER) @ np.diag([-1.0, 1, 1, 1])
    with pytest.raises(ValueError, match="axes must be RAS"):
        simulate_fine(hu, flipped, geometry)
    turned = CUBE.affine(ISOCENTER)
    turned[0, 1] = 0.5
    with pytest.raises(ValueError, match="axes must be RAS"):
        simulate_fine(hu, turned, geometry)
    broken = hu.astype(np.float32)
    broken[3, 4, 5] = np.nan
    with pytest.raises(ValueError, match="1 values that are not finite"):
        simulate_fine(broken, CUBE.affine(ISOCENTER), geometry)
    with pytest.raises(ValueError, match="no isocenter_mm"):
        simulate_fine(hu, CUBE.affine(), Geometry.from_angles([0.0], grid=CUBE))
    with pytest.raises(ValueError, match="not on the geometry's grid"):
        simulate_paper(hu[:-1], geometry)
    with pytest.raises(ValueError, match="inside the volume"):
        simulate_fine(np.zeros((250, 4, 4), np.int16), VolumeGrid((250, 4, 4), (10.0,) * 3).affine(ISOCENTER), geometry)
