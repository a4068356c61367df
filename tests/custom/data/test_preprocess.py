"""From a CT in HU to the cube: geometry, averaging, anchors."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from custom.data.preprocess import averaging_matrix, crop_and_resize, prepare_volume
from tests.ct_samples import SPACING, affine, chest

OPTIONS = {"size": 32, "cube_mm": 320.0, "spacing_mm": SPACING}


@pytest.mark.parametrize(
    ("count", "start", "step", "out"), [(320, 0.0, 2.5, 128), (50, -3.3, 1.7, 40), (9, 0.5, 0.5, 12)]
)
def test_averaging_matrix_weighs_by_overlap(count: int, start: float, step: float, out: int) -> None:
    matrix = averaging_matrix(count, start, step, out)
    centres = start + (np.arange(out) + 0.5) * step
    half = max(step, 1.0) / 2
    whole = (centres - half >= 0) & (centres + half <= count)
    np.testing.assert_allclose(matrix[whole].sum(axis=1), 1.0, atol=1e-5)
    # A ramp keeps its value at the cells' centres, to what its own steps allow.
    np.testing.assert_allclose((matrix @ (np.arange(count) + 0.5))[whole], centres[whole], atol=0.13)


def test_crop_keeps_the_integral_of_what_it_holds() -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(20, 20, 20)).astype(np.float32)
    cube = crop_and_resize(volume, (-5.0, -5.0, -5.0), 3.0, 10, fill=0.0)
    assert cube.shape == (10, 10, 10)
    assert cube.sum() * 27 == pytest.approx(volume.sum(), rel=1e-3, abs=1e-2)


def test_outside_the_scan_is_air() -> None:
    cube = crop_and_resize(np.zeros((4, 4, 4), dtype=np.float32), (100.0, 0.0, 0.0), 1.0, 4)
    assert (cube == -1000).all()


def test_prepared_case_has_what_the_networks_read() -> None:
    prepared = prepare_volume(chest(), affine(), **OPTIONS)
    assert prepared.cube.shape == (32, 32, 32) and prepared.cube.dtype == np.int16
    assert prepared.source.dtype == np.int16
    np.testing.assert_allclose(np.diag(prepared.cube_affine)[:3], 10.0)
    assert (prepared.source[~prepared.body] == -1000).all()
    assert prepared.facts["lateral_truncation"] == 0.0
    assert 0.3 < prepared.facts["cube_filled"] < 0.9


def test_couch_can_be_left() -> None:
    kept = prepare_volume(chest(), affine(), remove_couch=False, **OPTIONS)
    gone = prepare_volume(chest(), affine(), **OPTIONS)
    couch = np.zeros_like(kept.body)
    couch[20:60, 5:8] = True
    assert kept.source[couch].max() > 0
    assert (gone.source[couch] == -1000).all()


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAR", "PIL"])
def test_world_positions_survive_any_orientation(codes: str) -> None:
    """A bright voxel at a known place is found at that place in cube and source, however the file stores it."""
    volume = chest(couch=False, noise=0.0)
    volume[50:52, 40:42, 30:32] = 3000
    point = affine() @ [50.5, 40.5, 30.5, 1]
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = nib.apply_orientation(volume, turn)
    prepared = prepare_volume(stored, affine() @ inv_ornt_aff(turn, volume.shape), **OPTIONS)
    for array, matrix, step in (
        (prepared.cube, prepared.cube_affine, 10.0),
        (prepared.source, prepared.source_affine, SPACING),
    ):
        bright = np.argwhere(array > 1000)
        weights = array[tuple(bright.T)].astype(float)
        centre = matrix[:3, :3] @ (bright * weights[:, None]).sum(0) / weights.sum() + matrix[:3, 3]
        np.testing.assert_allclose(centre, point[:3], atol=0.5 * step)


def test_rotated_scans_come_out_straight() -> None:
    angle = np.deg2rad(15)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = chest(couch=False, noise=0.0)
    prepared = prepare_volume(volume, turn @ affine(), **OPTIONS)
    np.testing.assert_allclose(prepared.cube_affine[:3, :3], np.eye(3) * 10.0)
    spine = turn @ affine() @ [39.5, 19.5, 24, 1]
    index = np.linalg.inv(prepared.cube_affine) @ spine
    assert prepared.cube[tuple(np.rint(index[:3]).astype(int))] > 200


def test_anchors_place_the_cube() -> None:
    volume, matrix = chest(couch=False), affine()
    volume[:, :, 40:] = -1000
    options = {**OPTIONS, "cube_mm": 160.0, "size": 16}
    low, high = matrix[2, 3] - 2.5, matrix[2, 3] + 40 * SPACING - 2.5
    expected = {"superior": high - 80, "inferior": low + 80, "center": (low + high) / 2, "scan": 0.0}
    for anchor, middle in expected.items():
        prepared = prepare_volume(volume, matrix, anchor=anchor, **options)
        centre = prepared.cube_affine @ [7.5, 7.5, 7.5, 1]
        assert centre[2] == pytest.approx(middle, abs=SPACING)
    with pytest.raises(ValueError, match="'middle'; choose one of center"):
        prepare_volume(volume, matrix, anchor="middle", **options)


def test_padding_does_not_bleed_into_the_body() -> None:
    volume = chest(couch=False, noise=0.0)
    volume[:10] = -3024
    prepared = prepare_volume(volume, affine(), **OPTIONS)
    assert prepared.source.min() >= -1024


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.full((8, 8, 8), np.nan), "512 voxels are NaN"),
        (np.full((30, 30, 30), -1000, dtype=np.int16), "no body found"),
        (np.zeros((8, 8), dtype=np.int16), "three axes"),
    ],
)
def test_unusable_volumes(volume: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_volume(volume, affine(), **OPTIONS)
