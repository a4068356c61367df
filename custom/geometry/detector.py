"""Radiographs on detectors of other pixels: the one resampler, and the pixel size that a network was trained with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from custom.geometry.view_row import ViewRow

__all__ = ["isocenter_pixel_mm", "match_detector", "resample_detector"]

#: A pixel of the new detector belongs to the field where at least this part of its area does.
_FIELD_PART = 0.5
#: Rows and columns are multiples of the first; pixel sizes that differ by less than the second are alike.
_MULTIPLE, _TOLERANCE = 8, 0.02


def isocenter_pixel_mm(views: Float[Tensor, "K 13"]) -> Float[Tensor, "K 2"]:
    """Size of a detector pixel, demagnified to the isocentre: (K, 2) along v and u [mm]."""
    row = ViewRow.from_tensor(views)
    ratio = row.source_to_detector_mm / row.source_to_isocenter_mm
    return row.pixel_mm / torch.where(row.is_cone, ratio, torch.ones_like(ratio))[:, None]


def match_detector(
    image: Float[Tensor, "K V U"],
    views: Float[Tensor, "K 13"],
    pixel_at_isocenter_mm: float,
) -> tuple[Float[Tensor, "K V2 U2"], Float[Tensor, "K 13"]]:
    """Resample radiographs to a pixel size at the isocentre, covering the same part of the detector.

    Args:
        image: line integrals (K, V, U).
        views: (K, 13).
        pixel_at_isocenter_mm: wanted pixel size, demagnified to the isocentre; pixels within 2 % of it are left alone.

    Returns:
        Image (K, V', U') and views (K, 13). Averaged where the result is coarser, bilinear where it is finer. Rows and
        columns are multiples of 8; the rest is cut off evenly at the borders.

    Raises:
        ValueError: if the detector is smaller than 8 wanted pixels.
    """
    rows, columns = image.shape[1:]
    pixel = isocenter_pixel_mm(views)
    fits = rows % _MULTIPLE == 0 and columns % _MULTIPLE == 0
    if fits and bool(((pixel / pixel_at_isocenter_mm - 1).abs() <= _TOLERANCE).all()):
        return image, views
    # The smallest area in pixels of the result; views may differ in magnification.
    sizes = torch.tensor([rows, columns]) * pixel / pixel_at_isocenter_mm
    shape = [int(n) for n in (sizes.amin(0) + 1e-3) // _MULTIPLE * _MULTIPLE]
    if min(shape) < _MULTIPLE:
        raise ValueError(
            f"a detector of {rows} x {columns} pixels of {pixel.amin():.3g} mm (at the isocentre) is smaller than "
            f"{_MULTIPLE} x {_MULTIPLE} pixels of {pixel_at_isocenter_mm} mm"
        )
    ratio = pixel_at_isocenter_mm / pixel
    matched, steps = [], views.clone()
    for k, view in enumerate(image):
        matched.append(resample_detector(view, None, shape, ratio[k].tolist())[0])
        steps[k, 6:9] *= ratio[k, 1]
        steps[k, 9:12] *= ratio[k, 0]
    return torch.stack(matched), steps


def resample_detector(
    image: Tensor,
    field_mask: Tensor | None,
    shape: Sequence[int],
    ratio: Sequence[float],
    offset: Sequence[float] = (0.0, 0.0),
) -> tuple[Tensor, Tensor]:
    """A radiograph in other pixels: each the mean of the part of its area that belongs to the field (midpoints).

    Args:
        image: line integrals (V, U).
        field_mask: bool (V, U); None: all of it is exposed.
        shape: rows and columns of the result (V', U').
        ratio: size of a new pixel in old ones, along v and u.
        offset: middle of the old picture beside that of the new one, in old pixels along v and u.

    Returns:
        Image (V', U'), 0 outside the field, and the field, bool (V', U').
    """
    axes, inside, samples, reach = [], [], [], []
    for old, size, step, moved in zip(image.shape, shape, ratio, offset, strict=True):
        count = max(1, math.ceil(step))
        # Only pixels that see something of the picture: a fine one on a wide detector would take endless memory.
        first, last = (
            min(size, max(0, round_((moved + side * old / 2) / step + size / 2)))
            for round_, side in ((math.floor, -1), (math.ceil, 1))
        )
        if last == first:
            return image.new_zeros(tuple(shape)), torch.zeros(tuple(shape), dtype=torch.bool, device=image.device)
        middles = (torch.arange(first * count, last * count, device=image.device) + 0.5) / count - size / 2
        # In float64, where the border of a picture is not a matter of rounding.
        position = (middles.double() * step - moved) * 2 / old
        axes.append(position.to(image.dtype))
        inside.append((position.abs() <= 1 + 1e-9).to(image.dtype))
        samples.append(count)
        reach.append(slice(first, last))
    weight = torch.ones_like(image) if field_mask is None else field_mask.to(image.dtype)
    planes = torch.stack([image * weight, weight])[None]
    total = image.new_zeros((2, *shape))
    # Row by row of sub-pixels, so that fine pictures do not need a grid of millions of points at once.
    for part in range(samples[0]):
        rows = slice(part, None, samples[0])
        grid = torch.stack(torch.meshgrid(axes[0][rows], axes[1], indexing="ij")[::-1], -1)[None]
        fine = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
        fine = fine * inside[0][rows, None] * inside[1]
        total[:, reach[0], reach[1]] += F.avg_pool2d(fine, (1, samples[1]))[0] / samples[0]
    mask = total[1] >= _FIELD_PART
    return torch.where(mask, total[0] / total[1].clamp(min=1e-6), image.new_zeros(())), mask
