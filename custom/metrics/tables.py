"""Metrics as files (CSV, JSON) and as tables in the terminal."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from custom.core.csv_files import csv_bytes, text_of
from custom.core.files import write_bytes, write_json
from custom.metrics.image_metrics import METRIC_NAMES, summarise_cohort

__all__ = ["cohort_table", "format_value", "metric_label", "read_csv", "write_csv", "write_metrics"]

# Name in a table, and decimals that mean something.
_SHOWN = {"psnr_range": ("PSNR [dB]", 2), "psnr_4095": ("PSNR 4095 [dB]", 2), "ssim": ("SSIM", 3)}
#: Names, also where they are numbers: a patient "12", a view set "2".
TEXT_COLUMNS = ("case", "patient", "method", "views")
MAIN_METRICS = ("psnr_range", "psnr_4095", "ssim", "mae_hu", "rmse_hu")


def write_csv(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Writes one line per case; the columns are the keys in order of appearance. NaN becomes an empty field."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path = Path(path)
    known = ({key: "" if value != value else value for key, value in row.items()} for row in rows)
    write_bytes(path, csv_bytes(known, columns))
    return path


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads what `write_csv` wrote: numbers as float (an empty field as NaN), `TEXT_COLUMNS` as text."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")

    def parse(key: str, text: str) -> Any:
        if key in TEXT_COLUMNS:
            return text_of(text)
        try:
            return float(text) if text else math.nan
        except ValueError:
            return text_of(text)

    with path.open(newline="", encoding="utf-8") as lines:
        return [{key: parse(key, text or "") for key, text in row.items()} for row in csv.DictReader(lines)]


def write_metrics(
    rows: Sequence[Mapping[str, Any]], folder: str | os.PathLike[str], stem: str = "metrics", **context: Any
) -> dict[str, Any]:
    """Writes ``<stem>.csv`` (a line per case) and ``<stem>.json`` (context, cases and cohort summary).

    Args:
        rows: a mapping per case: ``case``, ``patient`` and its metrics.
        folder: where the files go; made if missing.
        stem: name of both files.
        context: what the reader has to know beside the numbers (HU window, checkpoint, number of views, ...).

    Returns:
        The cohort summary of `custom.metrics.summarise_cohort`.
    """
    summary = summarise_cohort(rows)
    write_csv(rows, Path(folder) / f"{stem}.csv")
    content = {**context, "cases": list(rows), "summary": summary}
    write_json(Path(folder) / f"{stem}.json", content, sort_keys=False)
    return summary


def metric_label(name: str) -> str:
    """How a metric is called in a table or plot, with its unit."""
    if name in _SHOWN:
        return _SHOWN[name][0]
    kind, _, region = name.partition("_hu")
    return f"{kind.upper()}{region.replace('_', ' ')} [HU]" if name in METRIC_NAMES else name


def format_value(name: str, value: float) -> str:
    """A metric with the decimals that mean something, "–" where there was nothing to measure."""
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{_SHOWN.get(name, ('', 1))[1]}f}"


def cohort_table(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str] = MAIN_METRICS,
    title: str | None = None,
    summary_rows: bool = True,
) -> Table:
    """A table for the terminal: every case, and below them mean and median; from five patients on the interval.

    Args:
        rows: a mapping per case: ``case`` (and ``patient``) and its metrics.
        names: which metrics to show, in this order; names that no row has are left out.
        title: above the table.
        summary_rows: show mean, median and interval; off where the rows are methods instead of patients.
    """
    summarised = summary_rows and len(rows) > 1
    names = [name for name in names if any(name in row for row in rows)]
    table = Table(title=None if title is None else Text(title), title_justify="left")
    table.add_column("case")
    for name in names:
        # Text, since rich takes "[dB]" in a plain string for markup.
        table.add_column(Text(metric_label(name)), justify="right")
    for index, row in enumerate(rows):
        last = index == len(rows) - 1
        cells = [format_value(name, float(row.get(name, math.nan))) for name in names]
        table.add_row(Text(str(row.get("case", row.get("patient", index)))), *cells, end_section=last and summarised)
    if not summarised:
        return table
    metrics = summarise_cohort(rows)["metrics"]
    for key in ("mean", "median"):
        table.add_row(key, *[format_value(name, metrics[name][key]) for name in names])
    if any(metrics[name]["ci95"] for name in names):
        limits = [metrics[name]["ci95"] for name in names]
        table.add_row(
            "95% interval",
            *[
                " to ".join(format_value(name, limit) for limit in pair) if pair else "–"
                for name, pair in zip(names, limits, strict=True)
            ],
        )
    return table
