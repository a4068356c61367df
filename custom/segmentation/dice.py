"""Dice and surface distance by MONAI, of segmentations and, through a segmenter, of CTs."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import compute_average_surface_distance, compute_dice
from monai.metrics.metric import CumulativeIterationMetric
from monai.metrics.utils import do_metric_reduction
from monai.utils import MetricReduction
from torch import Tensor

from custom.core.checkpoints import load_checkpoint
from custom.metrics import HU_WINDOW
from custom.metrics.handlers import CaseMetricsWriter, case_entries
from custom.networks.segmentation_unet import SegmentationUNet, load_segmenter
from custom.segmentation.classes import UNKNOWN

__all__ = [
    "ClassDice",
    "SegmentationWriter",
    "SegmenterDice",
    "SegmenterDiceWriter",
    "class_dice",
    "compare_classes",
    "dice_metric",
]

logger = logging.getLogger(__name__)


def _known_pair(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Prediction and truth as 0 and 1, both 0 where the truth is not known."""
    known = label != UNKNOWN
    return ((logits > 0) & known).float(), (label == 1).float()


def class_dice(logits: Tensor, label: Tensor) -> Tensor:
    """Dice coefficient (B, C) of every class; NaN where the truth has no voxel of it, or is not known.

    Args:
        logits: (B, C, X, Y, Z); above 0 is inside.
        label: uint8 of that shape: 0, 1, or 255 where it is not known.
    """
    if logits.shape != label.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and label {tuple(label.shape)} differ in shape")
    return compute_dice(*_known_pair(logits, label), include_background=True, ignore_empty=True)


def compare_classes(
    logits: Tensor, label: Tensor, classes: Sequence[str], spacing_mm: Sequence[float]
) -> dict[str, float]:
    """One case: Dice and average surface distance, both ways, of every class.

    Args:
        logits: (C, X, Y, Z).
        label: uint8 of that shape: 0, 1, or 255.
        classes: their names.
        spacing_mm: voxel size.

    Returns:
        "dice_<class>", "surface_mm_<class>" and "dice", the mean over the classes that the truth has. NaN where there
        is nothing to compare; a class that was not found at all has Dice 0 and no distance.
    """
    pred, truth = _known_pair(logits[None].cpu(), label[None].cpu())
    dice = class_dice(logits[None].cpu(), label[None].cpu())[0]
    values = {f"dice_{name}": float(value) for name, value in zip(classes, dice, strict=True)}
    for number, name in enumerate(classes):
        one = slice(number, number + 1)
        distance = math.nan
        if truth[0, one].any() and pred[0, one].any():
            spacing = [float(s) for s in spacing_mm]
            distance = float(
                compute_average_surface_distance(
                    pred[:, one], truth[:, one], include_background=True, symmetric=True, spacing=spacing
                )
            )
        values[f"surface_mm_{name}"] = distance
    return {"dice": float(dice.nanmean()), **values}


class ClassDice(CumulativeIterationMetric):
    """Mean Dice for MONAI's engines: over the cases for each class, then over the classes, what is unknown left out."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> Tensor:
        if y is None:
            raise ValueError("Dice compares with a label; got none")
        if not torch.isfinite(y_pred).all():
            raise ValueError("the segmentation holds NaN or infinity: the network has diverged")
        return class_dice(y_pred, y)

    def aggregate(self) -> Tensor:
        """Of all cases since the last reset."""
        data = self.get_buffer()
        if not isinstance(data, Tensor):
            raise ValueError("no case was measured before aggregate()")
        by_class, counts = do_metric_reduction(data, MetricReduction.MEAN_BATCH)
        return by_class[counts > 0].mean()


def dice_metric() -> dict[str, IgniteMetricHandler]:
    """`ClassDice` as the ``key_val_metric`` of an evaluator takes it."""
    return {"dice": IgniteMetricHandler(metric_fn=ClassDice(), output_transform=from_engine(["pred", "label"]))}


class SegmentationWriter(CaseMetricsWriter):
    """Dice and surface distance of every case of a segmenter's evaluation: ``segmentation.csv`` and ``.json``.

    The column "weak_classes" names the classes whose truth came from the HU.

    Args:
        output_dir: folder of the files.
        classes: names of the channels.
        spacing_mm: voxel size.
        stem: name of the files.
        context: what goes into the JSON beside the numbers.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        classes: Sequence[str],
        spacing_mm: Sequence[float],
        stem: str = "segmentation",
        context: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(output_dir, stem=stem, context={"classes": list(classes), **(context or {})})
        self.classes, self.spacing_mm = list(classes), tuple(spacing_mm)

    def _measure(self, engine: Engine) -> None:
        first = len(self.rows)
        super()._measure(engine)
        rows = self.rows[first:]
        for row, weak in zip(rows, case_entries(engine.state.batch, "weak_classes", len(rows)), strict=True):
            if weak is not None:
                row["weak_classes"] = weak

    def _compare(self, pred: Tensor, label: Tensor) -> dict[str, float]:
        return compare_classes(pred, label, self.classes, self.spacing_mm)


class SegmenterDice:
    """The papers' structural metric: Dice between the segmentations of a reconstruction and of the truth.

    Args:
        segmenter: model.pt of `seg_guidance`, or such a network.
        device: of the network; None: that of the volumes.

    Attributes:
        classes: of the segmenter.
        hash: SHA-256 of its checkpoint; None for a network.

    Raises:
        FileNotFoundError, ValueError: as `load_segmenter`.
    """

    def __init__(
        self, segmenter: str | os.PathLike[str] | SegmentationUNet, device: str | torch.device | None = None
    ) -> None:
        self.hash: str | None = None
        if not isinstance(segmenter, SegmentationUNet):
            self.hash = load_checkpoint(segmenter).hash
            segmenter = load_segmenter(segmenter)
        self.segmenter, self.device, self.classes = segmenter.eval(), device, segmenter.classes

    @torch.no_grad()
    def __call__(
        self,
        pred: Tensor,
        truth: Tensor,
        spacing_mm: Sequence[float],
        hu_window: Sequence[float] = HU_WINDOW,
    ) -> dict[str, float]:
        """Dice by class and "dice", their mean; NaN for a class that the segmenter does not find in the truth.

        Args:
            pred: (1, X, Y, Z), `hu_window` as [-1, 1].
            truth: the same.
            spacing_mm: voxel size; finer voxels than the segmenter's are averaged.
            hu_window: CT values of -1 and 1.
        """
        volumes = torch.stack([pred, truth]).float().as_subclass(Tensor)
        device = volumes.device if self.device is None else torch.device(self.device)
        volumes = self.segmenter.to(device).at_its_resolution(volumes.to(device).clamp(-1, 1), spacing_mm, hu_window)
        ours, theirs = (self.segmenter(v[None]) > 0 for v in volumes)
        dice = compute_dice(ours.float(), theirs.float(), include_background=True, ignore_empty=True)[0]
        values = {f"dice_{name}": float(value) for name, value in zip(self.classes, dice, strict=True)}
        return {"dice": float(dice.nanmean()), **values}


class SegmenterDiceWriter(CaseMetricsWriter):
    """`SegmenterDice` of every case of a reconstruction's evaluation: ``dice.csv`` and ``dice.json``.

    The JSON says whether the judge has guided the training of the evaluated model: then its Dice is what was trained
    for, and a segmenter trained apart should judge too.

    Args:
        output_dir: folder of the files.
        checkpoint: model.pt of the `seg_guidance` that judges.
        spacing_mm: voxel size of the reconstructions.
        hu_window: HU at -1 and at 1 of the network's range.
        model_file: model.pt of the evaluated network.
        stem: name of the files.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        checkpoint: str | os.PathLike[str],
        spacing_mm: Sequence[float],
        hu_window: Sequence[float] = HU_WINDOW,
        model_file: str | os.PathLike[str] | None = None,
        stem: str = "dice",
    ) -> None:
        self.judge = SegmenterDice(checkpoint)
        guide = None
        if model_file is not None:
            guide = (load_checkpoint(model_file).meta.get("guidance") or {}).get("segmenter_sha256")
        same = guide is not None and guide == self.judge.hash
        if same:
            logger.warning("%s has guided the training of %s: let another segmenter judge too", checkpoint, model_file)
        context = {"judge_sha256": self.judge.hash, "guide_sha256": guide, "judge_is_guide": same}
        super().__init__(output_dir, hu_window, stem=stem, context={**context, "classes": list(self.judge.classes)})
        self.spacing_mm = tuple(spacing_mm)

    def _compare(self, pred: Tensor, label: Tensor) -> dict[str, float]:
        return self.judge(pred, label, self.spacing_mm, self.hu_window)
