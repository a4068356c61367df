"""Resampling of radiographs to a model's detector."""

from __future__ import annotations

import math

from torch import Tensor

from custom.models import Model
from custom.radiographs import Radiograph, assemble

__all__ = ["resample_for_model"]

#: Sizes of detectors are multiples of it.
MULTIPLE = 8


def resample_for_model(radiographs: list[Radiograph], model: Model) -> tuple[Tensor, Tensor, Tensor]:
    """The radiographs as a model reads them: its pixels, and no more rows and columns than it was trained with.

    Smaller radiographs stay as they are, since networks read any size. Sizes are multiples of 8: what is smaller, or
    smaller than another view, is padded, and no measured pixel is cut off for it.

    Returns:
        Line integrals (K, V, U), 0 outside the field; views (K, 13); the field, bool (K, V, U).
    """
    found = assemble(radiographs, model.pixel_at_isocenter_mm)
    image, field_mask = found.image, found.field_mask
    side = [n * s for n, s in zip(model.grid.shape, model.grid.spacing_mm, strict=True)]
    diagonal = math.ceil(math.hypot(*side) / model.pixel_at_isocenter_mm / MULTIPLE) * MULTIPLE
    most = model.detector_shape or (diagonal, diagonal)
    for axis in (1, 2):
        size = image.shape[axis]
        seen = field_mask.amax(dim=(0, 3 - axis)).nonzero().flatten()
        reach = 2 * max(size / 2 - int(seen[0]), int(seen[-1]) + 1 - size / 2)
        wanted = min(most[axis - 1], math.ceil(reach / MULTIPLE) * MULTIPLE, size)
        surplus = (size - wanted) // 2
        image, field_mask = (x.narrow(axis, surplus, size - 2 * surplus) for x in (image, field_mask))
    return image, found.views, field_mask
