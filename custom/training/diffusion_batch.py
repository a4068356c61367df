"""`prepare_batch` class of latent diffusion, with its targets, loss weights and inferer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.inferers import Inferer
from monai.networks.schedulers import Scheduler
from torch import Tensor, nn

from custom.networks.denoiser import LatentDenoiser, wide
from custom.training.latent_dataset import LatentDataset
from custom.training.voxel_dataset import VoxelDataset

__all__ = ["NoisyLatents", "WeightedInferer", "diffusion_target", "fit_normalisation", "loss_weight"]

logger = logging.getLogger(__name__)


def diffusion_target(scheduler: Scheduler, prediction_type: str, latent: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """What a network of this prediction type shall say of `scheduler.add_noise(latent, noise, time)`.

    Args:
        scheduler: of the training.
        prediction_type: "epsilon", "sample" or "v_prediction".
        latent: (B, C, X, Y, Z), normalised.
        noise: like it.
        time: timesteps (B,).
    """
    if prediction_type == "epsilon":
        return noise
    return latent if prediction_type == "sample" else scheduler.get_velocity(latent, noise, time)


def loss_weight(alphas_cumprod: Tensor, prediction_type: str, time: Tensor, gamma: float | None) -> Tensor:
    """Weight (B,) of the squared error at each timestep.

    With `gamma`, min-SNR-gamma: min(SNR, gamma) on the error of the clean latent, whatever the network predicts (Hang
    et al. 2023, arXiv 2303.09556, section 3.4; it steadies training, because neither end of the times outweighs the
    other). None: 1, the plain loss of each prediction type.

    Args:
        alphas_cumprod: alpha-bar of the T timesteps.
        prediction_type: "epsilon", "sample" or "v_prediction".
        time: timesteps (B,).
        gamma: largest signal-to-noise ratio that counts; 5 in the source.
    """
    if gamma is None:
        return torch.ones_like(time, dtype=torch.float32)
    alpha_bar = alphas_cumprod.to(time.device)[time].double()
    ratio = alpha_bar / (1 - alpha_bar).clamp(min=1e-12)
    weight = ratio.clamp(max=gamma)
    if prediction_type == "epsilon":
        weight = weight / ratio.clamp(min=1e-12)
    elif prediction_type == "v_prediction":
        weight = weight / (ratio + 1)
    return weight.float()


def fit_normalisation(
    network: LatentDenoiser | nn.Module,
    dataset: LatentDataset | VoxelDataset,
    residual_steps: int = 1500,
    known_from: str | os.PathLike[str] | None = None,
) -> None:
    """Give a denoiser the mean and deviation of the training latents, and of their residuals if it needs them.

    Args:
        network: whose buffers are set; they are kept in its checkpoint.
        dataset: the latents, or volumes in their place.
        residual_steps: in which its `ResidualGaussian` is fitted to the entries, if it has one.
        known_from: checkpoint that brings all of it, so that nothing is fitted, if that file is there.

    Raises:
        ValueError: if the denoiser's and the latents' channels differ, or reconstructions are missing or superfluous.
    """
    network = getattr(network, "module", network)
    assert isinstance(network, LatentDenoiser)
    if len(dataset.latent_mean) != network.latent_channels:
        raise ValueError(
            f"the latents have {len(dataset.latent_mean)} channels, latent_channels is {network.latent_channels}"
        )
    _check_known(network, dataset[0])
    if known_from is not None and Path(known_from).is_file():
        return
    network.latent_mean.copy_(dataset.latent_mean)
    network.latent_std.copy_(dataset.latent_std.clamp(min=1e-6))
    if not network.residual:
        return
    entries = _Residuals(network, dataset)
    chosen = torch.linspace(0, len(dataset) - 1, min(64, len(dataset))).long().tolist()
    squares = torch.stack([entries[index][2].square().mean((0, 2, 3, 4)) for index in chosen]).mean(0)
    network.residual_std.copy_(squares.sqrt().clamp(min=1e-6))
    logger.info("residuals are %.3f of the latents' deviation", float(squares.mean().sqrt()))
    if network.residual_gaussian is not None:
        likelihood = network.residual_gaussian.fit(entries, residual_steps)
        logger.info("negative log-likelihood of the residuals: 0.5 with one deviation a channel, %.3f", likelihood)


class _Residuals(Sequence[tuple[Tensor, Tensor, Tensor]]):
    """What `ResidualGaussian.fit` reads of every entry."""

    def __init__(self, network: LatentDenoiser, dataset: LatentDataset | VoxelDataset) -> None:
        self.network, self.dataset = network, dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        network, entry = self.network, self.dataset[index]
        latent, known = (
            network.normalise(entry[key][None].to(network.latent_mean.device)) for key in ("latent", "known")
        )
        share = network.view_share(entry["views"][None].to(known))
        return known, share, (latent - known) / wide(network.residual_std)


def _check_known(network: LatentDenoiser, entry: Mapping[str, Any]) -> None:
    """Raises ValueError if a denoiser and the latents' entries do not agree on knowing a reconstruction."""
    if network.known_channels and "known" not in entry:
        raise ValueError(
            "the denoiser has known_channels, but the latents hold no reconstructions: write them with the "
            "mean_checkpoints of latents.json, to another folder"
        )
    if "known" in entry and not network.known_channels:
        raise ValueError("the latents hold reconstructions, which a denoiser without known_channels cannot be told")


class NoisyLatents(PrepareBatch):
    """Turns cached latents, with the CTs that they came from or with radiographs and reconstructions, into a step.

    Args:
        network: the denoiser that is trained: it normalises latents, and says what it predicts in which diffusion.
        radiographs: computes radiographs of the CTs, at views drawn for this step, and returns (image, label, (),
            keywords) as `custom.training.prepare_batch.SimulatedRadiographs` does; or those of the entries, which are
            what their batch entry "known" (B, C, X, Y, Z) was reconstructed from.
        drop_prob: how often a case loses its condition, for guidance (0.1 where the literature says anything).
        min_snr_gamma: see `loss_weight`.
        noises_per_case: R, noisy latents of every case in a step. Its radiographs and features are computed once for
            all of them.

    Raises:
        ValueError: if drop_prob is no share, or noises_per_case less than 1; in a step, if there is "known" and the
            network has no known_channels, or the other way round.
    """

    def __init__(
        self,
        network: LatentDenoiser | nn.Module,
        radiographs: PrepareBatch,
        drop_prob: float = 0.1,
        min_snr_gamma: float | None = None,
        noises_per_case: int = 1,
    ) -> None:
        if not 0 <= drop_prob < 1:
            raise ValueError(f"drop_prob must lie in [0, 1), got {drop_prob}")
        if noises_per_case < 1:
            raise ValueError(f"noises_per_case must be at least 1, got {noises_per_case}")
        self.network: Any = getattr(network, "module", network)
        self.scheduler, self.radiographs = self.network.scheduler(), radiographs
        self.drop_prob, self.min_snr_gamma = drop_prob, min_snr_gamma
        self.noises_per_case = noises_per_case

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple, dict[str, Any]]:
        """Noisy latents (B * R, C, X, Y, Z), what the network shall say of them, and keywords for `WeightedInferer`.

        Both the target and (by the inferer) the network's answer are multiplied by the root of the loss's weight, so
        that a plain mean squared error is the weighted loss.
        """
        _check_known(self.network, batchdata)
        image, _, _, views = self.radiographs(dict(batchdata), device, non_blocking)

        def normalised(key: str) -> Tensor:
            value = torch.as_tensor(batchdata[key]).to(device, torch.float32, non_blocking=non_blocking)
            return self.network.normalise(value)

        keywords: dict[str, Any] = {"image": image, "views": views["views"], "view_mask": views["view_mask"]}
        if "known" in batchdata:
            keywords["known"] = normalised("known")
        latent = normalised("latent")
        share = self.network.view_share(views["views"], views["view_mask"])
        target = self.network.to_residual(latent, keywords.get("known"), share)
        target = target.repeat_interleave(self.noises_per_case, 0)
        time = _stratified_times(len(target), self.scheduler.num_train_timesteps, latent.device)
        noise = torch.randn_like(target)
        prediction_type = self.network.prediction_type
        weight = loss_weight(self.scheduler.alphas_cumprod, prediction_type, time, self.min_snr_gamma)
        root = weight.sqrt()[:, None, None, None, None]
        keywords |= {
            "timesteps": time,
            "keep": torch.rand(len(target), device=latent.device) >= self.drop_prob,
            "root_weight": root,
        }
        wanted = diffusion_target(self.scheduler, prediction_type, target, noise, time)
        return self.scheduler.add_noise(target, noise, time), wanted * root, (), keywords


def _stratified_times(count: int, steps: int, device: torch.device) -> Tensor:
    """Uniform timesteps (count,), one of each of `count` equal stretches: the loss is less noisy than of free ones."""
    stretch = torch.randperm(count, device=device) + torch.rand(count, device=device)
    return (stretch * (steps / count)).long().clamp(max=steps - 1)


class WeightedInferer(Inferer):
    """Calls the network and multiplies its answer by the root of the loss's weight, see `NoisyLatents`."""

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, root_weight: Tensor, **kwargs: Any
    ) -> Tensor:
        """Noisy latents (B, C, X, Y, Z) to the weighted prediction."""
        return network(inputs, *args, **kwargs) * root_weight
