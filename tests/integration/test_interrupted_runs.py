"""Commands that are killed (kill -9) or meet a full disk: no half a file counts, and started again they end alike.

The full disk is a tmpfs, which only root can mount. `FEWVIEW_INTERRUPTED_TABLE` names a file that the rows of
docs/explanation/security-limits.md are written to.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ct_samples import chest, write_nifti

pytestmark = pytest.mark.integration

COMMAND = Path(sys.executable).with_name("fewview-ct")
#: When a run is killed, as shares of the time that it takes.
MOMENTS = (0.3, 0.5, 0.7, 0.9)
#: Size of the disk, as shares of what a run writes.
ROOMS = (0.05, 0.5, 0.9)

Words = list[object]


def start(words: Words) -> subprocess.Popen[str]:
    return subprocess.Popen([str(COMMAND), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(words: Words, code: int = 0) -> str:
    process = start(words)
    errors = process.communicate(timeout=900)[1]
    assert process.returncode == code, errors[-2000:]
    return errors


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its name; of what holds times or new UIDs the name alone."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        differs = path.suffix in (".html", ".dcm") or path.name == "result.json"
        found[str(path.relative_to(folder))] = "" if differs else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cts/ (three small chests), prepared/ (a cohort of phantoms) and its radiographs as DICOM."""
    root = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate("abc"):
        write_nifti(root / "cts" / f"{name}.nii.gz", chest(seed=seed))
    finish(["phantom", root / "prepared", "--count", 1, "--size", 64, "--spacing_mm", 5])
    words = ["--angles_deg", "0,90", "--beam", "cone", "--dicom", "--name", "pair"]
    finish(["simulate", root / "prepared" / "datalist.json", *words])
    return root


COMMANDS: dict[str, Callable[[Path, Path], Words]] = {
    "phantom": lambda root, out: ["phantom", out, "--count", 3, "--size", 64, "--spacing_mm", 5],
    "prepare": lambda root, out: ["prepare", root / "cts", out, "--size", 16, "--spacing_mm", 5, "--workers", 1],
    "simulate": lambda root, out: ["simulate", root / "prepared" / "datalist.json", "--output", out],
    "reconstruct": lambda root, out: ["reconstruct", next((root / "prepared").rglob("*.dcm")).parent, "--output", out],
}


class Run:
    """A command, what it writes and how long it takes where nothing happens."""

    def __init__(self, name: str, inputs: Path, folder: Path) -> None:
        self.name, self.inputs, self.folder = name, inputs, folder
        self.seen: list[str] = []
        whole = folder / "whole" / "out"  # as deep as the others: a datalist names files beside it
        began = time.monotonic()
        finish(self.words(whole))
        self.seconds = time.monotonic() - began
        self.expected = files(whole)
        self.bytes = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())

    def words(self, out: Path) -> Words:
        return COMMANDS[self.name](self.inputs, out)

    def check_again(self, out: Path) -> None:
        """The same command once more ends as if nothing had happened, and leaves nothing else."""
        finish(self.words(out))
        assert files(out) == self.expected
        assert [p.name for p in out.parent.iterdir()] == [out.name]


@pytest.fixture(scope="module", params=list(COMMANDS))
def run(request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    made = Run(request.param, inputs, tmp_path_factory.mktemp(request.param))
    yield made
    table = os.environ.get("FEWVIEW_INTERRUPTED_TABLE")
    if table:
        with open(table, "a", encoding="utf-8") as file:
            file.write(f"| `{made.name}` | {' | '.join(made.seen)} |\n")


def test_killed_and_started_again(run: Run) -> None:
    killed = 0
    for number, moment in enumerate(MOMENTS):
        out = run.folder / f"killed{number}" / "out"
        out.parent.mkdir()
        process = start(run.words(out))
        time.sleep(moment * run.seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if files(out) == run.expected:  # killed, or ended, when all was written
            continue
        for name, content in files(out).items():
            if name.endswith(".nii.gz") and name in run.expected:
                assert content == run.expected[name], f"{name} is not what it will be"
        run.check_again(out)
    assert killed, "each run ended before it was killed"
    run.seen.append(f"{killed} of {len(MOMENTS)} runs killed; again: the same files")


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root mounts a small disk")
def test_full_disk(run: Run) -> None:
    said = ""
    for number, room in enumerate(ROOMS):
        disk = run.folder / f"disk{number}"
        disk.mkdir()
        size = max(4096, int(room * run.bytes))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
        try:
            process = start(run.words(disk / "out"))
            errors = process.communicate(timeout=900)[1]
            said = errors.strip().splitlines()[-1]
            assert process.returncode in (1, 2) and "Traceback" not in errors, errors[-2000:]
            assert "no space" in said.lower() or "disk full" in said.lower(), said
            assert str(disk) in said, said
            assert not [p for p in disk.rglob("*") if p.name.endswith(".part")]
            subprocess.run(["mount", "-o", f"remount,size={4 * run.bytes + 2**20}", disk], check=True)
            run.check_again(disk / "out")
        finally:
            subprocess.run(["umount", disk], check=True)
    run.seen.append(f"{len(ROOMS)} of {len(ROOMS)} refused with the file's name; again: the same files")
