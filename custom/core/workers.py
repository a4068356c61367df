"""`Workers`: runs a function over many items in worker processes, with a progress bar and a clean stop."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def end_with_parent() -> None:
    """Let this process end when its parent is killed; it would wait for work, or go on, for ever otherwise."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """A pool of processes as a context manager; one worker means this process itself.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"workers is {count}; give 1 or more, or 0 for one a core")
        self._executor: Executor | None = ProcessPoolExecutor(count, initializer=end_with_parent) if count > 1 else None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], label: str = "") -> Iterator[Result]:
        """Results in the order of ``items``."""
        results: Iterable[Result] = (
            map(function, items) if self._executor is None else self._executor.map(function, items, chunksize=32)
        )
        yield from tqdm(results, total=len(items), desc=label, unit="file", disable=len(items) < 2)

    def run(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        failure: type[Exception],
        retry: Callable[[Item, Exception], Item | None],
        label: str = "",
    ) -> list[Result]:
        """Results in the order of completion.

        Args:
            function: called with each item; must be importable where there are several workers.
            items: the work.
            failure: the exception which is one item's own; any other stops the run.
            retry: called with an item and its failure; gives another item to try instead, or None.
            label: of the progress bar.

        Raises:
            RuntimeError: a worker process died (as it does where memory runs out).
        """
        results: list[Result] = []
        with tqdm(total=len(items), desc=label, unit="case", disable=not items) as bar:
            if self._executor is None:
                for item in items:
                    again: Item | None = item
                    while again is not None:
                        current, again = again, None
                        try:
                            results.append(function(current))
                        except failure as error:
                            again = retry(current, error)
                    bar.update()
                return results
            pending: dict[Future[Result], Item] = {self._executor.submit(function, item): item for item in items}
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    item = pending.pop(future)
                    try:
                        results.append(future.result())
                    except failure as error:
                        another = retry(item, error)
                        if another is not None:
                            pending[self._executor.submit(function, another)] = another
                            continue
                    except BrokenProcessPool as error:
                        raise RuntimeError(
                            "a worker process died, most often because memory ran out: start again with fewer workers; "
                            "finished cases are kept"
                        ) from error
                    bar.update()
        return results
