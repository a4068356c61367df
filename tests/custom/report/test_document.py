"""The page needs nothing but itself, and takes no text for markup."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from custom.report.document import picture, write_page
from tests.custom.report.page_reader import Page

EVIL = '<script src="https://example.org/x.js">alert(1)</script>" onload="x'


@pytest.fixture
def page(tmp_path: Path) -> str:
    file = tmp_path / "p.png"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(file)
    path = write_page(
        tmp_path / "page.html",
        "benchmark.html",
        EVIL,
        lead=EVIL,
        columns=[EVIL],
        tables=[(EVIL, [[EVIL, "20.98 (20.10 to 21.60)"], ["b", EVIL]], [(0, 1)])],
        few=True,
        tests=[[EVIL] * 7],
        reference=EVIL,
        patients=[[EVIL] * 3],
        patients_of=EVIL,
        planned=[(EVIL, [EVIL, "views", EVIL], [[EVIL] * 3])],
        gaps=[[EVIL] * 5],
        ranking=picture(file, EVIL),
        leads=[[EVIL] * 7],
        others=EVIL,
        compared=EVIL,
        boxes=[(EVIL, picture(file, EVIL))],
        montages=[(EVIL, picture(file, EVIL, photograph=True))],
        guided=[EVIL],
        view_sets=[[EVIL] * 3],
        methods=[[EVIL] * 3],
        datalist=EVIL,
        cases=[EVIL],
    )
    return path.read_text()


def test_nothing_is_fetched_and_nothing_runs(page: str) -> None:
    reader = Page(page)
    assert not reader.open, "every tag is closed"
    names = {tag for tag, _ in reader.tags}
    assert not names & {"script", "link", "iframe", "object", "base", "form"}
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:image/", "#")), (tag, attributes)
    kinds = [attributes["src"].split(";")[0] for tag, attributes in reader.tags if tag == "img"]  # type: ignore[union-attr]
    assert kinds == ["data:image/png", "data:image/png", "data:image/jpeg"]


def test_the_policy_allows_its_own_style_alone(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert policy is not None and style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy[1].split("; ")[:3] == ["default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'"]
    assert "url(" not in style[1] and "@import" not in style[1]


def test_an_interval_stands_below_its_mean(page: str) -> None:
    assert '<td class="best">20.98<small>(20.10 to 21.60)</small></td>' in page
