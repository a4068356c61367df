"""Training of the autoencoder: both optimizers, exact resuming, the guard; its evaluation."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from custom.geometry import VolumeGrid
from custom.metrics.handlers import volume_metrics
from custom.networks import VQGAN, VolumeSliceDiscriminator
from custom.training.codebook_report import CodebookReport, CodebookUse, autoencoder_metrics
from custom.training.collapse_guard import CollapseGuard, DiscriminatorClip, GuardedCheckpoint
from custom.training.training_handlers import GradientClip, WeightAverage
from custom.training.vqgan_losses import VQGANLoss
from custom.training.vqgan_trainer import VolumeBatch, VQGANEvaluator, VQGANTrainer

CASES = 4


def cases() -> list[dict[str, torch.Tensor]]:
    """Smooth volumes in HU, as noise cannot be compressed."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(CASES, 1, 4, 4, 4, generator=generator) * 2000 - 1000
    return [{"source": volume} for volume in F.interpolate(coarse, scale_factor=4, mode="trilinear")]


class Setting:
    """A small training with everything that a bundle's has; one epoch is four steps."""

    def __init__(self, folder: Path, epochs: int, **changes: Any) -> None:
        torch.manual_seed(0)
        grid = VolumeGrid((16, 16, 16), (5.0, 5.0, 5.0))
        self.network = VQGAN(
            grid, encoder_widths=(4, 8), decoder_widths=(4, 8), codes=16, embedding_dim=3, precision="fp32"
        )
        judge = {"channels": 4, "num_layers_d": 2, "norm": ("GROUP", {"num_groups": 2})}
        self.discriminator = VolumeSliceDiscriminator(judge, judge, precision="fp32")
        self.loss = VQGANLoss(disc_start_step=changes.pop("disc_start_step", 3), disc_ramp_steps=4)
        self.optimizer = torch.optim.Adam(self.network.parameters(), changes.pop("learning_rate", 1e-3))
        self.disc_optimizer = torch.optim.Adam(self.discriminator.parameters(), 1e-3)
        self.average = WeightAverage(self.network, 0.1)
        self.guard = changes.pop("guard", CollapseGuard())
        self.objects = {
            "network": self.network,
            "discriminator": self.discriminator,
            "ema": self.average.network,
            "optimizer": self.optimizer,
            "disc_optimizer": self.disc_optimizer,
            "guard": self.guard,
        }
        self.checkpoint = GuardedCheckpoint(guard=self.guard, path=folder / "last.pt", objects=self.objects)
        self.trainer = VQGANTrainer(
            device="cpu",
            max_epochs=epochs,
            train_data_loader=DataLoader(Dataset(cases()), batch_size=1),
            network=self.network,
            optimizer=self.optimizer,
            discriminator=self.discriminator,
            disc_optimizer=self.disc_optimizer,
            loss_function=self.loss,
            guard=self.guard,
            prepare_batch=changes.pop("prepare_batch", VolumeBatch()),
            train_handlers=[
                GradientClip(self.network),
                DiscriminatorClip(self.discriminator),
                self.average,
                self.checkpoint,
            ],
            **changes,
        )
        # The draws of an epoch depend on its number alone, as after a resume.
        self.trainer.add_event_handler(Events.EPOCH_STARTED, lambda e: torch.manual_seed(e.state.epoch))


# --- the trainer ---


def test_it_is_monais_supervised_trainer_and_evaluator() -> None:
    assert issubclass(VQGANTrainer, SupervisedTrainer) and issubclass(VQGANEvaluator, SupervisedEvaluator)


def test_discriminators_wait_for_their_step(tmp_path: Path) -> None:
    setting = Setting(tmp_path, 2, disc_start_step=3)
    first = [p.detach().clone() for p in setting.discriminator.parameters()]
    moved, terms = [], []

    def look(engine: Any) -> None:
        now = list(setting.discriminator.parameters())
        moved.append(not all(torch.equal(a, b) for a, b in zip(first, now, strict=True)))
        terms.append(set(engine.state.output["losses"]))

    setting.trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    setting.trainer.run()
    assert moved == [False] * 3 + [True] * 5
    assert {"l1", "l2", "commitment", "perceptual", "codebook_use", "perplexity"} == terms[2]
    assert {"adversarial_volume", "adversarial_slices", "features", "discriminator"} <= terms[3]
    assert all(p.requires_grad for p in setting.discriminator.parameters())


def test_a_resumed_training_is_the_same_as_an_uninterrupted_one(tmp_path: Path) -> None:
    """Weights, codebook, discriminators, both optimizers, the average and the ramp's step."""
    whole = Setting(tmp_path / "whole", 4, continuous_prob=0.5)
    whole.trainer.run()
    Setting(tmp_path / "parts", 2).trainer.run()
    parts = Setting(tmp_path / "parts", 4)
    steps: list[int] = []
    parts.trainer.add_event_handler(Events.ITERATION_STARTED, lambda e: steps.append(e.state.iteration))
    parts.trainer.run()
    assert steps == list(range(9, 17))
    for name in ("network", "discriminator", "ema"):
        for key, value in whole.objects[name].state_dict().items():
            torch.testing.assert_close(parts.objects[name].state_dict()[key], value, msg=f"{name} {key}")
    assert float(whole.network.quantiser.ready) == 1
    assert parts.guard.state_dict() == pytest.approx(whole.guard.state_dict())


def test_the_error_falls(tmp_path: Path) -> None:
    setting = Setting(tmp_path, 12, disc_start_step=1000, learning_rate=5e-3)
    errors: list[float] = []
    setting.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: errors.append(float(e.state.output["losses"]["l1"]))
    )
    setting.trainer.run()
    assert sum(errors[-4:]) < 0.8 * sum(errors[:4])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_continuous_share(tmp_path: Path, share: float) -> None:
    setting = Setting(tmp_path, 1, continuous_prob=share)
    seen: list[torch.Tensor] = []
    setting.network.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(kwargs["quantise"]), with_kwargs=True
    )
    setting.trainer.run()
    assert torch.cat(seen).float().mean() == 1 - share


def test_options_that_it_does_not_have(tmp_path: Path) -> None:
    for changes, message in (
        ({"amp": True}, "neither amp"),
        ({"accumulation_steps": 2}, "accumulation_steps"),
        ({"continuous_prob": 1.5}, "continuous_prob"),
    ):
        with pytest.raises(ValueError, match=message):
            Setting(tmp_path, 1, **changes)


# --- what it sees ---


def test_patches_are_cut_from_the_volume() -> None:
    x, y, z = torch.meshgrid(*(torch.arange(8.0),) * 3, indexing="ij")
    volume = (x + 10 * y + 100 * z)[None, None]
    batch = VolumeBatch(hu_window=(0.0, 800.0), patch=4, patches_per_volume=6)
    image, label, args, keywords = batch({"source": volume}, "cpu")
    assert image.shape == (6, 1, 4, 4, 4) and torch.equal(image, label) and args == () and keywords == {}
    hu = (image + 1) * 400
    expected = (x + 10 * y + 100 * z)[:4, :4, :4]
    torch.testing.assert_close(hu - hu[:, :, :1, :1, :1], expected.expand(6, 1, 4, 4, 4), atol=1e-2, rtol=0)
    assert len(torch.unique(hu[:, 0, 0, 0, 0])) > 1
    with pytest.raises(ValueError, match=r"9 voxels does not fit into volumes of \(8, 8, 8\)"):
        VolumeBatch(patch=9)({"source": volume}, "cpu")
    with pytest.raises(ValueError, match="at least 1"):
        VolumeBatch(patch=0)


# --- the guard ---


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path: Path) -> None:
    setting = Setting(tmp_path, 4)

    def poison(engine: Any) -> None:
        setting.network.to_latent.bias.data.fill_(float("nan"))

    setting.trainer.add_event_handler(Events.ITERATION_STARTED(once=6), poison)
    with pytest.raises(RuntimeError, match=r"the loss is nan at iteration 6, because of \['l1', .*checkpoint"):
        setting.trainer.run()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["trainer"]["iteration"] == 4
    assert all(torch.isfinite(value).all() for value in state["network"].values())


def steady(guard: CollapseGuard, steps: int, error: float = 0.1, perplexity: float = 500.0) -> None:
    for step in range(steps):
        guard.check(step, 1.0, {"l1": error, "perplexity": perplexity})


def test_the_guard_lets_a_noisy_training_pass() -> None:
    guard, generator = CollapseGuard(warmup=10), torch.Generator().manual_seed(0)
    for step in range(1000):
        noise = 1 + float(torch.rand((), generator=generator))
        guard.check(step, 1.0, {"l1": noise * (0.05 + 0.5 / (1 + step / 50)), "perplexity": noise * 300})
        assert not guard.doubtful


@pytest.mark.parametrize(
    "change, message",
    [
        ({"error": 0.5}, r"reconstruction has collapsed.*from 0\.1000 to 0\.[0-9]+ by iteration"),
        ({"perplexity": 3.0}, r"codebook has collapsed.*fell from 500\.0"),
    ],
)
def test_the_guard_doubts_and_then_stops(change: dict, message: str) -> None:
    guard = CollapseGuard(warmup=10)
    steady(guard, 60)
    assert not guard.doubtful
    doubted = False
    with pytest.raises(RuntimeError, match=message):
        for _ in range(400):
            steady(guard, 1, **change)
            doubted |= guard.doubtful
    assert doubted
    fresh = CollapseGuard(warmup=10)
    fresh.load_state_dict(guard.state_dict())
    with pytest.raises(RuntimeError, match="collapsed"):
        steady(fresh, 1, **change)
    with pytest.raises(ValueError, match="above 1"):
        CollapseGuard(factor=1.0)


def test_a_doubtful_state_does_not_replace_the_last_good_checkpoint(tmp_path: Path) -> None:
    """Not at an epoch's end, not between, and not where the training is told to stop."""
    setting = Setting(tmp_path, 3, guard=CollapseGuard(warmup=0, factor=1e6, perplexity_factor=1e6))
    setting.checkpoint.interval = 1

    def worsen(engine: Any) -> None:
        if engine.state.iteration > CASES + 1:
            setting.guard.best_error = 1e-5

    setting.trainer.add_event_handler(Events.ITERATION_STARTED, worsen)
    stop = Events.ITERATION_STARTED(once=2 * CASES + 2)
    setting.trainer.add_event_handler(stop, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        setting.trainer.run()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == CASES + 1


# --- the evaluation ---


def test_evaluation_gives_both_ceilings_and_the_codebook(tmp_path: Path) -> None:
    network = Setting(tmp_path, 1).network
    network.train()(torch.rand(1, 1, 16, 16, 16), with_codes=True)
    outputs: list[dict] = []
    evaluator = VQGANEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases()), batch_size=1),
        network=network,
        prepare_batch=VolumeBatch(),
        key_val_metric=volume_metrics(["psnr_range"]),
        additional_metrics=autoencoder_metrics(codes=16),
        val_handlers=[CodebookReport(tmp_path, {"model_file": "some.pt"})],
    )
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.append(e.state.output))
    evaluator.run()
    report = json.loads((tmp_path / "autoencoder.json").read_text())
    assert report["model_file"] == "some.pt"
    assert report["psnr_4095"] == pytest.approx(report["psnr_range"] + 6.225, abs=0.01)
    network.eval()
    counts = torch.zeros(16)
    for case, output in zip(cases(), outputs, strict=True):
        image = case["source"][None] / 1000
        torch.testing.assert_close(output["pred"], network(image))
        torch.testing.assert_close(output["pred_quantised"], network(image, quantise=True))
        counts += torch.bincount(network.quantiser.indices(network.encode(image)).flatten(), minlength=16)
    assert report["codebook_use"] == pytest.approx(float((counts > 0).float().mean()))
    share = counts[counts > 0] / counts.sum()
    assert report["perplexity"] == pytest.approx(float((-(share * share.log()).sum()).exp()), rel=1e-4)
    assert report["psnr_range_quantised"] != report["psnr_range"]


def test_codebook_use_counts_lists_and_tensors() -> None:
    metric = CodebookUse(codes=4)
    metric.update([torch.tensor([0, 1]), torch.tensor([1, 1])])
    assert metric.compute() == 0.5
    metric.update(torch.tensor([[2, 2]]))
    assert metric.compute() == 0.75
    metric.reset()
    assert metric.compute() == 0
