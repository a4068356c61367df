"""A training under MLflow by MONAI's own option, as docs/how-to/train-inr.md says, into a SQLite file."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.bundles.documented import commands
from tests.bundles.tiny_cohort import NETWORK_OVERRIDES, TRAIN_OVERRIDES
from tests.bundles.workflow import ROOT, Bundle, command_line

PAGE = (ROOT / "docs/how-to/train-inr.md").read_text()


@pytest.mark.integration
def test_a_training_writes_parameters_and_metrics(datalist: Path, paths: dict[str, Any], tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    assert any(command.endswith("--tracking mlflow") for command in commands(PAGE))
    assert "sqlite:///outputs/own/eval/mlruns.db" in PAGE
    named = {"experiment_name": "chests", "run_name": "two steps", "output_dir": str(tmp_path), "tracking": "mlflow"}
    overrides = {**TRAIN_OVERRIDES, **NETWORK_OVERRIDES, **paths, **named, "epochs": 2}
    command = command_line(str(Bundle("inr_recon").configs / "train.json"), overrides)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("chests").experiment_id])
    assert run.info.run_name == "two steps" and run.info.status == "FINISHED"
    assert run.data.params["max_epochs"] == "2" and run.data.params["epoch_length"] == "2"
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert [one.step for one in losses] == [1, 2, 3, 4] and all(one.value > 0 for one in losses)
    assert [one.step for one in client.get_metric_history(run.info.run_id, "psnr_range")] == [1, 2]
