"""Pose refinement: where the views stood, as far as the radiographs themselves tell.

Nobody stands exactly at 90 degrees. Views are moved until they agree best, without a model of bodies, so that no
unusual patient is bent towards a usual one. What they have to agree in depends on the beam: the integrals over the
planes that two views share (`view_agreement`), and for three or more parallel views the centres of mass of their rows
(`pose_consistency`). The first view stays: moving all alike changes nothing that radiographs could tell.

Every move costs as much as its usual size says, so that what the radiographs leave open stays as it is stated
(maximum a posteriori, with the noise as large as the disagreement that is left).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import least_squares
from torch import Tensor

from custom.geometry import ViewRow, is_cone, is_vertical_parallel
from custom.geometry.detector import isocenter_pixel_mm
from custom.networks.population_prior import average_pixels
from custom.trust.check_statistics import primary_that_agrees
from custom.trust.pose_consistency import FEWEST_ROWS, centers_of_mass, rotated, row_misfit
from custom.trust.view_agreement import pair_profiles

__all__ = ["PoseRefinement", "PoseTolerance", "ViewMove", "moved_view", "refine_poses"]


#: Pixels that the pictures are averaged to [mm at the isocentre].
_PIXEL_MM = 5.0
#: Independent pieces of evidence in what two views share, however many planes it has, and in all centres of mass.
_PIECES = 10.0
#: Relative contradiction that is always believed to be left.
_LEAST = 0.01
#: Of what planes show, round by round: a vertical shift is found from afar.
_BLUR_MM = (40.0, 15.0, 0.0)
#: Of a move that is believed.
_LEAST_GAIN = 10.0
#: Of a tolerance: a fit that ends there has found no pose, but the way out of something else that is wrong.
_AT_ITS_END = 0.95
#: Of half a tolerance, for derivatives by differences.
_STEP = 0.05
#: Scale between two pictures that is none of the pose's business: intensities are wrong by some per cent.
_GAIN = (0.85, 1.15)
#: Least share of a pair's planes that see the whole body.
_LEAST_SHARE = 0.5
#: A centre of mass so far off counts as much as planes that contradict each other wholly.
_CENTER_MM = 5.0


@dataclass(frozen=True)
class ViewMove:
    """How a view differs from where it is said to stand.

    Attributes:
        angle_deg: about the superior axis.
        along_rows_mm, along_columns_mm: of source and detector, at the isocentre, along u and v of the picture.
        distance: of source and detector from the isocentre, as a share.
    """

    angle_deg: float = 0.0
    along_rows_mm: float = 0.0
    along_columns_mm: float = 0.0
    distance: float = 0.0


@dataclass(frozen=True)
class PoseTolerance:
    """How far a view may be moved at most; half of it is what is usual.

    Args:
        angle_deg, shift_mm, distance: as in `ViewMove`.
    """

    angle_deg: float = 12.0
    shift_mm: float = 20.0
    distance: float = 0.05

    def usual(self, names: Sequence[str]) -> np.ndarray:
        """Half of the largest moves, of these fields of `ViewMove`."""
        largest = ViewMove(self.angle_deg, self.shift_mm, self.shift_mm, self.distance)
        return np.array([getattr(largest, name) / 2 for name in names])


@dataclass(frozen=True)
class PoseRefinement:
    """Where the views stood.

    Attributes:
        views: (K, 13).
        moves: what each differs by from what was stated; the first never moves, others only where much speaks for it.
        gains: how much better everything fits with each move than without it, as twice a log likelihood.
        free: names in `ViewMove` that the radiographs say something of; the others stay as stated.
        disagreement: (before, after), root mean square of what the views contradict each other in, relative.
    """

    views: Tensor
    moves: tuple[ViewMove, ...]
    gains: tuple[float, ...]
    free: tuple[str, ...]
    disagreement: tuple[float, float]


def moved_view(view: Tensor, move: ViewMove) -> Tensor:
    """A view (13,) that stands elsewhere."""
    row = ViewRow.from_tensor(view)
    across, down = (step / step.norm() for step in (row.u_step, row.v_step))
    shift = move.along_rows_mm * across + move.along_columns_mm * down
    cone = bool(row.is_cone)
    scale = 1 + move.distance if cone else 1.0
    head = row.head * scale + shift if cone else row.head
    return rotated(
        replace(row, head=head, detector_center=row.detector_center * scale + shift).to_tensor(), move.angle_deg
    )


def refine_poses(
    image: Tensor, views: Tensor, field_mask: Tensor, tolerance: PoseTolerance | None = None
) -> PoseRefinement | None:
    """Move views until their radiographs agree best.

    Args:
        image: line integrals (K, V, U).
        views: as they are stated (K, 13).
        field_mask: bool (K, V, U).
        tolerance: how far at most.

    Returns:
        None where the radiographs cannot tell: a single view, two parallel views, beams of both kinds.
    """
    cone = bool(is_cone(views).all())
    if len(views) < 2 or not (cone or (len(views) >= 3 and bool(is_vertical_parallel(views).all()))):
        return None
    factor = max(1, round(_PIXEL_MM / float(isocenter_pixel_mm(views).mean())))
    shown, coarse_views = average_pixels(
        torch.where(field_mask, image, 0.0)[None].double(), views[None].double(), factor
    )
    mask = average_pixels(field_mask[None].double(), views[None].double(), factor)[0][0] > 0.999
    image, stated = shown[0], coarse_views[0]
    free = tuple(ViewMove.__dataclass_fields__)[: 4 if cone else 3]  # parallel rays know no distance
    usual = (tolerance or PoseTolerance()).usual(free)

    def moves(z: np.ndarray) -> list[ViewMove]:
        values = z.reshape(len(stated) - 1, len(free)) * usual
        return [ViewMove(), *(ViewMove(**dict(zip(free, map(float, row), strict=True))) for row in values)]

    def moved(z: np.ndarray, of: Tensor) -> Tensor:
        return torch.stack([moved_view(view, move) for view, move in zip(of, moves(z), strict=True)])

    pairs = _comparable(image, stated, mask)
    if not pairs or not (cone or int(centers_of_mass(image, mask)[1].all(0).sum()) >= FEWEST_ROWS):
        return None
    z = np.zeros((len(stated) - 1) * len(free))
    for blur_mm in (*_BLUR_MM, 0.0):
        primary = primary_that_agrees(image, moved(z, stated), mask)
        rows = centers_of_mass(primary, mask)

        def contradictions(z: np.ndarray, primary=primary, rows=rows, blur_mm=blur_mm) -> list[np.ndarray]:
            there = moved(z, stated)
            planes = [_planes(primary[list(p)], there[list(p)], mask[list(p)], blur_mm) for p in pairs]
            return planes if cone else [*planes, _rows(rows, there)]

        found = contradictions(z)
        left = [max(_rms(one), _LEAST) for one in found]

        def residuals(z: np.ndarray, contradictions=contradictions, left=left) -> np.ndarray:
            weighted = zip(contradictions(z), left, strict=True)
            return np.concatenate([*(one * math.sqrt(_PIECES / len(one)) / size for one, size in weighted), z])

        def jacobian(z: np.ndarray, residuals=residuals) -> np.ndarray:
            at = residuals(z)
            return np.stack([(residuals(z + _STEP * e) - at) / _STEP for e in np.eye(len(z))], 1)

        z = least_squares(residuals, z, jacobian, bounds=(-2.0, 2.0), xtol=1e-3, ftol=1e-3, max_nfev=12).x
    cost = float(residuals(z) @ residuals(z))
    gains = []
    for k in range(len(stated) - 1):
        without = z.reshape(len(stated) - 1, -1).copy()
        without[k] = 0
        gains.append(float(np.square(residuals(without.ravel())).sum()) - cost)
    ends = np.abs(z.reshape(len(gains), -1)).max(1) >= 2 * _AT_ITS_END
    kept = np.repeat([gain >= _LEAST_GAIN and not end for gain, end in zip(gains, ends, strict=True)], len(free))
    z = np.where(kept, z, 0.0)
    before, after = (_rms(np.concatenate(contradictions(one))) for one in (np.zeros_like(z), z))
    return PoseRefinement(moved(z, views.double()), tuple(moves(z)), (0.0, *gains), free, (before, after))


def _comparable(image: Tensor, views: Tensor, field_mask: Tensor) -> list[tuple[int, int]]:
    """Pairs of views that share planes which see the whole body."""
    found = []
    for pair in combinations(range(len(image)), 2):
        whole = pair_profiles(image[list(pair)], views[list(pair)], field_mask[list(pair)])[2]
        if len(whole) and float(whole.double().mean()) >= _LEAST_SHARE:
            found.append(pair)
    return found


def _planes(image: Tensor, views: Tensor, field_mask: Tensor, blur_mm: float) -> np.ndarray:
    """Relative differences of the integrals over the planes that two views share, 0 where the body is cut off."""
    first, second, whole = (one.numpy() for one in pair_profiles(image, views, field_mask))
    first, second = first * whole, second * whole
    if blur_mm:
        first, second = (gaussian_filter1d(one, blur_mm / _PIXEL_MM, mode="constant") for one in (first, second))
    gain = np.clip(first @ second / max(second @ second, 1e-12), *_GAIN)
    size = math.sqrt(max(np.square(first).mean(), 1e-12))
    return _of_length(image.shape[1], (first - gain * second) / size)


def _of_length(count: int, values: np.ndarray) -> np.ndarray:
    """The number of planes depends a little on the poses; a fit needs as many every time."""
    return np.pad(values[:count], (0, max(0, count - len(values))))


def _rows(rows: tuple[Tensor, Tensor], views: Tensor) -> np.ndarray:
    """How far the centres of mass of parallel views' rows, at the same heights, are from projections of one point."""
    centers, whole = (one.numpy() for one in rows)
    row = ViewRow.from_tensor(views)
    index = np.arange(centers.shape[1])
    first, step = row.detector_center[:, 2].numpy(), row.v_step[:, 2].numpy()
    heights = first[0] + step[0] * (index - index.mean())
    found = []
    for k in range(len(views)):
        place = (heights - first[k]) / step[k] + index.mean()
        found.append([np.interp(place, index, one[k].astype(float), left=0, right=0) for one in (centers, whole)])
    both = np.array(found)
    seen = (both[:, 1] > 0.99).all(0)
    if seen.sum() < FEWEST_ROWS:
        return np.zeros(both[:, 0].size)
    misfit = row_misfit(torch.from_numpy(both[:, 0]), views).numpy()
    return (misfit * seen).flatten() * math.sqrt(len(seen) / seen.sum()) / _CENTER_MM


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
