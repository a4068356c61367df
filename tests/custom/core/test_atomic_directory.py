"""Folders that appear whole or not at all, also when the process is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from custom.core.atomic_directory import atomic_directory, check_free

MARK = "mark.json"


def fill(path: Path, text: str = "new", overwrite: bool = False) -> None:
    with atomic_directory(path, MARK, overwrite) as folder:
        assert not (path / MARK).exists() or overwrite
        (folder / MARK).write_text(text)


@pytest.mark.parametrize("there", [False, True], ids=["missing", "empty"])
def test_a_folder_gets_its_name_at_the_end(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "a/b"
    if there:
        target.mkdir(parents=True)
    fill(target)
    assert (target / MARK).read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["b"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_directory(tmp_path / "out", MARK) as folder:
        (folder / MARK).write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match=r"finished without mark\.json"), atomic_directory(tmp_path / "out", MARK):
        pass
    assert list(tmp_path.iterdir()) == []


def test_only_a_folder_of_its_kind_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    fill(target, "old")
    (target / "extra").write_text("")
    with pytest.raises(FileExistsError, match=r"out: exists: choose another output, or pass --overwrite"):
        fill(target)
    fill(target, overwrite=True)
    assert [p.name for p in target.iterdir()] == [MARK] and (target / MARK).read_text() == "new"
    other = tmp_path / "photographs"
    other.mkdir()
    (other / "one.jpg").write_text("precious")
    with pytest.raises(FileExistsError, match=r"photographs: exists and holds no mark\.json, so it is not replaced"):
        fill(other, overwrite=True)
    assert (other / "one.jpg").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photographs"]


def test_what_is_not_of_its_kind_is_not_lost(tmp_path: Path) -> None:
    target = tmp_path / "out"
    fill(target, "old")
    (target / "radiographs").mkdir()
    expected = pytest.raises(FileExistsError, match=r"out: holds radiographs, which is not of an earlier result")
    with expected, atomic_directory(target, MARK, True, [MARK, "data"]):
        pass
    (target / "radiographs").rename(target / "data")
    with atomic_directory(target, MARK, True, [MARK, "data"]) as folder:
        (folder / MARK).write_text("new")
    assert [p.name for p in target.iterdir()] == [MARK] and (target / MARK).read_text() == "new"


def test_a_failed_replacement_keeps_the_old_one(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    with pytest.raises(ValueError), atomic_directory(tmp_path / "out", MARK, overwrite=True):
        raise ValueError
    assert (tmp_path / "out" / MARK).read_text() == "old"


@pytest.mark.parametrize("kind", ["file", "link", "parent"])
def test_what_is_no_folder_is_said(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    path = tmp_path / ("file/out" if kind == "parent" else kind)
    with pytest.raises(OSError, match=str(path)):
        check_free(path, MARK, overwrite=True)


def test_a_killed_process_leaves_no_named_folder_and_the_next_run_tidies_up(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom custom.core.atomic_directory import atomic_directory\n"
        f"with atomic_directory(sys.argv[1], {MARK!r}) as folder:\n"
        f"    (folder / {MARK!r}).write_text('half')\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    target = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.") and not target.exists()
    fill(target)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_another_process_fills_is_left_alone(tmp_path: Path) -> None:
    alive = tmp_path / f".out.{socket.gethostname()}-{os.getppid()}-ab.part"
    elsewhere = tmp_path / ".out.another-host-1-ab.part"
    alive.mkdir(), elsewhere.mkdir()
    with atomic_directory(tmp_path / "out", MARK) as first:  # the same process, as in a server
        (first / MARK).write_text("first")
        fill(tmp_path / "out2")
        with atomic_directory(tmp_path / "out", MARK) as second:
            assert first.is_dir() and second != first
            (second / MARK).write_text("second")
        with pytest.raises(FileExistsError):
            check_free(tmp_path / "out", MARK)
        (tmp_path / "out" / MARK).unlink()
    assert alive.is_dir() and elsewhere.is_dir()
    assert (tmp_path / "out" / MARK).read_text() == "first"


def test_killed_between_the_two_renames_the_old_folder_comes_back(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    old = tmp_path / f".out.{socket.gethostname()}-{process.stdout.strip()}-ab.old.part"
    old.mkdir()
    (old / MARK).write_text("old")
    with pytest.raises(FileExistsError):
        fill(tmp_path / "out")
    assert (tmp_path / "out" / MARK).read_text() == "old"


def test_a_folder_below_a_file_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for parent in ("file", "file/deeper"):
        with pytest.raises((FileExistsError, NotADirectoryError), match="the folder could not be made") as caught:
            check_free(tmp_path / parent / "out", MARK)
        assert str(tmp_path / parent / "out") in str(caught.value)
