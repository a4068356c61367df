"""Pose consistency: whether a view stands where it is said to stand, without a model of bodies.

A view is rotated about the superior axis by some degrees, and the radiographs are asked whether they agree better so.
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

from custom.geometry import ViewRow, is_cone, is_vertical_parallel
from custom.trust.picture_statistics import AIR_SHARE, largest, lateral_edges
from custom.trust.view_agreement import disagreement_of, pair_profiles

__all__ = ["FEWEST_ROWS", "ViewRotation", "best_rotation", "centers_of_mass", "rotated", "row_misfit"]

#: Rotations that are tried [degrees].
ROTATIONS_DEG = (-10.0, -7.5, -5.0, -2.5, 2.5, 5.0, 7.5, 10.0)
#: Fewest rows of parallel views that say something.
FEWEST_ROWS = 8


@dataclass(frozen=True)
class ViewRotation:
    """The rotation of one view after which a set agrees best.

    Attributes:
        gain: log of the disagreement as stated over the disagreement after the rotation; negative where the stated
            angle is the best of all that are tried.
        view: index.
        degrees: about the superior axis.
    """

    gain: float
    view: int
    degrees: float


def rotated(views: Tensor, degrees: float) -> Tensor:
    """Views (..., 13) rotated about the superior axis through the isocentre: source, detector and rays."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotation = views.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    vectors = views[..., :12].unflatten(-1, (4, 3)) @ rotation.mT
    return torch.cat([vectors.flatten(-2), views[..., 12:]], -1)


def best_rotation(image: Tensor, views: Tensor, field_mask: Tensor) -> ViewRotation | None:
    """The rotation of a single view that the radiographs ask for most.

    Args:
        image: line integrals (K, V, U).
        views: (K, 13).
        field_mask: bool (K, V, U).

    Returns:
        None where the angle cannot be seen: a single view, two parallel views, parallel views that are truncated or
        not upright, cone-beam views without planes in common.
    """
    views = views.double()
    if bool(is_cone(views).all()):
        found = [_cone_rotation(image, views, field_mask, k) for k in range(len(views))]
    elif len(views) >= 3 and bool(is_vertical_parallel(views).all()):
        found = _parallel_rotations(image, views, field_mask)
    else:
        return None
    rotations = [rotation for rotation in found if rotation is not None]
    return max(rotations, key=lambda rotation: rotation.gain, default=None)


def _cone_rotation(image: Tensor, views: Tensor, field_mask: Tensor, k: int) -> ViewRotation | None:
    others = [j for j in range(len(views)) if j != k]

    def misfits(degrees: float) -> list[float | None]:
        moved = rotated(views[k], degrees)
        values = []
        for j in others:
            pair = torch.stack([moved, views[j]])
            profiles = pair_profiles(image[[k, j]], pair, field_mask[[k, j]])
            values.append(disagreement_of(*profiles))
        return values

    stated = misfits(0.0)
    gains = []
    for degrees in ROTATIONS_DEG:
        both = [(a, b) for a, b in zip(stated, misfits(degrees), strict=True) if a is not None and b is not None]
        if both:
            before, after = (math.fsum(value**2 for value in side) for side in zip(*both, strict=True))
            gains.append(ViewRotation(0.5 * math.log(max(before, 1e-18) / max(after, 1e-18)), k, degrees))
    return max(gains, key=lambda rotation: rotation.gain, default=None)


def _parallel_rotations(image: Tensor, views: Tensor, field_mask: Tensor) -> list[ViewRotation | None]:
    centers, whole = centers_of_mass(image, field_mask)
    row, rows = ViewRow.from_tensor(views), whole.all(0)
    heights = row.detector_center[:, 2:] + row.v_step[:, 2:] * _centred(image.shape[1])
    uneven = float((heights - heights[:1]).abs().max()) > 0.1 * float(row.v_step[:, 2].abs().mean())
    if uneven or int(rows.sum()) < FEWEST_ROWS:
        return []
    centers = centers[:, rows]

    def misfit(views: Tensor) -> float:
        return float(row_misfit(centers, views).square().mean())

    stated = misfit(views)
    rotations: list[ViewRotation | None] = []
    for k in range(len(views)):
        for degrees in ROTATIONS_DEG:
            moved = views.clone()
            moved[k] = rotated(views[k], degrees)
            rotations.append(ViewRotation(0.5 * math.log(max(stated, 1e-18) / max(misfit(moved), 1e-18)), k, degrees))
    return rotations


def centers_of_mass(image: Tensor, field_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of the rows of radiographs.

    Args:
        image: line integrals (K, V, U).
        field_mask: bool (K, V, U).

    Returns:
        (K, V) float64 [columns from the middle of the picture]; bool (K, V): the row shows the body from side to side.
    """
    air = AIR_SHARE * largest(image, field_mask)[:, None, None]
    body = torch.where(field_mask & (image > air), image, 0.0).double()
    edges, whole = lateral_edges(image, field_mask)
    centers = (body * _centred(image.shape[2])).sum(2) / body.sum(2).clamp(min=1e-9)
    return centers, whole & (edges <= air).all(2)


def row_misfit(centers: Tensor, views: Tensor) -> Tensor:
    """How far centres of mass (K, rows) are from the projections of one point each [mm], for these views (K, 13)."""
    row = ViewRow.from_tensor(views)
    across = torch.nn.functional.normalize(row.u_step, dim=-1)
    position = (row.detector_center * across).sum(-1, keepdim=True) + row.pixel_mm[:, 1:] * centers
    directions = across[:, :2]
    return directions @ torch.linalg.lstsq(directions, position).solution - position


def _centred(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64) - (count - 1) / 2
