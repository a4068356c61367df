"""`fewview-ct simulate`: files, geometry in the CT's world, resuming, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.data.simulate import Acquisition, case_geometry, simulate, simulate_case
from custom.geometry import Geometry, pixel_coordinates
from custom.projection.radiograph_stack import load_stack
from custom.radiographs import read_radiographs

CUBE, SPACING, CORNER = 16, 20.0, np.array([-140.0, -30.0, 700.0])


def write_case(root: Path, case: str, seed: int) -> dict[str, str]:
    """A cube of 16^3 at 20 mm and a source at 10 mm with other borders; one dense voxel in both."""
    entry = {"case": case, "label": f"ct/{case}.nii.gz", "source": f"source/{case}.nii.gz"}
    hu = np.random.default_rng(seed).integers(-900, -800, (CUBE,) * 3).astype(np.int16)
    hu[4, 9, 12] = 2000
    source = np.full((40, 36, 28), -1000, np.int16)
    source[4:36, 2:34, :] = hu.repeat(2, 0).repeat(2, 1).repeat(2, 2)[:, :, 4:]
    for key, array, spacing, corner in (
        ("label", hu, SPACING, CORNER),
        ("source", source, SPACING / 2, CORNER - 5 + np.array([-40.0, -20.0, 40.0])),
    ):
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = corner
        (root / entry[key]).parent.mkdir(parents=True, exist_ok=True)
        nib.nifti1.save(nib.nifti1.Nifti1Image(array, affine), root / entry[key])
    return entry


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    root = tmp_path / "cohort"
    content = {
        "name": "two people",
        "description": "for a test",
        "training": [write_case(root, "a0001", 1)],
        "validation": [],
        "test": [write_case(root, "a0002", 2)],
    }
    (root / "datalist.json").write_text(json.dumps(content))
    return root / "datalist.json"


def entries(datalist: Path) -> list[dict[str, str]]:
    return [e for part in json.loads(datalist.read_text()).values() if isinstance(part, list) for e in part]


@pytest.mark.parametrize("beam", ["parallel", "cone"])
@pytest.mark.parametrize("setting", ["fine", "paper"])
def test_the_dense_voxel_lands_where_its_millimetres_say(cohort: Path, beam: str, setting: str) -> None:
    new = simulate(cohort, setting=setting, beam=beam, angles_deg=[0.0, 60.0, 90.0])
    assert new == cohort.parent / f"datalist_{setting}.json"
    for entry in entries(new):
        image, geometry = load_stack(cohort.parent / entry["image"], cohort.parent / entry["geometry"])
        assert image.shape == (3, 16, 24) and image.dtype == torch.float32
        np.testing.assert_allclose(geometry.isocenter_mm, CORNER + 7.5 * SPACING)
        np.testing.assert_allclose(geometry.affine(), nib.nifti1.load(cohort.parent / entry["label"]).affine)
        world = torch.from_numpy(CORNER + SPACING * np.array([4, 9, 12])) - torch.tensor(geometry.isocenter_mm)
        expected = pixel_coordinates(world[None].double(), geometry.views, geometry.detector_shape)[0][:, 0]
        for k in range(3):
            row, column = divmod(int(image[k].argmax()), image.shape[-1])
            assert abs(row - float(expected[k, 1])) <= 0.75 and abs(column - float(expected[k, 0])) <= 0.75


def test_files_are_nifti_with_pixel_sizes_and_a_record(cohort: Path) -> None:
    simulate(cohort, angles_deg=[0.0, 90.0], beam="cone", photons=1e5, energy_kev=60.0)
    stored = nib.nifti1.load(cohort.parent / "radiographs/fine/a0001.nii.gz")
    assert stored.shape == (24, 16, 2) and stored.get_data_dtype() == np.float32
    assert stored.header.get_zooms()[:2] == pytest.approx((30.0, 30.0)), "a voxel's size, magnified"
    record = json.loads((cohort.parent / "radiographs/fine/a0001.json").read_text())["simulation"]
    assert record["setting"] == "fine" and record["photons"] == 1e5 and record["energy_kev"] == 60.0
    assert record["presets"]["oversampling"] == 2 and len(record["ct_sha256"]) == 64


def test_what_is_there_is_kept_and_what_changed_is_made_again(cohort: Path) -> None:
    simulate(cohort, angles_deg=[0.0])
    files = {case: cohort.parent / f"radiographs/fine/{case}.nii.gz" for case in ("a0001", "a0002")}
    before = {case: (path.stat().st_mtime_ns, path.read_bytes()) for case, path in files.items()}
    # As after a run that was killed: one case lacks its geometry, which is written last.
    files["a0002"].with_name("a0002.json").unlink()
    simulate(cohort, angles_deg=[0.0])
    assert files["a0001"].stat().st_mtime_ns == before["a0001"][0]
    assert files["a0002"].stat().st_mtime_ns != before["a0002"][0]
    assert files["a0002"].read_bytes() == before["a0002"][1]
    simulate(cohort, angles_deg=[90.0])
    assert all(files[case].read_bytes() != before[case][1] for case in files)
    kept = files["a0002"].read_bytes()
    write_case(cohort.parent, "a0001", 7)
    changed = files["a0001"].read_bytes()
    simulate(cohort, angles_deg=[90.0])
    assert files["a0001"].read_bytes() != changed and files["a0002"].read_bytes() == kept
    # The same uncropped CT with its cube elsewhere: the isocentre has moved.
    changed, moved = files["a0001"].read_bytes(), cohort.parent / "ct/a0001.nii.gz"
    cube = nib.nifti1.load(moved)
    affine = cube.affine.copy()
    affine[2, 3] += 20
    nib.nifti1.save(nib.nifti1.Nifti1Image(np.asarray(cube.dataobj), affine), moved)
    simulate(cohort, angles_deg=[90.0])
    assert files["a0001"].read_bytes() != changed and files["a0002"].read_bytes() == kept
    isocenter = Geometry.load(files["a0001"].with_name("a0001.json")).isocenter_mm
    assert isocenter == pytest.approx(case_geometry(cube.shape, affine, Acquisition()).isocenter_mm)
    assert not list(cohort.parent.rglob("*.part"))


def test_noise_depends_on_the_case_and_the_seed_alone(cohort: Path) -> None:
    paths = {}
    for name, keywords in {
        "all": {},
        "one": {"parts": ["test"]},
        "other": {"seed": 1},
    }.items():
        simulate(cohort, name=name, angles_deg=[0.0], photons=1e4, **keywords)  # type: ignore[arg-type]
        paths[name] = (cohort.parent / f"radiographs/{name}/a0002.nii.gz").read_bytes()
    assert paths["all"] == paths["one"] != paths["other"]
    assert entries(cohort.parent / "datalist_one.json")[0]["case"] == "a0002"
    assert "image" not in json.loads((cohort.parent / "datalist_one.json").read_text())["training"][0]


def test_degradations_are_applied(cohort: Path) -> None:
    images = []
    for name, keywords in {"plain": {}, "scatter": {"scatter_to_primary": 0.5}, "blur": {"blur_fwhm_mm": 60.0}}.items():
        simulate(cohort, name=name, angles_deg=[0.0], parts="test", **keywords)  # type: ignore[arg-type]
        folder = cohort.parent / "radiographs" / name
        images.append(load_stack(folder / "a0002.nii.gz", folder / "a0002.json")[0])
    assert images[1].mean() < images[0].mean()
    assert images[2].max() < images[0].max()


def test_views_as_dicom_are_read_back_as_what_they_are(cohort: Path) -> None:
    settings = {
        "beam": "cone",
        "angles_deg": [270.0, 0.0, 30.0],
        "photons": 1e7,
        "detector_shape": [16, 48],
        "parts": ["test"],
    }
    (entry,) = [e for e in entries(simulate(cohort, **settings)) if "image" in e]
    stored, geometry = load_stack(cohort.parent / entry["image"], cohort.parent / entry["geometry"])
    simulate(cohort, dicom=True, **settings)
    folder = cohort.parent / "radiographs/fine/a0002"
    files = [folder / f"{angle}_degrees.dcm" for angle in (270, 0, 30)]
    assert sorted(folder.iterdir()) == sorted(files)
    read = read_radiographs(files)
    for k, radiograph in enumerate(read):
        torch.testing.assert_close(radiograph.line_integrals, stored[k], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(radiograph.view, geometry.tensor()[k].double(), atol=1e-3, rtol=1e-6)
        assert radiograph.header is not None and radiograph.header.PatientID == "a0002"
    assert len({r.header.StudyInstanceUID for r in read if r.header}) == 1
    before, kept = files[0].read_bytes(), files[2].stat().st_mtime_ns
    simulate(cohort, dicom=True, **settings)
    assert files[2].stat().st_mtime_ns == kept
    files[0].unlink()
    simulate(cohort, dicom=True, **settings)
    assert files[0].read_bytes() == before


def test_another_output_folder_points_back_to_the_cts(cohort: Path, tmp_path: Path) -> None:
    new = simulate(cohort, tmp_path / "elsewhere", name="set1", angles_deg=[0.0, 90.0])
    assert new == tmp_path / "elsewhere" / "datalist_set1.json"
    for entry in entries(new):
        assert all((new.parent / entry[key]).is_file() for key in ("label", "source", "image", "geometry"))
    assert not (cohort.parent / "radiographs").exists()


def test_in_memory_is_the_same_as_in_files(cohort: Path) -> None:
    simulate(cohort, angles_deg=[30.0], parts="test", photons=1e4)
    label, source = (nib.nifti1.load(cohort.parent / f"{kind}/a0002.nii.gz") for kind in ("ct", "source"))
    image, geometry = simulate_case(
        np.asarray(label.dataobj),
        label.affine,
        Acquisition(angles_deg=(30.0,), photons=1e4),
        np.asarray(source.dataobj),
        source.affine,
        "a0002",
    )
    stored, loaded = load_stack(
        cohort.parent / "radiographs/fine/a0002.nii.gz", cohort.parent / "radiographs/fine/a0002.json"
    )
    assert torch.equal(image, stored) and geometry == loaded


def test_radiographs_must_fit_their_geometry(cohort: Path) -> None:
    simulate(cohort, angles_deg=[0.0, 90.0], parts="test")
    folder = cohort.parent / "radiographs/fine"
    Geometry.load(folder / "a0002.json").select([0]).save(folder / "one.json")
    with pytest.raises(ValueError, match=r"a0002.nii.gz: 2 radiographs of 24 x 16 .*one.json describes 1 views"):
        load_stack(folder / "a0002.nii.gz", folder / "one.json")
    with pytest.raises(FileNotFoundError, match="no such file of radiographs"):
        load_stack(folder / "nobody.nii.gz", folder / "one.json")
    broken = np.zeros((24, 16, 1), np.float32)
    broken[0, 0, 0] = np.nan
    nib.nifti1.save(nib.nifti1.Nifti1Image(broken, np.eye(4)), folder / "nan.nii.gz")
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_stack(folder / "nan.nii.gz", folder / "one.json")


def test_bad_input(cohort: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such datalist"):
        simulate(cohort.with_name("nothing.json"))
    with pytest.raises(ValueError, match=r"has no part \['tset'\]; it has \['test', 'training', 'validation'\]"):
        simulate(cohort, parts=["tset"])
    with pytest.raises(
        ValueError, match=r"holds no cases in \['validation'\]; it holds some in \['test', 'training'\]"
    ):
        simulate(cohort, parts=["validation"])
    with pytest.raises(ValueError, match="setting must be one of"):
        simulate(cohort, setting="coarse")
    with pytest.raises(ValueError, match="energy_kev must be within"):
        simulate(cohort, energy_kev=5.0)
    with pytest.raises(ValueError, match="photons must be"):
        simulate(cohort, photons=-1.0)
    with pytest.raises(ValueError, match=r"--name .* cannot name a file"):
        simulate(cohort, name="../up")
    with pytest.raises(ValueError, match="beam must be one of"):
        simulate(cohort, beam="fan")
    with pytest.raises(ValueError, match="device 'nonsense' cannot be used"):
        simulate(cohort, device="nonsense")
    with pytest.raises(ValueError, match="no parallel beam: pass --beam cone"):
        simulate(cohort, dicom=True)
    assert not (cohort.parent / "radiographs").exists(), "all this is said before any work"
    content = json.loads(cohort.read_text())
    del content["test"][0]["source"]
    cohort.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="a0002: the datalist has no 'source'"):
        simulate(cohort, parts=["test"])
    (cohort.parent / content["training"][0]["source"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"source/a0001.nii.gz.*not there"):
        simulate(cohort, parts=["training"])
    cohort.write_text("[1, 2")
    with pytest.raises(ValueError, match="is not a JSON file"):
        simulate(cohort)
    cohort.write_text("[1, 2]")
    with pytest.raises(ValueError, match="must hold a JSON object, not a list"):
        simulate(cohort)
    cohort.write_text(json.dumps({"test": [{"label": "ct/a0001.nii.gz"}]}))
    with pytest.raises(ValueError, match="needs 'case' and 'label'"):
        simulate(cohort)


def test_what_is_there_is_judged_by_its_content(cohort: Path) -> None:
    """A file of the same name with other bytes is no radiograph of ours."""
    simulate(cohort, setting="paper", angles_deg=(0.0, 90.0))
    image = next((cohort.parent / "radiographs" / "paper").glob("*.nii.gz"))
    whole = image.read_bytes()
    image.write_bytes(whole[:-20])
    simulate(cohort, setting="paper", angles_deg=(0.0, 90.0))
    assert image.read_bytes() == whole


def _rewritten(cohort: Path, change: Callable[[nib.nifti1.Nifti1Image], nib.nifti1.Nifti1Image]) -> None:
    """All CTs of the cohort as `change` makes them."""
    for entry in entries(cohort):
        for key in ("label", "source"):
            path = cohort.parent / entry[key]
            nib.nifti1.save(change(nib.nifti1.load(path)), path)


def _in_metres(image: nib.nifti1.Nifti1Image) -> nib.nifti1.Nifti1Image:
    changed = nib.nifti1.Nifti1Image(np.asarray(image.dataobj), np.diag([1e-3, 1e-3, 1e-3, 1.0]) @ image.affine)
    changed.header.set_xyzt_units("meter")
    return changed


def _other_axes(image: nib.nifti1.Nifti1Image) -> nib.nifti1.Nifti1Image:
    return image.as_reoriented(nib.orientations.axcodes2ornt("PSL"))


def _big_endian(image: nib.nifti1.Nifti1Image) -> nib.nifti1.Nifti1Image:
    return nib.nifti1.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header.as_byteswapped(">"))


def _one_frame(image: nib.nifti1.Nifti1Image) -> nib.nifti1.Nifti1Image:
    return nib.nifti1.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine)


@pytest.mark.parametrize("change", [_in_metres, _other_axes, _big_endian, _one_frame])
@pytest.mark.parametrize("setting", ["fine", "paper"])
def test_a_ct_means_the_same_however_it_is_stored(cohort: Path, change: Callable[..., Any], setting: str) -> None:
    options = {"setting": setting, "angles_deg": [90.0], "detector_shape": (24, 32), "pixel_mm": 20.0}
    simulate(cohort, name="before", **options)
    _rewritten(cohort, change)
    simulate(cohort, name="after", **options)
    for case in ("a0001", "a0002"):
        one, other = (
            nib.nifti1.load(cohort.parent / "radiographs" / name / f"{case}.nii.gz") for name in ("before", "after")
        )
        np.testing.assert_allclose(np.asarray(one.dataobj), np.asarray(other.dataobj), rtol=1e-4, atol=1e-4)


def _mirrored_qform(image: nib.nifti1.Nifti1Image) -> nib.nifti1.Nifti1Image:
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ image.affine, 1)
    return image


def _turned(image: nib.nifti1.Nifti1Image) -> nib.nifti1.Nifti1Image:
    turn = np.array([[0.955, -0.296, 0, 0], [0.296, 0.955, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return nib.nifti1.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine)


@pytest.mark.parametrize(
    ("change", "message"), [(_mirrored_qform, "left and right are unknown"), (_turned, "must be RAS. and unrotated")]
)
def test_a_ct_that_cannot_be_placed_is_refused(cohort: Path, change: Callable[..., Any], message: str) -> None:
    _rewritten(cohort, change)
    with pytest.raises(ValueError, match=rf"a000\d\.nii\.gz.*{message}"):
        simulate(cohort, angles_deg=[90.0])


def test_one_name_for_two_cts_is_refused(cohort: Path) -> None:
    content = json.loads(cohort.read_text())
    content["test"][0]["case"] = "a0001"
    cohort.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the case 'a0001' is there twice, with other CTs"):
        simulate(cohort, angles_deg=[90.0])
