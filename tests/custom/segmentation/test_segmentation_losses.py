"""Losses with segmentations: values by hand, what is not known, gradients through the frozen segmenter."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from custom.core.checkpoints import save_checkpoint
from custom.geometry import VolumeGrid
from custom.networks import FeatureUNet, SegmentationUNet
from custom.segmentation import UNKNOWN
from custom.segmentation.segmentation_losses import (
    GuidedLoss,
    MaskedDiceCELoss,
    reconstruction_loss,
    seg_guidance_record,
)


class Threshold(SegmentationUNet):
    """A segmenter whose logit is the CT value: what it should say can be computed by hand."""

    def __init__(self, spacing_mm: float = 5.0) -> None:
        nn.Module.__init__(self)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.classes, self.hu_window = ("dense",), (-1000.0, 1000.0)
        self.grid = VolumeGrid((8, 8, 8), (spacing_mm,) * 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.scale * image


# --- the segmenter's own loss ---


def test_dice_and_entropy_by_hand() -> None:
    logits = torch.zeros(1, 1, 2, 2, 2)
    label = torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8)
    label[..., 0] = 1
    dice = 1 - (2 * 4 * 0.5 + 1) / (8 * 0.5 + 4 + 1)
    assert MaskedDiceCELoss(1.0, 0.0)(logits, label).item() == pytest.approx(dice)
    assert MaskedDiceCELoss(0.0, 2.0)(logits, label).item() == pytest.approx(2 * math.log(2))


def test_what_is_not_known_teaches_nothing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    label = torch.randint(0, 2, (2, 3, 4, 4, 4), dtype=torch.uint8)
    label[0, 1] = UNKNOWN  # a class of which the first case knows nothing
    label[1, 2, :2] = UNKNOWN  # half a class
    loss = MaskedDiceCELoss()
    loss(logits, label).backward()
    assert logits.grad is not None
    assert (logits.grad[label == UNKNOWN] == 0).all() and (logits.grad[label != UNKNOWN] != 0).all()
    with torch.no_grad():
        changed = torch.where(label == UNKNOWN, logits + 100, logits)
        assert loss(changed, label).item() == pytest.approx(loss(logits, label).item(), rel=1e-6)
    alone = MaskedDiceCELoss()(logits[:, :1], label[:, :1])
    with_unknown = MaskedDiceCELoss()(logits[:, :2], torch.cat([label[:, :1], label[:, :1] * 0 + UNKNOWN], 1))
    assert with_unknown.item() == pytest.approx(alone.item()), "an unknown class does not dilute the known one"
    nothing = torch.full_like(label, UNKNOWN)
    assert loss(logits, nothing).item() == 0


def test_bad_losses() -> None:
    with pytest.raises(ValueError, match="nor both 0"):
        MaskedDiceCELoss(0, 0)
    with pytest.raises(ValueError, match="differ in shape"):
        MaskedDiceCELoss()(torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8))


# --- guidance ---


def volumes() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(2, 1, 8, 8, 8) - 0.5, torch.rand(2, 1, 8, 8, 8) - 0.5


def test_guidance_by_hand() -> None:
    pred, label = volumes()
    loss = GuidedLoss(Threshold(), 0.3, (5.0, 5.0, 5.0))
    p, t = torch.sigmoid(10 * pred).flatten(1), torch.sigmoid(10 * label).flatten(1)
    dice = (1 - (2 * (p * t).sum(1) + 8) / ((p * p).sum(1) + (t * t).sum(1) + 8)).mean()
    mse = (pred - label).square().mean()
    assert loss(pred, label).item() == pytest.approx((mse + 0.3 * dice).item(), rel=1e-5)
    assert loss.terms["dice"].item() == pytest.approx(dice.item(), rel=1e-5)
    assert loss(label, label).item() == pytest.approx(0, abs=1e-6), "lowest where both are equal"


def test_gradients_reach_the_reconstruction_and_not_the_segmenter() -> None:
    pred, label = volumes()
    segmenter = Threshold()
    pred.requires_grad_(True)
    with_guide = torch.autograd.grad(GuidedLoss(segmenter, 1.0, (5.0,) * 3)(pred, label), pred)[0]
    without = torch.autograd.grad(nn.MSELoss()(pred, label), pred)[0]
    assert not torch.allclose(with_guide, without)
    assert segmenter.scale.grad is None and not segmenter.scale.requires_grad
    # A step along the Dice term's gradient alone makes Dice better.
    loss = GuidedLoss(segmenter, 1.0, (5.0,) * 3)
    moved = (pred - 20 * (with_guide - without)).detach()
    loss(pred, label)
    before = loss.terms["dice"]
    loss(moved, label)
    assert loss.terms["dice"] < before


def test_finer_volumes_are_averaged_and_patches_cut() -> None:
    label = torch.rand(1, 1, 24, 24, 24) - 0.5
    seen = []
    segmenter = Threshold()
    segmenter.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    GuidedLoss(segmenter, 1.0, (2.5, 2.5, 2.5))(label, label)
    GuidedLoss(segmenter, 1.0, (2.5, 2.5, 2.5), patch=8)(label, label)
    assert {tuple(shape[2:]) for shape in seen[:2]} == {(12, 12, 12)}
    assert {tuple(shape[2:]) for shape in seen[2:]} == {(8, 8, 8)}
    _, label = volumes()
    assert GuidedLoss(segmenter, 1.0, (5.0,) * 3, patch=8)(label, label).item() == pytest.approx(0, abs=1e-6)


def test_guidance_refuses_points_other_voxels_and_bad_numbers(tmp_path: Path) -> None:
    loss = GuidedLoss(Threshold(), 1.0, (5.0,) * 3)
    with pytest.raises(ValueError, match=r"coarse_stage\.json"):
        loss(torch.zeros(1, 1, 100), torch.zeros(1, 1, 100))
    with pytest.raises(ValueError, match="cannot be averaged"):
        GuidedLoss(Threshold(), 1.0, (4.0,) * 3)(*volumes())
    for weight, patch in ((0.0, None), (-1.0, None), (1.0, 4)):
        with pytest.raises(ValueError, match="positive weight and patches of 8"):
            GuidedLoss(Threshold(), weight, (5.0,) * 3, patch=patch)
    with pytest.raises(ValueError, match="not values at random points"):
        reconstruction_loss(str(tmp_path / "none.pt"), 1.0, (5.0,) * 3, sampling="random")
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such checkpoint"):
        reconstruction_loss(str(tmp_path / "none.pt"), 1.0, (5.0,) * 3)


def test_one_key_switches_guidance_on(tmp_path: Path) -> None:
    assert isinstance(reconstruction_loss(None, 0.1, (5.0,) * 3), nn.MSELoss)
    assert seg_guidance_record(None, 0.1) is None
    network = SegmentationUNet(["heart"], VolumeGrid((16,) * 3, (5.0,) * 3), {"channels": [4, 8]}, precision="fp32")
    path = save_checkpoint(tmp_path / "model.pt", network)
    loss = reconstruction_loss(path, 0.1, (5.0,) * 3)
    assert isinstance(loss, GuidedLoss) and loss.weight == 0.1 and not loss.segmenter.training
    record = seg_guidance_record(path, 0.1)
    assert record is not None and len(record["segmenter_sha256"]) == 64 and record["weight"] == 0.1
    other = save_checkpoint(tmp_path / "other.pt", FeatureUNet(out_channels=4, widths=[4, 4], kernel_size=3))
    with pytest.raises(ValueError, match=r"a checkpoint of custom\.networks\.FeatureUNet, not of seg_guidance"):
        reconstruction_loss(other, 0.1, (5.0,) * 3)
