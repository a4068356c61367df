"""A written report as a test reads it."""

from __future__ import annotations

import base64
import gzip
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
from report_content import content

from custom.report.reconstruction_page import write_report


class Page(HTMLParser):
    """Tags with their attributes, ids, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.tags, self.open, self.text = html, [], [], ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data

    def data(self, name: str) -> bytes:
        found = re.search(rf'<script type="application/octet-stream" id="{name}">([^<]*)</script>', self.html)
        assert found is not None, name
        return base64.b64decode(found[1])

    def volume(self, name: str) -> nib.Nifti1Image:
        return nib.Nifti1Image.from_bytes(gzip.decompress(self.data(name)))


def written(folder: Path, **changes: Any) -> Page:
    return Page(write_report(folder / "report.html", content(**changes)).read_text(encoding="utf-8"))
