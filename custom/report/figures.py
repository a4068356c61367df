"""Figure of a reconstruction: radiographs above, then truth, reconstruction and difference in three planes.

Planes are shown as radiologists expect: the patient's right on the left of the picture, axial slices seen from the
feet with anterior on top, sagittal slices looking to the patient's right (anterior on the left), superior on top.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from custom.core.files import write_bytes

__all__ = ["plane", "reconstruction_figure", "save_figure"]

FloatArray = npt.NDArray[np.floating[Any]]

HU_DISPLAY = (-1000.0, 400.0)
DIFFERENCE_HU = 500.0
DIFFERENCE_LIMITS = (-DIFFERENCE_HU, DIFFERENCE_HU)
PLANES = {
    # name: axis cut, axis across, axis down, letters at the left, right, top and bottom edge
    "axial": (2, 0, 1, "R", "L", "A", "P"),
    "coronal": (1, 0, 2, "R", "L", "S", "I"),
    "sagittal": (0, 1, 2, "A", "P", "S", "I"),
}

_BACKGROUND, _TEXT, MUTED, _ACCENT = "#0d0f12", "#e8eaed", "#9aa0a6", "#f6c365"
# Blue where the reconstruction is too thin, orange where too dense; dark at zero, so that only errors catch the eye.
DIFFERENCE_COLOURS = LinearSegmentedColormap.from_list(
    "difference", ["#c3ecff", "#4aa8ff", "#174a8c", "#0a0b0d", "#8c3310", "#ff7a3d", "#ffe0b8"]
)
# Dark where samples agree or the mean is right; lightness grows evenly, so that it reads without colours too.
SPREAD_COLOURS = "magma"
#: Of a page [inches].
WIDTH, MARGIN, GAP = 10.0, 0.55, 0.12
_RADIOGRAPHS_A_ROW = 4


def plane(volume: FloatArray, name: str, index: int | None = None) -> FloatArray:
    """One slice of a RAS+ volume, turned the way it is shown.

    Args:
        volume: (X, Y, Z), x to the patient's right, y anterior, z superior.
        name: axial, coronal or sagittal.
        index: voxel index along the axis that is cut; None for the middle.

    Returns:
        (rows, columns): row 0 is anterior (axial) or superior, column 0 the patient's right (sagittal: anterior).
    """
    if name not in PLANES:
        raise ValueError(f"plane must be one of {sorted(PLANES)}; got {name!r}")
    cut, across, down = PLANES[name][:3]
    index = volume.shape[cut] // 2 if index is None else index
    picture = np.take(volume, index, axis=cut)
    # np.take keeps the order of the other axes, and `across` comes before `down` in all three planes.
    assert across < down
    return picture.T[::-1, ::-1]


def plane_heights(extent_mm: Sequence[float], width: float) -> dict[str, float]:
    """How high pictures of `PLANES` of this width are, for a volume of this extent along x, y and z."""
    return {name: width * extent_mm[down] / extent_mm[across] for name, (_, across, down, *_) in PLANES.items()}


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> Path:
    """Writes a PNG beside its target and moves it there, so that a viewer never meets half a file."""
    path = Path(path)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    write_bytes(path, content.getvalue())
    return path


class Page:
    """A figure whose panels are placed in inches from the top left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH, height), facecolor=_BACKGROUND)

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        axes = self.figure.add_axes(
            (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        )
        axes.set_facecolor("black")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def picture(
        self, box: tuple[float, float, float, float], values: FloatArray, cmap: str | Colormap, limits: Sequence[float]
    ) -> Axes:
        """A panel (left, top, width, height) that a picture fills, its colours between the limits."""
        axes = self.panel(*box)
        axes.imshow(values, cmap=cmap, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="bilinear")
        return axes

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        style = {"color": _TEXT, "va": "top", "ha": "left", "fontsize": 10, **style}
        self.figure.text(left / WIDTH, 1 - top / self.height, words, **style)

    def heading(self, title: str | None, caption: str | None) -> None:
        """In the middle at the top; what is empty takes no room."""
        if title:
            self.text(WIDTH / 2, 0.18, title, ha="center", fontsize=14, fontweight="bold")
        if caption:
            self.text(WIDTH / 2, 0.2 + 0.3 * bool(title), caption, ha="center", color=MUTED)


def _outlined(axes: Axes, x: float, y: float, words: str, **style: Any) -> None:
    style = {"color": _ACCENT, "fontsize": 9, "fontweight": "bold", **style}
    letters = axes.text(x, y, words, transform=axes.transAxes, **style)
    letters.set_path_effects([patheffects.withStroke(linewidth=2, foreground="black")])


def compass(axes: Axes, left: str, right: str, top: str, bottom: str) -> None:
    _outlined(axes, 0.015, 0.5, left, va="center", ha="left")
    _outlined(axes, 0.985, 0.5, right, va="center", ha="right")
    _outlined(axes, 0.5, 0.985, top, va="top", ha="center")
    _outlined(axes, 0.5, 0.015, bottom, va="bottom", ha="center")


def scale_bar(axes: Axes, width_mm: float, length_mm: float = 50.0) -> None:
    share = length_mm / width_mm
    if share > 0.6:
        return
    axes.add_patch(
        Rectangle((0.04, 0.045), share, 0.008, transform=axes.transAxes, facecolor=_TEXT, edgecolor="none", zorder=3)
    )
    _outlined(axes, 0.04, 0.062, f"{length_mm / 10:g} cm", color=_TEXT, fontsize=7.5, va="bottom", fontweight="normal")


def colour_bar(
    page: Page, box: tuple[float, float, float], limits: tuple[float, float], cmap: str | Colormap, name: str
) -> None:
    left, top, width = box
    axes = page.panel(left, top, width, 0.1)
    bar = page.figure.colorbar(
        ScalarMappable(Normalize(*limits), cmap), cax=axes, orientation="horizontal", extend="both"
    )
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    bar.ax.tick_params(colors=MUTED, labelsize=8, length=2)
    bar.set_label(name, color=MUTED, fontsize=8.5)


def light_grid(axes: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    """The look of a diagram: light lines behind the data, no frame above and at the right."""
    axes.grid(axis=axis, color="#d9dce0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _radiograph_row(
    page: Page, top: float, radiographs: FloatArray, labels: Sequence[str], aspect: float, width: float
) -> None:
    height = width * aspect
    count = len(radiographs)
    per_row = min(count, _RADIOGRAPHS_A_ROW)
    for index, radiograph in enumerate(radiographs):
        row, column = divmod(index, per_row)
        in_row = min(per_row, count - row * per_row)
        left = (WIDTH - in_row * width - (in_row - 1) * GAP) / 2 + column * (width + GAP)
        low, high = np.percentile(radiograph, (0.5, 99.8))
        box = (left, top + row * (height + 0.35) + 0.22, width, height)
        page.picture(box, radiograph, "gray", (low, max(high, low + 1e-6)))
        if labels:
            page.text(left + width / 2, top + row * (height + 0.35), labels[index], ha="center", fontsize=9.5)


def reconstruction_figure(
    radiographs: FloatArray | None,
    truth_hu: FloatArray | None,
    pred_hu: FloatArray,
    spacing_mm: Sequence[float],
    path: str | os.PathLike[str],
    title: str = "",
    caption: str = "",
    view_labels: Sequence[str] | None = None,
    pixel_mm: Sequence[float] = (1.0, 1.0),
) -> Path:
    """Draws radiographs, truth, reconstruction and difference into one PNG.

    Args:
        radiographs: (K, V, U) line integrals, shown bright where the ray met much; row 0 is superior. None for no such
            row.
        truth_hu: (X, Y, Z) HU, RAS+; None where the truth is not known (the planes then stand side by side).
        pred_hu: (X, Y, Z) HU on the same grid.
        spacing_mm: voxel size along X, Y, Z in mm, so that pictures have the patient's proportions.
        path: where the PNG goes.
        title: first line, for example the case and the number of views.
        caption: line below the title, for example the metrics.
        view_labels: one text per radiograph.
        pixel_mm: detector pixel along U and V; only its ratio matters.

    Raises:
        ValueError: shapes that do not fit together.
    """
    pred_hu = np.asarray(pred_hu)
    if radiographs is not None and (np.ndim(radiographs) != 3 or len(radiographs) == 0):
        raise ValueError(f"radiographs must be (K, V, U) with at least one; got shape {np.shape(radiographs)}")
    if pred_hu.ndim != 3:
        raise ValueError(f"the reconstruction must be (X, Y, Z); got shape {pred_hu.shape}")
    if truth_hu is not None and truth_hu.shape != pred_hu.shape:
        raise ValueError(f"truth and reconstruction differ in shape: {truth_hu.shape} and {pred_hu.shape}")
    count = 0 if radiographs is None else len(radiographs)
    if view_labels is not None and len(view_labels) != count:
        raise ValueError(f"{len(view_labels)} labels for {count} radiographs")

    first_row = 0.15 + 0.36 * bool(title) + 0.3 * bool(caption)
    first_plane, aspect, radiograph_width = first_row + 0.05, 1.0, 0.0
    if radiographs is not None:
        aspect = radiographs.shape[1] * pixel_mm[1] / (radiographs.shape[2] * pixel_mm[0])
        per_row = min(count, _RADIOGRAPHS_A_ROW)
        radiograph_width = min((WIDTH - 2 * MARGIN - (per_row - 1) * GAP) / per_row, 2.6 / aspect)
        first_plane += math.ceil(count / per_row) * (radiograph_width * aspect + 0.35)

    extent_mm = [size * step for size, step in zip(pred_hu.shape, spacing_mm, strict=True)]
    width = (WIDTH - 2 * MARGIN - 2 * GAP) / 3
    heights = plane_heights(extent_mm, width)
    stacked = sum(heights.values()) + 2 * GAP if truth_hu is not None else max(heights.values())
    page = Page(first_plane + 0.3 + stacked + 0.75)

    page.heading(title, caption)
    if radiographs is not None:
        _radiograph_row(page, first_row, np.asarray(radiographs), view_labels or [], aspect, radiograph_width)

    columns: list[tuple[str, FloatArray, str | Colormap, tuple[float, float]]] = []
    if truth_hu is not None:
        truth_hu = np.asarray(truth_hu)
        difference = pred_hu.astype(np.float32) - truth_hu.astype(np.float32)
        columns.append(("truth", truth_hu, "gray", HU_DISPLAY))
        columns.append(("reconstruction", pred_hu, "gray", HU_DISPLAY))
        columns.append(("reconstruction − truth", difference, DIFFERENCE_COLOURS, DIFFERENCE_LIMITS))
    top = first_plane + 0.3
    for row, (name, (_, across, _down, *letters)) in enumerate(PLANES.items()):
        shown = columns or [(name, pred_hu, "gray", HU_DISPLAY)]
        for column, (label, volume, cmap, limits) in enumerate(shown):
            position = column if truth_hu is not None else row
            left = MARGIN + position * (width + GAP)
            axes = page.picture((left, top, width, heights[name]), plane(volume, name), cmap, limits)
            compass(axes, *letters)
            if row == 0 or truth_hu is None:
                page.text(left + width / 2, top - 0.22, label, ha="center", fontsize=10.5)
            if position == 0:
                scale_bar(axes, extent_mm[across])
        if truth_hu is not None:
            page.text(MARGIN - 0.14, top + heights[name] / 2, name, rotation=90, va="center", ha="right")
            top += heights[name] + GAP
    bars = page.height - 0.55
    grey_left, grey_width = (MARGIN + 0.5 * width, width + GAP) if columns else (MARGIN + width, width)
    colour_bar(page, (grey_left, bars, grey_width), HU_DISPLAY, "gray", "HU")
    if columns:
        box = (MARGIN + 2 * (width + GAP) + 0.1 * width, bars, 0.8 * width)
        colour_bar(page, box, DIFFERENCE_LIMITS, DIFFERENCE_COLOURS, "difference in HU")
    return save_figure(page.figure, path)
