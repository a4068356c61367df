"""`scripts/read_collection.py`: what the reader says to each file of a folder, counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hand_written_dicom import dx, save, without

ROOT = Path(__file__).parent.parent


def test_files_are_counted_by_modality_and_manufacturer(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "read.dcm", dx(Manufacturer="Maker"))
    save(tmp_path / "in" / "copy.dcm", dx(Manufacturer="Maker"))
    save(tmp_path / "in" / "asked.dcm", without(dx(Manufacturer="Maker"), "DistanceSourceToDetector"))
    save(tmp_path / "in" / "ct", dx(Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2"))
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    (tmp_path / "in" / "broken.dcm").write_text("no DICOM")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "read_collection.py", tmp_path / "in"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert table == [
        "| modality | manufacturer | read | asked | refused | failed |",
        "| CT | none | 0 | 0 | 1 | 0 |",
        "| DX | MAKER | 1 | 1 | 0 | 0 |",
        "| none | none | 0 | 0 | 1 | 0 |",
    ]
    assert "asked.dcm: the distance from source to detector" in done.stdout
    assert ", not a radiograph (a CT already" in done.stdout
