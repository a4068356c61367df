"""`Workers`: the same results in this process, in local ones and on Dask; failures of items, and lost workers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from custom.core import workers
from custom.core.workers import Workers, _AsHere

dask = pytest.importorskip("dask", reason="the extra 'cluster' is not installed")
distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")


class OddError(Exception):
    """A failure of one item."""


def squared(number: int) -> int:
    if number == 5:
        raise OddError("5 is odd")
    return number * number


def next_one(number: int, error: Exception) -> int | None:
    return 100 if number == 5 else None


def where(item: int) -> tuple[str, int]:
    mask = os.umask(0)
    os.umask(mask)
    return os.getcwd(), mask


def killed(folder: Path, times: int, number: int) -> int:
    """Item 3 ends its worker the first few times."""
    for life in range(times if number == 3 else 0):
        try:
            (folder / f"killed_{life}").touch(exist_ok=False)
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)
    return squared(number)


def endless(started: Path) -> None:
    started.touch()
    time.sleep(600)


@pytest.fixture(params=["here", "processes", "Dask"])
def pool(request: pytest.FixtureRequest) -> Iterator[Workers]:
    count, address = {"here": (1, None), "processes": (2, None)}.get(request.param, (1, ""))
    with Workers(count, request.getfixturevalue("scheduler") if address == "" else None) as made:
        yield made


def test_results_and_failures_are_the_same_everywhere(pool: Workers) -> None:
    assert list(pool.map(abs, range(-70, 0))) == list(range(70, 0, -1))
    assert list(pool.map(abs, [])) == []
    found = pool.run(squared, range(9), OddError, next_one)
    assert sorted(found) == [0, 1, 4, 9, 16, 36, 49, 64, 10000]
    with pytest.raises(OddError):
        pool.run(squared, range(9))


def test_a_lost_worker_costs_its_item_alone(scheduler: str, tmp_path: Path) -> None:
    with Workers(1, scheduler) as pool:
        found = pool.run(partial(killed, tmp_path, 1), [0, 1, 2, 3, 4, 6])
    assert sorted(found) == [0, 1, 4, 9, 16, 36]
    assert (tmp_path / "killed_0").exists()


def test_an_item_that_ends_every_worker_is_an_error(tmp_path: Path) -> None:
    with Workers(2) as pool, pytest.raises(RuntimeError, match="a worker process died, most often because memory"):
        pool.run(partial(killed, tmp_path, 1), [0, 3])
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        cluster.scheduler.allowed_failures = 0
        with Workers(1, cluster.scheduler_address) as pool, pytest.raises(RuntimeError, match="a worker process died"):
            pool.run(partial(killed, tmp_path, 5), [3])


def test_a_lost_scheduler_is_an_error(tmp_path: Path) -> None:
    started = tmp_path / "started"
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:

        def close() -> None:
            while not started.exists():
                time.sleep(0.05)
            cluster.close()

        closing = threading.Thread(target=close)
        closing.start()
        with Workers(1, cluster.scheduler_address) as pool, pytest.raises(RuntimeError, match="scheduler was lost"):
            pool.run(endless, [started])
        closing.join()


def test_a_dask_worker_works_in_the_folder_and_with_the_umask_of_the_command(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWVIEW_UMASK", "027")
    with Workers(1, scheduler) as pool:
        assert pool.run(where, [1]) == [(str(tmp_path), 0o027)]


def test_other_software_or_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"has .*'torch': .*the command \{'torch': '0'\}: install the same versions"):
        _AsHere(squared, versions={"torch": "0"})(2)
    with pytest.raises(RuntimeError, match=r"cannot enter .*gone: workers need the folders of the command"):
        _AsHere(squared, folder=str(tmp_path / "gone"))(2)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x", "tcp://no port"])
def test_no_scheduler_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CONNECT_S", 1)
    with pytest.raises(ValueError, match=f"no Dask scheduler answers at {address}"):
        Workers(1, address)


@pytest.mark.parametrize("count", [-1, 0])
def test_bad_count(count: int) -> None:
    with pytest.raises(ValueError, match=f"^workers is {count}; give 1 or more$"):
        Workers(count)


def tls_settings(folder: Path) -> dict[str, Any]:
    """Dask's own settings for TLS with a certificate that is made for this test."""
    files = {name: str(folder / f"{name}.pem") for name in ("cert", "key")}
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", files["key"], "-out", files["cert"]], check=True, capture_output=True)
    roles = {f"{role}.{name}": path for role in ("client", "scheduler", "worker") for name, path in files.items()}
    settings = {f"distributed.comm.tls.{name}": path for name, path in {"ca-file": files["cert"], **roles}.items()}
    return {"distributed.comm.require-encryption": True, **settings}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not installed")
def test_tls_as_dasks_configuration_says(tmp_path: Path) -> None:
    with (
        dask.config.set(tls_settings(tmp_path)),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", security=distributed.Security()
        ) as cluster,
    ):
        assert cluster.scheduler_address.startswith("tls://")
        with Workers(1, cluster.scheduler_address) as pool:
            assert pool.run(squared, [4]) == [16]
