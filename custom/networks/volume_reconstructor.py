"""`VolumeReconstructor`, the base of `inr_recon`'s networks: radiographs to a coarse volume of the whole body.

A `prior` says which chest of a population fits the radiographs best, SIRT moves it towards them, and a 3D U-Net reads
that together with the radiographs' features, fused along their rays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from custom.core.attenuation import water_attenuation_per_mm
from custom.core.precision import check_precision, mixed_precision
from custom.fusion import fuse_features
from custom.geometry import VolumeGrid
from custom.geometry.detector import isocenter_pixel_mm
from custom.networks.feature_unet import averaging_factor, encode_views
from custom.networks.inputs import batched_views
from custom.networks.population_prior import PopulationPrior, average_pixels, sample_on
from custom.networks.volume_unet import VolumeUNet
from custom.projection import ProjectorCache, sirt

__all__ = ["CoarseVolume", "VolumeReconstructor"]

#: Features (B, C, X/2, Y/2, Z/2) and prediction (B, 1, X, Y, Z) of the volume network; both cover the coarse grid.
CoarseVolume: TypeAlias = tuple[Tensor, Tensor]


_Checked: TypeAlias = tuple[Tensor, Tensor, Tensor | None]


class VolumeReconstructor(nn.Module):
    """What becomes of radiographs before a subclass says what it makes of the coarse volume.

    Args:
        encoder: network from (N, 1, V, U) to features (N, C, V', U'), with `out_channels`; see `FeatureUNet`. None for
            a network that sees no radiograph.
        grid: the volume that is reconstructed, in the isocentre frame.
        views: (K, 13) for `forward(image)` without views; None: views must be passed.
        volume_network: keywords of `VolumeUNet` (without input channels), or None.
        coarse_grid: grid of the volume network; it may reach beyond `grid`, because tissue outside casts shadows too.
            Its shape must be divisible by 2^(levels of the volume network).
        feature_spacing_mm: radiographs are averaged to pixels of about this size (at the isocentre) for the encoder;
            None leaves them as they are.
        rough_iterations: SIRT iterations on the coarse grid; 0 for none.
        prior: `PopulationPrior`; SIRT starts from its estimate, each voxel as free as patients differ there, and the
            volume network reads its mean and estimate too. None: SIRT starts from air.
        coordinate_half_side_mm: coordinates are millimetres in the isocentre frame over this length.
        radiograph_scale: line integrals are multiplied by it, a constant: never by the image's own maximum.
        energy_kev: photon energy of the line integrals.
        hu_window: CT values that become -1 and 1.
        precision: of convolutions and silu layers, "bf16", "fp32" or "auto" (bf16 where the device is fast at it, see
            `custom.core.precision.uses_bf16`); coordinates, Fourier features, sines, projector and SIRT are always
            float32.

    Raises:
        ValueError: if options contradict each other.
    """

    views: Tensor | None

    def __init__(
        self,
        encoder: Any,
        grid: VolumeGrid,
        views: Tensor | Sequence[Sequence[float]] | None = None,
        volume_network: dict | None = None,
        coarse_grid: VolumeGrid | None = None,
        feature_spacing_mm: float | None = None,
        rough_iterations: int = 0,
        prior: PopulationPrior | None = None,
        coordinate_half_side_mm: float = 160.0,
        radiograph_scale: float = 0.2,
        energy_kev: float = 70.0,
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        precision: str = "auto",
    ) -> None:
        super().__init__()
        check_precision(precision)
        if volume_network is not None and (coarse_grid is None or encoder is None):
            raise ValueError("volume_network needs a coarse_grid and an encoder")
        if prior is not None and volume_network is None:
            raise ValueError("a prior is read by the volume_network, which is missing")
        if volume_network is not None and coarse_grid is not None:
            factor = 2 ** len(volume_network.get("widths", (32, 96, 128)))
            if any(n % factor for n in coarse_grid.shape):
                raise ValueError(f"coarse_grid's shape must be divisible by {factor}, got {coarse_grid.shape}")
        self.encoder, self.grid, self.coarse_grid, self.prior = encoder, grid, coarse_grid, prior
        self.feature_spacing_mm, self.rough_iterations = feature_spacing_mm, rough_iterations
        self.coordinate_half_side_mm, self.radiograph_scale = coordinate_half_side_mm, radiograph_scale
        self.energy_kev, self.hu_window = energy_kev, (float(hu_window[0]), float(hu_window[1]))
        self.precision = precision
        fixed = None if views is None else torch.as_tensor(views, dtype=torch.float32)
        self.register_buffer("views", fixed, persistent=False)
        self._projector = ProjectorCache()
        self.volume_network: VolumeUNet | None = None

    def _make_volume_network(self, options: dict) -> VolumeUNet:
        image_features = int(self.encoder.out_channels)
        return VolumeUNet(1 if self.prior is None else 3, image_features + 4, **options)

    def _check(self, image: Tensor, views: Tensor | None, view_mask: Tensor | None) -> _Checked:
        """Radiographs, padding without values; views; mask."""
        views = batched_views(image, self.views if views is None else views, view_mask).to(image.device, torch.float32)
        if view_mask is not None:
            image = torch.where(view_mask[:, :, None, None], image, 0.0)
            first = views[torch.arange(len(views)), view_mask.int().argmax(1)]
            views = torch.where(view_mask[..., None], views, first[:, None])
        pixels = isocenter_pixel_mm(views.flatten(0, 1)).mean(-1).reshape(views.shape[:2]).mean(1)
        if float(pixels.max() - pixels.min()) > 0.02 * float(pixels.max()):
            raise ValueError(
                "the radiographs of a batch must have pixels of one size at the isocentre, got "
                f"{[round(float(p), 3) for p in pixels]} mm: reconstruct the cases one by one, or resample them"
            )
        return image, views, view_mask

    def _encode(self, image: Tensor, views: Tensor) -> Tensor | None:
        if self.encoder is None:
            return None
        with mixed_precision(self.precision, image.device):
            return encode_views(
                self.encoder, image, averaging_factor(self.feature_spacing_mm, views), self.radiograph_scale
            ).float()

    def coarse_volume(
        self,
        image: Tensor,
        features: Tensor | None,
        views: Tensor,
        view_mask: Tensor | None,
        priors: Sequence[PopulationPrior] | None,
    ) -> CoarseVolume | None:
        """What the volume network says, see `CoarseVolume`; None where there is none."""
        if self.volume_network is None or features is None or self.coarse_grid is None:
            return None
        half = self.coarse_grid.resized([n // 2 for n in self.coarse_grid.shape])
        fused = fuse_features(features, views, half, image.shape[2:], view_mask, with_count=True)
        coordinates = half.points(image.device).movedim(-1, 0) / self.coordinate_half_side_mm
        fused = torch.cat([fused.float(), coordinates.expand(len(image), -1, -1, -1, -1)], 1)
        rough, known = self._rough(image, views, view_mask, priors)
        with mixed_precision(self.precision, image.device):
            deep, correction = self.volume_network(torch.cat([rough, *known], 1), fused)
        return deep.float(), rough + correction.float()

    @torch.no_grad()
    def _rough(
        self, image: Tensor, views: Tensor, view_mask: Tensor | None, priors: Sequence[PopulationPrior] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """SIRT on the coarse grid, from the prior's estimate or from air; and that estimate and the prior's mean.

        All of them as networks see them, `hu_window` as [-1, 1].
        """
        assert self.coarse_grid is not None
        grid, known, spread = self.coarse_grid, [], None
        start = image.new_zeros(len(image), 1, *grid.shape, dtype=torch.float32)
        if self.prior is not None:
            factor = averaging_factor(self.prior.grid.spacing_mm[0], views)
            estimates, means, spreads = [], [], []
            for b, prior in enumerate([self.prior] * len(image) if priors is None else priors):
                case = slice(b, b + 1)
                mask = None if view_mask is None else view_mask[case]
                estimate = prior.estimate(self._water_path(image[case]), views[case], mask, factor)
                estimates.append(prior.on(grid, estimate))
                means.append(prior.on(grid, prior.mean))
                spreads.append(prior.on(grid, prior.spread))
            start, spread = torch.cat(estimates).clamp(*self._bounds()), torch.cat(spreads)
            known = [self._from_water(start), self._from_water(torch.cat(means))]
        if not self.rough_iterations:
            return self._from_water(start), known
        averaged, coarse_views = average_pixels(
            self._water_path(image), views, averaging_factor(grid.spacing_mm[0], views)
        )
        projector, bounds = self._projector(grid, averaged.shape[2:]), self._bounds()
        volume = sirt(projector, averaged, coarse_views, self.rough_iterations, bounds, start, view_mask, spread)
        return self._from_water(volume), known

    def make_consistent(
        self,
        pred: Tensor,
        image: Tensor,
        views: Tensor,
        view_mask: Tensor | None = None,
        context: CoarseVolume | None = None,
        iterations: int = 100,
        momentum: bool = False,
    ) -> Tensor:
        """Move a volume towards the radiographs by SIRT, on a grid with the tissue around it where it is known.

        Args:
            pred: (B, 1, X, Y, Z) on `grid`, `hu_window` as [-1, 1].
            image, views, view_mask: as in `forward`.
            context: of the volume network, whose prediction reaches beyond the cube; None: air around the cube.
            iterations, momentum: of `sirt`.
        """
        grid, start, voxel_std = self.grid, pred, None
        x, y, z = slice(None), slice(None), slice(None)
        if context is not None and self.coarse_grid is not None:
            margin = [
                max(0, round((wide / spacing - n) / 2))
                for wide, spacing, n in zip(
                    [2 * h for h in self.coarse_grid.half_extent_mm], grid.spacing_mm, grid.shape, strict=True
                )
            ]
            grid = grid.padded(margin)
            start = sample_on(grid, context[1], self.coarse_grid)
            if self.prior is not None:
                voxel_std = self.prior.on(grid, self.prior.spread)
            x, y, z = (slice(m, m + n) for m, n in zip(margin, self.grid.shape, strict=True))
            start[:, :, x, y, z] = pred
        projector = self._projector(grid, image.shape[2:])
        path, start = self._water_path(image), self._to_water(start)
        volume = sirt(projector, path, views, iterations, self._bounds(), start, view_mask, voxel_std, momentum)
        return self._from_water(volume[:, :, x, y, z]).contiguous()

    def _water_path(self, image: Tensor) -> Tensor:
        """Line integrals as millimetres of water."""
        return image.float() / water_attenuation_per_mm(self.energy_kev)

    def _to_water(self, unit: Tensor) -> Tensor:
        low, high = self.hu_window
        return (unit.float() + 1).div_(2).mul_(high - low).add_(low).div_(1000).add_(1)

    def _from_water(self, water: Tensor) -> Tensor:
        low, high = self.hu_window
        return (water - 1).mul_(1000).sub_(low).div_(high - low).mul_(2).sub_(1)

    def _bounds(self) -> tuple[float, float]:
        return max(0.0, self.hu_window[0] / 1000 + 1), self.hu_window[1] / 1000 + 1
