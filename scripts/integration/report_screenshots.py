"""Pictures of a report for the documentation: its head, and its viewer with the uncertainty, each a PNG below 300 kB.

    python scripts/integration/report_screenshots.py RESULT/report.html docs/images

writes report_head.png and, of a report with samples, report_viewer.png with a headless Chromium.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "integration"))

from chromium import Chromium

WIDTH, LARGEST = 1180, 300_000


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
    save(whole.crop((0, 0, WIDTH, top["geometry-and-its-sources"])), arguments.folder / "report_head.png")


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
