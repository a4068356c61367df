"""Pictures of a radiograph, of its reprojection and of what lies between them, for the report of a reconstruction."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from custom.core.attenuation import water_attenuation_per_mm
from custom.geometry import ViewRow
from custom.report.figures import DIFFERENCE_COLOURS

__all__ = ["Residual", "difference_picture", "grey_limits", "grey_picture", "residual", "side_letters"]

#: Pixels of the longer side of a picture.
_LONGEST = 480
#: A direction is named after every axis along which it has more than this share: the sine of 22.5 degrees.
_SHARE = 0.3827


class Residual(NamedTuple):
    """How far a reprojection is from its radiograph, over the exposed pixels.

    Attributes:
        rms_mm: root mean square difference [mm of water].
        mean_mm: mean of reprojection less radiograph [mm of water]; negative: the reconstruction is too thin.
        share: root mean square of the difference over that of the radiograph.
    """

    rms_mm: float
    mean_mm: float
    share: float


def residual(radiograph: Tensor, reprojection: Tensor, field_mask: Tensor, energy_kev: float) -> Residual:
    """The difference of two radiographs as numbers.

    Args:
        radiograph: line integrals (V, U).
        reprojection: of the reconstruction, (V, U).
        field_mask: bool (V, U), the pixels that count.
        energy_kev: of the line integrals.

    Raises:
        ValueError: if no pixel is exposed.
    """
    if not bool(field_mask.any()):
        raise ValueError("no pixel of the radiograph is exposed: there is nothing to compare")
    inside = radiograph[field_mask].double()
    difference = reprojection[field_mask].double() - inside
    per_mm = water_attenuation_per_mm(energy_kev)
    rms = float(difference.square().mean().sqrt())
    own = float(inside.square().mean().sqrt())
    return Residual(rms / per_mm, float(difference.mean()) / per_mm, rms / own if own > 0 else float("inf"))


def side_letters(view: Tensor) -> tuple[str, str]:
    """Where the patient's sides lie in a radiograph, at its left and at its right edge.

    Args:
        view: (13,), whose `u_step` points from the left edge to the right one, RAS+.

    Returns:
        Such as ("R", "L") for AP, or two letters ("RP", "LA") for oblique views.
    """
    u = torch.nn.functional.normalize(ViewRow.from_tensor(view.double()).u_step, dim=0)
    return _named(-u), _named(u)


def _named(direction: Tensor) -> str:
    letters = ("RL", "AP", "SI")
    return "".join(
        pair[0] if share > 0 else pair[1]
        for pair, share in zip(letters, direction.tolist(), strict=True)
        if abs(share) > _SHARE
    )


def grey_limits(radiograph: Tensor, field_mask: Tensor) -> tuple[float, float]:
    """Line integrals shown black and white: nearly the whole range of the exposed pixels."""
    values = radiograph[field_mask] if bool(field_mask.any()) else radiograph.flatten()
    low, high = np.percentile(values.cpu().numpy(), (0.5, 99.8)).tolist()
    return low, max(high, low + 1e-6)


def grey_picture(
    radiograph: Tensor, field_mask: Tensor, limits: tuple[float, float], pixel_mm: tuple[float, float]
) -> Image.Image:
    """A radiograph, bright where much was in the way; what was not exposed is hatched.

    Args:
        radiograph: line integrals (V, U).
        field_mask: bool (V, U).
        limits: shown black and white.
        pixel_mm: along v and u; only their ratio matters.
    """
    low, high = limits
    grey = ((radiograph.float() - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    size = _size(grey.shape, pixel_mm)
    picture = Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(_hatched(np.asarray(picture), field_mask, size))


def difference_picture(
    radiograph: Tensor,
    reprojection: Tensor,
    field_mask: Tensor,
    energy_kev: float,
    limit_mm: float,
    pixel_mm: tuple[float, float],
) -> Image.Image:
    """Reprojection less radiograph in colours: blue where the reconstruction is too thin, orange where too dense.

    Args:
        radiograph: line integrals (V, U).
        reprojection: (V, U).
        field_mask: bool (V, U); the rest is hatched.
        energy_kev: of the line integrals.
        limit_mm: mm of water at the ends of the colours.
        pixel_mm: along v and u.
    """
    water_mm = (reprojection - radiograph).float() / water_attenuation_per_mm(energy_kev)
    share = ((water_mm / limit_mm + 1) / 2).clamp(0, 1).cpu().numpy()
    size = _size(share.shape, pixel_mm)
    smooth = np.asarray(Image.fromarray(share).resize(size, Image.Resampling.BILINEAR))
    colours = (np.asarray(DIFFERENCE_COLOURS(smooth))[..., :3] * 255).round().astype(np.uint8)
    return Image.fromarray(_hatched(colours, field_mask, size))


def _size(shape: tuple[int, ...], pixel_mm: tuple[float, float]) -> tuple[int, int]:
    height, width = shape[0] * pixel_mm[0], shape[1] * pixel_mm[1]
    scale = _LONGEST / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _hatched(picture: npt.NDArray[Any], field_mask: Tensor, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The picture with grey diagonal lines where there was no exposure."""
    mask = Image.fromarray(field_mask.cpu().numpy().astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    dark = np.asarray(mask) == 0
    rows, columns = np.indices(dark.shape)
    lines = np.where((rows + columns) % 12 < 3, 105, 38).astype(np.uint8)
    if picture.ndim == 3:
        dark, lines = dark[..., None], lines[..., None]
    return np.where(dark, lines, picture).astype(np.uint8)
