"""`ImplicitReconstructor`, the network of INRR3CT: intensities at any point from features of radiographs.

One class serves every preset; what a preset leaves out is None. A point p is handled as in the paper (section 2):
r(p) = mean over views of f_rho([Fourier(p), W_i(Pi(p, theta_i))]), intensity = h_tau(r(p)). Beyond the paper, each
optional: a `prior` says which chest of a population fits the radiographs best, SIRT makes a coarse volume of it,
`volume_network` reads that together with the fused features and gives h_tau 3D context, and `consistency_iterations` of
SIRT pull the result back onto the radiographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from custom.core.checkpoints import describes_itself
from custom.core.precision import mixed_precision
from custom.fusion import sample_features
from custom.geometry import VolumeGrid
from custom.networks.feature_unet import averaging_factor
from custom.networks.fourier_mlp import FourierFeatures, PointMLP
from custom.networks.population_prior import PopulationPrior
from custom.networks.volume_reconstructor import CoarseVolume, VolumeReconstructor

__all__ = ["ImplicitReconstructor"]


@describes_itself
class ImplicitReconstructor(VolumeReconstructor):
    """Radiographs of any views to a CT volume.

    Args:
        encoder: as in `VolumeReconstructor`; None for a network that sees only coordinates: the control "INR without
            image features".
        fourier: `FourierFeatures` of the coordinates.
        view_mlp: keywords of f_rho (`PointMLP`, without in_features).
        volume_mlp: keywords of h_tau (`PointMLP`, without in_features and out_features).
        separate_view_mlps: number of views with an f_rho of their own, as in the released code of INRR3CT; 0 shares
            one f_rho, so that any number of views is served.
        plain_mean: the papers' mean over all views; else the mean over the views that see the point.
        consistency_iterations: SIRT iterations on the result, in evaluation mode only; 0 for none.
        points_per_chunk: bounds the memory of evaluation, and of training on whole grids.
        **shared: of `VolumeReconstructor`, which has `encoder`, `grid` and `volume_network`, too.

    Raises:
        ValueError: if options contradict each other.
    """

    def __init__(
        self,
        encoder: Any,
        grid: VolumeGrid,
        fourier: FourierFeatures,
        view_mlp: dict,
        volume_mlp: dict,
        separate_view_mlps: int = 0,
        plain_mean: bool = False,
        volume_network: dict | None = None,
        consistency_iterations: int = 0,
        points_per_chunk: int = 131072,
        **shared: Any,
    ) -> None:
        super().__init__(encoder, grid, volume_network=volume_network, **shared)
        if separate_view_mlps and encoder is None:
            raise ValueError("separate_view_mlps needs an encoder")
        self.fourier, self.separate_view_mlps, self.plain_mean = fourier, separate_view_mlps, plain_mean
        self.consistency_iterations, self.points_per_chunk = consistency_iterations, points_per_chunk
        image_features = 0 if encoder is None else int(encoder.out_channels)
        self.view_mlps = nn.ModuleList(
            PointMLP(fourier.out_channels + image_features, **view_mlp) for _ in range(max(1, separate_view_mlps))
        )
        volume_features = 0
        if volume_network is not None:
            self.volume_network = self._make_volume_network(volume_network)
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
        image, views, view_mask = self._check(image, views, view_mask)
        if self.separate_view_mlps and image.shape[1] != self.separate_view_mlps:
            raise ValueError(
                f"this network has one f_rho for each of {self.separate_view_mlps} views, got {image.shape[1]} views"
            )
        features = self._encode(image, views)
        context = self.coarse_volume(image, features, views, view_mask, priors)
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
            pred = self.make_consistent(pred, image, views, view_mask, context, self.consistency_iterations)
        return pred

    def _at_points(
        self,
        features: Tensor | None,
        views: Tensor,
        view_mask: Tensor | None,
        context: CoarseVolume | None,
        points: Tensor,
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
        self,
        features: Tensor | None,
        views: Tensor,
        view_mask: Tensor | None,
        context: CoarseVolume | None,
        points: Tensor,
    ) -> Tensor:
        encoded = self.fourier(points / self.coordinate_half_side_mm)
        batch = len(views)
        with mixed_precision(self.precision, points.device):
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
        values, seen = sample_features(
            features, views, points.expand(batch, -1, -1), self._detector_shape(features, views)
        )
        exists = torch.ones_like(seen) if view_mask is None else view_mask[..., None].expand_as(seen)
        weight = exists if self.plain_mean else exists & seen
        total: Tensor | float = 0.0
        for k in range(count):
            mlp = self.view_mlps[k if self.separate_view_mlps else 0]
            joint = torch.cat([values[:, k].transpose(1, 2), encoded.expand(batch, -1, -1)], -1)
            total = total + mlp(joint) * weight[:, k, :, None]
        return total / weight.sum(1).clamp(min=1)[..., None]

    def _detector_shape(self, features: Tensor, views: Tensor) -> tuple[int, int]:
        stride = getattr(self.encoder, "output_stride", 1) * averaging_factor(self.feature_spacing_mm, views)
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
