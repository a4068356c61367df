"""TIGRE's conventions, and an engine that cannot take the interpreter down with it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_tigre
import numpy as np
import pytest
import torch
from torch import Tensor

from custom.geometry import Geometry, VolumeGrid, pixel_coordinates, views_from_angles
from custom.projection import Projector
from custom.projection.tigre_geometry import (
    from_tigre,
    image_from_tigre,
    image_to_tigre,
    tigre_parameters,
    to_tigre,
    volume_from_tigre,
    volume_to_tigre,
)

GRID = VolumeGrid((14, 10, 12), (8.0, 9.0, 7.0), (5.0, -4.0, 3.0))
SHAPE = (18, 24)
ANGLES = [0.0, 37.0, 90.0, 200.0]
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package named tigre where this process and the worker find it."""

    def put(source: str = fake_tigre.SOURCE, gpus: list[str] | None = None) -> None:
        package = tmp_path / "site" / "tigre"
        (package / "utilities").mkdir(parents=True)
        (package / "__init__.py").write_text(source)
        (package / "utilities" / "__init__.py").write_text("")
        names = ["Fake GPU"] if gpus is None else gpus
        (package / "utilities" / "gpu.py").write_text(fake_tigre.GPU.format(names=names))
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        monkeypatch.syspath_prepend(str(package.parent))
        monkeypatch.delitem(sys.modules, "tigre", raising=False)
        importlib.invalidate_caches()

    yield put
    sys.modules.pop("tigre", None)


def tilted(views: Tensor, degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    cos, sin = float(angle.cos()), float(angle.sin())
    rotation = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=torch.float64)
    return torch.cat([(views[:, :12].reshape(-1, 4, 3) @ rotation.mT).reshape(-1, 12), views[:, 12:]], -1)


def geometries() -> dict[str, Geometry]:
    keywords: dict[str, Any] = {"grid": GRID, "detector_shape": SHAPE}
    cone = Geometry.from_angles(ANGLES, "cone", 700.0, 1100.0, pixel_mm=(11.0, 12.0), **keywords)
    return {
        "parallel": Geometry.from_angles(ANGLES, "parallel", pixel_mm=(7.0, 6.0), **keywords),
        "cone": cone,
        "cone, displaced": Geometry.from_angles(ANGLES, "cone", pixel_mm=12.0, detector_offset_mm=(9, -7), **keywords),
        "cone, distances differ": Geometry(
            torch.cat([cone.views[:2], views_from_angles(ANGLES[2:], "cone", 900.0, 1400.0, (11.0, 12.0))]), SHAPE, GRID
        ),
        "cone, tilted": Geometry(tilted(cone.views, 25.0), SHAPE, GRID),
        "cone, one view": cone.select([1]),
    }


def test_conventions_of_the_parameters() -> None:
    geometry = Geometry.from_angles([0.0, 90.0], "cone", 700.0, 1100.0, (18, 24), (11.0, 12.0), (9.0, -7.0), GRID)
    found = tigre_parameters(geometry)
    assert found["mode"] == "cone" and (found["DSO"], found["DSD"]) == pytest.approx((700.0, 1100.0))
    np.testing.assert_allclose(found["angles"], [0.0, np.pi / 2], err_msg="radians, same zero and sense")
    np.testing.assert_array_equal(found["nVoxel"], [12, 10, 14], err_msg="z, y, x")
    np.testing.assert_array_equal(found["dVoxel"], [7.0, 9.0, 8.0])
    np.testing.assert_array_equal(found["offOrigin"], [3.0, -4.0, 5.0])
    np.testing.assert_array_equal(found["nDetector"], [18, 24], err_msg="v, u")
    np.testing.assert_allclose(found["dDetector"], [11.0, 12.0])
    np.testing.assert_allclose(found["offDetector"], [[-7.0, 9.0]] * 2, atol=1e-9, err_msg="v up, u")


def test_arrays_turn_round_and_back() -> None:
    volume, image = np.random.rand(2, 3, 4, 5), np.random.rand(2, 6, 7, 8)
    assert volume_to_tigre(volume).shape == (2, 5, 4, 3) and volume_to_tigre(volume).dtype == np.float32
    assert volume_to_tigre(volume)[1, 4, 2, 0] == np.float32(volume[1, 0, 2, 4])
    np.testing.assert_allclose(volume_from_tigre(volume_to_tigre(volume)), volume, rtol=1e-6)
    assert image_to_tigre(image)[0, 1, 0, 3] == np.float32(image[0, 1, 6, 3]), "row 0 is the lowest z"
    np.testing.assert_allclose(image_from_tigre(image_to_tigre(image)), image, rtol=1e-6)


@pytest.mark.parametrize("name", geometries())
def test_geometry_round_trip(name: str, install: Install) -> None:
    install()
    geometry = geometries()[name]
    again = from_tigre(*to_tigre(geometry))
    assert again.grid == geometry.grid and again.detector_shape == geometry.detector_shape
    points = GRID.points(dtype=torch.float64).reshape(-1, 3)
    for k in range(len(geometry)):
        found, expected = (pixel_coordinates(points, g.views[k : k + 1], SHAPE)[0] for g in (again, geometry))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", geometries())
def test_point_phantom_through_tigre_arrays(name: str, install: Install) -> None:
    """Our volume in TIGRE's order, its projector, its radiographs in our order: the pixel of our formula."""
    install()
    geometry = geometries()[name]
    volume = torch.zeros(1, 1, *GRID.shape)
    volume[0, 0, 10, 3, 8] = 1.0
    geo, angles = to_tigre(geometry)
    tigre = importlib.import_module("tigre")
    image = torch.from_numpy(image_from_tigre(tigre.Ax(volume_to_tigre(volume[0, 0].numpy()), geo, angles)))
    point = GRID.points(dtype=torch.float64)[10, 3, 8]
    expected, _ = pixel_coordinates(point[None], geometry.views, SHAPE)
    rows, columns = (torch.arange(n).double() for n in SHAPE)
    for k, picture in enumerate(image.double()):
        total = picture.sum()
        center = [float((picture.sum(0) * columns).sum() / total), float((picture.sum(1) * rows).sum() / total)]
        assert center == pytest.approx(expected[k, 0].tolist(), abs=0.12)
    ours = Projector.from_geometry(geometry)(volume)[0]
    assert float((ours.sum() - image.sum()).abs() / ours.sum()) < 0.05


@pytest.mark.parametrize("name", ["parallel", "cone", "cone, tilted"])
def test_engine_gives_the_projectors_values(name: str, install: Install) -> None:
    install()
    geometry = geometries()[name]
    axes = [torch.linspace(-1, 1, n) for n in GRID.shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    volume = torch.stack([(1 - x * x) * (1 - y * y) * (1 - z * z), (1 + x) * (1 - y * y) * (1 - z * z)])[:, None] * 0.01
    ours = Projector.from_geometry(geometry)(volume)
    found = Projector.from_geometry(geometry, engine="tigre")(volume)
    assert found.shape == ours.shape and found.dtype == torch.float32
    assert float((found - ours).norm() / ours.norm()) < 0.02
    if name == "cone":
        views = geometry.tensor()
        own = Projector(GRID, SHAPE, engine="tigre")(volume, torch.stack([views, views.flip(0)]))
        torch.testing.assert_close(own[1], found[1].flip(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "gpus", "error", "message"),
    [
        (fake_tigre.SOURCE, [], RuntimeError, "finds no CUDA GPU; use engine='torch'"),
        ("import os\ndef Ax(*a, **k): os._exit(1)\ndef geometry(*a, **k):\n    class G: pass\n    return G()\n", None,
         RuntimeError, "TIGRE ended its process with code 1"),
        ("genome = 1\n", None, ImportError, "another one .*pip install git.https://github.com/CERN/TIGRE"),
        ("raise ImportError('libcudart.so.12 not found')\n", None, ImportError, "libcudart.so.12 .*pip install git"),
    ],
    ids=["no GPU", "exit", "genomics", "broken build"],
)  # fmt: skip
def test_the_interpreter_survives(
    source: str, gpus: list[str] | None, error: type[Exception], message: str, install: Install
) -> None:
    install(source, gpus)
    projector = Projector.from_geometry(geometries()["cone"], engine="tigre")
    with pytest.raises(error, match=message):
        projector(torch.zeros(1, 1, *GRID.shape))


def test_without_tigre(monkeypatch: pytest.MonkeyPatch) -> None:
    known = subprocess.run([sys.executable, "-c", "import tigre"], capture_output=True, check=False)
    if known.returncode == 0:
        pytest.skip("a package named tigre is installed here")
    geometry = geometries()["cone"]
    for call in (lambda: to_tigre(geometry), lambda: Projector.from_geometry(geometry, engine="tigre")(
        torch.zeros(1, 1, *GRID.shape))):  # fmt: skip
        with pytest.raises(ImportError, match=r"pip install git\+https://github.com/CERN/TIGRE"):
            call()


def test_what_tigre_cannot_hold_is_refused() -> None:
    every = geometries()
    parallel, cone = every["parallel"], every["cone"]

    def refused(geometry: Geometry, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            tigre_parameters(geometry)

    refused(Geometry(torch.cat([parallel.views, cone.views]), SHAPE, GRID), "not both at once")
    displaced = Geometry.from_angles([0.0], "parallel", detector_offset_mm=(3.0, 0.0), grid=GRID)
    refused(displaced, "view 0: TIGRE tilts the rays")
    refused(Geometry(tilted(parallel.views, 10.0), SHAPE, GRID), "cannot be tilted")
    moved = cone.views.clone()
    moved[1, 2] += 5.0
    refused(Geometry(moved, SHAPE, GRID), "view 1: .* 5 mm beside it")
    skewed = cone.views.clone()
    skewed[:, 6:9] += 0.2 * skewed[:, 9:12]
    refused(Geometry(skewed, SHAPE, GRID), "not perpendicular")
    finer = cone.views.clone()
    finer[2, 6:9] *= 0.5
    refused(Geometry(finer, SHAPE, GRID), "one pixel size for all views")


def test_what_cannot_be_read_from_tigre_is_refused() -> None:
    good = tigre_parameters(geometries()["cone"])
    angles = good.pop("angles")

    def read(**changes: Any) -> Geometry:
        return from_tigre(SimpleNamespace(**{**good, **changes}), angles)

    assert len(read()) == 4
    with pytest.raises(ValueError, match="turned detector"):
        read(rotDetector=np.array([0.0, 0.1, 0.0]))
    with pytest.raises(ValueError, match="offOrigin differs"):
        read(offOrigin=np.arange(12.0).reshape(4, 3))
    with pytest.raises(ValueError, match="parallel beams with a displaced detector"):
        read(mode="parallel", offDetector=np.array([0.0, 5.0]))
    with pytest.raises(ValueError, match="in radians"):
        from_tigre(SimpleNamespace(**good), np.zeros((4, 2)))
    shifted = read(COR=6.0)
    torch.testing.assert_close(
        shifted.views[:, 0:3] - read().views[:, 0:3], 6.0 * torch.nn.functional.normalize(read().views[:, 6:9], dim=-1)
    )


def test_tigre_only_goes_forwards() -> None:
    projector = Projector.from_geometry(geometries()["cone"], engine="tigre")
    with pytest.raises(ValueError, match="not the adjoint"):
        projector.adjoint(torch.zeros(1, 4, *SHAPE))
    with pytest.raises(ValueError, match="no gradients"):
        projector(torch.zeros(1, 1, *GRID.shape, requires_grad=True))
    with pytest.raises(ValueError, match="engine must be one of"):
        Projector(GRID, SHAPE, engine="astra")


@pytest.mark.integration
@pytest.mark.skipif(not os.environ.get("FEWVIEW_TIGRE"), reason="needs CERN/TIGRE and a GPU; set FEWVIEW_TIGRE=1")
@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_parity_with_tigre_itself(beam: str) -> None:
    from analytic import ellipsoid_volume

    geometry = Geometry.from_angles([0.0, 30.0, 90.0], beam)
    volume = ellipsoid_volume(geometry.grid).float()
    ours = Projector.from_geometry(geometry)(volume)
    found = Projector.from_geometry(geometry, engine="tigre")(volume)
    assert float((found - ours).norm() / ours.norm()) < 5e-3
