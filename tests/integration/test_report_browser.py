"""The report in a real browser: opened from the disk, looked at, operated, printed."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from chromium import Chromium, find_chromium
from PIL import Image
from report_content import MARK_MM, content

from custom.report.reconstruction_page import write_report

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]

STATE = "document.documentElement?.dataset.viewer"
MOST_PAGES = 6


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A reprojection of half the density cannot be taken for its radiograph.
    shown = content(reprojections=content().image / 2)
    return write_report(tmp_path_factory.mktemp("report") / "report.html", shown)


@pytest.fixture
def browser(tmp_path: Path, report: Path) -> Iterator[Chromium]:
    with Chromium(tmp_path / "profile") as chromium:
        chromium.open(report, f"{STATE} === 'ready'")
        yield chromium


def pixels(picture: bytes) -> npt.NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(np.int16)


def canvas(browser: Chromium) -> npt.NDArray[np.int16]:
    browser.wait_for(
        "(() => { const c = document.getElementById('viewer-canvas');"
        f" return {STATE} === 'ready' && c.width === c.clientWidth && c.height === c.clientHeight; }})()"
    )
    # Two frames later the canvas shows what was asked for.
    browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return pixels(browser.screenshot("#viewer-canvas"))


def put(browser: Chromium, control: str, value: object, event: str = "input") -> None:
    browser.evaluate(
        f"(() => {{ const e = document.getElementById('viewer-{control}'); e.value = '{value}'; "
        f"e.dispatchEvent(new Event('{event}')); }})()"
    )


def readout(browser: Chromium) -> str:
    return browser.evaluate("document.getElementById('viewer-readout').textContent")


def move_to(browser: Chromium, place_mm: tuple[float, float, float]) -> None:
    """Sliders to a place; the volume is 320 mm wide, with the isocentre in its middle."""
    for axis, mm in zip("xyz", place_mm, strict=True):
        put(browser, axis, round(0.5 + mm / 320, 3))


def coloured(picture: npt.NDArray[np.int16]) -> float:
    """Share of pixels that are not grey, those of the cross and the letters (orange) left out."""
    spread = picture.max(-1) - picture.min(-1)
    return float(((spread > 12) & (picture[..., 2] >= picture[..., 1])).mean())


def test_the_uncertainty_is_off_at_first_and_stands_instead_of_the_ct(browser: Chromium) -> None:
    grey = canvas(browser)
    assert grey.std() > 30 and len(np.unique(grey)) > 50, "air, lung, water and bone"
    assert coloured(grey) < 0.002, "nothing colours the CT"
    put(browser, "spread", 1, "change")
    spread = canvas(browser)
    assert coloured(spread) > 0.1
    # The same picture whatever the grey levels are: nothing of the CT shines through.
    put(browser, "window", "-300 1000", "change")
    assert np.abs(canvas(browser) - spread).mean() < 0.05
    put(browser, "window", "-1000 400", "change")
    put(browser, "spread", 0, "change")
    assert np.abs(canvas(browser) - grey).mean() < 0.05


@pytest.mark.parametrize("height", [800, 720])
def test_the_viewer_stands_beside_the_radiographs_within_the_first_screen(browser: Chromium, height: int) -> None:
    browser.resize(1280, height)
    boxes = browser.evaluate(
        "['.given', '.given figure', '#viewer-canvas'].map(name => {"
        " const b = document.querySelector(name).getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })"
    )
    column, _, viewer = boxes
    assert column[2] <= viewer[0] and abs(column[1] - viewer[1]) < 5, "beside each other"
    assert viewer[3] <= height, "the planes are seen without scrolling"


def test_the_menu_follows_a_box_that_is_drawn(browser: Chromium) -> None:
    before = canvas(browser)
    left, top, width, height = browser.evaluate(
        "(() => { const b = document.getElementById('viewer-canvas').getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height]; })()"
    )
    # Within the first of three planes, the axial one: lung, heart and what is between them.
    box = [(left + x * width / 3, top + y * height) for x, y in ((0.25, 0.35), (0.75, 0.65))]
    browser.drag(*box, button="right")
    browser.wait_for("document.getElementById('viewer-window').selectedOptions[0].textContent.startsWith('Drawn, ')")
    low, high = map(int, browser.evaluate("document.getElementById('viewer-window').value").split())
    assert low == -800 and 0 <= high <= 400, "from lung to water or spine"
    assert np.abs(canvas(browser) - before).mean() > 1
    # Another volume keeps it, and a preset takes its place.
    put(browser, "volume", "volume-sample-1", "change")
    browser.wait_for("document.getElementById('viewer-readout').textContent.includes('HU')")
    assert browser.evaluate("document.getElementById('viewer-window').value") == f"{low} {high}"
    put(browser, "volume", "volume-ct", "change")
    put(browser, "window", "-1000 400", "change")
    browser.drag(*box, button="right")
    browser.wait_for(f"document.getElementById('viewer-window').value === '{low} {high}'")
    assert browser.evaluate("document.getElementById('viewer-window').options.length") == 5, "one entry for all boxes"


def test_values_and_sides_are_those_of_the_volume(browser: Chromium) -> None:
    move_to(browser, (65.0, 0.0, 0.0))
    assert readout(browser).startswith("-800 HU ± 150 HU at 6") and "mm right" in readout(browser)
    move_to(browser, MARK_MM)
    assert readout(browser).startswith("1000 HU ± 150 HU")
    assert re.search(r"\d+ mm right, \d+ mm anterior, \d+ mm superior", readout(browser))
    put(browser, "window", "-300 1000", "change")
    # The mark is the only white thing: to the patient's right, which is on the left, in front and above.
    for layout, across, down in (("axial", 0, 1), ("coronal", 0, 2), ("sagittal", 1, 2)):
        put(browser, "layout", layout, "change")
        picture = canvas(browser)
        rows, columns = np.nonzero(picture.min(-1) > 240)
        assert len(rows) > 100, layout
        side = min(picture.shape[:2])
        x = (np.median(columns) - picture.shape[1] / 2) / side * 320
        y = (np.median(rows) - picture.shape[0] / 2) / side * 320
        assert (x, y) == pytest.approx((-MARK_MM[across], -MARK_MM[down]), abs=12), layout


def test_samples_can_be_chosen_and_the_place_stays(browser: Chromium) -> None:
    move_to(browser, (65.0, 0.0, 0.0))
    before, place = canvas(browser), readout(browser).split(" at ")[1]
    for sample, value in ((1, -770), (2, -830)):
        put(browser, "volume", f"volume-sample-{sample}", "change")
        browser.wait_for(f"document.getElementById('viewer-readout').textContent.startsWith('{value} HU')")
        assert readout(browser).split(" at ")[1] == place
        assert np.abs(canvas(browser) - before).mean() > 0.5
    put(browser, "volume", "volume-ct", "change")
    browser.wait_for("document.getElementById('viewer-readout').textContent.startsWith('-800 HU')")
    assert np.abs(canvas(browser) - before).mean() < 0.05


def test_the_radiograph_blends_into_its_reprojection(browser: Chromium) -> None:
    box = ".pictures .stack"
    before = pixels(browser.screenshot(box))
    browser.evaluate(
        "(() => { const e = document.querySelector('.blend input'); "
        "e.value = 1; e.dispatchEvent(new Event('input')); })()"
    )
    again = pixels(browser.screenshot(".pictures figure:nth-child(2) .stack"))
    after = pixels(browser.screenshot(box))
    assert before.std() > 30 and np.abs(after - before).mean() > 10
    # They stand at different fractions of a pixel.
    assert np.abs(after - again).mean() < 3, "wholly the reprojection"


def test_nothing_is_fetched_and_the_console_has_no_error(browser: Chromium, report: Path) -> None:
    put(browser, "volume", "volume-sample-1", "change")
    put(browser, "layout", "render", "change")
    canvas(browser)
    assert browser.requests[0] == report.resolve().as_uri()
    assert [url[:40] for url in browser.requests[1:] if not url.startswith("data:image/")] == []
    assert [line for line in browser.console if line.startswith(("error", "exception", "assert"))] == []


def test_the_policy_stops_foreign_scripts_styles_and_connections(browser: Chromium) -> None:
    attack = """(async () => {
      const add = (html) => document.body.insertAdjacentHTML('beforeend', html);
      const script = document.createElement('script');
      script.textContent = 'window.inline = 1';
      document.body.append(script);
      add('<img src="data:," onerror="window.handler = 1"><p id="styled" style="color: rgb(1, 2, 3)">a</p>');
      const click = document.createElement('a');
      click.href = 'javascript:window.link = 1';
      document.body.append(click);
      click.click();
      const refused = async (work) => { try { await work(); return false; } catch { return true; } };
      await new Promise((done) => setTimeout(done, 300));
      return {
        ran: ['inline', 'handler', 'link'].filter((name) => name in window),
        styled: getComputedStyle(document.getElementById('styled')).color === 'rgb(1, 2, 3)',
        eval: await refused(() => (0, eval)('1')),
        fetch: await refused(() => fetch('http://127.0.0.1:9/')),
        worker: await refused(() => new Promise((_, no) => {
          new Worker(URL.createObjectURL(new Blob(['1']))).onerror = () => no(new Error());
        })),
      };
    })()"""
    found = browser.evaluate(attack)
    assert found == {"ran": [], "styled": False, "eval": True, "fetch": True, "worker": True}
    assert not any(url.startswith("http") for url in browser.requests)


def test_without_webgl_the_pictures_take_the_viewers_place(tmp_path: Path, report: Path) -> None:
    with Chromium(tmp_path / "profile") as chromium:
        chromium.before_loading("HTMLCanvasElement.prototype.getContext = () => null;")
        chromium.open(report, f"{STATE} === 'failed'")
        assert "no WebGL 2" in chromium.evaluate("document.getElementById('viewer-note').textContent")
        assert chromium.evaluate("getComputedStyle(document.getElementById('viewer')).display") == "none"
        assert pixels(chromium.screenshot("#planes img")).std() > 30


def test_a_lost_picture_is_said_and_comes_back_as_it_was(browser: Chromium) -> None:
    put(browser, "volume", "volume-sample-1", "change")
    browser.wait_for("document.getElementById('viewer-readout').textContent.startsWith('50 HU')")
    put(browser, "window", "-300 1000", "change")
    put(browser, "layout", "coronal", "change")
    move_to(browser, MARK_MM)
    before, said = canvas(browser), readout(browser)
    browser.evaluate(
        "window.lose = document.getElementById('viewer-canvas').getContext('webgl2').getExtension('WEBGL_lose_context')"
    )
    for _ in range(2):
        browser.evaluate("lose.loseContext()")
        browser.wait_for(f"{STATE} === 'lost'")
        assert "lost the viewer's picture" in browser.evaluate("document.getElementById('viewer-note').textContent")
        assert browser.evaluate("getComputedStyle(document.getElementById('viewer')).display") == "none"
        assert pixels(browser.screenshot("#planes img")).std() > 30, "a picture stands in for it"
        browser.evaluate("lose.restoreContext()")
        browser.wait_for(f"{STATE} === 'ready'")
        assert np.abs(canvas(browser) - before).mean() < 0.05
        assert readout(browser) == said
    # It is operated as before, by one viewer and not by two.
    put(browser, "spread", 1, "change")
    assert coloured(canvas(browser)) > 0.1
    put(browser, "spread", 0, "change")
    put(browser, "volume", "volume-ct", "change")
    browser.wait_for("document.getElementById('viewer-readout').textContent.startsWith('1000 HU')")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_sticks_out_at_any_width(browser: Chromium, width: int) -> None:
    browser.resize(width, 844, mobile=width < 500)
    browser.wait_for(f"document.documentElement.clientWidth <= {width}")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert canvas(browser).std() > 20


def test_it_prints_on_a4(browser: Chromium, tmp_path: Path) -> None:
    put(browser, "spread", 1, "change")
    content_of_pdf = browser.print_to_pdf()
    sizes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content_of_pdf)
    assert 2 <= len(sizes) <= MOST_PAGES
    for size in sizes:
        assert tuple(map(float, size)) == pytest.approx((595, 842), abs=2), "A4 in points"
    # What is printed is what the printing style shows: the pictures instead of the viewer.
    browser.emulate("print")
    seen: dict[str, Any] = browser.evaluate(
        "Object.fromEntries(['#planes', '#viewer', '.controls', 'nav', '.blend', '.stamp', '.verdict'].map(name => {"
        " const s = getComputedStyle(document.querySelector(name));"
        " return [name, s.display !== 'none' && s.visibility !== 'hidden']; }))"
    )
    assert seen == {"#planes": True, "#viewer": False, ".controls": False, "nav": False, ".blend": False,
                    ".stamp": True, ".verdict": True}  # fmt: skip
    assert pixels(browser.screenshot("#planes img")).std() > 30
    # No row is broken by the end of a page, unless it were longer than one.
    rows = browser.evaluate(
        "[...document.querySelectorAll('tr')].map(row =>"
        " [getComputedStyle(row).breakInside, row.getBoundingClientRect().height])"
    )
    assert len(rows) > 20 and {how for how, _ in rows} == {"avoid"} and max(height for _, height in rows) < 500
    heads = browser.evaluate("[...document.querySelectorAll('h2')].map(head => getComputedStyle(head).breakAfter)")
    assert set(heads) == {"avoid"}


@pytest.mark.skipif(
    shutil.which("pdftoppm") is None, reason="pdftoppm is missing (Debian: apt-get install poppler-utils)"
)
def test_no_printed_page_is_empty_or_cut_off(browser: Chromium, tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(browser.print_to_pdf())
    subprocess.run(["pdftoppm", "-r", "60", "-png", tmp_path / "report.pdf", tmp_path / "page"], check=True)
    pages = sorted(tmp_path.glob("page*.png"))
    assert 2 <= len(pages) <= MOST_PAGES
    for path in pages:
        ink = np.asarray(Image.open(path).convert("L")) < 200
        assert ink.mean() > 0.005, f"{path.name} is empty"
        margin = 20  # pixels of 25.4 / 60 mm
        assert not ink[:, :margin].any() and not ink[:, -margin:].any(), f"{path.name} is cut off at a side"
