"""Intervals and moved views from radiographs to files: what is written, or why not."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.cli import ExitCode
from custom.dicom.write_map import why_no_map
from custom.geometry import ViewRow
from custom.models import Model, load_model
from custom.radiographs import read_radiographs
from custom.reconstruct import reconstruct
from custom.trust import CheckResult, Verdict
from custom.trust.calibrated_intervals import CalibratedIntervals
from custom.trust.measure_intervals import MeasureInterval
from custom.trust.voxel_intervals import TISSUES, VoxelIntervals
from tests.custom.dicom.stored_volumes import read_ct_series, read_uncertainty_map
from tests.custom.reconstruct.dx_pair import write_pair
from tests.custom.reconstruct.only_check import the_only_check
from tests.fewview_command import fewview_ct

AS_USUAL = CheckResult("population", Verdict.PASS, 0.1, 1.0, 2.0, "As usual.")


def known_intervals(patients: int = 20) -> CalibratedIntervals:
    """Ten HU to either side, and depths that are right to a tenth."""
    rows = tuple((10.0,) for _ in range(3))
    below = tuple((-10.0,) for _ in range(3))
    factor = dict.fromkeys(("outside", *TISSUES), 2.0)
    depth = MeasureInterval(0.0, math.log(1.1), 50.0, 200.0, patients)
    voxels = VoxelIntervals((0.0,), (), below, rows, factor, 0.85)
    return CalibratedIntervals(0.9, patients, (20.0,) * 3, ((0.0, 90.0),), 0, None, voxels, {"frontal_depth_mm": depth})


def limits_of(views: str) -> Mock:
    """Thresholds with `known_intervals` of these views."""
    return Mock(intervals={views: known_intervals()}, of=lambda beam, count: ({}, views))


@pytest.mark.parametrize("views", ["parallel 2", "cone 2"])
def test_intervals_are_written_or_a_reason(
    folder: Path, case: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: str
) -> None:
    pytest.importorskip("highdicom")
    thresholds = the_only_check(monkeypatch, AS_USUAL, tmp_path, limits_of(views))
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


@pytest.mark.parametrize("kind", ["samples", "intervals"])
def test_without_highdicom_all_but_the_dicom_maps_is_written_and_said(
    folder: Path, case: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, kind: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "highdicom", None)
    output, options = tmp_path / "out", {"geometry": case["geometry"]}
    if kind == "samples":
        options |= {"model": folder / "ldm", "samples": 2}
        names = ["uncertainty"]
    else:
        thresholds = the_only_check(monkeypatch, AS_USUAL, tmp_path, limits_of("parallel 2"))
        options |= {"model": folder / "inr.pt", "thresholds": thresholds}
        names = ["interval_lower", "interval_upper"]
    reconstruct([case["image"]], output=output, **options)
    record = json.loads((output / "result.json").read_text())
    expected = f"Not written: {', '.join(f'{name}.dcm' for name in names)} ("
    said = [warning for warning in record["warnings"] if warning.startswith(expected)]
    assert len(said) == 1 and str(why_no_map()) in said[0]
    assert [entry.getMessage() for entry in caplog.records if "Not written" in entry.getMessage()] == said
    assert expected in (output / "report.html").read_text(encoding="utf-8")
    assert {"ct.nii.gz", "ct/", "report.html", *(f"{name}.nii.gz" for name in names)} <= set(record["files"])
    np.testing.assert_array_equal(read_ct_series(output / "ct")[0], np.asarray(nib.load(output / "ct.nii.gz").dataobj))
    assert not list(output.glob("*.dcm"))


def test_dicom_that_is_asked_for_is_refused_without_highdicom_before_the_network_runs(
    folder: Path, case: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "highdicom", None)
    ran = Mock(side_effect=AssertionError("the network ran"))
    monkeypatch.setattr(Model, "samples", ran)
    words = ["reconstruct", case["image"], "--geometry", case["geometry"], "--output", str(tmp_path / "out")]
    assert fewview_ct(*words, "--model", folder / "ldm", "--samples", 2, "--dicom") == ExitCode.BAD_INPUT
    assert not ran.called
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: --dicom: {why_no_map()}") and "\n" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [0.0, -5.0, float("nan")])
def test_a_width_to_hide_must_be_one(folder: Path, case: dict[str, str], width: float) -> None:
    with pytest.raises(ValueError, match="grey_wider_than_hu must be a positive number"):
        reconstruct([case["image"]], model=folder / "inr.pt", grey_wider_than_hu=width)


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
    assert sentence in record["warnings"] and "Where the radiographs were taken" in page
    assert "towards the picture" in page
    plain = json.loads((tmp_path / "stated/result.json").read_text())
    assert plain["poses"] is None and plain["settings"]["refine_poses"] is None
    assert "Where the radiographs were taken" not in (tmp_path / "stated/report.html").read_text(encoding="utf-8")


def test_poses_that_cannot_be_known_are_said(folder: Path, case: dict[str, str], tmp_path: Path) -> None:
    options: dict[str, Any] = {"geometry": case["geometry"], "model": folder / "inr.pt", "dicom": False}
    found = reconstruct([case["image"]], output=tmp_path / "out", refine_poses=True, **options)
    assert found.hu_sha256 == reconstruct([case["image"]], **options).hu_sha256
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert record["poses"]["why_not"] == "two radiographs of parallel beam agree at any angle"
    assert any("No position could be refined: two radiographs of par" in warning for warning in record["warnings"])
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Where the radiographs were taken" in page and "Angle taken" not in page
