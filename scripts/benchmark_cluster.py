"""Radiographs of synthetic cases on a Dask cluster of this machine: efficiency of two workers, and one that is killed.

    python scripts/benchmark_cluster.py --cases 200

Prints a table. Ends with an error where any file differs from those that this process makes by itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import fire
import psutil
from distributed import Client, LocalCluster

from custom.core.files import sha256_file
from custom.data.phantom import write_phantoms
from custom.data.simulate import simulate

ACQUISITION: dict[str, Any] = {"angles_deg": (0.0, 45.0, 90.0, 135.0), "photons": 1e5}


def _files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def _processor_seconds(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids if psutil.pid_exists(pid)]
    return sum(one.user + one.system for one in times)


def _kill_in_the_middle(folder: Path, cases: int, pid: int, killed_at: list[int]) -> None:
    """Kill a worker once a quarter of the cases are there."""
    while (there := len(list(folder.rglob("*.json")))) < cases / 4:
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    killed_at.append(there)


def _cohort(folder: Path, cases: int, size: int, phantoms: int = 8) -> Path:
    """A datalist in which every phantom occurs under several names; the noise of a case depends on its name."""
    path = write_phantoms(folder, phantoms, size=size, spacing_mm=320 / size, wide_mm=(420, 420, 340))
    content = json.loads(path.read_text())
    made = content["training"]
    content["training"] = [{**made[number % len(made)], "case": f"case_{number:04d}"} for number in range(cases)]
    path = folder / "datalist_repeated.json"
    path.write_text(json.dumps(content))
    return path


def _run(datalist: Path, output: Path, cases: int, workers: int, kill: bool = False) -> tuple[float, float, int]:
    """Wall seconds, processor seconds of the workers, and how many cases were there when one was killed."""
    killed_at: list[int] = []
    with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            # Imports are not measured: on a cluster a worker lives longer than a command.
            client.run(__import__, "custom.data.simulate")
            pids = list(client.run(os.getpid).values())
        killer = threading.Thread(target=_kill_in_the_middle, args=(output, cases, pids[0], killed_at))
        before, start = _processor_seconds(pids), time.perf_counter()
        if kill:
            killer.start()
        simulate(datalist, output, **ACQUISITION, scheduler=cluster.scheduler_address)
        seconds, used = time.perf_counter() - start, _processor_seconds(pids) - before
        if kill:
            killer.join()
            assert killed_at[0] < cases, "the worker was killed too late"
    return seconds, used, killed_at[0] if kill else 0


def main(cases: int = 200, size: int = 96, folder: str | None = None) -> None:
    """Prints the table.

    Args:
        cases: synthetic thoraces.
        size: voxels along each side of a cube of 320 mm.
        folder: for phantoms and results; a temporary one by default.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(folder or temporary)
        datalist = _cohort(root / "phantoms", cases, size)
        start = time.perf_counter()
        simulate(datalist, root / "here", **ACQUISITION)
        alone = time.perf_counter() - start
        print(f"this process alone: {alone:.1f} s for {cases} cases of {size}^3 voxels, four views each\n")
        expected, one = _files(root / "here"), 0.0
        print("| workers | seconds | processor seconds | speed-up | efficiency | same files |")
        print("|---|---|---|---|---|---|")
        for name, workers, kill in (("one", 1, False), ("two", 2, False), ("two_one_killed", 2, True)):
            seconds, used, killed_at = _run(datalist, root / name, cases, workers, kill)
            same = _files(root / name) == expected
            one = one or seconds
            title = f"{workers}, one killed after {killed_at} cases" if kill else f"{workers}"
            spent, efficiency = ("", "") if kill else (f"{used:.1f}", f"{one / seconds / workers:.0%}")
            print(f"| {title} | {seconds:.1f} | {spent} | {one / seconds:.2f} | {efficiency} | {same} |", flush=True)
            if not same:
                sys.exit("files differ")


if __name__ == "__main__":
    fire.Fire(main)
