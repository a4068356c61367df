"""From radiographs to the output folder: what is in it, what it depends on, and what is refused before long work."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from custom.cli import ExitCode
from custom.cli.reconstruct_command import command
from custom.core.files import sha256_file
from custom.models import Model, load_model, save_volume
from custom.radiographs import read_radiographs
from custom.reconstruct import hu_sha256, reconstruct
from custom.trust import CheckResult, Verdict
from tests.custom.benchmark.tiny_benchmark import GRID, ISOCENTER
from tests.custom.dicom.stored_volumes import read_ct_series, read_uncertainty_map
from tests.custom.reconstruct.dx_pair import write_pair
from tests.custom.reconstruct.only_check import the_only_check
from tests.fewview_command import fewview_ct


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
    expected = hashlib.sha256(b"".join(value.to_bytes(2, "little") for value in range(24))).hexdigest()
    assert hu_sha256(volume.to(torch.int16)) == hu_sha256(volume.numpy().astype(">i4")) == expected
    assert hu_sha256(volume.flip(0)) != expected


def test_samples_give_a_mean_and_its_uncertainty(
    folder: Path, case: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("highdicom")

    options: dict[str, Any] = {"geometry": case["geometry"], "model": folder / "ldm", "samples": 3, "seed": 4}
    with caplog.at_level(logging.DEBUG, "custom.reconstruct.pipeline"):
        found = reconstruct([case["image"]], output=tmp_path / "out", **options)
    told = [entry.getMessage() for entry in caplog.records if "step: sample" in entry.getMessage()]
    assert told == [f"step: sample {number} of 3" for number in (1, 2, 3)]  # the page shows the last one
    volumes = [np.asarray(nib.load(tmp_path / f"out/samples/sample_{i:03d}.nii.gz").dataobj) for i in range(3)]
    mean, std = (np.asarray(nib.load(tmp_path / "out" / name).dataobj) for name in ("ct.nii.gz", "uncertainty.nii.gz"))
    np.testing.assert_allclose(mean, np.mean(volumes, axis=0), atol=1)
    count = len(volumes)  # of sixteen whose noises sum to zero
    squares = np.var(volumes, axis=0) * count / (count - (1 - (count - 1) / 15))
    np.testing.assert_allclose(std, np.sqrt(squares), atol=1)
    assert std.dtype == np.float32 and std.max() > 1
    assert not any("No samples" in text for text in found.warnings)
    one = reconstruct([case["image"]], **(options | {"samples": 0}))
    assert "No samples were drawn: this is the one volume of the network that" in one.warnings[-1]
    stored, _ = read_uncertainty_map(tmp_path / "out/uncertainty.dcm")
    np.testing.assert_allclose(stored, std, atol=1e-4)
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert {"uncertainty.nii.gz", "uncertainty.dcm", "samples/sample_002.nii.gz"} <= set(record["files"])
    model = load_model(folder / "ldm")
    assert record["model"]["sampling"] == model.sampling and model.sampling["atlas"] is None  # type: ignore[index]
    expected = [sample.round() for sample in model.samples(found.image, found.views, 3, 4)]
    assert all(torch.equal(a.float(), b) for a, b in zip(found.samples, expected, strict=True))
    again = reconstruct([case["image"]], **options)
    assert again.hu_sha256 == found.hu_sha256 and again.folder is None
    assert reconstruct([case["image"]], **{**options, "seed": 5}).hu_sha256 != found.hu_sha256


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
    place = tmp_path / "in"
    place.mkdir()
    keywords = ["DistanceSourceToDetector", "DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor"]
    write_pair(place, drop=keywords)
    refuse_to_run(monkeypatch)
    words = ["reconstruct", str(place), "--output", str(tmp_path / "out"), "--model", str(folder / "inr.pt")]
    assert fewview_ct(*words) == ExitCode.BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in ("view0.dcm", "view270.dcm", "(0018,1110)", "--accept default-distances"))
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    monkeypatch.undo()
    code = fewview_ct(*words, "--accept", "default-distances", "--noreport")
    assert code == ExitCode.DONE, capsys.readouterr().err
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


def test_without_thresholds_nobody_says_pass(
    folder: Path, case: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    found = reconstruct([case["image"]], geometry=case["geometry"], model=folder / "inr.pt", output=output)
    assert "REVIEW: no thresholds came with the model, so nothing was checked" in caplog.messages
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
    words = ["reconstruct", case["image"], "--geometry", case["geometry"], "--output", str(tmp_path / "out")]
    words += ["--model", str(folder / "inr.pt"), "--angles_deg", "90", "--nodicom", "--report=False", "--strict"]
    assert fewview_ct(*words) == ExitCode.TO_REVIEW, capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ct.nii.gz", "result.json"]
    assert fewview_ct(*words, "--checkpoint", "x.pt") == ExitCode.BAD_INPUT
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
