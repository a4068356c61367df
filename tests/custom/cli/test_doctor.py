"""What the doctor tells of an installation and of a checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from custom import __version__
from custom.cli.doctor import doctor, extras, version
from custom.core.checkpoints import save_checkpoint
from custom.networks import FourierFeatures


def test_doctor_names_packages_devices_and_extras(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("custom.cli.doctor.extras", lambda: {"dicom": {"pylibjpeg": "2.1"}, "x": {"a": None, "b": "1"}})
    doctor()
    text = capsys.readouterr().out
    for words in (
        f"{__version__} in",
        torch.__version__,
        "monai",
        "threads",
        "TIGRE",
        "[dicom]",
        "pylibjpeg 2.1",
        "b 1; missing a: pip install 'fewview-ct[x]'",
    ):
        assert words in text


def test_extras_come_from_the_package_metadata() -> None:
    found = extras()
    assert set(found) >= {"dicom", "mlflow"}
    assert "pylibjpeg" in found["dicom"]
    assert "dev" not in found


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    version()
    assert capsys.readouterr().out == f"fewview-ct {__version__}\n"


def test_checkpoint_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = FourierFeatures(count=4)
    path = save_checkpoint(tmp_path / "model.pt", network, {"hu_window": "-1000 to 1000"})
    doctor(str(path))
    text = capsys.readouterr().out
    count = sum(value.numel() for value in network.state_dict().values())
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    assert f"custom.networks.FourierFeatures, {count:,} weights" in text
    assert "-1000 to 1000" in text


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        doctor(str(tmp_path / "none.pt"))
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pt"):
        doctor(str(tmp_path / "text.pt"))
