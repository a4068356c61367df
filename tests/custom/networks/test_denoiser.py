"""The conditional denoiser: what it is told, what is dropped, and what any number of views changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from custom.core.checkpoints import load_checkpoint, save_checkpoint
from custom.fusion import fuse_features
from custom.geometry import VolumeGrid
from custom.geometry.detector import isocenter_pixel_mm
from custom.networks import FeatureUNet, LatentDenoiser
from custom.networks.feature_unet import encode_views
from tests.custom.networks.tiny_diffusion import UNET, denoiser, radiographs


@torch.no_grad()
def test_the_condition_is_the_fused_features_on_the_latent_grid() -> None:
    network, (image, views) = denoiser(), radiographs()
    condition = network.condition(image, views)
    assert condition.shape == (1, network.condition_channels, 4, 4, 4) == (1, 4 + 1 + 1, 4, 4, 4)
    features = encode_views(network.encoder, image, 1, network.radiograph_scale)
    expected = fuse_features(features, views, network.grid, (16, 24), with_count=True)
    torch.testing.assert_close(condition[:, :-1], expected)
    assert (condition[:, -1] == 1).all()


@torch.no_grad()
def test_a_dropped_condition_is_told_from_an_unseen_voxel() -> None:
    network, (image, views) = denoiser(), radiographs()
    noisy, time = torch.randn(2, 3, 4, 4, 4), torch.tensor([50, 50])
    answer = network(noisy, time, image, views, keep=torch.tensor([True, False]))
    condition = network.condition(image, views)
    given = torch.cat([condition, torch.zeros_like(condition)])
    torch.testing.assert_close(answer, network.denoise(noisy, time, given))
    unseen = network.condition(image, views, torch.zeros(1, 2, dtype=torch.bool))
    assert (unseen[:, :-1] == 0).all() and (unseen[:, -1] == 1).all()


@torch.no_grad()
def test_several_noisy_latents_share_the_condition_of_their_case() -> None:
    network, (image, views) = denoiser(), radiographs()
    image, views = torch.cat([image, image.flip(3)]), views.expand(2, -1, -1)
    noisy, time = torch.randn(6, 3, 4, 4, 4), torch.arange(0, 90, 15)
    wide = image.repeat_interleave(3, 0), views.repeat_interleave(3, 0)
    torch.testing.assert_close(network(noisy, time, image, views), network(noisy, time, *wide))
    with pytest.raises(ValueError, match="5 noisy latents for 2 cases"):
        network(noisy[:5], time[:5], image, views)


@torch.no_grad()
def test_padding_of_views_changes_nothing() -> None:
    network, (image, views) = denoiser(), radiographs(2)
    padded = torch.cat([image, torch.rand_like(image)], 1), torch.cat([views, views.flip(1)], 1)
    mask = torch.tensor([[True, True, False, False]])
    torch.testing.assert_close(network.condition(*padded, mask), network.condition(image, views))


@torch.no_grad()
def test_features_are_averaged_to_the_spacing_that_is_asked_for_by_the_real_views() -> None:
    network, (image, views) = denoiser(), radiographs(2)
    pixel_mm = float(isocenter_pixel_mm(views[0]).mean())
    network.feature_spacing_mm = 2 * pixel_mm
    features = encode_views(network.encoder, image, 2, network.radiograph_scale)
    expected = fuse_features(features, views, network.grid, (16, 24), with_count=True)
    torch.testing.assert_close(network.condition(image, views)[:, :-1], expected)
    padded = torch.cat([image, image], 1), torch.cat([views, torch.zeros_like(views)], 1)
    mask = torch.tensor([[True, True, False, False]])
    torch.testing.assert_close(network.condition(*padded, mask), network.condition(image, views))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("space_to_depth", [1, 2])
@torch.no_grad()
def test_any_number_of_views_moves_the_answer(count: int, space_to_depth: int) -> None:
    network, (image, views) = denoiser(space_to_depth=space_to_depth), radiographs(count)
    noisy, time = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([500])
    answer = network(noisy, time, image, views)
    assert answer.shape == noisy.shape and torch.isfinite(answer).all()
    assert not torch.allclose(answer, network(noisy, time, image * 0.5, views), atol=1e-4)
    assert not torch.allclose(answer, network(noisy, time + 300, image, views), atol=1e-4)


def test_encoder_and_denoiser_are_trained_together() -> None:
    network, (image, views) = denoiser().train(), radiographs()
    network(torch.randn(1, 3, 4, 4, 4), torch.tensor([10]), image, views).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.encoder.parameters())


@pytest.mark.parametrize("width", [0, 4])
def test_latents_and_residuals_come_back(width: int) -> None:
    network, share = denoiser(known_channels=3, residual=True, residual_width=width), torch.tensor([0.25, 1.0])
    if width:
        torch.nn.init.normal_(network.residual_gaussian.layers[-1].weight, std=0.1)
    network.latent_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    network.latent_std.copy_(torch.tensor([0.5, 2.0, 4.0]))
    network.residual_std.fill_(0.25)
    latent, known = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    torch.testing.assert_close(network.denormalise(network.normalise(latent)), latent)
    residual = network.to_residual(latent, known, share)
    torch.testing.assert_close(network.from_residual(residual, known, share), latent)
    if not width:
        torch.testing.assert_close(network.to_residual(known, known, share), torch.zeros_like(known))
    plain = denoiser()
    assert plain.to_residual(latent, None, share) is latent and plain.from_residual(latent, None, share) is latent


def test_with_view_count_the_denoiser_is_told_how_many_views_there_are() -> None:
    image, views = radiographs()
    conditions = {count: denoiser(view_count=count).condition(image, views) for count in (False, True)}
    assert torch.equal(conditions[False][:, -1], torch.ones_like(conditions[False][:, -1]))
    torch.testing.assert_close(conditions[True][:, -1], torch.full_like(conditions[True][:, -1], views.shape[-2] / 8))


@torch.no_grad()
def test_a_checkpoint_builds_it_again(tmp_path: Path) -> None:
    network, (image, views) = denoiser(space_to_depth=2), radiographs()
    network.latent_std.fill_(3.0)
    again = load_checkpoint(save_checkpoint(tmp_path / "model.pt", network)).network()
    noisy, time = torch.randn(1, 3, 4, 4, 4), torch.tensor([7])
    torch.testing.assert_close(again(noisy, time, image, views), network(noisy, time, image, views))
    assert (again.latent_std == 3).all()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_type": "score"}, "prediction_type must be"),
        ({"noise_schedule": "none"}, "none"),
        ({"encoder": None}, "would see nothing"),
        ({"residual": True}, "residual needs as many known_channels"),
        ({"space_to_depth": 4}, "must be divisible by space_to_depth"),
    ],
)
def test_options_that_contradict_each_other(options: dict, message: str) -> None:
    arguments = {"encoder": FeatureUNet(4, (4, 6), 3), "grid": VolumeGrid.cube(4, 320), "latent_channels": 3} | options
    with pytest.raises(ValueError, match=message):
        LatentDenoiser(unet=UNET, **arguments)


def test_bad_radiographs() -> None:
    network, (image, views) = denoiser(), radiographs(2)
    for bad in (float("nan"), float("inf")):
        broken = image.clone()
        broken[0, 1, 3, 3] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            network.condition(broken, views)
    with pytest.raises(ValueError, match="at least one view"):
        network.condition(image[:, :0], views[:, :0])
    with pytest.raises(ValueError, match="2 radiographs of 1 cases do not match views"):
        network.condition(image, views[:, :1])
    with pytest.raises(ValueError, match="known must have 0 channels"):
        network.condition(image, views, known=torch.zeros(1, 3, 4, 4, 4))
