"""Limits on the memory that a file may ask for, checked before it is taken. SECURITY.md has them in a table.

The environment variable FEWVIEW_LIMIT_FACTOR multiplies all of them, for those who trust a larger file.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["VARIABLE", "check_count", "check_expansion", "check_file_size", "raised"]

VARIABLE = "FEWVIEW_LIMIT_FACTOR"

#: Bytes that a compressed file may become whatever its own size, and how many times its size beyond that.
SMALL_BYTES, LARGEST_RATIO = 256 * 2**20, 50


def raised(limit: float) -> float:
    """A limit, multiplied by FEWVIEW_LIMIT_FACTOR where that is set.

    Raises:
        ValueError: the variable is no positive number.
    """
    text = os.environ.get(VARIABLE, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"{VARIABLE} is {text!r}: it multiplies all limits of memory and must be a positive number")
    return limit * factor


def check_count(where: object, what: str, count: float, limit: float) -> None:
    """Refuse more of something than is read.

    Args:
        where: the file, or what else the error begins with.
        what: is counted, such as "sequence items".
        count: how many there are.
        limit: how many are read, before `raised`.

    Raises:
        ValueError: there are more.
    """
    if not count <= raised(limit):
        raise ValueError(
            f"{where}: {count:.10g} {what} are more than the {raised(limit):.10g} that are read; {_remedy()}"
        )


def check_file_size(path: Path, limit: int) -> None:
    """Refuse a file of more bytes than `limit`, which is raised by FEWVIEW_LIMIT_FACTOR.

    Raises:
        ValueError: it is larger.
    """
    size = path.stat().st_size
    if size > raised(limit):
        raise ValueError(
            f"{path}: {_megabytes(size)} are more than the {_megabytes(raised(limit))} that are read; {_remedy()}"
        )


def check_expansion(path: Path, needed: float, small: int = SMALL_BYTES, series: int | None = None) -> None:
    """Refuse a compressed file that would become far larger than it is.

    Args:
        path: the file.
        needed: bytes that its content takes in memory, as its header says, or as many as were counted so far.
        small: bytes that are always allowed.
        series: bytes of all files together, where `path` is but one of them.

    Raises:
        ValueError: more than `small` and more than `LARGEST_RATIO` times the file.
    """
    size = path.stat().st_size if series is None else series
    allowed = raised(max(small, LARGEST_RATIO * size))
    if not needed <= allowed:
        what = "a file" if series is None else "with the other files of its series one"
        raise ValueError(
            f"{path}: {what} of {_megabytes(size)} that unpacks to {_megabytes(needed)} or more; at most "
            f"{_megabytes(allowed)} are read; {_remedy()}"
        )


def _megabytes(size: float) -> str:
    return f"{size / 2**20:.4g} MB"


def _remedy() -> str:
    return f"if the file can be trusted, set {VARIABLE}=10"
