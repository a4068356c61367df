"""The system of INRR3CT: radiograph features, read through the geometry, become intensities at any point.

One class serves every preset; what a preset leaves out is None. A point p is handled as in the paper (section 2):
r(p) = mean over views of f_rho([Fourier(p), W_i(Pi(p, theta_i))]), intensity = h_tau(r(p)). Beyond the paper, each
optional: a `prior` says which chest of a population fits the radiographs best, SIRT makes a coarse volume of it,
`volume_network` reads that together with the fused features and gives h_tau 3D context, and `consistency_iterations` of
SIRT pull the result back onto the radiographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from custom.core.attenuation import water_attenuation_per_mm
from custom.core.checkpoints import describes_itself
from custom.core.precision import check_precision, uses_bf16
from custom.fusion import fuse_features, sample_features
from custom.geometry import VolumeGrid
from custom.networks.feature_unet import encode_views
from custom.networks.fourier_mlp import FourierFeatures, PointMLP
from custom.networks.inputs import batched_views
from custom.networks.population_prior import PopulationPrior, average_pixels, sample_on
from custom.networks.volume_unet import VolumeUNet
from custom.projection import ProjectorCache, sirt

__all__ = ["ImplicitReconstructor"]

#: Features (B, C, X/2, Y/2, Z/2) and prediction (B, 1, X, Y, Z) of the volume network; both cover the coarse grid.
_Context: TypeAlias = tuple[Tensor, Tensor]


@describes_itself
class ImplicitReconstructor(nn.Module):
    """Radiographs of any views to a CT volume.

    Args:
        encoder: network from (N, 1, V, U) to features (N, C, V', U'), with `out_channels`; see `FeatureUNet`. None for
            a network that sees no radiograph, only coordinates: the control "INR without image features".
        grid: the volume that is reconstructed, in the isocentre frame.
        fourier: `FourierFeatures` of the coordinates.
        view_mlp: keywords of f_rho (`PointMLP`, without in_features).
        volume_mlp: keywords of h_tau (`PointMLP`, without in_features and out_features).
        views: (K, 13) for `forward(image)` without views; None: views must be passed.
        separate_view_mlps: number of views with an f_rho of their own, as in the released code of INRR3CT; 0 shares
            one f_rho, so that any number of views is served.
        plain_mean: the papers' mean over all views; else the mean over the views that see the point.
        volume_network: keywords of `VolumeUNet` (without input channels), or None.
        coarse_grid: grid of the volume network; it may reach beyond `grid`, because tissue outside casts shadows too.
            Its shape must be divisible by 2^(levels of the volume network).
        feature_spacing_mm: radiographs are averaged to pixels of about this size (at the isocentre) for the encoder;
            None leaves them as they are.
        rough_iterations: SIRT iterations on the coarse grid; 0 for none.
        prior: `PopulationPrior`; SIRT starts from its estimate, each voxel as free as patients differ there, and the
            volume network reads its mean and estimate too. None: SIRT starts from air.
        consistency_iterations: SIRT iterations on the result, in evaluation mode only; 0 for none.
        coordinate_half_side_mm: coordinates are millimetres in the isocentre frame over this length.
        radiograph_scale: line integrals are multiplied by it, a constant: never by the image's own maximum.
        energy_kev: photon energy of the line integrals.
        hu_window: CT values that become -1 and 1.
        points_per_chunk: bounds the memory of evaluation, and of training on whole grids.
        precision: of convolutions and silu layers, "bf16", "fp32" or "auto" (bf16 where the device is fast at it, see
            `custom.core.precision`); coordinates, Fourier features, sines, projector and SIRT are always float32.

    Raises:
        ValueError: if options contradict each other.
    """

    views: Tensor | None

    def __init__(
        self,
        encoder: Any,
        grid: VolumeGrid,
        fourier: FourierFeatures,
        view_mlp: dict,
        volume_mlp: dict,
        views: Tensor | Sequence[Sequence[float]] | None = None,
        separate_view_mlps: int = 0,
        plain_mean: bool = False,
        volume_network: dict | None = None,
        coarse_grid: VolumeGrid | None = None,
        feature_spacing_mm: float | None = None,
        rough_iterations: int = 0,
        prior: PopulationPrior | None = None,
        consistency_iterations: int = 0,
        coordinate_half_side_mm: float = 160.0,
        radiograph_scale: float = 0.2,
        energy_kev: float = 70.0,
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        points_per_chunk: int = 131072,
        precision: str = "auto",
    ) -> None:
        super().__init__()
        check_precision(precision)
        if volume_network is not None and (coarse_grid is None or encoder is None):
            raise ValueError("volume_network needs a coarse_grid and an encoder")
        if prior is not None and volume_network is None:
            raise ValueError("a prior is read by the volume_network, which is missing")
        if separate_view_mlps and encoder is None:
            raise ValueError("separate_view_mlps needs an encoder")
        if volume_network is not None and coarse_grid is not None:
            factor = 2 ** len(volume_network.get("widths", (32, 96, 128)))
            if any(n % factor for n in coarse_grid.shape):
                raise ValueError(f"coarse_grid's shape must be divisible by {factor}, got {coarse_grid.shape}")
        self.encoder, self.grid, self.fourier, self.coarse_grid = encoder, grid, fourier, coarse_grid
        self.prior = prior
        self.feature_spacing_mm = feature_spacing_mm
        self.separate_view_mlps, self.plain_mean = separate_view_mlps, plain_mean
        self.rough_iterations, self.consistency_iterations = rough_iterations, consistency_iterations
        self.coordinate_half_side_mm, self.radiograph_scale = coordinate_half_side_mm, radiograph_scale
        self.energy_kev, self.hu_window = energy_kev, (float(hu_window[0]), float(hu_window[1]))
        self.points_per_chunk, self.precision = points_per_chunk, precision
        fixed = None if views is None else torch.as_tensor(views, dtype=torch.float32)
        self.register_buffer("views", fixed, persistent=False)
        self._projector = ProjectorCache()

        image_features = 0 if encoder is None else int(encoder.out_channels)
        self.view_mlps = nn.ModuleList(
            PointMLP(fourier.out_channels + image_features, **view_mlp) for _ in range(max(1, separate_view_mlps))
        )
        volume_features = 0
        self.volume_network = None
        if volume_network is not None:
            self.volume_network = VolumeUNet(1 if prior is None else 3, image_features + 4, **volume_network)
            # The point sees the volume network's features and its prediction.
            volume_features = self.volume_network.out_channels + 1 + fourier.out_channels
        self.volume_mlp = PointMLP(int(view_mlp.get("width", 128)) + volume_features, out_features=1, **volume_mlp)
        if volume_network is not None:
            self.volume_mlp.zero_last()  # starts as the volume network's prediction

    def forward(
        self,
        image: Tensor,
        views: Tensor | None = None,
        view_mask: Tensor | None = None,
        points: Tensor | None = None,
        coarse: bool = False,
        priors: Sequence[PopulationPrior] | None = None,
    ) -> Tensor:
        """Reconstruct.

        Args:
            image: line integrals (B, K, V, U).
            views: (B, K, 13) or (K, 13); None for the views given at construction.
            view_mask: bool (B, K), False for padding; None: every view counts.
            points: (B, *spatial, 3) [mm, isocentre frame]; None: the voxel centres of `grid`.
            coarse: give the volume network's prediction on `coarse_grid` instead, to train that network alone.
            priors: one for each of the B cases instead of the network's own; see `OutOfFoldPriors`.

        Returns:
            Intensities, `hu_window` as [-1, 1]: (B, 1, X, Y, Z), or (B, 1, *spatial) at points.

        Raises:
            ValueError: if image, views and mask do not match, or there is no volume network to give the coarse volume.
        """
        views, view_mask = self._check(image, views, view_mask)
        features = self._encode(image)
        context = self._volume_context(image, features, views, view_mask, priors)
        if coarse:
            if context is None:
                raise ValueError("a network without volume_network has no coarse prediction")
            return context[1]
        if points is not None:
            shape = points.shape[1:-1]
            values = self._at_points(features, views, view_mask, context, points.flatten(1, -2))
            return values.reshape(len(image), 1, *shape)
        centers = self.grid.points(image.device).reshape(1, -1, 3)
        values = self._at_points(features, views, view_mask, context, centers)
        pred = values.reshape(len(image), 1, *self.grid.shape)
        if self.consistency_iterations and not self.training:
            pred = self.make_consistent(pred, image, views, view_mask, context)
        return pred

    def _check(self, image: Tensor, views: Tensor | None, view_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        views = batched_views(image, self.views if views is None else views, view_mask)
        if self.separate_view_mlps and image.shape[1] != self.separate_view_mlps:
            raise ValueError(
                f"this network has one f_rho for each of {self.separate_view_mlps} views, got {image.shape[1]} views"
            )
        return views.to(image.device, torch.float32), view_mask

    def _mixed(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(self.precision, device))

    def _encode(self, image: Tensor) -> Tensor | None:
        if self.encoder is None:
            return None
        with self._mixed(image.device):
            return encode_views(
                self.encoder, image, self._factor(self.feature_spacing_mm), self.radiograph_scale
            ).float()

    def _volume_context(
        self,
        image: Tensor,
        features: Tensor | None,
        views: Tensor,
        view_mask: Tensor | None,
        priors: Sequence[PopulationPrior] | None,
    ) -> _Context | None:
        """What the volume network says, see `_Context`."""
        if self.volume_network is None or features is None or self.coarse_grid is None:
            return None
        half = self.coarse_grid.resized([n // 2 for n in self.coarse_grid.shape])
        fused = fuse_features(features, views, half, image.shape[2:], view_mask, with_count=True)
        coordinates = half.points(image.device).movedim(-1, 0) / self.coordinate_half_side_mm
        fused = torch.cat([fused.float(), coordinates.expand(len(image), -1, -1, -1, -1)], 1)
        rough, known = self._rough(image, views, view_mask, priors)
        with self._mixed(image.device):
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
            factor = self._factor(self.prior.grid.spacing_mm[0])
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
        averaged, coarse_views = average_pixels(self._water_path(image), views, self._factor(grid.spacing_mm[0]))
        projector, bounds = self._projector(grid, averaged.shape[2:]), self._bounds()
        volume = sirt(projector, averaged, coarse_views, self.rough_iterations, bounds, start, view_mask, spread)
        return self._from_water(volume), known

    def make_consistent(
        self,
        pred: Tensor,
        image: Tensor,
        views: Tensor,
        view_mask: Tensor | None = None,
        context: _Context | None = None,
        iterations: int | None = None,
    ) -> Tensor:
        """Move a volume towards the radiographs by SIRT, on a grid with the tissue around it where it is known.

        Args:
            pred: (B, 1, X, Y, Z) on `grid`, `hu_window` as [-1, 1].
            image, views, view_mask: as in `forward`.
            context: of the volume network, whose prediction reaches beyond the cube; None: air around the cube.
            iterations: overrides `consistency_iterations`.
        """
        grid, start, freedom = self.grid, pred, None
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
                freedom = self.prior.on(grid, self.prior.spread)
            x, y, z = (slice(m, m + n) for m, n in zip(margin, self.grid.shape, strict=True))
            start[:, :, x, y, z] = pred
        projector = self._projector(grid, image.shape[2:])
        steps = self.consistency_iterations if iterations is None else iterations
        volume = sirt(
            projector, self._water_path(image), views, steps, self._bounds(), self._to_water(start), view_mask, freedom
        )
        return self._from_water(volume)[:, :, x, y, z].contiguous()

    def _at_points(
        self, features: Tensor | None, views: Tensor, view_mask: Tensor | None, context: _Context | None, points: Tensor
    ) -> Tensor:
        """(B, N) at points (B or 1, N, 3), in chunks."""
        pieces = points.split(self.points_per_chunk, 1)
        if len(pieces) == 1 or not torch.is_grad_enabled():
            values = [self._chunk(features, views, view_mask, context, piece) for piece in pieces]
        else:
            values = [
                checkpoint(self._chunk, features, views, view_mask, context, piece, use_reentrant=False)
                for piece in pieces
            ]
        return torch.cat(values, 1)

    def _chunk(
        self, features: Tensor | None, views: Tensor, view_mask: Tensor | None, context: _Context | None, points: Tensor
    ) -> Tensor:
        encoded = self.fourier(points / self.coordinate_half_side_mm)
        batch = len(views)
        with self._mixed(points.device):
            if features is None:
                fused = self.view_mlps[0](encoded).expand(batch, -1, -1)
            else:
                fused = self._fuse(features, views, view_mask, points, encoded)
            if context is None:
                return self.volume_mlp(fused).float().squeeze(-1)
            deep, coarse = (self._sample_volume(volume, points) for volume in context)
            parts = [fused, deep.to(fused), coarse.to(fused), encoded.expand(batch, -1, -1).to(fused)]
            rest = self.volume_mlp(torch.cat(parts, -1))
        return coarse.squeeze(-1) + rest.float().squeeze(-1)

    def _fuse(
        self, features: Tensor, views: Tensor, view_mask: Tensor | None, points: Tensor, encoded: Tensor
    ) -> Tensor:
        """The mean over views of f_rho, (B, N, width)."""
        batch, count = features.shape[:2]
        values, seen = sample_features(features, views, points.expand(batch, -1, -1), self._detector_shape(features))
        exists = torch.ones_like(seen) if view_mask is None else view_mask[..., None].expand_as(seen)
        weight = exists if self.plain_mean else exists & seen
        total: Tensor | float = 0.0
        for k in range(count):
            mlp = self.view_mlps[k if self.separate_view_mlps else 0]
            joint = torch.cat([values[:, k].transpose(1, 2), encoded.expand(batch, -1, -1)], -1)
            total = total + mlp(joint) * weight[:, k, :, None]
        return total / weight.sum(1).clamp(min=1)[..., None]

    def _factor(self, spacing_mm: float | None) -> int:
        """Pixels of the radiograph to one of this size at the isocentre, along each side; None: to one of its own."""
        return 1 if spacing_mm is None else max(1, round(spacing_mm / self.grid.spacing_mm[0]))

    def _detector_shape(self, features: Tensor) -> tuple[int, int]:
        stride = getattr(self.encoder, "output_stride", 1) * self._factor(self.feature_spacing_mm)
        return features.shape[-2] * stride, features.shape[-1] * stride

    def _sample_volume(self, volume: Tensor, points: Tensor) -> Tensor:
        """Trilinear samples (B, N, C) of a volume that covers the coarse grid, whatever its voxels."""
        assert self.coarse_grid is not None
        half = torch.tensor(self.coarse_grid.half_extent_mm, device=points.device)
        middle = torch.tensor(self.coarse_grid.center_mm, device=points.device)
        grid = ((points - middle) / half).flip(-1).expand(len(volume), -1, -1)[:, :, None, None]
        with torch.autocast(points.device.type, enabled=False):
            sampled = F.grid_sample(volume.float(), grid.float(), padding_mode="border", align_corners=False)
        return sampled[..., 0, 0].transpose(1, 2)

    def _water_path(self, image: Tensor) -> Tensor:
        """Line integrals as millimetres of water."""
        return image.float() / water_attenuation_per_mm(self.energy_kev)

    def _to_water(self, unit: Tensor) -> Tensor:
        low, high = self.hu_window
        return ((unit.float() + 1) / 2 * (high - low) + low) / 1000 + 1

    def _from_water(self, water: Tensor) -> Tensor:
        low, high = self.hu_window
        return ((water - 1) * 1000 - low) / (high - low) * 2 - 1

    def _bounds(self) -> tuple[float, float]:
        return max(0.0, self.hu_window[0] / 1000 + 1), self.hu_window[1] / 1000 + 1
