"""`LatentDenoiser`: the denoising network of DIFR3CT, conditioned on radiographs of any views.

The fused features stand on the latent's own grid and are concatenated to it (paper, section IV).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn

from custom.core.checkpoints import describes_itself
from custom.core.precision import check_precision, mixed_precision
from custom.fusion import fuse_features
from custom.geometry import VolumeGrid
from custom.networks.feature_unet import averaging_factor, encode_views
from custom.networks.initialisation import initialise_he
from custom.networks.inputs import check_radiographs
from custom.networks.residual_gaussian import ResidualGaussian
from custom.schedulers import DPMSolverPPScheduler

__all__ = ["LatentDenoiser", "wide"]

#: Number of views that the condition's last channel says 1 of, with `view_count`.
MOST_VIEWS = 8


@describes_itself
class LatentDenoiser(nn.Module):
    """A 2D network for the radiographs, their fusion on the latent grid, and a 3D diffusion U-Net.

    Both are trained together. Any number of views at any angles: the geometry is an input.

    Args:
        encoder: from (N, 1, V, U) to features (N, C, V', U'), with `out_channels`; see `FeatureUNet`. None: the
            radiographs speak through `known` alone.
        grid: voxels of the latent, in the isocentre frame.
        latent_channels: of the latent.
        unet: keywords of MONAI's `DiffusionModelUNet` without spatial_dims, in_channels and out_channels.
        known_channels: channels of a reconstruction on the latent grid that is given beside the radiographs, such as
            the encoded mean of `inr_recon`; 0 for none.
        residual: diffuse what the latent differs from `known` by, not the latent itself.
        residual_width: of a `ResidualGaussian`, whose mean and deviation at every voxel the residual is measured by; 0:
            none, one deviation for each channel.
        view_count: the condition's last channel is the number of views over `MOST_VIEWS`, not one: the fewer they are,
            the wider samples have to be spread, and features that are averaged over views do not tell it.
        space_to_depth: voxels along each side that become channels of one before the U-Net and voxels again after it;
            2 makes a step several times faster.
        prediction_type: "epsilon", "sample" or "v_prediction": what the output is.
        num_train_timesteps: T of the diffusion that it is trained on.
        noise_schedule: of that diffusion, by its name in MONAI's `NoiseSchedules`; see `custom.schedulers`.
        feature_spacing_mm: radiographs are averaged to pixels of about this size (at the isocentre) for the encoder;
            None leaves them as they are.
        radiograph_scale: line integrals are multiplied by it.
        energy_kev: of the line integrals.
        hu_window: CT values that the latent's autoencoder reads as -1 and 1.
        precision: "auto", "bf16" or "fp32", of the convolutions.

    Attributes:
        latent_mean, latent_std: (C,), of the training latents; `normalise` makes them mean 0 and deviation 1.
        residual_std: (C,), of the normalised residuals of the training; 1 without `residual`.

    Raises:
        ValueError: for options that contradict each other.
    """

    latent_mean: Tensor
    latent_std: Tensor
    residual_std: Tensor

    def __init__(
        self,
        encoder: Any,
        grid: VolumeGrid,
        latent_channels: int,
        unet: Mapping[str, Any],
        known_channels: int = 0,
        residual: bool = False,
        residual_width: int = 0,
        view_count: bool = False,
        space_to_depth: int = 1,
        prediction_type: str = "v_prediction",
        num_train_timesteps: int = 1000,
        noise_schedule: str = "ddpm_linear",
        feature_spacing_mm: float | None = None,
        radiograph_scale: float = 0.2,
        energy_kev: float = 70.0,
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        precision: str = "auto",
    ) -> None:
        super().__init__()
        check_precision(precision)
        if encoder is None and not known_channels:
            raise ValueError("a denoiser without encoder and known_channels would see nothing of the patient")
        if residual and known_channels != latent_channels:
            raise ValueError(f"residual needs as many known_channels as latent_channels, got {known_channels}")
        halvings = len(unet.get("channels", (32, 64, 64, 64))) - 1
        if space_to_depth < 1 or any(n % (space_to_depth * 2**halvings) for n in grid.shape):
            raise ValueError(
                f"the latent grid {grid.shape} must be divisible by space_to_depth * 2^{halvings}, with "
                f"space_to_depth {space_to_depth}"
            )
        self.encoder, self.grid, self.latent_channels = encoder, grid, latent_channels
        self.known_channels, self.residual, self.view_count = known_channels, residual, view_count
        self.space_to_depth, self.prediction_type = space_to_depth, prediction_type
        self.num_train_timesteps, self.noise_schedule = num_train_timesteps, noise_schedule
        self.scheduler()  # says at once what is wrong with them
        self.feature_spacing_mm = feature_spacing_mm
        self.radiograph_scale, self.energy_kev = radiograph_scale, energy_kev
        self.hu_window, self.precision = (float(hu_window[0]), float(hu_window[1])), precision
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))
        self.register_buffer("residual_std", torch.ones(latent_channels))
        if residual_width and not residual:
            raise ValueError("residual_width belongs to residual: set both, or neither")
        self.residual_gaussian = ResidualGaussian(latent_channels, residual_width) if residual_width else None
        features = 0 if encoder is None else int(encoder.out_channels) + 1
        self.condition_channels = features + known_channels + 1
        cell = space_to_depth**3
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=(latent_channels + self.condition_channels) * cell,
            out_channels=latent_channels * cell,
            **unet,
        )
        if encoder is not None:
            initialise_he(encoder)

    def scheduler(self, **solver: Any) -> DPMSolverPPScheduler:
        """A solver of the diffusion that this network belongs to; `solver` are its options, such as order."""
        return DPMSolverPPScheduler(
            self.num_train_timesteps, self.noise_schedule, prediction_type=self.prediction_type, **solver
        )

    def normalise(self, latent: Tensor) -> Tensor:
        """A latent (B, C, X, Y, Z) of the autoencoder with mean 0 and deviation 1 over the training."""
        return (latent - wide(self.latent_mean)) / wide(self.latent_std)

    def denormalise(self, latent: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return latent * wide(self.latent_std) + wide(self.latent_mean)

    def to_residual(self, latent: Tensor, known: Tensor | None, view_share: Tensor) -> Tensor:
        """What noise is added to: a normalised latent, or what it differs from `known` by.

        Args:
            latent: (B, C, X, Y, Z), normalised.
            known: like it; None without `known_channels`.
            view_share: see `view_share`.
        """
        if not self.residual or known is None:
            return latent
        mean, std = self._residual_moments(known, view_share)
        return (latent - known - mean) / std

    def from_residual(self, value: Tensor, known: Tensor | None, view_share: Tensor) -> Tensor:
        """The normalised latent, the inverse of `to_residual`."""
        if not self.residual or known is None:
            return value
        mean, std = self._residual_moments(known, view_share)
        return value * std + mean + known

    def _residual_moments(self, known: Tensor, view_share: Tensor) -> tuple[Tensor | float, Tensor]:
        deviation = wide(self.residual_std)
        if self.residual_gaussian is None:
            return 0.0, deviation
        mean, std = self.residual_gaussian(known, view_share)
        return mean * deviation, std * deviation

    @staticmethod
    def view_share(views: Tensor, view_mask: Tensor | None = None) -> Tensor:
        """Number of views over `MOST_VIEWS` (B,), of views (B, K, 13) and bool (B, K)."""
        count = views.new_full((len(views),), views.shape[1]) if view_mask is None else view_mask.sum(1)
        return count.float() / MOST_VIEWS

    def condition(
        self,
        image: Tensor,
        views: Tensor,
        view_mask: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """What is known about every voxel of the latent.

        Args:
            image: line integrals (B, K, V, U).
            views: (B, K, 13) or (K, 13).
            view_mask: bool (B, K), False for padding.
            known: (B, known_channels, X, Y, Z), normalised.

        Returns:
            (B, condition_channels, X, Y, Z): the mean of the views' features, the share of views that see the voxel,
            `known`, and a channel of ones, or of the number of views (`view_count`). A condition is dropped by making
            all of it zero: the last channel tells that from a voxel that no view sees.

        Raises:
            ValueError: as `check_radiographs`, or for `known` of other channels.
        """
        views = check_radiographs(image, views, view_mask)
        if (known is None) != (self.known_channels == 0):
            raise ValueError(
                f"known must have {self.known_channels} channels, got {None if known is None else known.shape}"
            )
        parts = []
        if self.encoder is not None:
            real = views if view_mask is None or not view_mask.any() else views[view_mask]
            factor = averaging_factor(self.feature_spacing_mm, real)
            with mixed_precision(self.precision, image.device):
                features = encode_views(self.encoder, image, factor, self.radiograph_scale).float()
            parts.append(fuse_features(features, views.float(), self.grid, image.shape[2:], view_mask, with_count=True))
        if known is not None:
            parts.append(known)
        told = image.new_ones(len(image), 1, *self.grid.shape)
        if self.view_count:
            told *= self.view_share(views, view_mask).to(told)[:, None, None, None, None]
        parts.append(told)
        return torch.cat(parts, 1)

    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """The U-Net's output (B, C, X, Y, Z), see `prediction_type`, for noisy latents like it and timesteps (B,)."""
        joint = torch.cat([noisy, condition.to(noisy)], 1)
        if self.space_to_depth > 1:
            joint = pixelunshuffle(joint, 3, self.space_to_depth)
        with mixed_precision(self.precision, noisy.device):
            out = self.unet(joint.contiguous(memory_format=torch.channels_last_3d), timesteps)
        out = out.float()
        return pixelshuffle(out, 3, self.space_to_depth) if self.space_to_depth > 1 else out

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        image: Tensor,
        views: Tensor,
        view_mask: Tensor | None = None,
        known: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Both steps, as training needs them; see `condition` and `denoise`.

        Args:
            noisy: (B * R, C, X, Y, Z): R noisy latents of each case, case by case.
            timesteps: (B * R,).
            image, views, view_mask, known: see `condition`; computed once for the R of a case.
            keep: bool (B * R,), False where the condition is dropped; None: nowhere.
        """
        condition = self.condition(image, views, view_mask, known)
        repeats, rest = divmod(len(noisy), len(condition))
        if rest:
            raise ValueError(f"{len(noisy)} noisy latents for {len(condition)} cases")
        condition = condition.repeat_interleave(repeats, 0)
        if keep is not None:
            condition = condition * keep.to(condition)[:, None, None, None, None]
        return self.denoise(noisy, timesteps, condition)


def wide(per_channel: Tensor) -> Tensor:
    """(C,) as (C, 1, 1, 1)."""
    return per_channel[:, None, None, None]
