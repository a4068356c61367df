"""Plausible CTs from radiographs: the sampler of `ldm_recon` and `voxel_diffusion`."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from custom.checkpoints import definition, load_checkpoint
from custom.consistency import ReprojectionCorrection
from custom.data.files import write_tensors
from custom.networks.denoiser import LatentDenoiser
from custom.networks.inputs import check_radiographs
from custom.networks.voxels import VoxelIdentity
from custom.schedulers import DPMSolverPPScheduler
from custom.uncertainty import SampleStatistics
from custom.values import unit_to_hu

__all__ = ["EncodedMean", "PosteriorSampler", "collect_samples", "load_sampler"]

logger = logging.getLogger(__name__)


class EncodedMean:
    """What deterministic networks make of the radiographs, encoded: what a denoiser with `known_channels` is told.

    In training there is one network for each fold of the patients, which has not seen them: a network that knows its
    few training CTs by heart leaves no residual to learn. In use there is one that has seen all.

    Args:
        checkpoints: model.pt of `inr_recon`; network i serves fold i.
        autoencoder: a `VQGAN`, which encodes on its grid, or its model.pt.
        device: of all of them.
        precision: of all of them.

    Attributes:
        hashes: SHA-256 of the checkpoints.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`, or if there is none; while running, for a fold without one.
    """

    def __init__(
        self,
        checkpoints: Sequence[str | os.PathLike[str]],
        autoencoder: Any,
        device: str | torch.device = "cpu",
        precision: str = "auto",
    ) -> None:
        if not checkpoints:
            raise ValueError("a mean needs at least one checkpoint of inr_recon")
        if isinstance(autoencoder, str | os.PathLike):
            autoencoder = load_checkpoint(autoencoder).network().to(device)
        grid = definition(autoencoder.grid)
        loaded = [load_checkpoint(path) for path in checkpoints]
        self.hashes = [checkpoint.hash for checkpoint in loaded]
        self.networks: list[Any] = [
            checkpoint.network(grid=grid, precision=precision).to(device) for checkpoint in loaded
        ]
        for path, network in zip(checkpoints, self.networks, strict=True):
            if tuple(network.hu_window) != tuple(autoencoder.hu_window):
                raise ValueError(f"{path}: HU window {network.hu_window}, the autoencoder's is {autoencoder.hu_window}")
        self.autoencoder = autoencoder

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        views: Tensor,
        view_mask: Tensor | None = None,
        batch: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Radiographs (B, K, V, U) to latents (B, C, x, y, z), not normalised; `batch` may hold "fold" (B,)."""
        folds = [0] * len(image) if batch is None or "fold" not in batch else [int(f) for f in batch["fold"]]
        volumes = []
        for b, fold in enumerate(folds):
            if fold >= len(self.networks):
                raise ValueError(
                    f"a case of fold {fold}, but there are {len(self.networks)} mean networks: write the latents with "
                    "as many folds as there are fold_mean_checkpoints"
                )
            case = slice(b, b + 1)
            volumes.append(
                self.networks[fold](image[case], views[case], None if view_mask is None else view_mask[case])
            )
        return self.autoencoder.encode(torch.cat(volumes).clamp(-1, 1))


class PosteriorSampler(nn.Module):
    """Solves the diffusion ODE from noise to latents, and decodes them.

    Sample i of a seed is the same CT whatever batch it is drawn in (up to the rounding of the device's kernels): its
    noise comes from a generator of its own.

    Args:
        denoiser: in evaluation mode.
        autoencoder: decodes latents to volumes, `hu_window` as [-1, 1]; see `VQGAN`.
        scheduler: solver with the noise schedule and prediction type of the training: `denoiser.scheduler()`.
        steps: evaluations of the denoiser for a sample.
        guidance_scale: s in e = e_u + s (e_c - e_u) (Ho and Salimans 2022; DIFR3CT, equation 8). 1 samples what was
            learnt; more narrows the samples, so that their variance means nothing; 0 samples without the condition.
        batch_size: samples at a time: memory against speed.
        quantise: decode the nearest codes instead of the continuous latents.
        mean: gives the denoiser's `known` from (image, views, view_mask): the encoded reconstruction (B, C, X, Y, Z).
        consistency: moves predicted volumes to the radiographs, from (volume (B, 1, X, Y, Z) in [-1, 1], image, views,
            view_mask) to a volume; None leaves them alone.
        consistency_weight: how much of that movement a predicted latent makes at the last step; at others it is
            multiplied by alpha-bar, because early predictions are blurred. 0: none, nothing is decoded on the way.
        final_consistency: like `consistency`, applied once to the decoded sample; None: none.

    Raises:
        ValueError: for numbers that make no sense, or a mean that is missing or superfluous.
    """

    def __init__(
        self,
        denoiser: LatentDenoiser,
        autoencoder: Any,
        scheduler: DPMSolverPPScheduler,
        steps: int = 20,
        guidance_scale: float = 1.0,
        batch_size: int = 1,
        quantise: bool = False,
        mean: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
        consistency: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] | None = None,
        consistency_weight: float = 0.0,
        final_consistency: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if steps < 1 or batch_size < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
        if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
            raise ValueError(f"guidance_scale must not be negative (1: as learnt), got {guidance_scale}")
        if not 0 <= consistency_weight <= 1 or (consistency_weight and consistency is None):
            raise ValueError(f"consistency_weight must lie in [0, 1] and needs a consistency, got {consistency_weight}")
        if (mean is None) != (denoiser.known_channels == 0):
            raise ValueError(
                "this denoiser needs the reconstruction of a mean network: pass its checkpoint"
                if mean is None
                else "this denoiser was trained without the reconstruction of a mean network"
            )
        expected = (denoiser.latent_channels, denoiser.grid, tuple(denoiser.hu_window))
        found = (autoencoder.embedding_dim, autoencoder.latent_grid, tuple(autoencoder.hu_window))
        if expected != found:
            raise ValueError(
                f"the denoiser's latents (channels, grid, HU window) {expected} are not the autoencoder's, {found}: it "
                "belongs to another vqgan"
            )
        self.denoiser, self.autoencoder, self.scheduler = denoiser, autoencoder, scheduler
        self.steps, self.guidance_scale, self.batch_size = steps, guidance_scale, batch_size
        self.quantise, self.mean = quantise, mean
        self.consistency, self.consistency_weight = consistency, consistency_weight
        self.final_consistency = final_consistency
        self.grid, self.hu_window = autoencoder.grid, denoiser.hu_window

    @torch.no_grad()
    def forward(
        self, image: Tensor, views: Tensor, view_mask: Tensor | None = None, seed: int = 0, first: int = 0
    ) -> Tensor:
        """One sample for each case.

        Args:
            image: line integrals (B, K, V, U).
            views: (B, K, 13).
            view_mask: bool (B, K).
            seed: of the noise.
            first: which sample of this seed.

        Returns:
            (B, 1, X, Y, Z), `hu_window` as [-1, 1], clipped.

        Raises:
            ValueError: for no view, radiographs that do not match the views, or NaN in them.
        """
        noise = self.noise(seed, first).expand(len(image), -1, -1, -1, -1)
        unit = self._decode(self.sample_latents(image, views, view_mask, noise.to(image.device)))
        return self._finished(unit, (image, views, view_mask))

    def noise(self, seed: int, index: int) -> Tensor:
        """The noise (1, C, x, y, z) that sample `index` of a seed begins with."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
        return torch.randn(1, self.denoiser.latent_channels, *self.denoiser.grid.shape, generator=generator)

    @torch.no_grad()
    def samples(
        self,
        image: Tensor,
        views: Tensor,
        count: int,
        seed: int = 0,
        first: int = 0,
        on_decoded: Callable[[int, Tensor], None] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Samples of one case, batch by batch.

        Args:
            image: line integrals (K, V, U).
            views: (K, 13).
            count: N, how many samples the seed shall have in all.
            seed: of the noise.
            first: the sample to begin with, when others are there already.
            on_decoded: called with what is yielded later, as it was before `final_consistency`.

        Yields:
            The index of the batch's first sample, and HU (B, 1, X, Y, Z) on `grid`, clipped to `hu_window`.

        Raises:
            ValueError: for fewer than one sample, no view, radiographs that do not match the views, or NaN in them.
        """
        if count < 1:
            raise ValueError(f"the number of samples must be at least 1, got {count}")
        device = next(self.denoiser.parameters()).device
        image, views = image[None].to(device), views[None].to(device)
        condition, known = self._given(image, views, None)
        for start in range(first, count, self.batch_size):
            indices = range(start, min(start + self.batch_size, count))
            noise = torch.cat([self.noise(seed, index) for index in indices]).to(device)
            wide = [None if x is None else x.expand(len(noise), -1, -1, -1, -1) for x in (condition, known)]
            pictures = (image.expand(len(noise), -1, -1, -1), views.expand(len(noise), -1, -1), None)
            unit = self._decode(self._solve(noise, wide[0], wide[1], pictures))  # type: ignore[arg-type]
            if on_decoded is not None:
                on_decoded(start, unit_to_hu(unit, self.hu_window))
            yield start, unit_to_hu(self._finished(unit, pictures), self.hu_window)

    @torch.no_grad()
    def sample_latents(self, image: Tensor, views: Tensor, view_mask: Tensor | None, noise: Tensor) -> Tensor:
        """Latents of the autoencoder (B, C, x, y, z) from noise of that shape, for B cases."""
        condition, known = self._given(image, views, view_mask)
        return self._solve(noise, condition, known, (image, views, view_mask))

    def _given(self, image: Tensor, views: Tensor, view_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The condition, and the encoded mean in it. What is wrong is said before a network runs."""
        check_radiographs(image, views, view_mask)
        if view_mask is not None and not view_mask.any(1).all():
            raise ValueError("a case has no view: view_mask leaves none of its radiographs")
        known = None
        if self.mean is not None:
            known = self.denoiser.normalise(self.mean(image, views, view_mask))
        return self.denoiser.condition(image, views, view_mask, known), known

    def _solve(
        self,
        noise: Tensor,
        condition: Tensor,
        known: Tensor | None,
        radiographs: tuple[Tensor, Tensor, Tensor | None],
    ) -> Tensor:
        scheduler = copy.copy(self.scheduler)  # its history belongs to one run
        scheduler.set_timesteps(self.steps, device=noise.device)
        x = noise
        for t in scheduler.timesteps:
            original = scheduler.predict_original(self._guided(x, t.expand(len(x)), condition), t, x)
            if self.consistency_weight:
                weight = self.consistency_weight * scheduler.alpha_sigma(t)[0] ** 2
                original = self._towards_radiographs(original, known, radiographs, weight)
            x, _ = scheduler.step_from_original(original, t, x)
        return self.denoiser.denormalise(self.denoiser.undiffused(x, known))

    def _guided(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        scale = self.guidance_scale
        if scale == 1:
            return self.denoiser.denoise(x, time, condition)
        both = torch.cat([condition, torch.zeros_like(condition)])
        with_views, without = self.denoiser.denoise(torch.cat([x, x]), torch.cat([time, time]), both).chunk(2)
        return without + scale * (with_views - without)

    def _towards_radiographs(
        self, original: Tensor, known: Tensor | None, radiographs: tuple[Tensor, Tensor, Tensor | None], weight: float
    ) -> Tensor:
        """A predicted latent moved as decoding, correcting and encoding it says.

        What the autoencoder alone loses on the way there and back cancels out.
        """
        assert self.consistency is not None
        latent = self.denoiser.denormalise(self.denoiser.undiffused(original, known))
        volume = self.autoencoder.decode(latent)
        corrected = self.autoencoder.encode(self.consistency(volume, *radiographs))
        moved = latent + weight * (corrected - self.autoencoder.encode(volume))
        return self.denoiser.diffused(self.denoiser.normalise(moved), known)

    def _decode(self, latent: Tensor) -> Tensor:
        return self.autoencoder.decode(latent, quantise=self.quantise).clamp(-1, 1)

    def _finished(self, unit: Tensor, radiographs: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        """A decoded sample, corrected where that is wanted."""
        return unit if self.final_consistency is None else self.final_consistency(unit, *radiographs).clamp(-1, 1)


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
        mean = EncodedMean([mean_checkpoint], autoencoder, device, precision)
    if mean is not None and expected_mean is not None and expected_mean != mean.hashes[0]:
        raise ValueError(
            f"{mean_checkpoint}: SHA-256 {mean.hashes[0][:12]}, but {checkpoint} was trained for the mean network "
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
        consistency=correction(consistency_iterations) if consistency_weight else None,
        consistency_weight=consistency_weight,
        final_consistency=correction(final) if final else None,
        **options,
    )


def collect_samples(
    sampler: PosteriorSampler,
    image: Tensor,
    views: Tensor,
    count: int,
    seed: int = 0,
    state_path: str | os.PathLike[str] | None = None,
    body: Tensor | None = None,
    on_samples: Callable[[int, Tensor], None] | None = None,
    on_decoded: Callable[[int, Tensor], None] | None = None,
) -> SampleStatistics:
    """Mean and variance of N samples of one case; what a kill leaves is taken up again.

    Args:
        sampler: draws them.
        image: line integrals (K, V, U).
        views: (K, 13).
        count: N.
        seed: of the noise.
        state_path: statistics and number of samples are kept there after every batch; it belongs to one case, seed and
            setting, and is removed by whoever has used the result. None: nothing is kept.
        body: mask (X, Y, Z) for the single number; None: of the mean.
        on_samples: called with the index of the first and the samples (B, 1, X, Y, Z) of every batch, to write them.
        on_decoded: the same with what they were before the correction at the end, see `PosteriorSampler.samples`.

    Raises:
        ValueError: as `PosteriorSampler.samples`, or for a state of another case or setting.
    """
    statistics = SampleStatistics(body, sampler.hu_window)
    label = _fingerprint(sampler, image, views, seed)
    path = None if state_path is None else Path(state_path)
    if path is not None and path.is_file():
        try:
            state = torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path}: the samples so far cannot be read: remove it to begin anew ({error})") from error
        if not torch.equal(state.pop("fingerprint"), label):
            raise ValueError(f"{path}: samples of another case, seed or setting: remove it, or write elsewhere")
        statistics.load_state_dict(state)
        if statistics.count > count:
            raise ValueError(f"{path}: holds {statistics.count} samples already, more than the {count} asked for")
        logger.info("%s: %d of %d samples are there already", path, statistics.count, count)
    first = statistics.count
    with tqdm(total=count, initial=first, desc="samples", unit="sample", disable=None) as bar:
        for start, samples in sampler.samples(image, views, count, seed, first, on_decoded):
            statistics.update(samples)
            if on_samples is not None:
                on_samples(start, samples)
            if path is not None:
                write_tensors(path, {**statistics.state_dict(), "fingerprint": label})
            bar.update(len(samples))
    return statistics


def _fingerprint(sampler: PosteriorSampler, image: Tensor, views: Tensor, seed: int) -> Tensor:
    """SHA-256, as bytes, of all that the samples depend on."""
    total = hashlib.sha256()
    settings: list[Any] = [sampler.steps, sampler.guidance_scale, sampler.quantise, sampler.consistency_weight, seed]
    used = (sampler.consistency if sampler.consistency_weight else None, sampler.final_consistency)
    settings += [None if one is None else getattr(one, "settings", type(one).__name__) for one in used]
    solver = {k: v for k, v in vars(sampler.scheduler).items() if isinstance(v, str | int | float | bool | None)}
    total.update(repr([settings, sorted((k, v) for k, v in solver.items() if not k.startswith("_"))]).encode())
    networks = [sampler.denoiser, sampler.autoencoder, *getattr(sampler.mean, "networks", [])]
    tensors = [value for network in networks for value in network.state_dict().values()]
    for tensor in (*tensors, image, views):
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return torch.tensor(list(total.digest()), dtype=torch.uint8)
