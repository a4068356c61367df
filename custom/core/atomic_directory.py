"""Folders that appear whole or not at all: filled under a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

from custom.core.file_modes import new_mode

__all__ = ["atomic_directory", "check_free"]

#: Temporary folders that this process is filling.
_OPEN: set[str] = set()


def check_free(
    path: str | os.PathLike[str], mark: str, overwrite: bool = False, holds: Collection[str] | None = None
) -> Path:
    """The path, if a folder may appear there.

    Args:
        path: the folder. One that exists and is empty may be filled.
        mark: a file that every folder of this kind holds; only such a folder is ever replaced.
        overwrite: whether it is.
        holds: names that folders of this kind hold; one with anything else in it is not replaced, since that would be
            lost. None: whatever is in it.

    Raises:
        FileExistsError: it exists and may not be replaced, saying why.
        ValueError: no folder's name.
        OSError: its parent cannot be made or written to.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise ValueError(f"{path}: name a folder that is to be made")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise FileExistsError(f"{path}: exists and is no folder: choose another output")
    if path.is_dir() and any(path.iterdir()):
        if not (path / mark).is_file():
            raise FileExistsError(f"{path}: exists and holds no {mark}, so it is not replaced: choose another output")
        if not overwrite:
            raise FileExistsError(f"{path}: exists: choose another output, or pass --overwrite")
        others = sorted(entry.name for entry in path.iterdir() if holds is not None and entry.name not in holds)
        if others:
            raise FileExistsError(
                f"{path}: holds {others[0]}, which is not of an earlier result and would be lost: move it away, or "
                "choose another output"
            )
    try:
        path.parent.mkdir(mode=new_mode(0o777), parents=True, exist_ok=True)
    except OSError as error:
        message = f"{path}: the folder could not be made: {error.strerror or error}"
        raise (OSError(message) if error.errno is None else OSError(error.errno, message)) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: no permission to write into {path.parent}")
    return path


@contextlib.contextmanager
def atomic_directory(
    path: str | os.PathLike[str], mark: str, overwrite: bool = False, holds: Collection[str] | None = None
) -> Iterator[Path]:
    """A folder to fill. It gets its name when the block ends without an error, and vanishes otherwise.

    What a killed run leaves is hidden (`.NAME.HOST-PID.part`) and is removed by the next run for the same folder.

    Args:
        path: its name in the end.
        mark, overwrite, holds: as in `check_free`.

    Raises:
        FileExistsError, ValueError, OSError: as `check_free`.
        RuntimeError: the block did not write `mark`.
    """
    _remove_leftovers(Path(path))
    path = check_free(path, mark, overwrite, holds)
    owner = f".{path.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    part, old = path.with_name(f"{owner}.part"), path.with_name(f"{owner}.old.part")
    mine = {os.path.abspath(part), os.path.abspath(old)}
    _OPEN.update(mine)
    part.mkdir(mode=new_mode(0o777))
    try:
        yield part
        if not (part / mark).is_file():
            raise RuntimeError(f"{part}: finished without {mark}")
        check_free(path, mark, overwrite, holds)
        if path.is_dir() and any(path.iterdir()):
            os.replace(path, old)
        try:
            os.replace(part, path)
        except OSError:
            if old.is_dir() and not path.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if path.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        _OPEN.difference_update(mine)


def _remove_leftovers(path: Path) -> None:
    """Temporary folders of this machine's processes that are gone."""
    if not path.parent.is_dir():
        return
    host = f".{path.name}.{socket.gethostname()}-"
    for entry in path.parent.iterdir():
        if not (entry.name.startswith(host) and entry.name.endswith(".part")) or os.path.abspath(entry) in _OPEN:
            continue
        pid = entry.name.removeprefix(host).split("-")[0]
        # This process's own number without an open folder belongs to an earlier process, as of a restarted container.
        if not pid.isdigit() or (int(pid) != os.getpid() and _is_alive(int(pid))):
            continue
        if entry.name.endswith(".old.part") and not path.exists():
            os.replace(entry, path)  # killed between the two renames
        else:
            shutil.rmtree(entry, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
