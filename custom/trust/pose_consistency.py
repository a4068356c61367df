"""Whether a view stands where it is said to stand, without any model of what bodies look like.

A view is turned about the superior axis by some degrees, and the radiographs are asked whether they agree better so.
Cone beam: by the plane integrals that two views share (`view_agreement`). Parallel beam: two views agree at any
angle, but the centres of mass of three or more of them, row by row, must be projections of one point (the first of the
Helgason-Ludwig conditions; Ludwig, Comm. Pure Appl. Math. 19, 1966). The higher ones would ask too much of the
intensity without a patient: an error of it moves no centre of mass, but all second moments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from custom.geometry import is_cone, is_vertical_parallel
from custom.trust.picture_statistics import AIR_SHARE, largest, lateral_edges
from custom.trust.view_agreement import disagreement_of, pair_profiles

__all__ = ["Turn", "best_turn", "turned"]

#: Turns that are tried [degrees].
TURNS_DEG = (-10.0, -7.5, -5.0, -2.5, 2.5, 5.0, 7.5, 10.0)
#: Fewest rows of parallel views that say something.
_FEWEST_ROWS = 8


@dataclass(frozen=True)
class Turn:
    """The turn of one view after which a set agrees best.

    Attributes:
        gain: log of the disagreement as stated over the disagreement after the turn; negative where the stated angle is
            the best of all that are tried.
        view: index.
        degrees: about the superior axis.
    """

    gain: float
    view: int
    degrees: float


def turned(views: Tensor, degrees: float) -> Tensor:
    """Views (..., 13) turned about the superior axis through the isocentre: source, detector and rays."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotation = views.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    vectors = views[..., :12].unflatten(-1, (4, 3)) @ rotation.mT
    return torch.cat([vectors.flatten(-2), views[..., 12:]], -1)


def best_turn(image: Tensor, views: Tensor, exposed: Tensor) -> Turn | None:
    """The turn of a single view that the radiographs ask for most.

    Args:
        image: line integrals (K, V, U).
        views: (K, 13).
        exposed: bool (K, V, U).

    Returns:
        None where the angle cannot be seen: a single view, two parallel views, parallel views that are truncated or
        not upright, cone-beam views without planes in common.
    """
    views = views.double()
    if bool(is_cone(views).all()):
        found = [_cone_turn(image, views, exposed, k) for k in range(len(views))]
    elif len(views) >= 3 and bool(is_vertical_parallel(views).all()):
        found = _parallel_turns(image, views, exposed)
    else:
        return None
    turns = [turn for turn in found if turn is not None]
    return max(turns, key=lambda turn: turn.gain, default=None)


def _cone_turn(image: Tensor, views: Tensor, exposed: Tensor, k: int) -> Turn | None:
    others = [j for j in range(len(views)) if j != k]

    def misfits(degrees: float) -> list[float | None]:
        moved = turned(views[k], degrees)
        values = []
        for j in others:
            pair = torch.stack([moved, views[j]])
            profiles = pair_profiles(image[[k, j]], pair, exposed[[k, j]])
            values.append(disagreement_of(*profiles))
        return values

    stated = misfits(0.0)
    gains = []
    for degrees in TURNS_DEG:
        both = [(a, b) for a, b in zip(stated, misfits(degrees), strict=True) if a is not None and b is not None]
        if both:
            before, after = (math.fsum(value**2 for value in side) for side in zip(*both, strict=True))
            gains.append(Turn(0.5 * math.log(max(before, 1e-18) / max(after, 1e-18)), k, degrees))
    return max(gains, key=lambda turn: turn.gain, default=None)


def _parallel_turns(image: Tensor, views: Tensor, exposed: Tensor) -> list[Turn | None]:
    air = AIR_SHARE * largest(image, exposed)[:, None, None]
    body = torch.where(exposed & (image > air), image, 0.0).double()
    edges, whole = lateral_edges(image, exposed)
    heights = views[:, 5:6] + views[:, 11:12] * _centred(image.shape[1])
    rows = (whole & (edges <= air).all(2)).all(0)
    spacing = float(views[:, 11].abs().mean())
    if float((heights - heights[:1]).abs().max()) > 0.1 * spacing or int(rows.sum()) < _FEWEST_ROWS:
        return []
    body = body[:, rows]
    across = torch.nn.functional.normalize(views[:, 6:9], dim=-1)
    width = views[:, 6:9].norm(dim=-1, keepdim=True)
    position = (views[:, 3:6] * across).sum(-1, keepdim=True) + width * _centred(image.shape[2])
    center = (body * position[:, None]).sum(2) / body.sum(2).clamp(min=1e-9)

    def misfit(directions: Tensor) -> float:
        solution = torch.linalg.lstsq(directions[:, :2], center).solution
        return float((directions[:, :2] @ solution - center).square().mean())

    stated = misfit(across)
    turns: list[Turn | None] = []
    for k in range(len(views)):
        for degrees in TURNS_DEG:
            moved = views.clone()
            moved[k] = turned(views[k], degrees)
            after = misfit(torch.nn.functional.normalize(moved[:, 6:9], dim=-1))
            turns.append(Turn(0.5 * math.log(max(stated, 1e-18) / max(after, 1e-18)), k, degrees))
    return turns


def _centred(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64) - (count - 1) / 2
