"""Outputs are for the user alone, and open in a spreadsheet without running."""

from __future__ import annotations

import csv
import io
import stat
from pathlib import Path

import pytest

from custom.core.atomic_directory import atomic_directory
from custom.core.csv_files import csv_bytes
from custom.core.files import write_bytes
from custom.core.rejection import Rejection, to_csv
from custom.metrics.tables import read_csv, write_csv


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(None, 0o600, 0o700), ("027", 0o640, 0o750), ("022", 0o644, 0o755)]
)
def test_modes(umask: str | None, file: int, folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWVIEW_UMASK", umask) if umask else monkeypatch.delenv("FEWVIEW_UMASK", raising=False)
    with atomic_directory(tmp_path / "out", "mark") as part:
        write_bytes(part / "mark", b"")
    assert (_mode(tmp_path / "out"), _mode(tmp_path / "out" / "mark")) == (folder, file)
    write_bytes(tmp_path / "new" / "x", b"")
    assert (_mode(tmp_path / "new"), _mode(tmp_path / "new" / "x")) == (folder, file)


def test_a_umask_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWVIEW_UMASK", "private")
    with pytest.raises(ValueError, match="FEWVIEW_UMASK is 'private'"):
        write_bytes(tmp_path / "x", b"")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-cmd", "@SUM(A1)", "\t=1", " =1", '=HYPERLINK("x")'])
def test_no_cell_is_a_formula(text: str, tmp_path: Path) -> None:
    row = next(csv.DictReader(io.StringIO(csv_bytes([{"a": text, "b": -1.5}], ["a", "b"]).decode())))
    assert row == {"a": f"'{text}", "b": "-1.5"}
    assert f"'{text}".encode()[:3] in to_csv([Rejection(text, "scan", text, patient=text)])
    write_csv([{"case": text, "psnr": -2.0}], tmp_path / "x.csv")
    assert read_csv(tmp_path / "x.csv") == [{"case": text, "psnr": -2.0}]
