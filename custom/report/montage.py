"""Montage of a comparison: truth and every method side by side, each with its difference below."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from custom.report.figures import (
    DIFFERENCE_COLOURS,
    DIFFERENCE_LIMITS,
    GAP,
    HU_DISPLAY,
    MARGIN,
    MUTED,
    PLANES,
    WIDTH,
    Page,
    colour_bar,
    compass,
    save_figure,
    scale_bar,
)

__all__ = ["Panel", "montage"]

Slice = npt.NDArray[Any]

#: Methods beside the truth; more go into further bands below.
_METHODS_A_BAND = 5
_LETTERS_A_LINE, _LINE = 22, 0.15


class Panel(NamedTuple):
    """A method of the montage.

    Attributes:
        name: above its column.
        slices: plane ("axial", ...) to slice, HU, as `custom.report.figures.plane` turns it.
        note: second line of the heading, such as a metric.
    """

    name: str
    slices: Mapping[str, Slice]
    note: str = ""


class _Layout(NamedTuple):
    width: float
    heights: dict[str, float]
    lefts: list[float]


def montage(
    truth: Mapping[str, Slice],
    methods: Sequence[Panel],
    spacing_mm: Sequence[float],
    path: str | os.PathLike[str],
    title: str = "",
    caption: str = "",
) -> Path:
    """Draws the slices of one case into one PNG: in every plane a row of pictures, below it a row of differences.

    Args:
        truth: plane to slice, HU.
        methods: to compare.
        spacing_mm: voxel size along X, Y, Z, so that pictures have the patient's proportions.
        path: where the PNG goes.
        title: first line, for example the case and the view set.
        caption: line below the title.

    Raises:
        ValueError: no method, no or an unknown plane, slices of another shape than the truth's.
    """
    _check(truth, methods)
    a_band = math.ceil(len(methods) / math.ceil(len(methods) / _METHODS_A_BAND))
    bands = [methods[i : i + a_band] for i in range(0, len(methods), a_band)]
    layout = _layout(truth, 1 + max(map(len, bands)), spacing_mm)
    lines = [max(len(_heading(panel)) for panel in band) for band in bands]
    heights = [n * _LINE + 0.1 + sum(2 * height + 3 * GAP for height in layout.heights.values()) for n in lines]
    top = 0.2 + 0.36 * bool(title) + 0.3 * bool(caption)
    page = Page(top + sum(heights) + 0.75)
    page.heading(title, caption)
    for band, count, height in zip(bands, lines, heights, strict=True):
        _band(page, top, truth, band, layout, count * _LINE + 0.1, spacing_mm)
        top += height
    bars, width = page.height - 0.55, 2.6
    colour_bar(page, (WIDTH / 2 - width - 0.4, bars, width), HU_DISPLAY, "gray", "HU")
    colour_bar(page, (WIDTH / 2 + 0.4, bars, width), DIFFERENCE_LIMITS, DIFFERENCE_COLOURS, "difference in HU")
    return save_figure(page.figure, path)


def _check(truth: Mapping[str, Slice], methods: Sequence[Panel]) -> None:
    if not methods:
        raise ValueError("no method to show")
    if not truth or any(name not in PLANES for name in truth):
        raise ValueError(f"planes must be some of {sorted(PLANES)}; got {sorted(truth)}")
    for panel in methods:
        for name, picture in truth.items():
            found = panel.slices[name].shape if name in panel.slices else None
            if found != picture.shape:
                raise ValueError(f"{panel.name}: {name} slice of shape {found}, the truth's is {picture.shape}")


def _layout(truth: Mapping[str, Slice], columns: int, spacing_mm: Sequence[float]) -> _Layout:
    width = min(2.4, (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns)
    heights = {}
    for name, picture in truth.items():
        _, across, down = PLANES[name][:3]
        rows, across_count = picture.shape
        heights[name] = width * rows * spacing_mm[down] / (across_count * spacing_mm[across])
    first = (WIDTH - columns * (width + GAP) + GAP) / 2
    return _Layout(width, heights, [first + i * (width + GAP) for i in range(columns)])


def _heading(panel: Panel) -> list[str]:
    return [*textwrap.wrap(panel.name, _LETTERS_A_LINE), *textwrap.wrap(panel.note, _LETTERS_A_LINE)[:3]]


def _band(
    page: Page,
    top: float,
    truth: Mapping[str, Slice],
    band: Sequence[Panel],
    layout: _Layout,
    head: float,
    spacing_mm: Sequence[float],
) -> None:
    """One row of methods, with the truth at its left."""
    shown = [Panel("truth", truth), *band]
    for panel, left in zip(shown, layout.lefts, strict=False):
        lines = _heading(panel)
        names = len(textwrap.wrap(panel.name, _LETTERS_A_LINE))
        for number, line in enumerate(lines):
            at = top + head - 0.05 - (len(lines) - number) * _LINE
            colour = {} if number < names else {"color": MUTED}
            page.text(left + layout.width / 2, at, line, ha="center", fontsize=8.5, **colour)
    top += head
    for name, picture in truth.items():
        height, (across, letters) = layout.heights[name], (PLANES[name][1], PLANES[name][3:])
        below = top + height + GAP
        for panel, left in zip(shown, layout.lefts, strict=False):
            values = panel.slices[name].astype(np.float32)
            page.picture((left, top, layout.width, height), values, "gray", HU_DISPLAY)
            if panel.slices is not truth:
                box = (left, below, layout.width, height)
                page.picture(box, values - picture.astype(np.float32), DIFFERENCE_COLOURS, DIFFERENCE_LIMITS)
                continue
            axes = page.figure.axes[-1]
            compass(axes, *letters)
            scale_bar(axes, picture.shape[1] * spacing_mm[across])
        middle = layout.lefts[0] - 0.14
        page.text(middle, top + height / 2, name, rotation=90, va="center", ha="right", fontsize=9)
        words = "minus truth"
        page.text(middle + layout.width + 0.14, below + height / 2, words, va="center", ha="right", color=MUTED)
        top += 2 * height + 3 * GAP
