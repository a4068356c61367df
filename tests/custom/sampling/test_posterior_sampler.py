"""Samples: repeatable, indifferent to batches and kills, guided, pulled to radiographs, and refused where wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from custom.core.checkpoints import save_checkpoint
from custom.core.files import sha256_file
from custom.metrics import NOISE_GROUP, SampleStatistics
from custom.networks import VQGAN
from custom.projection.data_consistency import ReprojectionCorrection
from custom.sampling import EncodedMean, PosteriorSampler, collect_samples, load_sampler
from tests.custom.networks.test_coarse_to_fine import small as coarse_to_fine
from tests.custom.networks.tiny_diffusion import GRID, autoencoder, denoiser, mean_network, radiographs


def sampler(**options: Any) -> PosteriorSampler:
    network = options.pop("denoiser", None) or denoiser()
    return PosteriorSampler(
        network, options.pop("autoencoder", autoencoder()), network.scheduler(), **{"steps": 3, **options}
    )


class Mean:
    """A mean network whose reconstruction is known."""

    def __init__(self) -> None:
        self.unit = torch.rand(1, 1, *GRID.shape, generator=torch.Generator().manual_seed(1)) - 0.5

    def volume(self, *_: object) -> Tensor:
        return self.unit


def residual_sampler(**options: Any) -> PosteriorSampler:
    return sampler(denoiser=denoiser(known_channels=3, residual=True), mean=Mean(), **options)


def case(count: int = 2) -> tuple[Tensor, Tensor]:
    image, views = radiographs(count)
    return image[0], views[0]


def drawn(count: int, seed: int = 0, **options: Any) -> Tensor:
    return torch.cat([batch for _, batch in sampler(**options).samples(*case(), count, seed)])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_sample_is_the_same_whatever_is_drawn_beside_it(threads: int) -> None:
    before, expected = torch.get_num_threads(), torch.cat([drawn(1), drawn(2)[1:]])
    try:
        torch.set_num_threads(threads)
        several = drawn(9)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(several[:2], expected, atol=0.05, rtol=0)  # HU


def test_a_sample_depends_on_its_seed_and_number_alone() -> None:
    one_by_one, batched = drawn(5), drawn(5, batch_size=3)
    assert one_by_one.shape == (5, 1, *GRID.shape)
    torch.testing.assert_close(one_by_one, batched, atol=0.05, rtol=0)  # HU
    torch.testing.assert_close(drawn(2), one_by_one[:2])
    assert float((drawn(1, seed=1) - one_by_one[:1]).abs().mean()) > 0.1
    assert float((one_by_one[0] - one_by_one[1]).abs().mean()) > 0.1
    image, views = radiographs()
    unit = sampler()(image, views, seed=0, first=3)
    torch.testing.assert_close((unit + 1) * 1000 - 1000, one_by_one[3:4], atol=0.05, rtol=0)


def test_the_noises_of_a_group_are_standard_normal_and_sum_to_zero() -> None:
    made = sampler()
    noises = torch.cat([made.noise(4, index) for index in range(2 * NOISE_GROUP)])
    for group in noises.split(NOISE_GROUP):
        assert float(group.mean(0).abs().max()) < 1e-5
    assert float(noises.std()) == pytest.approx(1, abs=0.03)
    pairs = torch.corrcoef(noises.flatten(1))
    assert float(pairs[0, 1:NOISE_GROUP].mean()) == pytest.approx(-1 / (NOISE_GROUP - 1), abs=0.01)
    assert float(pairs[:NOISE_GROUP, NOISE_GROUP:].abs().mean()) < 0.1


def test_guidance_of_one_is_the_conditional_answer_and_more_goes_beyond() -> None:
    plain, none, twice = (sampler(guidance_scale=s) for s in (1.0, 0.0, 2.0))
    image, views = radiographs()
    condition = plain.denoiser.condition(image, views)
    x, time = plain.noise(0, 0), torch.tensor([30])
    with torch.no_grad():
        conditional, free, far = (s._guided(x, time, condition) for s in (plain, none, twice))
        torch.testing.assert_close(conditional, plain.denoiser.denoise(x, time, condition))
        torch.testing.assert_close(free, plain.denoiser.denoise(x, time, torch.zeros_like(condition)))
    torch.testing.assert_close(far, free + 2 * (conditional - free), atol=1e-4, rtol=1e-4)


def test_residual_scale_draws_a_sample_towards_the_reconstruction_by_its_number_of_views() -> None:
    image, views = radiographs()
    noise = sampler().noise(0, 0)

    def latent(**options: Any) -> Tensor:
        return residual_sampler(**options).sample_latents(image, views, None, noise)

    with torch.no_grad():
        expected = autoencoder().encode(Mean().unit)
    count, plain = views.shape[1], latent()
    assert torch.equal(latent(residual_scale=[1.0]), plain)
    half = latent(residual_scale=[1.0] * (count - 1) + [0.5])  # the last number is for more views, too
    torch.testing.assert_close(half, (plain + expected) / 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latent(residual_scale=[0.5] * (count - 1) + [1.0]), plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latent(residual_scale=0.5), half, atol=1e-4, rtol=1e-4)  # one number for all
    for wrong in ([], [0.0], [1.0, float("nan")], [3.0], "1"):
        with pytest.raises(ValueError, match="residual_scale"):
            sampler(residual_scale=wrong)


def test_recentring_moves_all_samples_of_a_case_alike_towards_the_mean_network() -> None:
    def samples(count: int, first: int = 0, **options: Any) -> Tensor:
        return torch.cat([hu for _, hu in residual_sampler(**options).samples(*case(), count, first=first)])

    mean, plain = Mean().unit * 1000, samples(NOISE_GROUP + 2)
    for count in (3, NOISE_GROUP, NOISE_GROUP + 2):  # the first group alone says where to
        centre = plain[: min(count, NOISE_GROUP)].mean(0)
        expected = (plain[:count] + 0.75 * (mean - centre)).clamp(-1000, 1000)
        assert float((expected - plain[:count]).abs().mean()) > 10
        torch.testing.assert_close(samples(count, recentring=0.75), expected, atol=0.05, rtol=0)
        batched = samples(count, recentring=0.75, batch_size=5, first=1)
        torch.testing.assert_close(batched, expected[1:], atol=0.05, rtol=0)
    assert torch.equal(samples(1, recentring=0.75), plain[:1])
    assert torch.equal(drawn(2, recentring=0.75), drawn(2))  # without a mean network
    with pytest.raises(ValueError, match="recentring must lie"):
        residual_sampler(recentring=1.5)


class Detail:
    """An atlas that adds what shows whom it was asked for."""

    settings = "ten HU for each sample"

    def detailed(self, sample: Tensor, reconstruction: Tensor, image: Tensor, views: Tensor, index: int) -> Tensor:
        assert len(sample) == len(reconstruction) == len(image) == len(views) == 1
        return sample + 0.01 * (index + image.shape[1])


def test_every_sample_gets_its_detail_of_the_atlas_before_they_are_recentred() -> None:
    def samples(**options: Any) -> Tensor:
        return torch.cat([hu for _, hu in residual_sampler(**options).samples(*case(), 3)])

    plain = samples()
    added = torch.tensor([20.0, 30.0, 40.0]).reshape(3, 1, 1, 1, 1)
    expected = (plain + added).clamp(-1000, 1000)
    torch.testing.assert_close(samples(atlas=Detail(), batch_size=2), expected, atol=0.05, rtol=0)
    moved = (plain + added + 0.5 * (Mean().unit * 1000 - plain.mean(0) - 30)).clamp(-1000, 1000)
    torch.testing.assert_close(samples(atlas=Detail(), recentring=0.5), moved, atol=0.05, rtol=0)
    made = residual_sampler(atlas=Detail())
    image, views = radiographs(3)
    mask = torch.tensor([[True, True, False]]).expand(len(image), -1)
    two = made(image, views, mask, first=1)
    torch.testing.assert_close(
        two, (residual_sampler()(image, views, mask, first=1) + 0.03).clamp(-1, 1), atol=1e-4, rtol=0
    )
    assert made.settings["atlas"] == Detail.settings
    with pytest.raises(ValueError, match="an atlas needs the reconstruction of a mean network"):
        sampler(atlas=Detail())


def test_other_radiographs_give_another_sample() -> None:
    image, views = radiographs()
    first, second = (sampler()(picture, views) for picture in (image, image.flip(-1)))
    assert float((first - second).abs().mean()) > 1e-4


def test_without_movement_consistency_changes_nothing_and_with_it_the_sample_moves() -> None:
    image, views = radiographs()
    plain = sampler()(image, views)
    still = sampler(consistency=lambda volume, *_: volume, consistency_weight=1.0)(image, views)
    torch.testing.assert_close(still, plain, atol=1e-4, rtol=1e-4)
    pulled = sampler(consistency=lambda volume, *_: volume + 0.5, consistency_weight=1.0)(image, views)
    assert float((pulled - plain).abs().mean()) > 1e-3
    off = sampler(consistency=lambda volume, *_: volume + 0.5, consistency_weight=0.0)(image, views)
    assert torch.equal(off, plain)


def test_the_correction_at_the_end_is_applied_once_to_the_decoded_sample() -> None:
    image, views = case()
    plain = drawn(3, batch_size=2)
    before: dict[int, Tensor] = {}
    made = sampler(batch_size=2, final_consistency=ReprojectionCorrection(GRID, 20))
    found = list(made.samples(image, views, 3, on_decoded=before.__setitem__))
    torch.testing.assert_close(torch.cat([before[0], before[2]]), plain, atol=0.05, rtol=0)
    expected = ReprojectionCorrection(GRID, 20)(plain / 1000, image[None].expand(3, -1, -1, -1), views)
    torch.testing.assert_close(torch.cat([batch for _, batch in found]), expected * 1000, atol=0.5, rtol=0)
    torch.testing.assert_close(made(image[None], views[None]) * 1000, found[0][1][:1], atol=0.5, rtol=0)
    assert float((expected * 1000 - plain).abs().mean()) > 10


def test_the_mean_stands_in_the_condition_and_under_the_residual() -> None:
    network = denoiser(known_channels=3, residual=True)
    network.residual_std.fill_(1e-6)  # nothing is left to diffuse
    made = sampler(denoiser=network, mean=Mean())
    image, views = radiographs()
    expected = made.autoencoder.decode(made.autoencoder.encode(Mean().unit)).clamp(-1, 1)
    torch.testing.assert_close(made(image, views), expected.detach(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("recentring", [0.0, 0.75])
@pytest.mark.parametrize(("count", "killed_at"), [(6, 4), (NOISE_GROUP + 3, 4), (NOISE_GROUP + 3, NOISE_GROUP + 2)])
def test_a_killed_run_is_taken_up_and_gives_the_same(
    tmp_path: Path, recentring: float, count: int, killed_at: int
) -> None:
    made, (image, views) = residual_sampler(batch_size=2, recentring=recentring), case()
    whole = collect_samples(made, image, views, count)
    seen: list[int] = []

    def kill(first: int, samples: Tensor) -> None:
        seen.append(first)
        if first == killed_at:
            raise KeyboardInterrupt

    def again() -> SampleStatistics:
        seen.clear()
        return collect_samples(
            made, image, views, count, state_path=tmp_path / "state.pt", on_samples=lambda first, _: seen.append(first)
        )

    with pytest.raises(KeyboardInterrupt):
        collect_samples(made, image, views, count, state_path=tmp_path / "state.pt", on_samples=kill)
    resumed = again()
    assert seen[0] == killed_at, "the samples before it were kept"
    assert torch.equal(resumed.mean(), whole.mean()) and torch.equal(resumed.variance(), whole.variance())
    with patch.object(made.denoiser, "denoise", side_effect=AssertionError("nothing is left to draw")):
        assert torch.equal(again().mean(), whole.mean()) and seen == []


@pytest.mark.parametrize("recentring", [0.0, 0.75])
def test_what_is_drawn_is_told_at_once(recentring: float) -> None:
    """Recentred samples come only when the first group is drawn, which takes minutes."""
    told: list[int] = []
    made = residual_sampler(batch_size=5, recentring=recentring)
    drawn = made.samples(*case(), NOISE_GROUP + 2, on_drawn=told.append)
    next(drawn)
    assert told == ([5, 10, 15, NOISE_GROUP] if recentring else [5])
    list(drawn)
    assert told[-1] == NOISE_GROUP + 2 and told == sorted(told)
    told.clear()
    list(made.samples(*case(), NOISE_GROUP + 2, first=7, on_drawn=told.append))
    assert min(told) >= 7 and told[-1] == NOISE_GROUP + 2


@pytest.mark.parametrize("change", ["seed", "radiographs", "steps", "scale", "weight", "iterations", "final", "order"])
def test_the_state_of_another_case_or_setting_is_refused(tmp_path: Path, change: str) -> None:
    image, views = case()
    options: dict[str, Any] = {"consistency": ReprojectionCorrection(GRID, 2), "consistency_weight": 0.5}
    collect_samples(sampler(**options), image, views, 2, state_path=tmp_path / "state.pt")
    options |= {"consistency_weight": 0.4} if change == "weight" else {}
    options |= {"consistency": ReprojectionCorrection(GRID, 3)} if change == "iterations" else {}
    options |= {"final_consistency": ReprojectionCorrection(GRID, 2)} if change == "final" else {}
    options |= {"residual_scale": 0.5} if change == "scale" else {}
    made = sampler(steps=4 if change == "steps" else 3, **options)
    made.scheduler = denoiser().scheduler(order=1) if change == "order" else made.scheduler
    other = image + 0.1 if change == "radiographs" else image
    with pytest.raises(ValueError, match=r"state\.pt: samples of another case"):
        collect_samples(made, other, views, 3, seed=int(change == "seed"), state_path=tmp_path / "state.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps and batch_size must be at least 1"),
        ({"guidance_scale": -0.5}, "guidance_scale must not be negative"),
        ({"guidance_scale": float("nan")}, "guidance_scale must not be negative"),
        ({"consistency_weight": 0.5}, "needs a consistency"),
        ({"mean": lambda *_: None}, "without the reconstruction of a mean network"),
        ({"denoiser": denoiser(known_channels=3)}, "needs the reconstruction of a mean network"),
    ],
)
def test_settings_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(**options)


def test_a_denoiser_of_another_autoencoder() -> None:
    other = VQGAN(GRID, encoder_widths=(8, 8), decoder_widths=(8, 8), codes=16, embedding_dim=5)
    with pytest.raises(ValueError, match="belongs to another vqgan"):
        sampler(autoencoder=other)


def test_bad_requests() -> None:
    image, views = case()
    with pytest.raises(ValueError, match="number of samples must be at least 1, got 0"):
        collect_samples(sampler(), image, views, 0)
    with pytest.raises(ValueError, match="do not match views"):
        collect_samples(sampler(), image, views[:1], 2)
    image[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        collect_samples(sampler(), image, views, 2)


@pytest.mark.parametrize("fault", ["no views", "no views left", "count", "NaN"])
def test_bad_radiographs_are_refused_before_the_mean_network_runs(fault: str) -> None:
    def mean(*_: Any) -> Tensor:
        raise AssertionError("the mean network ran")

    made = sampler(denoiser=denoiser(known_channels=3), mean=mean)
    image, views = radiographs()
    mask, message = None, {"count": "do not match views", "NaN": "NaN"}.get(fault, "view")
    if fault == "no views":
        image, views = image[:, :0], views[:, :0]
    elif fault == "no views left":
        mask = torch.zeros(1, 2, dtype=torch.bool)
    elif fault == "count":
        views = views[:, :1]
    else:
        image[0, 1, 3, 3] = float("nan")
    with pytest.raises(ValueError, match=message):
        made(image, views, mask)


def test_a_sampler_is_built_from_checkpoints_that_belong_together(tmp_path: Path) -> None:
    image, views = radiographs()
    parent = save_checkpoint(tmp_path / "vqgan.pt", autoencoder())
    meta = {"parents": {"autoencoder": sha256_file(parent)}}
    path = save_checkpoint(tmp_path / "model.pt", denoiser(num_train_timesteps=50), meta)
    loaded = load_sampler(path, parent, steps=3, solver={"order": 1})
    assert loaded.scheduler.order == 1 and loaded.scheduler.num_train_timesteps == 50
    assert torch.isfinite(loaded(image, views)).all()
    other = save_checkpoint(tmp_path / "other.pt", autoencoder(seed=1))
    with pytest.raises(ValueError, match=r"other\.pt: SHA-256 .* was trained on latents of the autoencoder"):
        load_sampler(path, other)
    with pytest.raises(ValueError, match="a checkpoint of VQGAN, not of ldm_recon"):
        load_sampler(parent, parent)


def test_another_mean_network_than_that_of_the_training_is_refused(tmp_path: Path) -> None:
    parent = save_checkpoint(tmp_path / "vqgan.pt", autoencoder())
    own, other = (mean_network(tmp_path / f"{seed}.pt", seed) for seed in (1, 2))
    for name, known in (("recorded", {"mean": sha256_file(own)}), ("none", {"mean": None}), ("older", {})):
        parents = {"autoencoder": sha256_file(parent), **known}
        path = save_checkpoint(tmp_path / f"{name}.pt", denoiser(known_channels=3), {"parents": parents})
        assert load_sampler(path, parent, own).mean is not None
        if name != "recorded":
            load_sampler(path, parent, other)
            continue
        with pytest.raises(ValueError, match=r"2\.pt: SHA-256 .* was trained for the mean network"):
            load_sampler(path, parent, other)
    load_sampler(denoiser(known_channels=3), parent, other)  # being trained: nothing to compare with


def test_corrections_are_made_where_they_are_asked_for(tmp_path: Path) -> None:
    parent = save_checkpoint(tmp_path / "vqgan.pt", autoencoder())
    network = denoiser(energy_kev=60.0)
    off = load_sampler(network, parent, consistency_iterations=7)
    assert off.consistency is None and off.final_consistency is None
    on = load_sampler(network, parent, consistency_weight=0.5, consistency_iterations=7, consistency_final=30)
    iterations = [(one.iterations, one.energy_kev) for one in (on.consistency, on.final_consistency)]  # type: ignore[union-attr]
    assert iterations == [(7, 60.0), (30, 60.0)] and on.consistency_weight == 0.5
    assert load_sampler(network, parent, consistency_final=True).final_consistency.iterations == 10  # type: ignore[union-attr]
    image, views = radiographs()
    plain = sampler(denoiser=network)(image, views)
    assert torch.equal(load_sampler(network, parent, precision="fp32", steps=3)(image, views), plain)
    assert torch.isfinite(on(image, views)).all()
    with pytest.raises(ValueError, match="at least 1 iteration, got -5"):
        load_sampler(network, parent, consistency_final=-5)


def test_a_mean_is_the_encoded_reconstruction_of_every_case(tmp_path: Path) -> None:
    vqgan, (image, views) = autoencoder(), radiographs()
    path = mean_network(tmp_path / "mean.pt", 1)
    mean = EncodedMean(path, vqgan)
    assert mean.hash == sha256_file(path)
    batch = torch.cat([image, image / 2])
    found = mean(batch, views.expand(2, -1, -1))
    torch.testing.assert_close(found, torch.cat([mean(image, views), mean(image / 2, views)]))
    with torch.no_grad():
        torch.testing.assert_close(found, vqgan.encode(mean.network(batch, views.expand(2, -1, -1)).clamp(-1, 1)))
    vqgan.hu_window = (-900.0, 900.0)
    with pytest.raises(ValueError, match=r"mean\.pt: HU window"):
        EncodedMean(path, vqgan)


def test_the_first_stage_of_a_mean_network_is_what_it_has_before_its_detail(tmp_path: Path) -> None:
    mean, (image, views) = EncodedMean(mean_network(tmp_path / "mean.pt", 1), autoencoder()), radiographs()
    volume, grid = mean.first_stage(image, views)  # of one that has a single stage
    assert grid == mean.network.grid and torch.equal(volume, mean.volume(image, views))
    mean.network = staged = coarse_to_fine()
    volume, grid = mean.first_stage(image, views)
    assert grid == staged.coarse_grid and torch.equal(volume, staged(image, views, coarse=True).clamp(-1, 1))
