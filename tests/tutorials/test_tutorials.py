"""The tutorials, followed word for word in an empty folder, with few and large voxels and an untrained network."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from custom.core.checkpoints import load_checkpoint, save_checkpoint
from custom.core.files import sha256_file
from tests.bundles.tiny_cohort import COARSE_OVERRIDES, NETWORK_OVERRIDES, TRAIN_OVERRIDES
from tests.custom.benchmark.tiny_benchmark import tiny_network
from tests.tutorials.follow import follow

PAGES = Path(__file__).resolve().parents[2] / "docs/tutorials"
#: Cubes of 16^3 voxels of 20 mm.
PREPARE = ["--size", "16", "--spacing_mm", "5", "--workers", "1"]
PHANTOM = ["--size", "32", "--spacing_mm", "10"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    level = logging.root.level
    yield tmp_path
    logging.root.setLevel(level)


def test_your_radiographs(empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    folder = empty_folder / "models/inr_recon"
    folder.mkdir(parents=True)
    files = {"model.pt": sha256_file(save_checkpoint(folder / "model.pt", tiny_network()))}
    (folder / "model.json").write_text(json.dumps({"format": "fewview-ct model 1", "name": "tiny", "files": files}))
    monkeypatch.setenv("FEWVIEW_MODELS", str(folder.parent))
    called = follow(PAGES / "your-radiographs.md", {"prepare": PREPARE}, {"[3.75, 3.75]": "[30, 30]"})
    assert len(called) == 5
    (refused,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "12 things are not known" in refused and "pa.json" in refused and "lateral.json" in refused
    for name in ("from_dicom", "from_pictures"):
        assert (empty_folder / "outputs" / name / "report.html").is_file()


def test_your_method_in_the_benchmark(empty_folder: Path) -> None:
    smaller = {"[64, 64, 64]": "[16, 16, 16]", "[5.0, 5.0, 5.0]": "[20.0, 20.0, 20.0]", "--size 64": "--size 16"}
    called = follow(PAGES / "your-method-in-the-benchmark.md", {"phantom": PHANTOM}, smaller)
    assert len(called) == 3
    rows = list(csv.DictReader((empty_folder / "outputs/mine/benchmark.csv").open()))
    names = {row["method"] for row in rows}
    assert len(rows) == 10 and len(names) == 5 and "smooth SIRT, another patient's radiographs" in names
    psnr = {name: sum(float(row["psnr_range"]) for row in rows if row["method"] == name) for name in names}
    assert psnr["smooth SIRT"] > psnr["smooth SIRT, another patient's radiographs"]
    assert len({round(value, 6) for value in psnr.values()}) == 5
    table = (empty_folder / "outputs/mine/benchmark.md").read_text()
    assert all(name in table for name in names) and (empty_folder / "outputs/mine/benchmark.html").is_file()


def test_your_cohort(empty_folder: Path) -> None:
    coarse = {**TRAIN_OVERRIDES, **COARSE_OVERRIDES}
    both = {key: value for key, value in NETWORK_OVERRIDES.items() if "fine_" not in key}
    small = {
        "phantom": PHANTOM,
        "prepare": [*PREPARE, "--cube_mm", "240", "--max_slice_mm", "10"],
        "train inr_recon": words(TRAIN_OVERRIDES | NETWORK_OVERRIDES),
        "train inr_recon --with": words(coarse | both),
        "evaluate inr_recon": words(TRAIN_OVERRIDES | NETWORK_OVERRIDES),
    }
    smaller = {"--epochs 2": "--epochs 1", "--iterations_per_epoch 50": "--iterations_per_epoch 2"}
    follow(PAGES / "your-cohort.md", small, smaller | {"--prior_members 300": "--prior_members 16"})
    weights = load_checkpoint(empty_folder / "outputs/own/models/model.pt")
    assert list(weights.network().grid.shape) == [16] * 3
    (row,) = csv.DictReader((empty_folder / "outputs/own/test/metrics.csv").open())
    assert row["case"] == "phantom_0002" and float(row["psnr_range"]) > 0
    result = json.loads((empty_folder / "outputs/own/result/result.json").read_text())
    assert result["model"]["sha256"] == sha256_file(empty_folder / "outputs/own/models/model.pt")


def words(options: dict[str, object]) -> list[str]:
    """Of a command line; what the page itself says is left out."""
    said = ("epochs", "iterations_per_epoch", "prior_members")
    return [word for key, value in options.items() if key not in said for word in (f"--{key}", str(value))]
