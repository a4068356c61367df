"""FDK and total variation as rows of the benchmark."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from custom.benchmark import Method
from custom.benchmark.classical_methods import fdk_row, tv_row
from custom.core.attenuation import hu_to_attenuation
from custom.geometry import Geometry, VolumeGrid
from custom.metrics import psnr
from custom.projection import Projector

GRID = VolumeGrid.cube(16, 320.0)


def patient() -> Tensor:
    """A body with two lungs and a spine."""
    points = GRID.points()

    def inside(center: tuple[float, float], axes: tuple[float, float]) -> Tensor:
        return ((points[..., :2] - torch.tensor(center)) / torch.tensor(axes)).norm(dim=-1) < 1

    hu = torch.where(inside((0, 0), (145, 110)), 0.0, -1000.0)
    hu[inside((70, 10), (45, 65)) | inside((-70, 10), (45, 65))] = -800.0
    hu[inside((0, -65), (30, 30))] = 500.0
    return hu


def error_db(method: Method, angles: list[float], beam: str) -> float:
    geometry = Geometry.from_angles(angles, beam, grid=GRID)
    image = Projector.from_geometry(geometry)(hu_to_attenuation(patient()[None, None], 60.0))[0]
    found = method.run(image, geometry.tensor())
    assert method.grid == GRID and found.shape == GRID.shape and found.dtype == torch.float32
    assert found.min() >= -1000.1 and found.max() <= 1000.1
    return psnr(found, patient(), 2000.0)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_rows_give_hu_of_the_cube(beam: str) -> None:
    """FDK needs many views."""
    four, many = [0.0, 45.0, 90.0, 135.0], [i * 10.0 for i in range(36)]
    assert error_db(fdk_row(GRID, 60.0, "ram-lak"), many, beam) > max(
        20.0, error_db(fdk_row(GRID, 60.0, "ram-lak"), four, beam) + 3
    )
    assert error_db(tv_row(GRID, 60.0, iterations=100), four, beam) > error_db(fdk_row(GRID, 60.0), four, beam) + 3


def test_tissue_beside_the_cube_has_its_place_in_a_margin() -> None:
    wide = GRID.padded((6, 0, 0))
    hu = torch.full(wide.shape, -1000.0)
    hu[wide.points()[..., 0] > 180] = 0.0  # an arm: 100 mm of water, all along y and z
    geometry = Geometry.from_angles([0.0, 90.0], "parallel", grid=wide, detector_shape=(16, 40))
    image = Projector.from_geometry(geometry)(hu_to_attenuation(hu[None, None]))[0]
    inside = [
        float((tv_row(GRID, iterations=100, margin_mm=margin).run(image, geometry.tensor()) + 1000).mean())
        for margin in ((0, 0, 0), (120, 0, 0))
    ]
    assert inside[1] < 0.5 * inside[0]


def test_names_say_what_was_done() -> None:
    assert fdk_row(GRID, window="ram-lak").name == "FDK, ram-lak (clipped)"
    assert tv_row(GRID, iterations=50).name == "total variation, 50 iterations (clipped)"
