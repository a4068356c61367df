"""`Rejection`: an input that was left out of a cohort, with its reason; the table of them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from rich.console import Console
from rich.table import Table
from rich.text import Text

from custom.core.csv_files import csv_bytes
from custom.core.names import printable


class Rejected(ValueError):
    """An input that cannot become a case. The message is the reason, and names the file where one is to blame."""


@dataclass(frozen=True, order=True)
class Rejection:
    """One line of the table of what was left out.

    Attributes:
        source: file or folder, relative to the input.
        kind: "scan", "series", "file", "label" or "split".
        reason: why, in words.
        case: the case name where one was given.
        patient: the patient identifier where known.
        series_uid: SeriesInstanceUID (0020,000E) where known.
        files: number of files concerned.
    """

    source: str
    kind: str
    reason: str
    case: str = ""
    patient: str = ""
    series_uid: str = ""
    files: int = 1


def to_csv(rejections: Iterable[Rejection]) -> bytes:
    """The table as CSV, sorted, so that the same input gives the same bytes."""
    return csv_bytes((asdict(r) for r in sorted(rejections)), [f.name for f in fields(Rejection)])


def show(rejections: Iterable[Rejection], console: Console | None = None, limit: int = 60) -> None:
    """The table on the terminal, ``limit`` rows of it at most (standard error by default)."""
    rows = sorted(rejections)
    if not rows:
        return
    table = Table(title=f"left out: {len(rows)}", show_lines=False)
    for column in ("source", "kind", "files", "reason"):
        table.add_column(column, overflow="fold")
    for row in rows[:limit]:
        # Text, since rich takes brackets in a plain string for markup; what a terminal obeys, file names may hold.
        table.add_row(*(Text(printable(cell)) for cell in (row.source, row.kind, str(row.files), row.reason)))
    if len(rows) > limit:
        table.caption = f"{len(rows) - limit} more in rejected.csv"
    (console or Console(stderr=True)).print(table)
