"""Time and memory of a reconstruction, and a team of processes that share the work."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

__all__ = ["Cost", "Team", "held_mb", "resident_mb"]

T = TypeVar("T")

_PROC = Path("/proc/self")
#: A team waits for its slowest member: a fit per patient may take hours.
_PATIENCE = timedelta(days=7)


def resident_mb(peak: bool = False) -> float:
    """Memory of this process [MB], now or at its peak since `Cost` was entered; NaN where Linux does not tell."""
    try:
        found = re.search(rf"^Vm{'HWM' if peak else 'RSS'}:\s*(\d+) kB", (_PROC / "status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 / 1e6 if found else float("nan")


def held_mb(device: torch.device) -> float:
    """Memory [MB] that is taken now: on a GPU by PyTorch, else by this process."""
    return torch.cuda.memory_allocated(device) / 1e6 if device.type == "cuda" else resident_mb()


def release_memory(collect: bool = True) -> None:
    """Give back what Python and the C library hold in reserve, so that one reconstruction does not pay for another.

    Args:
        collect: look for objects in cycles too, such as a network that is not used any more; takes a while.
    """
    if collect:
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # Without glibc the reserve stays, and the figures are upper bounds.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Cost:
    """Wall time and peak memory of what runs inside `with`.

    Args:
        device: on a GPU its memory is measured, else that of this process.
        before_mb: `held_mb` before the method was built, which is not counted: Python and its libraries. The method's
            weights are.

    Attributes:
        seconds: wall time, waiting for the GPU included.
        memory_mb: peak memory [MB]; NaN where the system does not tell it.
    """

    def __init__(self, device: torch.device, before_mb: float = 0.0) -> None:
        self.device, self.before_mb = device, before_mb
        self.seconds = self.memory_mb = float("nan")

    def __enter__(self) -> Cost:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._resettable = _reset_peak()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        if self.device.type == "cuda":
            self.memory_mb = max(0.0, torch.cuda.max_memory_allocated(self.device) / 1e6 - self.before_mb)
        elif self._resettable:
            self.memory_mb = max(0.0, resident_mb(peak=True) - self.before_mb)


def _reset_peak() -> bool:
    """Let Linux count the peak of this process from now on (proc(5), clear_refs)."""
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


class Team:
    """The processes that torchrun started, or this one alone.

    Attributes:
        rank: number of this process; 0 writes what belongs to all.
        size: how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self._joined = False

    def __enter__(self) -> Team:
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_PATIENCE)  # words and numbers alone are passed on
            self._joined = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._joined:
            dist.destroy_process_group()

    @property
    def device(self) -> torch.device:
        """A GPU for each process where there are any, else the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())

    def agreed(self, value: T) -> T:
        """The first process's value, for all."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()
