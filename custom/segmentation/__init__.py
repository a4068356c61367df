"""Segmentation of organs: label maps, weak labels from HU, losses, and agreement."""

from custom.segmentation.classes import CLASSES, UNKNOWN, class_masks, class_rules, known_classes, pack, unpack
from custom.segmentation.dice import (
    ClassDice,
    SegmentationWriter,
    SegmenterDice,
    SegmenterDiceWriter,
    class_dice,
    compare_classes,
    dice_metric,
)
from custom.segmentation.label_transforms import (
    ClassMasksd,
    JitterHUd,
    LabelledVolumes,
    PlaceClassesd,
    UnpackClassesd,
    WriteClassNamesd,
)
from custom.segmentation.labelled_cases import check_taught, hold_out, load_labelled_cases
from custom.segmentation.scan_quality import RandScanQualityd
from custom.segmentation.weak_labels import WEAK_CLASSES, weak_masks

__all__ = [
    "CLASSES",
    "UNKNOWN",
    "WEAK_CLASSES",
    "ClassDice",
    "ClassMasksd",
    "JitterHUd",
    "LabelledVolumes",
    "PlaceClassesd",
    "RandScanQualityd",
    "SegmentationWriter",
    "SegmenterDice",
    "SegmenterDiceWriter",
    "UnpackClassesd",
    "WriteClassNamesd",
    "check_taught",
    "class_dice",
    "class_masks",
    "class_rules",
    "compare_classes",
    "dice_metric",
    "hold_out",
    "known_classes",
    "load_labelled_cases",
    "pack",
    "unpack",
    "weak_masks",
]
