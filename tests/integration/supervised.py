"""Work in a process of its own that may crash, hang or ask for too much memory without taking the test along."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


@dataclass
class Outcome:
    """What became of one job.

    Args:
        number: of the job.
        verdict: "clean", "error" (one line, as it should be) or "failure".
        text: of the error, or why it is a failure.
        cpu_s: processor time.
        notes: whatever the job says.
    """

    number: int
    verdict: str
    text: str = ""
    cpu_s: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)


class Failure(Exception):
    """A job found something that must not be."""


def _serve(pipe: Connection, module: str, maker: str, options: dict[str, Any], memory: int) -> None:
    """In the other process: jobs by number until the pipe closes."""
    # Its memory is counted from here, so that libraries that only reserve addresses do not count.
    job = getattr(importlib.import_module(module), maker)(**options)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    pipe.send("ready")
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        start = time.process_time()
        try:
            outcome = job(number)
        except Failure as error:
            outcome = Outcome(number, "failure", str(error))
        except BaseException:
            outcome = Outcome(number, "failure", traceback.format_exc())
        outcome.cpu_s = time.process_time() - start
        outcome.notes["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        pipe.send(outcome)


class Supervisor:
    """Runs jobs one after the other in another process, which is started again after a crash or a hang.

    Args:
        module: that holds `maker`.
        maker: name of a function that takes `options` and returns the job, a function of a number to an `Outcome`.
        options: of `maker`.
        limit_s: longest time for one job, by the wall clock.
        memory: bytes of addresses that a job may ask for on top of what the libraries hold.
    """

    def __init__(
        self, module: str, maker: str, options: dict[str, Any], limit_s: float, memory: int = 3 * 2**30
    ) -> None:
        self._arguments = (module, maker, options, memory)
        self._limit = limit_s
        self._process: Any = None
        self._pipe: Connection | None = None

    def run(self, numbers: range) -> Iterator[Outcome]:
        """An outcome for each number."""
        try:
            for number in numbers:
                yield self._one(number)
        finally:
            self._stop(idle=True)

    def _one(self, number: int) -> Outcome:
        pipe = self._pipe or self._start()
        pipe.send(number)
        try:
            if pipe.poll(self._limit):
                return pipe.recv()
            reason = f"no answer within {self._limit:g} s"
        except (EOFError, ConnectionError):
            self._process.join(10)
            code = self._process.exitcode
            reason = f"the process ended with {signal.Signals(-code).name if code and code < 0 else code}"
        self._stop()
        return Outcome(number, "failure", reason)

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(300) or self._pipe.recv() != "ready":
            raise RuntimeError("the working process does not start")
        return self._pipe

    def _stop(self, idle: bool = False) -> None:
        if self._process is not None:
            if self._pipe is not None:
                self._pipe.close()  # which ends one that is waiting for work
                self._process.join(5 if idle else 0)
            self._process.kill()
            self._process.join()
        self._process, self._pipe = None, None
