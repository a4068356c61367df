"""Likelihood of radiographs under a Gaussian population of chests, in closed form.

Members of a `PopulationPrior` are x = mean + sum of c_i e_i, c standard normal, and radiographs are linear in x. So
radiographs y of known views are Gaussian too: mean A mean, covariance S^T S + noise^2 I, where the rows of S are the
projected components. The components are few, so everything is algebra of small matrices (Woodbury's identity), and a
view that is mirrored changes its own term only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from custom.core.attenuation import water_attenuation_per_mm
from custom.networks.feature_unet import averaging_factor
from custom.networks.population_prior import PopulationPrior, average_pixels
from custom.projection import ProjectorCache

__all__ = ["RadiographLikelihood", "ViewTerm"]

#: Views whose projections are kept, about a megabyte each.
_KEPT_VIEWS = 32


@dataclass(frozen=True)
class ViewTerm:
    """What one radiograph adds to the distance of a set.

    Attributes:
        normal: S S^T of its pixels, (R, R) [mm^2 of water].
        moment: S d with d the deviation from the mean radiograph, (R,) [mm^2].
        square: sum of d^2 [mm^2].
        pixels: how many of them count.
    """

    normal: Tensor
    moment: Tensor
    square: float
    pixels: int


class RadiographLikelihood:
    """Distances of radiographs from a prior.

    Args:
        prior: fitted; its grid should reach to the body's outline, since tissue outside it is not expected.
        energy_kev: photon energy of the line integrals.
    """

    def __init__(self, prior: PopulationPrior, energy_kev: float) -> None:
        self.prior, self.water = prior, water_attenuation_per_mm(energy_kev)
        self._projector = ProjectorCache(4)
        self._shown: OrderedDict[bytes, Tensor] = OrderedDict()
        self._directions = prior.components.float() * prior.scales[:, None, None, None].float()

    def prepare(self, image: Tensor, field_mask: Tensor, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Radiographs with pixels of the prior's voxel size, in water.

        Args:
            image: line integrals (K, V, U).
            field_mask: bool (K, V, U).
            views: (K, 13).

        Returns:
            Water paths (K, V', U') [mm], bool (K, V', U') of the pixels that are exposed in full, views (K, 13).
        """
        factor = averaging_factor(self.prior.grid.spacing_mm[0], views)
        shown = torch.where(field_mask, image, torch.zeros_like(image)).float() / self.water
        coarse, moved = average_pixels(shown[None], views[None].float(), factor)
        whole, _ = average_pixels(field_mask[None].float(), views[None].float(), factor)
        return coarse[0], whole[0] > 0.999, moved[0]

    @torch.no_grad()
    def projected(self, view: Tensor, shape: Sequence[int]) -> Tensor:
        """Mean and components (1 + R, V', U') as one view (13,) shows them [mm of water]; the last few are kept."""
        key = repr(tuple(shape)).encode() + view.cpu().numpy().tobytes()
        if key not in self._shown:
            projector = self._projector(self.prior.grid, shape)
            volumes = torch.cat([self.prior.mean[0].float(), self._directions])[:, None]
            self._shown[key] = projector(volumes, view[None].to(volumes.device))[:, 0].cpu()
        self._shown.move_to_end(key)
        while len(self._shown) > _KEPT_VIEWS:
            self._shown.popitem(last=False)
        return self._shown[key]

    def term(
        self, path: Tensor, field_mask: Tensor, projected: Tensor, same_pixels: ViewTerm | None = None
    ) -> ViewTerm:
        """The term of one radiograph (V', U') that is what `projected` (1 + R, V', U') shows.

        Args:
            path: water paths [mm].
            field_mask: bool, pixels that count.
            projected: of the view.
            same_pixels: a term of the same view and the same pixels, whose `normal` is taken over to save time.
        """
        kept = field_mask.flatten()
        seen = projected.flatten(1) if bool(kept.all()) else projected.flatten(1)[:, kept]
        deviation = path.flatten()[kept].double() - seen[0].double()
        moment = (seen[1:] @ deviation.float()).double()
        normal = seen[1:].double() @ seen[1:].double().T if same_pixels is None else same_pixels.normal
        return ViewTerm(normal, moment, float(deviation @ deviation), int(kept.sum()))

    def distance(self, terms: Sequence[ViewTerm]) -> float:
        """Squared Mahalanobis distance of a set of radiographs from the population."""
        variance = self.prior.noise_mm**2
        normal = torch.stack([t.normal for t in terms]).sum(0)
        moment = torch.stack([t.moment for t in terms]).sum(0)
        square = sum(t.square for t in terms)
        normal = normal / variance
        normal.diagonal().add_(1.0)
        factor = torch.linalg.cholesky(normal)
        explained = moment @ torch.cholesky_solve(moment[:, None], factor)[:, 0] / variance
        return float((square - explained) / variance)
