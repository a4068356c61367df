"""Checks of names that stand in files, before they become paths."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

__all__ = ["inside", "no_link", "plain_name", "printable", "safe_name", "short_hash"]

_LONGEST = 200
#: Characters of a name that `safe_name` makes: files of it have longer ones.
_LONGEST_NAME = 150


def plain_name(name: object, where: str) -> str:
    """A name that is one file or folder of whatever folder it is put into.

    Args:
        name: as a file or an option gives it.
        where: what the error begins with: the file and the entry.

    Raises:
        ValueError: it is empty, hidden, too long, or holds a separator or a character that does not print.
    """
    text = name if isinstance(name, str) else f"{name}" if isinstance(name, int) else ""
    if (
        not text.strip()
        or text != text.strip()
        or text.startswith((".", "~", "-"))
        or any(c in '/\\:*?"<>|' or not c.isprintable() for c in text)
        or len(os.fsencode(text)) > _LONGEST
    ):
        raise ValueError(
            f"{where} {str(name)[:80]!r} cannot name a file: no path, no separator, no leading dot or hyphen, "
            f"1 to {_LONGEST} printable characters"
        )
    return text


def inside(folder: Path, relative: object, where: str) -> Path:
    """A file below a folder, by the relative path that some file gives; links do not lead out of the folder either.

    Args:
        folder: that it has to lie in.
        relative: path with slashes, each part a `plain_name`.
        where: what the error begins with.

    Raises:
        ValueError: it is absolute, or leads out of the folder.
    """
    parts = str(relative).split("/")
    path = folder.joinpath(*(plain_name(part, where) for part in parts)) if parts else folder
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{where} {str(PurePosixPath(*parts))!r} leads out of {folder} by a link: remove the link")
    return path


def printable(text: str) -> str:
    """A text without characters that a terminal obeys: it may quote what a file or a server says."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def safe_name(text: str) -> str:
    """A file name out of any text, a long one cut and told apart by part of its hash; "" if nothing of it is left."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")
    return name if len(name) <= _LONGEST_NAME else f"{name[:100]}_{short_hash(text)}"


def short_hash(text: str) -> str:
    """Eight hexadecimal digits that tell a text from others."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:8]


def no_link(folder: Path, what: str = "output") -> Path:
    """A folder to write into, which must not be a link: who made the link would choose where the files go.

    Raises:
        ValueError: it is one, or a file.
    """
    if folder.is_file() and not folder.is_symlink():
        raise ValueError(f"{folder}: the {what} is a file: name a folder")
    if folder.is_symlink():
        raise ValueError(f"{folder}: the {what} is a link to {os.readlink(folder)}: name the folder itself")
    return folder
