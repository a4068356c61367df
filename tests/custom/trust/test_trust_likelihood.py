"""The distance of radiographs against the textbook formula, and what it says of mirrored pictures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from custom.core.attenuation import water_attenuation_per_mm
from custom.geometry import VolumeGrid, views_from_angles
from custom.models import load_model
from custom.networks import PopulationPrior
from custom.projection import Projector
from custom.trust import Evidence, find_prior
from custom.trust.calibration_model import meeting
from custom.trust.check_statistics import population_statistics
from custom.trust.radiograph_likelihood import RadiographLikelihood

GRID = VolumeGrid((12, 12, 10), (30.0,) * 3)
SHAPE = (10, 18)
WATER = water_attenuation_per_mm(70.0)


def people(count: int, seed: int = 0) -> Tensor:
    """Bodies with a heart on the left (x < 0) and a spine at the back (y < 0): (N, X, Y, Z) in water."""
    generator = torch.Generator().manual_seed(seed)
    points = GRID.points()
    size, heart, shift = (torch.randn(count, generator=generator) for _ in range(3))
    x, y, z = (points[None, ..., axis] for axis in range(3))

    def blob(center: tuple[float, float, float], radius: float, grow: Tensor) -> Tensor:
        distance = (x - center[0]) ** 2 + (y - center[1]) ** 2 + (z - center[2] - 10 * shift[:, None, None, None]) ** 2
        return torch.exp(-distance / (2 * (radius * (1 + 0.1 * grow[:, None, None, None])) ** 2))

    body = 0.6 * blob((0, 0, 0), 70, size)
    return body + 0.6 * blob((-50, 30, -30), 30, heart) + 0.8 * blob((0, -70, 0), 25, size)


@pytest.fixture(scope="module")
def prior() -> PopulationPrior:
    fitted = PopulationPrior(GRID, components=8, noise_mm=10.0)
    fitted.fit(people(60))
    return fitted


def radiographs(
    beam: str = "parallel", angles: tuple[float, ...] = (0.0, 90.0), seed: int = 1
) -> tuple[Tensor, Tensor]:
    views = views_from_angles(angles, beam, pixel_mm=30.0 * (1.5 if beam == "cone" else 1.0)).float()
    return Projector(GRID, SHAPE)(people(1, seed)[:, None] * WATER, views)[0], views


def evidence(image: Tensor, views: Tensor, prior: PopulationPrior | None) -> Evidence:
    return Evidence(
        image, views, torch.ones_like(image, dtype=torch.bool), None, GRID, training={"energy_kev": 70}, prior=prior
    )


@pytest.mark.parametrize("hidden", [False, True])
def test_the_distance_is_that_of_the_gaussian(prior: PopulationPrior, hidden: bool) -> None:
    """Against mean and covariance of the pixels, written out."""
    image, views = radiographs()
    field_mask = torch.ones_like(image, dtype=torch.bool)
    if hidden:
        field_mask[0, :3] = False
    likelihood = RadiographLikelihood(prior, 70.0)
    path, seen, moved = likelihood.prepare(image, field_mask, views)
    terms = [likelihood.term(path[k], seen[k], likelihood.projected(moved[k], SHAPE)) for k in range(2)]
    distance = likelihood.distance(terms)

    directions = prior.components.float() * prior.scales[:, None, None, None]
    projector = Projector(GRID, SHAPE)
    kept = field_mask.flatten()
    factor = projector(directions[:, None], views).flatten(1)[:, kept].double()
    deviation = (image / WATER - projector(prior.mean, views)[0]).flatten()[kept].double()
    covariance = factor.T @ factor + prior.noise_mm**2 * torch.eye(int(kept.sum()), dtype=torch.float64)
    assert distance == pytest.approx(float(deviation @ torch.linalg.solve(covariance, deviation)), rel=1e-4)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
@pytest.mark.parametrize("wrong", [0, 1])
@pytest.mark.parametrize(("dims", "name"), [((-1,), "mirrored"), ((-2,), "upside down"), ((-2, -1), "180 degrees")])
def test_a_picture_that_is_turned_round_is_found(
    prior: PopulationPrior, beam: str, wrong: int, dims: tuple[int, ...], name: str
) -> None:
    image, views = radiographs(beam)
    likelihood = RadiographLikelihood(prior, 70.0)
    good = population_statistics(evidence(image, views, prior), likelihood)["orientation"]
    assert good.value is not None
    assert good.value < -0.1
    image[wrong] = image[wrong].flip(dims)
    bad = population_statistics(evidence(image, views, prior), likelihood)["orientation"]
    assert bad.value is not None
    assert bad.value > 0.1
    assert f"radiograph {wrong + 1} (" in bad.detail
    assert name in bad.detail


def test_a_patient_beside_the_middle_does_not_look_mirrored(prior: PopulationPrior) -> None:
    image, views = radiographs(angles=(90.0,))
    likelihood = RadiographLikelihood(prior, 70.0)
    moved = population_statistics(evidence(image.roll(2, 2), views, prior), likelihood)["orientation"]
    assert moved.value is not None
    assert moved.value < -0.1


def test_what_no_body_shows_is_far_from_the_population(prior: PopulationPrior) -> None:
    image, views = radiographs()
    likelihood = RadiographLikelihood(prior, 70.0)
    near, far = (
        population_statistics(evidence(shown, views, prior), likelihood)["population"].value
        for shown in (image, image.max() - image)
    )
    assert near is not None
    assert far is not None
    assert far > near + 2


def test_projections_are_kept_and_the_oldest_go(prior: PopulationPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custom.trust.radiograph_likelihood._KEPT_VIEWS", 2)
    likelihood = RadiographLikelihood(prior, 70.0)
    views = views_from_angles([0.0, 30.0, 60.0], "parallel", pixel_mm=30.0).float()
    first = likelihood.projected(views[0], SHAPE)
    assert likelihood.projected(views[0], SHAPE) is first
    for view in views[1:]:
        likelihood.projected(view, SHAPE)
    again = likelihood.projected(views[0], SHAPE)
    assert again is not first
    torch.testing.assert_close(again, first)


def test_the_prior_of_a_network_is_found(prior: PopulationPrior) -> None:
    holder = torch.nn.ModuleDict({"other": torch.nn.Linear(2, 2), "prior": prior})
    assert find_prior(holder) is prior
    assert find_prior(torch.nn.Linear(2, 2)) is None
    assert find_prior(PopulationPrior(GRID, 2)) is None  # not fitted


@pytest.mark.parametrize("name", ["inr_recon", "ldm_recon"])
def test_the_published_models_hold_a_population(name: str) -> None:
    model = load_model(name)
    own = find_prior(model.network)
    assert own is not None
    with meeting(model, PopulationPrior(GRID, 2)):
        assert find_prior(model.network) is None  # the other one, which is not fitted
    assert find_prior(model.network) is own
