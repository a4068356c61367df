"""A CT of samples with an atlas says that its fine structure is of other people, and how the samples were drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from custom.core.files import sha256_file, write_nifti
from custom.models.model_folder import export
from custom.reconstruct import reconstruct
from custom.sampling.atlas import WHOSE_DETAIL
from tests.custom.benchmark.tiny_benchmark import GRID


def test_samples_say_whose_detail_they_have(folder: Path, case: dict[str, str], tmp_path: Path) -> None:
    grid = GRID.padded([3, 0, 2])
    atlas = tmp_path / "mine.nii.gz"
    write_nifti(atlas, np.full((*grid.shape, 2), 125, np.uint8), grid.affine())
    model = export(str(folder / "ldm"), str(tmp_path / "model"), atlas=str(atlas))
    assert (model / "atlas.nii.gz").read_bytes() == atlas.read_bytes()
    found = reconstruct([case["image"]], geometry=case["geometry"], model=model, samples=2)
    assert found.derivation.endswith(WHOSE_DETAIL) and len(found.derivation) < 1024
    said = found.record({})["model"]
    assert said["parents"]["atlas"] == sha256_file(atlas) and said["sampling"]["steps"] == 2
    assert said["sampling"]["atlas"] == {"sha256": sha256_file(atlas), "coarse_mm": 10.0}
    one_volume = replace(found, samples=[], std=None)
    assert WHOSE_DETAIL not in one_volume.derivation and one_volume.record({})["model"]["sampling"] is None
