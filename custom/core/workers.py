"""`Workers`: runs a function over many items in processes, here or on a Dask cluster, with a progress bar."""

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from itertools import chain
from types import TracebackType
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from custom import __version__
from custom.core.file_modes import UMASK_VARIABLE, new_mode
from custom.core.optional_packages import required

Item = TypeVar("Item")
Result = TypeVar("Result")
Failure = type[Exception] | tuple[type[Exception], ...]

#: A Dask worker may have several threads, but working directory, umask and random generators belong to its process.
_ONE_AT_A_TIME = threading.Lock()
_CHUNK = 32
#: Seconds that a scheduler may take to answer.
CONNECT_S = 20


def end_with_parent() -> None:
    """Let this process end when its parent is killed; it would wait for work, or go on, for ever otherwise."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@cache
def _versions() -> dict[str, str]:
    """Of what decides about the bits of a result."""
    return {"fewview-ct": __version__} | {name: version(name) for name in ("torch", "numpy", "scipy")}


@dataclass(frozen=True)
class _AsHere(Generic[Item, Result]):
    """A function that runs on a worker of another machine as it would here: in this folder, by the same software."""

    function: Callable[[Item], Result]
    folder: str = field(default_factory=os.getcwd)
    versions: dict[str, str] = field(default_factory=_versions)
    umask: int = field(default_factory=lambda: 0o777 & ~new_mode(0o777))

    def __call__(self, item: Item) -> Result:
        if _versions() != self.versions:
            raise RuntimeError(
                f"the Dask worker on {platform.node()} has {_versions()}, the command {self.versions}: install the "
                "same versions everywhere, so that results are the same"
            )
        with _ONE_AT_A_TIME:
            try:
                os.chdir(self.folder)
            except OSError as error:
                raise RuntimeError(
                    f"the Dask worker on {platform.node()} cannot enter {self.folder}: workers need the folders of "
                    f"the command under the same paths ({error.strerror})"
                ) from error
            os.umask(self.umask)
            os.environ[UMASK_VARIABLE] = f"{self.umask:03o}"
            return self.function(item)


def _connected(scheduler: str) -> Any:
    """A Dask client of this address; TLS as Dask's own configuration says."""
    distributed = required("distributed", "cluster", "--scheduler needs Dask's package")
    try:
        return distributed.Client(scheduler, set_as_default=False, timeout=CONNECT_S)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"no Dask scheduler answers at {scheduler} ({error}); start one with 'dask scheduler' and give its "
            "address, such as tcp://host:8786"
        ) from error


class Workers:
    """A pool of processes as a context manager; one worker means this process itself.

    Args:
        count: number of processes.
        scheduler: address of a Dask scheduler, such as tcp://host:8786, whose workers compute instead. It runs what it
            is sent, and so do its workers: it must be one that is trusted. They need the same software and the same
            files under the same paths. A worker that is lost costs the time of the item that it was at.

    Raises:
        ModuleNotFoundError: a scheduler without the extra "cluster".
        ValueError: a count below 1, or no scheduler at that address.
    """

    def __init__(self, count: int, scheduler: str | None = None) -> None:
        if count < 1:
            raise ValueError(f"workers is {count}; give 1 or more")
        self._client: Any = None
        self._executor: Executor | None = None
        if scheduler is not None:
            self._client = _connected(scheduler)
            self._executor = self._client.get_executor(pure=False)
        elif count > 1:
            self._executor = ProcessPoolExecutor(count, initializer=end_with_parent)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()  # what still waits or runs is cancelled
        elif self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def _sent(self, function: Callable[[Item], Result]) -> Callable[[Item], Result]:
        return function if self._client is None else _AsHere(function)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], label: str = "") -> Iterator[Result]:
        """Results in the order of ``items``."""
        if self._executor is None:
            results: Iterator[Result] = map(function, items)
        else:
            chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
            results = chain.from_iterable(self._executor.map(self._sent(partial(_each, function)), chunks))
        yield from tqdm(results, total=len(items), desc=label, unit="file", disable=len(items) < 2)

    def run(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        failure: Failure = (),
        retry: Callable[[Item, Exception], Item | None] = lambda item, error: None,
        label: str | None = "",
        unit: str = "case",
        size: Callable[[Item], int] = lambda item: 1,
    ) -> list[Result]:
        """Results in the order of completion.

        Args:
            function: called with each item; must be importable where there are several workers.
            items: the work.
            failure: the exception which is one item's own; any other stops the run.
            retry: called with an item and its failure; gives another item to try instead, or None.
            label: of the progress bar; None for no bar.
            unit: that the progress bar counts.
            size: how many of them an item is.

        Raises:
            RuntimeError: a worker process died (as it does where memory runs out); on Dask, several at the same item,
                or the scheduler.
        """
        results: list[Result] = []
        with tqdm(total=sum(map(size, items)), desc=label, unit=unit, disable=label is None or not items) as bar:
            if self._executor is None:
                for item in items:
                    again: Item | None = item
                    while again is not None:
                        current, again = again, None
                        try:
                            results.append(function(current))
                        except failure as error:
                            again = retry(current, error)
                    bar.update(size(item))
                return results
            sent = self._sent(function)
            pending: dict[Future[Result], Item] = {self._executor.submit(sent, item): item for item in items}
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    item = pending.pop(future)
                    try:
                        results.append(future.result())
                    except failure as error:
                        another = retry(item, error)
                        if another is not None:
                            pending[self._executor.submit(sent, another)] = another
                            continue
                    except CancelledError as error:
                        raise RuntimeError(
                            "the Dask scheduler was lost; finished cases are kept: the same command goes on"
                        ) from error
                    except Exception as error:
                        if isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker":
                            raise RuntimeError(
                                "a worker process died, most often because memory ran out: start again with fewer "
                                f"workers; finished cases are kept ({error})"
                            ) from error
                        raise
                    bar.update(size(item))
        return results


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]
