"""The writer of case metrics when an evaluation is spread over processes."""

from __future__ import annotations

from pathlib import Path

import ignite.distributed as idist
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from custom.metrics.handlers import CaseMetricsWriter, volume_metrics
from custom.metrics.tables import read_csv


def evaluate_share(_local_rank: int, folder: str) -> None:
    """Each of two processes sees two of three cases: the sampler fills up with the first."""
    shares = {0: (0, 2), 1: (1, 0)}
    cases = [
        {
            "image": torch.full((1, 12, 12, 12), 0.1 * (index + 1)),
            "label": torch.zeros(1, 12, 12, 12),
            "case": f"c{index}",
            "patient": f"p{index}",
        }
        for index in shares[idist.get_rank()]
    ]
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases), batch_size=1),
        network=torch.nn.Identity(),
        key_val_metric=volume_metrics(["psnr_range"]),
        val_handlers=[CaseMetricsWriter(folder)],
    ).run()


@pytest.mark.integration
def test_cases_of_all_processes_are_written_once(tmp_path: Path) -> None:
    with idist.Parallel(backend="gloo", nproc_per_node=2) as parallel:
        parallel.run(evaluate_share, str(tmp_path))
    rows = {row["case"]: row["mae_hu"] for row in read_csv(tmp_path / "metrics.csv")}
    assert rows == pytest.approx({"c0": 100, "c1": 200, "c2": 300}, rel=1e-4)
