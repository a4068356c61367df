"""Box plots of a metric by number of views and method, as in figure 2 of the INRR3CT paper."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from custom.metrics import MIN_PATIENTS_FOR_INTERVAL
from custom.metrics.tables import metric_label
from custom.report.figures import light_grid, save_figure

__all__ = ["method_boxplots"]

COLOURS = (
    *("#3b6fb6", "#e07b39", "#4f9d69", "#b6516b", "#7a6bb0", "#8a8f98", "#c9a227", "#3aa6a6"),
    *("#1f3a5f", "#7b3f00", "#d985c0", "#5c6b1f", "#000000", "#9ad0f5"),
)


def method_boxplots(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    metric: str,
    groups: Sequence[str] = (),
    group: str = "views",
    series: str = "method",
) -> Path:
    """Draws one metric of many methods: a panel per view set, in it a line for every method, named at the left.

    Every case is a dot. A box (quartiles, median, whiskers to 1.5 times the interquartile range) appears only where
    there are five or more: below that it would claim a distribution that nobody knows.

    Args:
        rows: a mapping per case with the metric, ``group`` and ``series``.
        path: where the PNG goes.
        metric: its name.
        groups: order of the panels; by default that of the rows.
        group: key of the value that gives the panel.
        series: key of the value that gives the line.

    Raises:
        ValueError: no row has the metric.
    """
    known = [row for row in rows if math.isfinite(float(row.get(metric, math.nan)))]
    if not known:
        raise ValueError(f"no case has the metric {metric!r}")
    there = {str(row[group]) for row in known}
    names = [name for name in groups or dict.fromkeys(str(row[group]) for row in known) if name in there]
    methods = list(dict.fromkeys(str(row[series]) for row in known))
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.6 * columns + 3.4, (0.24 * len(methods) + 0.7) * lines + 0.2), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        for position, method in enumerate(methods):
            cases = [float(r[metric]) for r in known if str(r[group]) == name and str(r[series]) == method]
            _cases(axes, cases, position)
        axes.set_title(name, fontsize=10)
        axes.set_yticks(range(len(methods)), methods, fontsize=8)
        axes.set_ylim(len(methods) - 0.4, -0.6)
        light_grid(axes, "x")
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel(metric_label(metric), fontsize=10)
    return save_figure(figure, path)


def _cases(axes: Any, cases: list[float], centre: float) -> None:
    """Dots, and from `MIN_PATIENTS_FOR_INTERVAL` cases on a box."""
    width, colour = 0.7, COLOURS[0]
    if len(cases) >= MIN_PATIENTS_FOR_INTERVAL:
        axes.boxplot(
            cases,
            positions=[centre],
            widths=width * 0.8,
            orientation="horizontal",
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": colour + "55", "edgecolor": colour},
            medianprops={"color": colour, "linewidth": 2},
            whiskerprops={"color": colour},
            capprops={"color": colour},
        )
    # A fixed spread instead of a random one: the same cases give the same file.
    spread = np.linspace(-0.2, 0.2, len(cases)) if len(cases) > 1 else np.zeros(len(cases))
    axes.plot(cases, centre + spread * width, "o", color=colour, markersize=3.5, alpha=0.8, zorder=3)
