"""Metrics as files and terminal tables."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from custom.metrics.tables import (
    cohort_table,
    format_value,
    metric_label,
    read_csv,
    write_csv,
    write_metrics,
)


def rows(count: int) -> list[dict[str, object]]:
    return [
        {"case": f"c{i}", "patient": f"p{i}", "psnr_range": 20.0 + i, "ssim": 0.5 + i / 10, "mae_hu_bone": math.nan}
        for i in range(count)
    ]


def render(count: int) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(cohort_table(rows(count), ["psnr_range", "ssim", "mae_hu_bone", "rmse_hu"]))
    return console.export_text()


def test_csv_round_trip_keeps_numbers_and_gaps(tmp_path: Path) -> None:
    written = [*rows(2), {"case": "x, y", "patient": "7", "psnr_range": math.inf}]
    read = read_csv(write_csv(written, tmp_path / "deep" / "metrics.csv"))
    assert [row["case"] for row in read] == ["c0", "c1", "x, y"]
    assert read[2]["patient"] == "7"
    assert read[2]["psnr_range"] == math.inf
    assert math.isnan(read[0]["mae_hu_bone"])
    assert read[1]["ssim"] == 0.6
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_csv(tmp_path / "none.csv")


def test_write_metrics_gives_both_files(tmp_path: Path) -> None:
    summary = write_metrics(rows(6), tmp_path, "two_views", views=2)
    content = json.loads((tmp_path / "two_views.json").read_text())
    assert content["views"] == 2
    assert content["summary"]["metrics"]["psnr_range"]["ci95"] == list(summary["metrics"]["psnr_range"]["ci95"])
    assert len(read_csv(tmp_path / "two_views.csv")) == 6


def test_table_shows_every_case_and_an_interval_only_from_five_on() -> None:
    few, many = render(3), render(5)
    assert "PSNR [dB]" in few
    assert "MAE bone [HU]" in few
    assert "RMSE" not in few
    assert all(f"c{i}" in few for i in range(3))
    assert "22.00" in few
    assert "interval" not in few
    assert "95% interval" in many
    assert " to " in many
    assert "mean" not in render(1)


def test_values_and_labels() -> None:
    assert format_value("psnr_range", 21.237) == "21.24"
    assert format_value("ssim", 0.51234) == "0.512"
    assert format_value("mae_hu", 71.26) == "71.3"
    assert format_value("mae_hu", math.nan) == "–"
    assert format_value("psnr_range", math.inf) == "∞"
    assert metric_label("rmse_hu_soft_tissue") == "RMSE soft tissue [HU]"
    assert metric_label("mae_hu") == "MAE [HU]"
    assert metric_label("dose_error") == "dose_error"
