"""`side_by_side`: pieces of torch work in threads, each with its share of torch's own threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["side_by_side"]

#: How many threads torch has in a thread that begins is the process's: only one call may change it at a time.
_CHANGING = threading.Lock()
Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result], items: Sequence[Item], device: torch.device, at_most: int
) -> Iterator[Result]:
    """Results in the order of `items`, computed without gradients.

    A small operation that is split over several threads makes them wait for each other, and what lies between two
    operations has but one: on a CPU, whole pieces side by side keep all of them busy.

    Args:
        function: the work, called in other threads.
        items: what for.
        device: where it is computed: on a CPU several at a time, as many as torch has threads; elsewhere one, and
            where another call is at work already.
        at_most: at a time. Results are the same bits for the same number of torch's threads and of these.
    """
    total = torch.get_num_threads()
    together = min(total, at_most) if device.type == "cpu" else 1
    if together <= 1 or not _CHANGING.acquire(blocking=False):
        yield from map(torch.no_grad()(function), items)
        return

    def begin() -> None:
        torch.set_num_threads(total // together)  # of this thread, and of those that begin after it
        torch.set_grad_enabled(False)

    pool = ThreadPoolExecutor(together, initializer=begin)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(total)
        _CHANGING.release()
