"""`write_page`: one HTML file from a template, with tables and pictures inside it and nothing that is fetched.

Its content security policy forbids everything but its own style sheet, its own pictures and, where a page has them, its
own scripts, all named by their hashes. So it can be opened where there is no network and mailed where nothing else may
be. Texts are escaped by Jinja, unless they are `Markup`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from custom.core.files import write_bytes

__all__ = [
    "Markup",
    "escape",
    "fragment",
    "hashes",
    "image",
    "picture",
    "render_page",
    "visible",
    "write_page",
]

#: Pixels across the page.
_WIDEST = 1152
_POLICY = "default-src 'none'; img-src data:; style-src {style}; base-uri 'none'; form-action 'none'"
# Controls but for tab and line feed, what turns the direction of writing round, and halves of characters, which no file
# can hold: a name must not be able to hide or rearrange what stands beside it.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Markup(str):
    """HTML that is complete and whose texts are escaped already."""

    def __html__(self) -> str:
        """What Jinja asks for."""
        return self


def escape(text: object) -> Markup:
    """Text from anywhere as HTML; `Markup` stays as it is.

    Characters that are invisible or turn the direction of writing round become U+FFFD, so that they can be seen.
    """
    return text if isinstance(text, Markup) else Markup(html.escape(_INVISIBLE.sub("\ufffd", str(text))))


def visible(value: Any) -> Any:
    """A value on its way into a page, before Jinja escapes it."""
    return value if hasattr(value, "__html__") else _INVISIBLE.sub("\ufffd", str(value))


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def _small_bracket(text: object) -> object:
    """A cell, its last bracket on a line of its own in small letters."""
    found = None if hasattr(text, "__html__") else re.fullmatch(r"(.*\S)\s*([(\[][^()\[\]]*[)\]])", str(text))
    return Markup(f"{escape(found[1])}<small>{escape(found[2])}</small>") if found else text


def hashes(text: str) -> Markup:
    """A text from a file, its hashes in letters of equal width."""
    return Markup(re.sub(r"\b[0-9a-f]{64}\b", lambda found: f'<span class="hash">{found[0]}</span>', escape(text)))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("custom.report"),
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    filters = {"anchor": _anchor, "small_bracket": _small_bracket, "base64": _base64}
    environment.filters.update(filters)
    return environment


def fragment(template: str, sections: list[str] | None = None, **content: Any) -> Markup:
    """What a template of `templates/` makes of its content; headings are added to `sections`."""
    return Markup(_templates().get_template(template).render(sections=[] if sections is None else sections, **content))


def render_page(
    template: str,
    title: str,
    lead: str = "",
    subject: str = "",
    style: str = "",
    scripts: Sequence[str] = (),
    **content: Any,
) -> str:
    """A whole page.

    Args:
        template: of what stands below the list of sections.
        title: its heading.
        lead: paragraph below it.
        subject: whom the page is about, beside the heading.
        style: rules that follow those of the house.
        scripts: JavaScript, run in this order when the page is complete. Must not hold "</script".
        content: what the template is given.
    """
    if any("</script" in script.lower() or "<!--" in script for script in scripts):
        raise ValueError("a script that holds '</script' or '<!--' would end or change the page around it")
    sections: list[str] = []
    body = fragment(template, sections, **content)
    style = (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8") + style
    policy = _POLICY.format(style=_source(style))
    if scripts:
        policy += "; script-src " + " ".join(map(_source, scripts))
    parts = {"policy": Markup(policy), "style": Markup(style), "scripts": [Markup(script) for script in scripts]}
    return fragment("page.html", sections, title=title, lead=lead, subject=subject, body=body, **parts)


def write_page(path: str | os.PathLike[str], template: str, title: str, **content: Any) -> Path:
    """Write a page of `render_page`, whole or not at all."""
    path = Path(path)
    write_bytes(path, render_page(template, title, **content).encode("utf-8"))
    return path


def image(picture: Image.Image, alternative: str, photograph: bool = False) -> Markup:
    """A picture inside the page: PNG, or JPEG, which is a fraction of its size for radiographs and slices."""
    stream = io.BytesIO()
    if photograph:
        smooth = picture if picture.mode == "L" else picture.convert("RGB")
        smooth.save(stream, "JPEG", quality=85, optimize=True)
    else:
        picture.save(stream, "PNG", optimize=True)
    kind = "jpeg" if photograph else "png"
    return Markup(f'<img src="data:image/{kind};base64,{_base64(stream.getvalue())}" alt="{escape(alternative)}">')


def picture(path: str | os.PathLike[str], alternative: str, photograph: bool = False) -> Markup:
    """The PNG of a file inside the page, with at most 256 colours.

    Args:
        path: of the file.
        alternative: what it shows, for those who do not see it.
        photograph: as JPEG of at most the page's width, a fraction of the size of a PNG for slices of a CT.
    """
    with Image.open(path) as opened:
        shown = opened.convert("RGB")
    if photograph:
        shown.thumbnail((_WIDEST, shown.height))
        return image(shown, alternative, photograph=True)
    return image(shown.quantize(256, dither=Image.Dither.NONE), alternative)


def _source(content: str) -> str:
    """How a content security policy names a style sheet or script inside the page."""
    return f"'sha256-{_base64(hashlib.sha256(content.encode()).digest())}'"
