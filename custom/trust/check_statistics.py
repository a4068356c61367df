"""Statistics behind the trust checks: each larger for what is less trustworthy, none with a threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.core.attenuation import water_attenuation_per_mm
from custom.projection import ProjectorCache, Scatter, without_scatter
from custom.trust.evidence import Evidence
from custom.trust.expected_error import ExpectedError
from custom.trust.picture_statistics import LEVELS, body_quantiles, cut_off, largest
from custom.trust.pose_consistency import best_rotation
from custom.trust.radiograph_likelihood import RadiographLikelihood, ViewTerm
from custom.trust.view_agreement import detail_disagreement, disagreement

__all__ = ["PREDICTORS", "STATISTICS", "Meter", "Quantiles", "Statistic"]

#: What is measured, in the order of a report.
STATISTICS = (
    "reprojection",
    "agreement",
    "heights",
    "orientation",
    "angles",
    "population",
    "intensities",
    "truncation",
    "samples",
    "expected_error",
)
#: What is measured for the expected error alone, without a verdict of its own.
PREDICTORS = ("undecided",)

#: Scatter over primary, as it may be in radiographs that nobody corrected, from none to that of a grid that is bad.
SCATTER_TO_PRIMARY = tuple(0.05 * step for step in range(11))
#: Ways a picture may be stored wrongly, and the dimensions (of V, U) that they turn round.
_FLIPS = {"mirrored left to right": (-1,), "upside down": (-2,), "turned by 180 degrees": (-2, -1)}
#: Shifts that are tried, in pixels of a prior's voxel.
_SHIFTS = tuple(range(-4, 5))
_BODY_HU = -500.0
#: Neither air nor soft tissue: lung, and edges of which a model does not know where they are.
_UNDECIDED_HU = (-950.0, -150.0)
#: Side of the places whose mean CT values are counted, so that voxels of any size give the same number.
_PLACE_MM = 5.0
#: Of the outline at the side of a chest, half its depth.
_SIDE_RADIUS_MM = 120.0


@dataclass(frozen=True)
class Statistic:
    """A number, larger is worse.

    Attributes:
        value: None where it could not be measured.
        detail: what it says of this case, or why there is none; plain language.
    """

    value: float | None
    detail: str


@dataclass(frozen=True)
class Quantiles:
    """How line integrals behind the body are usually distributed: of each of `LEVELS` centre and spread."""

    center: tuple[float, ...]
    spread: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.center) != len(LEVELS) or len(self.spread) != len(LEVELS) or min(self.spread) <= 0:
            raise ValueError(f"quantiles need {len(LEVELS)} centres and as many positive spreads")

    @classmethod
    def of(cls, pictures: Tensor) -> Quantiles:
        """From the quantiles of many pictures (N, len(LEVELS)): medians, and half the range of the middle 90%."""
        low, middle, high = pictures.double().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=0)
        return cls(tuple(middle.tolist()), tuple(((high - low) / 2).clamp(min=1e-3).tolist()))

    def distance(self, picture: Tensor) -> float:
        """The largest deviation of one picture's quantiles, in spreads."""
        center, spread = (torch.tensor(v, dtype=torch.float64) for v in (self.center, self.spread))
        return float(((picture.double() - center) / spread).abs().max())


class Meter:
    """Measures; keeps projections of a prior's components between cases that share their views.

    Args:
        quantiles: of the training's line integrals; None: the statistic "intensities" is not measured.
        errors: the model of errors for this number of views; None: "expected_error" is not measured.
    """

    def __init__(self, quantiles: Quantiles | None = None, errors: ExpectedError | None = None) -> None:
        self.quantiles, self.errors = quantiles, errors
        self._projector = ProjectorCache(2)
        self._likelihood: RadiographLikelihood | None = None

    @torch.no_grad()
    def measure(self, evidence: Evidence) -> dict[str, Statistic]:
        """All of `STATISTICS` and `PREDICTORS`."""
        plain = replace(evidence, image=evidence.image.float(), views=evidence.views.float())
        primary = replace(plain, image=primary_that_agrees(plain.image, plain.views, plain.field_mask))
        found = {
            "reprojection": self._reprojection(plain), "agreement": _agreement(primary), "heights": _heights(primary),
            "angles": _angles(primary),
        }  # fmt: skip
        found |= self._population(primary)
        found["intensities"] = self._intensities(plain)
        share, index = cut_off(plain.image, plain.field_mask)
        found["truncation"] = Statistic(share, _beside(plain, share, index))
        found["samples"] = _samples(plain)
        found["undecided"] = _undecided(plain)
        found["expected_error"] = self._expected_error(found)
        return {name: found[name] for name in (*STATISTICS, *PREDICTORS)}

    def _reprojection(self, evidence: Evidence) -> Statistic:
        if evidence.hu is None:
            return Statistic(None, "nothing was reconstructed")
        shape = evidence.image.shape[1:]
        projector = self._projector(evidence.grid, shape)
        projected = projector.of_hu(evidence.hu, evidence.views, evidence.energy_kev)
        scattered = [Scatter(ratio)(projected, evidence.views) for ratio in SCATTER_TO_PRIMARY]
        seen = evidence.field_mask
        fits = [float(torch.where(seen, shown - evidence.image, 0.0).square().sum()) for shown in scattered]
        values = relative_residuals(evidence.image, scattered[fits.index(min(fits))], seen)
        worst = max(range(len(values)), key=values.__getitem__)
        return Statistic(
            values[worst],
            f"seen as in {evidence.name(worst)}, the CT holds {values[worst]:.1%} more tissue than is in that picture "
            "(root mean square; tissue that the CT lacks, as beside its box, does not count)",
        )

    def _expected_error(self, found: Mapping[str, Statistic]) -> Statistic:
        if self.errors is None:
            return Statistic(None, "these thresholds do not say how large errors are")
        expected, bound = self.errors.of({name: one.value for name, one in found.items()})
        usual = f"{self.errors.lowest:.0f} to {self.errors.highest:.0f} HU"
        reason = f"; {found['undecided'].detail}" if "undecided" in self.errors.weight else ""
        return Statistic(
            expected,
            f"expected error {expected:.0f} HU (root mean square), below {bound:.0f} HU in {self.errors.coverage:.0%} "
            f"of cases like the calibrated ones, where it was {usual}{reason}",
        )

    def _population(self, evidence: Evidence) -> dict[str, Statistic]:
        names = ("orientation", "population")
        if evidence.prior is None:
            return {name: Statistic(None, "the model has no population to compare with") for name in names}
        if self._likelihood is None or self._likelihood.prior is not evidence.prior:
            self._likelihood = RadiographLikelihood(evidence.prior, evidence.energy_kev)
        return population_statistics(evidence, self._likelihood)

    def _intensities(self, evidence: Evidence) -> Statistic:
        if self.quantiles is None:
            return Statistic(None, "there is no reference of intensities")
        pictures = body_quantiles(evidence.image, evidence.field_mask)
        distances = [self.quantiles.distance(picture) for picture in pictures]
        worst = max(range(len(distances)), key=distances.__getitem__)
        middle = float(pictures[worst, len(LEVELS) // 2])
        return Statistic(
            distances[worst],
            f"the attenuation of X-rays in {evidence.name(worst)}, {middle:.2f} in the median, is distributed "
            f"{distances[worst]:.1f} usual deviations away from the reference",
        )


def _beside(evidence: Evidence, share: float, index: int) -> str:
    """What `cut_off` says in centimetres, of a body that is as round at its side as a chest is."""
    longest = float(largest(evidence.image, evidence.field_mask)[index])
    chord = share * longest / water_attenuation_per_mm(evidence.energy_kev)
    hidden = _SIDE_RADIUS_MM - math.sqrt(max(0.0, _SIDE_RADIUS_MM**2 - (chord / 2) ** 2))
    if hidden < 1.0:
        return "the body ends within the pictures"
    return f"beside {evidence.name(index)} about {max(0.5, hidden / 10):.1f} cm of the body lie outside the picture"


def primary_that_agrees(image: Tensor, views: Tensor, field_mask: Tensor) -> Tensor:
    """The radiographs without the scatter, of `SCATTER_TO_PRIMARY`, after which they agree best.

    Scatter differs from view to view as no body does. Where views cannot be compared, they are given back as they are.

    Args:
        image: line integrals (K, V, U).
        views: (K, 13).
        field_mask: bool (K, V, U).
    """
    if len(image) < 2:
        return image
    found = [torch.where(field_mask, without_scatter(image, views, s), 0.0) for s in SCATTER_TO_PRIMARY]
    pairs = [disagreement(primary, views, field_mask) for primary in found]
    means = [sum(values.values()) / len(values) if values else math.inf for values in pairs]
    return image if min(means) == math.inf else found[means.index(min(means))]


def relative_residuals(image: Tensor, projected: Tensor, field_mask: Tensor) -> list[float]:
    """For every view how much more the reconstruction attenuates than the radiograph shows, relative to it.

    What is missing in the reconstruction does not count: tissue outside its cube (arms, shoulders) attenuates too.

    Args:
        image, projected: line integrals (K, V, U).
        field_mask: bool (K, V, U).
    """
    surplus = torch.where(field_mask, (projected - image).clamp(min=0), 0.0).square().mean((1, 2)).sqrt()
    size = torch.where(field_mask, image, 0.0).square().mean((1, 2)).sqrt().clamp(min=1e-6)
    return (surplus / size).tolist()


def population_statistics(evidence: Evidence, likelihood: RadiographLikelihood) -> dict[str, Statistic]:
    """What needs the population: orientation, and likeness to it."""
    path, seen, moved = likelihood.prepare(evidence.image, evidence.field_mask, evidence.views)
    shown = [likelihood.projected(view, path.shape[1:]) for view in moved]
    terms = [likelihood.term(path[k], seen[k], shown[k]) for k in range(len(path))]
    pixels = sum(t.pixels for t in terms)
    if not pixels:
        nothing = Statistic(None, "no pixel of the radiographs is exposed")
        return {"orientation": nothing, "population": nothing}
    flips = []
    for k in range(len(path)):
        rest = terms[:k] + terms[k + 1 :]
        stated = _nearest(likelihood, rest, path[k], seen[k], shown[k], terms[k])
        for name, dims in _FLIPS.items():
            other = _nearest(likelihood, rest, path[k].flip(dims), seen[k].flip(dims), shown[k], terms[k])
            flips.append((math.log(max(stated, 1e-9) / max(other, 1e-9)), k, name))
    gain, k, name = max(flips)
    distance = likelihood.distance(terms)
    return {
        "orientation": Statistic(
            gain,
            f"{evidence.name(k)} looks {'more' if gain > 0 else 'less'} like a usual chest if it is {name}",
        ),
        "population": Statistic(
            math.log(max(distance, 1e-9) / pixels),
            "the radiographs differ from everything between the patients that the model knows by "
            f"{math.sqrt(max(distance, 0.0) / pixels) * likelihood.prior.noise_mm:.0f} mm of water (root mean square)",
        ),
    }


def _nearest(
    likelihood: RadiographLikelihood,
    rest: Sequence[ViewTerm],
    path: Tensor,
    seen: Tensor,
    projected: Tensor,
    unmoved: ViewTerm,
) -> float:
    """Squared distance of a set with one picture (V', U') wherever from left to right it fits best.

    A patient who does not stand in the middle must not look mirrored.
    """
    distances = []
    columns = torch.arange(path.shape[1])
    for shift in _SHIFTS:
        source = (columns + shift).clamp(0, path.shape[1] - 1)
        term = likelihood.term(path[:, source], seen[:, source], projected, unmoved if bool(seen.all()) else None)
        distances.append(likelihood.distance([*rest, term]))
    return min(distances)


def _agreement(evidence: Evidence) -> Statistic:
    if len(evidence.image) < 2:
        return Statistic(None, "there is a single radiograph")
    pairs = disagreement(evidence.image, evidence.views, evidence.field_mask)
    if not pairs:
        return Statistic(
            None, "no two radiographs show the same planes of the body whole (cut off, or from opposite sides)"
        )
    (i, j), worst = max(pairs.items(), key=lambda item: item[1])
    what = "how the tissue in them changes from plane to plane" if evidence.beam == "cone" else "the tissue in them"
    return Statistic(
        worst, f"{evidence.name(i)} and {evidence.name(j)} show the same planes: {what} differs by {worst:.1%}"
    )


def _heights(evidence: Evidence) -> Statistic:
    if len(evidence.image) < 2:
        return Statistic(None, "there is a single radiograph")
    pairs = detail_disagreement(evidence.image, evidence.views, evidence.field_mask)
    if not pairs:
        return Statistic(None, "no two radiographs show the same planes of the body (opposite sides)")
    (i, j), worst = max(pairs.items(), key=lambda item: item[1])
    shared = 1 - worst**2 / 2
    return Statistic(
        worst,
        f"edges from slice to slice in {evidence.name(i)} and {evidence.name(j)} agree by {shared:.2f} (1 where lungs, "
        "diaphragm and vertebrae lie at the same heights, 0 or less for pictures that have nothing in common)",
    )


def _angles(evidence: Evidence) -> Statistic:
    rotation = best_rotation(evidence.image, evidence.views, evidence.field_mask)
    if rotation is None:
        return Statistic(None, "angles cannot be seen from these radiographs alone (parallel beam: from three on)")
    if rotation.gain <= 0:
        return Statistic(rotation.gain, "the radiographs agree best at the angles that are stated")
    return Statistic(
        rotation.gain,
        f"the radiographs would agree {math.exp(rotation.gain):.1f} times as well if {evidence.name(rotation.view)} "
        f"had been taken {rotation.degrees:+.1f} degrees further round",
    )


def _samples(evidence: Evidence) -> Statistic:
    if evidence.samples_std is None or evidence.hu is None:
        return Statistic(None, "no samples were drawn")
    body = evidence.hu > _BODY_HU
    spread = evidence.samples_std[body] if bool(body.any()) else evidence.samples_std
    value = float(spread.square().mean().sqrt())
    return Statistic(value, f"samples differ from their mean by {value:.0f} HU (root mean square in the body)")


def _undecided(evidence: Evidence) -> Statistic:
    """Log of the share of the cube that is shown as neither air nor soft tissue.

    The variance of a quantity between two ends is at most the product of its mean's distances from them (Bhatia and
    Davis, American Mathematical Monthly 107, 2000): a mean errs where it lies between.
    """
    if evidence.hu is None:
        return Statistic(None, "nothing was reconstructed")
    sizes = zip(evidence.hu.shape, evidence.grid.spacing_mm, strict=True)
    blocks = [min(n, max(1, round(_PLACE_MM / spacing))) for n, spacing in sizes]
    places = F.avg_pool3d(evidence.hu.float()[None], blocks)
    low, high = _UNDECIDED_HU
    counted = int(((places > low) & (places < high)).sum())
    return Statistic(
        math.log(max(counted, 1) / places.numel()),
        f"{counted / places.numel():.0%} of the box is shown as neither air nor soft tissue: lung, and "
        "edges whose place is not known",
    )
