"""What the site has beside docs/: the front page, the bundles' pages, and one page of Python a room.

MkDocs reads files below one folder; a bundle's page must stand in its bundle. So they are added here, and links that
lead out of docs/ are led to them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FRONT = "README.md"
ADDED = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "bundles/*/docs/README.md",
    "bundles/*/models/*",
)
#: Files that pages link to as they are.
SHOWN = ("LICENSE", "CITATION.cff", "custom/data/sample/README.md", "tests/integration/*.py")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/, under its own path, and the pages of Python."""
    for pattern in (*ADDED, *SHOWN):
        for path in sorted(ROOT.glob(pattern)):
            if path.suffix not in (".pt", "") or path.name == "LICENSE":
                name = _uri(path.relative_to(ROOT).as_posix())
                files.append(File.generated(config, name, abs_src_path=str(path)))
    for room in sorted(p.parent.name for p in (ROOT / "custom").glob("*/__init__.py")):
        files.append(File.generated(config, f"api/{room}.md", content=f"# custom.{room}\n\n::: custom.{room}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links between docs/ and the rest of the repository to where those files are on the site."""
    source = page.file.src_uri
    here = "README.md" if source == "index.md" else source if source.split("/")[0] == "bundles" else f"docs/{source}"
    if source in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "custom/data/sample/README.md"):
        here = source

    def on_site(match: re.Match[str]) -> str:
        target, anchor = match.group(2), match.group(3) or ""
        if "://" in target or target.startswith(("#", "mailto:")):
            return match.group(0)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        uri = _uri(path.removeprefix("docs/"))
        return f"{match.group(1)}({posixpath.relpath(uri, posixpath.dirname(source) or '.')}{anchor})"

    return re.sub(r"(\])\(([^)\s#]+)(#[^)]*)?\)", on_site, markdown)


def _uri(path: str) -> str:
    return "index.md" if path == FRONT else path
