"""Pictures of a report for the documentation, each a PNG below 300 kB.

    python scripts/integration/report_screenshots.py RESULT/report.html docs/images

writes report_head.png, report_phone.png, report_print.png (the first pages on paper) and, of a report with samples,
report_viewer.png with a headless Chromium; print needs pdftoppm (Debian: apt-get install poppler-utils).
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "integration"))

from chromium import Chromium

WIDTH, LARGEST = 1180, 300_000
PHONE = (390, 844)
#: Pages on paper that stand side by side, and their resolution.
PAGES, PRINT_DPI = 3, 72


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.html of a reconstruction")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Chromium(Path(profile), WIDTH) as browser:
        browser.open(arguments.report, "document.documentElement?.dataset.viewer === 'ready'")
        whole = Image.open(io.BytesIO(browser.screenshot(whole=True))).convert("RGB")
        top = {
            name: int(browser.evaluate(f"document.getElementById('{name}').getBoundingClientRect().top + scrollY"))
            for name in ("geometry-and-its-sources", "viewer-note")
        }
        show = (
            "(() => { const e = document.getElementById('viewer-spread'); if (!e) return false;"
            " e.value = 1; e.dispatchEvent(new Event('change')); return true; })()"
        )
        if browser.evaluate(show):
            browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            viewer = Image.open(io.BytesIO(browser.screenshot(whole=True))).convert("RGB")
            save(viewer.crop((0, 0, WIDTH, top["viewer-note"])), arguments.folder / "report_viewer.png")
            browser.evaluate(show.replace("e.value = 1", "e.value = 0"))
        on_paper = pages(browser.print_to_pdf())
        browser.resize(*PHONE, mobile=True)
        browser.wait_for(f"document.getElementById('viewer-canvas').width <= {PHONE[0]}")
        browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        end = int(browser.evaluate("document.querySelector('.overview').getBoundingClientRect().bottom + scrollY"))
        phone = Image.open(io.BytesIO(browser.screenshot(whole=True))).convert("RGB").crop((0, 0, PHONE[0], end))
    save(on_paper, arguments.folder / "report_print.png")
    save(phone, arguments.folder / "report_phone.png")
    save(whole.crop((0, 0, WIDTH, top["geometry-and-its-sources"])), arguments.folder / "report_head.png")


def pages(pdf: bytes) -> Image.Image:
    """The first pages side by side, with a grey line between them."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["pdftoppm", "-r", str(PRINT_DPI), "-l", str(PAGES), "-png", "-", f"{folder}/page"]
        subprocess.run(command, input=pdf, check=True)
        single = [Image.open(path).convert("RGB") for path in sorted(Path(folder).glob("page*.png"))]
    side_by_side = Image.new("RGB", (sum(page.width + 4 for page in single) - 4, single[0].height), "grey")
    for number, page in enumerate(single):
        side_by_side.paste(page, (number * (page.width + 4), 0))
    return side_by_side


def save(picture: Image.Image, path: Path) -> None:
    """As few colours as it takes to stay below the size."""
    for colours in (256, 128, 64, 32):
        stream = io.BytesIO()
        # The default method would give up the few pixels of the colour scale.
        reduced = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=4)
        reduced.save(stream, "PNG", optimize=True)
        if stream.tell() <= LARGEST:
            path.write_bytes(stream.getvalue())
            return
    raise ValueError(f"{path}: {stream.tell()} bytes with {colours} colours; narrow the window")


if __name__ == "__main__":
    main()
