"""What trainer and evaluator hand to the network."""

from __future__ import annotations

import pytest
import torch

from custom.core.attenuation import hu_to_attenuation
from custom.core.hu_window import hu_to_unit, unit_to_hu
from custom.geometry import Geometry, VolumeGrid, is_cone, views_from_angles
from custom.geometry.acquisition_sampler import PAPER_ANGLES_DEG, AcquisitionSampler, PoseError
from custom.networks import OutOfFoldPriors, PopulationPrior
from custom.projection import Projector
from custom.training.prepare_batch import SimulatedRadiographs, StoredRadiographs

GRID = VolumeGrid.cube(16, 320)
WIDE = VolumeGrid((20, 18, 16), GRID.spacing_mm)


def sampler(**options: object) -> AcquisitionSampler:
    return AcquisitionSampler(**{"view_weights": {"2": 1.0}, "pixel_at_isocenter_mm": 20.0, "seed": 1, **options})  # type: ignore[arg-type]


def prepare(**options: object) -> SimulatedRadiographs:
    return SimulatedRadiographs(sampler(), GRID, WIDE, (16, 24), **options)  # type: ignore[arg-type]


def volume() -> torch.Tensor:
    return (torch.rand(1, 1, *WIDE.shape, generator=torch.Generator().manual_seed(0)) * 1500 - 1000).round()


@pytest.mark.parametrize(
    ("sampling", "shape", "points"),
    [
        ("grid", (1, 1, 16, 16, 16), None),
        ("random", (1, 1, 50), (1, 50, 3)),
        ("patch", (1, 1, 6, 6, 6), (1, 6, 6, 6, 3)),
        ("region", (1, 1, 6, 6, 6), None),
    ],
)
def test_label_is_the_volume_at_the_points(sampling: str, shape: tuple, points: tuple | None) -> None:
    hu = volume()
    image, label, _, keywords = prepare(sampling=sampling, points=50, patch=6)({"source": hu})
    assert image.shape == (1, 2, 16, 24)
    assert label.shape == shape
    assert keywords["views"].shape == (1, 2, 13)
    assert keywords["view_mask"].all()
    if sampling == "region":
        keywords["points"], points = keywords["region"][0].points()[None], (1, 6, 6, 6, 3)
    if points is None:
        assert "points" not in keywords
        return
    assert keywords["points"].shape == points
    first = torch.tensor([axis[0] for axis in (WIDE.axis_mm(0), WIDE.axis_mm(1), WIDE.axis_mm(2))])
    index = ((keywords["points"] - first) / 20).round().long()
    expected = hu[0, 0][index[..., 0], index[..., 1], index[..., 2]]
    torch.testing.assert_close(label[:, 0], hu_to_unit(expected, (-1000, 1000)))


def test_tissue_outside_the_cube_casts_shadows() -> None:
    hu = torch.full((1, 1, *WIDE.shape), -1000.0)
    hu[:, :, 0] = 0.0  # beyond the cube on the left
    image, label, _, _ = prepare(sampling="grid")({"source": hu})
    assert float(label.max()) == -1.0
    assert float(image.max()) > 0.1


def test_the_papers_project_the_cube_alone() -> None:
    hu = volume()
    alone, _, _, keywords = prepare(cube_prob=1.0)({"source": hu})
    cube = hu_to_attenuation(hu[:, :, 2:18, 1:17], 70.0)
    torch.testing.assert_close(alone, Projector(GRID, (16, 24))(cube, keywords["views"]), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(alone, prepare()({"source": hu})[0], atol=0.1)


def test_coarse_sampling_learns_the_coarse_grid() -> None:
    hu, coarse = volume(), VolumeGrid((18, 16, 16), GRID.spacing_mm)
    _, label, _, keywords = prepare(sampling="coarse", coarse_grid=coarse)({"source": hu})
    torch.testing.assert_close(label, hu_to_unit(hu[:, :, 1:19, 1:17], (-1000, 1000)))
    assert keywords["coarse"] is True and "points" not in keywords


def test_radiographs_are_those_of_the_projector() -> None:
    hu = volume()
    image, _, _, keywords = prepare()({"source": hu})
    expected = Projector(WIDE, (16, 24))(hu_to_attenuation(hu, 70.0), keywords["views"])
    torch.testing.assert_close(image, expected)


def test_several_regions_of_one_acquisition_stand_one_after_the_other() -> None:
    hu = volume().expand(2, -1, -1, -1, -1)
    image, label, _, keywords = prepare(sampling="region", patch=6, regions_per_step=3)({"source": hu})
    assert image.shape == (2, 2, 16, 24) and label.shape == (6, 1, 6, 6, 6) and len(keywords["region"]) == 3
    assert len({part.center_mm for part in keywords["region"]}) == 3
    cube = hu_to_unit(hu[:, :, 2:18, 1:17], (-1000, 1000))
    for part, found in zip(keywords["region"], label.split(2), strict=True):
        first = [round((part.axis_mm(i)[0] - GRID.axis_mm(i)[0]).item() / 20) for i in range(3)]
        box = [slice(n, n + 6) for n in first]
        torch.testing.assert_close(found, cube[(..., *box)])


@pytest.mark.parametrize("sampling", ["grid", "region", "patch", "random"])
def test_a_batch_that_is_an_acquisition_already_is_kept(sampling: str) -> None:
    """As where the step had simulated it: only what is looked at of it is drawn."""
    made = prepare(sampling=sampling, points=50, patch=6, cube_prob=0.5)
    torch.manual_seed(3)
    image, views, label = made.acquire(volume())
    state = torch.get_rng_state()
    kept = made({"image": image, "views": views, "label": label.short()})
    torch.set_rng_state(state)
    again = prepare(sampling=sampling, points=50, patch=6)
    again.acquire = lambda volume: (image, views, label)  # type: ignore[method-assign]
    simulated = again({"source": volume()})
    assert torch.equal(kept[0], image) and torch.equal(kept[3]["views"], views)
    torch.testing.assert_close(kept[1], simulated[1])
    assert kept[3].keys() == simulated[3].keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions_per_step": 0, "sampling": "region", "patch": 8}, "regions_per_step must be at least 1"),
        ({"regions_per_step": 2}, "more needs sampling 'region'"),
        ({"sampling": "everything"}, "sampling"),
        ({"sampling": "patch", "patch": 17}, "patch must not exceed"),
        ({"sampling": "coarse"}, "needs a coarse_grid"),
        ({"sampling": "coarse", "coarse_grid": VolumeGrid((8, 8, 8), (40.0,) * 3)}, "same margin"),
    ],
)
def test_wrong_options(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(**change)


def test_grids_must_share_centre_and_spacing() -> None:
    with pytest.raises(ValueError, match="same margin"):
        SimulatedRadiographs(sampler(), GRID, VolumeGrid((19, 18, 16), GRID.spacing_mm), (16, 24))


def test_stored_radiographs_need_no_truth() -> None:
    batch = {"image": torch.rand(1, 2, 4, 4), "views": torch.rand(1, 2, 13), "view_mask": torch.ones(1, 2).bool()}
    image, label, args, keywords = StoredRadiographs()(batch)
    assert label is None and args == ()
    assert set(keywords) == {"views", "view_mask"}
    assert image.shape == (1, 2, 4, 4)


def test_values_round_trip() -> None:
    hu = torch.tensor([-2000.0, -1000.0, 0.0, 250.0, 3000.0])
    torch.testing.assert_close(unit_to_hu(hu_to_unit(hu, (-1000, 1000)), (-1000, 1000)), hu.clamp(-1000, 1000))


def test_sampler_draws_the_papers_sets_and_others() -> None:
    papers = sampler(view_weights={"4": 1.0}, paper_prob=1.0, cone_prob=0.0)
    geometry = Geometry(papers(), (16, 24), GRID)
    assert geometry.angles_deg == pytest.approx(PAPER_ANGLES_DEG[4][0], abs=1e-4)
    both = sampler(view_weights={str(k): 1.0 for k in range(1, 9)}, cone_prob=0.5)
    drawn = [both() for _ in range(200)]
    assert {len(views) for views in drawn} == set(range(1, 9))
    cones = [bool(is_cone(views).all()) for views in drawn]
    assert 60 < sum(cones) < 140
    for views in drawn:
        Geometry(views, (64, 96), GRID)  # every draw is valid
    distances = [float(v[0, :3].norm()) for v, cone in zip(drawn, cones, strict=True) if cone]
    assert min(distances) >= 700 and max(distances) <= 1700


def test_sampler_is_reproducible() -> None:
    options = {"view_weights": {"1": 1.0, "3": 1.0}}
    assert all(torch.equal(a(), b()) for a, b in [(sampler(**options), sampler(**options))])


@pytest.mark.parametrize("weights", [{}, {"0": 1.0}, {"2": -1.0}])
def test_sampler_refuses(weights: dict) -> None:
    with pytest.raises(ValueError, match="view_weights"):
        sampler(view_weights=weights)


def test_a_case_meets_the_prior_of_its_fold() -> None:
    priors = OutOfFoldPriors(PopulationPrior(GRID, 2), 3)
    batch = {"source": volume().expand(2, -1, -1, -1, -1), "fold": torch.tensor([2, 0])}
    *_, keywords = prepare(sampling="grid", priors=priors)(batch)
    assert [id(prior) for prior in keywords["priors"]] == [id(priors.priors[2]), id(priors.priors[0])]
    *_, keywords = prepare(sampling="grid", priors=OutOfFoldPriors(None, 3))(batch)
    assert "priors" not in keywords


def test_what_the_network_is_not_told() -> None:
    """A pose error moves the radiographs, not the views; a degradation sees the true ones."""
    told, seen = [], []

    def turned(views: torch.Tensor) -> torch.Tensor:
        told.append(views)
        return views_from_angles([10.0, 100.0], "parallel", pixel_mm=20.0).float()

    def degradation(image: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        seen.append(views)
        return image + 1

    hu = volume()
    image, _, _, keywords = prepare(pose_error=turned, degradation=degradation, sampling="grid")({"source": hu})
    torch.testing.assert_close(keywords["views"][0], told[0])
    expected = Projector(WIDE, (16, 24))(hu_to_attenuation(hu, 70.0), seen[0]) + 1
    torch.testing.assert_close(image, expected, atol=1e-4, rtol=1e-4)


def test_truncated_radiographs_are_the_middle_of_whole_ones() -> None:
    """A voxel at the isocentre stays where the views say it is."""
    hu = torch.full((1, 1, *WIDE.shape), -1000.0)
    hu[:, :, 9:11, 8:10, 7:9] = 1000.0
    torch.manual_seed(0)
    sizes = set()
    for _ in range(40):
        image, *_ = prepare(truncated_prob=1.0, smallest_detector_shape=(8, 8), sampling="grid")({"source": hu})
        sizes.add(tuple(image.shape[2:]))
        torch.testing.assert_close(image, image.flip(3), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(image, image.flip(2), atol=1e-3, rtol=1e-3)
    assert sizes == {(16, 24), (16, 16), (16, 8), (8, 24), (8, 16), (8, 8)}


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_pose_errors_are_as_large_as_asked(beam: str) -> None:
    views = views_from_angles(torch.full((400,), 30.0), beam, pixel_mm=2.0).float()
    torch.testing.assert_close(PoseError(0.0, 0.0, seed=0)(views), views)
    moved = PoseError(3.0, 0.02, largest=2.0, seed=0)(views)
    head, center, u = moved[:, :3], moved[:, 3:6], moved[:, 6:9]
    angle = torch.rad2deg(torch.atan2(head[:, 1], head[:, 0])) - torch.rad2deg(torch.atan2(views[:, 1], views[:, 0]))
    assert 2.2 < float(angle.std()) < 3.0 and float(angle.abs().max()) <= 6.001
    torch.testing.assert_close(u.norm(dim=1), views[:, 6:9].norm(dim=1))
    torch.testing.assert_close((u * head).sum(1), torch.zeros(400), atol=1e-2, rtol=0)
    far = center.norm(dim=1) / views[:, 3:6].norm(dim=1) - 1
    assert float(far.abs().max()) <= 0.0401 and (beam == "parallel" or float(far.std()) > 0.012)
    if beam == "parallel":
        torch.testing.assert_close(head.norm(dim=1), torch.ones(400))
    with pytest.raises(ValueError, match="must not be negative"):
        PoseError(-1.0)
