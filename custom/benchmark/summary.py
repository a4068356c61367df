"""Tables of a comparison: means with confidence intervals, paired tests, and what is missing and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from custom.benchmark.jobs import DONE
from custom.benchmark.null_rows import is_control
from custom.metrics import METRIC_NAMES, MIN_PATIENTS_FOR_INTERVAL, summarise_cohort
from custom.metrics.tables import format_value, metric_label

__all__ = [
    "Cell",
    "best_cells",
    "cells",
    "gaps",
    "markdown",
    "measured_names",
    "metric_name",
    "paired_tests",
    "patient_cells",
    "shown",
]

#: Metrics of which less is better; of the others more is.
_COSTS = ("seconds", "memory_mb")
#: Above so many patients the tables by patient are left to the CSV.
MOST_PATIENTS_SHOWN = 20


class Cell(NamedTuple):
    """A method on a view set.

    Attributes:
        mean: over the patients; NaN without any.
        ci95: bootstrap interval of the mean; None below five patients.
        patients: that have a value.
        missing: cases that have none.
    """

    mean: float
    ci95: tuple[float, float] | None
    patients: int
    missing: int


def measured_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was measured, in the order of the tables: image metrics, Dice, cost."""
    found = dict.fromkeys(key for row in rows for key, value in row.items() if _is_number(value))
    dice = [name for name in found if name.startswith("dice")]
    return [*(n for n in found if n in METRIC_NAMES), *dice, *(n for n in _COSTS if n in found)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def smaller_is_better(name: str) -> bool:
    return name in _COSTS or name.startswith(("mae", "rmse"))


def metric_name(name: str) -> str:
    """How a metric is called in a table, with its unit."""
    if name in _COSTS:
        return {"seconds": "time per case [s]", "memory_mb": "peak memory [MB]"}[name]
    if not name.startswith("dice"):
        return metric_label(name)
    judge, _, organ = name.partition("_")
    number = judge.removeprefix("dice")
    return "DSC" + (f" {organ.replace('_', ' ')}" if organ else "") + (f" (segmenter {number})" if number else "")


def shown(name: str, value: float) -> str:
    """A value with the decimals that mean something; nothing where there is none."""
    if math.isnan(value):
        return ""
    if name == "memory_mb":
        return f"{value:.0f}"
    return f"{value:.3f}" if name.startswith("dice") else format_value(name, value)


def with_unit(name: str, value: float) -> str:
    """A metric with its name and unit, such as "PSNR 21.16 dB"."""
    words, _, unit = metric_name(name).partition(" [")
    return f"{words} {shown(name, value)} {unit.rstrip(']')}".rstrip()


def cells(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[tuple[str, str], Cell]]:
    """Metric to (method, view set) to cell."""
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["method"], row["views"]), []).append(row)
    result: dict[str, dict[tuple[str, str], Cell]] = {name: {} for name in names}
    for key, group in grouped.items():
        done = [row for row in group if row["status"] == DONE]
        if not done:
            for name in names:
                result[name][key] = Cell(math.nan, None, 0, len(group))
            continue
        keys = ("case", "patient", *names)
        summary = summarise_cohort([{k: row.get(k, math.nan) for k in keys} for row in done])["metrics"]
        for name in names:
            one = summary[name]
            result[name][key] = Cell(one["mean"], one["ci95"], one["patients"], len(group) - len(done))
    return result


def best_cells(table: Mapping[tuple[str, str], Cell], name: str) -> set[tuple[str, str]]:
    """The best mean of every view set, where there is something to compare; controls cannot win."""
    best = set()
    for views in {key[1] for key in table}:
        here = {
            key: cell.mean
            for key, cell in table.items()
            if key[1] == views and not math.isnan(cell.mean) and not is_control(key[0])
        }
        if len(here) > 1:
            best.add((min if smaller_is_better(name) else max)(here, key=lambda key: here[key]))
    return best


def patient_cells(
    rows: Sequence[Mapping[str, Any]], name: str
) -> tuple[list[str], dict[tuple[str, str], dict[str, float]]]:
    """Patients, and (method, patient) to view set to value."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        value = row.get(name, math.nan) if row["status"] == DONE else math.nan
        values.setdefault((row["method"], row["patient"], row["views"]), []).append(value)
    table: dict[tuple[str, str], dict[str, float]] = {}
    for (method, patient, views), found in values.items():
        known = [value for value in found if not math.isnan(value)]
        table.setdefault((method, patient), {})[views] = float(np.mean(known)) if known else math.nan
    return list(dict.fromkeys(row["patient"] for row in rows)), table


def paired_tests(rows: Sequence[Mapping[str, Any]], reference: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Every method against one, patient by patient, where five or more patients have both.

    Args:
        rows: of the comparison.
        reference: name of the row that the others are compared with.
        names: metrics.

    Returns:
        A mapping per metric, view set and method: `difference` (mean of method - reference over the patients), `low`
        and `high` (its bootstrap 95% interval), `p` (Wilcoxon's signed-rank test, two-sided, exact where there are few
        patients), `p_holm` (the same, adjusted by Holm for the methods of this metric and view set) and `patients`.
    """
    tests = []
    for name in names:
        table = patient_cells(rows, name)[1]
        methods = list(dict.fromkeys(key[0] for key in table))
        for views in dict.fromkeys(row["views"] for row in rows):
            found = []
            for method in methods:
                pairs = [
                    by_views.get(views, math.nan) - table.get((reference, patient), {}).get(views, math.nan)
                    for (one, patient), by_views in table.items()
                    if one == method
                ]
                differences = np.array([pair for pair in pairs if math.isfinite(pair)])
                if method == reference or len(differences) < MIN_PATIENTS_FOR_INTERVAL:
                    continue
                summary = summarise_cohort([{"difference": float(value)} for value in differences])
                one = summary["metrics"]["difference"]
                found.append(
                    {
                        "metric": name,
                        "views": views,
                        "method": method,
                        "reference": reference,
                        "patients": len(differences),
                        "difference": one["mean"],
                        "low": one["ci95"][0],
                        "high": one["ci95"][1],
                        "p": float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0,
                    }
                )
            tests += _holm(found)
    return tests


def _holm(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With `p_holm`; Holm, "A simple sequentially rejective multiple test procedure", 1979."""
    running = 0.0
    adjusted = {}
    for rank, index in enumerate(sorted(range(len(tests)), key=lambda i: tests[i]["p"])):
        running = max(running, min(1.0, (len(tests) - rank) * tests[index]["p"]))
        adjusted[index] = running
    return [{**test, "p_holm": adjusted[index]} for index, test in enumerate(tests)]


def gaps(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What gave no volume: method, view set, for which cases, status and reason; a row for each reason."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        if row["status"] != DONE:
            key = (row["method"], row["views"], row["status"], row["error"])
            found.setdefault(key, []).append(row["case"])
    total = len({row["case"] for row in rows})
    return [
        [method, views, "all" if len(cases) == total else ", ".join(cases), status, reason]
        for (method, views, status, reason), cases in found.items()
    ]


def cell_text(name: str, cell: Cell | None) -> str:
    """The mean, its interval, and how many patients are missing."""
    if cell is None or not cell.patients:
        return ""
    text = shown(name, cell.mean)
    if cell.ci95 is not None and name not in _COSTS:
        text += f" ({shown(name, cell.ci95[0])} to {shown(name, cell.ci95[1])})"
    return text + (f" [{cell.patients} patients]" if cell.missing else "")


def metric_table(
    table: Mapping[tuple[str, str], Cell], name: str, methods: Sequence[str], columns: Sequence[str]
) -> tuple[list[list[str]], list[tuple[int, int]]]:
    """The texts of a metric's `cells`, a row for each method, and where (row, column) the best ones stand."""
    best = set() if name in _COSTS else best_cells(table, name)
    texts = [[method, *(cell_text(name, table.get((method, views))) for views in columns)] for method in methods]
    return texts, [(methods.index(method), columns.index(views) + 1) for method, views in best]


def patient_rows(
    rows: Sequence[Mapping[str, Any]], name: str, methods: Sequence[str], columns: Sequence[str]
) -> list[list[str]]:
    """A metric of every method and patient, as texts."""
    patients, table = patient_cells(rows, name)
    return [
        [method, patient, *(shown(name, table.get((method, patient), {}).get(views, math.nan)) for views in columns)]
        for method in methods
        for patient in patients
    ]


def markdown(
    rows: Sequence[Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    more: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = (),
) -> str:
    """All tables as Markdown; `more` are titles, heads and rows of others."""
    names = measured_names(rows)
    tables = cells(rows, names)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    columns = list(dict.fromkeys(row["views"] for row in rows))
    patients = len({row["patient"] for row in rows})
    lines = []
    for name in names:
        texts, best = metric_table(tables[name], name, methods, columns)
        for row, column in best:
            texts[row][column] = f"**{texts[row][column]}**"
        lines += [f"Mean {metric_name(name)} of {patients} patients, `{name}`:", "", *_head(["method", *columns])]
        lines += [*map(_line, texts), ""]
    if names and patients <= MOST_PATIENTS_SHOWN:
        lines += [f"{metric_name(names[0])} of every patient:", "", *_head(["method", "patient", *columns])]
        lines += [*map(_line, patient_rows(rows, names[0], methods, columns)), ""]
    if tests:
        lines += [f"Differences from {tests[0]['reference']}, paired by patient:", ""]
        lines += _head(["metric", "views", "method", "difference", "95% interval", "p", "p (Holm)"])
        lines += [_line(paired_texts(test)) for test in tests] + [""]
    for title, head, table_rows in more:
        lines += [f"{title}:", "", *_head(head), *map(_line, table_rows), ""]
    missing = gaps(rows)
    if missing:
        lines += ["Without a volume:", "", *_head(["method", "views", "cases", "status", "reason"])]
        lines += [*map(_line, missing), ""]
    return "\n".join(lines)


def paired_texts(test: Mapping[str, Any]) -> list[str]:
    """A paired test as the cells of a table."""
    name = test["metric"]
    numbers = [("+" if test[key] > 0 else "") + shown(name, test[key]) for key in ("difference", "low", "high")]
    interval = f"{numbers[1]} to {numbers[2]}"
    ps = [f"{test[key]:.2g}" for key in ("p", "p_holm")]
    return [metric_name(name), test["views"], test["method"], numbers[0], interval, *ps]


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
