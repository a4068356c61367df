"""prepare, simulate, latents and benchmark give on a Dask cluster the files that they give here."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from custom.benchmark import benchmark_page
from custom.benchmark.comparison import compare
from custom.core.checkpoints import save_checkpoint
from custom.core.files import sha256_file
from custom.data.augmentation import RandThoraxAugment
from custom.data.prepare import prepare
from custom.data.simulate import simulate
from custom.training.latent_dataset import write_latents
from tests.bundles.tiny_cohort import make_cohort
from tests.ct_samples import SPACING, chest, write_nifti, write_series
from tests.custom.benchmark.tiny_benchmark import write_cohort, write_methods, write_toy_bundle
from tests.custom.networks.tiny_diffusion import GRID, acquisition, autoencoder, mean_network

SOURCE = GRID.padded((2, 1, 0))


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("cohort"))


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def doubled(case: dict[str, Any]) -> dict[str, Any]:
    """A loading that does something: the CT of a case whose values are half of it."""
    return {**case, "source": case["source"] * 2}


def latents(folder: Path, checkpoint: Path, scheduler: str | None) -> None:
    generator = torch.Generator().manual_seed(3)
    cases = [{"source": torch.rand(1, 24, 22, 20, generator=generator) * 500 - 400, "fold": f} for f in (0, 1)]
    augment = RandThoraxAugment(SOURCE.shape, SOURCE.spacing_mm, GRID.spacing_mm)
    arguments = (folder, cases, [0.5, 0.5], augment, checkpoint, SOURCE, 5)
    options: dict[str, Any] = {"radiographs": acquisition(SOURCE), "means": [checkpoint.with_name("mean.pt")]}
    write_latents(*arguments, loading=doubled, scheduler=scheduler, **options)  # type: ignore[arg-type]


def both(run: Callable[[Path, str | None], object], folder: Path, scheduler: str) -> dict[str, str]:
    """What a command writes, which must be the same here and on Dask."""
    run(folder / "here", None)
    run(folder / "dask", scheduler)
    assert files(folder / "here") == files(folder / "dask")
    return files(folder / "here")


def test_prepare(scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate("abc"):
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", chest(seed=seed))
    write_series(tmp_path / "in" / "d", chest(seed=7), "9", PatientID="PD")
    write_nifti(tmp_path / "in" / "flat.nii.gz", chest()[:, :, :3])
    monkeypatch.chdir(tmp_path)  # relative paths mean the same on a worker
    options: dict[str, Any] = {"size": 16, "spacing_mm": SPACING, "workers": 1}
    found = both(lambda output, address: prepare("in", str(output), scheduler=address, **options), tmp_path, scheduler)
    assert sum(name.startswith("ct/") for name in found) == 4
    with open(tmp_path / "dask/rejected.csv", newline="") as stream:
        assert [row["source"] for row in csv.DictReader(stream)] == ["flat.nii.gz"]


def test_simulate(scheduler: str, tmp_path: Path, datalist: Path) -> None:
    run = partial(simulate, datalist, angles_deg=(0.0, 90.0), photons=1e4)
    found = both(lambda output, address: run(output, scheduler=address), tmp_path, scheduler)
    assert sum(name.endswith(".nii.gz") for name in found) >= 2
    content = json.loads(datalist.read_text())
    content["training"][0]["source"] = "gone.nii.gz"
    broken = datalist.with_name("broken.json")
    broken.write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=r"gone\.nii\.gz: the datalist names this CT"):
        simulate(broken, tmp_path / "broken", scheduler=scheduler)


def test_latents(scheduler: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "vqgan.pt", autoencoder())
    mean_network(tmp_path / "mean.pt", 1)
    found = both(lambda output, address: latents(output, checkpoint, address), tmp_path, scheduler)
    assert sum(name.endswith(".pt") for name in found) == 5


def test_benchmark(scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the seconds and megabytes, which are measured; a method that fails is a row that says so."""
    monkeypatch.setattr(benchmark_page, "method_boxplots", lambda rows, path, metric, groups: None)
    cohort, bundle = write_cohort(tmp_path), write_toy_bundle(tmp_path)
    sirt = {"simple": "sirt", "options": {"iterations": 3}}
    methods = write_methods(tmp_path, "mean_training_ct", sirt, {"name": "mine", "bundle": str(bundle)})
    results = []
    for name, address in (("here", None), ("dask", scheduler)):
        options: dict[str, Any] = {"metrics": "mae_hu,ssim", "montages": 0, "scheduler": address}
        compare(str(cohort), str(methods), str(tmp_path / name), **options)
        found = {}
        for path in (tmp_path / name / "results").rglob("*.json"):
            content = json.loads(path.read_text())
            for row in content["rows"]:
                row.pop("seconds", None), row.pop("memory_mb", None)
            found[str(path.relative_to(tmp_path / name))] = content
        results.append(found)
    assert results[0] == results[1]
    statuses = [row["status"] for content in results[1].values() for row in content["rows"]]
    assert sorted(statuses) == ["done"] * 10 + ["not supported"] * 2
