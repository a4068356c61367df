"""To a PACS by STOW-RS."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest

from custom.dicom.network import NetworkError, send
from tests.custom.dicom.network_peers import TIMEOUT_S, talking
from tests.free_ports import free_ports


def test_web_server_gets_the_files(pair: Path, tmp_path: Path, web: Any) -> None:
    (tmp_path / "password").write_text("secret\n")
    report = send(pair, to=web.url + "/", user="me", password_file=tmp_path / "password", timeout_s=TIMEOUT_S)
    assert len(report.sent) == 2 and [path for path, *_ in web.got] == ["/dicom-web/studies"] * 2
    for k, (_, headers, body) in enumerate(web.got, start=1):
        assert headers["Authorization"] == "Basic bWU6c2VjcmV0"
        assert 'type="application/dicom"' in headers["Content-Type"]
        assert pydicom.dcmread(pair / f"view{k}.dcm").PixelData in body


def test_token(pair: Path, tmp_path: Path, web: Any) -> None:
    (tmp_path / "token").write_text("abc\n")
    send(pair / "view1.dcm", to=web.url, token_file=tmp_path / "token", timeout_s=TIMEOUT_S)
    assert web.got[0][1]["Authorization"] == "Bearer abc"


REFUSED = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA700]}}]}}


@pytest.mark.parametrize(
    ("answers", "message", "requests"),
    [
        ([(200, None), (202, REFUSED)], r"sent 1 of 2 .*view2.dcm: .*failure reason 0xA700", 2),
        ([(409, REFUSED)], r"sent 1 of 2 .*view1.dcm: HTTP 409 Conflict", 2),
        ([(503, {})], r"sent 1 of 2 .*view1.dcm: HTTP 503", 2),
        ([(401, {})], r"refuses to store: HTTP 401 Unauthorized; give --user", 1),
        ([(404, {})], r"refuses to store: HTTP 404 Not Found; is it the URL", 1),
    ],
)
def test_web_server_refuses(answers: list[Any], message: str, requests: int, pair: Path, web: Any) -> None:
    web.answers = answers
    with pytest.raises(NetworkError, match=message):
        send(pair, to=web.url, timeout_s=TIMEOUT_S)
    assert len(web.got) == requests  # nothing is tried twice


def test_web_server_remarks(pair: Path, web: Any, caplog: pytest.LogCaptureFixture) -> None:
    uid = str(pydicom.dcmread(pair / "view1.dcm").SOPInstanceUID)
    remark = {"00081155": {"vr": "UI", "Value": [uid]}, "00081196": {"vr": "US", "Value": [0xB000]}}
    web.answers = [(200, {"00081199": {"vr": "SQ", "Value": [remark]}})]
    assert len(send(pair, to=web.url, timeout_s=TIMEOUT_S).sent) == 2
    assert "view1.dcm was stored with a remark: warning reason 0xB000" in caplog.text


def test_web_server_is_not_there(pair: Path) -> None:
    with pytest.raises(NetworkError, match=r"cannot be reached: connection refused; 0 of 2 files were stored"):
        send(pair, to=f"http://127.0.0.1:{free_ports(1)[0]}/dicom-web", timeout_s=TIMEOUT_S)


OTHER = {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]}}]}}


@pytest.mark.parametrize("answer", [{}, OTHER])
def test_stored_is_what_the_answer_confirms(answer: Any, pair: Path, web: Any) -> None:
    web.answers = [(200, answer)]
    with pytest.raises(NetworkError, match=r"sent 1 of 2 .*view1.dcm: the server's answer does not confirm it"):
        send(pair, to=web.url, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(status: int, pair: Path, web: Any) -> None:
    web.answers, web.sends_to = [(status, {})], "http://192.0.2.1/elsewhere"
    with pytest.raises(NetworkError, match=r"sends us on to 192.0.2.1, which is not followed"):
        send(pair, to=web.url, timeout_s=TIMEOUT_S)
    assert len(web.got) == 1


def test_a_password_in_the_url_is_refused(pair: Path) -> None:
    with pytest.raises(ValueError, match=r"the URL holds a user or password") as caught:
        send(pair, to="https://me:secret@pacs.example/dicom-web")
    assert "secret" not in str(caught.value)


def test_a_server_that_drips_is_left(pair: Path) -> None:
    """Every byte comes within the time-out, the answer never."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            peer, _ = server.accept()
            with contextlib.suppress(OSError), peer:
                for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
                    peer.sendall(bytes([byte]))
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(NetworkError, match=r"no answer within 0.5 s"):
            send(pair, to=f"http://127.0.0.1:{server.getsockname()[1]}/dicom-web", timeout_s=0.5)
        assert time.monotonic() - start < 10


BOMB = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">' + b"".join(
    b'<!ENTITY %c "%s">' % (98 + k, b"&%c;" % (97 + k) * 10) for k in range(9)
)


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        (b"dicom+json", b"<html>", "the server's answer cannot be read"),
        (b"dicom+json", b"[]", "answer not be read"),
        (b"dicom+json", b'{"00081199":{"vr":"SQ","Value":["a",null]}}', "answer not be read"),
        (b"dicom+json", b"[" * 10**5, "answer not be read"),
        (b"dicom+xml", BOMB + b"]><NativeDicomModel>&j;</NativeDicomModel>", "answer not be read"),
        (b"dicom+json", b"", "does not confirm it"),
        (b"html", b"<html>", "does not confirm it"),
    ],
)
def test_an_answer_that_cannot_be_read_confirms_nothing(kind: bytes, body: bytes, message: str, pair: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/%s\r\nContent-Length: %d\r\n\r\n"
    with talking(head % (kind, len(body)) + body) as url, pytest.raises(NetworkError) as caught:
        send(pair / "view1.dcm", to=url, timeout_s=TIMEOUT_S)
    assert "sent 0 of 1 files" in str(caught.value) and message in str(caught.value)
