"""Agreement of views: whether radiographs can be of one body, without a model of bodies.

Two views of a body share integrals over planes. Parallel beam: every plane that holds both ray directions is an axial
slice (for views around the superior axis), and its integral is a sum along a row: equal in both, at every height.
Cone beam: every plane through both sources; each view knows the derivative of its integral when the plane moves along
its normal (Grangeat 1991), which is the epipolar consistency condition (Aichert et al., IEEE TMI 34(11), 2015). Planes
whose line leaves the picture inside the body are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from custom.geometry import ViewRow, is_cone, pixel_coordinates
from custom.geometry.detector import isocenter_pixel_mm
from custom.trust.picture_statistics import AIR_SHARE

__all__ = ["detail_disagreement", "disagreement", "disagreement_of", "pair_profiles"]

_UP = (0.0, 0.0, 1.0)
#: Fewest planes that say something of a pair, and their least share: where most cut the body off, the rest says little.
_FEWEST_PLANES, _LEAST_SHARE = 8, 0.5
#: Between planes, or a pixel where that is longer.
_PLANE_SPACING_MM = 5.0
#: Standard deviation of the Gaussian whose blur of a profile is taken off, which leaves the detail: what a picture that
#: cuts the body off lacks is smoother, and noise and scatter are small beside it.
_DETAIL_MM = 20.0
#: Of the longest line: what runs across the picture.
_ACROSS = 0.8
#: Sources closer to a line through the isocentre than this [mm] share planes that all look alike.
_LEAST_BASELINE_MM = 100.0


def disagreement(image: Tensor, views: Tensor, field_mask: Tensor) -> dict[tuple[int, int], float]:
    """Relative difference of the shared plane integrals, for every pair of views that can be compared.

    Args:
        image: line integrals (K, V, U).
        views: (K, 13).
        field_mask: bool (K, V, U).

    Returns:
        Pair to root mean square of the difference over that of the mean, 0 for radiographs of one body. Pairs of
        opposite views (cone beam) and pairs without enough planes are missing.
    """
    return _over_pairs(image, views, field_mask, lambda a, b, whole, _: disagreement_of(a, b, whole))


def detail_disagreement(image: Tensor, views: Tensor, field_mask: Tensor) -> dict[tuple[int, int], float]:
    """As `disagreement`, of the profiles' detail alone, which bodies that are cut off have, too.

    How a plane's integral changes from plane to plane says where the tips of the lungs, the diaphragm and the vertebrae
    lie; two pictures of one patient in one breath have them at the same heights.

    Returns:
        Pair to root mean square of the difference over that of either: 0 for the same detail, 1.4 for detail that has
        nothing to do with each other. Pairs that do not share enough planes through the body are missing.
    """
    return _over_pairs(image, views, field_mask, lambda a, b, _, step: _detail_difference(a, b, _DETAIL_MM / step))


def _over_pairs(
    image: Tensor,
    views: Tensor,
    field_mask: Tensor,
    difference: Callable[[Tensor, Tensor, Tensor, float], float | None],
) -> dict[tuple[int, int], float]:
    found = {}
    for i, j in combinations(range(len(image)), 2):
        pair = torch.tensor([i, j])
        value = difference(*pair_profiles(image[pair], views[pair], field_mask[pair]), _plane_spacing_mm(views[pair]))
        if value is not None:
            found[i, j] = value
    return found


def _detail_difference(first: Tensor, second: Tensor, deviation: float) -> float | None:
    """`deviation` of the Gaussian in planes. A profile is 0 where its picture shows nothing of the body.

    Such planes between others (behind a blade or an annotation) weigh nothing in the blur.
    """
    both = (first != 0) & (second != 0)
    planes = both.nonzero().flatten()
    if len(planes) < _FEWEST_PLANES:
        return None
    span = slice(int(planes[0]), int(planes[-1]) + 1)
    shared, weight = torch.stack([first, second])[:, span].numpy(), both[span].double().numpy()
    blurred = gaussian_filter1d(shared * weight, deviation, axis=1)[:, weight > 0]
    detail = shared[:, weight > 0] - blurred / gaussian_filter1d(weight, deviation)[weight > 0]
    size = float((detail**2).mean()) ** 0.5
    return float(((detail[0] - detail[1]) ** 2).mean()) ** 0.5 / max(size, 1e-9)


def disagreement_of(first: Tensor, second: Tensor, whole: Tensor) -> float | None:
    """What `pair_profiles` found as one number, as in `disagreement`; None for too few planes."""
    if int(whole.sum()) < max(_FEWEST_PLANES, _LEAST_SHARE * len(whole)):
        return None
    first, second = first[whole], second[whole]
    size = ((first + second) / 2).square().mean().sqrt()
    return float((first - second).square().mean().sqrt() / size.clamp(min=1e-9))


@torch.no_grad()
def pair_profiles(image: Tensor, views: Tensor, field_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integrals over the planes that two views share.

    Args:
        image: line integrals (2, V, U).
        views: (2, 13).
        field_mask: bool (2, V, U).

    Returns:
        For every plane what the first and the second view say: the plane's integral [mm] if both are parallel beam,
        else its derivative along the normal; and bool: the plane's lines lie in both pictures as far as the body does.
        Empty where the two share no family of planes that moves through the body.
    """
    views = views.double()
    cone = is_cone(views)
    step = _plane_spacing_mm(views)
    reach = float(isocenter_pixel_mm(views).mean()) * image.shape[1] / 2
    offsets = torch.arange(-reach + step / 2, reach, step, dtype=torch.float64)
    normals = _normals(views, cone, offsets)
    if normals is None:
        empty = torch.zeros(0, dtype=torch.float64)
        return empty, empty, torch.zeros(0, dtype=torch.bool)
    profiles, whole = [], torch.ones(len(offsets), dtype=torch.bool)
    for k in range(2):
        shown = torch.where(field_mask[k], image[k], torch.zeros_like(image[k])).double()
        view = views[k : k + 1]
        if bool(cone[k]):
            values, kept = _cone_profile(shown, field_mask[k], view, normals, step)
        elif bool(cone.any()):
            above, kept_above = _parallel_profile(shown, field_mask[k], view, normals, offsets + step / 2, step)
            below, kept_below = _parallel_profile(shown, field_mask[k], view, normals, offsets - step / 2, step)
            values, kept = (above - below) / step, kept_above & kept_below
        else:
            # Without the air, a wrong intensity without a patient weighs less.
            shown = torch.where(shown > AIR_SHARE * shown.max(), shown, 0.0)
            values, kept = _parallel_profile(shown, field_mask[k], view, normals, offsets, step)
        profiles.append(values)
        whole &= kept
    return profiles[0], profiles[1], whole


def _plane_spacing_mm(views: Tensor) -> float:
    return max(float(isocenter_pixel_mm(views).mean()), _PLANE_SPACING_MM)


def _normals(views: Tensor, cone: Tensor, offsets: Tensor) -> Tensor | None:
    """Unit normals (N, 3) of the shared planes at these distances from the isocentre."""
    heads, up = ViewRow.from_tensor(views).head, views.new_tensor(_UP)
    if not bool(cone.any()):
        axis = torch.linalg.cross(heads[0], heads[1])
        if float(axis.norm()) < 0.05:  # the same or opposite views: any plane along the rays will do
            axis = up - (up @ heads[0]) * heads[0]
        normal = F.normalize(axis, dim=0)
        return (normal if float(normal @ up) >= 0 else -normal).expand(len(offsets), 3)
    if bool(cone.all()):
        axis, source = F.normalize(heads[1] - heads[0], dim=0), heads[0]
    else:
        axis, source = heads[~cone][0], heads[cone][0]
    first = up - (up @ axis) * axis
    if float(first.norm()) < 0.05:
        return None
    first = F.normalize(first, dim=0)
    second = torch.linalg.cross(axis, first)
    a, b = float(first @ source), float(second @ source)
    radius = math.hypot(a, b)
    if radius < _LEAST_BASELINE_MM or radius <= float(offsets.abs().max()):
        return None
    # A plane at angle k has the distance a cos k + b sin k; of the two solutions the one next to `first`.
    turn = math.atan2(a, b)
    angle = torch.asin(offsets / radius)
    normals = []
    for solution in (angle - turn, math.pi - angle - turn):
        normals.append(solution.cos()[:, None] * first + solution.sin()[:, None] * second)
    return torch.where((normals[0] @ first >= normals[1] @ first)[:, None], normals[0], normals[1])


def _parallel_profile(
    image: Tensor, field_mask: Tensor, view: Tensor, normals: Tensor, offsets: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    along = torch.linalg.cross(normals[0], ViewRow.from_tensor(view[0]).head)
    row = ViewRow.from_tensor(view[0])
    height_mm, width_mm = _size_mm(image, row)
    width = width_mm + height_mm
    middle = float(row.detector_center @ along)
    t = torch.arange(middle - width / 2, middle + width / 2, step, dtype=torch.float64)
    points = offsets[:, None, None] * normals[:, None] + t[:, None] * along
    values, seen = _sample(image, field_mask, view, points)
    return values.sum(1) * step, _whole(values, seen, image)


def _cone_profile(
    image: Tensor, field_mask: Tensor, view: Tensor, normals: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    row = ViewRow.from_tensor(view[0])
    source, center = row.head, row.detector_center
    distance = float(source.norm())
    central = (center - source).expand_as(normals)
    central = F.normalize(central - (central * normals).sum(-1, keepdim=True) * normals, dim=-1)
    along = torch.linalg.cross(normals, central)
    length = float((center - source).norm())
    half = math.atan(0.75 * math.hypot(*_size_mm(image, row)) / length)
    turn = step / distance
    theta = torch.arange(-half, half, turn, dtype=torch.float64)
    fan = theta.cos()[:, None] * central[:, None] + theta.sin()[:, None] * along[:, None]
    tilt = turn / 2
    above = source + length * (math.cos(tilt) * fan + math.sin(tilt) * normals[:, None])
    below = source + length * (math.cos(tilt) * fan - math.sin(tilt) * normals[:, None])
    (high, seen_high), (low, seen_low) = (_sample(image, field_mask, view, points) for points in (above, below))
    both = seen_high & seen_low  # a picture's border is no edge of the body
    derivative = torch.where(both, high - low, 0.0).sum(1) * turn / (2 * tilt)
    return derivative, _whole((high + low) / 2, both, image)


def _size_mm(image: Tensor, row: ViewRow) -> tuple[float, float]:
    """Height and width of a picture (V, U) on its detector."""
    row_mm, column_mm = row.pixel_mm.tolist()
    return image.shape[0] * row_mm, image.shape[1] * column_mm


def _sample(image: Tensor, field_mask: Tensor, view: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Values (N, T) of the picture where points (N, T, 3) are seen, 0 elsewhere; and whether they are seen."""
    indices, inside = pixel_coordinates(points.flatten(0, 1), view, image.shape)
    size = image.new_tensor([image.shape[1], image.shape[0]])
    grid = ((indices[0] + 0.5) / size * 2 - 1)[None, None]
    both = torch.stack([image, field_mask.double()])[None]
    values, shown = F.grid_sample(both, grid, padding_mode="border", align_corners=False)[0, :, 0]
    seen = inside[0] & (shown > 0.5)
    return torch.where(seen, values, 0.0).reshape(points.shape[:2]), seen.reshape(points.shape[:2])


def _whole(values: Tensor, seen: Tensor, image: Tensor) -> Tensor:
    """Bool (N,): a plane's line enters and leaves the picture in air, on both sides of the body.

    A line that crosses a corner of the picture sees air alone, and the body may lie above: where it meets no body, it
    has to run across most of the picture.
    """
    count = seen.shape[1]
    position = torch.arange(count)
    first = torch.where(seen, position, count).amin(1)
    last = torch.where(seen, position, -1).amax(1)
    there = last > first
    ends = torch.stack([first.clamp(max=count - 1), last.clamp(min=0)], 1)
    gaps = seen.sum(1) < last - first + 1  # behind a collimator blade or an annotation
    air = AIR_SHARE * image.max()
    meets = ((values > air) & seen).any(1) | (last - first >= _ACROSS * (last - first).max())
    return there & ~gaps & meets & (values.gather(1, ends).amax(1) <= air)
