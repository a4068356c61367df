"""The projector against exact line integrals of ellipsoids, at the size that the project works at."""

from __future__ import annotations

import math

import pytest
import torch
from analytic import UNIFORM, ellipsoid_integrals, ellipsoid_volume, relative_error
from torch import Tensor

from custom.geometry import VolumeGrid, views_from_angles
from custom.projection import Projector

GRID = VolumeGrid()
SHAPE = (128, 128)
PIXEL = {"parallel": 2.5, "cone": 4.0}


@pytest.fixture(scope="module")
def volume() -> Tensor:
    return ellipsoid_volume(GRID).float()


def tilted(views: Tensor, degrees: float) -> Tensor:
    """The whole acquisition turned about the x axis."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotation = views.new_tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return torch.cat([(views[:, :12].reshape(-1, 4, 3) @ rotation.mT).reshape(-1, 12), views[:, 12:]], -1)


@pytest.mark.parametrize(("beam", "bar"), [("parallel", 5e-4), ("cone", 1e-3)])
def test_at_0_30_60_90_degrees(volume: Tensor, beam: str, bar: float) -> None:
    views = views_from_angles([0.0, 30, 60, 90], beam, pixel_mm=PIXEL[beam])
    found = Projector(GRID, SHAPE)(volume, views)[0]
    assert relative_error(found, ellipsoid_integrals(views, SHAPE)) <= bar


@pytest.mark.parametrize("beam", ["parallel", "cone"])
@pytest.mark.parametrize("first", [0.0, 7.7, 17.3, 41.0])
def test_at_any_angles(volume: Tensor, beam: str, first: float) -> None:
    views = views_from_angles([first, first + 131.9, first + 247.1], beam, pixel_mm=PIXEL[beam])
    found = Projector(GRID, SHAPE)(volume, views)[0]
    assert relative_error(found, ellipsoid_integrals(views, SHAPE)) <= 1e-3


@pytest.mark.parametrize("beam", ["parallel", "cone"])
@pytest.mark.parametrize("degrees", [20.0, 45.0])
def test_tilted(volume: Tensor, beam: str, degrees: float) -> None:
    views = tilted(views_from_angles([10.0, 140.0], beam, pixel_mm=PIXEL[beam]), degrees)
    found = Projector(GRID, SHAPE)(volume, views)[0]
    assert relative_error(found, ellipsoid_integrals(views, SHAPE)) <= 1.2e-3


def test_very_wide_cone_where_rays_choose_their_own_axis(volume: Tensor) -> None:
    """A source 20 mm in front of the volume and a detector 70 degrees wide to each side."""
    views = views_from_angles([35.0], "cone", 250.0, 420.0, pixel_mm=(8.0, 20.0))
    found = Projector(GRID, SHAPE)(volume, views)[0]
    assert torch.isfinite(found).all()
    assert relative_error(found, ellipsoid_integrals(views, SHAPE)) <= 1.5e-3


def test_uniform_ellipsoids() -> None:
    """Sharp edges: the error is that of the voxels, about a twentieth at 5 mm."""
    grid = VolumeGrid((64,) * 3, (5.0,) * 3)
    views = views_from_angles([0.0, 30, 60, 90], "cone", pixel_mm=8.0)
    found = Projector(grid, (64, 64))(ellipsoid_volume(grid, UNIFORM, 2).float(), views)[0]
    assert relative_error(found, ellipsoid_integrals(views, (64, 64), UNIFORM)) < 0.03


def test_error_falls_with_the_square_of_the_voxel() -> None:
    views = views_from_angles([20.0], "cone", pixel_mm=8.0)
    errors = []
    for size in (32, 64):
        grid = VolumeGrid.cube(size, 320.0)
        found = Projector(grid, (64, 64))(ellipsoid_volume(grid), views)[0]
        errors.append(relative_error(found, ellipsoid_integrals(views, (64, 64))))
    assert 3.0 < errors[0] / errors[1] < 5.5
