"""`fewview-ct app` in a real browser: radiographs of the sample patient, a missing fact, CT and report, by keyboard.

FEWVIEW_SCREENSHOTS names a folder that gets the pictures of the documentation.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium, find_chromium
from PIL import Image

from custom.data.sample import sample_ct
from custom.data.simulate import Acquisition, simulate_case
from custom.dicom.write_dx import write_dx
from custom.evaluation.evaluate import load_hu

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]

COMMAND = [sys.executable, "-c", "from custom.cli import main; main()", "app", "--port", "0"]
PHONE, DESK = (390, 844), (1180, 900)
LARGEST = 300_000


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A frontal one that does not say its distances, and a lateral one that does not say which way round it is."""
    folder = tmp_path_factory.mktemp("radiographs")
    hu, affine = load_hu(sample_ct())
    image, geometry = simulate_case(hu, affine, Acquisition("paper", (270.0, 0.0), "cone", 1650.0, 1800.0))
    missing = (
        {"drop": ("DistanceSourceToDetector", "DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor")},
        {"empty": ("PatientOrientation",)},
    )
    views = zip(("frontal", "lateral"), image.numpy(), geometry.tensor().numpy(), missing, strict=True)
    return [write_dx(folder / f"{name}.dcm", one, view, photons=4e6, **gone) for name, one, view, gone in views]


class Server:
    """The app in a process of its own; its address is what it says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [*COMMAND, "--folder", str(folder)], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+)/", said)
        assert found, said
        self.address = found[1]

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(30)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "cases")
    yield running
    if running.process.poll() is None:
        running.end(signal.SIGTERM)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(tmp_path / "profile", *DESK) as chromium:
        yield chromium


def look(browser: Chromium, name: str) -> None:
    """Nothing sticks out at a phone's width; the picture of both widths is kept where it is asked for."""
    for kind, (width, height) in (("phone", PHONE), ("desk", DESK)):
        browser.resize(width, height, mobile=kind == "phone")
        browser.wait_for(f"document.documentElement.clientWidth <= {width}")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, (name, kind)
        folder = os.environ.get("FEWVIEW_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            picture = Image.open(io.BytesIO(browser.screenshot(whole=True))).convert("RGB")
            picture = picture.crop((0, 0, picture.width, min(picture.height, 2 * height)))
            picture.save(Path(folder, f"app_{name}_{kind}.jpg"), quality=80, optimize=True)
            assert Path(folder, f"app_{name}_{kind}.jpg").stat().st_size <= LARGEST


def focus_on(browser: Chromium, selector: str, most: int = 60) -> None:
    """Press Tab until an element has the focus, which has to be seen."""
    for _ in range(most):
        browser.press("Tab", 9)
        if browser.evaluate(f"document.activeElement.matches({selector!r})"):
            assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            return
    raise AssertionError(f"{selector} is not reached by the keyboard")


def enter(browser: Chromium) -> None:
    browser.press("Enter", 13, "\r")


def text(browser: Chromium) -> str:
    return browser.evaluate("document.body.innerText")


def test_from_radiographs_to_the_report_by_keyboard_alone(
    browser: Chromium, server: Server, radiographs: list[Path]
) -> None:
    browser.visit(f"{server.address}/", "document.getElementById('files') !== null")
    look(browser, "start")
    focus_on(browser, "#files")
    browser.give_files("#files", *radiographs)
    browser.wait_for("document.getElementById('answers') !== null", 240)  # the page of the work may pass unseen
    assert "Distance A, source to detector" in text(browser) and "Which way round is the picture?" in text(browser)
    picture = np.asarray(Image.open(io.BytesIO(browser.screenshot(".radiograph img"))).convert("L"))
    assert picture.std() > 30, "the radiograph is shown"
    look(browser, "questions")

    focus_on(browser, '[name="0:source_to_detector_mm"]')
    browser.write("1800")
    focus_on(browser, '[name="0:source_to_isocenter_mm"]')
    browser.write("1650")
    focus_on(browser, '[name="1:orientation"]')
    for key in "patient's f":  # a menu is chosen from by typing
        browser.press(key, ord(key.upper()), key)
    assert browser.evaluate("document.activeElement.value") == '"A\\\\F"'
    focus_on(browser, "#answers button.main")
    enter(browser)
    browser.wait_for("document.getElementById('model') !== null", 120)
    assert "What was read" in text(browser) and "your answer" in text(browser)
    assert browser.evaluate("[...document.querySelectorAll('.stack span')].map(e => e.textContent).join('')") == "LRPA"
    assert browser.evaluate("document.querySelectorAll('.setup')[0].getAttribute('transform')") == "rotate(180)"
    look(browser, "read")

    focus_on(browser, ".run button.main")
    enter(browser)
    browser.wait_for("document.getElementById('working') !== null")
    case = browser.evaluate("location.pathname")
    time.sleep(3)  # in the midst of the work
    server.end(signal.SIGKILL)
    again = Server(server.folder)
    try:
        browser.visit(f"{again.address}{case}", "document.getElementById('working') !== null")
        browser.wait_for("document.querySelector('.verdict') !== null", 300)
        assert "PASS" in text(browser) or "REVIEW" in text(browser)
        look(browser, "result")
        downloads = browser.evaluate(
            "Promise.all([...document.querySelectorAll('a[download]')].map(async (a) => {"
            " const got = await fetch(a.href); const bytes = new Uint8Array(await got.arrayBuffer());"
            " return [a.href.split('/').pop(), got.status, bytes[0] * 256 + bytes[1]]; }))"
        )
        kinds = {name: (status, start) for name, status, start in downloads}
        assert kinds["ct.nii.gz"] == (200, 0x1F8B) and kinds["dicom.zip"] == (200, 0x504B)
        browser.visit(f"{again.address}{case}/view/report.html", "document.documentElement?.dataset.viewer === 'ready'")
        browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        canvas = np.asarray(Image.open(io.BytesIO(browser.screenshot("#viewer-canvas"))).convert("L"))
        assert canvas.std() > 30 and len(np.unique(canvas)) > 50, "air, lung, water and bone"
        said = [line for line in browser.console if server.address not in line]  # that one was killed
        assert [line for line in said if line.startswith(("error", "exception", "assert"))] == []
        assert all(url.startswith((again.address, server.address, "data:", "blob:")) for url in browser.requests)
    finally:
        again.end(signal.SIGTERM)


def test_what_cannot_be_read_is_left_out_and_a_radiograph_added_without_losing_an_answer(
    browser: Chromium, server: Server, radiographs: list[Path], tmp_path: Path
) -> None:
    frontal, lateral = radiographs
    wrong = [tmp_path / "letter.pdf", tmp_path / "photo.jpg"]
    for path, start in zip(wrong, (b"%PDF-1.7 ", b"\xff\xd8\xff\xe0"), strict=True):
        path.write_bytes(start + bytes(200))
    loaded = "document.readyState === 'complete' && "  # the script that sends is there
    browser.visit(f"{server.address}/", f"{loaded}document.getElementById('files') !== null")
    browser.give_files("#files", *wrong, frontal)
    browser.wait_for("document.querySelector('.files small') !== null", 240)
    assert "2 of 3 files cannot be read" in text(browser)
    look(browser, "wrong")
    focus_on(browser, "button.main")
    enter(browser)
    browser.wait_for(f"{loaded}document.getElementById('answers') !== null", 240)
    assert "letter.pdf" not in text(browser)

    focus_on(browser, '[name="0:source_to_detector_mm"]')
    browser.write("1800")
    browser.give_files("#files", lateral)
    browser.wait_for(f"{loaded}document.querySelectorAll('.radiograph').length === 2", 240)
    assert browser.evaluate("""document.querySelector('[name="0:source_to_detector_mm"]').value""") == "1800"
    assert "Which way round is the picture?" in text(browser)
    too_many = [tmp_path / f"{number}.dcm" for number in range(15)]
    for path in too_many:
        path.write_bytes(b"x")
    browser.give_files("#files", *too_many)
    browser.wait_for("document.getElementById('sending').textContent !== ''")
    assert "These are 15 files; at most 14 more are taken." in text(browser)


def test_files_chosen_before_the_script_came_are_sent(browser: Chromium, server: Server) -> None:
    """A slow machine shows the page before its script, which then has no event any more to hear."""
    browser.before_loading(
        "new MutationObserver((_, seen) => { const input = document.getElementById('files'); if (!input) return;"
        " seen.disconnect(); const given = new DataTransfer(); given.items.add(new File(['x'.repeat(200)], 'a.dcm'));"
        " input.files = given.files; input.dispatchEvent(new Event('change')); })"
        ".observe(document, { childList: true, subtree: true });"
    )
    browser.visit(f"{server.address}/", "document.querySelector('.files small') !== null", 120)
    assert "1 of 1 files cannot be read" in text(browser)


def test_a_foreign_page_cannot_use_the_app(browser: Chromium, server: Server, tmp_path: Path) -> None:
    page = tmp_path / "foreign.html"
    page.write_text("<p>a</p>")
    browser.open(page, "document.readyState === 'complete'")
    attempt = (
        f"fetch('{server.address}/cases', {{method: 'POST', mode: 'no-cors'}}).then(() => 'sent', () => 'stopped')"
    )
    browser.evaluate(attempt)
    assert not [path for path in server.folder.iterdir() if path.is_dir()], "no case was made"
    frame = f"new Promise(done => {{ const f = document.createElement('iframe'); f.src = '{server.address}/'; " \
        "f.onload = () => { try { done(f.contentDocument ? 'read' : 'closed'); } catch { done('closed'); } }; " \
        "document.body.append(f); })"  # fmt: skip
    assert browser.evaluate(frame) == "closed"
