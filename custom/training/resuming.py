"""`ResumableCheckpoint`: a training that was stopped goes on where it was."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch.distributed as dist
from ignite.engine import Engine, Events

from custom.core.files import write_tensors
from custom.core.tensor_files import load_tensors

__all__ = ["ResumableCheckpoint", "TrainingStopped", "training_seed"]

logger = logging.getLogger(__name__)


class TrainingStopped(SystemExit):
    """A signal has stopped the training; the exit code is a shell's: 128 and the signal's number."""

    def __init__(self, number: int, iteration: int) -> None:
        super().__init__(128 + number)
        self.reason = f"stopped by {signal.Signals(number).name} after iteration {iteration}"

    def __str__(self) -> str:
        return self.reason


class ResumableCheckpoint:
    """Saves everything that a training needs to go on, and picks it up after a kill. The last of the handlers.

    It saves after every epoch, every `interval` iterations, and when a signal stops the training: SIGTERM, which SLURM,
    Docker and Kubernetes send before they kill, or Ctrl-C. The running step is finished first (of several
    processes the next one, too: all stop at the same), then the process ends with exit code 143 or 130. A validation
    is broken off; the training that goes on begins with it. A second Ctrl-C stops at once.

    Args:
        path: the file; written to a temporary name first.
        objects: what has a state: network, averaged network, optimizer, scheduler. The trainer is added.
        resume: load `path` if it is there when the training starts.
        interval: iterations between two saves; None: at the ends of epochs alone.

    Raises:
        ValueError: for an interval below 1; when the training starts, for a checkpoint of another configuration.
        TrainingStopped: in the training, after a signal.
    """

    #: Where the processes of a training agree on the last step.
    AGREEMENT = "custom.training.last_step"

    def __init__(
        self,
        path: str | os.PathLike[str],
        objects: Mapping[str, Any],
        resume: bool = True,
        interval: int | None = None,
    ) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f"checkpoint interval must be at least 1 iteration, or None, got {interval}")
        self.path, self.objects, self.resume, self.interval = Path(path), dict(objects), resume, interval
        self._previous: dict[int, Any] = {}
        self._process, self._signal, self._saved_at = os.getpid(), 0, 0
        self._at_rest = False  # no step and no save is running: a signal may stop the training where it is

    def attach(self, engine: Engine) -> None:
        """Registers with a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._begin_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.TERMINATE, self._release)
        engine.add_event_handler(Events.COMPLETED, self._release)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)
        # The first one: others raise the error again, and what comes after them is never called.
        handlers = engine._event_handlers[Events.EXCEPTION_RAISED]
        handlers.insert(0, handlers.pop())

    def _start(self, engine: Engine) -> None:
        epoch_missed = self._load(engine)
        self._process, self._signal, self._saved_at = os.getpid(), 0, engine.state.iteration
        self._at_rest = True
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # ignored: a job in the background
                    self._previous[number] = signal.signal(number, partial(self._on_signal, engine))
        if epoch_missed:
            engine.fire_event(Events.EPOCH_COMPLETED)

    def _load(self, engine: Engine) -> bool:
        """Returns whether the last epoch's validation is still to be made up for."""
        if not self.resume or not self.path.is_file():
            return False
        try:
            state = load_tensors(self.path)
        except (ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{self.path}: damaged, not a checkpoint to go on from: {error}; remove it or pass --resume False"
            ) from error
        try:
            for name, item in self.objects.items():
                item.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.path}: this checkpoint belongs to another configuration: {error}; remove it, choose another "
                "ckpt_dir, or pass --resume False"
            ) from error
        epochs = engine.state.max_epochs
        engine.load_state_dict(state["trainer"])
        engine.state.max_epochs = epochs
        logger.info("resumed %s after epoch %d, iteration %d", self.path, engine.state.epoch, engine.state.iteration)
        return self._epoch_ends(engine) and not state["trainer"].get("epoch_completed", True)

    @staticmethod
    def _epoch_ends(engine: Engine) -> bool:
        length = engine.state.epoch_length
        return length is not None and engine.state.iteration % length == 0

    def _begin_step(self, engine: Engine) -> None:
        self._at_rest = False

    def _end_step(self, engine: Engine) -> None:
        if self._signal or (self.interval and engine.state.iteration % self.interval == 0):
            self._keep(engine)
        if idist.get_world_size() > 1 and not self._epoch_ends(engine):
            self._agree(engine)
        else:
            self._rest(engine)

    def _end_epoch(self, engine: Engine) -> None:
        self._at_rest = False
        self._keep(engine, epoch_completed=True)
        self._rest(engine)

    def _rest(self, engine: Engine) -> None:
        self._at_rest = True
        if self._signal:
            self._stop(engine)

    def _agree(self, engine: Engine) -> None:
        """Stop where all processes do: one step later, which none of them can finish before it is announced."""
        store = dist.distributed_c10d._get_default_store()
        if store.check([self.AGREEMENT]):
            last, number = map(int, store.get(self.AGREEMENT).split())
            if engine.state.iteration >= last:
                self._signal = self._signal or number
                self._stop(engine)
        elif self._signal:
            store.set(self.AGREEMENT, f"{engine.state.iteration + 1} {self._signal}")

    def _on_signal(self, engine: Engine, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a worker of the data loader, forked with this handler
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = self._signal or number
        # PyTorch would break off the step where the signal has ended a worker of the data loader, too. The end is near,
        # so that this is not undone.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        if self._at_rest:
            self._stop(engine)
        logger.warning("%s: the running step is finished first, Ctrl-C stops at once", signal.Signals(number).name)

    def _stop(self, engine: Engine) -> None:
        self._at_rest = False
        if self._saved_at != engine.state.iteration:
            self._keep(engine)
        stopped = TrainingStopped(self._signal, engine.state.iteration)
        logger.warning("the training was %s; the same command goes on from %s", stopped, self.path)
        raise stopped

    def _release(self, engine: Engine) -> None:
        while self._previous:
            number, previous = self._previous.popitem()
            signal.signal(number, previous)

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._release(engine)
        if isinstance(error, TrainingStopped) or len(engine._event_handlers[Events.EXCEPTION_RAISED]) == 1:
            raise error

    def _keep(self, engine: Engine, epoch_completed: bool = False) -> None:
        self._save(engine, epoch_completed)
        self._saved_at = engine.state.iteration

    def _save(self, engine: Engine, epoch_completed: bool) -> None:
        if idist.get_rank() != 0:
            return
        state: dict[str, Any] = {name: item.state_dict() for name, item in self.objects.items()}
        state["trainer"] = {
            "iteration": engine.state.iteration,
            "epoch_length": engine.state.epoch_length,
            "max_epochs": engine.state.max_epochs,
            "epoch_completed": epoch_completed,
        }
        write_tensors(self.path, state)


def training_seed(seed: int, checkpoint: str | os.PathLike[str], resume: bool = True) -> int:
    """The seed of a training that may go on from a checkpoint: another one after every epoch.

    With the same one a resumed training would see again what it has seen in its first epochs.

    Args:
        seed: of the training.
        checkpoint: checkpoint_last.pt, which need not be there.
        resume: whether it will be taken up.
    """
    path = Path(checkpoint)
    if not resume or not path.is_file():
        return seed
    try:
        iteration = load_tensors(path, mmap=True)["trainer"]["iteration"]
    except (KeyError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path}: not a checkpoint to go on from: {error}; remove it or pass --resume False"
        ) from error
    return (seed + 7919 * int(iteration)) % 2**31
