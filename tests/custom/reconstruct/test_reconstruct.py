"""From radiographs to the output folder: what is in it, what it depends on, and what is refused before long work."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from custom.cli import ExitCode
from custom.cli.reconstruct_command import command
from custom.core.files import sha256_file
from custom.dicom.write_ct import read_ct_series
from custom.dicom.write_map import read_uncertainty_map
from custom.geometry import ViewRow
from custom.models import Model, load_model, save_volume
from custom.radiographs import read_radiographs
from custom.reconstruct import hu_sha256, pipeline, reconstruct
from custom.trust import CheckResult, Verdict
from custom.trust.calibrated_intervals import CalibratedIntervals
from custom.trust.measure_intervals import MeasureInterval
from custom.trust.voxel_intervals import TISSUES, VoxelIntervals
from tests.custom.benchmark.tiny_benchmark import GRID, ISOCENTER
from tests.custom.reconstruct.dx_pair import write_pair


def the_only_check(monkeypatch: pytest.MonkeyPatch, check: CheckResult, tmp_path: Path) -> str:
    """Checks that find this alone; the name of their thresholds' file."""
    monkeypatch.setattr(pipeline, "run_checks", lambda evidence, thresholds: [check])
    monkeypatch.setattr(pipeline.Thresholds, "load", classmethod(lambda cls, path: Mock(intervals={})))
    (tmp_path / "thresholds.json").write_text("{}")
    return str(tmp_path / "thresholds.json")


def refuse_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: Any) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(Model, "mean", run)
    monkeypatch.setattr(Model, "samples", run)


# --- what is written ---


def test_one_volume_in_every_form(folder: Path, case: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    found = reconstruct([case["image"]], geometry=case["geometry"], model=folder / "inr.pt", output=output)
    assert found.folder == output and found.std is None and found.samples == []
    assert sorted(p.name for p in output.iterdir()) == ["ct", "ct.nii.gz", "report.html", "result.json"]
    assert [p.name for p in output.parent.iterdir()] == ["out"]
    written = nib.load(output / "ct.nii.gz")
    truth = nib.load(case["label"])
    assert written.get_data_dtype() == np.int16
    np.testing.assert_allclose(written.affine, truth.affine)
    series, affine = read_ct_series(output / "ct")
    np.testing.assert_allclose(affine, truth.affine, atol=1e-3)
    record = json.loads((output / "result.json").read_text())
    for volume in (np.asarray(written.dataobj), series, found.hu):
        assert hu_sha256(volume) == record["volume"]["hu_sha256"] == found.hu_sha256
    assert record["format"] == "fewview-ct reconstruction 1" and record["software"].startswith("fewview-ct ")
    assert record["model"]["sha256"] == sha256_file(folder / "inr.pt")
    assert record["settings"]["threads"] == torch.get_num_threads() and record["settings"]["seed"] == 0
    hashes = {name: sha256_file(output / name) for name in ("ct.nii.gz", "report.html")}
    listed = subprocess.run("LC_ALL=C sha256sum *", shell=True, cwd=output / "ct", capture_output=True, check=True)
    hashes["ct/"] = hashlib.sha256(listed.stdout).hexdigest()
    assert record["files"] == hashes and hashes["ct/"] in (output / "report.html").read_text(encoding="utf-8")
    assert set(record["seconds"]) == {"read", "reconstruct", "check", "write"}
    first, second = record["radiographs"]
    assert first["sha256"] == second["sha256"] == sha256_file(case["image"])
    assert np.allclose([first["view"], second["view"]], found.views)
    assert first["metadata"]["angle_deg"]["value"] == 0 and first["metadata"]["angle_deg"]["origin"] == "geometry file"
    assert record["volume"]["isocenter_mm"] == list(ISOCENTER)


def test_the_hash_is_of_the_values_in_ras_order() -> None:
    volume = torch.arange(24).reshape(2, 3, 4)
    import struct

    expected = hashlib.sha256(b"".join(struct.pack("<h", value) for value in range(24))).hexdigest()
    assert hu_sha256(volume.to(torch.int16)) == hu_sha256(volume.numpy().astype(">i4")) == expected
    assert hu_sha256(volume.flip(0)) != expected


def test_samples_give_a_mean_and_its_uncertainty(folder: Path, case: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    from custom.dicom.write_map import read_uncertainty_map

    options: dict[str, Any] = {"geometry": case["geometry"], "model": folder / "ldm", "samples": 3, "seed": 4}
    found = reconstruct([case["image"]], output=tmp_path / "out", **options)
    volumes = [np.asarray(nib.load(tmp_path / f"out/samples/sample_{i:03d}.nii.gz").dataobj) for i in range(3)]
    mean, std = (np.asarray(nib.load(tmp_path / "out" / name).dataobj) for name in ("ct.nii.gz", "uncertainty.nii.gz"))
    np.testing.assert_allclose(mean, np.mean(volumes, axis=0), atol=1)
    np.testing.assert_allclose(std, np.std(volumes, axis=0, ddof=1), atol=1)
    assert std.dtype == np.float32 and std.max() > 1
    stored, _ = read_uncertainty_map(tmp_path / "out/uncertainty.dcm")
    np.testing.assert_allclose(stored, std, atol=1e-4)
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert {"uncertainty.nii.gz", "uncertainty.dcm", "samples/sample_002.nii.gz"} <= set(record["files"])
    model = load_model(folder / "ldm")
    expected = [sample.round() for sample in model.samples(found.image, found.views, 3, 4)]
    assert all(torch.equal(a.float(), b) for a, b in zip(found.samples, expected, strict=True))
    again = reconstruct([case["image"]], **options)
    assert again.hu_sha256 == found.hu_sha256 and again.folder is None
    assert reconstruct([case["image"]], **{**options, "seed": 5}).hu_sha256 != found.hu_sha256


def known_intervals(patients: int = 20) -> CalibratedIntervals:
    """Ten HU to either side, and depths that are right to a tenth."""
    rows = tuple((10.0,) for _ in range(3))
    below = tuple((-10.0,) for _ in range(3))
    factor = dict.fromkeys(("outside", *TISSUES), 2.0)
    depth = MeasureInterval(0.0, math.log(1.1), 50.0, 200.0, patients)
    voxels = VoxelIntervals((0.0,), (), below, rows, factor, 0.85)
    return CalibratedIntervals(0.9, patients, (20.0,) * 3, ((0.0, 90.0),), 0, None, voxels, {"frontal_depth_mm": depth})


@pytest.mark.parametrize("views", ["parallel 2", "cone 2"])
def test_intervals_are_written_or_a_reason(
    folder: Path, case: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: str
) -> None:
    check = CheckResult("population", Verdict.PASS, 0.1, 1.0, 2.0, "As usual.")
    thresholds = the_only_check(monkeypatch, check, tmp_path)
    limits = Mock(intervals={views: known_intervals()}, groups={views: {}})
    monkeypatch.setattr(pipeline.Thresholds, "load", classmethod(lambda cls, path: limits))
    output, options = tmp_path / "out", {"geometry": case["geometry"], "model": folder / "inr.pt"}
    found = reconstruct([case["image"]], output=output, thresholds=thresholds, grey_wider_than_hu=39.0, **options)
    record = json.loads((output / "result.json").read_text())
    page = (output / "report.html").read_text(encoding="utf-8")
    assert found.intervals is not None
    if views == "cone 2":  # these radiographs are of parallel beam
        assert "parallel 2) were not calibrated" in record["intervals"]["abstained"]
        assert "were not calibrated" in page and not list(output.glob("interval_*")) + list(output.glob("wider*"))
        return
    names = [f"interval_{end}.{kind}" for end in ("lower", "upper") for kind in ("nii.gz", "dcm")]
    assert {*names, "wider.nii.gz"} <= set(record["files"])
    hu = found.hu.numpy()
    lower, upper = (np.asarray(nib.load(output / f"interval_{end}.nii.gz").dataobj) for end in ("lower", "upper"))
    np.testing.assert_array_equal(lower, np.clip(hu - 20, *found.model.hu_window))
    np.testing.assert_array_equal(upper, np.clip(hu + 20, *found.model.hu_window))
    np.testing.assert_allclose(read_uncertainty_map(output / "interval_lower.dcm")[0], lower, atol=0.5)
    wider = np.asarray(nib.load(output / "wider.nii.gz").dataobj)
    np.testing.assert_array_equal(wider, upper - lower > 39)
    assert "90% of patients like the 20" in record["intervals"]["basis"] and "90% of patients like the 20" in page
    depth = record["intervals"]["measures"]["frontal_depth_mm"]
    if depth["value"] is None:
        assert depth["why_not"]
    else:
        assert depth["upper"] / depth["value"] == pytest.approx(1.1)


@pytest.mark.parametrize("width", [0.0, -5.0, float("nan")])
def test_a_width_to_hide_must_be_one(folder: Path, case: dict[str, str], width: float) -> None:
    with pytest.raises(ValueError, match="grey_wider_than_hu must be a positive number"):
        reconstruct([case["image"]], model=folder / "inr.pt", grey_wider_than_hu=width)


@pytest.mark.parametrize(("dicom", "report"), [(False, True), (True, False), (False, False)])
def test_parts_can_be_left_out(folder: Path, case: dict[str, str], tmp_path: Path, dicom: bool, report: bool) -> None:
    options: dict[str, Any] = {"geometry": case["geometry"], "model": folder / "inr.pt"}
    reconstruct([case["image"]], output=tmp_path / "out", dicom=dicom, report=report, **options)
    assert ("ct/" in json.loads((tmp_path / "out/result.json").read_text())["files"]) == dicom
    assert (tmp_path / "out/ct").is_dir() == dicom and (tmp_path / "out/report.html").is_file() == report


def test_files_radiographs_and_a_loaded_model_give_the_same(folder: Path, case: dict[str, str]) -> None:
    stack = Path(case["image"])
    read = read_radiographs([stack], case["geometry"])
    expected = reconstruct([stack], geometry=case["geometry"], model=folder / "inr.pt")
    model = load_model(folder / "inr.pt")
    assert reconstruct(read, model=model).hu_sha256 == expected.hu_sha256
    assert torch.equal(expected.hu.float(), model.mean(expected.image, expected.views).round())
    one = reconstruct(read[1:], model=model)
    assert len(one.views) == 1 and one.hu_sha256 != expected.hu_sha256
    again = reconstruct([stack], geometry=case["geometry"], model=model, angles_deg=[450.0])
    assert again.hu_sha256 == one.hu_sha256
    both = reconstruct(read, model=model, angles_deg=[90, 0])
    assert [r.name for r in both.radiographs] == [read[1].name, read[0].name]


def test_overwrite_replaces_an_earlier_result(folder: Path, case: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    options: dict[str, Any] = {"geometry": case["geometry"], "model": folder / "inr.pt", "report": False}
    reconstruct([case["image"]], output=output, **options)
    with pytest.raises(FileExistsError, match="out: exists: choose another output, or pass --overwrite"):
        reconstruct([case["image"]], output=output, **options)
    reconstruct([case["image"]], output=output, overwrite=True, dicom=False, **options)
    assert not (output / "ct").exists()
    (output / "radiographs").mkdir()
    with pytest.raises(FileExistsError, match="out: holds radiographs, which is not of an earlier result"):
        reconstruct([case["image"]], output=output, overwrite=True, **options)
    assert (output / "radiographs").is_dir()


# --- DICOM ---


def test_two_dx_files_become_a_series_of_the_same_patient_and_study(folder: Path, tmp_path: Path) -> None:
    name = "Иванов^Иван=山田^太郎"
    sources = [pydicom.dcmread(path) for path in write_pair(tmp_path, patient_name=name)]
    found = reconstruct([tmp_path], model=folder / "inr.pt", output=tmp_path / "out")
    slices = [pydicom.dcmread(path) for path in (tmp_path / "out/ct").iterdir()]
    assert {str(one.PatientName) for one in slices} == {name}
    assert {one.StudyInstanceUID for one in slices} == {sources[0].StudyInstanceUID}
    assert {item.ReferencedSOPInstanceUID for item in slices[0].SourceImageSequence} == {
        source.SOPInstanceUID for source in sources
    }
    (series,) = {one.SeriesInstanceUID for one in slices}
    assert series not in {source.SeriesInstanceUID for source in sources}
    volume, _ = read_ct_series(tmp_path / "out/ct")
    assert hu_sha256(volume) == found.hu_sha256
    assert name.split("^")[0] not in (tmp_path / "out/result.json").read_text(encoding="utf-8")
    again = reconstruct(sorted(tmp_path.glob("*.dcm")), model=folder / "inr.pt", samples=0)
    assert again.hu_sha256 == found.hu_sha256


def test_a_pair_without_distances_is_refused_before_anything_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from custom.cli import command_line

    place = tmp_path / "in"
    place.mkdir()
    keywords = ["DistanceSourceToDetector", "DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor"]
    write_pair(place, drop=keywords)
    refuse_to_run(monkeypatch)
    words = ["reconstruct", str(place), "--output", str(tmp_path / "out"), "--model", str(folder / "inr.pt")]
    with pytest.raises(SystemExit) as end:
        command_line.main(words)
    error = capsys.readouterr().err
    assert end.value.code == ExitCode.BAD_INPUT and error.count("\n") == 1
    assert all(part in error for part in ("view0.dcm", "view270.dcm", "(0018,1110)", "--accept default-distances"))
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    monkeypatch.undo()
    with pytest.raises(SystemExit) as end:
        command_line.main([*words, "--accept", "default-distances", "--noreport"])
    assert end.value.code == ExitCode.DONE, capsys.readouterr().err
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert record["settings"]["accept"] == ["default-distances"]
    assert record["radiographs"][0]["metadata"]["source_to_detector_mm"] == {
        "value": 1800.0,
        "unit": "mm",
        "origin": "option",
        "where": "default-distances",
        "provenance": "option --accept default-distances",
    }


@pytest.mark.parametrize("accept", ["brightest-as-air", ["brightest-as-air"], "brightest-as-air,log-range"])
def test_accepted_assumptions_are_recorded_by_name(folder: Path, case: dict[str, str], accept: str | list[str]) -> None:
    found = reconstruct([case["image"]], geometry=case["geometry"], model=folder / "inr.pt", accept=accept)
    names = ["brightest-as-air", "log-range"]
    assert found.settings["accept"] == (names if "," in accept else names[:1])


# --- trust ---


def test_the_record_is_json_where_a_statistic_is_no_number(
    folder: Path, case: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = CheckResult("geometry", Verdict.REJECT, float("inf"), 0.0, 0.5, "A cone beam, and parallel was trained.")
    thresholds = the_only_check(monkeypatch, check, tmp_path)
    options: dict[str, Any] = {"geometry": case["geometry"], "model": folder / "inr.pt"}
    reconstruct([case["image"]], output=tmp_path / "out", thresholds=thresholds, **options)
    text = (tmp_path / "out" / "result.json").read_text()
    (found,) = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["checks"]
    assert found["statistic"] is None and found["verdict"] == "REJECT"
    assert "∞" in (tmp_path / "out" / "report.html").read_text()


def test_without_thresholds_nobody_says_pass(folder: Path, case: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    found = reconstruct([case["image"]], geometry=case["geometry"], model=folder / "inr.pt", output=output)
    assert found.verdict is Verdict.REVIEW and found.checks == []
    assert any("nothing was checked" in warning for warning in found.warnings)
    record, page = (output / "result.json").read_text(), (output / "report.html").read_text(encoding="utf-8")
    assert json.loads(record)["verdict"] == "REVIEW" and "</span>REVIEW</strong><p>Nothing was checked" in page
    assert f"Warnings ({len(json.loads(record)['warnings'])})" in page


@pytest.mark.parametrize(
    ("verdict", "code"),
    [(Verdict.PASS, ExitCode.DONE), (Verdict.REVIEW, ExitCode.TO_REVIEW), (Verdict.REJECT, ExitCode.REJECTED)],
)
def test_the_verdict_is_recorded_and_ends_a_strict_command(
    folder: Path, case: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, code: int
) -> None:
    check = CheckResult("rows", verdict, 0.3, 0.1, 0.2, "The radiographs do not fit each other.")
    thresholds = the_only_check(monkeypatch, check, tmp_path)
    options: dict[str, Any] = {"geometry": case["geometry"], "model": str(folder / "inr.pt"), "thresholds": thresholds}
    assert command(case["image"], output=str(tmp_path / "a"), strict=True, **options) == code
    assert command(case["image"], output=str(tmp_path / "b"), **options) == ExitCode.DONE
    record = json.loads((tmp_path / "a/result.json").read_text())
    assert record["verdict"] == verdict.value == record["checks"][0]["verdict"]
    assert (record["checks"][0]["statistic"], record["checks"][0]["reject_above"]) == (0.3, 0.2)
    said = any("do not fit each other" in warning for warning in record["warnings"])
    assert said == (verdict is not Verdict.PASS)
    assert verdict.value in (tmp_path / "a/report.html").read_text(encoding="utf-8")


# --- where the views stood ---


def test_moved_views_are_used_recorded_and_said(folder: Path, tmp_path: Path) -> None:
    """A lateral plate that stood 10 mm higher than its file says."""
    place = tmp_path / "in"
    place.mkdir()
    write_pair(place)
    read = read_radiographs([place])
    row = ViewRow.from_tensor(read[1].view)
    up = 10.0 * row.v_step / row.v_step.norm()
    wrong = replace(row, head=row.head + up, detector_center=row.detector_center + up).to_tensor()
    options: dict[str, Any] = {"model": folder / "inr.pt", "dicom": False}
    right = reconstruct(read, **options)
    given = [read[0], replace(read[1], view=wrong)]
    as_stated = reconstruct(given, output=tmp_path / "stated", **options)
    found = reconstruct(given, output=tmp_path / "out", refine_poses=True, pose_tolerance_mm=30.0, **options)
    assert as_stated.poses is None and found.poses is not None
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert record["settings"]["refine_poses"] == {"angle_deg": 12.0, "shift_mm": 30.0, "distance": 0.05}
    poses = record["poses"]
    first, second = poses["views"]
    assert not any(first["moved"].values()) and second["moved"]["along_columns_mm"] == pytest.approx(-10, abs=2)
    assert second["gain"] > 10 and poses["disagreement_after"] < poses["disagreement_before"]
    assert np.allclose(second["stated_view"], as_stated.views[1]) and poses["why_not"] is None
    assert np.allclose(record["radiographs"][1]["view"], found.views[1])
    height = [float(one.views[1, 2]) for one in (right, as_stated, found)]  # of the source
    assert abs(height[1] - height[0]) == pytest.approx(10, abs=0.1) and abs(height[2] - height[0]) < 2
    assert torch.equal(found.hu.float(), load_model(folder / "inr.pt").mean(found.image, found.views).round())
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    (sentence,) = [one for one in poses["in_words"] if "was taken as if from" in one]
    assert sentence in record["warnings"] and "Where the views stood" in page and "towards the picture" in page
    plain = json.loads((tmp_path / "stated/result.json").read_text())
    assert plain["poses"] is None and plain["settings"]["refine_poses"] is None
    assert "Where the views stood" not in (tmp_path / "stated/report.html").read_text(encoding="utf-8")


def test_poses_that_cannot_be_known_are_said(folder: Path, case: dict[str, str], tmp_path: Path) -> None:
    options: dict[str, Any] = {"geometry": case["geometry"], "model": folder / "inr.pt", "dicom": False}
    found = reconstruct([case["image"]], output=tmp_path / "out", refine_poses=True, **options)
    assert found.hu_sha256 == reconstruct([case["image"]], **options).hu_sha256
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert record["poses"]["why_not"] == "two parallel views agree at any angle"
    assert any("No position could be refined: two parallel views" in warning for warning in record["warnings"])
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Where the views stood" in page and "Angle taken" not in page


# --- what is refused, before long work ---


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"samples": 1}, ValueError, "samples must be 0 or at least 2"),
        ({"samples": -2}, ValueError, "samples must be 0 or at least 2"),
        ({"samples": 4}, ValueError, "inr gives one volume and draws no samples: take --model ldm_recon"),
        ({"model": "nothing"}, FileNotFoundError, "nothing: no such model: pass inr_recon"),
        ({"device": "quantum"}, ValueError, "device 'quantum' cannot be used"),
        ({"radiographs": []}, ValueError, "no radiographs: name files or folders"),
        ({"radiographs": ["none.dcm"]}, FileNotFoundError, r"none\.dcm: no such file or folder"),
        ({"geometry": "none.json"}, FileNotFoundError, r"none\.json: no such file"),
        ({"angles_deg": [45]}, ValueError, "no radiograph at 45 degrees; there are 0, 90"),
        ({"angles_deg": []}, ValueError, "angles_deg names no angle"),
        ({"angles_deg": [0, 90, 0.001]}, ValueError, "angles_deg 0, 90, 0.001 names a radiograph twice"),
        ({"refine_poses": True, "pose_tolerance_mm": 0.0}, ValueError, "tolerance shift_mm must be above 0"),
        ({"accept": ["everything"]}, ValueError, "--accept everything is not known"),
        ({"thresholds": "none.json"}, FileNotFoundError, r"none\.json"),
        ({"mixed": True}, ValueError, "files, or radiographs that were read already, not both"),
        ({"read": True}, ValueError, "a geometry is for files"),
    ],
)
def test_errors_come_before_the_network_runs_and_leave_nothing(
    folder: Path,
    case: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    refuse_to_run(monkeypatch)
    options: dict[str, Any] = {"geometry": case["geometry"], "model": str(folder / "inr.pt"), **changes}
    given: list[Any] = options.pop("radiographs", [case["image"]])
    if options.pop("mixed", False):
        given = [*given, *read_radiographs(given, case["geometry"])]
    if options.pop("read", False):
        given = list(read_radiographs(given, case["geometry"]))
    with pytest.raises(error, match=message):
        reconstruct(given, output=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_headers_that_no_series_can_be_made_of_are_refused_before_the_network_runs(
    folder: Path, case: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom.dataset import Dataset

    refuse_to_run(monkeypatch)
    read = read_radiographs([case["image"]], case["geometry"])
    for k, patient in enumerate(("one", "two")):
        header = Dataset()
        header.PatientID, header.StudyInstanceUID = patient, "1.2.3"
        read[k] = replace(read[k], header=header)
    with pytest.raises(ValueError):
        reconstruct(read, model=folder / "inr.pt", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_arguments_of_the_first_version_are_explained(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"have changed.*reconstruct r\.nii\.gz --geometry g\.json --output ct --model m\.pt"
    ):
        command("r.nii.gz", "g.json", "ct.nii.gz", "m.pt")
    with pytest.raises(ValueError, match="no output: pass --output DIR"):
        command("r.nii.gz")
    with pytest.raises(ValueError, match="no radiographs"):
        command(output="out")


def test_the_command_line_reads_files_and_options(
    folder: Path, case: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from custom.cli import command_line

    words = ["reconstruct", case["image"], "--geometry", case["geometry"], "--output", str(tmp_path / "out")]
    words += ["--model", str(folder / "inr.pt"), "--angles_deg", "90", "--nodicom", "--report=False", "--strict"]
    with pytest.raises(SystemExit) as end:
        command_line.main(words)
    assert end.value.code == ExitCode.TO_REVIEW, capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ct.nii.gz", "result.json"]
    with pytest.raises(SystemExit) as end:
        command_line.main([*words, "--checkpoint", "x.pt"])
    assert end.value.code == ExitCode.BAD_INPUT
    assert "--checkpoint is no longer an option of reconstruct: it is --model" in capsys.readouterr().err


# --- interrupted ---


def test_an_error_while_writing_leaves_nothing(
    folder: Path, case: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device", "report.html")

    monkeypatch.setattr("custom.reconstruct.outputs.write_report", full)
    with pytest.raises(OSError, match="No space left"):
        reconstruct([case["image"]], geometry=case["geometry"], model=folder / "inr.pt", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_output(folder: Path, case: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom custom.reconstruct import outputs, reconstruct\n"
        "def stop(*args):\n    print('writing', flush=True)\n    time.sleep(120)\n"
        "outputs.write_report = stop\nimage, geometry, model, output = sys.argv[1:]\n"
        "reconstruct([image], geometry=geometry, model=model, output=output)\n"
    )
    words = [sys.executable, "-c", code, case["image"], case["geometry"], str(folder / "inr.pt"), str(tmp_path / "out")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    assert [p.name[0] for p in tmp_path.iterdir()] == ["."]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("ct.dcm", ValueError, r"must end in \.nii"), ("file/ct.nii", OSError, r"ct\.nii.*could not be written")],
)
def test_volumes_are_written_as_nifti_or_not_at_all(
    tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=message):
        save_volume(tmp_path / name, torch.zeros(GRID.shape), GRID)


def test_equal_volumes_are_equal_files(tmp_path: Path) -> None:
    volume = torch.linspace(-1000, 1000, 16**3).reshape(GRID.shape)
    first, second = (save_volume(tmp_path / f"{i}.nii.gz", volume, GRID, ISOCENTER) for i in range(2))
    assert first.read_bytes() == second.read_bytes()
    np.testing.assert_array_equal(np.asarray(nib.load(first).dataobj), volume.round().numpy())
