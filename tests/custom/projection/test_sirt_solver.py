"""SIRT: the classical reconstruction that networks are compared with."""

from __future__ import annotations

import pytest
import torch
from analytic import ellipsoid_volume, relative_error

from custom.geometry import Geometry, VolumeGrid
from custom.projection import Projector, sirt

GRID = VolumeGrid.cube(24, 320.0)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_many_views_give_the_volume_back(beam: str) -> None:
    geometry = Geometry.from_angles([i * 15.0 for i in range(12)], beam, grid=GRID)
    truth = ellipsoid_volume(GRID).float()
    projector = Projector.from_geometry(geometry)
    image = projector(truth)
    errors = [relative_error(sirt(projector, image, iterations=n), truth) for n in (2, 10, 50)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.12
    found = sirt(projector, image, iterations=50)
    assert relative_error(projector(found), image) < 0.02


def test_bounds_hold() -> None:
    geometry = Geometry.from_angles([0.0, 90.0], "parallel", grid=GRID)
    projector = Projector.from_geometry(geometry)
    found = sirt(projector, projector(ellipsoid_volume(GRID).float()), iterations=12, bounds=(0.001, 0.012))
    assert found.min() >= torch.tensor(0.001) and found.max() <= torch.tensor(0.012)


@pytest.mark.parametrize("iterations", [4, 12])
def test_masked_views_carry_no_weight(iterations: int) -> None:
    geometry = Geometry.from_angles([0.0, 50.0, 90.0], "cone", grid=GRID)
    projector = Projector.from_geometry(geometry)
    image = projector(ellipsoid_volume(GRID).float())
    spoilt = image.clone()
    spoilt[:, 1] = 99.0
    masked = sirt(projector, spoilt, iterations=iterations, view_mask=torch.tensor([[True, False, True]]))
    without = sirt(projector, image[:, [0, 2]], geometry.select([0, 2]).tensor(), iterations=iterations)
    torch.testing.assert_close(masked, without, rtol=1e-4, atol=1e-6)


def test_every_volume_of_a_batch_has_its_own_views() -> None:
    sets = [Geometry.from_angles(angles, "cone", grid=GRID) for angles in ([0.0, 90.0], [30.0, 100.0])]
    views = torch.stack([g.tensor() for g in sets])
    projector = Projector(GRID, sets[0].detector_shape)
    volumes = torch.cat([ellipsoid_volume(GRID), ellipsoid_volume(GRID).flip(2)]).float()
    image = projector(volumes, views)
    together = sirt(projector, image, views, iterations=11)
    for b in range(2):
        alone = sirt(projector, image[b : b + 1], views[b], iterations=11)
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-5, atol=1e-7)


def test_initial_volume_is_kept_where_nothing_is_seen() -> None:
    geometry = Geometry.from_angles([0.0], "parallel", detector_shape=(4, 36), grid=GRID)
    projector = Projector.from_geometry(geometry)
    start = torch.full((1, 1, *GRID.shape), 0.01)
    found = sirt(projector, torch.zeros(1, 1, 4, 36), iterations=3, initial=start)
    assert (found[..., :8] == 0.01).all() and (found[..., 11:13] < 0.01).all() and (start == 0.01).all()


def test_voxel_std_says_where_the_radiographs_are_explained() -> None:
    """Voxels of standard deviation 0 stay; one for all changes nothing; the radiographs are explained all the same."""
    geometry = Geometry.from_angles([0.0, 90.0], "parallel", grid=GRID)
    projector = Projector.from_geometry(geometry)
    image = projector(ellipsoid_volume(GRID).float())
    start = torch.zeros(1, 1, *GRID.shape)
    voxel_std = torch.ones_like(start)
    voxel_std[:, :, :, ::2] = 0.0
    found = sirt(projector, image[:, 1:], geometry.select([1]).tensor(), 20, initial=start, voxel_std=voxel_std)
    assert (found[:, :, :, ::2] == 0).all()
    assert relative_error(projector(found)[:, 1], image[:, 1]) < 0.02  # frontal rays cross all planes
    alike = sirt(projector, image, iterations=5, initial=start, voxel_std=torch.full((1,), 7.0))
    torch.testing.assert_close(alike, sirt(projector, image, iterations=5, initial=start))


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_what_is_given_is_not_changed(momentum: bool, kind: torch.dtype) -> None:
    geometry = Geometry.from_angles([0.0, 70.0], "cone", grid=GRID)
    projector = Projector.from_geometry(geometry)
    given = [
        projector(ellipsoid_volume(GRID).float()).to(kind),
        torch.full((1, 1, *GRID.shape), 0.004, dtype=torch.float64),
        torch.rand(1, 1, *GRID.shape, generator=torch.Generator().manual_seed(0)).to(kind),
        torch.tensor([[True, False]]),
    ]
    before = [one.clone() for one in given]
    image, initial, voxel_std, mask = given
    found = sirt(
        projector, image, iterations=3, initial=initial, view_mask=mask, voxel_std=voxel_std, momentum=momentum
    )
    assert found.dtype == kind and not torch.equal(found.double(), initial)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


def test_what_is_refused() -> None:
    projector = Projector.from_geometry(Geometry.from_angles([0.0], grid=GRID))
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        sirt(projector, torch.zeros(1, 1, 24, 36), iterations=0)
    with pytest.raises(ValueError, match="voxel_std must not be negative, got -1"):
        sirt(projector, torch.zeros(1, 1, 24, 36), iterations=1, voxel_std=torch.tensor(-1.0))
    with pytest.raises(ValueError, match="there are 1 views, but image"):
        sirt(projector, torch.zeros(1, 2, 24, 36))


def test_momentum_needs_fewer_iterations() -> None:
    geometry = Geometry.from_angles([0, 45, 90, 135], beam="parallel", grid=GRID, detector_shape=(16, 24))
    projector = Projector.from_geometry(geometry)
    truth = torch.rand(1, 1, *GRID.shape, generator=torch.Generator().manual_seed(0)) * 0.02
    image = projector(truth)

    def left(iterations: int, momentum: bool) -> float:
        found = sirt(projector, image, iterations=iterations, momentum=momentum)
        assert float(found.min()) >= 0
        return float((projector(found) - image).norm())

    assert left(1, True) == pytest.approx(left(1, False))
    assert left(25, True) < left(50, False) < left(25, False)
