"""The picture a comparison begins with: quality against views, a line for every method, intervals over patients."""

from __future__ import annotations

import itertools
import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from custom.metrics import summarise_cohort
from custom.metrics.tables import metric_label
from custom.report.boxplots import COLOURS
from custom.report.figures import light_grid, save_figure

__all__ = ["ranking_plot"]

_MARKERS = "osD^vPX*"
_LEGEND_LETTERS, _LEGEND_COLUMNS = 50, 2


def ranking_plot(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    metric: str,
    columns: Mapping[str, tuple[str, int]],
    is_control: Callable[[str], bool] = lambda method: False,
) -> Path:
    """Draws the mean of a metric over the patients against the view sets, a line for every method.

    A bar is the bootstrap 95% interval of the mean (`custom.metrics.summarise_cohort`); below five patients every
    patient is a small dot instead. A line joins view sets of one beam where views are added, so not a frontal
    radiograph with a lateral one.

    Args:
        rows: a mapping per case with the metric, `case`, `patient`, `method` and `views`.
        path: where the PNG goes.
        metric: its name.
        columns: view set to its beam and number of views.
        is_control: methods that are drawn thin and dashed, since they cannot win.

    Raises:
        ValueError: no row has the metric.
    """
    known = [row for row in rows if math.isfinite(float(row.get(metric, math.nan)))]
    if not known:
        raise ValueError(f"no case has the metric {metric!r}")
    order = sorted(columns, key=lambda name: (columns[name][0] != next(iter(columns.values()))[0], columns[name]))
    methods = list(dict.fromkeys(str(row["method"]) for row in known))
    legend_lines = math.ceil(len(methods) / _LEGEND_COLUMNS)
    figure = Figure(figsize=(8.2, 4.2 + 0.32 * legend_lines), layout="constrained")
    axes = figure.subplots()
    for index, method in enumerate(methods):
        colour, control = COLOURS[index % len(COLOURS)], is_control(method)
        shift = 0.3 * ((index + 0.5) / len(methods) - 0.5)
        means: dict[str, tuple[float, float]] = {}
        for place, views in enumerate(order):
            cases = [row for row in known if row["method"] == method and row["views"] == views]
            if not cases:
                continue
            keys = ("case", "patient", metric)
            found = summarise_cohort([{key: row[key] for key in keys} for row in cases])
            one, at = found["metrics"][metric], place + shift
            means[views] = (at, one["mean"])
            if one["ci95"] is None:
                dots = [patient[metric] for patient in found["per_patient"].values()]
                axes.plot([at] * len(dots), dots, ".", color=colour, markersize=4, alpha=0.6)
            else:
                axes.plot([at, at], one["ci95"], color=colour, linewidth=2.5, alpha=0.45, solid_capstyle="butt")
        line = "--" if control else "-"
        for left, right in itertools.pairwise(order):
            grows = columns[left][0] == columns[right][0] and columns[left][1] < columns[right][1]
            if grows and left in means and right in means:
                joined = zip(means[left], means[right], strict=True)
                axes.plot(*joined, line, color=colour, linewidth=1 if control else 1.8)
        axes.plot(
            *zip(*means.values(), strict=True),
            linestyle="none",
            color=colour,
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=6,
            markerfacecolor="white" if control else colour,
            label=textwrap.fill(method, _LEGEND_LETTERS),
        )
    axes.set_xticks(range(len(order)), [f"{name}\n{columns[name][0]}" for name in order])
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.set_xlabel("view set, and its beam")
    axes.set_ylabel(f"{metric_label(metric)}, mean over the patients")
    light_grid(axes, "y")
    figure.legend(loc="outside lower left", frameon=False, fontsize=9, ncols=_LEGEND_COLUMNS)
    return save_figure(figure, path)
