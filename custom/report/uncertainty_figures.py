"""Figures of many samples of one patient: mean, spread and error side by side, convergence and calibration.

Like figure 8 of the DIFR3CT paper, but spread and error share one scale in HU that is fixed, so that both columns, and
pictures of different patients or numbers of views, can be compared by eye.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from custom.metrics import SampleStatistics, Volume
from custom.metrics.sample_statistics import one_volume
from custom.report.boxplots import COLOURS
from custom.report.figures import (
    DIFFERENCE_HU,
    GAP,
    HU_DISPLAY,
    MARGIN,
    PLANES,
    SPREAD_COLOURS,
    WIDTH,
    Page,
    colour_bar,
    compass,
    light_grid,
    plane,
    plane_heights,
    save_figure,
    scale_bar,
)

__all__ = ["UncertaintyMaps", "calibration_figure", "uncertainty_figure"]

FloatArray = npt.NDArray[np.floating[Any]]

_WIDEST = 3.0


class UncertaintyMaps(NamedTuple):
    """What is drawn of one case, each (X, Y, Z) HU, RAS+, on one grid.

    Attributes:
        mean_hu: mean of the samples.
        std_hu: their standard deviation.
        truth_hu: the true CT; None where it is not known.
        sample_hu: one of the samples, to show what the mean has lost; None to leave the column out.
    """

    mean_hu: FloatArray
    std_hu: FloatArray
    truth_hu: FloatArray | None = None
    sample_hu: FloatArray | None = None

    @classmethod
    def of(
        cls, statistics: SampleStatistics, truth_hu: Volume | None = None, sample_hu: Volume | None = None
    ) -> UncertaintyMaps:
        """Maps of statistics; truth and sample are clipped to the samples' window, as for the numbers."""
        known = {"truth_hu": truth_hu, "sample_hu": sample_hu}
        volumes = {
            name: one_volume(volume, name).float().clamp(*statistics.hu_window).numpy()
            for name, volume in known.items()
            if volume is not None
        }
        return cls(statistics.mean().numpy(), statistics.std().numpy(), **volumes)


class _Column(NamedTuple):
    name: str
    volume: FloatArray
    spread: bool  # a spread or an error; else it is shown in grey


class _Scale(NamedTuple):
    cmap: str
    limits: tuple[float, float]
    unit: str


def _columns(maps: UncertaintyMaps, squared: bool) -> list[_Column]:
    columns: list[_Column] = []
    if maps.truth_hu is not None:
        columns.append(_Column("truth", maps.truth_hu, False))
    if maps.sample_hu is not None:
        columns.append(_Column("one sample", maps.sample_hu, False))
    columns.append(_Column("mean", maps.mean_hu, False))
    power = 2 if squared else 1
    columns.append(_Column("variance" if squared else "standard deviation", np.asarray(maps.std_hu) ** power, True))
    if maps.truth_hu is not None:
        error = np.abs(np.asarray(maps.mean_hu, np.float32) - np.asarray(maps.truth_hu, np.float32))
        columns.append(_Column("(mean − truth)²" if squared else "|mean − truth|", error**power, True))
    return columns


def _check_cases(cases: Mapping[str, UncertaintyMaps]) -> tuple[int, ...]:
    """The shape that all volumes have."""
    if not cases:
        raise ValueError("no case to draw: pass at least one, as {label: UncertaintyMaps}")
    first = next(iter(cases.values()))
    shape = np.shape(first.mean_hu)
    if len(shape) != 3:
        raise ValueError(f"maps must be (X, Y, Z); the mean has shape {shape}")
    for label, maps in cases.items():
        for name, one, other in zip(maps._fields, maps, first, strict=True):
            if (one is None) != (other is None):
                raise ValueError(f"{name} is given for some cases only: give it for all or for none (case {label!r})")
            if one is not None and np.shape(one) != shape:
                raise ValueError(f"{name} of case {label!r} has shape {np.shape(one)}, the first mean {shape}")
    return shape


def _headings(page: Page, top: float, title: str, caption: str, columns: Mapping[str, float]) -> None:
    """Title, caption and, above `top` (inches), the names of the columns at their centres."""
    page.heading(title, caption)
    for name, centre in columns.items():
        page.text(centre, top - 0.22, name, ha="center", fontsize=10.5)


def _legend(page: Page, left: float, right: float, scale: _Scale) -> None:
    width = min(0.8 * (right - left), 3.2)
    box = ((left + right - width) / 2, page.height - 0.55, width)
    colour_bar(page, box, scale.limits, scale.cmap, scale.unit)


def uncertainty_figure(
    cases: Mapping[str, UncertaintyMaps],
    spacing_mm: Sequence[float],
    path: str | os.PathLike[str],
    planes: Sequence[str] = tuple(PLANES),
    title: str = "",
    caption: str = "",
    squared: bool = False,
    limit_hu: float = DIFFERENCE_HU,
) -> Path:
    """Draws truth, sample, mean, standard deviation and error of the mean into one PNG, a row per plane and case.

    One case in three planes shows a patient. Several cases in one plane, such as ``{"2 views": ..., "4 views": ...}``
    and ``planes=["coronal"]``, are figure 8 of the DIFR3CT paper.

    Args:
        cases: maps by label; all on one grid. An empty label names the row after its plane alone.
        spacing_mm: voxel size along X, Y, Z in mm.
        path: where the PNG goes.
        planes: which of axial, coronal, sagittal; each through the volume's middle.
        title: first line.
        caption: line below the title, for example the single numbers.
        squared: variance and squared error in HU^2, as in the paper, instead of their roots in HU, which show more
            than the few largest values.
        limit_hu: HU (its square if ``squared``) at the bright end of spread and error.

    Raises:
        ValueError: no case, volumes of different shapes, columns that only some cases have, an unknown plane.
    """
    shape = _check_cases(cases)
    if not planes or any(name not in PLANES for name in planes):
        raise ValueError(f"planes must be some of {sorted(PLANES)}; got {list(planes)}")
    rows = {label: _columns(maps, squared) for label, maps in cases.items()}
    names = [column.name for column in next(iter(rows.values()))]
    extent_mm = [size * step for size, step in zip(shape, spacing_mm, strict=True)]
    width = min(_WIDEST, (WIDTH - 2 * MARGIN - (len(names) - 1) * GAP) / len(names))
    heights = {name: plane_heights(extent_mm, width)[name] for name in planes}
    first = (WIDTH - len(names) * (width + GAP) + GAP) / 2
    lefts = [first + index * (width + GAP) for index in range(len(names))]
    top = 0.45 + 0.36 * bool(title) + 0.3 * bool(caption)
    page = Page(top + len(cases) * sum(height + GAP for height in heights.values()) + 0.75)
    _headings(page, top, title, caption, {name: left + width / 2 for name, left in zip(names, lefts, strict=True)})

    power = 2 if squared else 1
    grey = _Scale("gray", HU_DISPLAY, "HU")
    spread = _Scale(SPREAD_COLOURS, (0.0, limit_hu**power), "HU²" if squared else "HU")
    for name in planes:
        for label, columns in rows.items():
            for left, column in zip(lefts, columns, strict=True):
                scale = spread if column.spread else grey
                axes = page.picture(
                    (left, top, width, heights[name]), plane(column.volume, name), scale.cmap, scale.limits
                )
                compass(axes, *PLANES[name][3:])
                if left == first:
                    scale_bar(axes, extent_mm[PLANES[name][1]])
            words = label if label and len(planes) == 1 else f"{label}, {name}" if label else name
            page.text(first - 0.14, top + heights[name] / 2, words, rotation=90, va="center", ha="right")
            top += heights[name] + GAP

    border = next(left for left, column in zip(lefts, columns, strict=True) if column.spread)
    _legend(page, first, border - GAP, grey)
    _legend(page, border, lefts[-1] + width, spread)
    return save_figure(page.figure, path)


def calibration_figure(
    convergence: Mapping[str, Sequence[Mapping[str, float]]],
    coverage: Mapping[str, Sequence[Mapping[str, float]]],
    path: str | os.PathLike[str],
) -> Path:
    """Plots the spread against the number of samples and, where the truth is known, coverage against nominal level.

    A curve of the right panel below the diagonal belongs to samples that are too sure of themselves.

    Args:
        convergence: rows of `SampleStatistics.convergence` by label, such as ``{"2 views": [...]}``.
        coverage: rows of `custom.metrics.interval_coverage` by label; empty to leave that panel out.
        path: where the PNG goes.

    Raises:
        ValueError: nothing to plot.
    """
    if not any(convergence.values()):
        raise ValueError("no convergence to plot: it begins at 2 samples")
    panels = 2 if coverage else 1
    figure = Figure(figsize=(4.2 * panels, 3.8), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    labels = list(dict.fromkeys([*convergence, *coverage]))
    colours = {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(labels)}
    counts = sorted({int(row["samples"]) for rows in convergence.values() for row in rows})
    for label, rows in convergence.items():
        spread = [row["std_hu_body"] for row in rows]
        axes[0].plot([row["samples"] for row in rows], spread, "o-", color=colours[label], label=label, markersize=4)
    axes[0].set_xscale("log", base=2)
    axes[0].xaxis.set(
        major_locator=FixedLocator(counts), minor_locator=NullLocator(), major_formatter=ScalarFormatter()
    )
    axes[0].set(xlabel="samples", ylabel="root mean variance in the body [HU]")
    # From zero, so that noise in a settled curve does not look like a trend; with room above a flat one.
    axes[0].set_ylim(0, 1.15 * max(row["std_hu_body"] for rows in convergence.values() for row in rows) or 1)
    if coverage:
        axes[1].plot([0, 1], [0, 1], color="#8a8f98", linewidth=1, linestyle="--")
        for label, rows in coverage.items():
            levels, shares = [row["level"] for row in rows], [row["coverage"] for row in rows]
            axes[1].plot(levels, shares, "o-", color=colours[label], label=label, markersize=4)
        axes[1].set(xlabel="nominal level", ylabel="share of voxels within the interval", xlim=(0, 1), ylim=(0, 1))
    for one in axes:
        light_grid(one)
    if labels != [""]:
        axes[0].legend(frameon=False)
    return save_figure(figure, path)
