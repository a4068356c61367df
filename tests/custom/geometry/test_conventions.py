"""The conventions that everything else stands on, one by one, and a point phantom for each of them."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from custom.geometry import Geometry, VolumeGrid, pixel_coordinates, rays, views_from_angles
from custom.projection import Projector

ANGLES = [0.0, 22.5, 30, 45, 67.3, 90, 101.9, 135, 180, 200.1, 225, 270, 287.4, 315, 359.9]
GRID = VolumeGrid((24, 20, 16), (5.0, 6.0, 7.0), (3.0, -2.0, 4.0))
RIGHT, ANTERIOR, SUPERIOR = (torch.eye(3, dtype=torch.float64)[i] for i in range(3))


def formula(point: Tensor, angle_deg: float, beam: str, pixel_mm: float, shape: tuple[int, int]) -> tuple[float, float]:
    """Column and row of a point, written out by hand (default distances, no offset)."""
    a = math.radians(angle_deg)
    x, y, z = point.tolist()
    along, depth = -x * math.sin(a) + y * math.cos(a), x * math.cos(a) + y * math.sin(a)
    magnification = 1500 / (1000 - depth) if beam == "cone" else 1.0
    return along * magnification / pixel_mm + (shape[1] - 1) / 2, -z * magnification / pixel_mm + (shape[0] - 1) / 2


def point_phantom(grid: VolumeGrid, voxel: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """A volume (1, 1, X, Y, Z) with one bright voxel, and where that is [mm]."""
    volume = torch.zeros(1, 1, *grid.shape, dtype=torch.float64)
    volume[(0, 0, *voxel)] = 1.0
    return volume, grid.points(dtype=torch.float64)[voxel]


def center_of_mass(image: Tensor) -> tuple[float, float]:
    """Column and row of the centre of mass of (V, U)."""
    rows, columns = (torch.arange(n, dtype=image.dtype) for n in image.shape)
    total = image.sum()
    return float((image.sum(0) * columns).sum() / total), float((image.sum(1) * rows).sum() / total)


@pytest.mark.parametrize(
    ("angle", "source", "u"),
    [
        (0, RIGHT, ANTERIOR),
        (90, ANTERIOR, -RIGHT),
        (180, -RIGHT, -ANTERIOR),
        (270, -ANTERIOR, RIGHT),
    ],
    ids=["lateral from the right", "AP", "lateral from the left", "PA"],
)
def test_angle_table(angle: float, source: Tensor, u: Tensor) -> None:
    cone, parallel = (views_from_angles([angle], beam, 1000, 1500, (2.0, 3.0))[0] for beam in ("cone", "parallel"))
    torch.testing.assert_close(cone[0:3], 1000 * source)
    torch.testing.assert_close(parallel[0:3], -source)
    for view in (cone, parallel):
        torch.testing.assert_close(view[3:6], -500 * source)
        torch.testing.assert_close(view[6:9], 3.0 * u)
        torch.testing.assert_close(view[9:12], -2.0 * SUPERIOR, msg="row 0 is superior, v grows downwards")
    assert (cone[12], parallel[12]) == (1, 0)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
@pytest.mark.parametrize("angle", ANGLES)
def test_picture_is_seen_from_the_source(angle: float, beam: str) -> None:
    view = Geometry.from_angles([angle], beam).views[0]
    toward_detector = view[3:6] - view[0:3] if beam == "cone" else view[0:3]
    assert float(torch.linalg.cross(view[6:9], view[9:12]) @ toward_detector) > 0


def test_ap_view_shows_the_patients_left_on_the_pictures_right() -> None:
    geometry = Geometry.from_angles([90], "cone")
    left_superior = torch.tensor([[-50.0, 0.0, 60.0]], dtype=torch.float64)
    (column, row), seen = pixel_coordinates(left_superior, geometry.views, geometry.detector_shape)[0][0, 0], True
    assert seen and column > (geometry.detector_shape[1] - 1) / 2 and row < (geometry.detector_shape[0] - 1) / 2


@pytest.mark.parametrize("beam", ["parallel", "cone"])
@pytest.mark.parametrize("angle", ANGLES)
def test_point_phantom_lands_where_the_formula_says(angle: float, beam: str) -> None:
    shape, pixel = (96, 160), 2.0
    volume, point = point_phantom(GRID, (5, 13, 11))
    geometry = Geometry.from_angles([angle], beam, detector_shape=shape, pixel_mm=pixel, grid=GRID)
    expected = formula(point, angle, beam, pixel, shape)
    found, seen = pixel_coordinates(point[None], geometry.views, shape)
    assert seen.all()
    torch.testing.assert_close(found[0, 0], torch.tensor(expected, dtype=torch.float64))
    image = Projector(GRID, shape)(volume, geometry.views)[0, 0]
    # A voxel casts a tent, sampled by the pixels: its centre of mass is off by some hundredths of a pixel.
    assert center_of_mass(image) == pytest.approx(expected, abs=0.1)
    # And back: the adjoint of the shadow is brightest along the ray through the voxel, so it includes the voxel.
    back = Projector(GRID, shape).adjoint(image[None, None], geometry.views)[0, 0]
    assert float(back[5, 13, 11]) > 0.5 * float(back.max())
    _, direction = (r[0] for r in rays(geometry.views, shape))
    brightest = np.unravel_index(int(back.argmax()), GRID.shape)
    offset = GRID.points(dtype=torch.float64)[brightest] - point
    ray = direction[round(expected[1]), round(expected[0])]
    assert float((offset - (offset @ ray) * ray).norm()) < 10, "the brightest voxel lies on the point's ray"


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_point_phantom_of_adjoint_is_found_from_many_views(beam: str) -> None:
    shape = (64, 96)
    volume, _ = point_phantom(GRID, (17, 4, 3))
    geometry = Geometry.from_angles(ANGLES, beam, detector_shape=shape, pixel_mm=3.0, grid=GRID)
    projector = Projector.from_geometry(geometry)
    back = projector.adjoint(projector(volume))
    assert np.unravel_index(int(back.argmax()), back.shape) == (0, 0, 17, 4, 3)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_tilted_pose_point_phantom(beam: str) -> None:
    """An oblique view, 30 degrees from above, detector rolled: still pixel_coordinates and projector agree."""
    rotation = torch.linalg.qr(torch.tensor([[1.0, 0.3, -0.2], [0.1, 1.0, 0.5], [0.3, -0.4, 1.0]]).double())[0]
    rotation = rotation * torch.linalg.det(rotation)
    views = views_from_angles([20.0, 110.0], beam, pixel_mm=2.0)
    tilted = torch.cat([views[:, :12].reshape(-1, 4, 3) @ rotation.mT, views[:, 12:, None].expand(-1, 1, 3)], 1)
    tilted = torch.cat([tilted[:, :4].reshape(-1, 12), views[:, 12:]], 1)
    shape = (160, 160)
    geometry = Geometry(tilted, shape, GRID)
    volume, point = point_phantom(GRID, (9, 8, 12))
    expected, seen = pixel_coordinates(point[None], geometry.views, shape)
    assert seen.all()
    images = Projector(GRID, shape)(volume, geometry.views)[0]
    for k, image in enumerate(images):
        assert center_of_mass(image) == pytest.approx(expected[k, 0].tolist(), abs=0.06)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_point_phantom_through_nifti_and_json(beam: str, tmp_path: Path) -> None:
    """The CT's world is kept: a voxel's millimetres through the file's affine give the pixel of the stored view."""
    isocenter = (17.0, -230.5, 1204.0)
    shape, pixel = (96, 160), 2.0
    volume, point = point_phantom(GRID, (20, 2, 14))
    geometry = Geometry.from_angles(
        [33.0, 250.0], beam, detector_shape=shape, pixel_mm=pixel, grid=GRID, isocenter_mm=isocenter
    )
    geometry.save(tmp_path / "views.json")
    nib.save(nib.Nifti1Image(volume[0, 0].numpy(), geometry.affine()), tmp_path / "ct.nii.gz")
    radiographs = Projector.from_geometry(geometry)(volume)[0].permute(2, 1, 0)
    nib.save(nib.Nifti1Image(radiographs.numpy(), np.eye(4)), tmp_path / "image.nii.gz")

    ct, loaded = nib.load(tmp_path / "ct.nii.gz"), Geometry.load(tmp_path / "views.json")
    assert nib.aff2axcodes(ct.affine) == ("R", "A", "S")
    voxel = np.argwhere(np.asarray(ct.dataobj) == 1)[0]
    world = nib.affines.apply_affine(ct.affine, voxel)
    in_isocenter_frame = torch.from_numpy(world - np.array(loaded.isocenter_mm))
    torch.testing.assert_close(in_isocenter_frame, point)
    stored = torch.from_numpy(np.asarray(nib.load(tmp_path / "image.nii.gz").dataobj))
    for k, angle in enumerate((33.0, 250.0)):
        expected = formula(in_isocenter_frame, angle, beam, pixel, shape)
        assert center_of_mass(stored[:, :, k].T.double()) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_detector_offset_moves_along_u_and_z(beam: str) -> None:
    """The offset is along +u and +z whatever the row order, so the shadow moves the other way on the detector."""
    point = torch.tensor([[10.0, 20.0, 30.0]], dtype=torch.float64)
    plain, moved = (
        pixel_coordinates(point, views_from_angles([70.0], beam, pixel_mm=2.0, detector_offset_mm=o), (128, 192))[0]
        for o in ((0.0, 0.0), (12.0, 8.0))
    )
    torch.testing.assert_close((moved - plain)[0, 0], torch.tensor([-6.0, 4.0], dtype=torch.float64))


def test_source_detector_and_isocentre_lie_on_one_line_at_the_stated_distances() -> None:
    views = views_from_angles(ANGLES, "cone", 700.0, 1100.0)
    torch.testing.assert_close(views[:, 0:3].norm(dim=-1), torch.full((len(ANGLES),), 700.0, dtype=torch.float64))
    torch.testing.assert_close(
        (views[:, 0:3] - views[:, 3:6]).norm(dim=-1), torch.full((len(ANGLES),), 1100.0, dtype=torch.float64)
    )
    assert Geometry(views).angles_deg == pytest.approx(ANGLES)
    assert Geometry.from_angles(ANGLES, "parallel").angles_deg == pytest.approx(ANGLES)
