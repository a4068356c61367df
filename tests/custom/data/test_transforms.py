"""Volumes on a geometry's grid, stored radiographs, and the way back into the CT's frame."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandGaussianNoise

from custom.data.transforms import LoadNiftid, LoadRadiographsd, PlaceVolumed, RepeatRandom, SampleOnGridd
from custom.geometry import Geometry, VolumeGrid
from custom.geometry.detector import isocenter_pixel_mm, match_detector
from custom.projection import Projector


def store(folder: Path, count: int = 3, beam: str = "parallel", **change: object) -> dict[str, str]:
    geometry = Geometry.from_angles(
        [0.0, 90.0, 135.0][:count], beam=beam, grid=VolumeGrid.cube(16, 320), isocenter_mm=(10.0, -20.0, 30.0)
    )
    image = np.random.default_rng(0).random((24, 16, count), dtype=np.float32)
    image = change.get("image", image)  # type: ignore[assignment]
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "case.nii.gz")
    geometry.save(folder / "case.json")
    return {"image": str(folder / "case.nii.gz"), "geometry": str(folder / "case.json")}


def test_radiographs_are_read_as_stored(tmp_path: Path) -> None:
    case = store(tmp_path)
    stored = np.asarray(nib.load(case["image"]).dataobj)
    data = LoadRadiographsd()(case)
    assert data["image"].shape == (3, 16, 24)
    np.testing.assert_array_equal(data["image"][1], stored[:, :, 1].T)
    assert data["views"].shape == (3, 13)
    assert data["isocenter_mm"].tolist() == [10, -20, 30]


def test_views_are_chosen_by_angle_in_the_order_asked(tmp_path: Path) -> None:
    case = store(tmp_path)
    every, some = LoadRadiographsd()(case), LoadRadiographsd(angles_deg=[135, 0])(case)
    torch.testing.assert_close(some["image"], every["image"][[2, 0]])
    torch.testing.assert_close(some["views"], every["views"][[2, 0]])


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (
            np.zeros((24, 16, 2), np.float32),
            {},
            r"case\.nii\.gz: 2 radiographs .*, but .*case\.json describes 3 views",
        ),
        (np.zeros((20, 16, 3), np.float32), {}, r"radiographs of 20 x 16 pixels"),
        (np.full((24, 16, 3), np.nan, np.float32), {}, "NaN"),
        (np.ones((24, 16, 3), np.float32), {"angles_deg": [45]}, "no view at 45 degrees"),
        (np.zeros((24, 16, 3, 2), np.float32), {}, "must be a stack"),
        (np.zeros((24, 16, 3), np.float32), {}, r"case\.nii\.gz: a radiograph without any attenuation"),
        (np.full((24, 16, 3), 4095, np.float32), {}, r"case\.nii\.gz: values up to 4095 are no line integrals"),
    ],
)
def test_radiographs_that_do_not_fit(tmp_path: Path, image: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoadRadiographsd(**options)(store(tmp_path, image=image))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    case = store(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone"):
        LoadRadiographsd()({**case, "image": str(tmp_path / "gone.nii.gz")})
    content = Path(case["image"]).read_bytes()
    Path(case["image"]).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"case\.nii\.gz: not a readable NIfTI"):
        LoadRadiographsd()(case)


def test_nifti_is_read_without_a_word_about_other_formats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = store(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = LoadNiftid(["image"])(case)["image"]
    assert tuple(volume.shape) == (1, 24, 16, 3) and caplog.messages == []


def test_placed_volume_stands_where_the_cube_stood(tmp_path: Path) -> None:
    grid = VolumeGrid.cube(16, 320)
    data = {**LoadRadiographsd()(store(tmp_path)), "pred": torch.linspace(-1.2, 1.2, 16**3).reshape(1, 16, 16, 16)}
    placed = PlaceVolumed("pred", grid)(data)["pred"]
    assert isinstance(placed, MetaTensor)
    center = placed.affine @ torch.tensor([7.5, 7.5, 7.5, 1.0], dtype=placed.affine.dtype)
    assert center[:3].tolist() == pytest.approx([10, -20, 30])
    assert float(placed.min()) == -1000 and float(placed.max()) == 1000


def test_sampling_on_a_grid_keeps_points_in_place() -> None:
    """A bright block of a fine volume lands on the voxel of the grid that the millimetres say."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [-60.0, -50.0, 100.0]
    fine = torch.full((1, 120, 100, 80), -1000.0)
    fine[0, 80:90, 20:30, 60:70] = 0.0  # centre at (24.5, -25.5, 164.5)
    cube = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.tensor(np.diag([20.0, 20.0, 20.0, 1.0])))
    cube.affine[:3, 3] = torch.tensor([-30.5, -31.5, 108.5])  # isocentre (-0.5, -1.5, 138.5)
    data = {"source": MetaTensor(fine, affine=torch.tensor(affine)), "label": cube}
    grid = VolumeGrid((20, 20, 20), (5.0, 5.0, 5.0))
    sampled = SampleOnGridd(["source"], "label", grid)(data)["source"]
    assert sampled.dtype == torch.int16
    weights = (sampled[0].float() + 1000) / 1000
    centroid = (weights[..., None] * grid.points()).sum((0, 1, 2)) / weights.sum()
    assert centroid.tolist() == pytest.approx([25.0, -24.0, 26.0], abs=0.2)
    assert float(weights.sum()) * 125 == pytest.approx(1000, rel=0.02)


def test_sampling_refuses_an_oblique_affine() -> None:
    affine = torch.eye(4, dtype=torch.float64)
    affine[0, 1] = 0.2
    data = {"source": MetaTensor(torch.zeros(1, 4, 4, 4), affine=affine), "label": MetaTensor(torch.zeros(1, 4, 4, 4))}
    with pytest.raises(ValueError, match="axis-aligned"):
        SampleOnGridd(["source"], "label", VolumeGrid.cube(4, 8))(data)


def test_repeated_random_results() -> None:
    calls = iter(range(100))
    served = RepeatRandom(lambda data: next(calls), repeats=3)
    assert [served(None) for _ in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    with pytest.raises(ValueError, match="repeats"):
        RepeatRandom(lambda data: data, 0)


def test_repeated_random_results_follow_the_seed() -> None:
    """As `DataLoader` seeds them: through the `Compose` that MONAI's `Dataset` makes."""
    noise = [RepeatRandom(RandGaussianNoise(prob=1.0), repeats=2) for _ in range(3)]
    for transform, seed in zip(noise, (7, 7, 8), strict=True):
        Compose([transform]).set_random_state(seed=seed)
    first, same, other = (transform(torch.zeros(4)) for transform in noise)
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_matched_detector_sees_the_same_patient(beam: str, factor: float) -> None:
    """Radiographs taken with other pixels, brought to ours, are those that our detector would have taken."""
    grid = VolumeGrid.cube(32, 320)
    radius = grid.points().norm(dim=-1)
    ball = (1 - (radius / 120) ** 2).clamp(min=0)[None, None]
    ours = Geometry.from_angles([20.0], beam=beam, grid=grid, detector_shape=(32, 48))
    pixel = 10.0 * (1.5 if beam == "cone" else 1.0) * factor
    shape = (round(32 / factor), round(48 / factor))
    other = Geometry.from_angles([20.0], beam=beam, grid=grid, detector_shape=shape, pixel_mm=pixel)
    image = Projector.from_geometry(other)(ball)[0]
    matched, views = match_detector(image, other.tensor(), 10.0)
    expected = Projector(grid, matched.shape[1:], views)(ball)[0]
    assert isocenter_pixel_mm(views)[0].tolist() == pytest.approx([10, 10], rel=1e-4)
    assert all(n % 8 == 0 for n in matched.shape[1:])
    error = (matched - expected).norm() / expected.norm()
    assert float(error) < 0.03
    if matched.shape[1:] == ours.detector_shape:
        torch.testing.assert_close(views, ours.tensor())


def test_matching_leaves_what_fits_alone() -> None:
    geometry = Geometry.from_angles([0.0, 90.0], beam="cone", grid=VolumeGrid.cube(16, 320))
    image = torch.rand(2, *geometry.detector_shape)
    matched, views = match_detector(image, geometry.tensor(), 20.0)
    assert matched is image
    torch.testing.assert_close(views, geometry.tensor())


def test_a_tiny_detector_is_refused() -> None:
    geometry = Geometry.from_angles([0.0], beam="parallel", grid=VolumeGrid.cube(16, 320), detector_shape=(4, 4))
    with pytest.raises(ValueError, match="smaller than"):
        match_detector(torch.zeros(1, 4, 4), geometry.tensor(), 20.0)
