"""Bringing radiographs of any detector to the pixel size that a network was trained with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from custom.geometry import is_cone

__all__ = ["isocenter_pixel_mm", "match_detector"]


def isocenter_pixel_mm(views: Float[Tensor, "K 13"]) -> Float[Tensor, "K 2"]:
    """Size of a detector pixel, demagnified to the isocentre: (K, 2) along v and u [mm]."""
    source, center, u_step, v_step = (views[:, i : i + 3] for i in (0, 3, 6, 9))
    normal = F.normalize(torch.linalg.cross(u_step, v_step), dim=-1)
    to_detector = ((center - source) * normal).sum(-1)
    to_isocenter = (-source * normal).sum(-1)
    magnification = torch.where(is_cone(views), to_detector / to_isocenter, torch.ones_like(to_detector))
    return torch.stack([v_step.norm(dim=-1), u_step.norm(dim=-1)], -1) / magnification[:, None]


def match_detector(
    image: Float[Tensor, "K V U"],
    views: Float[Tensor, "K 13"],
    pixel_at_isocenter_mm: float,
    multiple: int = 8,
    tolerance: float = 0.02,
) -> tuple[Float[Tensor, "K V2 U2"], Float[Tensor, "K 13"]]:
    """Resample radiographs to a pixel size at the isocentre, covering the same part of the detector.

    Args:
        image: line integrals (K, V, U).
        views: (K, 13).
        pixel_at_isocenter_mm: wanted pixel size, demagnified to the isocentre.
        multiple: rows and columns of the result are multiples of it; the rest is cut off evenly at the borders.
        tolerance: relative difference of pixel sizes that is left alone where rows and columns fit already.

    Returns:
        Image (K, V', U') and views (K, 13). Averaged where the result is coarser, bilinear where it is finer.

    Raises:
        ValueError: if the detector is smaller than `multiple` wanted pixels.
    """
    rows, columns = image.shape[1:]
    pixel = isocenter_pixel_mm(views)
    fits = rows % multiple == 0 and columns % multiple == 0
    if fits and bool(((pixel / pixel_at_isocenter_mm - 1).abs() <= tolerance).all()):
        return image, views
    # The smallest area in pixels of the result; views may differ in magnification.
    sizes = torch.tensor([rows, columns]) * pixel / pixel_at_isocenter_mm
    shape = [int(n) for n in (sizes.amin(0) + 1e-3) // multiple * multiple]
    if min(shape) < multiple:
        raise ValueError(
            f"a detector of {rows} x {columns} pixels of {pixel.amin():.3g} mm (at the isocentre) is smaller than "
            f"{multiple} x {multiple} pixels of {pixel_at_isocenter_mm} mm"
        )
    ratio = pixel_at_isocenter_mm / pixel
    matched, steps = [], views.clone()
    for k, view in enumerate(image):
        matched.append(_resample(view, shape, ratio[k]))
        steps[k, 6:9] *= ratio[k, 1]
        steps[k, 9:12] *= ratio[k, 0]
    return torch.stack(matched), steps


def _resample(view: Tensor, shape: list[int], ratio: Tensor) -> Tensor:
    """Pixels of `ratio` old pixels' size around the same centre; each the mean of its area (midpoints)."""
    samples = [max(1, int(r.ceil())) for r in ratio]
    axes = []
    for size, old, step, count in zip(shape, view.shape, ratio.tolist(), samples, strict=True):
        offset = (torch.arange(size * count, device=view.device) + 0.5) / count - size / 2
        axes.append(offset * step * 2 / old)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)[None].to(view.dtype)
    fine = F.grid_sample(view[None, None], grid, padding_mode="border", align_corners=False)
    return F.avg_pool2d(fine, samples)[0, 0]
