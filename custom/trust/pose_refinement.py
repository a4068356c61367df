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
from custom.trust.pose_consistency import centers_of_mass, rotated, row_misfit
from custom.trust.view_agreement import pair_profiles

__all__ = ["PoseRefinement", "PoseTolerance", "ViewMove", "moved_view", "refine_poses"]


#: Pixels that the pictures are averaged to [mm at the isocentre].
_PIXEL_MM = 5.0
#: Independent pieces of evidence in what two views share, however many planes it has, and in all centres of mass.
_PIECES = 10.0
#: Relative contradiction that is always believed to be left.
_LEAST = 0.01
#: Of what planes show, round by round: a vertical shift is found from afar.
_BLUR_MM = (40.0, 15.0, 0.0, 0.0)
#: Of half a tolerance, for derivatives by differences.
_STEP = 0.05
#: Scale between two pictures that is none of the pose's business: intensities are wrong by some per cent.
_GAIN = (0.85, 1.15)
#: Least share of a pair's planes that see the whole body.
_LEAST_SHARE = 0.5
_HALF_WIDTH_MM = 150.0


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
        moves: what each differs by from what was stated; the first never moves.
        free: names in `ViewMove` that the radiographs say something of; the others stay as stated.
        disagreement: (before, after), root mean square of what the views contradict each other in, relative.
    """

    views: Tensor
    moves: tuple[ViewMove, ...]
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
    return rotated(replace(row, head=head, detector_center=row.detector_center * scale + shift).to_tensor(), move.angle_deg)


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
    shown, coarse_views = average_pixels(torch.where(field_mask, image, 0.0)[None].double(), views[None].double(), factor)
    mask = average_pixels(field_mask[None].double(), views[None].double(), factor)[0][0] > 0.999
    image, stated = shown[0], coarse_views[0]
    free = tuple(ViewMove.__dataclass_fields__)[: 4 if cone else 3]  # of parallel beams no distance matters
    usual = (tolerance or PoseTolerance()).usual(free)

    def moves(z: np.ndarray) -> list[ViewMove]:
        values = z.reshape(len(stated) - 1, len(free)) * usual
        return [ViewMove(), *(ViewMove(**dict(zip(free, map(float, row), strict=True))) for row in values)]

    def moved(z: np.ndarray, of: Tensor) -> Tensor:
        return torch.stack([moved_view(view, move) for view, move in zip(of, moves(z), strict=True)])

    def contradictions(z: np.ndarray, blur_mm: float = 0.0) -> list[np.ndarray]:
        there = moved(z, stated)
        return _shared_planes(primary, there, mask, blur_mm) + ([] if cone else _rows(primary, there, mask))

    z = np.zeros((len(stated) - 1) * len(free))
    sizes = []
    for blur_mm in _BLUR_MM:
        primary = primary_that_agrees(image, moved(z, stated), mask)
        found = contradictions(z, blur_mm)
        if not found:
            return None
        left = [max(_rms(one), _LEAST) for one in found]
        sizes.append(_rms(np.concatenate(contradictions(z))))

        def residuals(z: np.ndarray, left: list[float] = left, blur_mm: float = blur_mm) -> np.ndarray:
            found = contradictions(z, blur_mm)
            weighted = [one * math.sqrt(_PIECES / len(one)) / size for one, size in zip(found, left, strict=True)]
            return np.concatenate([*weighted, z])

        def jacobian(z: np.ndarray) -> np.ndarray:
            at = residuals(z)
            return np.stack([(residuals(z + _STEP * e) - at) / _STEP for e in np.eye(len(z))], 1)

        z = least_squares(residuals, z, jacobian, bounds=(-2.0, 2.0), xtol=1e-3, ftol=1e-3, max_nfev=12).x
    after = _rms(np.concatenate(contradictions(z)))
    return PoseRefinement(moved(z, views.double()), tuple(moves(z)), free, (sizes[0], after))


def _shared_planes(image: Tensor, views: Tensor, field_mask: Tensor, blur_mm: float) -> list[np.ndarray]:
    """For every pair that shares planes, the relative differences of their integrals, 0 where a body is cut off."""
    found = []
    for i, j in combinations(range(len(image)), 2):
        first, second, whole = pair_profiles(image[[i, j]], views[[i, j]], field_mask[[i, j]])
        if len(whole) and float(whole.double().mean()) >= _LEAST_SHARE:
            first, second = (
                torch.from_numpy(gaussian_filter1d((one * whole).numpy(), blur_mm / _PIXEL_MM)) if blur_mm else one * whole
                for one in (first, second)
            )
            gain = min(max(float(first @ second / (second @ second)), _GAIN[0]), _GAIN[1])
            size = (first.square().sum() / whole.sum()).sqrt()
            found.append(((first - gain * second) / size).numpy())
    return found


def _rows(image: Tensor, views: Tensor, field_mask: Tensor) -> list[np.ndarray]:
    """How far the centres of mass of parallel views' rows are from projections of one point, over a body's half width."""
    centers = centers_of_mass(image, views, field_mask)
    if centers is None:
        return []
    misfit = row_misfit(centers, views)
    return [misfit.flatten().numpy() / _HALF_WIDTH_MM]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
