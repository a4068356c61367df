"""A latent diffusion system of a few thousand weights, for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from custom.geometry import Geometry, VolumeGrid
from custom.networks import VQGAN, FeatureUNet, LatentDenoiser

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
