"""Segmentations land where the CT has them."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from custom.core.rejection import Rejected
from custom.data.label_maps import label_files, load_labels, load_rtstruct, off_slices, on_grid, rasterise_contours
from tests.ct_samples import ROOT, SHAPE, affine, circle, write_nifti, write_rtstruct

GRID = np.array([[2.5, 0, 0, -98.75], [0, 2.5, 0, -98.75], [0, 0, 2.5, -98.75], [0, 0, 0, 1.0]])
GRID_SHAPE = (80, 80, 80)
SERIES = f"{ROOT}.11"


def test_files_go_to_the_longest_case_name(tmp_path: Path) -> None:
    for name in ("a_tumour.nii.gz", "a_B.nii", "sub/a_B_organs.nii.gz", "ab.nii.gz", "a.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found, strays = label_files(tmp_path, ["a", "a_B"])
    assert {k: [p.name for p in v] for k, v in found.items()} == {
        "a": ["a_tumour.nii.gz"], "a_B": ["a_B.nii", "a_B_organs.nii.gz"],
    }  # fmt: skip
    assert [p.name for p in strays] == ["ab.nii.gz"]


def test_nearest_keeps_numbers_and_places() -> None:
    labels = np.zeros(SHAPE, dtype=np.uint16)
    labels[40:50, 30:40, 20:30] = 300
    carried = on_grid(labels, affine(), GRID, GRID_SHAPE)
    assert carried.dtype == np.uint16 and set(np.unique(carried)) == {0, 300}
    centre = GRID[:3, :3] @ np.argwhere(carried).mean(0) + GRID[:3, 3]
    np.testing.assert_allclose(centre, affine()[:3, :3] @ [44.5, 34.5, 24.5] + affine()[:3, 3], atol=1.3)
    assert (carried > 0).sum() * 2.5**3 == pytest.approx(1000 * 5**3, rel=0.1)


def test_several_files_become_one_map_with_names(tmp_path: Path) -> None:
    first, second = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    first[30:40, 30:40, 20:30] = 1
    first[42:50, 30:40, 20:30] = 4
    second[36:46, 30:40, 20:30] = 1
    paths = [write_nifti(tmp_path / "c_organs.nii.gz", first), write_nifti(tmp_path / "c_tumour.nii.gz", second)]
    (tmp_path / "c_organs.csv").write_text("group,structure,id\nx,liver,1\nx,spleen,4\n")
    labels, names = load_labels(paths, GRID, GRID_SHAPE)
    assert names == {1: "liver", 4: "spleen", 5: "c_tumour"}
    assert set(np.unique(labels)) == {0, 1, 4, 5} and labels.dtype == np.uint8


@pytest.mark.parametrize(
    ("value", "message"), [(0.5, "is no label map"), (-1, "is no label map"), (None, "nothing of it lies inside")]
)
def test_files_that_are_no_labels_of_this_scan(tmp_path: Path, value: float | None, message: str) -> None:
    labels = np.zeros(SHAPE, dtype=np.float32)
    labels[40, 30, 20] = 1 if value is None else value
    matrix = affine()
    matrix[0, 3] += 0 if value is not None else 5000
    path = write_nifti(tmp_path / "c.nii.gz", labels, matrix)
    with pytest.raises(Rejected, match=rf"c\.nii\.gz.*{message}"):
        load_labels([path], GRID, GRID_SHAPE)


def test_disc_with_a_hole_has_its_analytic_volume() -> None:
    heights = affine()[2, 3] + 5.0 * np.arange(20, 28)
    contours = [c for z in heights for c in (circle(60, z, (10, -5)), circle(25, z, (10, -5)))]
    mask, outside = rasterise_contours(contours, affine(), SHAPE, GRID, GRID_SHAPE)
    assert outside == 0
    expected = np.pi * (60**2 - 25**2) * 5 * len(heights)
    assert mask.sum() * 2.5**3 == pytest.approx(expected, rel=0.01)
    centre = GRID[:3, :3] @ np.argwhere(mask).mean(0) + GRID[:3, 3]
    np.testing.assert_allclose(centre, [10, -5, heights.mean()], atol=0.3)
    hole = np.linalg.inv(GRID) @ [10, -5, heights.mean(), 1]
    assert not mask[tuple(np.rint(hole[:3]).astype(int))]


@pytest.mark.parametrize("shift_mm", [0.0, 1.0, 2.5, 4.0])
def test_contours_between_slices_keep_their_volume(shift_mm: float) -> None:
    heights = affine()[2, 3] + 5.0 * np.arange(20, 28) + shift_mm
    contours = [c for z in heights for c in (circle(60, z), circle(25, z))]
    mask, outside = rasterise_contours(contours, affine(), SHAPE, GRID, GRID_SHAPE)
    assert outside == 0
    assert mask.sum() * 2.5**3 == pytest.approx(np.pi * (60**2 - 25**2) * 40, rel=0.01)
    on_slices, _ = rasterise_contours(contours, affine(), SHAPE, affine(), SHAPE)
    assert on_slices.any(axis=(0, 1)).sum() == 8
    assert off_slices(contours, affine()) == (16 if shift_mm else 0, pytest.approx(min(shift_mm, 5 - shift_mm)))


def test_contours_finer_than_the_slices_are_united() -> None:
    heights = affine()[2, 3] + 100 + 1.25 + 2.5 * np.arange(16)
    mask, _ = rasterise_contours([circle(60, z) for z in heights], affine(), SHAPE, GRID, GRID_SHAPE)
    filled = np.flatnonzero(mask.any(axis=(0, 1)))
    assert (np.diff(filled) == 1).all() and len(filled) in (16, 17)
    assert mask[:, :, filled].sum(axis=(0, 1)) * 2.5**2 == pytest.approx(np.pi * 60**2, rel=0.01)


def test_two_planes_of_one_slice_are_united() -> None:
    z = float(affine()[2, 3] + 100)
    contours = [circle(20, z - 1, (50, 0)), circle(20, z + 1, (-50, 0)), circle(10, z + 1, (50, 0))]
    mask, _ = rasterise_contours(contours, affine(), SHAPE, affine(), SHAPE)
    assert mask[:, :, 20].sum() * 25 == pytest.approx(2 * np.pi * 20**2, rel=0.15)


def test_contours_beside_the_slices_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heights = affine()[2, 3] + 5.0 * np.arange(20, 28) + 2.5
    write_rtstruct(tmp_path / "rs.dcm", {"GTV": [circle(20, z) for z in heights]})
    assert load_rtstruct([tmp_path / "rs.dcm"], SERIES, "", affine(), SHAPE, GRID, GRID_SHAPE) is not None
    assert "rs.dcm: 8 contours of 'GTV' lie between the CT's slices, up to 2.5 mm off" in caplog.text


def test_a_contour_that_is_there_twice_counts_once() -> None:
    contours = [circle(40, z) for z in affine()[2, 3] + 5.0 * np.arange(20, 28)]
    once, twice = (rasterise_contours(c, affine(), SHAPE, GRID, GRID_SHAPE)[0] for c in (contours, 2 * contours))
    assert once.any() and np.array_equal(once, twice)


@pytest.mark.parametrize("turned", ["sagittal", "tilted"])
def test_contours_of_another_plane_are_left_out(tmp_path: Path, turned: str, caplog: pytest.LogCaptureFixture) -> None:
    """Pressed flat they would be drawn where they are not."""
    flat = [circle(20, z) for z in affine()[2, 3] + 5.0 * np.arange(20, 28)]
    if turned == "sagittal":
        other = [points[:, [2, 0, 1]] for points in flat]
    else:
        other = [points + np.outer(points[:, 1], [0, 0, 0.36]) for points in flat]
    write_rtstruct(tmp_path / "rs.dcm", {"GTV": flat, "other": other})
    found = load_rtstruct([tmp_path / "rs.dcm"], SERIES, "", affine(), SHAPE, GRID, GRID_SHAPE)
    assert found is not None and found[1] == {1: "GTV"}
    assert "rs.dcm: 8 contours of 'other' do not lie in the plane of the CT's slices and are left out" in caplog.text


@pytest.mark.parametrize(("every", "said"), [(1, False), (2, True)])
def test_contours_on_some_slices_only_are_said(
    tmp_path: Path, every: int, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write_rtstruct(
        tmp_path / "rs.dcm", {"GTV": [circle(20, z) for z in affine()[2, 3] + 5.0 * np.arange(20, 32, every)]}
    )
    assert load_rtstruct([tmp_path / "rs.dcm"], SERIES, "", affine(), SHAPE, GRID, GRID_SHAPE) is not None
    assert ("the contours of 'GTV' are 2 slices apart" in caplog.text) == said


def test_contours_beyond_the_scan_are_counted() -> None:
    mask, outside = rasterise_contours([circle(30, 5000.0)], affine(), SHAPE, GRID, GRID_SHAPE)
    assert outside == 1 and not mask.any()


def test_small_structures_stand_over_large_ones(tmp_path: Path) -> None:
    heights = affine()[2, 3] + 5.0 * np.arange(20, 28)
    rois = {
        "GTV": [circle(20, z) for z in heights],
        "empty": [],
        "Body": [circle(80, z) for z in heights],
    }
    write_rtstruct(tmp_path / "rs.dcm", rois)
    found = load_rtstruct([tmp_path / "rs.dcm"], SERIES, "", affine(), SHAPE, GRID, GRID_SHAPE)
    assert found is not None
    labels, names, used = found
    assert names == {1: "GTV", 3: "Body"} and used == [tmp_path / "rs.dcm"]
    assert (labels == 1).sum() * 2.5**3 == pytest.approx(np.pi * 20**2 * 40, rel=0.05)


def test_structures_of_another_series_are_not_taken(tmp_path: Path) -> None:
    write_rtstruct(tmp_path / "rs.dcm", {"GTV": [circle(20, 0)]}, series="12")
    assert load_rtstruct([tmp_path / "rs.dcm"], SERIES, f"{ROOT}.9", affine(), SHAPE, GRID, GRID_SHAPE) is None


def test_damaged_structures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rs.dcm"
    write_rtstruct(path, {"GTV": []})
    with pytest.raises(Rejected, match=r"rs\.dcm: no ROI has a closed contour"):
        load_rtstruct([path], SERIES, "", affine(), SHAPE, GRID, GRID_SHAPE)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".json", b'{"liver": 1}'),
        (".json", b'{"1":'),
        (".json", b'["liver"]'),
        (".csv", b"id,structure\none,liver\n"),
        (".csv", b"structure,id\nliver\n"),
        (".csv", "id,structure\n1,Näbel\n".encode("latin-1")),
        (".csv", b"id,structure\n1," + b"a" * 200_000),
        (".csv", b"id,structure\n" + b"1,\n" * 400_000),
        (".csv", b"id;structure\n1;liver\n"),
    ],
)
def test_names_that_cannot_be_read_are_one_case_s_own(tmp_path: Path, suffix: str, content: bytes) -> None:
    """Each ended the preparation of all cases, some without a word on the file."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[30:40, 30:40, 20:30] = 1
    path = write_nifti(tmp_path / "c.nii.gz", labels)
    (tmp_path / f"c{suffix}").write_bytes(content)
    with pytest.raises(Rejected, match=rf"^\S*c\{suffix}"):
        load_labels([path], GRID, GRID_SHAPE)


def test_names_with_a_byte_order_mark(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[30:40, 30:40, 20:30] = 1
    path = write_nifti(tmp_path / "c.nii.gz", labels)
    (tmp_path / "c.csv").write_text("id,structure\n1,liver\n", encoding="utf-8-sig")
    assert load_labels([path], GRID, GRID_SHAPE)[1] == {1: "liver"}


def test_numbers_of_several_maps_do_not_wrap_round(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, dtype=np.int32)
    labels[30:40, 30:40, 20:30] = 40000
    paths = [write_nifti(tmp_path / f"c_{n}.nii.gz", labels) for n in "ab"]
    with pytest.raises(Rejected, match=r"c_b\.nii\.gz: its labels would be numbered up to 80000"):
        load_labels(paths, GRID, GRID_SHAPE)


@pytest.mark.parametrize(
    ("change", "said", "left"),
    [
        ("roi", "1 ROIs lie in another frame of reference than the CT", {2: "b"}),
        ("file", "another frame of reference: its contours are drawn as they stand", {1: "a", 2: "b"}),
        ("open", "1 contours of ROI 5 are not closed", {1: "a", 2: "b"}),
        ("short", "1 contours of ROI 5 are not closed, or have fewer than three points", {1: "a", 2: "b"}),
        ("point", "", {1: "a", 2: "b"}),
    ],
)
def test_contours_that_are_not_drawn_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str, said: str, left: dict[int, str]
) -> None:
    path = tmp_path / "rs.dcm"
    heights = affine()[2, 3] + 5.0 * np.arange(20, 24)
    write_rtstruct(path, {name: [circle(30, z, (x, 0)) for z in heights] for name, x in (("a", -40), ("b", 40))})
    dataset = pydicom.dcmread(path)
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    if change == "roi":
        dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = f"{ROOT}.8"
    elif change == "file":
        dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = f"{ROOT}.8"
    elif change == "short":
        contour.ContourData = contour.ContourData[:6]
    else:
        contour.ContourGeometricType = "OPEN_PLANAR" if change == "open" else "POINT"
    dataset.save_as(path)
    found = load_rtstruct([path], SERIES, f"{ROOT}.9", affine(), SHAPE, GRID, GRID_SHAPE)
    assert found is not None
    names = list(found[1].values())
    assert names == list(left.values()) and (said in caplog.text if said else "rs.dcm" not in caplog.text)
