"""A latent diffusion system of a few thousand weights, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from custom.core.checkpoints import save_checkpoint
from custom.geometry import Geometry, VolumeGrid
from custom.geometry.acquisition_sampler import AcquisitionSampler, PoseError
from custom.networks import VQGAN, FeatureUNet, FourierFeatures, ImplicitReconstructor, LatentDenoiser
from custom.projection import RandRadiograph
from custom.training.prepare_batch import SimulatedRadiographs

GRID = VolumeGrid.cube(16, 320)
UNET = {
    "channels": (8, 16),
    "attention_levels": (False, True),
    "num_res_blocks": 1,
    "num_head_channels": 8,
    "norm_num_groups": 4,
    "use_flash_attention": True,
}


def autoencoder(seed: int = 0) -> VQGAN:
    torch.manual_seed(seed)
    return VQGAN(GRID, encoder_widths=(8, 8), decoder_widths=(8, 8), codes=16, embedding_dim=3, precision="fp32").eval()


def mean_network(path: Path, seed: int, grid: VolumeGrid = GRID) -> Path:
    """A checkpoint of a reconstructor without volume network."""
    torch.manual_seed(seed)
    mlp = {"width": 8, "depth": 1}
    return save_checkpoint(path, ImplicitReconstructor(None, grid, FourierFeatures(count=4), mlp, mlp))


def acquisition(body_grid: VolumeGrid, cube_prob: float = 0.3) -> SimulatedRadiographs:
    """One to three views, with everything that is drawn at random."""
    views = AcquisitionSampler({"1": 1, "2": 1, "3": 1}, cone_prob=0.5, pixel_at_isocenter_mm=20.0)
    errors: dict[str, Any] = {"degradation": RandRadiograph(), "pose_error": PoseError()}
    errors |= {"truncated_prob": 0.8, "smallest_detector_shape": (8, 8), "cube_prob": cube_prob}
    return SimulatedRadiographs(views, GRID, body_grid, (16, 24), sampling="grid", **errors)


def denoiser(**options: object) -> LatentDenoiser:
    """With weights that all matter: MONAI's last layer is zero at first."""
    torch.manual_seed(0)
    options = {"encoder": FeatureUNet(4, (4, 6), 3, initialisation="he"), "precision": "fp32", **options}
    network = LatentDenoiser(grid=VolumeGrid.cube(4, 320), latent_channels=3, unet=UNET, **options)  # type: ignore[arg-type]
    for parameter in network.unet.parameters():
        nn.init.normal_(parameter, std=0.15)
    return network.eval()


def radiographs(count: int = 2) -> tuple[Tensor, Tensor]:
    """Line integrals (1, K, 16, 24) and views (1, K, 13)."""
    geometry = Geometry.from_angles(
        [180 / count * k for k in range(count)], "parallel", grid=GRID, detector_shape=(16, 24)
    )
    return torch.rand(1, count, 16, 24, generator=torch.Generator().manual_seed(1)) * 5, geometry.tensor()[None]
