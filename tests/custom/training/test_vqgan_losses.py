"""Losses of the autoencoder: values by hand, gates, perceptual networks without downloads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from custom.networks.discriminators import DiscriminatorOutput
from custom.networks.perceptual import VGG16_STAGES, GradientPyramid, VGG16Features, perceptual_network
from custom.networks.vqgan import CodedVolume
from custom.training.vqgan_losses import VQGANLoss, axial_slices, feature_distance, hinge_discriminator, hinge_generator

WEIGHTS = {
    "l1_weight": 2.0,
    "l2_weight": 3.0,
    "commitment_weight": 5.0,
    "perceptual_weight": 7.0,
    "adversarial_volume_weight": 11.0,
    "adversarial_slice_weight": 13.0,
    "feature_weight": 17.0,
}


class Judge(nn.Module):
    """Features 2x and logits x + 1, of volumes and of slices."""

    def forward(self, volume: torch.Tensor, slices: torch.Tensor) -> DiscriminatorOutput:
        return DiscriminatorOutput([2 * volume, volume + 1], [2 * slices, slices + 1])


def coded(pred: torch.Tensor) -> CodedVolume:
    return CodedVolume(pred, torch.tensor(0.5), torch.zeros(1), torch.zeros(1, dtype=torch.int64))


def constant(value: float) -> torch.Tensor:
    return torch.full((2, 1, 8, 8, 8), float(value))


# --- the parts ---


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge_discriminator(real, fake) == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3) / 2)
    assert hinge_generator(fake) == pytest.approx(2 / 3)


def test_hinge_has_no_tanh() -> None:
    """MONAI's has: its gradient fades where the judge is sure."""
    logits = torch.tensor([-50.0], requires_grad=True)
    hinge_generator(logits).backward()
    assert logits.grad is not None and float(logits.grad) == -1.0


def test_feature_distance_leaves_the_logits_out_and_does_not_teach_the_judge() -> None:
    real = [torch.zeros(3, requires_grad=True), torch.ones(2), torch.tensor([100.0])]
    fake = [torch.tensor([3.0, 0.0, 0.0], requires_grad=True), torch.ones(2) * 3, torch.tensor([-100.0])]
    distance = feature_distance(real, fake)
    assert distance.item() == pytest.approx((1 + 2) / 2)
    distance.backward()
    assert real[0].grad is None and fake[0].grad is not None


def test_axial_slices_are_planes_of_constant_z_and_the_same_of_all_volumes() -> None:
    x, y, z = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), torch.arange(50.0), indexing="ij")
    volume = torch.stack([x + 10 * y + 100 * z, -x - 10 * y - 100 * z])[:, None]
    first, second = axial_slices([volume, volume + 7], 5)
    assert first.shape == (10, 1, 3, 4)
    torch.testing.assert_close(second, first + 7)
    heights = (first[:, 0] - first[:, 0, :1, :1]).abs()
    torch.testing.assert_close(heights, (x + 10 * y)[:, :, 0].expand(10, 3, 4))
    assert (first[:5] >= 0).all() and (first[5:] <= 0).all(), "each case gives its own slices"
    assert len(torch.unique(first[:, 0, 0, 0])) > 2


# --- the whole ---


def test_weighted_sum_by_hand() -> None:
    loss = VQGANLoss(**WEIGHTS, disc_start_step=10, disc_ramp_steps=4, slices_per_volume=2)
    pred, label = constant(0.25), constant(-0.25)
    before = loss.generator(coded(pred), label, Judge(), 10)
    assert set(before) == {"loss", "l1", "l2", "commitment", "perceptual"}
    plain = 2 * 0.5 + 3 * 0.25 + 5 * 0.5 + 7 * 0.0  # the gradients of constants are the same
    assert before["loss"] == pytest.approx(plain)
    after = loss.generator(coded(pred), label, Judge(), 12)  # half way up the ramp
    assert after["adversarial_volume"] == pytest.approx(-1.25) and after["features"] == pytest.approx(2.0)
    assert after["loss"] == pytest.approx(plain + 0.5 * (11 * -1.25 + 13 * -1.25 + 17 * 2.0))


def test_the_ramp() -> None:
    loss = VQGANLoss(disc_start_step=100, disc_ramp_steps=10)
    assert [loss.ramp(step) for step in (1, 100, 101, 105, 110, 5000)] == pytest.approx([0, 0, 0.1, 0.5, 1, 1])
    assert VQGANLoss(disc_start_step=0, disc_ramp_steps=0).ramp(1) == 1
    off = VQGANLoss(adversarial_volume_weight=0, adversarial_slice_weight=0, feature_weight=0, disc_start_step=0)
    assert not off.adversarial(10_000) and off.ramp(10_000) == 0


def test_discriminators_learn_from_detached_reconstructions() -> None:
    pred = constant(0.5).requires_grad_()
    terms = VQGANLoss().discriminator(pred, constant(-0.5), Judge())
    # Logits 0.5 for the truth and 1.5 for the reconstruction, of volumes and of slices.
    assert terms["discriminator_volume"] == pytest.approx((0.5 + 2.5) / 2)
    assert terms["discriminator"] == pytest.approx(3.0)
    assert not terms["discriminator"].requires_grad


def test_one_discriminator_is_enough() -> None:
    class Slices(nn.Module):
        def forward(self, volume: torch.Tensor, slices: torch.Tensor) -> DiscriminatorOutput:
            return DiscriminatorOutput([], [slices, slices])

    loss = VQGANLoss(disc_start_step=0, disc_ramp_steps=0)
    assert "adversarial_volume" not in loss.generator(coded(constant(0.5)), constant(0), Slices(), 1)
    assert "discriminator_volume" not in loss.discriminator(constant(0.5), constant(0), Slices())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"l1_weight": -1.0}, "must not be negative"),
        ({"disc_start_step": -1}, "must not be negative"),
        ({"slices_per_volume": 0}, "at least 1"),
        ({"perceptual": None}, "perceptual_weight to 0"),
        ({"perceptual_weight": 0.0}, "perceptual_weight to 0"),
        ({"perceptual": "lpips"}, "'lpips'"),
    ],
)
def test_bad_arguments(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQGANLoss(**changes)


# --- perceptual networks ---


def test_pyramid_sees_edges_at_several_scales_and_no_offset() -> None:
    pyramid = GradientPyramid(scales=2)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8).clone()
    assert pyramid(ramp, ramp + 3) == pytest.approx(0.0)
    # Gradient 1 along one of two axes at the first scale, 2 at the second, where voxels are twice as large.
    assert pyramid(ramp, torch.zeros(1, 1, 8, 8)) == pytest.approx((0.5 + 1.0) / 2)
    blurred = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 10, 10), 3, 1)
    assert pyramid(blurred, torch.rand(1, 1, 8, 8)) > 0
    with pytest.raises(ValueError, match="too small for 5 scales"):
        GradientPyramid(5)(ramp, ramp)


def test_switched_off_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert perceptual_network(None) is None
    assert "no perceptual loss" in caplog.text
    terms = VQGANLoss(perceptual=None, perceptual_weight=0).generator(coded(constant(0)), constant(1), None, 1)
    assert "perceptual" not in terms


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision's, with random weights; the classifier, which is not needed, shortened."""
    generator = torch.Generator().manual_seed(0)
    state, position, before = {"classifier.6.bias": torch.zeros(1000)}, 0, 3
    for widths in VGG16_STAGES:
        for width in widths:
            weight = torch.randn(width, before, 3, 3, generator=generator) / (4.5 * before) ** 0.5
            state |= {f"features.{position}.weight": weight, f"features.{position}.bias": torch.zeros(width)}
            before, position = width, position + 2
        position += 1
    path = tmp_path_factory.mktemp("vgg") / "vgg16-397923af.pth"
    torch.save(state, path)
    return path


def test_vgg16_reads_torchvisions_names(vgg_file: Path) -> None:
    network = VGG16Features(vgg_file)
    # The published number of VGG16's convolutional weights; its last convolution is features.28.
    assert sum(p.numel() for p in network.parameters()) == 14_714_688
    state = torch.load(vgg_file, weights_only=True)
    torch.testing.assert_close(network.stages[4][5].weight.data, state["features.28.weight"])
    assert not any(p.requires_grad for p in network.parameters())


def test_vgg16_in_the_old_format_is_refused(vgg_file: Path, tmp_path: Path) -> None:
    """Its pickle may reserve what it likes; torchvision's own file is of it, and the error says what to do."""
    old = tmp_path / "vgg16-397923af.pth"
    torch.save(torch.load(vgg_file, weights_only=True), old, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"397923af.pth: .*zip format.*torch.save\(torchvision.models.vgg16"):
        VGG16Features(old)


def test_vgg16_compares_slices(vgg_file: Path) -> None:
    network = VGG16Features(vgg_file)
    truth = torch.rand(1, 1, 16, 16) * 2 - 1
    pred = (truth + 0.3 * torch.randn(1, 1, 16, 16)).requires_grad_()
    assert network(truth, truth) == pytest.approx(0.0, abs=1e-6)
    near, far = network(truth + 0.01 * torch.randn(1, 1, 16, 16), truth), network(pred, truth)
    assert 0 < near < far
    far.backward()
    assert pred.grad is not None and float(pred.grad.abs().max()) > 0


@pytest.mark.parametrize("name", [None, "nowhere.pth"])
def test_vgg16_says_which_file_it_needs(name: str | None) -> None:
    with pytest.raises(FileNotFoundError, match=r"vgg16-397923af\.pth.*torchvision.*'pyramid'"):
        perceptual_network("vgg16", name)


def test_vgg16_refuses_other_files(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: not the weights of VGG16"):
        VGG16Features(tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pth: not a file of weights"):
        VGG16Features(tmp_path / "text.pth")
