"""A step of training: targets, weights, dropped conditions, and that a network can learn from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from monai.engines import PrepareBatch
from torch import Tensor

from custom.schedulers import DPMSolverPPScheduler
from custom.training.diffusion_batch import (
    NoisyLatents,
    WeightedInferer,
    diffusion_target,
    fit_normalisation,
    loss_weight,
)
from custom.training.prepare_batch import StoredRadiographs
from tests.custom.networks.tiny_diffusion import denoiser, radiographs

TYPES = ["epsilon", "sample", "v_prediction"]


class Radiographs(PrepareBatch):
    def __call__(self, batchdata: Mapping[str, Any], *args: Any, **kwargs: Any) -> tuple:
        image, views = radiographs()
        count = len(batchdata["latent"])
        wide = {"views": views.expand(count, -1, -1), "view_mask": torch.ones(count, 2, dtype=torch.bool)}
        return image.expand(count, -1, -1, -1), None, (), wide


def step(count: int = 4, **options: Any) -> tuple[Tensor, Tensor, dict[str, Any], DPMSolverPPScheduler, Tensor]:
    latent = torch.randn(count, 3, 4, 4, 4)
    network = options.pop("network", denoiser())
    prepare = NoisyLatents(network, Radiographs(), **options)
    noisy, target, _, keywords = prepare({"latent": latent}, "cpu")
    return noisy, target, keywords, prepare.scheduler, latent


@pytest.mark.parametrize("prediction_type", TYPES)
def test_a_perfect_answer_gives_the_latent_back(prediction_type: str) -> None:
    """What the target says, the solver turns into the clean latent."""
    scheduler = DPMSolverPPScheduler(100, prediction_type=prediction_type, integer_timesteps=True)
    latent, noise = torch.randn(2, 3, 2, 2, 2), torch.randn(2, 3, 2, 2, 2)
    time = torch.tensor([40, 40])
    noisy = scheduler.add_noise(latent, noise, time)
    target = diffusion_target(scheduler, prediction_type, latent, noise, time)
    scheduler.set_timesteps(100)
    torch.testing.assert_close(scheduler.predict_original(target, 40, noisy), latent, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_min_snr_is_the_same_loss_on_the_clean_latent_whatever_is_predicted(prediction_type: str) -> None:
    alpha_bar = torch.linspace(0.999, 0.001, 100, dtype=torch.float64)
    time = torch.arange(100)
    ratio = alpha_bar / (1 - alpha_bar)
    to_clean = {"sample": torch.ones_like(ratio), "epsilon": ratio, "v_prediction": ratio + 1}[prediction_type]
    weight = loss_weight(alpha_bar, prediction_type, time, 5.0) * to_clean
    torch.testing.assert_close(weight.float(), ratio.clamp(max=5).float())
    assert (loss_weight(alpha_bar, prediction_type, time, None) == 1).all()


def test_conditions_are_dropped_as_often_as_asked() -> None:
    torch.manual_seed(0)
    kept = torch.cat([step(64, drop_prob=0.25)[2]["keep"] for _ in range(4)])
    assert 0.65 < kept.float().mean() < 0.85
    assert step(16, drop_prob=0.0)[2]["keep"].all()
    with pytest.raises(ValueError, match="drop_prob"):
        step(drop_prob=1.0)


def test_noise_is_as_strong_as_the_time_says() -> None:
    torch.manual_seed(0)
    noisy, target, keywords, scheduler, latent = step(8, network=denoiser(prediction_type="epsilon"))
    alpha_bar = scheduler.alphas_cumprod[keywords["timesteps"]][:, None, None, None, None]
    torch.testing.assert_close(noisy, alpha_bar.sqrt() * latent + (1 - alpha_bar).sqrt() * target)


def test_the_noises_of_a_case_cover_all_times() -> None:
    torch.manual_seed(0)
    noisy, target, keywords, scheduler, latent = step(3, noises_per_case=5, network=denoiser(prediction_type="sample"))
    torch.testing.assert_close(target, latent.repeat_interleave(5, 0))
    assert len(noisy) == len(keywords["keep"]) == 15 and len(keywords["image"]) == 3
    stretches = keywords["timesteps"].sort().values * 15 // scheduler.num_train_timesteps
    assert (stretches == torch.arange(15)).all()
    with pytest.raises(ValueError, match="noises_per_case"):
        step(noises_per_case=0)


class Entries(list):
    """Latents of mean 5 and deviation 10, in which every reconstruction is 3 too low."""

    latent_mean, latent_std = torch.full((3,), 5.0), torch.full((3,), 10.0)

    def __init__(self) -> None:
        image, views = radiographs()
        seen = {"image": image[0], "views": views[0], "view_mask": torch.ones(2, dtype=torch.bool)}
        latents = [5 + 10 * torch.randn(3, 4, 4, 4) for _ in range(3)]
        super().__init__({"latent": latent, "known": latent - 3, **seen} for latent in latents)


def test_with_reconstructions_the_residual_is_diffused() -> None:
    entries: Any = Entries()
    network = denoiser(known_channels=3, residual=True, prediction_type="sample")
    fit_normalisation(network, entries)
    torch.testing.assert_close(network.residual_std, torch.full((3,), 0.3))
    batch = {key: value[None] for key, value in entries[0].items()}
    prepare = NoisyLatents(network, StoredRadiographs(), drop_prob=0.0, noises_per_case=2)
    noisy, target, _, keywords = prepare(batch, "cpu")
    torch.testing.assert_close(target, torch.ones(2, 3, 4, 4, 4))
    torch.testing.assert_close(keywords["known"], (batch["known"] - 5) / 10)
    assert torch.equal(keywords["image"], batch["image"]) and torch.equal(keywords["views"], batch["views"])
    assert WeightedInferer()(noisy, network, **keywords).shape == target.shape


@pytest.mark.parametrize("known", [False, True])
def test_reconstructions_and_known_channels_go_together(known: bool) -> None:
    entries: Any = Entries()
    if not known:
        for entry in entries:
            del entry["known"]
    network = denoiser(known_channels=0 if known else 3)
    message = "without known_channels" if known else "hold no reconstructions"
    with pytest.raises(ValueError, match=message):
        fit_normalisation(network, entries)
    with pytest.raises(ValueError, match=message):
        NoisyLatents(network, StoredRadiographs())({key: value[None] for key, value in entries[0].items()})


def test_the_inferer_weighs_the_answer_like_the_target() -> None:
    torch.manual_seed(0)
    network = denoiser()
    noisy, target, keywords, _, _ = step(network=network, min_snr_gamma=5.0)
    answer = WeightedInferer()(noisy, network, **keywords)
    root = keywords.pop("root_weight")
    torch.testing.assert_close(answer, network(noisy, **keywords) * root)
    assert (root < 1).any() and target.shape == answer.shape


def test_a_denoiser_learns_what_only_the_radiographs_tell() -> None:
    """The latent is the mean of the radiograph: seen at full noise, where the latent itself says nothing."""
    torch.manual_seed(0)
    network = denoiser(prediction_type="sample").train()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    _, views = radiographs(1)
    losses = []
    for _ in range(80):
        level = torch.randn(8)
        image = (level[:, None, None, None] + 2).expand(8, 1, 16, 24)
        latent = level[:, None, None, None, None].expand(8, 3, 4, 4, 4)
        answer = network(torch.randn_like(latent), torch.full((8,), 99), image, views.expand(8, -1, -1))
        loss = (answer - latent).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.5 < sum(losses[:5]) / 5
