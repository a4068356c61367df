"""Filtered back-projection, after Feldkamp, Davis and Kress (FDK) for cones.

Takes and gives what `sirt` does; one pass, which treats what was not measured as zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from custom.fusion import sample_features
from custom.geometry import ViewRow, VolumeGrid, is_cone, rays
from custom.projection.projector import Projector, full_precision
from custom.projection.view_geometry import isocenter_pixels_mm, views_of_each

__all__ = [
    "FILTER_WINDOWS",
    "angular_weights",
    "fdk",
]

FILTER_WINDOWS = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann")
# Filtering along rows supposes that a row runs around the patient.
_LARGEST_TILT = math.sin(math.radians(10))
_POINTS_AT_A_TIME = 2**20


@torch.no_grad()
def fdk(
    projector: Projector,
    image: Float[Tensor, "B K V U"],
    views: Float[Tensor, "*_ K 13"] | None = None,
    window: str = "hann",
    cutoff: float | None = None,
    bounds: tuple[float, float] = (0.0, float("inf")),
    view_mask: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B 1 X Y Z"]:
    """Filtered back-projection: for parallel beams, and with Feldkamp's weights for cones.

    f(x) = sum over views of w_k / U_k(x)^2 * (h * (c p_k))(x), h the ramp filter along the detector's rows, at pixels
    demagnified to the isocentre; for cones c is the cosine of the ray's angle to the central one and U the voxel's
    distance from the source over that of the isocentre (Feldkamp, Davis and Kress, JOSA A 1:612, 1984; Kak and
    Slaney, Principles of Computerized Tomographic Imaging, 1988, sections 3.3 and 3.6); for parallel beams both are 1.
    Every voxel stands for itself: tissue outside the grid does no harm as long as the detector sees all of it, but few
    views leave streaks. For cones a half circle is taken for a parallel one (no weights for what a fan sees twice): a
    whole chest comes out some percent too dense.

    Args:
        projector: its grid is the grid of the result.
        image: line integrals (B, K, V, U).
        views: (K, 13) or (B, K, 13) around the superior axis; None for the projector's own.
        window: on the ramp, of `FILTER_WINDOWS`; "ram-lak" is none.
        cutoff: frequency at which the window ends, over the Nyquist frequency of the pixels, up to 1; None: what the
            voxels can hold.
        bounds: smallest and largest attenuation [1/mm].
        view_mask: bool (B, K); views that are False carry no weight.

    Returns:
        Attenuation [1/mm], (B, 1, X, Y, Z).

    Raises:
        ValueError: for shapes that do not fit the projector, an unknown window, a cutoff outside (0, 1], or views that
            do not stand around the superior axis.
    """
    if window not in FILTER_WINDOWS:
        raise ValueError(f"window must be one of {FILTER_WINDOWS}, got {window!r}")
    if cutoff is not None and not 0 < cutoff <= 1:
        raise ValueError(f"cutoff must lie in (0, 1], a share of the pixels' Nyquist frequency, got {cutoff}")
    image = full_precision(image)
    views = views_of_each(projector, image, views)
    _check_upright(views)
    weights = angular_weights(views, view_mask)
    grid, detector_shape = projector.grid, image.shape[2:]
    steps = isocenter_pixels_mm(views)[..., 1]
    filtered = torch.empty_like(image)
    for b, k in ((b, k) for b in range(len(image)) for k in range(image.shape[1])):
        step = float(steps[b, k])
        share = min(1.0, step / max(grid.spacing_mm[:2])) if cutoff is None else cutoff
        rows = image[b, k] * _cosine(views[b, k], detector_shape).to(image)
        filtered[b, k] = _filter_rows(rows, step, window, share)
    return _back_project(filtered, views, weights, grid, detector_shape).clamp_(*bounds)


def angular_weights(views: Float[Tensor, "*B K 13"], view_mask: Tensor | None = None) -> Float[Tensor, "*B K"]:
    """How much of the half circle each view stands for [rad]: half the gaps to its neighbours, pi in total.

    Angles count modulo 180 degrees, so that opposite views share what one of them would have; views at the same angle
    share alike. For a full or half circle of even steps these are the weights of the textbook.

    Args:
        views: (B, K, 13).
        view_mask: bool (B, K); views that are False get 0.

    Returns:
        (B, K), float64.
    """
    row = ViewRow.from_tensor(views)
    direction = torch.where(row.is_cone[..., None], row.normal, row.head).double()
    angles = torch.atan2(direction[..., 1], direction[..., 0]) % math.pi
    weights = torch.zeros_like(angles)
    for b in range(len(views)):
        chosen = torch.arange(views.shape[1]) if view_mask is None else view_mask[b].nonzero().flatten().cpu()
        # Views within a thousandth of a degree are the same one.
        steps = (angles[b, chosen] / math.pi * 180e3).round().long() % 180_000
        distinct, which, count = steps.unique(return_inverse=True, return_counts=True)
        where = distinct.double() / 180e3 * math.pi
        gaps = torch.diff(where, append=where[:1] + math.pi)
        weights[b, chosen] = ((gaps + gaps.roll(1)) / 2 / count)[which]
    return weights


def _check_upright(views: Tensor) -> None:
    row = ViewRow.from_tensor(views)
    tilt = torch.maximum(F.normalize(row.u_step, dim=-1)[..., 2].abs(), row.normal[..., 2].abs())
    tilt = torch.where(row.is_cone, tilt, torch.maximum(tilt, row.head[..., 2].abs()))
    if bool((tilt > _LARGEST_TILT).any()):
        b, k = (int(i) for i in (tilt > _LARGEST_TILT).nonzero()[0])
        raise ValueError(
            f"FDK wants views around the superior axis, but view {k} of case {b} is tilted by "
            f"{math.degrees(math.asin(min(1.0, float(tilt[b, k])))):.0f} degrees; sirt and tv take any view"
        )


def _cosine(view: Tensor, detector_shape: Sequence[int]) -> Tensor:
    """Cosine of the angle between each pixel's ray and the detector's normal, (V, U); 1 for parallel beams."""
    if not bool(is_cone(view)):
        return torch.ones((), dtype=view.dtype, device=view.device)
    direction = rays(view[None], detector_shape)[1][0]
    return (direction * ViewRow.from_tensor(view).normal).sum(-1)


def _filter_rows(rows: Tensor, step_mm: float, window: str, cutoff: float) -> Tensor:
    """Rows (V, U) convolved with the windowed ramp, in 1/mm."""
    columns = rows.shape[-1]
    length = 2 ** math.ceil(math.log2(2 * columns))
    kernel = torch.zeros(length, dtype=torch.float64, device=rows.device)
    odd = torch.arange(1, length // 2, 2, device=rows.device)
    # Band-limited ramp sampled in space (Ramachandran and Lakshminarayanan 1971): sampled in frequency it would lose
    # the mean.
    kernel[0] = 0.25
    kernel[odd] = -1 / (math.pi * odd.double()).square()
    kernel[length - odd] = kernel[odd]
    response = torch.fft.rfft(kernel).real / step_mm
    frequency = torch.linspace(0, 1, len(response), dtype=torch.float64, device=rows.device) / cutoff
    shapes = {
        "ram-lak": torch.ones_like(frequency),
        "shepp-logan": torch.sinc(frequency / 2),
        "cosine": (frequency * math.pi / 2).cos(),
        "hamming": 0.54 + 0.46 * (frequency * math.pi).cos(),
        "hann": 0.5 + 0.5 * (frequency * math.pi).cos(),
    }
    response = torch.where(frequency <= 1, response * shapes[window], 0).to(rows.dtype)
    filtered = torch.fft.irfft(torch.fft.rfft(rows, n=length) * response, n=length)
    return filtered[:, :columns]


def _back_project(
    filtered: Tensor, views: Tensor, weights: Tensor, grid: VolumeGrid, detector_shape: Sequence[int]
) -> Tensor:
    """Weighted sum over the views at every voxel centre, (B, 1, X, Y, Z)."""
    points = grid.points(filtered.device).reshape(-1, 3)
    volume = filtered.new_zeros(len(filtered), len(points))
    views = views.float()
    row = ViewRow.from_tensor(views)
    to_isocenter, cone = row.source_to_isocenter_mm, row.is_cone
    for first in range(0, len(points), _POINTS_AT_A_TIME):
        piece = points[first : first + _POINTS_AT_A_TIME]
        for k in range(filtered.shape[1]):
            own = views[:, k : k + 1]
            values, _ = sample_features(filtered[:, k : k + 1, None], own, piece, detector_shape)
            factor = weights[:, k, None].to(filtered)
            if bool(cone[:, k].any()):
                depth = (piece - own[..., 0:3]) @ row.normal[:, k, :, None]
                ratio = depth[..., 0] / to_isocenter[:, k, None]
                factor = torch.where(cone[:, k, None], factor / ratio.square(), factor)
            volume[:, first : first + len(piece)] += values[:, 0, 0] * factor
    return volume.reshape(len(filtered), 1, *grid.shape)
