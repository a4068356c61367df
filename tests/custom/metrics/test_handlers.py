"""Metric handlers inside a MONAI evaluator."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from custom.metrics.handlers import CaseMetricsWriter, volume_metrics
from custom.metrics.tables import read_csv

ERRORS_HU = (100.0, 200.0, 400.0)


def run(tmp_path: Path, named: bool = True, decollate: bool = True, scale: float = 1.0, in_hu: bool = False) -> dict:
    cases = []
    for index, error in enumerate(ERRORS_HU):
        case = {"image": torch.full((1, 12, 12, 12), error / 1000 * scale), "label": torch.zeros(1, 12, 12, 12)}
        cases.append(case | ({"case": f"c{index}", "patient": f"p{index}"} if named else {}))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases), batch_size=2),
        network=torch.nn.Identity(),
        key_val_metric=volume_metrics(["psnr_range"], in_hu=in_hu),
        additional_metrics=volume_metrics(["mae_hu"], in_hu=in_hu),
        val_handlers=[CaseMetricsWriter(tmp_path, context={"views": 2}, in_hu=in_hu)],
        decollate=decollate,
    )
    evaluator.run()
    return evaluator.state.metrics


@pytest.mark.parametrize("decollate", [True, False])
def test_every_case_is_written_by_name(tmp_path: Path, decollate: bool) -> None:
    metrics = run(tmp_path, decollate=decollate)
    rows = read_csv(tmp_path / "metrics.csv")
    assert [row["case"] for row in rows] == ["c0", "c1", "c2"]
    assert [row["mae_hu"] for row in rows] == pytest.approx(ERRORS_HU)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["views"] == 2
    assert content["hu_window"] == [-1000, 1000]
    assert content["summary"]["metrics"]["mae_hu"]["ci95"] is None
    assert content["cases"][1]["psnr_range"] == pytest.approx(20.0)
    assert metrics["mae_hu"] == pytest.approx(sum(ERRORS_HU) / 3)
    assert metrics["psnr_range"] == pytest.approx(
        sum(20 * math.log10(2000 / error) for error in ERRORS_HU) / 3, rel=1e-5
    )


def test_cases_without_a_name_are_numbered(tmp_path: Path) -> None:
    run(tmp_path, named=False)
    assert [row["case"] for row in read_csv(tmp_path / "metrics.csv")] == ["rank0_0000", "rank0_0001", "rank0_0002"]


def test_volumes_in_hu(tmp_path: Path) -> None:
    assert run(tmp_path, scale=1000, in_hu=True)["mae_hu"] == pytest.approx(sum(ERRORS_HU) / 3)


def test_unknown_metric_is_named() -> None:
    with pytest.raises(ValueError, match="nosuch"):
        volume_metrics(["nosuch"])
