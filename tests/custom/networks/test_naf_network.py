"""A field for one patient: its rays, its fit, and the same call as a trained network's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from analytic import ellipsoid_integrals
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn

from custom.core.attenuation import hu_to_attenuation
from custom.geometry import Geometry, VolumeGrid
from custom.metrics import psnr
from custom.networks.naf import FieldFit, FieldReconstructor, FitWriter, _Rays
from custom.projection import Projector
from custom.training.prepare_batch import StoredRadiographs

GRID = VolumeGrid.cube(16, 320.0)
FIELD = {"hash_grid": {"levels": 3, "base_resolution": 4}, "width": 16}
FIT = {
    "steps": 100,
    "rays_per_step": 128,
    "samples_per_ray": 24,
    "learning_rate": 0.01,
    "check_interval": 20,
    "progress": False,
}


class Constant(nn.Module):
    def forward(self, points: Tensor) -> Tensor:
        return torch.full(points.shape[:-1], 2.0)


class Smooth(nn.Module):
    """(1 - |x / r|^2)^2 within semi-axes 140, 100 and 135 mm: the first of the analytic ellipsoids."""

    def forward(self, points: Tensor) -> Tensor:
        q = (points / torch.tensor([140.0, 100.0, 135.0])).square().sum(-1)
        return (1 - q).clamp(min=0) ** 2


def body(radius: float = 100.0, center: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    """Water in air, (16, 16, 16) HU."""
    distance = ((GRID.points() - torch.tensor(center)) / torch.tensor([1.2, 0.8, 1.0])).norm(dim=-1)
    return torch.where(distance < radius, 0.0, -1000.0)


def case(angles: list[float], beam: str = "parallel") -> tuple[Tensor, Tensor]:
    geometry = Geometry.from_angles(angles, beam, grid=GRID)
    return Projector.from_geometry(geometry)(hu_to_attenuation(body()[None, None])), geometry.tensor()[None]


def reconstructor(seed: int = 0, field: dict[str, Any] = FIELD, **changes: Any) -> FieldReconstructor:
    options = {
        key: changes.pop(key) for key in ("body_margin_mm", "views", "coordinate_half_side_mm") if key in changes
    }
    return FieldReconstructor(GRID, field, {**FIT, **changes}, seed=seed, **options)


def decibels(pred: Tensor) -> float:
    return psnr((pred[0, 0] + 1) * 1000 - 1000, body(), 2000.0)


# --- rays ---


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_a_constant_gives_the_length_within_the_box(beam: str) -> None:
    geometry = Geometry.from_angles([0.0, 90.0, 30.0], beam, grid=GRID)
    image = torch.arange(3 * 16 * 24.0).reshape(3, 16, 24)
    half = torch.tensor([160.0, 100.0, 50.0])
    known = _Rays(image, geometry.tensor(), -half, half)
    assert 0 < len(known) < image.numel(), "rays that miss the box are left out"
    paths = known.integrals(Constant(), torch.arange(len(known)), 7, torch.rand(len(known), 7)) / 2
    torch.testing.assert_close(paths, known.length)
    (lateral,) = known.length[known.path == 7 * 24 + 12]  # beside the middle: straight through, from right to left
    assert float(lateral) == pytest.approx(320, abs=0.5)
    points = known.origin + (known.near + known.length / 2)[:, None] * known.direction
    assert bool((points.abs() <= half + 1e-3).all())
    ends = known.origin + (known.near + known.length)[:, None] * known.direction
    assert torch.allclose((ends.abs() / half).amax(-1), torch.ones(len(known)), atol=1e-4)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_stratified_samples_give_the_line_integral(beam: str) -> None:
    geometry = Geometry.from_angles([0.0, 70.0], beam, grid=GRID)
    center, axes = torch.zeros(3), torch.tensor([140.0, 100.0, 135.0])
    image = torch.zeros(2, 16, 24)
    known = _Rays(image, geometry.tensor(), center - axes, center + axes)
    found = known.integrals(Smooth(), torch.arange(len(known)), 200, torch.rand(len(known), 200))
    o, d = known.origin.double() / axes, known.direction.double() / axes
    a = d.square().sum(-1)
    h = (1 - (o.square().sum(-1) - (o * d).sum(-1) ** 2 / a)).clamp(min=0)
    torch.testing.assert_close(found.double(), 16 / 15 * h**2.5 / a.sqrt(), atol=0.5, rtol=0)
    assert ellipsoid_integrals(geometry.views, (16, 24)).max() > 1, "paths of the same order"


# --- the fit ---


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_a_body_comes_back_from_several_views_within_bounds(beam: str) -> None:
    image, views = case([0.0, 45.0, 90.0, 135.0], beam)
    network = reconstructor(steps=200)
    pred = network(image, views)
    assert pred.shape == (1, 1, 16, 16, 16) and pred.dtype == torch.float32 and not pred.requires_grad
    assert pred.min() >= -1 and pred.max() <= 1
    assert decibels(pred) > 17 > decibels(torch.zeros(1, 1, 16, 16, 16)) + 8
    (record,) = network.records
    assert record.steps <= 200 and record.error_mm < 12 and record.curve[0][1] > 2 * record.curve[-1][1]


def test_fourier_features_serve_as_well() -> None:
    image, views = case([0.0, 45.0, 90.0, 135.0])
    network = reconstructor(steps=200, field={"encoding": "fourier", "fourier": {"count": 32, "scale": 1.0}})
    assert decibels(network(image, views)) > 15


def test_a_fit_is_one_of_a_case_and_a_seed_whatever_was_before() -> None:
    image, views = case([0.0, 90.0])
    other = image.flip(2) * 0.9
    network = reconstructor(steps=10)
    first = network(image, views)
    network(other, views)
    both = network(torch.cat([other, image]), views.expand(2, -1, -1))
    assert len(network.records) == 2
    assert torch.equal(both[1:], first)
    assert not torch.equal(reconstructor(1, steps=10)(image, views), first)
    torch.testing.assert_close(network.sample(), first[0])


def test_it_can_be_called_where_gradients_are_off() -> None:
    image, views = case([0.0, 90.0])
    network = reconstructor(steps=5).eval()
    expected = network(image, views)
    with torch.no_grad():
        assert torch.equal(network(image, views), expected)
    with torch.inference_mode():
        again = network(image.clone(), views.clone(), torch.ones(1, 2, dtype=torch.bool))
    assert torch.equal(again, expected)


def test_masked_views_do_not_exist() -> None:
    image, views = case([0.0, 50.0, 90.0])
    image[:, 1] = 99.0
    mask = torch.tensor([[True, False, True]])
    expected = reconstructor(steps=10)(image[:, [0, 2]], views[:, [0, 2]])
    assert torch.equal(reconstructor(steps=10)(image, views, mask), expected)


def test_tissue_outside_the_cube_has_its_place_in_a_larger_box() -> None:
    """An arm beside the cube lies in the way of the lateral rays only; without room it is put into the cube."""
    wide = GRID.padded((6, 0, 0))
    hu = torch.full(wide.shape, -1000.0)
    hu[wide.points()[..., 0] > 180] = 0.0  # 100 mm of water, all along y and z
    geometry = Geometry.from_angles([0.0, 90.0], "parallel", grid=wide, detector_shape=(16, 40))
    image = Projector.from_geometry(geometry)(hu_to_attenuation(hu[None, None]))
    views, inside = geometry.tensor()[None], {}
    for margin in (0.0, 120.0):
        pred = reconstructor(steps=150, body_margin_mm=[margin, 0, 0])(image, views)
        inside[margin] = float((pred + 1).mean())
    assert inside[120.0] < 0.5 * inside[0.0]


def test_it_ends_when_the_error_stands_still_or_the_time_is_up() -> None:
    image, views = case([0.0, 90.0])
    still = reconstructor(steps=5000, check_interval=2, patience=2, min_improvement=0.9, drop_at=1.0)
    still(image, views)
    assert still.records[0].reason == "standstill" and still.records[0].steps < 60
    timed = reconstructor(steps=10**6, max_seconds=0.3, patience=None)
    timed(image, views)
    assert timed.records[0].reason == "max_seconds" and 0.3 <= timed.records[0].seconds < 30
    whole = reconstructor(steps=7, patience=1, check_interval=100)
    whole(image, views)
    assert whole.records[0].reason == "steps" and whole.records[0].steps == 7
    assert whole.records[0].error_mm == pytest.approx(whole.records[0].curve[-1][1], abs=1e-3)


def test_the_learning_rate_drops_once(monkeypatch: pytest.MonkeyPatch) -> None:
    image, views = case([0.0, 90.0])
    seen: list[float] = []
    step = torch.optim.Adam.step

    def watched(self: Any, *args: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    reconstructor(steps=10, drop_at=0.6, drop=0.1)(image, views)
    assert seen == pytest.approx([0.01] * 6 + [0.001] * 4)


def test_how_a_fit_went_is_written_for_every_case(tmp_path: Path) -> None:
    image, views = case([0.0, 90.0])
    mask = torch.ones(1, 2, dtype=torch.bool)
    network = reconstructor(steps=3)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": image, "views": views, "view_mask": mask, "name": [name]} for name in ("a", "b")],
        network=network,
        prepare_batch=StoredRadiographs(),
        val_handlers=[FitWriter(str(tmp_path / "out"), network)],
    )
    assert (tmp_path / "out").is_dir(), "the folder is there before the fit"
    evaluator.run()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_fit.json", "b_fit.json"]
    written = json.loads((tmp_path / "out/b_fit.json").read_text())
    assert written["case"] == "b" and written["steps"] == 3 and written["reason"] == "steps"
    assert written["settings"]["rays_per_step"] == 128 and written["seed"] == 0 and written["box_half_mm"] == [160] * 3
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        FitWriter(str(tmp_path / "file/out"), network)


# --- bad input ---


def test_calls_that_do_not_fit() -> None:
    image, views = case([0.0, 90.0])
    network = reconstructor(steps=2)
    with pytest.raises(ValueError, match="no views"):
        network(image)
    with pytest.raises(ValueError, match="2 radiographs of 1 cases do not match views of shape"):
        network(image, views[:, :1])
    with pytest.raises(ValueError, match=r"image must be \(B, K, V, U\)"):
        network(image[0], views)
    with pytest.raises(ValueError, match="view_mask must be"):
        network(image, views, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one view that counts"):
        network(image, views, torch.zeros(1, 2, dtype=torch.bool))
    elsewhere = views.clone()
    elsewhere[..., 3:6] += 5000
    with pytest.raises(ValueError, match="only 0 rays of 2 views meet the volume"):
        network(image, elsewhere)
    known = reconstructor(steps=2, views=views[0])
    assert torch.equal(known(image), network(image, views))


def test_a_fit_that_diverges_says_so() -> None:
    image, views = case([0.0, 90.0])
    with pytest.raises(RuntimeError, match=r"diverged.*lower learning_rate"):
        reconstructor(steps=20)(image * float("nan"), views)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ({"samples_per_ray": 1.5}, "samples_per_ray must be a whole number"),
        ({"learning_rate": 0.0}, "learning_rate and max_seconds must be greater than 0, got 0.0"),
        ({"max_seconds": -1}, "must be greater than 0"),
        ({"drop_at": 0.0}, r"drop_at must lie in \(0, 1\], got 0.0"),
        ({"held_out": 0.9}, "held_out must be at most 0.5"),
    ],
)
def test_numbers_that_make_no_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FieldFit(**options)


def test_boxes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="body_margin_mm must be three numbers, not negative"):
        reconstructor(body_margin_mm=[10, -1, 0])
    with pytest.raises(ValueError, match=r"coordinate_half_side_mm must be at least 170, .* got 165"):
        reconstructor(body_margin_mm=[10, 0, 0], coordinate_half_side_mm=165)
