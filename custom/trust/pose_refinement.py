"""Pose refinement: where the views stood, as far as the radiographs themselves tell.

Nobody stands exactly at 90 degrees. Views are moved until they agree best, without a model of bodies, so that no
unusual patient is bent towards a usual one. What they have to agree in depends on the beam. Cone beam: the integrals
over the planes that two views share (`view_agreement`), which are the epipolar consistency conditions (Debbeler et
al., Fully3D 2013; Aichert et al., IEEE TMI 34(11), 2015). Three or more parallel views: the same over axial planes,
and the centres of mass of their rows (`pose_consistency`; Ludwig, Comm. Pure Appl. Math. 19, 1966). The first view
stays: moving all alike changes nothing that radiographs could tell.

Every move costs as much as its usual size says, so that what the radiographs leave open stays as it is stated
(maximum a posteriori, with the noise as large as the disagreement that is left), and of a move only the numbers remain
that it does not fit without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeAlias

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import least_squares
from torch import Tensor

from custom.geometry import ViewRow, is_cone, is_vertical_parallel
from custom.networks.feature_unet import averaging_factor
from custom.networks.population_prior import average_pixels
from custom.trust.check_statistics import primary_that_agrees
from custom.trust.pose_consistency import FEWEST_ROWS, centers_of_mass, rotated, row_misfit
from custom.trust.view_agreement import pair_profiles

__all__ = ["PoseRefinement", "PoseTolerance", "ViewMove", "moved_view", "refine_poses"]

#: Pixels that the pictures are averaged to [mm at the isocentre].
_PIXEL_MM = 5.0
#: Independent pieces of evidence in what two views share, however many planes it has, and in all centres of mass. All
#: pairs of K cone beams have K - 1 times as many.
_PIECES = 10.0
#: Relative contradiction that is always believed to be left.
_LEAST = 0.01
#: Of what planes show, round by round: a vertical shift is found from afar.
_BLUR_MM = (40.0, 15.0, 0.0)
#: Of a move that is believed, from cone and from parallel beams: with scatter and noise, gains of correct poses reached
#: 7 and 22 on training and validation CTs and phantoms; those of 10 degrees are mostly above 50.
_LEAST_GAIN, _LEAST_GAIN_PARALLEL = 10.0, 30.0
#: What it must cost to leave out a number of a move (a turn, a shift), as twice a log likelihood.
_LEAST_PART = 6.0
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
_CUT_OFF = "too few rows show the body from side to side in all radiographs"

_Function: TypeAlias = Callable[[np.ndarray], np.ndarray]


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
        angle_deg, shift_mm, distance: as in `ViewMove`; up to 45 degrees, 100 mm and 0.25.

    Raises:
        ValueError: for one that is not positive, or larger.
    """

    angle_deg: float = 12.0
    shift_mm: float = 20.0
    distance: float = 0.05

    def __post_init__(self) -> None:
        for name, most in (("angle_deg", 45.0), ("shift_mm", 100.0), ("distance", 0.25)):
            if not 0 < getattr(self, name) <= most:
                raise ValueError(f"a pose's tolerance {name} must be above 0, at most {most:g}: {getattr(self, name)}")


@dataclass(frozen=True)
class PoseRefinement:
    """Where the views stood.

    Attributes:
        stated: (K, 13), as they came.
        views: (K, 13), moved; the same where nothing could be told.
        moves: what each differs by from what was stated; the first never moves, others only where much speaks for it.
        gains: how much better everything fits with each move than without it, as twice a log likelihood.
        at_limit: of each view: it fits best at the end of a tolerance, and stays for that.
        free: names in `ViewMove` that the radiographs say something of; the others stay as stated.
        disagreement: (before, after), root mean square of what the views contradict each other in, relative.
        why_not: why the radiographs tell nothing of poses; None: they do.
    """

    stated: Tensor
    views: Tensor
    moves: tuple[ViewMove, ...]
    gains: tuple[float, ...]
    at_limit: tuple[bool, ...]
    free: tuple[str, ...] = ()
    disagreement: tuple[float, float] | None = None
    why_not: str | None = None


def moved_view(view: Tensor, move: ViewMove) -> Tensor:
    """A view (13,) that stands elsewhere."""
    row = ViewRow.from_tensor(view)
    across, down = (step / step.norm() for step in (row.u_step, row.v_step))
    shift = move.along_rows_mm * across + move.along_columns_mm * down
    if bool(row.is_cone):
        scale = 1 + move.distance
        row = replace(row, head=row.head * scale + shift, detector_center=row.detector_center * scale)
    return rotated(replace(row, detector_center=row.detector_center + shift).to_tensor(), move.angle_deg)


def refine_poses(
    image: Tensor, views: Tensor, field_mask: Tensor, tolerance: PoseTolerance | None = None
) -> PoseRefinement:
    """Move views until their radiographs agree best.

    Args:
        image: line integrals (K, V, U).
        views: as they are stated (K, 13).
        field_mask: bool (K, V, U).
        tolerance: how far at most.

    Returns:
        `why_not` is set for a single view, two parallel views, beams of both kinds, and bodies that are cut off.
    """
    factor = averaging_factor(_PIXEL_MM, views)
    both = torch.stack([torch.where(field_mask, image, 0.0), field_mask]).double()
    (picture, whole), coarse = average_pixels(both, views.double().expand(2, -1, -1), factor)
    mask, stated, cone, others = whole > 0.999, coarse[0], bool(is_cone(views).all()), len(views) - 1
    pairs = _comparable(picture, stated, mask)
    nothing = (ViewMove(),) * len(views), (0.0,) * len(views), (False,) * len(views)
    why_not = _why_not(stated, pairs)
    if why_not:
        return PoseRefinement(views, views, *nothing, why_not=why_not)
    free = tuple(ViewMove.__dataclass_fields__)[: 4 if cone else 3]  # parallel rays know no distance
    most = tolerance or PoseTolerance()
    # So many that enough are left however views are moved: none must agree better by losing what it disagrees in.
    fewest = FEWEST_ROWS + math.ceil(2 * most.shift_mm / _PIXEL_MM)
    pieces = _PIECES * (2 / len(views) if cone else 1)
    usual = np.array([most.angle_deg, most.shift_mm, most.shift_mm, most.distance])[: len(free)] / 2

    def moves(z: np.ndarray) -> list[ViewMove]:
        values = z.reshape(others, -1) * usual
        return [ViewMove(), *(ViewMove(**dict(zip(free, map(float, row), strict=True))) for row in values)]

    def moved(z: np.ndarray, of: Tensor) -> Tensor:
        return torch.stack([moved_view(view, move) for view, move in zip(of, moves(z), strict=True)])

    z = np.zeros(others * len(free))
    for blur_mm in (*_BLUR_MM, 0.0):
        primary = primary_that_agrees(picture, moved(z, stated), mask)
        rows = centers_of_mass(primary, mask)
        if not cone and int(rows[1].all(0).sum()) < fewest:
            return PoseRefinement(views, views, *nothing, why_not=_CUT_OFF)

        def contradictions(z: np.ndarray, primary=primary, rows=rows, blur_mm=blur_mm) -> list[np.ndarray]:
            there = moved(z, stated)
            planes = [_planes(primary[list(p)], there[list(p)], mask[list(p)], blur_mm) for p in pairs]
            return planes if cone else [*planes, _rows(rows, there)]

        left = np.array([max(_rms(one), _LEAST) for one in contradictions(z)])
        # A pair whose planes are lost on the way agrees perfectly, and would outweigh all others.
        left[: len(pairs)] = left[: len(pairs)].clip(np.median(left[: len(pairs)]) / 2)

        def residuals(z: np.ndarray, contradictions=contradictions, left=left) -> np.ndarray:
            weighted = zip(contradictions(z), left, strict=True)
            return np.concatenate([*(one * math.sqrt(pieces / len(one)) / size for one, size in weighted), z])

        def jacobian(z: np.ndarray, residuals=residuals) -> np.ndarray:
            at = residuals(z)
            return np.stack([(residuals(z + _STEP * e) - at) / _STEP for e in np.eye(len(z))], 1)

        z = _fitted(residuals, jacobian, z)
    z = _simplest(residuals, jacobian, z)
    each = z.reshape(others, -1)
    still = [np.where(np.arange(others)[:, None] == k, 0.0, each).ravel() for k in range(others)]
    cost, *without = (float(np.square(residuals(one)).sum()) for one in (z, *still))
    gains = np.array(without) - cost
    believed = gains >= (_LEAST_GAIN if cone else _LEAST_GAIN_PARALLEL)
    at_limit = believed & (np.abs(each).max(1) >= 2 * _AT_ITS_END)
    z = np.where((believed & ~at_limit)[:, None], each, 0.0).ravel()
    before, after = (_rms(np.concatenate(contradictions(one))) for one in (np.zeros_like(z), z))
    return PoseRefinement(
        views,
        moved(z, views.double()).to(views.dtype), tuple(moves(z)), (0.0, *gains.tolist()), (False, *at_limit.tolist()),
        free, (before, after),
    )  # fmt: skip


def _fitted(residuals: _Function, jacobian: _Function, z: np.ndarray) -> np.ndarray:
    limits = -2.0, 2.0
    return least_squares(residuals, z.clip(*limits), jacobian, bounds=limits, xtol=1e-3, ftol=1e-3, max_nfev=12).x


def _simplest(residuals: _Function, jacobian: _Function, z: np.ndarray) -> np.ndarray:
    """The best fit of as few numbers as do nearly as well.

    Two pictures hardly tell a turn from a shift, and what is a bit of both spoils more than the turn alone did; one
    view that is shifted looks like two others shifted by less. Stepwise selection, from all numbers and from none
    (Draper and Smith, Applied Regression Analysis), in what the fit says of their errors; the chosen are fitted again.
    """
    slope = jacobian(z)
    information = slope.T @ slope
    pull = information @ z

    def part_of(kept: list[int]) -> np.ndarray:
        return np.linalg.solve(information[np.ix_(kept, kept)], pull[kept])

    def worth(kept: list[int]) -> float:
        return float(pull[kept] @ part_of(kept)) - _LEAST_PART * len(kept)

    def stepwise(kept: list[int]) -> list[int]:
        changed = max((sorted({*kept} ^ {k}) for k in range(len(z))), key=worth)
        return stepwise(changed) if worth(changed) > worth(kept) else kept

    kept = max((stepwise(start) for start in ([], list(range(len(z))))), key=worth)

    def whole(part: np.ndarray) -> np.ndarray:
        values = np.zeros_like(z)
        values[kept] = part
        return values

    if not kept:
        return np.zeros_like(z)
    fit = part_of(kept)
    return whole(_fitted(lambda part: residuals(whole(part)), lambda part: jacobian(whole(part))[:, kept], fit))


def _why_not(views: Tensor, pairs: Sequence[tuple[int, int]]) -> str | None:
    cone = is_cone(views)
    if len(views) < 2:
        return "a single radiograph has no other to agree with"
    if bool(cone.any()) and not bool(cone.all()):
        return "the radiographs are of both beams, cone and parallel"
    if not bool(cone.any()):
        if len(views) == 2:
            return "two radiographs of parallel beam agree at any angle"
        if not bool(is_vertical_parallel(views).all()):
            return "the radiographs of parallel beam are tilted"
    return None if pairs else "no two radiographs share enough planes that see the whole body (cut off, or opposite)"


def _comparable(image: Tensor, views: Tensor, field_mask: Tensor) -> list[tuple[int, int]]:
    """Pairs of views that share planes which see the whole body."""

    def share(pair: tuple[int, int]) -> float:
        whole = pair_profiles(*(one[list(pair)] for one in (image, views, field_mask)))[2]
        return float(whole.double().mean()) if len(whole) else 0.0

    return [pair for pair in combinations(range(len(image)), 2) if share(pair) >= _LEAST_SHARE]


def _planes(image: Tensor, views: Tensor, field_mask: Tensor, blur_mm: float) -> np.ndarray:
    """Relative differences of the integrals over the planes that two views share, 0 where the body is cut off."""
    first, second, whole = (one.numpy() for one in pair_profiles(image, views, field_mask))
    first, second = first * whole, second * whole
    if blur_mm:
        first, second = (gaussian_filter1d(one, blur_mm / _PIXEL_MM, mode="constant") for one in (first, second))
    gain = np.clip(first @ second / max(second @ second, 1e-12), *_GAIN)
    size = math.sqrt(max(np.square(first).mean(), 1e-12))
    found, count = (first - gain * second) / size, image.shape[1]
    # The number of planes depends a little on the poses; a fit needs as many every time.
    return np.pad(found[:count], (0, max(0, count - len(found))))


def _rows(rows: tuple[Tensor, Tensor], views: Tensor) -> np.ndarray:
    """How far the centres of mass of parallel views' rows, at the same heights, are from projections of one point."""
    row, index = ViewRow.from_tensor(views), np.arange(rows[0].shape[1])
    first, step = row.detector_center[:, 2].numpy(), row.v_step[:, 2].numpy()
    heights = first[0] + step[0] * (index - index.mean())
    places = (heights - first[:, None]) / step[:, None] + index.mean()
    centers, whole = (
        np.stack([np.interp(at, index, one, left=0, right=0) for at, one in zip(places, values, strict=True)])
        for values in (one.double().numpy() for one in rows)
    )
    seen = np.all(whole > 0.99, axis=0, keepdims=True)
    if seen.sum() < FEWEST_ROWS:
        return np.ones(centers.size)
    misfit = row_misfit(torch.from_numpy(centers), views).numpy()
    return (misfit * seen).flatten() * math.sqrt(seen.size / seen.sum()) / _CENTER_MM


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
