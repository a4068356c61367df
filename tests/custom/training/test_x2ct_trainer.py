"""X2CT: its losses, discriminator, learning rate and trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.handlers import from_engine

from custom.networks import X2CTDiscriminator
from custom.projection import Projector
from custom.training.learning_rates import constant_then_linear
from custom.training.x2ct_trainer import X2CTLoss, X2CTTrainer, projection_distance
from tests.custom.networks.tiny_x2ct import GRID, network, views_at

# --- loss, discriminator, trainer ---


def test_losses_by_hand() -> None:
    label = torch.zeros(1, 1, 2, 2, 2)
    pred = label.clone()
    pred[0, 0, 0, 0, 0] = 0.8
    # Each mean along an axis is 0.4 at one of four places: 0.1 on average.
    assert projection_distance(pred, label).item() == pytest.approx(0.1)
    terms = X2CTLoss(10, 10, 0.1).generator(pred, label, torch.tensor([0.5, -1.0]))
    assert terms["reconstruction"].item() == pytest.approx(0.08)
    assert terms["adversarial"].item() == pytest.approx((0.25 + 4) / 2)
    assert terms["loss"].item() == pytest.approx(0.8 + 1.0 + 0.2125)
    plain = X2CTLoss(10, 0, 0).generator(pred, label)
    assert plain["loss"].item() == pytest.approx(0.8) and "adversarial" not in plain
    found = X2CTLoss.discriminator(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.0])).item()
    assert found == pytest.approx((0.125 + 0.125) / 2)
    with pytest.raises(ValueError, match="negative"):
        X2CTLoss(projection_weight=-1)


def test_the_projection_loss_sees_a_shift_of_mean_that_it_does_not_see_along_one_axis() -> None:
    label = torch.zeros(1, 1, 4, 4, 4)
    pred = label.clone()
    pred[:, :, 0], pred[:, :, 1] = 1.0, -1.0
    # Along x the planes cancel; along y and z half of the columns are off by one.
    assert projection_distance(pred, label).item() == pytest.approx((0 + 0.5 + 0.5) / 3)


def test_learning_rate_stays_then_falls_to_zero() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule: Any = constant_then_linear(optimizer, constant=3, total=5)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2, 2, 2, 2, 1, 0, 0])
    with pytest.raises(ValueError, match="5 steps cannot keep its learning rate for 6"):
        constant_then_linear(optimizer, constant=6, total=5)


def test_discriminator_judges_patches_beside_the_radiographs() -> None:
    judge = X2CTDiscriminator(channels=4, layers=2, precision="fp32")
    volume, spread = torch.rand(1, 1, 16, 16, 16), torch.rand(1, 2, 16, 16, 16)
    logits = judge(volume, spread)
    assert logits.shape[:2] == (1, 1) and logits[0, 0].numel() > 1
    assert not torch.allclose(judge(volume, spread.flip(1)), logits), "it sees the radiographs"
    with pytest.raises(ValueError, match="use fewer layers"):
        X2CTDiscriminator(channels=4, layers=3)(volume, spread)
    with pytest.raises(ValueError, match=r"beside 2 view\(s\), got 1"):
        judge(volume, spread[:, :1])


def trainer(adversarial_weight: float, steps: int, **changes: Any) -> X2CTTrainer:
    """Every step sees the same block and its radiographs."""
    views = views_at(0, 90)
    label = -torch.ones(1, 1, 16, 16, 16)
    label[:, :, 3:11, 4:14, 2:13] = 0.2
    image = Projector(GRID, (16, 20))((label + 1) * 0.01, views)
    net = network(dropout=0.0, training_slope=0.01, dense_layers=(1, 1), decoder_channels=(8, 8, 8))
    judge = X2CTDiscriminator(channels=4, layers=2, precision="fp32")
    keywords = {
        "device": torch.device("cpu"),
        "max_epochs": 1,
        "epoch_length": steps,
        "train_data_loader": [{}] * steps,
        "network": net,
        "optimizer": torch.optim.Adam(net.parameters(), 0.0005, (0.5, 0.99)),
        "discriminator": judge,
        "disc_optimizer": torch.optim.Adam(judge.parameters(), 0.002, (0.5, 0.99)),
        "loss_function": X2CTLoss(10, 10, adversarial_weight),
        "prepare_batch": lambda *_, **__: (image, label, (), {"views": views}),
    }
    return X2CTTrainer(**{**keywords, **changes})


@pytest.mark.parametrize("adversarial_weight", [0.0, 0.1])
def test_training_fits_a_block_and_trains_its_judge_only_if_asked(adversarial_weight: float) -> None:
    training = trainer(adversarial_weight, steps=24)
    judge = training.discriminator
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    losses: list[dict[str, float]] = []

    def note(engine: Any) -> None:
        losses.append({name: float(value) for name, value in engine.state.output["losses"].items()})
        assert not engine.state.output["pred"].requires_grad and not engine.state.output["loss"].requires_grad

    training.add_event_handler(Events.ITERATION_COMPLETED, note)
    training.run()
    label = (training.state.output["label"] + 1) / 2
    assert losses[-1]["reconstruction"] < 0.25 * float(label.var()), "the block is found, not only its mean"
    moved = any(not torch.equal(before[name], value) for name, value in judge.state_dict().items())
    assert moved == ("discriminator" in losses[-1]) == ("adversarial" in losses[-1]) == (adversarial_weight > 0)
    assert all(p.requires_grad for p in judge.parameters())
    assert from_engine(["loss"])(training.state.output)[0] >= 0


def test_the_generators_step_leaves_no_gradient_in_the_judge() -> None:
    training = trainer(0.1, steps=1)
    gradients: list[bool] = []
    training.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED,
        lambda engine: gradients.append(any(p.grad is not None for p in engine.discriminator.parameters())),
    )
    training.run()
    assert gradients == [False]


def test_trainer_refuses_options_that_it_has_not() -> None:
    for option in ({"amp": True}, {"accumulation_steps": 2}, {"compile": True}):
        with pytest.raises(ValueError, match="precision"):
            trainer(0.0, steps=1, **option)
