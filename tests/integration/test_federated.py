"""Two sites in NVFLARE's simulator train inr_recon on patients of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from custom.core.checkpoints import load_checkpoint
from custom.core.tensor_files import load_tensors
from tests.bundles.tiny_cohort import COARSE_OVERRIDES, NETWORK_OVERRIDES, TRAIN_OVERRIDES, make_cohort
from tests.bundles.workflow import ROOT, stored

pytestmark = pytest.mark.integration

SITES = {"site-1": ("t1", 3), "site-2": ("t2", 1)}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def trained(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training of two rounds; site-1 takes three steps in each, site-2 one."""
    pytest.importorskip("nvflare", reason="the extra 'federated' is not installed")
    folder, files = tmp_path_factory.mktemp("federated"), []
    network = {key: value for key, value in NETWORK_OVERRIDES.items() if "#fine_" not in key}
    for seed, (name, (case, steps)) in enumerate(SITES.items()):
        content = json.loads(datalist.read_text())
        content["training"] = [entry for entry in content["training"] if entry["case"] == case]
        own = datalist.with_name(f"{name}.json")
        own.write_text(json.dumps(content))
        overrides: dict[str, Any] = {**TRAIN_OVERRIDES, **COARSE_OVERRIDES, **network, "prior_folds": 0, "seed": seed}
        overrides |= {"smallest_detector_shape": [8, 8], "iterations_per_epoch": steps, "data_list_file": str(own)}
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps(overrides))
    command = [sys.executable, str(ROOT / "scripts/federated/simulate.py"), str(folder / "out"), *map(str, files)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment, cwd=folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return folder / "out"


def test_the_global_weights_are_the_weighted_mean_of_what_the_sites_sent(trained: Path) -> None:
    first, last = load_tensors(trained / "first_weights.pt"), load_tensors(trained / "global_weights.pt")
    assert first.keys() == last.keys()
    sent = [load_tensors(trained / name / "sent_1.pt") for name in SITES]
    assert [one["steps"] for one in sent] == [3, 1]
    for name, value in last.items():
        mean = (3 * sent[0]["weights"][name].double() + sent[1]["weights"][name].double()) / 4
        torch.testing.assert_close(torch.as_tensor(value).double(), mean, rtol=1e-5, atol=1e-7)
    moved = [name for name in first if not torch.equal(first[name], torch.as_tensor(last[name]))]
    assert len(moved) > len(first) / 2
    second = [load_tensors(trained / name / "sent_0.pt")["weights"] for name in SITES]
    assert any(not torch.equal(second[0][name], sent[0]["weights"][name]) for name in first), "two rounds"


def test_no_statistics_of_patients_leave_a_site(trained: Path) -> None:
    for path in (*trained.rglob("sent_*.pt"), trained / "global_weights.pt", *trained.rglob("FL_global_model.pt")):
        content = load_tensors(path)
        names = content.get("weights", content.get("model", content))
        assert names and not any("prior" in name for name in names), path
    priors = [load_checkpoint(trained / name / "model.pt").network().prior.mean for name in SITES]  # type: ignore
    assert all(float(mean.std()) > 0.01 for mean in priors)  # type: ignore[operator, arg-type]
    assert not torch.equal(*priors), "each has its own"  # type: ignore[call-overload]


def test_reconstruct_accepts_the_result(trained: Path, datalist: Path, tmp_path: Path) -> None:
    files = stored(datalist)
    command = [sys.executable, "-c", "from custom.cli import main; main()", "reconstruct", files["image"]]
    command += ["--geometry", files["geometry"], "--model", str(trained / "site-1/model.pt")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--noreport", "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode in (0, 3, 4), (done.stdout + done.stderr)[-3000:]
    assert list((tmp_path / "out").rglob("*.nii.gz"))
