"""One HTML file that holds a whole report: tables and pictures inside it, no script, nothing that is fetched.

Its content security policy forbids everything but its own style sheet and its own pictures, so that it can be opened
where there is no network and mailed where nothing else may be.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from custom.data.files import write_bytes

__all__ = ["Document"]

_STYLE = """
:root { color-scheme: light dark; --line: #d5d9de; --soft: #f4f6f8; --text: #1b1f24; --muted: #5b636d; --back: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --line: #363c44; --soft: #20252b; --text: #e6e8eb; --muted: #9aa3ad; --back: #15181c; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0 auto;
  max-width: 72rem; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
p { max-width: 46rem; }
nav a { margin-right: 1rem; }
a { color: inherit; }
.scroll { overflow-x: auto; margin: .8rem 0 1.4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th[scope=row], .words, thead th:first-child { text-align: left; }
th[scope=row] { font-weight: 500; white-space: nowrap; }
td.words { max-width: 40rem; }
thead th { background: var(--soft); }
td.best { font-weight: 700; }
small { display: block; color: var(--muted); font-weight: 400; white-space: nowrap; }
.muted { color: var(--muted); }
figure { margin: 1rem 0 1.6rem; }
img { max-width: 100%; height: auto; }
summary { cursor: pointer; font-weight: 600; margin: .6rem 0; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: 13px; }
@media print { details > * { display: block; } body { max-width: none; } }
"""
#: Pixels across the page.
_WIDEST = 1152
_POLICY = "default-src 'none'; img-src data:; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"


class Document:
    """A page that is written from top to bottom. All texts are escaped.

    Args:
        title: its heading.
        lead: paragraph below it.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self._sections: list[tuple[str, str]] = []
        self._parts: list[str] = []

    def section(self, heading: str) -> None:
        """Begin a section, which the list at the top leads to."""
        anchor = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
        self._sections.append((anchor, heading))
        self._parts.append(f'<h2 id="{anchor}">{html.escape(heading)}</h2>')

    def paragraph(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def code(self, text: str) -> None:
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        caption: str = "",
        best: Sequence[tuple[int, int]] = (),
        words: Sequence[int] = (),
    ) -> None:
        """Add a table.

        Args:
            head: of the columns.
            rows: cells; the first of each row names it. What stands in brackets at a cell's end is set small.
            caption: above it.
            best: cells (row, column) that are set bold.
            words: columns of running text, which are set flush left.
        """
        lines = [f"<caption>{html.escape(caption)}</caption>"] if caption else []
        marks = [' class="words"' if c in words else "" for c in range(len(head))]
        heads = [f'<th scope="col"{mark}>{html.escape(h)}</th>' for h, mark in zip(head, marks, strict=True)]
        lines.append("<thead><tr>" + "".join(heads) + "</tr></thead>")
        lines.append("<tbody>")
        for r, row in enumerate(rows):
            cells = [f'<th scope="row">{html.escape(row[0])}</th>']
            for c, text in enumerate(row[1:], 1):
                kinds = [kind for kind, holds in (("best", (r, c) in best), ("words", c in words)) if holds]
                mark = f' class="{" ".join(kinds)}"' if kinds else ""
                cells.append(f"<td{mark}>{html.escape(text) if c in words else _with_small(text)}</td>")
            lines.append("<tr>" + "".join(cells) + "</tr>")
        lines.append("</tbody>")
        self._parts.append('<div class="scroll"><table>' + "\n".join(lines) + "</table></div>")

    def picture(self, path: str | os.PathLike[str], alternative: str, photograph: bool = False) -> None:
        """Put a PNG into the page.

        Args:
            path: of the file.
            alternative: what it shows, for those who do not see it.
            photograph: as JPEG of at most the page's width, a fraction of the size of a PNG for slices of a CT.
        """
        content, kind = Path(path).read_bytes(), "png"
        if photograph:
            stream = io.BytesIO()
            with Image.open(io.BytesIO(content)) as picture:
                smaller = picture.convert("RGB")
                smaller.thumbnail((_WIDEST, smaller.height))
                smaller.save(stream, "JPEG", quality=85, optimize=True)
            content, kind = stream.getvalue(), "jpeg"
        data = base64.b64encode(content).decode()
        source = f"data:image/{kind};base64,{data}"
        self._parts.append(f'<figure><img src="{source}" alt="{html.escape(alternative)}"></figure>')

    def begin_details(self, summary: str, opened: bool = False) -> None:
        """What follows, up to `end_details`, is folded away until it is asked for, or from then on."""
        start = "<details open>" if opened else "<details>"
        self._parts.append(f"{start}<summary>{html.escape(summary)}</summary>")

    def end_details(self) -> None:
        self._parts.append("</details>")

    def html(self) -> str:
        """The whole page."""
        digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
        links = "".join(f'<a href="#{anchor}">{html.escape(name)}</a>' for anchor, name in self._sections)
        return "\n".join(
            [
                '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{_POLICY.format(digest)}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                '<meta name="referrer" content="no-referrer">',
                f"<title>{html.escape(self.title)}</title>",
                f"<style>{_STYLE}</style>\n</head>\n<body>",
                f"<h1>{html.escape(self.title)}</h1>",
                f"<p>{html.escape(self.lead)}</p>" if self.lead else "",
                f"<nav>{links}</nav>",
                *self._parts,
                "</body>\n</html>\n",
            ]
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, whole or not at all."""
        path = Path(path)
        write_bytes(path, self.html().encode("utf-8"))
        return path


def _with_small(text: str) -> str:
    """A cell, its last bracket on a line of its own in small letters."""
    found = re.fullmatch(r"(.*\S)\s*([(\[][^()\[\]]*[)\]])", text)
    return f"{html.escape(found[1])}<small>{html.escape(found[2])}</small>" if found else html.escape(text)
