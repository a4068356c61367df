"""`CoarseToFineReconstructor`: radiographs to a CT in two stages, the whole body at 5 mm, then detail.

The second stage is another 3D U-Net on the fine grid, or on any part of it. It reads the first stage's volume and
features, and features of the radiographs at their full resolution beside what the first stage leaves unexplained of
them (radiograph minus reprojection), read along the rays of every fine voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from custom.core.attenuation import water_attenuation_per_mm
from custom.core.checkpoints import describes_itself
from custom.core.precision import mixed_precision
from custom.fusion import fuse_features
from custom.geometry import VolumeGrid
from custom.networks.population_prior import PopulationPrior, sample_on
from custom.networks.volume_reconstructor import CoarseVolume, VolumeReconstructor
from custom.networks.volume_unet import VolumeUNet, concatenate_channels
from custom.projection import blur_on_detector

__all__ = ["CoarseToFineReconstructor"]

#: What is left unexplained is about so much smaller than the line integrals themselves.
REST_GAIN = 5.0


@describes_itself
class CoarseToFineReconstructor(VolumeReconstructor):
    """Radiographs of any views to a CT volume, coarse to fine.

    Args:
        fine_network: keywords of the fine stage's `VolumeUNet` (without input channels); None: the coarse volume is
            interpolated.
        fine_encoder: network from (N, 2, V, U), radiograph and unexplained rest, to features (N, C, V, U), with
            `in_channels` 2 and `out_channels`.
        consistency_iterations: accelerated SIRT iterations on the result, in evaluation mode and on the whole grid
            only; 0 for none.
        consistency_detail_mm: those iterations correct what varies within about this length on the detector, and
            leave the rest to the networks: scatter and a wrong open beam are smooth, and taken for tissue they cost
            up to 3 dB. None: everything.
        **shared: of `VolumeReconstructor`, which has `encoder`, `grid`, `volume_network` and `coarse_grid`, too.

    Raises:
        ValueError: if options contradict each other.
    """

    def __init__(
        self,
        encoder: Any,
        grid: VolumeGrid,
        volume_network: dict,
        coarse_grid: VolumeGrid,
        fine_encoder: Any = None,
        fine_network: dict | None = None,
        consistency_iterations: int = 0,
        consistency_detail_mm: float | None = 20.0,
        **shared: Any,
    ) -> None:
        super().__init__(encoder, grid, volume_network=volume_network, coarse_grid=coarse_grid, **shared)
        if (fine_network is None) != (fine_encoder is None):
            raise ValueError("fine_network and fine_encoder go together")
        factor = 2 ** len((fine_network or {"widths": ()}).get("widths", (32, 96, 128)))
        if any(n % factor for n in grid.shape):
            raise ValueError(f"grid's shape must be divisible by {factor} for the fine network, got {grid.shape}")
        self.consistency_iterations, self.consistency_detail_mm = consistency_iterations, consistency_detail_mm
        coarse_network = self._make_volume_network(volume_network)
        self.volume_network = coarse_network
        self.fine_encoder = fine_encoder
        self.fine_network: VolumeUNet | None = None
        if fine_network is not None:
            fine_channels = 1 + int(fine_encoder.out_channels) + 1
            self.fine_network = VolumeUNet(fine_channels, coarse_network.out_channels + 3, **fine_network)

    def forward(
        self,
        image: Tensor,
        views: Tensor | None = None,
        view_mask: Tensor | None = None,
        region: VolumeGrid | Sequence[VolumeGrid] | None = None,
        coarse: bool = False,
        priors: Sequence[PopulationPrior] | None = None,
    ) -> Tensor:
        """Reconstruct.

        Args:
            image: line integrals (B, K, V, U).
            views: (B, K, 13) or (K, 13); None for the views given at construction.
            view_mask: bool (B, K), False for padding; None: every view counts.
            region: part of `grid` to reconstruct, of the same voxels; None: all of it. Its shape must be divisible by
                2^(levels of the fine network). Or several parts of one shape, which share the first stage and the
                radiographs' features.
            coarse: give the volume on `coarse_grid` instead, to train that stage alone.
            priors: one for each of the B cases instead of the network's own; see `OutOfFoldPriors`.

        Returns:
            (B, 1, X, Y, Z), `hu_window` as [-1, 1]; of R parts (R B, 1, X, Y, Z), all cases of the first one first.

        Raises:
            ValueError: if image, views and mask do not match.
        """
        image, views, view_mask = self._check(image, views, view_mask)
        frozen = not coarse and self.fine_network is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            volume = self.coarse_volume(image, self._encode(image, views), views, view_mask, priors)
        assert volume is not None and self.coarse_grid is not None
        if coarse:
            return volume[1]
        parts = [self.grid] if region is None else [region] if isinstance(region, VolumeGrid) else region
        consistent = region is None and self.consistency_iterations > 0 and not self.training
        if self.fine_network is None:
            pred = torch.cat([sample_on(part, volume[1], self.coarse_grid) for part in parts])
            if not consistent:
                return pred
        unexplained = self._unexplained(image, views, volume[1])
        if self.fine_network is not None:
            seen = (self._fine_features(image, unexplained), views, view_mask, image.shape[2:])
            pred = torch.cat([self._refined(volume, *seen, part) for part in parts])
        if not consistent:
            return pred
        if self.consistency_detail_mm is not None:
            image = image - blur_on_detector(unexplained, views, self.consistency_detail_mm)
        return self.make_consistent(pred, image, views, view_mask, volume, self.consistency_iterations, momentum=True)

    @torch.no_grad()
    def _unexplained(self, image: Tensor, views: Tensor, coarse: Tensor) -> Tensor:
        """What the coarse volume leaves of the radiographs: line integrals (B, K, V, U)."""
        assert self.coarse_grid is not None
        attenuation = self._to_water(coarse) * water_attenuation_per_mm(self.energy_kev)
        return image.float() - self._projector(self.coarse_grid, image.shape[2:])(attenuation, views)

    def _fine_features(self, image: Tensor, unexplained: Tensor) -> Tensor:
        """(B, K, C, V, U) of radiographs and what the coarse volume leaves of them."""
        pair = torch.stack([image.float(), unexplained * REST_GAIN], 2) * self.radiograph_scale
        with mixed_precision(self.precision, image.device):
            features = self.fine_encoder(pair.flatten(0, 1).to(memory_format=torch.channels_last))
        return features.float().unflatten(0, image.shape[:2])

    def _refined(
        self,
        volume: CoarseVolume,
        features: Tensor,
        views: Tensor,
        view_mask: Tensor | None,
        detector_shape: Sequence[int],
        region: VolumeGrid,
    ) -> Tensor:
        assert self.fine_network is not None and self.coarse_grid is not None
        deep, coarse = volume
        start = sample_on(region, coarse, self.coarse_grid)
        seen = fuse_features(features, views, region, detector_shape, view_mask, with_count=True)
        half = region.resized([n // 2 for n in region.shape])
        coordinates = half.points(coarse.device).movedim(-1, 0) / self.coordinate_half_side_mm
        with mixed_precision(self.precision, coarse.device):
            context = concatenate_channels(
                sample_on(half, deep, self.coarse_grid), coordinates.expand(len(coarse), -1, -1, -1, -1)
            )
            fine = concatenate_channels(start, seen)
            del seen
            _, correction = self.fine_network(fine, context)
        return start + correction.float()
