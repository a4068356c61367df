"""What evaluation and inference leave in their folders, whichever bundle has made it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from custom.reconstruct import reconstruct
from tests.bundles.workflow import Bundle, stored


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


def assert_evaluation_sees_the_radiographs(bundle: Bundle, overrides: Mapping[str, Any], folder: Path) -> None:
    """Metrics of both test cases, and other ones from another patient's radiographs."""
    found = {}
    for shuffle in (False, True):
        output = folder / str(shuffle)
        own = {"output_dir": str(output), "shuffle_radiographs": shuffle}
        bundle.run(["train.json", "evaluate.json"], "train", **{**overrides, **own})
        found[shuffle] = json.loads((output / "metrics.json").read_text())
        assert (output / "metrics.csv").read_text().count("\n") == 3
    text = json.dumps(found[False])
    assert '"e1"' in text and '"e2"' in text and "psnr_range" in text
    assert text != json.dumps(found[True])


def assert_as_reconstruct_in_the_frame_of_the_ct(
    folder: Path, datalist: Path, model: Path, atol: float = 0.0, **options: Any
) -> None:
    """The one volume that inference has written of e1 is what `reconstruct` gives, and lies where the CT is."""
    (written,) = folder.glob("*.nii.gz")
    volume, truth = nib.nifti1.load(written), nib.nifti1.load(datalist.parent / "ct/e1.nii.gz")
    assert written.name == "e1_ct.nii.gz" and volume.get_data_dtype() == np.int16
    np.testing.assert_allclose(volume.affine, truth.affine, atol=1e-4)
    assert volume.shape == truth.shape
    files = stored(datalist)
    expected = reconstruct([files["image"]], geometry=files["geometry"], model=model, precision="fp32", **options)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)
    np.testing.assert_allclose(np.asarray(volume.dataobj), expected.hu.numpy(), rtol=0, atol=atol)


def assert_it_goes_on_where_it_stopped(bundle: Bundle, overrides: Mapping[str, Any]) -> None:
    """A training of one epoch of two steps is asked for a second one."""
    bundle.run(["train.json"], "train", **{**overrides, "epochs": 2})
    last = Path(overrides["bundle_root"]) / "models" / "checkpoint_last.pt"
    assert torch.load(last, weights_only=True)["trainer"]["iteration"] == 4
