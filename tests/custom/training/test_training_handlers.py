"""Handlers of a training: resume after a kill, the best model, bounded gradients, averages."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import LrScheduleHandler, StatsHandler
from torch import nn

from custom.core.checkpoints import save_checkpoint
from custom.data.augmentation import RandThoraxAugment
from custom.geometry import VolumeGrid
from custom.networks import FourierFeatures, OutOfFoldPriors, PopulationPrior
from custom.training.initial_weights import fit_prior, load_weights
from custom.training.learning_rates import warmup_cosine
from custom.training.resuming import ResumableCheckpoint, TrainingStopped, training_seed
from custom.training.training_handlers import BestModelSaver, FinalValidation, GradientClip, WeightAverage


def trainer(handlers: list, network: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> SupervisedTrainer:
    data = [{"image": torch.ones(1, 2), "label": torch.zeros(1, 1)} for _ in range(4)]
    return SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=data,
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=handlers,
        decollate=False,
    )


def start(path: Path, epochs: int, resume: bool = True) -> tuple[nn.Module, SupervisedTrainer, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Linear(2, 1)
    first = network.weight.detach().clone()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    average = WeightAverage(network, 0.5)
    objects = {"network": network, "ema": average.network, "optimizer": optimizer}
    engine = trainer([average, ResumableCheckpoint(path, objects, resume)], network, optimizer, epochs)
    return network, engine, first


def test_a_resumed_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole, engine, _ = start(tmp_path / "whole.pt", 5)
    engine.run()
    _, engine, _ = start(tmp_path / "parts.pt", 2)
    engine.run()
    parts, engine, _ = start(tmp_path / "parts.pt", 5)
    ran: list[int] = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: ran.append(e.state.epoch))
    engine.run()
    assert ran == [3, 4, 5]
    torch.testing.assert_close(parts.weight, whole.weight)


def test_without_resume_it_starts_anew(tmp_path: Path) -> None:
    _, engine, _ = start(tmp_path / "last.pt", 2)
    engine.run()
    _, engine, _ = start(tmp_path / "last.pt", 2, resume=False)
    ran: list[int] = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: ran.append(e.state.epoch))
    engine.run()
    assert ran == [1, 2]


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    _, engine, _ = start(tmp_path / "last.pt", 1)
    engine.run()
    network = nn.Linear(2, 3)
    handler = ResumableCheckpoint(tmp_path / "last.pt", {"network": network})
    engine = Engine(lambda e, b: None)
    handler.attach(engine)
    with pytest.raises(ValueError, match=r"last\.pt.*another configuration"):
        engine.run([0], max_epochs=1)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell starts what runs in its background with Ctrl-C ignored, and the tests then, too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Stoppable:
    """Three epochs of four steps, each with a batch that its number determines, and all that has a state."""

    def __init__(self, path: Path, interval: int | None = None, validation: Any = None) -> None:
        torch.manual_seed(0)
        network = nn.Linear(2, 1)
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        average = WeightAverage(network, 0.5)
        schedule = warmup_cosine(optimizer, 2, 12)
        self.objects = {"network": network, "ema": average.network, "optimizer": optimizer, "schedule": schedule}
        self.path = path
        self.iterations: list[int] = []
        checkpoint = ResumableCheckpoint(path, self.objects, interval=interval)
        rate = LrScheduleHandler(schedule, print_lr=False, epoch_level=False)
        self.engine = trainer([average, rate, StatsHandler(iteration_log=False)], network, optimizer, 3)
        self.engine.add_event_handler(Events.ITERATION_STARTED, self._draw)
        if validation is not None:
            self.engine.add_event_handler(Events.EPOCH_COMPLETED(every=2), validation)
        checkpoint.attach(self.engine)

    def _draw(self, engine: Engine) -> None:
        generator = torch.Generator().manual_seed(engine.state.iteration)
        engine.state.batch = {
            "image": torch.randn(1, 2, generator=generator),
            "label": torch.randn(1, 1, generator=generator),
        }
        self.iterations.append(engine.state.iteration)

    def send(self, number: int, iteration: int, times: int = 1) -> None:
        """In the middle of a step: the gradient is known, the weights are still the old ones."""

        def kill(engine: Engine) -> None:
            if engine.state.iteration == iteration:
                for _ in range(times):
                    signal.raise_signal(number)

        self.engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, kill)

    def state(self) -> dict[str, Any]:
        return {name: item.state_dict() for name, item in self.objects.items()}

    def written(self) -> dict[str, Any]:
        return torch.load(self.path, weights_only=True)


def assert_same(one: Any, two: Any) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_checkpoints_between_the_ends_of_epochs(tmp_path: Path) -> None:
    training = Stoppable(tmp_path / "last.pt", interval=3)
    last: list[int] = []

    def look(engine: Engine) -> None:
        last.append(training.written()["trainer"]["iteration"] if training.path.is_file() else 0)

    training.engine.add_event_handler(Events.ITERATION_COMPLETED, look)
    training.engine.run()
    assert last == [0, 0, 3, 3, 4, 6, 6, 6, 9, 9, 9, 12]
    with pytest.raises(ValueError, match="at least 1 iteration, or None, got 0"):
        Stoppable(tmp_path / "last.pt", interval=0)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("iteration", [1, 6, 8])
def test_a_signal_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int, code: int, iteration: int
) -> None:
    """The running step counts, and the training that goes on ends with the very same weights."""
    whole, before = Stoppable(tmp_path / "whole.pt"), handlers()
    states: list[dict] = []
    whole.engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: states.append(deepcopy(whole.state())))
    whole.engine.run()
    first = Stoppable(tmp_path / "last.pt")
    first.send(number, iteration)
    with caplog.at_level(logging.INFO), pytest.raises(TrainingStopped) as stopped:
        first.engine.run()
    assert stopped.value.code == code and first.iterations[-1] == iteration and handlers() == before
    assert f"stopped by {signal.Signals(number).name} after iteration {iteration}; the same command" in caplog.text
    assert "Traceback" not in caplog.text
    written = first.written()
    assert written.pop("trainer")["iteration"] == iteration
    assert_same(written, states[iteration - 1])
    second = Stoppable(tmp_path / "last.pt")
    with caplog.at_level(logging.INFO):
        second.engine.run()
    assert f"after epoch {iteration // 4}, iteration {iteration}" in caplog.text
    assert second.iterations == list(range(iteration + 1, 13)) and second.engine.state.epoch == 3
    assert_same(second.state(), whole.state())


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    before = handlers()
    training = Stoppable(tmp_path / "last.pt")
    training.send(signal.SIGINT, 6, times=2)
    with pytest.raises(KeyboardInterrupt):
        training.engine.run()
    assert training.written()["trainer"]["iteration"] == 4 and handlers() == before


def test_a_validation_that_was_stopped_is_made_up_for(tmp_path: Path) -> None:
    """A stopped training does not go on validating for minutes; the last one, which writes the model, is not lost."""
    validated: list[int] = []

    def stopped(engine: Engine) -> None:
        signal.raise_signal(signal.SIGTERM)
        validated.append(-1)

    with pytest.raises(TrainingStopped, match="after iteration 8"):
        Stoppable(tmp_path / "last.pt", validation=stopped).engine.run()
    with pytest.raises(TrainingStopped, match="after iteration 8"):
        Stoppable(tmp_path / "last.pt", validation=stopped).engine.run()
    training = Stoppable(tmp_path / "last.pt", validation=lambda e: validated.append(e.state.epoch))
    training.send(signal.SIGTERM, 9)
    with pytest.raises(TrainingStopped):
        training.engine.run()
    assert validated == [2] and training.iterations == [9]
    again = Stoppable(tmp_path / "last.pt", validation=lambda e: validated.append(e.state.epoch))
    again.engine.run()
    assert validated == [2] and again.iterations == [10, 11, 12]


def test_signals_are_left_as_they_were(tmp_path: Path) -> None:
    """After the end, after an error (which is not swallowed), where they are ignored, and in another thread."""
    before = handlers()
    training = Stoppable(tmp_path / "last.pt")
    during: list[Any] = []
    training.engine.add_event_handler(Events.EPOCH_STARTED, lambda e: during.append(handlers()[0]))
    training.engine.run()
    assert handlers() == before and before[0] not in during

    failing = Engine(lambda e, b: [].pop())
    ResumableCheckpoint(tmp_path / "none.pt", {}).attach(failing)
    with pytest.raises(IndexError):
        failing.run([0], max_epochs=1)
    assert handlers() == before

    training = Stoppable(tmp_path / "ignored.pt")
    training.send(signal.SIGINT, 6)
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        training.engine.run()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert training.iterations[-1] == 12

    training = Stoppable(tmp_path / "thread.pt")
    thread = threading.Thread(target=training.engine.run)
    thread.start()
    thread.join()
    assert training.written()["trainer"]["iteration"] == 12


def test_a_gradient_that_is_not_finite_stops_the_training() -> None:
    network = nn.Linear(2, 1)
    nn.init.constant_(network.weight, float("nan"))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    engine = trainer([GradientClip(network)], network, optimizer, 1)
    with pytest.raises(RuntimeError, match="not finite at iteration 1"):
        engine.run()


def test_gradients_are_clipped() -> None:
    network = nn.Linear(2, 1)
    nn.init.constant_(network.weight, 100.0)
    before = network.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    trainer([GradientClip(network, max_norm=0.01)], network, optimizer, 1).run()
    assert float((network.weight - before).detach().norm()) <= 4 * 0.0101


def test_best_model_is_written_only_when_better(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saver = BestModelSaver(tmp_path / "model.pt", FourierFeatures(), meta={"preset": "test"})
    engine = Engine(lambda e, b: None)
    saver.attach(engine)
    engine.state.key_metric_name = "psnr_range"  # type: ignore[attr-defined]
    written = []
    for value in (20.0, 19.0, 21.0):
        engine.state.metrics["psnr_range"] = value
        with caplog.at_level("INFO"):
            engine.run([0], max_epochs=1)
        written.append((tmp_path / "model.pt").stat().st_mtime_ns)
    assert written[0] == written[1] < written[2]
    assert "stays as it is: psnr_range 19.000, best so far 20.000" in caplog.text
    fresh = BestModelSaver(tmp_path / "model.pt", FourierFeatures())
    fresh.load_state_dict(saver.state_dict())
    assert fresh.best == 21.0


def test_schedule_warms_up_and_decays() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = warmup_cosine(optimizer, warmup=4, total=20, final=0.1)
    rates = []
    for _ in range(25):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()  # type: ignore[attr-defined]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


PRIOR_GRID = VolumeGrid((4, 4, 4), (10.0,) * 3)


class WithPrior(nn.Module):
    hu_window = (-1000.0, 1000.0)

    def __init__(self) -> None:
        super().__init__()
        self.prior = PopulationPrior(PRIOR_GRID, components=2)


def test_the_prior_is_of_warped_training_patients(tmp_path: Path) -> None:
    """Its mean lies between the patients, by how often they are drawn; a checkpoint that knows one spares the work."""
    cases = [{"source": torch.full((1, 12, 12, 12), hu)} for hu in (5000.0, -1000.0)]  # the first is clipped
    still = RandThoraxAugment(PRIOR_GRID.shape, 10.0, 5.0, prob=0.0)
    network = WithPrior()
    fit_prior(network, cases, [0.75, 0.25], still, members=400)
    assert network.prior.mean.mean() == pytest.approx(1.5, abs=0.1)
    assert network.prior.spread.mean() == pytest.approx(0.87, abs=0.1)
    other = WithPrior()
    (tmp_path / "known.pt").write_text("")
    fit_prior(other, cases, [0.5, 0.5], still, members=400, known_from=tmp_path / "known.pt")
    assert (other.prior.mean == 0).all()
    fit_prior(nn.Linear(1, 1), cases, [0.5, 0.5], still, members=400)  # has no prior


def test_priors_out_of_fold_are_fitted_or_taken_over(tmp_path: Path) -> None:
    cases = [{"source": torch.full((1, 12, 12, 12), hu), "fold": n} for n, hu in enumerate((1000.0, -1000.0))]
    still = RandThoraxAugment(PRIOR_GRID.shape, 10.0, 5.0, prob=0.0)
    network, priors = WithPrior(), OutOfFoldPriors(PopulationPrior(PRIOR_GRID, components=2), 2)
    fit_prior(network, cases, [0.5, 0.5], still, 100, priors)
    assert [float(prior.mean.mean()) for prior in priors.priors] == [0.0, 2.0], "each knows the other patient alone"
    assert network.prior.fitted and 0.8 < network.prior.mean.mean() < 1.2
    last = tmp_path / "checkpoint_last.pt"
    torch.save({"out_of_fold": priors.state_dict()}, last)
    others = OutOfFoldPriors(PopulationPrior(PRIOR_GRID, components=2), 2)
    fit_prior(network, [], [], still, 100, others, priors_from=last)  # nothing is drawn
    torch.testing.assert_close(others.state_dict(), priors.state_dict())
    with pytest.raises(ValueError, match="no priors of this grid"):
        fit_prior(network, [], [], still, 100, OutOfFoldPriors(network.prior, 3), priors_from=last)
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        fit_prior(network, [], [], still, 100, others, priors_from=tmp_path / "none.pt")


def test_a_training_can_begin_with_the_weights_of_another(tmp_path: Path) -> None:
    first, second = FourierFeatures(seed=1), FourierFeatures(seed=2)
    load_weights(second, None)
    assert not torch.equal(first.matrix, second.matrix)
    load_weights(second, save_checkpoint(tmp_path / "model.pt", first))
    assert torch.equal(first.matrix, second.matrix)
    with pytest.raises(ValueError, match="another architecture"):
        load_weights(FourierFeatures(count=5), tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_weights(second, tmp_path / "none.pt")


def test_a_resumed_average_stays_slow(tmp_path: Path) -> None:
    """The warm-up belongs to the first steps of the training, not to the first after a kill."""
    network = nn.Linear(2, 1)
    average = WeightAverage(network, 0.002)
    engine = trainer([average], network, torch.optim.SGD(network.parameters(), 0.0), 1)
    seen: list[float] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.ema_momentum))
    engine.run()
    assert 0.09 < seen[0] < 0.11 and seen == sorted(seen, reverse=True)
    engine.load_state_dict({"iteration": 600, "epoch_length": 4, "max_epochs": 151})
    engine.run()
    assert seen[-1] == pytest.approx(0.002)


def test_a_resumed_training_draws_something_new(tmp_path: Path) -> None:
    last = tmp_path / "checkpoint_last.pt"
    assert training_seed(5, last) == 5
    torch.save({"trainer": {"iteration": 40}}, last)
    assert training_seed(5, last) not in (5, 6) and training_seed(5, last, resume=False) == 5
    for content in ({"weight": torch.zeros(1).expand(10**10)}, None):
        last.write_text("damaged") if content is None else torch.save(content, last)
        with pytest.raises(ValueError, match=r"checkpoint_last\.pt: not a checkpoint to go on from"):
            training_seed(5, last)


def test_the_last_epoch_is_always_validated() -> None:
    runs: list[int] = []

    class Validator:
        def run(self, epoch: int) -> None:
            runs.append(epoch)

    for epochs in (3, 4):
        engine = Engine(lambda e, b: None)
        FinalValidation(Validator(), 2).attach(engine)
        engine.run([0], max_epochs=epochs)
    assert runs == [3]
