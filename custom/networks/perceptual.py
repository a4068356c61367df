"""Perceptual networks, frozen: the features by which two axial slices are compared."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.core.tensor_files import load_tensors

__all__ = ["GradientPyramid", "VGG16Features", "perceptual_network"]

logger = logging.getLogger(__name__)

#: Channels of VGG16's convolutions by stage; each stage but the first begins with a 2 x 2 max pooling.
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG16_FILE = "vgg16-397923af.pth"


class GradientPyramid(nn.Module):
    """Mean absolute difference of the slices' gradients, at the voxels' resolution and at coarser ones.

    Edges of all sizes weigh the same, where a loss on voxels sees mostly the large areas: lung vessels, ribs and
    fissures keep their contours. It needs no weights, hence no download, and costs next to nothing. What it does not
    know, and VGG16 does a little, is texture: noise that is as strong but elsewhere counts as an error.

    Args:
        scales: 1 is the voxels' resolution; each further one averages 2 x 2 voxels more.
    """

    def __init__(self, scales: int = 3) -> None:
        super().__init__()
        if scales < 1:
            raise ValueError(f"scales must be at least 1, got {scales}")
        self.scales = scales

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """A number from two (N, 1, X, Y) in [-1, 1]."""
        difference, total = pred.float() - target.float(), pred.new_zeros((), dtype=torch.float32)
        for scale in range(self.scales):
            if scale:
                difference = F.avg_pool2d(difference, 2)
            if min(difference.shape[2:]) < 2:
                raise ValueError(f"slices of {tuple(pred.shape[2:])} are too small for {self.scales} scales")
            total = total + (difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()) / 2
        return total / self.scales


class VGG16Features(nn.Module):
    """Distance of the slices' features in VGG16 trained on ImageNet, as in the paper.

    Features after the last ReLU of each of the five stages are divided by their length over the channels; the
    squared differences are averaged over pixels and stages. These are LPIPS' features (Zhang et al. 2018, eq. 1)
    without its learnt weights of the channels. torchvision is not needed, only its file of weights.

    Args:
        weights_file: torchvision's weights, saved by a torch from 1.6 on (`custom.core.tensor_files.load_tensors`).

    Raises:
        FileNotFoundError, ValueError: saying which file is needed.

    Source: Simonyan and Zisserman 2015, configuration D; DIFR3CT names VGG16 and no layers.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights_file: str | os.PathLike[str] | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        layers: list[nn.Module] = []
        names, before, position = {}, 3, 0
        for stage, widths in enumerate(VGG16_STAGES):
            layers = [nn.MaxPool2d(2)] if stage else []
            position += bool(stage)
            for width in widths:
                names[f"stages.{stage}.{len(layers)}"] = f"features.{position}"
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before, position = width, position + 2
            self.stages.append(nn.Sequential(*layers))
        state = _read_vgg16(weights_file)
        try:
            self.load_state_dict({f"{o}.{p}": state[f"{t}.{p}"] for o, t in names.items() for p in ("weight", "bias")})
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{weights_file}: not the weights of VGG16 ({VGG16_FILE}): {error}") from error
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """A number from two (N, 1, X, Y) in [-1, 1], X and Y at least 16."""
        x = ((torch.cat([pred, target]).float() + 1) / 2 - self.mean) / self.deviation
        total = x.new_zeros(())
        for stage in self.stages:
            x = stage(x)
            first, second = F.normalize(x, dim=1, eps=1e-8).chunk(2)
            total = total + (first - second).square().sum(1).mean()
        return total / len(self.stages)


def _read_vgg16(weights_file: str | os.PathLike[str] | None) -> dict[str, Tensor]:
    how = (
        f"perceptual_network 'vgg16' needs the weights of {VGG16_FILE}, which is of torch's old format, in its zip "
        "format: on a computer with internet access, 'pip install torchvision' and "
        "torch.save(torchvision.models.vgg16(weights='IMAGENET1K_V1').state_dict(), 'vgg16.pt'); pass its path as "
        "perceptual_weights_file, or choose perceptual_network 'pyramid', which needs no file"
    )
    if weights_file is None or not Path(weights_file).is_file():
        raise FileNotFoundError(f"{weights_file}: no such file of weights; {how}")
    try:
        return cast(dict[str, Tensor], load_tensors(Path(weights_file)))
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{weights_file}: not a file of weights: {error}; {how}") from error


def perceptual_network(name: str | None, weights_file: str | os.PathLike[str] | None = None) -> nn.Module | None:
    """The network of the perceptual loss.

    Args:
        name: "pyramid" (`GradientPyramid`), "vgg16" (`VGG16Features`), or None: no perceptual loss, which is logged.
        weights_file: for "vgg16".

    Raises:
        ValueError: for another name.
    """
    if name is None:
        logger.info("no perceptual loss (perceptual_network is null)")
        return None
    if name == "pyramid":
        return GradientPyramid()
    if name == "vgg16":
        return VGG16Features(weights_file)
    raise ValueError(f"perceptual_network must be 'pyramid', 'vgg16' or null, got {name!r}")
