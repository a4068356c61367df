"""The bundle `naf` as a user runs it: one fit for a patient, an evaluation over a datalist, on a tiny cohort."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from custom.core.nibabel_writer import AtomicNibabelWriter
from custom.geometry import Geometry
from tests.bundles.tiny_cohort import GRID_OVERRIDES
from tests.bundles.workflow import Bundle, refused, stored

BUNDLE = Bundle("naf")
config = BUNDLE.config
#: Every number that a 16^3 cube and a short fit need changed.
TINY: dict[str, Any] = {
    **{key: value for key, value in GRID_OVERRIDES.items() if key != "precision"},
    "steps": 60,
    "rays_per_step": 96,
    "samples_per_ray": 24,
    "check_interval": 20,
    "hash_grid#levels": 3,
    "width": 16,
}


def run(names: list[str], **overrides: Any) -> list[str]:
    return BUNDLE.run(names, "infer", **{**TINY, **overrides})


# --- the files ---


def test_the_overlay_is_small_and_replaces_what_is_there() -> None:
    assert len((BUNDLE.configs / "evaluate.json").read_text().splitlines()) <= 45
    merged = ConfigParser(config("inference.json"))
    added = {"data_list_file", "data_list_key", "shuffle_radiographs", "val_angles_deg", "keep_volumes"}
    for key in config("evaluate.json"):
        known = key.removesuffix("#_disabled_").replace("#", "::")
        assert key in added or key.startswith("_desc_") or known in merged, key


def test_the_keys_of_an_evaluation_are_those_of_the_other_bundles() -> None:
    sibling = Bundle("inr_recon")
    others = sibling.config("train.json") | sibling.config("evaluate.json")
    assert set(config("evaluate.json")) - {"keep_volumes"} <= set(others) | {
        "preprocessing", "dataset#data", "postprocessing#transforms#0", "postprocessing#transforms#1#_disabled_",
        "handlers",
    }  # fmt: skip


def test_presets_have_their_sizes() -> None:
    sizes = {}
    for preset in ("default", "paper", "fourier"):
        field = BUNDLE.parser("inference.json", preset=preset).get_parsed_content("network_def").field
        sizes[preset] = sum(p.numel() for p in field.parameters())
    assert sizes["paper"] == 14_262_438 + 4_225
    assert all(f"{size:,}" in BUNDLE.readme for size in sizes.values())


def test_network_takes_an_image_alone() -> None:
    BUNDLE.takes_an_image_alone({**TINY, "steps": 2}, [16, 24])


# --- inference and evaluation ---


@pytest.mark.parametrize("encoding", ["hash", "fourier"])
def test_one_command_fits_a_patient(datalist: Path, tmp_path: Path, encoding: str) -> None:
    out = tmp_path / "out"
    changes = {"encoding": encoding, "steps": 200 if encoding == "hash" else 5}
    assert run(["inference.json"], output_dir=str(out), **stored(datalist), **changes) == []
    assert sorted(path.name for path in out.iterdir()) == ["e1_ct.nii.gz", "e1_fit.json"]
    volume, truth = nib.nifti1.load(out / "e1_ct.nii.gz"), nib.nifti1.load(datalist.parent / "ct/e1.nii.gz")
    assert volume.get_data_dtype() == np.int16 and volume.shape == truth.shape
    np.testing.assert_allclose(volume.affine, truth.affine, atol=1e-4)
    record = json.loads((out / "e1_fit.json").read_text())
    assert record["steps"] == changes["steps"] and record["reason"] == "steps"
    if encoding == "hash":
        hu, right = np.asarray(volume.dataobj, float), np.clip(np.asarray(truth.dataobj, float), -1000, 1000)
        assert np.sqrt(np.mean((hu - right) ** 2)) < 0.6 * np.sqrt(np.mean((right - right.mean()) ** 2))


def test_a_seed_gives_the_same_volume_again(datalist: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = {"output_dir": str(tmp_path / name), "seed": seed, "angles_deg": [0, 90], "steps": 5}
        run(["inference.json"], **stored(datalist), **options)
        found.append(np.asarray(nib.nifti1.load(tmp_path / name / "e1_ct.nii.gz").dataobj))
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_evaluation_fits_every_test_patient(datalist: Path, tmp_path: Path) -> None:
    found = {}
    for shuffle in (False, True):
        out = tmp_path / str(shuffle)
        options = {"output_dir": str(out), "shuffle_radiographs": shuffle, "val_angles_deg": [0, 45, 90], "steps": 80}
        options |= {"data_list_file": str(datalist), "keep_volumes": not shuffle}
        assert run(["inference.json", "evaluate.json"], **options) == []
        found[shuffle] = json.loads((out / "metrics.json").read_text())
        written = sorted(path.name for path in out.iterdir())
        volumes = [] if shuffle else ["e1_ct.nii.gz", "e2_ct.nii.gz"]
        assert written == sorted([*volumes, "e1_fit.json", "e2_fit.json", "metrics.csv", "metrics.json"])
        assert (out / "metrics.csv").read_text().count("\n") == 3
    assert json.dumps(found[False]) != json.dumps(found[True])
    # What is measured is what is written.
    volume = np.asarray(nib.nifti1.load(tmp_path / "False/e2_ct.nii.gz").dataobj, float)
    truth = np.clip(np.asarray(nib.nifti1.load(datalist.parent / "ct/e2.nii.gz").dataobj, float), -1000, 1000)
    expected = 20 * np.log10(2000 / np.sqrt(np.mean((volume - truth) ** 2)))
    assert f'"psnr_range": {expected:.2f}'[:-1] in json.dumps(found[False])


def test_the_command_line_from_elsewhere(datalist: Path, tmp_path: Path) -> None:
    options = {**TINY, **stored(datalist), "output_dir": str(tmp_path / "out"), "angles_deg": [0, 90], "steps": 5}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        str(BUNDLE.configs / "inference.json"),
        *words,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 views" in done.stdout + done.stderr and "5 steps in" in done.stdout + done.stderr
    assert (tmp_path / "out/e1_ct.nii.gz").is_file()


# --- bad input ---


def test_what_is_wrong_is_named_before_the_fit(datalist: Path, tmp_path: Path) -> None:
    files = stored(datalist)
    fewer = tmp_path / "three.json"
    Geometry.load(files["geometry"]).select([0, 1, 2]).save(fewer)
    (tmp_path / "file").write_text("")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"geometry": str(fewer)}, "4 radiographs of"),
        ({"image": str(tmp_path / "gone.nii.gz")}, "gone.nii.gz: no such file"),
        ({"angles_deg": [10]}, "no view at 10 degrees"),
        ({"encoding": "grid"}, "encoding must be one of"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"output_dir": str(tmp_path / "file/out")}, "file"),
    ]
    for changes, message in wrong:
        with refused(message):
            run(["inference.json"], **{**files, "output_dir": str(tmp_path / "out"), "steps": 10**9, **changes})
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_evaluation_names_a_datalist_that_does_not_serve(datalist: Path, tmp_path: Path) -> None:
    wrong = {"data_list_file": str(tmp_path / "datalist.json")}, {"data_list_key": "tset"}
    for changes, message in zip(wrong, ("no such datalist", "no cases under 'tset'"), strict=True):
        options = {"data_list_file": str(datalist), "output_dir": str(tmp_path / "out"), **changes}
        with refused(message):
            run(["inference.json", "evaluate.json"], **options)


def test_a_volume_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(name: str) -> None:
        writer = AtomicNibabelWriter(output_dtype=np.int16)
        writer.set_data_array(torch.ones(1, 4, 4, 4))
        writer.set_metadata({"affine": torch.eye(4)}, resample=False)
        writer.write(tmp_path / name)

    write("whole.nii.gz")
    assert np.asarray(nib.nifti1.load(tmp_path / "whole.nii.gz").dataobj).sum() == 64

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"no space left to write .*half\.nii\.gz"):
        write("half.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.nii.gz"]
