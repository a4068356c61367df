"""One HTML file that holds a whole report: tables and pictures inside it, nothing that is fetched.

Its content security policy forbids everything but its own style sheet, its own pictures and, where a report has them,
its own scripts, all named by their hashes. So it can be opened where there is no network and mailed where nothing else
may be.
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

from custom.core.files import write_bytes

__all__ = ["Document", "Markup", "escape", "image"]

_STYLE = """
:root { color-scheme: light dark; --line: #d5d9de; --soft: #f4f6f8; --text: #1b1f24; --muted: #5b636d; --back: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --line: #363c44; --soft: #20252b; --text: #e6e8eb; --muted: #9aa3ad; --back: #15181c; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0 auto;
  max-width: 92rem; padding: 1.5rem; }
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
th[scope=row] { font-weight: 500; min-width: 9rem; max-width: 16rem; }
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
_POLICY = "default-src 'none'; img-src data:; style-src {style}; base-uri 'none'; form-action 'none'"
# Controls but for tab and line feed, what turns the direction of writing round, and halves of characters, which no file
# can hold: a name must not be able to hide or rearrange what stands beside it.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Markup(str):
    """HTML that is complete and whose texts are escaped already."""


def escape(text: object) -> Markup:
    """Text from anywhere as HTML; `Markup` stays as it is.

    Characters that are invisible or turn the direction of writing round become U+FFFD, so that they can be seen.
    """
    return text if isinstance(text, Markup) else Markup(html.escape(_INVISIBLE.sub("\ufffd", str(text))))


class Document:
    """A page that is written from top to bottom. All texts are escaped, unless they are `Markup`.

    Args:
        title: its heading.
        lead: paragraph below it.
        style: rules that follow those of the house.
        scripts: JavaScript, run in this order when the page is complete. Must not hold "</script".
    """

    def __init__(self, title: str, lead: str = "", style: str = "", scripts: Sequence[str] = ()) -> None:
        if any("</script" in script.lower() or "<!--" in script for script in scripts):
            raise ValueError("a script that holds '</script' or '<!--' would end or change the page around it")
        self.title, self.lead = title, lead
        self._style, self._scripts = _STYLE + style, list(scripts)
        self._sections: list[tuple[str, str]] = []
        self._parts: list[str] = []

    def section(self, heading: str) -> None:
        """Begin a section, which the list at the top leads to."""
        anchor = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
        self._sections.append((anchor, heading))
        self._parts.append(f'<h2 id="{anchor}">{escape(heading)}</h2>')

    def paragraph(self, text: str) -> None:
        self._parts.append(f"<p>{escape(text)}</p>")

    def code(self, text: str) -> None:
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def markup(self, content: Markup) -> None:
        """Put in what is HTML already."""
        if not isinstance(content, Markup):
            raise TypeError("markup takes Markup, whose author has escaped its texts; a text goes to paragraph")
        self._parts.append(content)

    def data(self, name: str, content: bytes) -> None:
        """Put in bytes for the page's scripts: the element `name` has them as Base64. No browser runs them."""
        text = base64.b64encode(content).decode()
        self._parts.append(f'<script type="application/octet-stream" id="{escape(name)}">{text}</script>')

    def table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        caption: str = "",
        best: Sequence[tuple[int, int]] = (),
        words: Sequence[int] = (),
        kind: str = "",
    ) -> None:
        """Add a table.

        Args:
            head: of the columns.
            rows: cells; the first of each row names it. What stands in brackets at a cell's end is set small.
            caption: above it.
            best: cells (row, column) that are set bold.
            words: columns of running text, which are set flush left.
            kind: class of the table for the style sheet.
        """
        lines = [f"<caption>{escape(caption)}</caption>"] if caption else []
        marks = [' class="words"' if c in words else "" for c in range(len(head))]
        heads = [f'<th scope="col"{mark}>{escape(h)}</th>' for h, mark in zip(head, marks, strict=True)]
        lines.append("<thead><tr>" + "".join(heads) + "</tr></thead>")
        lines.append("<tbody>")
        for r, row in enumerate(rows):
            cells = [f'<th scope="row">{escape(row[0])}</th>']
            for c, text in enumerate(row[1:], 1):
                kinds = [kind for kind, holds in (("best", (r, c) in best), ("words", c in words)) if holds]
                mark = f' class="{" ".join(kinds)}"' if kinds else ""
                cells.append(f"<td{mark}>{escape(text) if c in words else _with_small(text)}</td>")
            lines.append("<tr>" + "".join(cells) + "</tr>")
        lines.append("</tbody>")
        start = f'<table class="{escape(kind)}">' if kind else "<table>"
        self._parts.append(f'<div class="scroll">{start}' + "\n".join(lines) + "</table></div>")

    def picture(self, path: str | os.PathLike[str], alternative: str, photograph: bool = False) -> None:
        """Put a PNG into the page, with at most 256 colours.

        Args:
            path: of the file.
            alternative: what it shows, for those who do not see it.
            photograph: as JPEG of at most the page's width, a fraction of the size of a PNG for slices of a CT.
        """
        if photograph:
            with Image.open(path) as picture:
                smaller = picture.convert("RGB")
            smaller.thumbnail((_WIDEST, smaller.height))
            inside = image(smaller, alternative, photograph=True)
        else:
            with Image.open(path) as picture:
                few_colours = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            inside = image(few_colours, alternative)
        self._parts.append(f"<figure>{inside}</figure>")

    def begin_details(self, summary: str, opened: bool = False) -> None:
        """What follows, up to `end_details`, is folded away until it is asked for, or from then on."""
        start = "<details open>" if opened else "<details>"
        self._parts.append(f"{start}<summary>{escape(summary)}</summary>")

    def end_details(self) -> None:
        self._parts.append("</details>")

    def append(self, other: Document) -> None:
        """Go on with the sections of another page; its title, style and scripts are left out."""
        self._sections += other._sections
        self._parts += other._parts

    def html(self) -> str:
        """The whole page."""
        policy = _POLICY.format(style=_source(self._style))
        if self._scripts:
            policy += "; script-src " + " ".join(map(_source, self._scripts))
        links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name in self._sections)
        return "\n".join(
            [
                '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                '<meta name="referrer" content="no-referrer">',
                f"<title>{escape(self.title)}</title>",
                f"<style>{self._style}</style>\n</head>\n<body>",
                f"<h1>{escape(self.title)}</h1>",
                f"<p>{escape(self.lead)}</p>" if self.lead else "",
                f"<nav>{links}</nav>",
                *self._parts,
                *(f"<script>{script}</script>" for script in self._scripts),
                "</body>\n</html>\n",
            ]
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, whole or not at all."""
        path = Path(path)
        write_bytes(path, self.html().encode("utf-8"))
        return path


def image(picture: Image.Image, alternative: str, photograph: bool = False) -> Markup:
    """A picture inside the page: PNG, or JPEG, which is a fraction of its size for radiographs and slices."""
    stream = io.BytesIO()
    if photograph:
        smooth = picture if picture.mode == "L" else picture.convert("RGB")
        smooth.save(stream, "JPEG", quality=85, optimize=True)
    else:
        picture.save(stream, "PNG", optimize=True)
    return _image(stream.getvalue(), "jpeg" if photograph else "png", alternative)


def _image(content: bytes, kind: str, alternative: str) -> Markup:
    data = base64.b64encode(content).decode()
    return Markup(f'<img src="data:image/{kind};base64,{data}" alt="{escape(alternative)}">')


def _source(content: str) -> str:
    """How a content security policy names a style sheet or script inside the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _with_small(text: str) -> str:
    """A cell, its last bracket on a line of its own in small letters."""
    found = None if isinstance(text, Markup) else re.fullmatch(r"(.*\S)\s*([(\[][^()\[\]]*[)\]])", text)
    return f"{escape(found[1])}<small>{escape(found[2])}</small>" if found else escape(text)
