"""What an evaluation by samples leaves in its folder, whichever bundle has drawn them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


def assert_samples_of_both_cases(folder: Path, datalist: Path, corrected: Mapping[str, Any]) -> None:
    """Three samples from four views of e1 and e2 of the tiny cohort, with the settings `corrected` of consistency."""
    for case in ("e1", "e2"):
        summary = json.loads((folder / case / "uncertainty.json").read_text())
        assert summary["summary"]["samples"] == 3 and summary["views"] == 4
        assert summary["summary"]["variance_ratio"] > 0 and summary["reprojection_error_mm"] > 0
        assert {key: summary[key] for key in corrected} == corrected
        assert summary["sample_reprojection_error_mm"] < summary["sample_reprojection_error_mm_before"]
        rows = list(csv.DictReader((folder / case / "samples.csv").open()))
        assert [int(float(row["sample"])) for row in rows] == [0, 1, 2] and float(rows[0]["psnr_range"]) > 0
        std = nib.nifti1.load(folder / case / "std.nii.gz")
        truth = nib.nifti1.load(datalist.parent / "ct" / f"{case}.nii.gz")
        assert np.allclose(std.affine, truth.affine) and np.asarray(std.dataobj).max() > 0
        assert (folder / case / "uncertainty.png").is_file() and not (folder / case / "state.pt").exists()
    metrics = json.loads((folder / "metrics_mean.json").read_text())
    assert {row["case"] for row in metrics["cases"]} == {"e1", "e2"}
