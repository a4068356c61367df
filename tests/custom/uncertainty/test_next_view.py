"""The next view, in populations where the answer is known, and against what the views then give."""

from __future__ import annotations

import math

import pytest
import torch

from custom.geometry import Geometry, VolumeGrid
from custom.networks.population_prior import PopulationPrior
from custom.projection import ProjectorCache
from custom.uncertainty import rank_next_views

GRID = VolumeGrid((12, 12, 8), (30.0,) * 3)
ANGLES = [float(angle) for angle in range(0, 360, 30)]


def population(directions: torch.Tensor, noise_mm: float = 10.0) -> PopulationPrior:
    """Mean of water, lung in the middle; components of standard deviation one."""
    prior = PopulationPrior(GRID, len(directions), noise_mm)
    prior.mean.fill_(1.0)
    prior.mean[..., 4:8, 4:8, 2:6] = 0.2
    prior.scales.fill_(directions.abs().max() / 127)
    prior.components.copy_((directions / prior.scales[0]).round())
    prior.spread.fill_(1.0)
    return prior


def acquisition(angles: list[float], beam: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    geometry = Geometry.from_angles(angles, beam, detector_shape=(8, 18), pixel_mm=30 * (1.5 if beam == "cone" else 1))
    image = torch.zeros(len(angles), 8, 18)
    return image, torch.ones_like(image, dtype=torch.bool), geometry.tensor()


def waves(axis: int) -> torch.Tensor:
    """One component that varies along one axis and sums to zero along it: only other directions see it."""
    sizes = [-1 if i == axis else 1 for i in range(3)]
    values = torch.cos(2 * math.pi * torch.arange(GRID.shape[axis]) / GRID.shape[axis]).reshape(sizes)
    return (0.2 * values).expand(GRID.shape).clone()[None]


@pytest.mark.parametrize("beam", ["parallel", "cone"])
@pytest.mark.parametrize(("taken", "axis", "best"), [(90.0, 1, 0.0), (0.0, 0, 90.0)])
def test_what_one_view_cannot_see_is_asked_of_the_view_across(taken: float, axis: int, best: float, beam: str) -> None:
    """A wave along the first view's rays is invisible to it, and seen best from the side."""
    found = rank_next_views(population(waves(axis)), 70.0, *acquisition([taken], beam), VolumeGrid(), ANGLES)
    assert found[0].angle_deg % 180 == best
    assert found[0].error_hu < 0.6 * found[-1].error_hu
    assert found[-1].angle_deg is None


def test_without_anything_seen_the_population_is_what_is_left_open() -> None:
    directions = waves(1)
    prior = population(directions, noise_mm=1e6)
    nothing = rank_next_views(prior, 70.0, *acquisition([90.0], "parallel"), VolumeGrid(), ANGLES)[-1]
    inside = directions[0, 1:-1, 1:-1]  # the cube of 320 mm ends between the outermost voxels
    assert nothing.error_hu == pytest.approx(1000 * float(inside.square().mean().sqrt()), rel=0.02)
    lung = directions[0, 4:8, 4:8, 2:6]
    assert nothing.lung_error_hu == pytest.approx(1000 * float(lung.square().mean().sqrt()), rel=0.02)
    assert nothing.lung_density_hu == pytest.approx(1000 * abs(float(lung.mean())), rel=0.02)


def test_the_error_that_is_expected_is_the_error_of_the_estimate() -> None:
    """Members of the population, radiographed with noise: the conditional mean errs as the formula says."""
    torch.manual_seed(0)
    prior = population(0.2 * torch.randn(6, *GRID.shape), noise_mm=20.0)
    shown = acquisition([90.0], "parallel")
    found = {one.angle_deg: one for one in rank_next_views(prior, 70.0, *shown, VolumeGrid(), ANGLES)}
    views = acquisition([90.0, 30.0], "parallel")[2]
    directions = prior.components * prior.scales[:, None, None, None]
    members = prior.mean[0] + torch.einsum("nr,rxyz->nxyz", torch.randn(400, 6), directions)
    paths = ProjectorCache(1)(GRID, (8, 18))(members[:, None], views[None].expand(400, -1, -1))
    paths = paths + 20.0 * torch.randn_like(paths)
    estimates = prior.estimate(paths, views[None].expand(400, -1, -1), None, 1)
    errors = 1000 * (estimates[:, 0] - members)[:, 1:-1, 1:-1]
    assert float(errors.square().mean().sqrt()) == pytest.approx(found[30.0].error_hu, rel=0.05)


@pytest.mark.parametrize(("beam", "left"), [("parallel", 8), ("cone", 10)])
def test_views_that_are_there_are_no_further_views(beam: str, left: int) -> None:
    found = rank_next_views(population(waves(1)), 70.0, *acquisition([90.0, 3.0], beam), VolumeGrid(), ANGLES)
    assert len(found) == left + 1
    with pytest.raises(ValueError, match="every angle"):
        rank_next_views(population(waves(1)), 70.0, *acquisition([90.0], beam), VolumeGrid(), [92.0])


def test_only_the_field_counts() -> None:
    prior, (image, field_mask, views) = population(waves(1)), acquisition([0.0], "parallel")
    whole = rank_next_views(prior, 70.0, image, field_mask, views, VolumeGrid(), ANGLES)[-1]
    field_mask[:, :, :9] = False
    half = rank_next_views(prior, 70.0, image, field_mask, views, VolumeGrid(), ANGLES)[-1]
    assert whole.error_hu < half.error_hu
