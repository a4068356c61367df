"""Pictures of a volume for print: planes with their uncertainty, samples, and the histogram of CT values."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image

from custom.geometry import VolumeGrid
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
    scale_bar,
)

__all__ = [
    "SPREAD_LIMIT_HU",
    "TISSUES",
    "histogram_picture",
    "planes_picture",
    "rendered",
    "samples_picture",
    "tissue_shares",
]

Volume = npt.NDArray[np.floating[Any]]

# Lightness grows evenly, so that it reads without colours too. The scale is fixed: pages can be compared by eye.
SPREAD_LIMIT_HU = DIFFERENCE_HU
#: Colour of what is hidden: no grey, so that it is not taken for a CT value.
_HIDDEN = "#7a8799"
#: Samples that are drawn; the viewer has them all.
_SAMPLES_SHOWN = 4
#: HU ranges in which a body's voxels are counted.
TISSUES = {
    "lung and air": (-np.inf, -500.0),
    "between lung and fat": (-500.0, -150.0),
    "fat": (-150.0, -30.0),
    "soft tissue": (-30.0, 150.0),
    "bone": (150.0, np.inf),
}


def planes_picture(
    hu: Volume,
    spacing_mm: Sequence[float],
    std_hu: Volume | None = None,
    *,
    limit_hu: float = SPREAD_LIMIT_HU,
    words: tuple[str, str] = ("uncertainty", "standard deviation of the samples in HU"),
    hidden: npt.NDArray[np.bool_] | None = None,
) -> Image.Image:
    """Three planes through the middle: CT values, below them their uncertainty.

    Args:
        hu: (X, Y, Z) HU, RAS+.
        spacing_mm: voxel size along X, Y, Z, so that pictures have the patient's proportions.
        std_hu: standard deviation, or another uncertainty, on the same grid; None leaves its row out.
        limit_hu: at the end of its scale.
        words: beside its row and its scale.
        hidden: bool (X, Y, Z), where a flat colour stands for the CT value; None: nowhere.
    """
    extent_mm = [size * step for size, step in zip(hu.shape, spacing_mm, strict=True)]
    width = (WIDTH - 2 * MARGIN - 2 * GAP) / 3
    heights = plane_heights(extent_mm, width)
    tallest = max(heights.values())
    rows = [("CT value", hu, "gray", HU_DISPLAY)]
    if std_hu is not None:
        rows.append((words[0], std_hu, SPREAD_COLOURS, (0.0, limit_hu)))
    page = Page(0.4 + len(rows) * (tallest + GAP) + 0.65)
    for row, (beside, volume, colours, limits) in enumerate(rows):
        top = 0.4 + row * (tallest + GAP)
        for column, (name, (_, across, _down, *letters)) in enumerate(PLANES.items()):
            left = MARGIN + column * (width + GAP)
            axes = page.picture((left, top, width, heights[name]), plane(volume, name), colours, limits)
            if row == 0 and hidden is not None:
                cut = np.ma.masked_equal(plane(hidden.astype(np.float32), name), 0)
                axes.imshow(cut, cmap=ListedColormap([_HIDDEN]), aspect="auto", interpolation="nearest")
            compass(axes, *letters)
            if row == 0:
                page.text(left + width / 2, top - 0.22, name, ha="center", fontsize=10.5)
            if row == column == 0:
                scale_bar(axes, extent_mm[across])
        page.text(MARGIN - 0.14, top + tallest / 2, beside, rotation=90, va="center", ha="right")
    bars, half = page.height - 0.5, (WIDTH - 2 * MARGIN) / 2
    colour_bar(page, (MARGIN + 0.1 * half, bars, 0.8 * half), HU_DISPLAY, "gray", "CT value in HU")
    if std_hu is not None:
        box = (MARGIN + 1.1 * half, bars, 0.8 * half)
        colour_bar(page, box, (0.0, limit_hu), SPREAD_COLOURS, words[1])
    return rendered(page.figure, 115)


def samples_picture(samples: Sequence[Volume], grid: VolumeGrid) -> Image.Image:
    """The middle coronal planes of the first samples, side by side, in the grey scale of `planes_picture`.

    Args:
        samples: (X, Y, Z) HU each, at least one, on any grids of the box that `grid` covers.
        grid: says what the box's proportions are.
    """
    count = min(len(samples), _SAMPLES_SHOWN)
    width = (WIDTH - 2 * MARGIN - (_SAMPLES_SHOWN - 1) * GAP) / _SAMPLES_SHOWN
    half = grid.half_extent_mm
    page = Page(width * half[2] / half[0] + 0.5)
    first = (WIDTH - count * (width + GAP) + GAP) / 2
    for index, volume in enumerate(samples[:count]):
        left = first + index * (width + GAP)
        page.picture((left, 0.35, width, page.height - 0.5), plane(volume, "coronal"), "gray", HU_DISPLAY)
        page.text(left + width / 2, 0.12, f"sample {index + 1}", ha="center", fontsize=10)
    return rendered(page.figure, 115)


def histogram_picture(hu_in_body: npt.NDArray[Any], samples_in_body: Sequence[npt.NDArray[Any]] = ()) -> Image.Image:
    """How often which CT value occurs in the body.

    Args:
        hu_in_body: HU of the reconstruction's voxels in the body, any shape.
        samples_in_body: the same of the samples.
    """
    figure = Figure(figsize=(8, 2.9), layout="constrained", facecolor="white")
    axes = figure.subplots()
    edges = np.arange(-1000, 1001, 20)
    for index, values in enumerate(samples_in_body):
        axes.stairs(_per_cent(values, edges), edges, color=COLOURS[1], linewidth=0.8, alpha=0.8)
        if index == 0:
            axes.plot([], [], color=COLOURS[1], linewidth=0.8, label="samples")
    axes.stairs(_per_cent(hu_in_body, edges), edges, color=COLOURS[0], linewidth=1.8, label="reconstruction")
    axes.set(xlabel="CT value in HU; what lies beyond is in the outermost bins", ylabel="% of the body's voxels")
    axes.set_xlim(-1000, 1000)
    light_grid(axes)
    axes.legend(frameon=False)
    return rendered(figure, 120)


def _per_cent(values: npt.NDArray[Any], edges: npt.NDArray[Any]) -> npt.NDArray[Any]:
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return 100 * counts / max(np.size(values), 1)


def tissue_shares(hu_in_body: npt.NDArray[Any]) -> dict[str, float]:
    """Share of the body's voxels in each of `TISSUES`; they sum to 1, unless there is no voxel."""
    count = max(np.size(hu_in_body), 1)
    return {
        name: float(((hu_in_body >= low) & (hu_in_body < high)).sum()) / count for name, (low, high) in TISSUES.items()
    }


def rendered(figure: Figure, dpi: int) -> Image.Image:
    """A figure's pixels."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    return Image.open(stream).convert("RGB")
