"""Reading datalists and mixing cohorts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from custom.data.datalist import load_cases, mixing_weights, write_fold_datalists
from tests.ct_samples import write_nifti


def test_an_optional_cohort_has_no_cases() -> None:
    assert load_cases(None, "training") == []


def test_phantoms_get_their_share_of_the_draws() -> None:
    weights = mixing_weights(10, 40, 0.25)
    assert len(weights) == 50 and sum(weights) == pytest.approx(1)
    assert sum(weights[10:]) == pytest.approx(0.25) and len(set(weights[:10])) == len(set(weights[10:])) == 1
    assert mixing_weights(4, 0, 0.25) == [0.25] * 4


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="phantom_prob must lie between 0 and 1"):
        mixing_weights(1, 1, share)


def test_folds_part_patients_not_scans(tmp_path: Path) -> None:
    (tmp_path / "ct.nii.gz").touch()
    cases = [{"case": f"{n}", "patient": p, "label": "ct.nii.gz"} for n, p in enumerate(["a", "b", "a", "c", "b", "d"])]
    (tmp_path / "list.json").write_text(json.dumps({"training": cases}))
    assert [case["fold"] for case in load_cases(tmp_path / "list.json", "training", folds=3)] == [0, 1, 0, 2, 1, 0]
    assert "fold" not in load_cases(tmp_path / "list.json", "training")[0]


def test_a_datalist_without_a_fold_lacks_its_patients_alone(tmp_path: Path) -> None:
    (tmp_path / "ct.nii.gz").touch()
    cases = [{"case": f"{n}", "patient": p, "label": "ct.nii.gz"} for n, p in enumerate(["a", "b", "a", "c", "d"])]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": cases, "test": cases[:1], "numTraining": 5}))
    written = write_fold_datalists(path, 2)
    assert [file.name for file in written] == ["list_without_fold0.json", "list_without_fold1.json"]
    assert [[case["case"] for case in load_cases(file, "training")] for file in written] == [
        ["1", "4"],
        ["0", "2", "3"],
    ]
    assert [len(load_cases(file, "test")) for file in written] == [1, 1]
    with pytest.raises(ValueError, match="fold 4 has none or all"):
        write_fold_datalists(path, 5)


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_nan_slice_is_found_before_training(tmp_path: Path, part: str) -> None:
    values = np.zeros((4, 4, 4), dtype=np.float32)
    write_nifti(tmp_path / "good.nii.gz", values)
    values[:, :, 2] = np.nan
    write_nifti(tmp_path / "bad.nii.gz", values)
    cases = [{"case": "a", "label": "good.nii.gz"}, {"case": "b", "label": "good.nii.gz", "source": "bad.nii.gz"}]
    (tmp_path / "list.json").write_text(json.dumps({part: cases}))
    with pytest.raises(ValueError, match=r"bad\.nii\.gz has 16 voxels that are NaN or infinite; repair it, or take"):
        load_cases(tmp_path / "list.json", part)
