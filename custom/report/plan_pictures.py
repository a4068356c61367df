"""Pictures of a plan: isodoses over the CT, fields seen from the beam, dose-volume histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from custom.core.attenuation import hu_to_attenuation
from custom.geometry import VolumeGrid, views_from_angles
from custom.projection import Projector
from custom.radiotherapy import Contours, Field, PlannedCase
from custom.report.boxplots import COLOURS
from custom.report.figures import GAP, MARGIN, PLANES, WIDTH, Page, compass, light_grid, plane, plane_heights, scale_bar
from custom.report.volume_pictures import rendered

__all__ = ["ISODOSES", "dvh_picture", "fields_picture", "isodose_picture"]

#: Percent of the prescription, and the colour of its line: from cold to hot, each lighter or darker than the last.
ISODOSES = {20: "#2f6fde", 50: "#29b6c9", 80: "#4ec04e", 90: "#d8d826", 95: "#f5962a", 100: "#f04a3a", 107: "#f2a6f0"}
#: Greys show soft tissue and lung alike.
_GREY_HU = (-900.0, 300.0)
_STRUCTURE_COLOURS = {"Lung_L": "#8fc7ff", "Lung_R": "#8fc7ff", "Heart": "#ffb0a8", "Spine": "#ffe08a"}
_TARGET_COLOUR = "#ffffff"
#: Of the picture seen from the beam: pixels at the isocentre and their number.
_PIXEL_MM, _PIXELS, _MAGNIFICATION = 1.5, 200, 1.5


def isodose_picture(case: PlannedCase) -> Image.Image:
    """Isodoses and the target over the CT, in three planes through the isocentre, which a cross marks."""
    shape, spacing = case.ct.grid.shape, case.ct.grid.spacing_mm
    voxel = np.clip(np.round(case.ct.index(case.plan.isocenter_mm)), 0, np.array(shape) - 1).astype(int)
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]
    width = (WIDTH - 2 * MARGIN - 2 * GAP) / 3
    heights = plane_heights(extent, width)
    page = Page(0.45 + max(heights.values()) + 0.55)
    inside = case.contours.mask("External")
    percent = np.where(inside, 100 * case.dose_gy / case.plan.prescription_gy, np.nan)  # none in the air
    for column, (name, (cut, across, down, *letters)) in enumerate(PLANES.items()):
        box = (MARGIN + column * (width + GAP), 0.4, width, heights[name])
        axes = page.picture(box, plane(case.ct.hu, name, int(voxel[cut])), "gray", _GREY_HU)
        _isodoses(axes, plane(percent, name, int(voxel[cut])))
        for structure, colour in _drawn(case.contours).items():
            mask = plane(case.contours.mask(structure).astype(np.float32), name, int(voxel[cut]))
            if mask.any():
                axes.contour(mask, [0.5], colors=[colour], linewidths=0.7, linestyles="dashed")
        axes.plot(shape[across] - 1 - voxel[across], shape[down] - 1 - voxel[down], "+", color="white", markersize=9)
        compass(axes, *letters)
        page.text(MARGIN + column * (width + GAP) + width / 2, 0.16, name, ha="center", fontsize=10.5)
        if column == 0:
            scale_bar(axes, extent[across])
    lines = [Line2D([], [], color=colour, label=f"{level} %") for level, colour in ISODOSES.items()]
    page.figure.legend(
        handles=lines, loc="lower center", ncols=len(lines), frameon=False, labelcolor="#e8eaed", fontsize=9
    )
    return rendered(page.figure, 115)


def _isodoses(axes: Axes, percent: npt.NDArray[np.floating]) -> None:
    levels = [level for level in ISODOSES if np.nanmin(percent) < level < np.nanmax(percent)]
    if levels:
        axes.contour(percent, levels, colors=[ISODOSES[level] for level in levels], linewidths=1.1)


def _drawn(contours: Contours) -> dict[str, str]:
    """Colours of the structures that are drawn: all but the external."""
    return {
        name: _TARGET_COLOUR if one.kind == "CTV" else _STRUCTURE_COLOURS.get(name, "#cccccc")
        for name, one in contours.structures.items()
        if one.kind != "EXTERNAL"
    }


def fields_picture(case: PlannedCase) -> Image.Image:
    """What each field sees: a radiograph of the CT from its source, the field's edges, and the structures' outlines."""
    fields, count = case.plan.fields, max(2, len(case.plan.fields))
    width = min(4.3, (WIDTH - 2 * MARGIN - (count - 1) * GAP) / count)
    page = Page(0.45 + width + 0.45)
    left = (WIDTH - len(fields) * (width + GAP) + GAP) / 2
    drawn = _drawn(case.contours)
    for index, field in enumerate(fields):
        axes = page.panel(left + index * (width + GAP), 0.4, width, width)
        seen = _from_the_source(case, field, [case.contours.mask(name) for name in drawn])
        low, high = np.percentile(seen[0], (1, 99.7))
        axes.imshow(seen[0], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect="auto")
        for colour, shadow in zip(drawn.values(), seen[1:], strict=True):
            if shadow.max() > 0:
                axes.contour(shadow, [min(3.0, shadow.max() / 2)], colors=[colour], linewidths=0.8, linestyles="dashed")
        middle = (_PIXELS - 1) / 2
        corners = field.outline()[[0, 1, 2, 3, 0]] / _PIXEL_MM
        axes.plot(middle + corners[:, 0], middle - corners[:, 1], color="#f5d327", linewidth=1.6)
        axes.plot(middle, middle, "+", color="#f5d327", markersize=10)
        axes.set(xlim=(-0.5, _PIXELS - 0.5), ylim=(_PIXELS - 0.5, -0.5))
        _letters(axes, field)
        words = f"{field.name}, gantry {field.gantry_deg:g}°, collimator {field.collimator_deg:g}°"
        page.text(left + index * (width + GAP) + width / 2, 0.16, words, ha="center", fontsize=10)
    names = [Line2D([], [], color=colour, linestyle="--", label=name) for name, colour in drawn.items()]
    page.figure.legend(
        handles=names, loc="lower center", ncols=len(names), frameon=False, labelcolor="#e8eaed", fontsize=9
    )
    return rendered(page.figure, 115)


def _letters(axes: Axes, field: Field) -> None:
    """Which side of the patient lies where along Xg; none is named that lies more along the beam than across it."""
    right, anterior = field.axes[1][:2]
    ends = ("L", "R") if abs(right) >= abs(anterior) else ("P", "A")
    toward = right if abs(right) >= abs(anterior) else anterior
    compass(axes, *(ends if toward > 0 else ends[::-1]), "S", "I")


def _from_the_source(
    case: PlannedCase, field: Field, masks: Sequence[npt.NDArray[np.bool_]]
) -> list[npt.NDArray[np.float32]]:
    """The CT's radiograph and the masks' shadows (mm), each (V, U), as seen from a field's source."""
    center = np.asarray(case.ct.grid.center_mm) - np.asarray(case.plan.isocenter_mm)
    grid = VolumeGrid(case.ct.grid.shape, case.ct.grid.spacing_mm, (center[0], center[1], center[2]))
    distance = case.plan.source_to_axis_mm
    view = views_from_angles(
        [field.gantry_deg + 90.0], "cone", distance, distance * _MAGNIFICATION, _PIXEL_MM * _MAGNIFICATION
    ).float()
    volumes = [hu_to_attenuation(torch.from_numpy(case.ct.hu)), *(torch.from_numpy(m).float() for m in masks)]
    projector = Projector(grid, (_PIXELS, _PIXELS))
    with torch.inference_mode():
        return [projector(volume[None, None], view)[0, 0].numpy() for volume in volumes]


def dvh_picture(
    doses_gy: npt.NDArray[np.floating],
    curves: Mapping[str, npt.NDArray[np.floating]],
    bands: Mapping[str, npt.NDArray[np.floating]],
    true: Mapping[str, npt.NDArray[np.floating]],
) -> Image.Image:
    """Cumulative dose-volume histograms.

    Args:
        doses_gy: (N,).
        curves: of the plan's own CT, percent by structure.
        bands: lower and upper percentile of the samples, (2, N) by structure.
        true: of the same plan on the true CT, dashed.
    """
    figure = Figure(figsize=(8, 3.8), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for colour, (name, values) in zip(COLOURS, curves.items(), strict=False):
        if name in bands:
            axes.fill_between(doses_gy, *bands[name], color=colour, alpha=0.22, linewidth=0)
        axes.plot(doses_gy, values, color=colour, linewidth=1.6, label=name)
        if name in true:
            axes.plot(doses_gy, true[name], color=colour, linewidth=1.2, linestyle="--")
    if true:
        axes.plot([], [], color="#555", linestyle="--", label="delivered to the true CT")
    axes.set(xlabel="dose in Gy", ylabel="% of the structure with at least this dose", ylim=(0, 101))
    axes.set_xlim(0, float(doses_gy[-1]))
    light_grid(axes)
    axes.legend(frameon=False)
    return rendered(figure, 120)
