"""Radiographs of different sizes, pixels and offsets, on one detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.geometry import is_cone
from custom.geometry.detector import isocenter_pixel_mm, match_detector
from custom.radiographs.radiograph import Radiograph

__all__ = ["Assembled", "assemble"]

_MULTIPLE = 8
_LARGEST_SIDE = 4096
#: A pixel of the common detector counts as exposed where at least this part of its area is.
_EXPOSED_PART = 0.5


@dataclass(frozen=True)
class Assembled:
    """All views on one detector.

    Args:
        image: (K, V, U) float32, line integrals; 0 where not exposed.
        views: (K, 13) float32.
        exposed: bool (K, V, U).
    """

    image: Tensor
    views: Tensor
    exposed: Tensor


def assemble(
    radiographs: Sequence[Radiograph], pixel_at_isocenter_mm: float, detector_shape: tuple[int, int] | None = None
) -> Assembled:
    """All views on one detector.

    Radiographs of one size that are exposed throughout go through `custom.geometry.detector.match_detector` where no
    detector is asked for. Others are resampled, in the same planes, to detectors whose middle is where the ray through
    the isocentre meets them, so that offsets vanish.

    Args:
        radiographs: of `read_radiographs`.
        pixel_at_isocenter_mm: wanted pixel, demagnified to the isocentre.
        detector_shape: rows and columns (V, U); None takes the smallest multiple of 8 that holds every radiograph.

    Returns:
        Image, views and exposed. Padding is not exposed and is 0.

    Raises:
        ValueError: no radiographs, a pixel that is not positive, a picture that is smaller than it or thousands of
            times as large, a detector that is too large, or one that sees nothing of a radiograph.
    """
    if not radiographs:
        raise ValueError("no radiographs to assemble")
    if not (math.isfinite(pixel_at_isocenter_mm) and pixel_at_isocenter_mm > 0):
        raise ValueError(f"pixel_at_isocenter_mm must be positive, got {pixel_at_isocenter_mm}")
    views = torch.stack([r.view.double() for r in radiographs])
    _check_sizes(radiographs, views, pixel_at_isocenter_mm)
    alike = len({tuple(r.line_integrals.shape) for r in radiographs}) == 1
    whole = all(bool(r.exposed.all()) for r in radiographs)
    if alike and whole and detector_shape is None:
        # The same pixels as every other reader of stored stacks gives.
        image = torch.stack([r.line_integrals for r in radiographs])
        image, matched = match_detector(image, views.float(), pixel_at_isocenter_mm)
        return Assembled(image, matched, torch.ones_like(image, dtype=torch.bool))
    ratio = pixel_at_isocenter_mm / isocenter_pixel_mm(views)
    shape = detector_shape or _smallest(radiographs, views, ratio)
    if min(shape) < 1 or max(shape) > _LARGEST_SIDE:
        raise ValueError(
            f"a detector of {shape[0]} x {shape[1]} pixels of {pixel_at_isocenter_mm:g} mm (at the isocentre) cannot be"
        )
    images, masks = [], []
    for k, radiograph in enumerate(radiographs):
        image, mask = _resample(radiograph, views[k], shape, ratio[k])
        if not bool(mask.any()):
            raise ValueError(
                f"{radiograph.name}: nothing of it falls on the detector of {shape[0]} x {shape[1]} pixels; is its "
                "detector offset right?"
            )
        images.append(image)
        masks.append(mask)
        views[k, 3:6] = _foot(views[k])
        views[k, 6:9] *= ratio[k, 1]
        views[k, 9:12] *= ratio[k, 0]
    return Assembled(torch.stack(images), views.float(), torch.stack(masks))


def _check_sizes(radiographs: Sequence[Radiograph], views: Tensor, pixel_at_isocenter_mm: float) -> None:
    """Refuse sizes that would take memory and time without end."""
    for radiograph, view, pixel in zip(radiographs, views, isocenter_pixel_mm(views), strict=True):
        rows, columns = radiograph.line_integrals.shape
        height, width = (float(n * step.norm()) for n, step in ((rows, view[9:12]), (columns, view[6:9])))
        sides = [rows * float(pixel[0]) / pixel_at_isocenter_mm, columns * float(pixel[1]) / pixel_at_isocenter_mm]
        if not max(sides) <= _LARGEST_SIDE:
            raise ValueError(
                f"{radiograph.name}: a picture of {width:.4g} x {height:.4g} mm on the detector is larger than "
                f"{_LARGEST_SIDE} pixels of {pixel_at_isocenter_mm:g} mm (at the isocentre); is the size of its pixels "
                "right?"
            )
        if not min(sides) >= 1:
            raise ValueError(
                f"{radiograph.name}: a picture of {width:.4g} x {height:.4g} mm on the detector is smaller than a "
                f"pixel of {pixel_at_isocenter_mm:g} mm (at the isocentre); are the size of its pixels and the "
                "distances right?"
            )


def _foot(view: Tensor) -> Tensor:
    """Where the ray through the isocentre meets the detector's plane [mm]."""
    normal = torch.linalg.cross(view[6:9], view[9:12])
    head, center = view[0:3], view[3:6]
    if bool(is_cone(view)):
        return head - head * (((center - head) @ normal) / (-head @ normal))
    return head * ((center @ normal) / (head @ normal))


def _corner_offset(view: Tensor) -> tuple[float, float]:
    """The middle of the picture beside `_foot`, in its own pixels along v and u."""
    away = view[3:6] - _foot(view)
    return tuple(float(away @ step / (step @ step)) for step in (view[9:12], view[6:9]))  # type: ignore[return-value]


def _smallest(radiographs: Sequence[Radiograph], views: Tensor, ratio: Tensor) -> tuple[int, int]:
    """Rows and columns, multiples of 8, of the detector around the axis that holds every radiograph."""
    sides = [0.0, 0.0]
    for k, radiograph in enumerate(radiographs):
        for axis, (size, offset) in enumerate(
            zip(radiograph.line_integrals.shape, _corner_offset(views[k]), strict=True)
        ):
            sides[axis] = max(sides[axis], (size + 2 * abs(offset)) / float(ratio[k, axis]))
    rows, columns = (math.ceil((side - 0.01) / _MULTIPLE) * _MULTIPLE for side in sides)
    return rows, columns


def _resample(radiograph: Radiograph, view: Tensor, shape: tuple[int, int], ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of `ratio` old ones around the axis: means over their exposed area, by midpoints."""
    offsets = _corner_offset(view)
    axes, samples, reach = [], [], []
    for axis in range(2):
        old, step = radiograph.line_integrals.shape[axis], float(ratio[axis])
        count = max(1, math.ceil(step))
        # Pixels that see something of the picture, whose border fades over half a pixel.
        first, last = (
            min(shape[axis], max(0, round_((offsets[axis] + side * (old + 1) / 2) / step + shape[axis] / 2)))
            for round_, side in ((math.floor, -1), (math.ceil, 1))
        )
        if last == first:
            return torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        position = (torch.arange(first * count, last * count) + 0.5) / count - shape[axis] / 2
        axes.append(((position * step - offsets[axis]) * 2 / old).float())
        samples.append(count)
        reach.append(slice(first, last))
    weight = radiograph.exposed.float()
    planes = torch.stack([radiograph.line_integrals * weight, weight])[None]
    total = torch.zeros(2, *shape)
    # Row by row of sub-pixels, so that fine pictures do not need a grid of millions of points at once.
    for part in range(samples[0]):
        grid = torch.stack(torch.meshgrid(axes[0][part :: samples[0]], axes[1], indexing="ij")[::-1], -1)[None]
        fine = F.grid_sample(planes, grid, padding_mode="zeros", align_corners=False)
        total[:, reach[0], reach[1]] += F.avg_pool2d(fine, (1, samples[1]))[0] / samples[0]
    exposed = total[1] >= _EXPOSED_PART
    return torch.where(exposed, total[0] / total[1].clamp(min=1e-6), torch.zeros(())), exposed
