"""`PosteriorSampler`: draws plausible CTs from radiographs, for `ldm_recon` and `voxel_diffusion`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from custom.core.hu_window import unit_to_hu
from custom.core.torch_threads import side_by_side
from custom.metrics.sample_statistics import NOISE_GROUP
from custom.networks.denoiser import LatentDenoiser
from custom.networks.inputs import check_radiographs
from custom.sampling.atlas import Atlas
from custom.sampling.encoded_mean import EncodedMean
from custom.schedulers import DPMSolverPPScheduler

__all__ = ["PosteriorSampler"]

#: Batches at a time on a CPU that has as many threads. Each takes some 0.7 GB at 128^3 with an atlas.
AT_A_TIME = 4


class PosteriorSampler(nn.Module):
    """Solves the diffusion ODE from noise to latents, and decodes them.

    Sample i of a seed is the same CT whatever batch it is drawn in (up to the rounding of the device's kernels): its
    noise comes from its seed and number. Whatever N, too, but for `recentring`, where that holds from N = `NOISE_GROUP`
    on. The noises of `NOISE_GROUP` samples in a row sum to zero, so that their mean is nearer to that of infinitely
    many (`SampleStatistics.mean_variance_share`).

    Args:
        denoiser: in evaluation mode.
        autoencoder: decodes latents to volumes, `hu_window` as [-1, 1]; see `VQGAN`.
        scheduler: solver with the noise schedule and prediction type of the training: `denoiser.scheduler()`.
        steps: evaluations of the denoiser for a sample.
        guidance_scale: s in e = e_u + s (e_c - e_u) (Ho and Salimans 2022; DIFR3CT, equation 8). 1 samples what was
            learnt; more narrows the samples, so that their variance means nothing; 0 samples without the condition.
        batch_size: samples at a time: memory against speed.
        quantise: decode the nearest codes instead of the continuous latents.
        residual_scale: what a sampled latent differs by from the encoded reconstruction is multiplied by the number at
            the place of its number of views (the last for more); None: by 1. Below 1 it narrows samples that differ
            more than their mean errs. Only for a denoiser of residuals.
        recentring: a in x_i + a (m - mean(x)): all samples of a case are shifted by one volume, which moves the mean of
            the first `NOISE_GROUP` of them (all, if N is less) this share of the way to the mean network's
            reconstruction m, decoded samples in HU. Their differences stay. m knows the centre without the noise of
            few samples, the samples know what m blurs: in between the error is least. 0: none. A single sample is
            left alone, and all are without a mean network. Moment matching, as in Monte Carlo integration (Boyle,
            Broadie and Glasserman 1997).
        mean: reconstructs what is the denoiser's `known` once it is encoded.
        atlas: gives decoded samples the fine anatomy of training patients; None: they keep their own.
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
        residual_scale: Sequence[float] | float | None = None,
        recentring: float = 0.0,
        mean: EncodedMean | None = None,
        atlas: Atlas | None = None,
        consistency: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] | None = None,
        consistency_weight: float = 0.0,
        final_consistency: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if steps < 1 or batch_size < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
        if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
            raise ValueError(f"guidance_scale must not be negative (1: as learnt), got {guidance_scale}")
        scales = [residual_scale] if isinstance(residual_scale, int | float) else residual_scale
        if scales is not None and not (scales and all(isinstance(s, int | float) and 0 < s <= 2 for s in scales)):
            raise ValueError(
                f"residual_scale must be one number or a list of numbers above 0 and up to 2, got {residual_scale}"
            )
        if not 0 <= consistency_weight <= 1 or (consistency_weight and consistency is None):
            raise ValueError(f"consistency_weight must lie in [0, 1] and needs a consistency, got {consistency_weight}")
        if not 0 <= recentring <= 1:
            raise ValueError(f"recentring must lie in [0, 1], got {recentring}")
        if (mean is None) != (denoiser.known_channels == 0):
            raise ValueError(
                "this denoiser needs the reconstruction of a mean network: pass its checkpoint"
                if mean is None
                else "this denoiser was trained without the reconstruction of a mean network"
            )
        if atlas is not None and mean is None:
            raise ValueError("an atlas needs the reconstruction of a mean network, which this denoiser does not use")
        expected = (denoiser.latent_channels, denoiser.grid, tuple(denoiser.hu_window))
        found = (autoencoder.embedding_dim, autoencoder.latent_grid, tuple(autoencoder.hu_window))
        if expected != found:
            raise ValueError(
                f"the denoiser's latents (channels, grid, HU window) {expected} are not the autoencoder's, {found}: it "
                "belongs to another vqgan"
            )
        self.denoiser, self.autoencoder, self.scheduler = denoiser, autoencoder, scheduler
        self.steps, self.guidance_scale, self.batch_size = steps, guidance_scale, batch_size
        self.quantise, self.mean, self.atlas = quantise, mean, atlas
        self.residual_scale = None if scales is None else list(scales)
        self.recentring = recentring if mean is not None else 0.0
        self.consistency, self.consistency_weight = consistency, consistency_weight
        self.final_consistency = final_consistency
        self.grid, self.hu_window = autoencoder.grid, denoiser.hu_window

    @property
    def settings(self) -> dict[str, Any]:
        """All that samples depend on beside networks, radiographs and seed, for whoever keeps what was made of them."""
        used = {"consistency": self.consistency if self.consistency_weight else None, "final": self.final_consistency}
        solver = {k: v for k, v in vars(self.scheduler).items() if isinstance(v, str | int | float | bool | None)}
        return {
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "quantise": self.quantise,
            "residual_scale": self.residual_scale,
            "recentring": self.recentring,
            "atlas": None if self.atlas is None else self.atlas.settings,
            "consistency_weight": self.consistency_weight,
            **{k: None if one is None else getattr(one, "settings", type(one).__name__) for k, one in used.items()},
            "solver": {k: v for k, v in sorted(solver.items()) if not k.startswith("_")},
        }

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
        condition, known, mean = self._given(image, views, view_mask)
        noise = self.noise(seed, first).expand(len(image), -1, -1, -1, -1).to(image.device)
        radiographs = image, views, view_mask
        unit = self._decode(self._solve(noise, condition, known, radiographs))
        return self._finished(self._detailed(unit, mean, radiographs, [first] * len(unit)).clamp(-1, 1), radiographs)

    def noise(self, seed: int, index: int) -> Tensor:
        """The noise (1, C, x, y, z) that sample `index` of a seed begins with: standard normal.

        Of independent draws z_1 ... z_n of its group, n = `NOISE_GROUP`, it is (z_i - mean) sqrt(n / (n - 1)).
        """
        shape = (1, self.denoiser.latent_channels, *self.denoiser.grid.shape)
        own, total = torch.empty(shape), torch.zeros(shape)
        first = index - index % NOISE_GROUP
        for i in range(first, first + NOISE_GROUP):
            drawn = torch.randn(shape, generator=torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**63))
            total += drawn
            own = drawn if i == index else own
        return (own - total / NOISE_GROUP) * math.sqrt(NOISE_GROUP / (NOISE_GROUP - 1))

    @torch.no_grad()
    def samples(
        self,
        image: Tensor,
        views: Tensor,
        count: int,
        seed: int = 0,
        first: int = 0,
        on_decoded: Callable[[int, Tensor], None] | None = None,
        on_drawn: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Samples of one case, batch by batch.

        With `recentring` nothing is yielded before the first `NOISE_GROUP` samples are drawn, and they are drawn again
        where `first` lies behind some of them.

        Args:
            image: line integrals (K, V, U).
            views: (K, 13).
            count: N, how many samples the seed shall have in all.
            seed: of the noise.
            first: the sample to begin with, when others are there already.
            on_decoded: called with what is yielded later, as it was before `final_consistency`.
            on_drawn: called after every batch with how many samples are drawn, the `first` ones among them.

        Yields:
            The index of the batch's first sample, and HU (B, 1, X, Y, Z) on `grid`, clipped to `hu_window`.

        Raises:
            ValueError: for fewer than one sample, no view, radiographs that do not match the views, or NaN in them.
        """
        if count < 1:
            raise ValueError(f"the number of samples must be at least 1, got {count}")
        if first >= count:
            return
        device = next(self.denoiser.parameters()).device
        image, views = image[None].to(device), views[None].to(device)
        condition, known, mean = self._given(image, views, None)

        def radiographs(size: int) -> tuple[Tensor, Tensor, None]:
            return image.expand(size, -1, -1, -1), views.expand(size, -1, -1), None

        def decoded(indices: range) -> Tensor:
            noise = torch.cat([self.noise(seed, index) for index in indices]).to(device)
            wide = [None if x is None else x.expand(len(noise), -1, -1, -1, -1) for x in (condition, known)]
            given = radiographs(len(noise))
            unit = self._decode(self._solve(noise, wide[0], wide[1], given))  # type: ignore[arg-type]
            return self._detailed(unit, mean, given, indices)

        def drawn(indices: range) -> Iterator[tuple[int, Tensor]]:
            batches = [indices[at : at + self.batch_size] for at in range(0, len(indices), self.batch_size)]
            units = side_by_side(decoded, batches, device, min(AT_A_TIME, -(-count // self.batch_size)))
            for batch, unit in zip(batches, units, strict=True):
                if on_drawn is not None:
                    on_drawn(max(first, batch.stop))
                yield batch.start, unit

        held, shift = list[Tensor](), None
        if mean is not None and self.recentring and count > 1:
            held = [one for _, unit in drawn(range(min(count, NOISE_GROUP))) for one in unit.split(1)]
            shift = self.recentring * (mean - sum(held, torch.zeros_like(mean)) / len(held))
        again = enumerate(held[first:], first)
        for start, unit in chain(again, drawn(range(max(first, len(held)), count))):
            unit = (unit if shift is None else unit + shift).clamp(-1, 1)
            if on_decoded is not None:
                on_decoded(start, unit_to_hu(unit, self.hu_window))
            yield start, unit_to_hu(self._finished(unit, radiographs(len(unit))), self.hu_window)

    @torch.no_grad()
    def sample_latents(self, image: Tensor, views: Tensor, view_mask: Tensor | None, noise: Tensor) -> Tensor:
        """Latents of the autoencoder (B, C, x, y, z) from noise of that shape, for B cases."""
        condition, known, _ = self._given(image, views, view_mask)
        return self._solve(noise, condition, known, (image, views, view_mask))

    def _given(
        self, image: Tensor, views: Tensor, view_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The condition, the encoded mean in it and the mean. What is wrong is said before a network runs."""
        check_radiographs(image, views, view_mask)
        if view_mask is not None and not view_mask.any(1).all():
            raise ValueError("a case has no view: view_mask leaves none of its radiographs")
        known = mean = None
        if self.mean is not None:
            mean = self.mean.volume(image, views, view_mask)
            known = self.denoiser.normalise(self.autoencoder.encode(mean))
        return self.denoiser.condition(image, views, view_mask, known), known, mean

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
        share = self.denoiser.view_share(radiographs[1], radiographs[2])
        latent = self.denoiser.from_residual(x, known, share)
        if self.residual_scale is not None and known is not None and self.denoiser.residual:
            latent = torch.lerp(known, latent, self._scale_of(radiographs[1], radiographs[2]))
        return self.denoiser.denormalise(latent)

    def _scale_of(self, views: Tensor, view_mask: Tensor | None) -> Tensor:
        """`residual_scale` of each case's number of views, (B, 1, 1, 1, 1)."""
        assert self.residual_scale is not None
        scale = views.new_tensor(self.residual_scale)
        count = views.new_full((len(views),), views.shape[1]) if view_mask is None else view_mask.sum(1)
        return scale[count.long().clamp(max=len(scale)) - 1][:, None, None, None, None]

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
        share = self.denoiser.view_share(radiographs[1], radiographs[2])
        latent = self.denoiser.denormalise(self.denoiser.from_residual(original, known, share))
        volume = self.autoencoder.decode(latent)
        corrected = self.autoencoder.encode(self.consistency(volume, *radiographs))
        moved = latent + weight * (corrected - self.autoencoder.encode(volume))
        return self.denoiser.to_residual(self.denoiser.normalise(moved), known, share)

    def _decode(self, latent: Tensor) -> Tensor:
        return self.autoencoder.decode(latent, quantise=self.quantise).clamp(-1, 1)

    def _detailed(
        self,
        unit: Tensor,
        mean: Tensor | None,
        radiographs: tuple[Tensor, Tensor, Tensor | None],
        indices: Sequence[int],
    ) -> Tensor:
        """Decoded samples with the detail of the atlas, not clipped."""
        if self.atlas is None or mean is None:
            return unit
        image, views, view_mask = radiographs
        done = []
        for row, index in enumerate(indices):
            used = slice(None) if view_mask is None else view_mask[row].bool()
            case = image[row, used][None], views[row, used][None]
            done.append(self.atlas.detailed(unit[row : row + 1], mean[row % len(mean)][None], *case, index))
        return torch.cat(done)

    def _finished(self, unit: Tensor, radiographs: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        """A decoded sample, corrected where that is wanted."""
        return unit if self.final_consistency is None else self.final_consistency(unit, *radiographs).clamp(-1, 1)
