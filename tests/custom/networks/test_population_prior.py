"""The Gaussian prior over chests: exact where everything is Gaussian, and indifferent to how radiographs are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from custom.core.checkpoints import build_network, definition
from custom.geometry import Geometry, VolumeGrid
from custom.networks import OutOfFoldPriors, PopulationPrior
from custom.networks.population_prior import average_pixels, sample_on
from custom.projection import Projector

GRID = VolumeGrid((8, 8, 6), (40.0,) * 3)
SHAPE = (6, 12)


def population(count: int = 300, rank: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Members, their true mean and their true directions (scaled by standard deviation)."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(GRID.shape, generator=generator) + 0.5
    sizes = torch.tensor([0.4, 0.3, 0.2, 0.1])[:, None, None, None]
    directions = torch.randn(rank, *GRID.shape, generator=generator) * sizes
    coefficients = torch.randn(count, rank, generator=generator)
    return mean + torch.einsum("nr,rxyz->nxyz", coefficients, directions), mean, directions


def fitted(count: int = 300, components: int = 4, noise_mm: float = 0.1) -> PopulationPrior:
    prior = PopulationPrior(GRID, components, noise_mm)
    prior.fit(population(count)[0])
    return prior


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_a_member_is_found_from_its_radiographs(beam: str) -> None:
    """Four numbers say who it is, and one view measures many more."""
    member = population()[0][7][None, None]
    geometry = Geometry.from_angles([0.0], beam, grid=GRID, detector_shape=SHAPE)
    image = Projector.from_geometry(geometry)(member)
    found = fitted().estimate(image, geometry.tensor()[None], None, 1)
    assert float((found - member).norm() / (member - fitted().mean).norm()) < 0.03


def test_the_estimate_is_the_conditional_mean_of_a_gaussian() -> None:
    """Against the textbook formula with the covariance written out: mean + C A^T (A C A^T + s^2)^-1 (p - A mean)."""
    prior = fitted(noise_mm=50.0)
    geometry = Geometry.from_angles([0.0, 90.0], "parallel", grid=GRID, detector_shape=SHAPE)
    projector = Projector.from_geometry(geometry)
    image = projector(torch.full((1, 1, *GRID.shape), 0.9))
    voxels = GRID.shape[0] * GRID.shape[1] * GRID.shape[2]
    matrix = projector(torch.eye(voxels).reshape(voxels, 1, *GRID.shape)).flatten(1).T.double()
    factor = (prior.components * prior.scales[:, None, None, None]).flatten(1).double()
    covariance = factor.T @ factor
    mean = prior.mean.flatten().double()
    inside = matrix @ covariance @ matrix.T + 50.0**2 * torch.eye(len(matrix), dtype=torch.float64)
    expected = mean + covariance @ matrix.T @ torch.linalg.solve(inside, image.flatten().double() - matrix @ mean)
    found = prior.estimate(image, geometry.tensor()[None], None, 1)
    torch.testing.assert_close(found.flatten(), expected.float(), atol=1e-3, rtol=1e-3)


def test_components_and_spread_are_those_of_the_population() -> None:
    members, _, directions = population(4000)
    prior = PopulationPrior(GRID, 4)
    prior.fit(members)
    factor = (prior.components * prior.scales[:, None, None, None]).flatten(1)
    true = directions.flatten(1).T @ directions.flatten(1)
    assert float((factor.T @ factor - true).norm() / true.norm()) < 0.1
    torch.testing.assert_close(prior.spread[0, 0], directions.square().sum(0).sqrt() + 0.02, atol=0.08, rtol=0.1)


def test_masked_views_count_for_nothing() -> None:
    prior = fitted()
    geometry = Geometry.from_angles([0.0, 90.0], "parallel", grid=GRID, detector_shape=SHAPE)
    image = Projector.from_geometry(geometry)(population()[0][:2, None])
    image[1, 1] = 999.0
    views = geometry.tensor().expand(2, -1, -1)
    found = prior.estimate(image, views, torch.tensor([[True, True], [True, False]]), 1)
    alone = prior.estimate(image[1:, :1], views[1:, :1], None, 1)
    torch.testing.assert_close(found[1:], alone)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
@pytest.mark.parametrize("shape", [(12, 24), (13, 26), (15, 25)])
def test_averaged_radiographs_know_where_they_are(shape: tuple[int, int], beam: str) -> None:
    """Rows and columns that do not fill a pixel are left out, and the detector's centre moves by as much."""
    grid = VolumeGrid((16, 16, 12), (20.0,) * 3)
    distance = (grid.points() - torch.tensor([30.0, -20.0, 10.0])).norm(dim=-1)
    volume = torch.exp(-((distance / 70) ** 2))[None, None]
    fine = Geometry.from_angles([20.0], beam, grid=grid, detector_shape=shape)
    image, views = average_pixels(Projector.from_geometry(fine)(volume), fine.tensor()[None], 2)
    assert image.shape[2:] == (shape[0] // 2, shape[1] // 2)
    direct = Projector(grid, image.shape[2:])(volume, views[0])
    assert float((image - direct).norm() / direct.norm()) < 0.08


@pytest.mark.parametrize(
    "grid",
    [
        VolumeGrid((9, 7, 5), (10.0, 20.0, 30.0), (5.0, -7.0, 3.0)),  # inside and coarser
        VolumeGrid((30, 20, 25), (3.0,) * 3),  # finer
        VolumeGrid((3, 4, 2), (300.0,) * 3, (100.0, 0.0, 0.0)),  # mostly outside, where the border goes on
    ],
)
def test_another_grid_shows_what_trilinear_interpolation_says(grid: VolumeGrid) -> None:
    own = VolumeGrid((12, 10, 8), (11.0, 17.0, 23.0), (1.0, 2.0, 3.0))
    volume = torch.randn(2, 3, *own.shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    where = ((grid.points() - torch.tensor(own.center_mm)) / torch.tensor(own.half_extent_mm)).flip(-1)
    expected = F.grid_sample(volume, where.expand(2, -1, -1, -1, -1), padding_mode="border", align_corners=False)
    sampled = sample_on(grid, volume, own)
    torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=0)
    gradients = [torch.autograd.grad(one.square().sum(), volume)[0] for one in (sampled, expected)]
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-4)


def test_a_prior_describes_itself_and_lives_on_other_grids() -> None:
    prior = fitted()
    twin = build_network(definition(prior))
    twin.load_state_dict(prior.state_dict())
    assert twin.components.dtype == torch.int8 and torch.equal(twin.components, prior.components)
    finer = prior.on(VolumeGrid((16, 16, 12), (20.0,) * 3), prior.mean)
    averaged = torch.nn.functional.avg_pool3d(finer, 2)
    inner = (slice(None), slice(None), *[slice(2, -2)] * 3)
    torch.testing.assert_close(averaged[inner].mean(), prior.mean[inner].mean(), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PopulationPrior(GRID, components=0), "must be positive"),
        (lambda: PopulationPrior(GRID, noise_mm=0.0), "must be positive"),
        (
            lambda: PopulationPrior(GRID, 4).fit(torch.zeros(4, *GRID.shape)),
            "at least 5 members, got 4: raise prior_members to 5",
        ),
        (lambda: PopulationPrior(GRID, 4).fit(torch.zeros(9, 2, 2, 2)), "cannot be fitted"),
    ],
)
def test_what_is_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


def test_half_precision_files_keep_the_components(tmp_path: Path) -> None:
    from custom.core.checkpoints import load_checkpoint, save_checkpoint

    prior = fitted()
    state = load_checkpoint(save_checkpoint(tmp_path / "prior.pt", prior, half=True)).state
    assert torch.equal(state["components"], prior.components)
    torch.testing.assert_close(state["mean"], prior.mean, atol=1e-3, rtol=1e-3)


def test_a_prior_out_of_fold_has_not_seen_its_own_patients() -> None:
    prior = PopulationPrior(GRID, components=2)
    priors = OutOfFoldPriors(prior, folds=3)
    folds = torch.arange(30) % 2
    members = folds.float()[:, None, None, None] * torch.ones(30, *GRID.shape)
    knows = torch.nn.functional.one_hot(folds, 3).bool()
    priors.fit(members, knows)
    of_zero, of_one = priors.of(torch.tensor([0, 1]))  # type: ignore[misc]
    assert float(of_zero.mean.mean()) == 1 and float(of_one.mean.mean()) == 0
    assert not prior.fitted and not priors.priors[2].fitted  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="without fold 0 of the patients 0 members are left"):
        priors.fit(members, torch.ones(30, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="raise prior_members from 30 to 50,"):
        priors.fit(members, torch.arange(30)[:, None] >= 2)


def test_without_folds_there_are_no_priors_out_of_fold() -> None:
    for priors in (OutOfFoldPriors(None, 5), OutOfFoldPriors(PopulationPrior(GRID, 2), 0)):
        assert len(priors) == 0 and priors.of(torch.tensor([0])) is None
    with pytest.raises(ValueError, match="got 1"):
        OutOfFoldPriors(None, 1)
