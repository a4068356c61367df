"""Tables of plans on reconstructions: of each template and mode, by method and view set, and every breast plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from custom.benchmark.jobs import DONE
from custom.benchmark.radiotherapy_judge import PREFIX
from custom.radiotherapy import MODES, Mode, find_template
from custom.report.plan_page import MODE_WORDS

__all__ = ["Table", "radiotherapy_names", "radiotherapy_tables"]

#: Errors and their columns; of signed ones the mean of the absolute values is shown.
_ERRORS = {
    "isocenter_error_percent": "isocentre dose error [%]",
    "gamma_2_2_percent": "gamma 2/2 [%]",
    "gamma_3_3_percent": "gamma 3/3 [%]",
    "dose_mae_percent": "dose error [%]",
    "wepl_field_mm": "water-equivalent path [mm]",
    "isocenter_distance_mm": "isocentres apart [mm]",
    "monitor_units_error_percent": "monitor units error [%]",
}
#: What the two numbers of a dose mean in each mode: the one that counts, and the other one.
_PAIR: dict[Mode, tuple[str, str]] = {
    "delivered": ("delivered", "shown"),
    "same_mu": ("on the truth", "on the reconstruction"),
    "papers": ("truth", "reconstruction"),
}


class Table(NamedTuple):
    """A table of texts."""

    title: str
    head: list[str]
    rows: list[list[str]]


def radiotherapy_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of the rows that a plan gave."""
    return list(dict.fromkeys(key for row in rows for key in row if key.startswith(PREFIX)))


def radiotherapy_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """All tables; none where nothing was planned.

    Values are means over the patients of absolute values, with their standard deviation; of a patient with several
    cases the mean counts. Plans that are not possible have no value and are counted.
    """
    templates = dict.fromkeys(name.split(".")[1] for name in radiotherapy_names(rows))
    tables = []
    for template in templates:
        planned = [
            row for row in rows if row["status"] == DONE and row.get(f"{PREFIX}{template}.possible_on_truth") == 1
        ]
        if not planned:
            continue
        tables += [_table(planned, template, mode) for mode in MODES]
        if find_template(template).target is not None:
            tables += [_patients(planned, template)]
    return tables


def _numbers_of(template: str) -> dict[str, str]:
    """What the case study asks for: V90 of the target and V20 Gy of the lung beside it."""
    target = find_template(template).target
    if target is None:
        return {}
    side = target[-1].lower()
    return {f"{target.lower()}_v90_percent": "V90 of the target", f"lung_{side}_v20gy_percent": "V20 Gy of the lung"}


def _table(rows: Sequence[Mapping[str, Any]], template: str, mode: Mode) -> Table:
    head = f"{PREFIX}{template}.{mode}"
    counted, other = _PAIR[mode]
    columns = {f"{head}.{name}": words for name, words in _ERRORS.items() if any(f"{head}.{name}" in r for r in rows)}
    pairs = {}
    for name, words in _numbers_of(template).items():
        columns[f"{head}.true.{name}"] = f"{words}, {counted} [%]"
        pairs[name] = f"{words}, {other} minus {counted} [%]"
    texts = []
    for method, views in dict.fromkeys((row["method"], row["views"]) for row in rows):
        group = [row for row in rows if (row["method"], row["views"]) == (method, views)]
        values = [_mean_sd((row["patient"], row.get(key, math.nan)) for row in group) for key in columns]
        for name in pairs:
            shown, true = (f"{head}.{which}.{name}" for which in ("shown", "true"))
            apart = [(row["patient"], row.get(shown, math.nan) - row.get(true, math.nan)) for row in group]
            values.append(_mean_sd(apart))
        impossible = sum(row.get(f"{head}.possible") != 1 for row in group)
        texts.append([method, views, *values, f"{impossible} of {len(group)}"])
    return Table(
        f"{template}, {MODE_WORDS[mode][0]} ({MODE_WORDS[mode][1]}), mean of absolute values (SD)",
        ["method", "views", *columns.values(), *pairs.values(), "no plan possible"],
        _merged(texts, 1),
    )


def _merged(rows: Sequence[list[str]], views: int) -> list[list[str]]:
    """One row for those that differ in their view set (column `views`) alone: null rows look at no radiograph."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        found.setdefault((*row[:views], *row[views + 1 :]), []).append(row[views])
    return [[*key[:views], ", ".join(named), *key[views:]] for key, named in found.items()]


def _mean_sd(values: Iterable[tuple[str, float]]) -> str:
    """Mean of absolute values over the patients, and their standard deviation; nothing without a value."""
    by_patient: dict[str, list[float]] = {}
    for patient, value in values:
        if math.isfinite(value):
            by_patient.setdefault(patient, []).append(abs(value))
    means = [float(np.mean(found)) for found in by_patient.values()]
    if not means:
        return ""
    text = f"{np.mean(means):.2f}"
    return text if len(means) == 1 else f"{text} ({np.std(means, ddof=1):.2f})"


def _patients(rows: Sequence[Mapping[str, Any]], template: str) -> Table:
    """Every case: what the plan on the truth gives, what the reconstruction promises, what the patient gets."""
    own, planned = f"{PREFIX}{template}.same_mu.true", f"{PREFIX}{template}.delivered"
    numbers = _numbers_of(template)
    head = ["case", "method", "views"]
    head += [
        f"{words}, {what} [%]"
        for words in numbers.values()
        for what in ("plan on the truth", "reconstruction shows", "delivered")
    ]
    texts = []
    for row in rows:
        cells = [row["case"], row["method"], row["views"]]
        for name in numbers:
            for key in (own, f"{planned}.shown", f"{planned}.true"):
                value = row.get(f"{key}.{name}", math.nan)
                cells.append(f"{value:.1f}" if math.isfinite(value) else "no plan")
        texts.append(cells)
    return Table(f"{template}, every case", head, _merged(texts, 2))
