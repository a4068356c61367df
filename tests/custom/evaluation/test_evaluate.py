"""Evaluation of files and folders of volumes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom.evaluation.evaluate import evaluate, load_hu, pair_cases, resample_to
from custom.metrics.tables import read_csv

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
AFFINE[:3, 3] = (-30, 10, 5)


def volume() -> np.ndarray:
    values = np.full((16, 18, 14), -1000, dtype=np.int16)
    values[3:13, 3:15, 1:13] = 40
    values[5:8, 5:10, 3:11] = -800
    return values


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def test_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "a.nii.gz", volume())
    pred = write(tmp_path / "p.nii.gz", volume() + np.int16(20))
    evaluate(str(pred), str(truth), str(tmp_path / "out"))
    (row,) = read_csv(tmp_path / "out" / "metrics.csv")
    assert row["case"] == "a"
    assert row["mae_hu"] == pytest.approx(20)
    assert row["psnr_range"] == pytest.approx(40)
    assert (tmp_path / "out" / "figures" / "a.png").is_file()
    assert "40.00" in capsys.readouterr().out


def test_folder_against_a_prepared_cohort_uses_its_patients(tmp_path: Path) -> None:
    entries = []
    for index, patient in enumerate(("P1", "P1", "P2")):
        write(tmp_path / "cohort" / "ct" / f"c{index}.nii.gz", volume())
        write(tmp_path / "preds" / f"c{index}.nii.gz", volume() + np.int16(10 * (index + 1)))
        entries.append({"case": f"c{index}", "patient": patient, "label": f"ct/c{index}.nii.gz"})
    datalist = {"name": "x", "training": entries[:1], "test": entries[1:]}
    (tmp_path / "cohort" / "datalist.json").write_text(json.dumps(datalist))
    evaluate(str(tmp_path / "preds"), str(tmp_path / "cohort"), str(tmp_path / "out"), figures=False)
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["summary"]["per_patient"]["P1"]["mae_hu"] == pytest.approx(15)
    assert content["summary"]["metrics"]["mae_hu"]["mean"] == pytest.approx(22.5)
    assert not (tmp_path / "out" / "figures").exists()


def test_axes_may_be_stored_the_other_way_round(tmp_path: Path) -> None:
    flipped = AFFINE.copy()
    flipped[0, 0] = -2
    flipped[0, 3] = AFFINE[0, 3] + 2 * 15
    truth = write(tmp_path / "a.nii.gz", volume())
    pred = write(tmp_path / "p.nii.gz", volume()[::-1].copy(), flipped)
    evaluate(str(pred), str(truth), str(tmp_path), figures=False)
    assert read_csv(tmp_path / "metrics.csv")[0]["mae_hu"] == 0


def test_another_grid_is_refused_or_resampled(tmp_path: Path) -> None:
    truth = write(tmp_path / "a.nii.gz", volume())
    moved = AFFINE.copy()
    moved[0, 3] -= 2
    pred = write(tmp_path / "p.nii.gz", np.pad(volume(), [(1, 0), (0, 0), (0, 0)], constant_values=-1000), moved)
    with pytest.raises(ValueError, match=r"p\.nii\.gz .* different grids; give --resample"):
        evaluate(str(pred), str(truth), str(tmp_path))
    evaluate(str(pred), str(truth), str(tmp_path), resample=True, figures=False)
    assert read_csv(tmp_path / "metrics.csv")[0]["mae_hu"] == pytest.approx(0, abs=1e-4)
    shifted = write(tmp_path / "s.nii.gz", volume(), moved)
    with pytest.raises(ValueError, match="different grids"):
        evaluate(str(shifted), str(truth), str(tmp_path))


def test_resampling_follows_the_affines() -> None:
    x, y, z = np.meshgrid(*map(np.arange, (9, 10, 11)), indexing="ij")
    world = np.stack([2 * x - 30, 2 * y + 10, 3 * z + 5])
    ramp = (world[0] + 2 * world[1] - world[2]).astype(np.float32)
    target = np.diag([1.0, 1.5, 2.0, 1.0])
    target[:3, 3] = (-28, 12, 9)
    found = resample_to(ramp, AFFINE, (4, 5, 6), target)
    i, j, k = np.meshgrid(*map(np.arange, (4, 5, 6)), indexing="ij")
    assert found == pytest.approx((i - 28) + 2 * (1.5 * j + 12) - (2 * k + 9), abs=1e-3)
    assert resample_to(ramp, AFFINE, (1, 1, 1), np.diag([1.0, 1, 1, 1]))[0, 0, 0] == -1000


def test_bad_input_names_the_file(tmp_path: Path) -> None:
    truth = write(tmp_path / "truths" / "a.nii.gz", volume())
    write(tmp_path / "preds" / "b.nii.gz", volume())
    with pytest.raises(FileNotFoundError, match="none"):
        pair_cases(tmp_path / "none", truth)
    with pytest.raises(ValueError, match="no volume for b; it has a"):
        pair_cases(tmp_path / "preds", tmp_path / "truths")
    with pytest.raises(ValueError, match="two files or two folders"):
        pair_cases(tmp_path / "preds", truth)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no NIfTI volume"):
        pair_cases(tmp_path / "empty", tmp_path / "truths")
    holed = volume().astype(np.float32)
    holed[0, 0, 0] = np.nan
    pred = write(tmp_path / "nan.nii.gz", holed)
    with pytest.raises(ValueError, match=r"nan\.nii\.gz has 1 voxels"):
        evaluate(str(pred), str(truth), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    torn = tmp_path / "torn.nii.gz"
    torn.write_bytes(truth.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"torn\.nii\.gz is truncated or damaged"):
        load_hu(torn)
    (tmp_path / "text.nii").write_text("no volume")
    with pytest.raises(ValueError, match=r"text\.nii: .*not a NIfTI file"):
        load_hu(tmp_path / "text.nii")
    with pytest.raises(ValueError, match="is not one volume"):
        load_hu(write(tmp_path / "four.nii.gz", np.zeros((3, 3, 3, 2))))


def _other_units(path: Path) -> None:
    image = nib.Nifti1Image(volume(), np.diag([1e-3, 1e-3, 1e-3, 1.0]) @ AFFINE)
    image.header.set_xyzt_units("meter")
    nib.save(image, path)


def _mirrored_qform(path: Path) -> None:
    image = nib.Nifti1Image(volume(), AFFINE)
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ AFFINE, 1)
    nib.save(image, path)


def _no_orientation(path: Path) -> None:
    image = nib.Nifti1Image(volume(), AFFINE)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)


def _colours(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((16, 18, 14), [("R", "u1"), ("G", "u1"), ("B", "u1")]), AFFINE), path)


def _cut_off(path: Path) -> None:
    write(path, np.random.default_rng(0).integers(-900, 900, (16, 18, 14)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:4000])


BAD = [
    (_mirrored_qform, "left and right are unknown"),
    (_no_orientation, "left and right are unknown"),
    (_colours, "is not one volume"),
    (_cut_off, "is truncated or damaged"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_volumes_that_prepare_refuses_are_refused(tmp_path: Path, make, message: str) -> None:
    """Each was compared in silence, left for right, or ended with another program's error."""
    make(tmp_path / "x.nii.gz")
    truth = write(tmp_path / "t.nii.gz", volume())
    for pair in ((tmp_path / "x.nii.gz", truth), (truth, tmp_path / "x.nii.gz")):
        with pytest.raises(ValueError, match=rf"{tmp_path}/x\.nii\.gz.*{message}"):
            evaluate(*map(str, pair), str(tmp_path / "out"), figures=False)


def test_units_of_the_header_count(tmp_path: Path) -> None:
    _other_units(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(load_hu(tmp_path / "x.nii.gz")[1], AFFINE, atol=1e-4)


def test_what_is_not_in_hu_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_hu(write(tmp_path / "x.nii.gz", volume() + np.int16(1024)))
    assert "x.nii.gz: is it a CT in HU? Its values run from 24 to 1064" in caplog.text
    assert "x.nii.gz: the scan is 32 x 36 x 42 mm large, which no chest is" in caplog.text


def test_an_axis_without_end_takes_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii.gz", np.zeros((5000, 12, 12), np.int16))
    with pytest.raises(ValueError, match=r"x\.nii\.gz: SSIM takes at most 4096 voxels along each axis"):
        evaluate(str(path), str(path), str(tmp_path / "out"), figures=False)
