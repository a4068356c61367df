"""Writer of CSV files that spreadsheets can open safely: no cell is a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["cell", "csv_bytes", "text_of"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")


def cell(value: Any) -> Any:
    """A value as a cell: a text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) else value


def text_of(text: str) -> str:
    """The inverse of `cell` for a text that was read."""
    return text[1:] if text.startswith("'") and text[1:].lstrip(" ").startswith(_FORMULA) else text


def csv_bytes(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """A table in UTF-8, with a line of column names; bytes of a file's name that are none as a backslash and a number.

    Args:
        rows: a mapping each; keys that are missing are empty.
        columns: names, in their order.
    """
    lines = io.StringIO()
    writer = csv.DictWriter(lines, [cell(name) for name in columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows({cell(key): cell(value) for key, value in row.items()} for row in rows)
    return lines.getvalue().encode(errors="backslashreplace")
