"""Comparisons that are refused before the first reconstruction."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from custom.benchmark.comparison import compare
from custom.geometry import Geometry
from tests.custom.benchmark.tiny_benchmark import write_methods, write_toy_bundle


def _no_test(cohort: Path, bundle: Path) -> dict[str, Any]:
    cohort.write_text(json.dumps({**json.loads(cohort.read_text()), "test": []}))
    return {}


def _other_grid(cohort: Path, bundle: Path, case: str = "case3") -> dict[str, Any]:
    label = cohort.parent / f"{case}.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.diag([40.0, 40, 40, 1])), label)
    return {}


def _other_cube(cohort: Path, bundle: Path) -> dict[str, Any]:
    geometry = Geometry.load(cohort.parent / "case3.json")
    moved = Geometry(geometry.views, geometry.detector_shape, geometry.grid, (5.0, 6.0, 27.0))
    moved.save(cohort.parent / "case3.json")
    return {}


def _no_weights(cohort: Path, bundle: Path) -> dict[str, Any]:
    (bundle / "models/model.pt").unlink()
    return {}


def _argument(**values: Any) -> Callable[[Path, Path], dict[str, Any]]:
    return lambda cohort, bundle: values


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_no_test, ValueError, r"no cases under 'test'; it has \['training'\]"),
        (_argument(part="validation"), ValueError, "no cases under 'validation'"),
        (
            _other_grid,
            ValueError,
            r"case3.nii.gz: a label of \(8, 8, 8\) voxels .* but .*case2.nii.gz has \(16, 16, 16\)",
        ),
        (_other_cube, ValueError, r"case3.json: the isocentre is 20 mm from the centre of .*case3.nii.gz"),
        (
            partial(_other_grid, case="case1"),
            ValueError,
            r"method 'mean training CT': .*case1.nii.gz: a label of \(8, 8, 8\)",
        ),
        (_no_weights, FileNotFoundError, r"method 'mine': .*model.pt: the bundle .*toy has no such checkpoint"),
        (_argument(metrics="psnr_range,psnr"), ValueError, r"unknown metric \['psnr'\]; known are psnr_range"),
        (_argument(views="2,3"), ValueError, "unknown view set '3'; known are '1', '2'"),
        (_argument(cases="case2,case9"), ValueError, "no case 'case9'; it has case2, case3"),
        (_argument(size=20), ValueError, "size must lie between 11 .* and 16, got 20"),
        (_argument(size=8), ValueError, "size must lie between 11 .* and 16, got 8"),
        (_argument(hu_window=(0.0, 0.0)), ValueError, "hu_window must be two finite numbers"),
        (_argument(reference="theirs"), ValueError, "no row 'theirs' to compare with; there are 'mean training CT'"),
        (_argument(views="1"), ValueError, "no method is to be run on 1"),
        (_argument(device="tpu9"), ValueError, "device 'tpu9' cannot be used"),
        (_argument(cone_datalist="none.json"), FileNotFoundError, "none.json: no such datalist"),
    ],
)
def test_bad_input_is_said_before_the_first_reconstruction(
    cohort: Path,
    tmp_path: Path,
    change: Callable[[Path, Path], dict[str, Any]],
    error: type[Exception],
    message: str,
) -> None:
    bundle = write_toy_bundle(tmp_path)
    mean = {"simple": "mean_training_ct", "view_sets": ["2"]}
    methods = write_methods(tmp_path, mean, {"name": "mine", "bundle": str(bundle), "view_sets": ["2"]})
    options = change(cohort, bundle)
    with pytest.raises(error, match=message):
        compare(str(cohort), str(methods), str(tmp_path / "out"), **{"metrics": "mae_hu", **options})
    assert not (tmp_path / "out").exists()
