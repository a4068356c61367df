"""Loading of a posterior sampler from its checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from custom.core.checkpoints import load_checkpoint
from custom.networks.denoiser import LatentDenoiser
from custom.networks.voxel_identity import VoxelIdentity
from custom.projection.data_consistency import ReprojectionCorrection
from custom.sampling.atlas import Atlas
from custom.sampling.encoded_mean import EncodedMean
from custom.sampling.posterior_sampler import PosteriorSampler

__all__ = ["load_sampler"]


def load_sampler(
    checkpoint: str | os.PathLike[str] | LatentDenoiser,
    autoencoder_checkpoint: str | os.PathLike[str] | None = None,
    mean_checkpoint: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    solver: Mapping[str, Any] | None = None,
    consistency_weight: float = 0.0,
    consistency_iterations: int = 10,
    consistency_final: int | bool = 0,
    atlas: str | os.PathLike[str] | None = None,
    atlas_coarse_mm: float = 10.0,
    **options: Any,
) -> PosteriorSampler:
    """The sampler that a checkpoint of `ldm_recon` and its parents make, or one of `voxel_diffusion`, which has none.

    Args:
        checkpoint: model.pt of `ldm_recon` or `voxel_diffusion`, or a denoiser that is being trained.
        autoencoder_checkpoint: model.pt of the `vqgan` that encoded its training latents; None: it was trained on
            voxels.
        mean_checkpoint: model.pt of `inr_recon`, if the denoiser is told its reconstruction; otherwise it is not read.
        device: of all of them.
        precision: of all of them.
        solver: options of `DPMSolverPPScheduler`, such as order.
        consistency_weight: of a `ReprojectionCorrection` at every step, see `PosteriorSampler`; 0: none.
        consistency_iterations: of that one.
        consistency_final: iterations of another one on the decoded sample; 0 or False: none, True: as many as
            `consistency_iterations`.
        atlas: file of an `Atlas`, if the denoiser is told a mean network's reconstruction; otherwise it is not read.
        atlas_coarse_mm: `coarse_mm` of that one.
        options: of `PosteriorSampler`.

    Raises:
        FileNotFoundError, ValueError: for a missing file, or one that the checkpoint was not trained with.
    """
    parent = None if autoencoder_checkpoint is None else load_checkpoint(autoencoder_checkpoint)
    source, expected, expected_mean = "the denoiser", None, None
    if isinstance(checkpoint, LatentDenoiser):
        denoiser = checkpoint
    else:
        loaded = load_checkpoint(checkpoint)
        built, source = loaded.network(precision=precision), str(loaded.path)
        if not isinstance(built, LatentDenoiser):
            raise ValueError(f"{source}: a checkpoint of {type(built).__name__}, not of ldm_recon or voxel_diffusion")
        expected = loaded.meta.get("parents", {}).get("autoencoder")
        if expected is not None and parent is not None and expected != parent.hash:
            raise ValueError(
                f"{parent.path}: SHA-256 {parent.hash[:12]}, but {source} was trained on latents of the "
                f"autoencoder {expected[:12]}: pass that one"
            )
        denoiser = built.to(device)
        expected_mean = loaded.meta.get("parents", {}).get("mean")
    autoencoder: Any
    if parent is not None:
        autoencoder = parent.network(precision=precision).to(device)
    elif expected is None and denoiser.latent_channels == VoxelIdentity.embedding_dim:
        autoencoder = VoxelIdentity(denoiser.grid, denoiser.hu_window)
    else:
        raise ValueError(f"{source} was trained on latents, not on voxels: pass the autoencoder_checkpoint")
    mean = None
    if mean_checkpoint is not None and denoiser.known_channels > 0:
        mean = EncodedMean(mean_checkpoint, autoencoder, device, precision)
    if mean is not None and expected_mean is not None and expected_mean != mean.hash:
        raise ValueError(
            f"{mean_checkpoint}: SHA-256 {mean.hash[:12]}, but {checkpoint} was trained for the mean network "
            f"{expected_mean[:12]}: pass that one"
        )

    def correction(iterations: int) -> ReprojectionCorrection:
        return ReprojectionCorrection(autoencoder.grid, iterations, denoiser.energy_kev, denoiser.hu_window)

    final = consistency_iterations if consistency_final is True else int(consistency_final)
    return PosteriorSampler(
        denoiser,
        autoencoder,
        denoiser.scheduler(**(solver or {})),
        mean=mean,
        atlas=None if atlas is None or mean is None else Atlas(atlas, mean, atlas_coarse_mm),
        consistency=correction(consistency_iterations) if consistency_weight else None,
        consistency_weight=consistency_weight,
        final_consistency=correction(final) if final else None,
        **options,
    )
