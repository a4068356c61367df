"""Resampling of radiographs of different sizes, pixels and offsets to one detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from custom.geometry import ViewRow
from custom.geometry.detector import isocenter_pixel_mm, resample_detector
from custom.radiographs.radiograph import Radiograph

__all__ = ["Assembled", "assemble"]

_MULTIPLE = 8
_LARGEST_SIDE = 4096
#: Relative difference of pixel sizes that is left alone where rows and columns fit already.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class Assembled:
    """All views on one detector.

    Args:
        image: (K, V, U) float32, line integrals; 0 outside the fields.
        views: (K, 13) float32.
        field_mask: bool (K, V, U).
    """

    image: Tensor
    views: Tensor
    field_mask: Tensor


def assemble(
    radiographs: Sequence[Radiograph], pixel_at_isocenter_mm: float, detector_shape: tuple[int, int] | None = None
) -> Assembled:
    """All views on one detector.

    Radiographs of one size that are exposed throughout, with the wanted pixels and rows and columns in multiples of 8,
    stay as they are where no detector is asked for. Others are resampled, in the same planes, to detectors whose middle
    is where the ray through the isocentre meets them, so that offsets vanish.

    Args:
        radiographs: of `read_radiographs`.
        pixel_at_isocenter_mm: wanted pixel, demagnified to the isocentre.
        detector_shape: rows and columns (V, U); None takes the smallest multiple of 8 that holds every radiograph.

    Returns:
        Image, views and field. Padding is outside the field and is 0.

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
    ratio = pixel_at_isocenter_mm / isocenter_pixel_mm(views)
    shapes = {tuple(r.line_integrals.shape) for r in radiographs}
    whole = all(bool(r.field_mask.all()) for r in radiographs)
    pixels_fit = bool(((1 / ratio - 1).abs() <= _TOLERANCE).all())
    if (
        detector_shape is None
        and len(shapes) == 1
        and whole
        and pixels_fit
        and not any(side % _MULTIPLE for side in next(iter(shapes)))
    ):
        # The same pixels as every other reader of stored stacks gives.
        image = torch.stack([r.line_integrals for r in radiographs])
        return Assembled(image, views.float(), torch.ones_like(image, dtype=torch.bool))
    shape = detector_shape or _smallest(radiographs, views, ratio)
    if min(shape) < 1 or max(shape) > _LARGEST_SIDE:
        raise ValueError(
            f"a detector of {shape[0]} x {shape[1]} pixels of {pixel_at_isocenter_mm:g} mm (at the isocentre) cannot be"
        )
    images, masks = [], []
    for k, radiograph in enumerate(radiographs):
        offset = _offset(views[k])
        image, mask = resample_detector(
            radiograph.line_integrals, radiograph.field_mask, shape, ratio[k].tolist(), offset
        )
        if not bool(mask.any()):
            raise ValueError(
                f"{radiograph.name}: nothing of it falls on the detector of {shape[0]} x {shape[1]} pixels; is its "
                "detector offset right?"
            )
        images.append(image)
        masks.append(mask)
    row = ViewRow.from_tensor(views)
    moved = replace(row, detector_center=row.foot, u_step=row.u_step * ratio[:, 1:], v_step=row.v_step * ratio[:, :1])
    return Assembled(torch.stack(images), moved.to_tensor().float(), torch.stack(masks))


def _check_sizes(radiographs: Sequence[Radiograph], views: Tensor, pixel_at_isocenter_mm: float) -> None:
    """Refuse sizes that would take memory and time without end."""
    for radiograph, view, pixel in zip(radiographs, views, isocenter_pixel_mm(views), strict=True):
        rows, columns = radiograph.line_integrals.shape
        row_mm, column_mm = ViewRow.from_tensor(view).pixel_mm.tolist()
        height, width = rows * row_mm, columns * column_mm
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


def _offset(view: Tensor) -> tuple[float, float]:
    """The middle of the picture beside the ray through the isocentre, in its own pixels along v and u."""
    row = ViewRow.from_tensor(view)
    beside = row.detector_center - row.foot
    along_v, along_u = (float(beside @ step / (step @ step)) for step in (row.v_step, row.u_step))
    return along_v, along_u


def _smallest(radiographs: Sequence[Radiograph], views: Tensor, ratio: Tensor) -> tuple[int, int]:
    """Rows and columns, multiples of 8, of the detector around the axis that holds every radiograph."""
    sides = [0.0, 0.0]
    for k, radiograph in enumerate(radiographs):
        for axis, (size, offset) in enumerate(zip(radiograph.line_integrals.shape, _offset(views[k]), strict=True)):
            sides[axis] = max(sides[axis], (size + 2 * abs(offset)) / float(ratio[k, axis]))
    rows, columns = (math.ceil((side - 0.01) / _MULTIPLE) * _MULTIPLE for side in sides)
    return rows, columns
