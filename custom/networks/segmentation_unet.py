"""`SegmentationUNet`: organs of a CT, as guide of the training of reconstructions and as their judge."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import Tensor, nn

from custom.core.checkpoints import describes_itself, load_checkpoint
from custom.core.hu_window import hu_to_unit, unit_to_hu
from custom.core.precision import check_precision, mixed_precision
from custom.geometry import VolumeGrid

__all__ = ["SegmentationUNet", "load_segmenter"]

#: How far a ratio of voxel sizes may be from a whole number.
_TOLERANCE = 0.02


@describes_itself
class SegmentationUNet(nn.Module):
    """MONAI's 3D U-Net on CTs, with one logit a class: classes may overlap (the spine is bone, and in the body).

    Args:
        classes: names of the channels of the output.
        grid: the voxels that it was trained on. It takes volumes of other shapes, not of other voxel sizes.
        unet: keywords of `monai.networks.nets.UNet`: channels, and what else it has; strides are 2.
        hu_window: CT values of -1 and 1 in its input.
        precision: of the convolutions, "bf16", "fp32" or "auto" (bf16 where the device is fast at it).

    Raises:
        ValueError: without classes.
    """

    def __init__(
        self,
        classes: Sequence[str],
        grid: VolumeGrid,
        unet: dict[str, Any],
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        precision: str = "auto",
    ) -> None:
        super().__init__()
        check_precision(precision)
        if not classes:
            raise ValueError("a segmenter needs at least one class")
        self.classes, self.grid, self.precision = tuple(classes), grid, precision
        self.hu_window = (float(hu_window[0]), float(hu_window[1]))
        levels = len(unet["channels"]) - 1
        self.divisor = 2**levels
        self.unet = UNet(3, 1, len(classes), **{"strides": (2,) * levels, **unet})

    def forward(self, image: Tensor) -> Tensor:
        """CTs (B, 1, X, Y, Z), `hu_window` as [-1, 1], to logits (B, C, X, Y, Z), float32. Sides that the U-Net cannot
        halve are filled up with air."""
        shape = image.shape[2:]
        missing = [-n % self.divisor for n in shape]
        if any(missing):
            image = F.pad(image, [p for m in missing[::-1] for p in (m // 2, m - m // 2)], value=-1.0)
        with mixed_precision(self.precision, image.device):
            logits = self.unet(image)
        x, y, z = (slice(m // 2, m // 2 + n) for m, n in zip(missing, shape, strict=True))
        return logits[..., x, y, z].float()

    def at_its_resolution(
        self, image: Tensor, spacing_mm: Sequence[float], hu_window: Sequence[float] | None = None
    ) -> Tensor:
        """A volume as this network takes it: finer voxels averaged, another HU window brought to its own. Gradients
        pass.

        Args:
            image: (B, 1, X, Y, Z), `hu_window` as [-1, 1].
            spacing_mm: its voxel size: the network's own, or that over a whole number.
            hu_window: of `image`; None: the network's own.

        Raises:
            ValueError: for voxels that do not fit.
        """
        ratios = [own / float(given) for own, given in zip(self.grid.spacing_mm, spacing_mm, strict=True)]
        factors = [round(r) for r in ratios]
        if any(f < 1 or abs(r - f) > _TOLERANCE * f for f, r in zip(factors, ratios, strict=True)):
            raise ValueError(
                f"the segmenter was trained on voxels of {self.grid.spacing_mm} mm; volumes of {tuple(spacing_mm)} mm "
                "cannot be averaged to them: train one whose voxel size is that, or a whole multiple of it"
            )
        if hu_window is not None and tuple(map(float, hu_window)) != self.hu_window:
            image = hu_to_unit(unit_to_hu(image, hu_window), self.hu_window)
        return F.avg_pool3d(image, factors) if max(factors) > 1 else image


def load_segmenter(checkpoint: str | os.PathLike[str], precision: str = "auto") -> SegmentationUNet:
    """The frozen network of a `seg_guidance` checkpoint, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`, or for a checkpoint of another bundle.
    """
    loaded = load_checkpoint(checkpoint)
    kind = loaded.meta["network_def"].get("_target_")
    if kind != "custom.networks.SegmentationUNet":
        raise ValueError(f"{loaded.path}: a checkpoint of {kind}, not of seg_guidance")
    network: SegmentationUNet = loaded.network(precision=precision)  # type: ignore[assignment]
    return network.requires_grad_(False)
