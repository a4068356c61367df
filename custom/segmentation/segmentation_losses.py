"""Losses of the segmenter that is trained, and of a reconstruction that a frozen segmenter guides."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from custom.core.checkpoints import load_checkpoint
from custom.networks.segmentation_unet import SegmentationUNet, load_segmenter
from custom.segmentation.classes import UNKNOWN

__all__ = ["GuidedLoss", "MaskedDiceCELoss", "reconstruction_loss", "seg_guidance_record"]

logger = logging.getLogger(__name__)

_NEEDS_VOLUMES = (
    "guidance by a segmenter needs volumes, not values at random points: train the coarse stage "
    "(coarse_stage.json), or set sampling to 'region', 'patch' or 'grid'"
)


class MaskedDiceCELoss(nn.Module):
    """Soft Dice and cross-entropy of overlapping classes, over what is known.

    A case that knows some of the classes says nothing about the others: voxels marked as not known are left out, and a
    class that is known nowhere in a case does not count for it.

    Args:
        dice_weight: of MONAI's `DiceLoss`, averaged over the classes known in each case.
        cross_entropy_weight: of the binary cross-entropy, averaged over the known voxels of each class.
        smooth: voxels added to numerator and denominator of Dice, so that a class of few voxels stays calm.

    Raises:
        ValueError: for negative weights, or both zero.
    """

    def __init__(self, dice_weight: float = 1.0, cross_entropy_weight: float = 1.0, smooth: float = 1.0) -> None:
        super().__init__()
        if min(dice_weight, cross_entropy_weight) < 0 or dice_weight + cross_entropy_weight == 0 or smooth <= 0:
            raise ValueError(
                f"dice_weight and cross_entropy_weight must not be negative, nor both 0, and smooth positive, got "
                f"{dice_weight}, {cross_entropy_weight}, {smooth}"
            )
        self.dice_weight, self.cross_entropy_weight = dice_weight, cross_entropy_weight
        self.dice = DiceLoss(reduction="none", smooth_nr=smooth, smooth_dr=smooth)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """A number.

        Args:
            logits: (B, C, X, Y, Z).
            label: uint8 of that shape: 0, 1, or 255 where it is not known.
        """
        if logits.shape != label.shape:
            raise ValueError(f"logits {tuple(logits.shape)} and label {tuple(label.shape)} differ in shape")
        known = (label != UNKNOWN).float()
        truth = (label == 1).float()
        counts = known.flatten(2).sum(2)
        taught = (counts > 0).float()
        dice = self.dice(torch.sigmoid(logits) * known, truth).flatten(2).mean(2)
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * known
        entropy = entropy.flatten(2).sum(2) / counts.clamp(min=1)
        each = self.dice_weight * dice + self.cross_entropy_weight * entropy
        return (each * taught).sum() / taught.sum().clamp(min=1)


class GuidedLoss(nn.Module):
    """MSE + weight * DiceLoss(S(prediction), S(truth)) with S frozen (INRR3CT, section 2, segmentation guidance).

    The paper's formula prints S(prediction) twice; its text says what is meant. Dice is that of probabilities, with
    squared denominators (Milletari et al. 2016): it is lowest where both are equal, which the plain one is not.

    Args:
        segmenter: S.
        weight: lambda. The paper does not state it.
        spacing_mm: voxel size of prediction and truth; averaged to the segmenter's where it is finer.
        hu_window: CT values of -1 and 1 in both.
        patch: side of a random cube, in voxels of the segmenter, that the Dice term sees; None: the whole volume.

    Attributes:
        terms: "mse" and "dice" of the last call, before they are weighted.

    Raises:
        ValueError: for a weight that is not positive or a patch below 8; while running, for values at single points,
            which have no anatomy, or voxels that do not fit the segmenter's.
    """

    def __init__(
        self,
        segmenter: SegmentationUNet,
        weight: float,
        spacing_mm: Sequence[float],
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        patch: int | None = None,
    ) -> None:
        super().__init__()
        if not weight > 0 or (patch is not None and patch < 8):
            raise ValueError(f"guidance needs a positive weight and patches of 8 voxels or more, got {weight}, {patch}")
        self.segmenter = segmenter.requires_grad_(False).eval()
        self.weight, self.spacing_mm, self.patch = weight, tuple(spacing_mm), patch
        self.hu_window = tuple(hu_window)
        self.dice = DiceLoss(squared_pred=True, smooth_nr=8.0, smooth_dr=8.0)
        self.terms: dict[str, Tensor] = {}

    def forward(self, pred: Tensor, label: Tensor) -> Tensor:
        """A number from two (B, 1, X, Y, Z) in [-1, 1]."""
        if pred.ndim != 5:
            raise ValueError(f"{_NEEDS_VOLUMES}; got values of shape {tuple(pred.shape)}")
        mse = F.mse_loss(pred, label)
        self.segmenter.to(pred.device)  # nothing to do but at the first step
        both = self.segmenter.at_its_resolution(torch.cat([pred.clamp(-1, 1), label]), self.spacing_mm, self.hu_window)
        both = self._cut(both)
        ours, theirs = both.chunk(2)
        with torch.no_grad():
            truth = torch.sigmoid(self.segmenter(theirs))
        dice = self.dice(torch.sigmoid(self.segmenter(ours)), truth)
        self.terms = {"mse": mse.detach(), "dice": dice.detach()}
        return mse + self.weight * dice

    def _cut(self, volumes: Tensor) -> Tensor:
        if self.patch is None:
            return volumes
        for axis in (2, 3, 4):
            side = min(self.patch, volumes.shape[axis])
            first = int(torch.randint(volumes.shape[axis] - side + 1, (1,)))
            volumes = volumes.narrow(axis, first, side)
        return volumes


def reconstruction_loss(
    seg_guidance_checkpoint: str | os.PathLike[str] | None,
    weight: float,
    spacing_mm: Sequence[float],
    hu_window: Sequence[float] = (-1000.0, 1000.0),
    patch: int | None = None,
    precision: str = "auto",
    sampling: str = "grid",
) -> nn.Module:
    """What a reconstruction minimises: the mean squared error, with or without guidance by a segmenter.

    Args:
        seg_guidance_checkpoint: model.pt of `seg_guidance`; None: the mean squared error alone.
        weight, spacing_mm, hu_window, patch: of `GuidedLoss`.
        precision: of the segmenter.
        sampling: of `SimulatedRadiographs`; "random" points have no anatomy.

    Raises:
        FileNotFoundError, ValueError: as `load_segmenter` and `GuidedLoss`, or for guidance at random points.
    """
    if seg_guidance_checkpoint is None:
        return nn.MSELoss()
    if sampling == "random":
        raise ValueError(_NEEDS_VOLUMES)
    segmenter = load_segmenter(seg_guidance_checkpoint, precision)
    logger.info("guided by %s: %s, weight %g", seg_guidance_checkpoint, ", ".join(segmenter.classes), weight)
    return GuidedLoss(segmenter, weight, spacing_mm, hu_window, patch)


def seg_guidance_record(seg_guidance_checkpoint: str | os.PathLike[str] | None, weight: float) -> dict[str, Any] | None:
    """What a reconstruction's checkpoint says of its guide: hash and weight; None where it had none.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`.
    """
    if seg_guidance_checkpoint is None:
        return None
    return {"segmenter_sha256": load_checkpoint(seg_guidance_checkpoint).hash, "weight": weight}
