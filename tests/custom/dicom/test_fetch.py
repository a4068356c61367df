"""Out of a PACS by DICOMweb, from a server that may say anything."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest

from custom.core.files import sha256_file
from custom.dicom import web_session
from custom.dicom.fetch import fetch
from custom.dicom.network import NetworkError
from custom.dicom.strict import encode
from tests.bombs import deflated
from tests.custom.dicom.network_peers import TIMEOUT_S, multipart, talking
from tests.free_ports import free_ports


@pytest.fixture
def pacs(pair: Path, web: Any) -> Any:
    """A server with two radiographs of one study."""
    web.objects = [pydicom.dcmread(path) for path in sorted(pair.iterdir())]
    for one in web.objects:
        one.AccessionNumber = "A1"
    web.first = web.objects[0]
    return web


@pytest.mark.parametrize("by", ["study", "accession", "patient"])
def test_a_study_is_fetched(by: str, pacs: Any, tmp_path: Path) -> None:
    value = {"study": pacs.first.StudyInstanceUID, "accession": "A1", "patient": pacs.first.PatientID}[by]
    folder = fetch(pacs.url, str(tmp_path / "out"), timeout_s=TIMEOUT_S, **{by: str(value)})
    record = json.loads((folder / "fetch.json").read_text())
    names = {f"{pacs.first.StudyInstanceUID}/{one.SOPInstanceUID}.dcm" for one in pacs.objects}
    assert set(record["files"]) == names and len(names) == 2
    for name, digest in record["files"].items():
        assert sha256_file(folder / name) == digest
    files = sorted(folder.rglob("*.dcm"))
    assert {pydicom.dcmread(path).PixelData for path in files} == {one.PixelData for one in pacs.objects}
    assert {path.name for path in folder.iterdir()} == {"fetch.json", str(pacs.first.StudyInstanceUID)}


def test_credentials_come_from_the_environment(pacs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWVIEW_PACS_USER", "me")
    monkeypatch.setenv("FEWVIEW_PACS_PASSWORD", "secret")
    fetch(pacs.url, str(tmp_path / "out"), patient=str(pacs.first.PatientID), timeout_s=TIMEOUT_S)
    assert {headers["Authorization"] for _, headers, _ in pacs.got} == {"Basic bWU6c2VjcmV0"}
    assert "secret" not in (tmp_path / "out" / "fetch.json").read_text()
    monkeypatch.delenv("FEWVIEW_PACS_PASSWORD")
    with pytest.raises(ValueError, match="a user and a password go together"):
        fetch(pacs.url, str(tmp_path / "other"), patient="P", timeout_s=TIMEOUT_S)


def _other_patient(one: Any) -> bytes:
    one = pydicom.dcmread(__import__("io").BytesIO(encode(one)))
    one.PatientID = "ANOTHER"
    return encode(one)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (_other_patient, r"what came has PatientID 'ANOTHER'"),
        (lambda one: b"no dicom", r"what came "),
        (lambda one: deflated(200), r"what came is not read \(a file of .* that unpacks"),
        (lambda one: b"", r"what came is not read"),
    ],
)
def test_what_was_not_asked_for_gets_no_name(gives: Any, message: str, pacs: Any, tmp_path: Path) -> None:
    pacs.gives = gives
    with pytest.raises(NetworkError, match=message):
        fetch(pacs.url, str(tmp_path / "out"), patient=str(pacs.first.PatientID), timeout_s=TIMEOUT_S)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("uid", ["../../evil", "/etc/passwd", "", 12, None])
def test_a_uid_that_is_none_becomes_no_path(uid: Any, pacs: Any, tmp_path: Path) -> None:
    pacs.answers = [(200, [{"0020000D": {"vr": "UI", "Value": [uid]}}])]
    with pytest.raises(NetworkError, match=r"the server's answer has .* for the UID \(0020,000D\)"):
        fetch(pacs.url, str(tmp_path / "a" / "out"), patient="P", timeout_s=TIMEOUT_S)
    assert not list(tmp_path.glob("**/evil*"))


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("http://pacs.example/dicom-web", {"study": "1.2"}, "is not encrypted"),
        ("https://me:x@pacs.example/", {"study": "1.2"}, "the URL holds a user or password"),
        ("https://pacs.example:99999/", {"study": "1.2"}, "is no URL of a DICOMweb server"),
        ("https://[::1/", {"study": "1.2"}, "is no URL of a DICOMweb server"),
        ("http://127.0.0.1.example/", {"study": "1.2"}, "is not encrypted"),
        ("ftp://pacs.example/", {"study": "1.2"}, "is no URL of a DICOMweb server"),
        ("https://pacs.example/", {"study": "1.2;3"}, "is no UID"),
        ("https://pacs.example/", {"patient": "*"}, "no wildcard"),
        ("https://pacs.example/", {}, "give one of --study"),
        ("https://pacs.example/", {"study": "1.2", "patient": "P"}, "give one of --study"),
    ],
)
def test_what_cannot_be_asked(url: str, options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fetch(url, str(tmp_path / "out"), **options)  # type: ignore[arg-type]


def test_nothing_there_and_nobody_there(pacs: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no study of PatientID 'NOBODY'"):
        fetch(pacs.url, str(tmp_path / "out"), patient="NOBODY", timeout_s=TIMEOUT_S)
    with pytest.raises(NetworkError, match="cannot be reached: connection refused"):
        fetch(f"http://127.0.0.1:{free_ports(1)[0]}/x", str(tmp_path / "out"), patient="P", timeout_s=TIMEOUT_S)
    pacs.answers = [(307, [])]
    with pytest.raises(NetworkError, match=r"sends us on to 192\.0\.2\.1"):
        fetch(pacs.url, str(tmp_path / "out"), patient="P", timeout_s=TIMEOUT_S)


def _boundary(name: str) -> Any:
    return lambda data: (multipart(data)[0].replace("boundary=x", f"boundary={name}"), multipart(data)[1])


@pytest.mark.parametrize(
    ("wraps", "message"),
    [
        (_boundary("y"), "0 objects came"),
        (_boundary('""'), "is 'multipart/related"),
        (lambda data: (multipart(data)[0], multipart(data)[1][:-5]), "what came is not read|one was asked for"),
        (lambda data: (multipart(data)[0], multipart(data)[1][:-4] + multipart(data)[1]), "came, or"),
        (lambda data: ("text/html", b"<html>please log in"), "the answer is 'text/html', not DICOM"),
        (lambda data: ("", data), "the answer is '', not DICOM"),
        (lambda data: (multipart(b"")[0], b"--x\r\n--x--"), "what came is not read"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_one_object_gets_no_name(wraps: Any, message: str, pacs: Any, tmp_path: Path) -> None:
    pacs.wraps = wraps
    with pytest.raises(NetworkError, match=message):
        fetch(pacs.url, str(tmp_path / "out"), patient=str(pacs.first.PatientID), timeout_s=TIMEOUT_S)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    "wraps",
    [lambda data: ("application/dicom", data), lambda data: (multipart(b"")[0], b"preamble" + multipart(data)[1])],
)
def test_other_answers_that_conform(wraps: Any, pacs: Any, tmp_path: Path) -> None:
    def wrapped(data: bytes) -> tuple[str, bytes]:
        kind, body = wraps(data)
        return kind, body.replace(b"preamble", b"preamble\r\n")

    pacs.wraps = wrapped
    folder = fetch(pacs.url, str(tmp_path / "out"), patient=str(pacs.first.PatientID), timeout_s=TIMEOUT_S)
    assert {pydicom.dcmread(p).PixelData for p in folder.rglob("*.dcm")} == {one.PixelData for one in pacs.objects}


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n"
GZIP = gzip.compress(b" " * 2**22)


@pytest.mark.parametrize(
    ("pieces", "again", "pause_s", "message"),
    [
        ([HEAD], b"X", 0.05, "no answer within 0.3 s"),
        ([HEAD + b"Content-Length: 99999\r\n\r\n"], b" ", 0.05, "no answer within 0.3 s"),
        ([HEAD + b"\r\n"], b" " * 2**16, 0.0, "bytes of one answer are more than the 1048576"),
        ([HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(GZIP) + GZIP], b"", 0.0, "more than"),
        ([HEAD + b"Content-Length: 1\r\n\r\n5"], b"", 0.0, "no list of DICOM objects"),
        ([HEAD + b"Content-Length: 4\r\n\r\nnull"], b"", 0.0, "no list of DICOM objects|no study"),
        ([HEAD + b"Content-Length: 6\r\n\r\n[null]"], b"", 0.0, "for the UID"),
        ([HEAD + b"Content-Length: 6\r\n\r\n<html>"], b"", 0.0, "no list of DICOM objects"),
        ([b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"], b"", 0.0, "refuses to give it: HTTP 500 Oh"),
        ([b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"], b"", 0.0, "HTTP 403 No; give --user"),
        ([b"SSH-2.0-x\r\n"], b"", 0.0, "cannot be reached"),
        ([], b"", 0.0, "cannot be reached"),
    ],
)  # fmt: skip
def test_answers_end_in_time_and_within_memory(
    pieces: list[bytes], again: bytes, pause_s: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_session, "LARGEST_TABLE", 2**20)
    monkeypatch.setattr(web_session, "SLOWEST_BYTES_PER_S", 10**6)
    start = time.monotonic()
    refused = pytest.raises((NetworkError, ValueError), match=message)
    with talking(*pieces, again=again, pause_s=pause_s) as url, refused:
        fetch(url, str(tmp_path / "out"), patient="P", timeout_s=0.3)
    assert time.monotonic() - start < 10 and not list(tmp_path.iterdir())


def test_an_object_without_end_takes_no_memory(pacs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_session, "LARGEST_OBJECT", 2**20)
    pacs.gives = lambda one: b" " * 2**21
    with pytest.raises(NetworkError, match="bytes of one answer are more than the 1048576 that are read"):
        fetch(pacs.url, str(tmp_path / "out"), patient=str(pacs.first.PatientID), timeout_s=TIMEOUT_S)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\0s", "cannot be in a password"), (b"sec\0ret", "cannot be in a password"), (b"", "no first line"),
     (b"\nsecret", "no first line"), (b"sec\x1bret\n", "cannot be in a password")],
)  # fmt: skip
def test_what_is_no_secret_is_refused_without_being_shown(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(content)
    for options in ({"token_file": tmp_path / "secret"}, {"user": "me", "password_file": tmp_path / "secret"}):
        with pytest.raises(ValueError, match=message) as caught:
            fetch("https://pacs.test/", str(tmp_path / "out"), patient="P", **options)  # type: ignore[arg-type]
        assert "secret " in str(caught.value) and "ret\n" not in str(caught.value)
    monkeypatch.setenv("FEWVIEW_PACS_TOKEN", "abc\nX: y")
    with pytest.raises(ValueError, match="FEWVIEW_PACS_TOKEN holds characters") as caught:
        fetch("https://pacs.test/", str(tmp_path / "out"), patient="P")
    assert "abc" not in str(caught.value)


def test_passwords_of_any_letters_and_editors(pacs: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xef\xbb\xbf" + "pä ss中 \r\n".encode())
    secret.chmod(0o644)
    patient = str(pacs.first.PatientID)
    with caplog.at_level(logging.WARNING):
        fetch(pacs.url, str(tmp_path / "out"), patient=patient, user="me", password_file=secret, timeout_s=TIMEOUT_S)
    sent = {headers["Authorization"] for _, headers, _ in pacs.got}
    assert sent == {"Basic " + base64.b64encode("me:pä ss中 ".encode()).decode()}
    assert "secret can be read by all users of this machine" in caplog.text
    with pytest.raises(ValueError, match="cannot hold a colon"):
        fetch(pacs.url, str(tmp_path / "b"), patient=patient, user="a:b", password_file=secret)


def test_what_is_asked_of_this_machine_takes_no_proxy(
    pacs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_ports(1)[0]}")
    fetch(pacs.url, str(tmp_path / "out"), patient=str(pacs.first.PatientID), timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_timeout_that_is_none(timeout_s: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="timeout_s must be positive and at most"):
        fetch("https://pacs.test/", str(tmp_path / "out"), patient="P", timeout_s=timeout_s)
