"""Diffusion in voxel space: voxels in the place of latents, for the classes that `ldm_recon` uses too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from custom.core.checkpoints import load_checkpoint, save_checkpoint
from custom.geometry import VolumeGrid
from custom.geometry.acquisition_sampler import AcquisitionSampler
from custom.networks import FeatureUNet, LatentDenoiser
from custom.networks.voxel_identity import VoxelIdentity
from custom.sampling import PosteriorSampler, load_sampler
from custom.training.diffusion_batch import NoisyLatents, fit_normalisation
from custom.training.prepare_batch import SimulatedRadiographs
from custom.training.voxel_dataset import VoxelDataset
from tests.custom.networks import tiny_diffusion
from tests.custom.networks.tiny_diffusion import UNET, radiographs

GRID = VolumeGrid.cube(8, 320)
SOURCE = VolumeGrid((12, 10, 8), (40.0,) * 3)
LOADING = VolumeGrid((28, 24, 20), (20.0,) * 3)


def denoiser(**options: Any) -> LatentDenoiser:
    torch.manual_seed(0)
    encoder = FeatureUNet(4, (4, 6), 3, initialisation="he")
    options = {"latent_channels": 1, "space_to_depth": 2, "precision": "fp32", **options}
    return LatentDenoiser(encoder, GRID, unet=UNET, **options).eval()


def volume(seed: int = 0) -> Tensor:
    return torch.rand(1, 1, *GRID.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def cases() -> list[dict[str, Tensor]]:
    """Two CTs: 200 HU (or 0) in the box of GRID, and air that must not count around it."""
    found = []
    for hu in (200, 0):
        ct = torch.full((1, *LOADING.shape), -3000, dtype=torch.int16)
        ct[:, 6:22, 4:20, 2:18] = hu
        found.append({"source": ct})
    return found


def halve(entry: dict[str, Tensor]) -> dict[str, Tensor]:
    """To SOURCE: every second voxel, with its own number at the corner of the cube."""
    warped = entry["source"][:, 2:26:2, 2:22:2, 2:18:2].clone()
    warped[0, 2, 1, 0] = 600
    return {"source": warped}


def dataset(**options: Any) -> VoxelDataset:
    return VoxelDataset(
        cases(), **{"transform": halve, "grid": GRID, "body_grid": SOURCE, "loading_grid": LOADING} | options
    )


def test_a_volume_is_its_own_latent() -> None:
    identity, image = VoxelIdentity(GRID, (-1000, 1000)), volume()
    assert identity.decode(identity.encode(image)) is image
    assert identity.embedding_dim == 1 and identity.latent_grid == GRID and not list(identity.parameters())
    with pytest.raises(ValueError, match=r"\(8, 8, 8\), got shape \(1, 1, 4, 8, 8\)"):
        identity.encode(image[:, :, :4])
    with pytest.raises(ValueError, match="no codebook"):
        identity.decode(image, quantise=True)
    image[0, 0, 1, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        identity.encode(image)


def test_items_are_the_middle_of_the_warped_ct() -> None:
    item = dataset()[0]
    assert item["source"].shape == (1, *SOURCE.shape) and item["latent"].shape == (1, *GRID.shape)
    assert float(item["latent"][0, 0, 0, 0]) == pytest.approx(0.6) and float(item["source"][0, 2, 1, 0]) == 600
    assert float(item["latent"][0, 4, 4, 4]) == pytest.approx(0.2) and float(item["source"].min()) == -3000


def test_mean_and_deviation_are_those_of_the_voxels_in_the_grid() -> None:
    """0.2 and 0 in equal parts; the air around the box would be -1."""
    made, network = dataset(), denoiser()
    fit_normalisation(network, made)
    torch.testing.assert_close(network.latent_mean, torch.tensor([0.1]))
    torch.testing.assert_close(network.latent_std, torch.tensor([0.1]))
    wide = dataset(hu_window=(-1000, 3000))
    torch.testing.assert_close(wide.latent_mean, torch.tensor([-0.45]))


def test_grids_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="same margin"):
        dataset(body_grid=VolumeGrid((11, 10, 8), (40.0,) * 3))
    with pytest.raises(ValueError, match=r"loading_grid \(28, 24, 21\), got shape \(1, 28, 24, 20\)"):
        dataset(loading_grid=VolumeGrid((28, 24, 21), (20.0,) * 3))


def test_a_step_of_training_adds_noise_to_the_voxels_themselves() -> None:
    network = denoiser(prediction_type="sample")
    fit_normalisation(network, dataset())
    views = SimulatedRadiographs(AcquisitionSampler({"2": 1}), GRID, SOURCE, (16, 24), sampling="grid")
    prepare = NoisyLatents(network, views, drop_prob=0.0, noises_per_case=3)
    batch = {key: value[None] for key, value in dataset()[0].items()}
    noisy, wanted, _, keywords = prepare(batch)
    assert noisy.shape == (3, 1, *GRID.shape) and keywords["image"].shape == (1, 2, 16, 24)
    for one in wanted:
        torch.testing.assert_close(network.denormalise(one)[None], batch["latent"])
    alpha_bar = network.scheduler().alphas_cumprod[keywords["timesteps"]].float()[:, None, None, None, None]
    noise = (noisy - alpha_bar.sqrt() * wanted) / (1 - alpha_bar).sqrt()
    assert float(noise.std()) == pytest.approx(1, abs=0.1) and float(noise.mean()) == pytest.approx(0, abs=0.1)
    weighted = network(noisy, **{k: v for k, v in keywords.items() if k != "root_weight"})
    assert weighted.shape == wanted.shape


def test_who_knows_the_volume_samples_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network, truth = denoiser(prediction_type="sample"), volume() * 0.9
    network.latent_mean.fill_(-0.4)
    network.latent_std.fill_(0.5)
    monkeypatch.setattr(network, "denoise", lambda noisy, *_: network.normalise(truth).expand_as(noisy))
    made = PosteriorSampler(network, VoxelIdentity(GRID), network.scheduler(), steps=4)
    image, views = radiographs()
    torch.testing.assert_close(made(image, views), truth, atol=2e-3, rtol=0)


def test_a_sampler_needs_no_other_file_than_its_own(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "model.pt", denoiser(hu_window=(-900, 1100)), {"preset": "tiny"})
    made = load_sampler(path, steps=2, precision="fp32", consistency_weight=0.5, consistency_iterations=2)
    assert made.grid == GRID and made.hu_window == (-900.0, 1100.0) and isinstance(made.autoencoder, VoxelIdentity)
    image, views = radiographs()
    found = made(image, views)
    assert found.shape == (1, 1, *GRID.shape) and torch.isfinite(found).all()
    being_trained = load_checkpoint(path).network()
    assert isinstance(being_trained, LatentDenoiser)
    assert isinstance(load_sampler(being_trained, steps=2).autoencoder, VoxelIdentity)


@pytest.mark.parametrize("latents", ["three channels", "of an autoencoder"])
def test_latents_are_not_taken_for_voxels(tmp_path: Path, latents: str) -> None:
    network = tiny_diffusion.denoiser() if latents == "three channels" else denoiser()
    meta = {"parents": {"autoencoder": None if latents == "three channels" else "0" * 64}}
    path = save_checkpoint(tmp_path / "latent.pt", network, meta)
    with pytest.raises(ValueError, match=r"latent\.pt was trained on latents, not on voxels"):
        load_sampler(path)
