"""Which further radiograph would lower the expected error most, before it is taken.

In a Gaussian population (`PopulationPrior`) the covariance of what radiographs leave open depends on their views alone,
not on what they show: with the components projected along every view, S_k, a chest's coefficients have the covariance
(I + sum_k S_k S_k^T / noise^2)^-1 given the radiographs (Bayesian linear regression; the choice of the next measurement
by the trace of that covariance is A-optimal design, Chaloner and Verdinelli, Statistical Science 10:273, 1995).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from custom.core.angles import angle_difference_deg
from custom.geometry import ViewRow, VolumeGrid, is_cone
from custom.networks.population_prior import PopulationPrior
from custom.trust.pose_consistency import rotated
from custom.trust.radiograph_likelihood import RadiographLikelihood

__all__ = ["NextView", "rank_next_views"]

#: Mean CT values [HU] of the population that are lung.
LUNG_HU = (-950.0, -400.0)
#: A view this near to one that was taken is no further view [degrees].
NEAREST_DEG = 5.0


@dataclass(frozen=True)
class NextView:
    """What is left open after one more radiograph, as far as the population can tell.

    Attributes:
        angle_deg: of its source about the superior axis (0 lateral, 90 frontal); None: no further radiograph.
        error_hu: expected error, root mean square over the cube [HU].
        lung_error_hu: over the lungs [HU].
        lung_density_hu: standard deviation of the lungs' mean CT value [HU].
    """

    angle_deg: float | None
    error_hu: float
    lung_error_hu: float
    lung_density_hu: float


@torch.no_grad()
def rank_next_views(
    prior: PopulationPrior,
    energy_kev: float,
    image: Tensor,
    field_mask: Tensor,
    views: Tensor,
    cube: VolumeGrid,
    angles_deg: Sequence[float],
) -> list[NextView]:
    """What every further view would leave open, the best first; the last is no further radiograph.

    A further view stands as far from the isocentre as the first one does, and exposes the same field.

    Args:
        prior: fitted.
        energy_kev: of the line integrals.
        image: the radiographs that are there (K, V, U); only their field and views matter.
        field_mask: bool (K, V, U).
        views: (K, 13).
        cube: that is reconstructed.
        angles_deg: of the sources to choose from; those near a view that is there are left out.

    Raises:
        ValueError: if no angle is left.
    """
    likelihood = RadiographLikelihood(prior, energy_kev)
    path, seen, moved = likelihood.prepare(image, field_mask, views)
    taken = [float(ViewRow.from_tensor(view.double()).angle_deg) for view in views]
    if not bool(is_cone(views).any()):
        taken += [angle + 180 for angle in taken]  # parallel rays show the same from behind
    wanted = [a for a in angles_deg if min(abs(angle_difference_deg(a, t)) for t in taken) > NEAREST_DEG]
    if not wanted:
        raise ValueError(f"a radiograph within {NEAREST_DEG:g} degrees of every angle in {list(angles_deg)} is there")

    def normal(view: Tensor, shown: Tensor) -> Tensor:
        return likelihood.term(path[0], shown, likelihood.projected(view, path.shape[1:])).normal / prior.noise_mm**2

    known = torch.eye(len(prior.components), dtype=torch.float64)
    for view, shown in zip(moved, seen, strict=True):
        known = known + normal(view, shown)
    open_after = [NextView(None, *_left_open(prior, known, cube))]
    for angle in wanted:
        further = known + normal(rotated(moved[0], angle - taken[0]), seen[0])
        open_after.append(NextView(float(angle) % 360, *_left_open(prior, further, cube)))
    return sorted(open_after, key=lambda one: one.error_hu)


def _left_open(prior: PopulationPrior, precision: Tensor, cube: VolumeGrid) -> tuple[float, float, float]:
    """Errors over cube and lungs, and standard deviation of the lungs' mean [HU], of the components' precision."""
    inside = torch.ones(prior.grid.shape, dtype=torch.bool)
    for axis, half in enumerate(cube.half_extent_mm):
        shape = [-1 if i == axis else 1 for i in range(3)]
        inside &= (prior.grid.axis_mm(axis).abs() <= half).reshape(shape)
    hu = (prior.mean[0, 0].float() - 1) * 1000
    lungs = inside & (hu > LUNG_HU[0]) & (hu < LUNG_HU[1])
    directions = 1000 * prior.components.double() * prior.scales.double()[:, None, None, None]
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))

    def error(region: Tensor) -> float:
        chosen = directions[:, region]
        return math.sqrt(float((covariance * (chosen @ chosen.T)).sum()) / chosen.shape[1])

    mean = directions[:, lungs].mean(1)
    return error(inside), error(lungs), math.sqrt(float(mean @ covariance @ mean))
