"""What a physicist asks for before a network: filtered back-projection (FDK) and total variation.

Both take and give what `sirt` does. FDK is one pass and treats what was not measured as zero; total variation is
the smoothest volume, in a certain sense, that explains the radiographs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.fusion import sample_features
from custom.geometry import VolumeGrid, is_cone, rays
from custom.projection.projector import BoundProjector, Projector, full_precision

__all__ = ["FILTER_WINDOWS", "angular_weights", "fdk", "total_variation", "tv"]

FILTER_WINDOWS = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann")
# Filtering along rows supposes that a row runs around the patient.
_LARGEST_TILT = math.sin(math.radians(10))
_POINTS_AT_A_TIME = 2**20
# Between the steps of the rays' dual variables and the volume's: what converged fastest on chests of 2 and 4 views.
_BALANCE = 0.5


@torch.no_grad()
def fdk(
    projector: Projector,
    image: Tensor,
    views: Tensor | None = None,
    window: str = "hann",
    cutoff: float | None = None,
    bounds: tuple[float, float] = (0.0, float("inf")),
    view_mask: Tensor | None = None,
) -> Tensor:
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
    views = _views_of_each(projector, image, views)
    _check_upright(views)
    weights = angular_weights(views, view_mask)
    grid, detector_shape = projector.grid, image.shape[2:]
    steps = _pixels_mm(views)[..., 1]
    filtered = torch.empty_like(image)
    for b, k in ((b, k) for b in range(len(image)) for k in range(image.shape[1])):
        step = float(steps[b, k])
        share = min(1.0, step / max(grid.spacing_mm[:2])) if cutoff is None else cutoff
        rows = image[b, k] * _cosine(views[b, k], detector_shape).to(image)
        filtered[b, k] = _filter_rows(rows, step, window, share)
    return _back_project(filtered, views, weights, grid, detector_shape).clamp_(*bounds)


def angular_weights(views: Tensor, view_mask: Tensor | None = None) -> Tensor:
    """How much of the half circle each view stands for [rad]: half the gaps to its neighbours, pi in total.

    Angles count modulo 180 degrees, so that opposite views share what one of them would have; views at the same angle
    share alike. For a full or half circle of even steps these are the weights of the textbook.

    Args:
        views: (B, K, 13).
        view_mask: bool (B, K); views that are False get 0.

    Returns:
        (B, K), float64.
    """
    direction = torch.where(is_cone(views)[..., None], _normal(views), views[..., 0:3]).double()
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


def _views_of_each(projector: Projector, image: Tensor, views: Tensor | None) -> Tensor:
    """Checked views (B, K, 13) on the device of the image."""
    projector.check_image(image, views)
    chosen = projector.views if views is None else views
    assert chosen is not None  # check_image has seen to it
    return chosen.detach().to(image.device).expand(len(image), -1, -1)


def _normal(views: Tensor) -> Tensor:
    """Unit normal of the detector, away from the source."""
    return F.normalize(torch.linalg.cross(views[..., 6:9], views[..., 9:12]), dim=-1)


def _check_upright(views: Tensor) -> None:
    tilt = torch.stack([F.normalize(views[..., 6:9], dim=-1)[..., 2].abs(), _normal(views)[..., 2].abs()]).amax(0)
    tilt = torch.where(is_cone(views), tilt, torch.maximum(tilt, views[..., 2].abs()))
    if bool((tilt > _LARGEST_TILT).any()):
        b, k = (int(i) for i in (tilt > _LARGEST_TILT).nonzero()[0])
        raise ValueError(
            f"FDK wants views around the superior axis, but view {k} of case {b} is tilted by "
            f"{math.degrees(math.asin(min(1.0, float(tilt[b, k])))):.0f} degrees; sirt and tv take any view"
        )


def _distances_mm(views: Tensor) -> tuple[Tensor, Tensor]:
    """From the source to the detector and to the isocentre along the detector's normal, (..., )."""
    normal = _normal(views)
    to_detector = ((views[..., 3:6] - views[..., 0:3]) * normal).sum(-1)
    return to_detector, (-views[..., 0:3] * normal).sum(-1)


def _pixels_mm(views: Tensor) -> Tensor:
    """Size of a pixel along v and u, seen along the central ray and demagnified to the isocentre, (B, K, 2)."""
    steps = torch.stack([views[..., 9:12], views[..., 6:9]], -2)
    to_detector, to_isocenter = _distances_mm(views)
    direction = views[..., None, 0:3]
    across = steps - (steps * direction).sum(-1, keepdim=True) * direction
    shrunk = steps.norm(dim=-1) * (to_isocenter / to_detector)[..., None]
    return torch.where(is_cone(views)[..., None], shrunk, across.norm(dim=-1))


def _cosine(view: Tensor, detector_shape: Sequence[int]) -> Tensor:
    """Cosine of the angle between each pixel's ray and the detector's normal, (V, U); 1 for parallel beams."""
    if not bool(is_cone(view)):
        return torch.ones((), dtype=view.dtype, device=view.device)
    direction = rays(view[None], detector_shape)[1][0]
    return (direction * _normal(view)).sum(-1)


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
    to_isocenter = _distances_mm(views)[1]
    cone = is_cone(views)
    for first in range(0, len(points), _POINTS_AT_A_TIME):
        piece = points[first : first + _POINTS_AT_A_TIME]
        for k in range(filtered.shape[1]):
            own = views[:, k : k + 1]
            values, _ = sample_features(filtered[:, k : k + 1, None], own, piece, detector_shape)
            factor = weights[:, k, None].to(filtered)
            if bool(cone[:, k].any()):
                depth = (piece - own[..., 0:3]) @ _normal(own)[:, 0, :, None]
                ratio = depth[..., 0] / to_isocenter[:, k, None]
                factor = torch.where(cone[:, k, None], factor / ratio.square(), factor)
            volume[:, first : first + len(piece)] += values[:, 0, 0] * factor
    return volume.reshape(len(filtered), 1, *grid.shape)


@torch.no_grad()
def tv(
    projector: Projector,
    image: Tensor,
    views: Tensor | None = None,
    weight: float = 0.002,
    iterations: int = 200,
    bounds: tuple[float, float] = (0.0, float("inf")),
    initial: Tensor | None = None,
    view_mask: Tensor | None = None,
) -> Tensor:
    """Least squares with total variation, by Chambolle and Pock's primal-dual method.

    Minimises sum over rays of r (A x - p)^2 / 2 + weight * sum over voxels of |grad x| within `bounds`. r is the area
    of a pixel (at the isocentre) over the volume of a voxel and the length of the ray: a constant error e of x counts
    e^2 / 2 in every voxel and view, so that one weight serves every grid and detector. Steps are preconditioned by the
    row and column sums of A (Pock and Chambolle, ICCV 2011, equations 10 and 4).

    Args:
        projector: its grid is the grid of the result; there has to be room for all tissue that the rays cross.
        image: line integrals (B, K, V, U).
        views: (K, 13) or (B, K, 13); None for the projector's own.
        weight: of the total variation, in the unit of x times mm; the default is 0.1 mm times the attenuation of water
            at 70 keV, chosen on two chests of 2 and 4 views.
        iterations: number of iterations.
        bounds: smallest and largest attenuation [1/mm].
        initial: start volume (B, 1, X, Y, Z), zeros if None.
        view_mask: bool (B, K); views that are False carry no weight.

    Returns:
        Attenuation [1/mm], (B, 1, X, Y, Z).

    Raises:
        ValueError: for shapes that do not fit the projector, fewer than one iteration, or a negative weight.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not weight >= 0:
        raise ValueError(f"weight must not be negative, got {weight}")
    image = full_precision(image)
    of_each = _views_of_each(projector, image, views)
    bound = projector.bind(views, image)
    with ExitStack() as stack:
        for operator in bound.operators:
            stack.enter_context(operator.prepared())
        return _primal_dual(bound, projector.grid, image, of_each, weight, iterations, bounds, initial, view_mask)


def _primal_dual(
    bound: BoundProjector,
    grid: VolumeGrid,
    image: Tensor,
    views: Tensor,
    weight: float,
    iterations: int,
    bounds: tuple[float, float],
    initial: Tensor | None,
    view_mask: Tensor | None,
) -> Tensor:
    spacing = image.new_tensor(grid.spacing_mm)
    lengths = bound.forward(image.new_ones(len(image), 1, *grid.shape))
    # As in sirt: rays that only graze the grid would amplify noise.
    seen = lengths > 0.1 * float(spacing.min())
    if view_mask is not None:
        seen = seen & view_mask[:, :, None, None].to(seen.device)
    lengths = lengths.clamp(min=0.1 * float(spacing.min()))
    pixels = (_pixels_mm(views).prod(-1) / spacing.prod()).to(image)
    ray_weight = seen * pixels[..., None, None] / lengths
    column_sum = bound.adjoint(seen.to(image))
    # The gradient is scaled so that both parts of the operator have columns of like sums.
    scale = column_sum.mean() / (2 / spacing).sum() if weight else column_sum.new_zeros(())
    balance = _BALANCE * pixels.mean()
    ray_step = balance / lengths
    gradient_step = balance * spacing / 2 / scale if weight else spacing
    step = 1 / (balance * (column_sum + scale * (2 / spacing).sum()).clamp(min=1e-3 * float(spacing.min())))
    volume = torch.zeros_like(column_sum) if initial is None else initial.clone().to(image)
    ahead = volume
    ray_dual = torch.zeros_like(image)
    gradient_dual = [torch.zeros_like(volume) for _ in range(3)] if weight else []
    for _ in range(iterations):
        residual = bound.forward(ahead).sub_(image)
        ray_dual = (ray_dual + ray_step * residual) * (ray_weight / (ray_weight + ray_step))
        descent = bound.adjoint(ray_dual)
        if weight:
            for axis, dual in enumerate(gradient_dual):
                dual.add_(_difference(ahead, axis) / spacing[axis] * scale * gradient_step[axis])
            norm = torch.stack([dual.square() for dual in gradient_dual]).sum(0).sqrt_().mul_(scale / weight)
            for axis, dual in enumerate(gradient_dual):
                dual.div_(norm.clamp(min=1))
                descent.add_(_difference_transposed(dual, axis) / spacing[axis] * scale)
        updated = (volume - step * descent).clamp_(*bounds)
        ahead = 2 * updated - volume
        volume = updated
    return volume


def total_variation(volume: Tensor, grid: VolumeGrid) -> Tensor:
    """Sum over voxels of |grad x| [unit of x per mm], isotropic, forward differences: (B,)."""
    parts = [(_difference(volume, axis) / grid.spacing_mm[axis]).square() for axis in range(3)]
    return torch.stack(parts).sum(0).sqrt().sum((1, 2, 3, 4))


def _difference(volume: Tensor, axis: int) -> Tensor:
    """Forward difference along x, y or z, 0 at the last voxel, (B, 1, X, Y, Z)."""
    out = torch.zeros_like(volume)
    n = volume.shape[2 + axis] - 1
    out.narrow(2 + axis, 0, n).copy_(volume.narrow(2 + axis, 1, n)).sub_(volume.narrow(2 + axis, 0, n))
    return out


def _difference_transposed(dual: Tensor, axis: int) -> Tensor:
    n = dual.shape[2 + axis] - 1
    out = torch.zeros_like(dual)
    inner = dual.narrow(2 + axis, 0, n)
    out.narrow(2 + axis, 0, n).sub_(inner)
    out.narrow(2 + axis, 1, n).add_(inner)
    return out
