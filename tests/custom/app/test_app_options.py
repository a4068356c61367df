"""The options of `fewview-ct app`: what makes no sense ends with exit code 2 and one line, before it serves."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from custom.app.serve import _listen
from tests.fewview_command import fewview_ct


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert fewview_ct("app", *words) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said
    return said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--host 0.0.0.0", "others than this machine could reach the page (0.0.0.0): give --token_file"),
        ("--names ct.example", "(127.0.0.1, ct.example): give --token_file"),
        ("--token_file none", "none does not exist"),
        ("--pacs http://pacs.example/dicom-web", "is not encrypted"),
        ("--pacs ftp://x", "is no URL of a DICOMweb server"),
        ("--send_to nobody", "nobody"),
        ("--pacs_user me", "a user and a password go together"),
        ("--pacs_ca_file none", "none does not exist"),
        ("--files 0", "--files must be at least 1"),
        ("--keep_days -1", "--samples and --keep_days must be 0 or more"),
        ("--host 203.0.113.1 --token_file {token}", "203.0.113.1, port 8700 cannot be listened on"),
        ("--port 70000", "cannot be listened on"),
        ("--prot 80", "--prot"),
    ],
)
def test_options_that_make_no_sense(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    monkeypatch.delenv("FEWVIEW_APP_TOKEN", raising=False)
    token = tmp_path / "token"
    token.write_text("0123456789abcdefghij\n")
    options = [word.format(token=token) for word in words.split()]
    assert said in refused(capsys, "--folder", str(tmp_path / "cases"), *options)
    assert not (tmp_path / "cases").exists()


def test_a_short_token_and_a_port_in_use(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWVIEW_APP_TOKEN", "short")
    assert "needs at least 20" in refused(capsys, "--host", "0.0.0.0")
    monkeypatch.delenv("FEWVIEW_APP_TOKEN")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert "cannot be listened on" in refused(capsys, "--folder", str(tmp_path / "cases"), "--port", port)


def test_the_address_takes_connections_as_soon_as_it_is_said() -> None:
    """A browser that opens it before the server runs waits, and is not refused."""
    with _listen("127.0.0.1", 0) as listening:
        socket.create_connection(listening.getsockname(), timeout=5).close()
