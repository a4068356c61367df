"""NIfTI and MetaImage files, and the checks that every CT passes."""

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from custom.core.rejection import Rejected
from custom.data.volume_files import check_grid, check_hu, grid_facts, load_metaimage, load_nifti
from tests.ct_samples import affine, chest, write_nifti


def test_nifti_with_slope_and_a_fourth_axis_of_one(tmp_path: Path) -> None:
    image = nib.Nifti1Image((chest()[..., None] + 1024).astype(np.int16), affine())
    image.header.set_slope_inter(1, -1024)
    nib.save(image, tmp_path / "x.nii.gz")
    values, matrix = load_nifti(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(values, chest())
    np.testing.assert_allclose(matrix, affine())


def test_nifti_in_metres(tmp_path: Path) -> None:
    small = affine() * [[1e-3]] * 1
    small[3] = [0, 0, 0, 1]
    image = nib.Nifti1Image(chest(), small)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "x.nii")
    np.testing.assert_allclose(load_nifti(tmp_path / "x.nii")[1], affine(), atol=1e-4)


def _nan(path: Path) -> None:
    volume = chest().astype(np.float32)
    volume[3, 4, 5] = np.nan
    volume[3, 4, 6] = np.inf
    write_nifti(path, volume)


def _truncated(path: Path) -> None:
    write_nifti(path, chest())
    path.write_bytes(path.read_bytes()[:20000])


def _no_orientation(path: Path) -> None:
    image = nib.Nifti1Image(chest(), affine())
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_nan, r"x\.nii\.gz has 2 voxels that are NaN"),
        (_truncated, r"x\.nii\.gz is truncated or damaged"),
        (_no_orientation, r"x\.nii\.gz has no orientation"),
        (lambda p: p.write_bytes(b"no image at all"), r"x\.nii\.gz: is truncated or damaged"),
        (lambda p: write_nifti(p, np.zeros((4, 4, 4, 3), dtype=np.int16)), "is not one volume"),
    ],
)
def test_unusable_nifti_files_are_named(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "x.nii.gz")
    with pytest.raises(Rejected, match=message):
        load_nifti(tmp_path / "x.nii.gz")


@pytest.mark.parametrize(
    ("place", "form", "values", "message"),
    [
        (112, "f", [np.inf], "its scale is infinite"),
        (116, "f", [-np.inf], "its scale is infinite"),
        (123, "b", [5], r"its unit of length is 5 \(xyzt_units\)"),
        (108, "f", [0], r"its voxels begin at byte 0 \(vox_offset\), within the header"),
        (280, "f", [np.nan], "its sform is not finite"),
        (80, "f", [np.nan], "its qform is not finite"),
        (256, "f", [np.nan], "its qform is not finite"),
        (70, "hh", [32, 64], "holds complex numbers"),
    ],
)
def test_nifti_headers_that_cannot_be(tmp_path: Path, place: int, form: str, values: list[float], message: str) -> None:
    """Without these checks each is read in silence, or ends a whole preparation with another program's error."""
    path = write_nifti(tmp_path / "x.nii", chest())
    content = bytearray(_two_forms(path, affine()).read_bytes())
    struct.pack_into(f"<{form}", content, place, *values)
    path.write_bytes(content + bytes(len(content)))
    with pytest.raises(Rejected, match=rf"x\.nii: {message}"):
        load_nifti(path)


@pytest.mark.parametrize("suffix", [".mhd", ".mha"])
def test_metaimage_has_the_same_world_as_nifti(tmp_path: Path, suffix: str) -> None:
    write_nifti(tmp_path / "x.nii.gz", chest())
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "x.nii.gz")), str(tmp_path / f"x{suffix}"))
    values, matrix = load_metaimage(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(values, chest())
    np.testing.assert_allclose(matrix, affine(), atol=1e-6)


def _metaimage(path: Path, orientation: str, matrix: bool = False) -> None:
    """A header as written by hand: without TransformMatrix unless ``matrix``."""
    volume = chest()
    lines = ["ObjectType = Image", "NDims = 3", f"DimSize = {' '.join(map(str, volume.shape))}"]
    lines += ["ElementSpacing = 5 5 5", "ElementType = MET_SHORT"]
    lines += ["TransformMatrix = 1 0 0 0 1 0 0 0 1"] if matrix else []
    lines += [f"AnatomicalOrientation = {orientation}"] if orientation else []
    path.write_text("\n".join([*lines, "ElementDataFile = x.raw", ""]))
    path.with_name("x.raw").write_bytes(volume.tobytes(order="F"))


@pytest.mark.parametrize(
    ("orientation", "matrix", "axes"),
    [
        ("RAI", False, "LPS"),
        ("RAI", True, "LPS"),
        ("LPI", False, "RAS"),
        ("ASL", False, "PIR"),
        ("", True, "LPS"),
        ("???", True, "LPS"),
    ],
)
def test_metaimage_is_turned_as_its_header_says(tmp_path: Path, orientation: str, matrix: bool, axes: str) -> None:
    _metaimage(tmp_path / "x.mhd", orientation, matrix)
    values, found = load_metaimage(tmp_path / "x.mhd")
    assert "".join(nib.aff2axcodes(found)) == axes
    np.testing.assert_array_equal(values, chest())


@pytest.mark.parametrize("orientation", ["", "???", "RRI", "RA"])
def test_metaimage_without_orientation_is_refused(tmp_path: Path, orientation: str) -> None:
    _metaimage(tmp_path / "x.mhd", orientation)
    with pytest.raises(Rejected, match=r"x\.mhd has no orientation .*: left and right are unknown; write one"):
        load_metaimage(tmp_path / "x.mhd")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ElementSpacing = 5 5 5\n", "", "its ElementSpacing is absent"),
        ("5 5 5", "-5 5 5", "its ElementSpacing is -5 5 5, it must be mm above 0"),
        ("5 5 5", "0 5 5", "its ElementSpacing is 0 5 5"),
        ("5 5 5", "nan 5 5", "its ElementSpacing is nan 5 5"),
        ("5 5 5", "x 5 5", "a damaged header"),
        ("80 64 48", "80.0 64 48", "a damaged header"),
        (
            "ElementDataFile",
            "AnatomicalOrientation = LPI\nElementDataFile",
            "name different directions: left and right",
        ),
        (
            "ElementDataFile",
            "AnatomicalOrientation = ARI\nElementDataFile",
            "name different directions: left and right",
        ),
        ("ElementType", "HeaderSize = 160\nElementType", "is truncated"),
    ],
)
def test_metaimage_headers_that_cannot_be(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "x.mhd"
    _metaimage(path, "", matrix=True)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(Rejected, match=rf"x\.mhd.* {message}|x\.mhd {message}"):
        load_metaimage(path)


def _two_forms(path: Path, qform: np.ndarray) -> Path:
    image = nib.Nifti1Image(chest(), affine())
    image.set_sform(affine(), 1)
    image.set_qform(qform, 1)
    nib.save(image, path)
    return path


def test_qform_and_sform_that_place_voxels_apart_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moved = affine()
    moved[2, 3] += 12
    _, matrix = load_nifti(_two_forms(tmp_path / "x.nii.gz", moved))
    np.testing.assert_allclose(matrix, affine())
    assert "x.nii.gz: its sform and qform place voxels up to 12 mm apart: the sform is used" in caplog.text
    caplog.clear()
    load_nifti(_two_forms(tmp_path / "x.nii.gz", affine()))
    assert not caplog.text


def test_qform_that_mirrors_the_sform_is_refused(tmp_path: Path) -> None:
    mirrored = affine() @ np.diag([-1, 1, 1, 1])
    with pytest.raises(Rejected, match=r"x\.nii\.gz: its sform says RAS, its qform LAS: left and right are unknown"):
        load_nifti(_two_forms(tmp_path / "x.nii.gz", mirrored))


def test_metaimage_without_its_data(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(chest()), str(tmp_path / "x.mhd"))
    (tmp_path / "x.raw").unlink()
    with pytest.raises(Rejected, match=r"x\.mhd or its data file is missing"):
        load_metaimage(tmp_path / "x.mhd")


def test_hu_facts() -> None:
    facts = check_hu(chest())
    assert facts["air_hu"] == pytest.approx(-1000, abs=6)
    assert facts["tissue_hu"] == pytest.approx(20, abs=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.astype(np.int32) + 1024, "no air and no lung .* rescale missing"),
        (lambda v: v / 1000.0, "no air and no lung"),
        (lambda v: v.astype(np.int32) * 2 + 1000, "no air and no lung|soft tissue measures"),
        (lambda v: v.astype(np.int32) - 90, "air measures"),
        (lambda v: v.astype(np.int32) + 120, "soft tissue measures 14"),
        (lambda v: np.full(v.shape, -3000), "hardly any value"),
        (lambda v: np.full(v.shape, -1000), "no soft tissue"),
    ],
)
def test_values_that_are_not_hu(change, message: str) -> None:
    with pytest.raises(Rejected, match=message):
        check_hu(change(chest()))


def test_grid_limits_use_the_slice_axis() -> None:
    turned = affine()[:, [2, 0, 1, 3]]
    turned[:3, 0] *= 1.6
    shape = (48, 80, 64)
    facts = grid_facts(shape, turned)
    assert (facts["coverage_mm"], facts["slice_mm"]) == (384, 8)
    check_grid(facts, 8.0, 200)
    with pytest.raises(Rejected, match="8 mm apart, max_slice_mm is 5"):
        check_grid(facts, 5.0, 200)
    with pytest.raises(Rejected, match="384 mm only, min_coverage_mm is 400"):
        check_grid(facts, 8.0, 400)


@pytest.mark.parametrize("shape", [(1, 80, 64, 48), (80, 1, 64, 48)])
def test_an_axis_of_one_among_the_first_three_is_not_passed_over(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """The affine speaks of the first three axes: without one of them it would mean others."""
    path = write_nifti(tmp_path / "x.nii.gz", chest().reshape(shape))
    with pytest.raises(Rejected, match="is not one volume"):
        load_nifti(path)


def test_a_check_sum_that_does_not_fit_is_found(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "x.nii.gz", chest())
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(Rejected, match=r"x\.nii\.gz is truncated or damaged \(CRC check failed"):
        load_nifti(path)


@pytest.mark.parametrize(("written", "called"), [("y.nii", "x.nii.gz"), ("y.nii.gz", "x.nii")])
def test_a_suffix_that_lies_is_said(tmp_path: Path, written: str, called: str) -> None:
    write_nifti(tmp_path / written, chest()).rename(tmp_path / called)
    with pytest.raises(Rejected, match=r"or its name is wrong: it is (not )?compressed by gzip"):
        load_nifti(tmp_path / called)


def test_a_scaled_file_takes_four_bytes_a_voxel(tmp_path: Path) -> None:
    image = nib.Nifti1Image(chest().astype(np.uint8), affine())
    image.header.set_slope_inter(2.5, -1000)
    nib.save(image, tmp_path / "x.nii")
    values, _ = load_nifti(tmp_path / "x.nii")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, chest().astype(np.uint8) * np.float32(2.5) - 1000)


def test_values_that_wrapped_round_are_not_hu() -> None:
    """Padding of -2000 read as 16 bits without sign."""
    volume = chest().astype(np.int32)
    volume[:8, :8] = 63536
    with pytest.raises(Rejected, match="did 16 bits wrap round"):
        check_hu(volume)


@pytest.mark.parametrize("spacing", [(700.0, 700.0, 5.0), (0.05, 0.05, 5.0), (1.0, 1.0, 5000.0)])
def test_a_scan_that_fits_no_person_is_refused_before_memory_is_taken(spacing: tuple[float, float, float]) -> None:
    facts = grid_facts((512, 512, 60), np.diag([*spacing, 1.0]))
    with pytest.raises(Rejected, match="are its voxel sizes in mm"):
        check_grid(facts, 1e4, 200.0)


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize(("size", "wrong"), [("79 64 48", True), ("80 64 41", True), ("80 64 48", False)])
def test_metaimage_with_voxels_left_over(tmp_path: Path, suffix: str, size: str, wrong: bool) -> None:
    path = tmp_path / f"x{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(chest().transpose(2, 1, 0)), str(path))
    path.write_bytes(path.read_bytes().replace(b"DimSize = 80 64 48", f"DimSize = {size}".encode()))
    if not wrong:
        assert load_metaimage(path)[0].shape == (80, 64, 48)
        return
    with pytest.raises(Rejected, match=r"bytes are left over .* read askew"):
        load_metaimage(path)
