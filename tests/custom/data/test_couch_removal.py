"""The body mask takes the couch and leaves the patient."""

import warnings

import numpy as np
import pytest

from custom.data.couch_removal import _fill_opened_lungs, body_mask, field_of_view, lateral_truncation
from tests.ct_samples import SHAPE, SPACING, chest

VOXEL = (SPACING, SPACING, SPACING)


def _coordinates() -> tuple[np.ndarray, ...]:
    return tuple(SPACING * (g - 0.5 * (n - 1)) for g, n in zip(np.indices(SHAPE), SHAPE, strict=True))


def test_couch_goes_body_and_lungs_stay() -> None:
    volume = chest(couch=True).astype(np.float32)
    mask = body_mask(volume, VOXEL)
    x, y, _ = _coordinates()
    inside = (x / 145) ** 2 + ((y - 10) / 95) ** 2 < 1
    assert mask[inside].mean() > 0.999
    assert not mask[y < -100].any()
    assert np.abs(mask.sum() / body_mask(chest(couch=False).astype(np.float32), VOXEL).sum() - 1) < 0.005


def test_couch_cut_by_the_image_edge_goes_too() -> None:
    """A couch at the lowest rows would look thick if the image were thought to go on below."""
    volume = chest(couch=False).astype(np.float32)
    volume[:, 0, :] = 100.0
    assert not body_mask(volume, VOXEL)[:, :4].any()


def test_arms_beside_the_trunk_stay() -> None:
    volume = chest(width_mm=120.0).astype(np.float32)
    x, y, _ = _coordinates()
    arm = (np.abs(np.abs(x) - 165) < 25) & (np.abs(y) < 25)
    volume[arm] = 30.0
    assert body_mask(volume, VOXEL)[(np.abs(np.abs(x) - 165) < 15) & (np.abs(y) < 15)].all()


def test_lung_cut_open_by_the_field_of_view_is_still_inside() -> None:
    """Where the scan ends inside the lung there is no chest wall to close it."""
    volume = chest(couch=False).astype(np.float32)[24:56]
    lung = (volume < -700) & (volume > -950)
    assert lung[0].any(), "the sample must have lung at the edge"
    assert body_mask(volume, VOXEL)[lung].mean() > 0.97


@pytest.mark.parametrize("lung_hu", [-850.0, -940.0])
def test_lung_behind_a_thin_chest_wall_stays(lung_hu: float) -> None:
    """In thin people the wall is thinner than the shell of a couch, and the opening breaks through it."""
    volume = chest(couch=True, noise=0.0).astype(np.float32)
    x, y, _ = _coordinates()
    behind_wall = ((x / 144) ** 2 + ((y - 10) / 96) ** 2 < 1) & (np.abs(x) > 60) & (np.abs(y - 10) < 40)
    volume[behind_wall] = lung_hu
    mask = body_mask(volume, VOXEL)
    assert mask[behind_wall].mean() > 0.99
    assert not mask[y < -100].any()


def test_nothing_but_air_has_no_body() -> None:
    assert not body_mask(np.full((20, 20, 20), -1000.0, dtype=np.float32), VOXEL).any()


def test_field_of_view_is_the_circle_of_the_scanner() -> None:
    volume = chest().astype(np.float32)
    x, y, _ = _coordinates()
    circle = x**2 + y**2 < 150**2
    volume[~circle] = -1024
    np.testing.assert_array_equal(field_of_view(volume), circle[:, :, 0])


def test_masked_air_tells_no_field_of_view() -> None:
    volume = chest(couch=False, noise=0.0).astype(np.float32)
    assert field_of_view(volume).all()


@pytest.mark.parametrize(("radius", "expected"), [(200.0, 0.0), (155.0, 0.0), (120.0, 1.0)])
def test_truncation_counts_slices_whose_sides_are_cut(radius: float, expected: float) -> None:
    x, y, _ = _coordinates()
    body = (x / 150) ** 2 + ((y - 10) / 100) ** 2 < 1
    view = (x**2 + y**2 < radius**2)[:, :, 0]
    assert lateral_truncation(body & view[:, :, None], view, VOXEL) == expected


def test_truncation_is_a_share() -> None:
    x, y, z = _coordinates()
    body = (x / np.where(z < 0, 100, 150)) ** 2 + ((y - 10) / 90) ** 2 < 1
    view = (x**2 + y**2 < 120**2)[:, :, 0]
    assert lateral_truncation(body & view[:, :, None], view, VOXEL) == pytest.approx(0.5)


def test_a_slice_that_is_all_wall_has_no_opened_lung() -> None:
    """As in a phantom whose shell touches the image's edge: no border is left, and nothing is said about it."""
    shell = np.ones((8, 8, 2), bool)
    shell[1:-1, 1:-1] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _fill_opened_lungs(np.zeros_like(shell), shell, np.zeros(shell.shape, np.float32)).any()
