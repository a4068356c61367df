"""`fewview-ct plan` from files to files: what it writes, and what it refuses before long work starts."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from custom.core.files import read_json_object, sha256_file, write_json, write_nifti
from custom.data.sample import sample_ct
from custom.dicom.write_ct import SyntheticCT, write_ct_series
from custom.radiotherapy import PencilBeamEngine, dose_rules
from custom.reconstruct.outputs import series_sha256
from custom.reconstruct.result import FORMAT
from tests.fewview_command import fewview_ct

SEGMENTER = str(Path(__file__).resolve().parents[3] / "bundles" / "seg_guidance" / "models" / "model.pt")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pydosert") is None or importlib.util.find_spec("pymedphys") is None,
    reason="pydosert or pymedphys is not installed: pip install 'fewview-ct[radiotherapy]' (Python 3.11 or 3.12)",
)


def run(*words: object) -> int:
    return fewview_ct("plan", *words, "--segmenter", SEGMENTER)


def result_folder(
    folder: Path, verdict: str = "PASS", samples: int = 0, dicom: bool = False, intervals: Any = None
) -> Path:
    """What `fewview-ct reconstruct` would have written, with the sample patient's own CT as its volume."""
    image = nib.load(sample_ct())
    hu = np.asarray(image.dataobj)
    files = {"ct.nii.gz": hu}
    for index in range(samples):
        body = np.where(hu > -300, hu + 30 * (2 * index - 1), hu)
        files[f"samples/sample_{index:03d}.nii.gz"] = body
    for name, values in files.items():
        write_nifti(folder / name, values.astype(np.int16), image.affine)
    hashes = {name: sha256_file(folder / name) for name in files}
    if dicom:
        model = {"name": "inr_recon", "sha256": "0" * 64, "version": "1"}
        who = {"PatientName": "Müller^Jürgen", "PatientID": "PAT-7"}
        write_ct_series(SyntheticCT(hu, image.affine, [], model, "The sample patient.", who), folder / "ct")
        hashes["ct/"] = series_sha256(folder / "ct")
    content = {"format": FORMAT, "verdict": verdict, "files": hashes, "model": {"name": "inr_recon"}, "created": "now"}
    content["intervals"] = intervals
    write_json(folder / "result.json", content)
    return folder


def test_plan_on_a_reconstruction_with_samples_and_the_true_ct(tmp_path: Path) -> None:
    doses = {
        "coverage": 0.9,
        "rules": dose_rules(PencilBeamEngine().name, sha256_file(Path(SEGMENTER))),
        "templates": {"ap_pa": {"lower": 0.9731, "upper": 1.0042, "patients": 34}},
    }
    stated = {"abstained": None, "isocenter_dose": doses}
    source = result_folder(tmp_path / "result", samples=2, intervals=stated)
    assert run(source, "--output", tmp_path / "plan", "--reference", sample_ct()) == 0
    names = {path.name for path in (tmp_path / "plan").iterdir()}
    assert names == {"dose.nii.gz", "dose_on_reference.nii.gz", "plan.html", "plan.json"}
    found = read_json_object(tmp_path / "plan" / "plan.json")
    assert found["possible"] and found["verdict"] == "PASS"
    assert [one["gantry_deg"] for one in found["plan"]["fields"]] == [0.0, 180.0]
    dose = nib.load(tmp_path / "plan" / "dose.nii.gz")
    voxel = np.round(np.linalg.inv(dose.affine) @ [*found["plan"]["isocenter_mm"], 1])[:3].astype(int)
    assert float(dose.get_fdata()[tuple(voxel)]) == pytest.approx(2.0, rel=0.01)
    assert found["numbers"]["isocenter_gy"] == pytest.approx(2.0, rel=1e-4)
    # The reconstruction is the true CT here: no error in any mode, and two samples around it.
    assert set(found["modes"]) == {"delivered", "same_mu", "papers"}
    errors = found["modes"]["delivered"]["errors"]
    assert errors["isocenter_error_percent"] == pytest.approx(0, abs=1e-3) and errors["gamma_2_2_percent"] == 100
    interval = found["samples"]["intervals"]["isocenter_gy"]
    assert interval["low"] < 2.0 < interval["high"] and interval["samples"] == 2
    assert found["samples"]["true_numbers_inside"] > 0.3
    page = (tmp_path / "plan" / "plan.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page and "<script" not in page and "http://" not in page
    assert "<small><bdi>patient not named</bdi></small></h1>" in page and page.count("<bdi>not named</bdi>") == 3
    for words in ("NOT FOR TREATMENT", "Dose-volume histogram", "Fields seen from the beam", "delivered", "Research"):
        assert words in page
    assert page.count("data:image/") == 3
    dose = found["isocenter_dose"]
    assert (dose["lower_gy"], dose["upper_gy"]) == pytest.approx((2 * 0.9731, 2 * 1.0042), rel=1e-3)
    words = "200 cGy are planned; 90% of patients like the 34 that were calibrated get 194.6 to 200.9 cGy"
    assert words == dose["in_words"] and words in page
    for name, digest in found["files"].items():
        assert sha256_file(tmp_path / "plan" / name) == digest


def test_what_is_no_chest_is_a_result_with_its_reason(tmp_path: Path) -> None:
    ball = np.full((48, 48, 48), -1000, np.int16)
    ball[np.linalg.norm(np.indices(ball.shape) - 23.5, axis=0) < 18] = 30
    write_nifti(tmp_path / "ball.nii.gz", ball, np.diag([5.0, 5.0, 5.0, 1.0]))
    assert run(tmp_path / "ball.nii.gz", "--output", tmp_path / "plan", "--template", "pa") == 5
    found = read_json_object(tmp_path / "plan" / "plan.json")
    assert not found["possible"] and "not a CT of a chest" in found["reason"]
    assert {path.name for path in (tmp_path / "plan").iterdir()} == {"plan.html", "plan.json"}
    assert "No plan is possible" in (tmp_path / "plan" / "plan.html").read_text(encoding="utf-8")


def test_dicom_objects_beside_a_series_and_their_plan_in_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, first, second = result_folder(tmp_path / "result", dicom=True), tmp_path / "first", tmp_path / "second"
    assert run(source, "--output", first) == 0
    found = read_json_object(first / "plan.json")
    dose = pydicom.dcmread(first / "rtdose.dcm")
    assert float(dose.DoseGridScaling) * dose.pixel_array.max() == pytest.approx(
        float(np.asarray(nib.load(first / "dose.nii.gz").dataobj).max()), rel=1e-4
    )
    assert found["files"]["rtplan.dcm"] == sha256_file(first / "rtplan.dcm")
    assert found["isocenter_dose"]["lower_gy"] is None
    page = (first / "plan.html").read_text(encoding="utf-8")
    assert found["isocenter_dose"]["why_not"] in page
    day = pydicom.dcmread(first / "rtplan.dcm").StudyDate
    whose = f"Müller Jürgen · PAT-7 · study {day[:4]}-{day[4:6]}-{day[6:]}"
    assert f"<small><bdi>{whose}</bdi></small></h1>" in page and "<dd><bdi>PAT-7</bdi></dd>" in page
    printed = re.search(r'@top-right \{ content: "([^"]*)"', page)
    assert printed and re.sub(r"\\([0-9a-f]{6})", lambda c: chr(int(c[1], 16)), printed[1]) == f"{whose} · plan ap_pa"
    # The same plan, now as a clinic's: the same monitor units and dose; on the series itself, without objects.
    words = ["--plan", first / "rtplan.dcm", "--output", second, "--dicom", "False"]
    assert run(source / "ct", *words) == 0
    again = read_json_object(second / "plan.json")
    assert f"<bdi>{whose}</bdi>" in (second / "plan.html").read_text(encoding="utf-8"), "of a series as well"
    assert {path.name for path in second.iterdir()} == {"dose.nii.gz", "plan.html", "plan.json"}
    assert again["numbers"]["isocenter_gy"] == pytest.approx(2.0, rel=1e-3)
    assert again["isocenter_dose"] is None
    units = [[one["monitor_units"] for one in which["plan"]["fields"]] for which in (found, again)]
    assert units[0] == pytest.approx(units[1], rel=1e-6)
    capsys.readouterr()
    for words, message in (
        ([source, "--plan", first / "rtplan.dcm", "--template", "pa"], "give no --template"),
        ([source, "--plan", first / "rtdose.dcm"], "is no RT Plan"),
        ([sample_ct(), "--plan", first / "rtplan.dcm"], "--plan needs a DICOM CT series"),
        ([sample_ct(), "--dicom"], "--dicom needs a DICOM CT series"),
        ([result_folder(tmp_path / "other", dicom=True), "--plan", first / "rtplan.dcm"], "belongs to another CT"),
    ):
        assert run(*words, "--output", tmp_path / "none") == 2
        assert message in capsys.readouterr().err
    (source / "ct" / "CT_0001.dcm").write_bytes(b"")
    assert run(source, "--output", tmp_path / "none") == 2
    assert "it was changed" in capsys.readouterr().err and not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Any], str]]:
    """Words of the command and what is said of them."""
    folder = tmp_path_factory.mktemp("bad")
    rejected = result_folder(folder / "rejected", "REJECT")
    changed = result_folder(folder / "changed")
    write_nifti(changed / "ct.nii.gz", np.zeros((4, 4, 4), np.int16), np.eye(4))
    other = folder / "other"
    write_json(other / "result.json", {"format": "something else"})
    doses = {"coverage": 0.9, "rules": {}, "templates": {"ap_pa": {"lower": 1.1, "upper": 0.9, "patients": 34}}}
    limits = result_folder(folder / "limits", intervals={"abstained": None, "isocenter_dose": doses})
    write_nifti(folder / "zeros.nii.gz", np.zeros((8, 8, 8), np.int16), np.eye(4))
    (folder / "empty").mkdir()
    lost, series = result_folder(folder / "lost", samples=2), result_folder(folder / "series", dicom=True)
    (lost / "samples" / "sample_001.nii.gz").unlink()
    shutil.rmtree(series / "ct")
    verdict = result_folder(folder / "list", ["PASS"])  # type: ignore[arg-type]
    slab = np.where(np.arange(8)[:, None, None] < 4, -1000, 50) + np.zeros((8, 8, 8))
    write_nifti(folder / "metres.nii.gz", slab.astype(np.int16), np.diag([0.01, 0.01, 0.01, 1]))
    write_nifti(folder / "far.nii.gz", np.where(slab > 0, 1e30, slab).astype(np.float32), np.diag([30, 30, 30, 1.0]))
    return {
        "lost": ([lost], "sample_001.nii.gz: missing, but result.json lists it"),
        "series": ([series], "ct: missing, but result.json lists it"),
        "list": ([verdict], "verdict ['PASS'] is none of"),
        "metres": ([folder / "metres.nii.gz"], "a volume of 0.08 x 0.08 x 0.08 mm holds no chest"),
        "far": ([folder / "far.nii.gz"], "not a CT in HU"),
        "verdict": ([rejected], "verdict of this reconstruction is REJECT"),
        "changed": ([changed], "it was changed"),
        "format": ([other], "expected 'fewview-ct reconstruction 1'"),
        "limits": ([limits], "'templates.ap_pa': lower (1.1) is above upper (0.9)"),
        "no_object": ([result_folder(folder / "no_object", intervals=[1])], "'intervals' is no object"),
        "missing": ([folder / "nothing.nii.gz"], "no such file"),
        "no_hu": ([folder / "zeros.nii.gz"], "not a CT in HU"),
        "no_ct": ([folder / "empty"], "no CT was found"),
        "template": ([sample_ct(), "--template", "prostate"], "'prostate' is not known"),
        "reference": ([sample_ct(), "--reference", folder / "none.nii"], "no such file"),
        "device": ([sample_ct(), "--device", "abacus"], "device 'abacus' cannot be used"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "verdict", "changed", "format", "limits", "no_object", "missing", "no_hu", "no_ct", "template", "reference",
        "device", "lost", "series", "list", "metres", "far",
    ],
)  # fmt: skip
def test_bad_input_is_said_in_a_line_and_nothing_is_written(
    case: str, bad: dict[str, tuple[list[Any], str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = bad[case]
    assert run(*words, "--output", tmp_path / "plan") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize(("axis", "shift_mm"), [(0, 150.0), (2, 140.0)])
def test_reference_elsewhere_is_refused_and_a_rejected_result_can_be_forced(
    axis: int, shift_mm: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = result_folder(tmp_path / "result", "REJECT")
    image = nib.load(sample_ct())
    affine = image.affine.copy()
    affine[axis, 3] += shift_mm
    write_nifti(tmp_path / "moved.nii.gz", np.asarray(image.dataobj), affine)
    words = [source, "--output", tmp_path / "plan", "--reference", tmp_path / "moved.nii.gz"]
    assert run(*words, "--allow_reject") == 2
    said = capsys.readouterr().err
    assert "cannot be used" in said or "another frame or another patient" in said
    assert json.loads((source / "result.json").read_text())["verdict"] == "REJECT"


def test_a_mirrored_ct_is_planned_with_a_warning(tmp_path: Path) -> None:
    image = nib.load(sample_ct())
    mirrored = np.asarray(image.dataobj)[::-1]
    write_nifti(tmp_path / "mirrored.nii.gz", mirrored.astype(np.int16), image.affine)
    for ct, said in ((Path(sample_ct()), False), (tmp_path / "mirrored.nii.gz", True)):
        assert run(ct, "--output", tmp_path / "plan", "--overwrite") == 0
        found = read_json_object(tmp_path / "plan" / "plan.json")
        assert any("the CT may be mirrored" in text for text in found["warnings"]) == said
        assert ("the CT may be mirrored" in (tmp_path / "plan" / "plan.html").read_text()) == said
