"""To and from a PACS: files arrive as they were sent, and every refusal is one line that says why."""

from __future__ import annotations

import http.server
import json
import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom import AE, evt

from custom.cli import VERBS, Verb, _parse
from custom.dicom.listener import Listener, is_uid
from custom.dicom.network import NetworkError, receive, send
from custom.dicom.store import Address, parse_address, store_scu
from tests.custom.dicom.stored_radiographs import DX_PROCESSING, ROOT, dx, save

TIMEOUT_S = 5.0


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    for k in (1, 2):
        save(dx(k), tmp_path / "pair" / f"view{k}.dcm")
    return tmp_path / "pair"


@contextmanager
def scp(answer: Callable[[Any], int], contexts: list[tuple[str, list[str]]] | None = None) -> Iterator[str]:
    """A storage provider that answers each C-STORE as told. Yields where it listens."""
    entity = AE(ae_title="SCP")
    for sop_class, syntaxes in contexts or [(DX_PROCESSING, [ImplicitVRLittleEndian])]:
        entity.add_supported_context(sop_class, syntaxes)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)])
    try:
        yield f"SCP@127.0.0.1:{server.server_address[1]}"
    finally:
        entity.shutdown()


# --- C-STORE, our sender to our listener


def test_radiographs_arrive_as_they_were_sent(pair: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Listener(tmp_path / "in", port=0) as listener:
        report = send(pair, to=f"FEWVIEW@127.0.0.1:{listener.address[1]}", timeout_s=TIMEOUT_S)
    assert len(report.sent) == 2 and not report.failed
    assert "sent 2 of 2 files" in caplog.text
    assert sorted(listener.received) == [tmp_path / "in" / f"{ROOT}.1" / f"{ROOT}.1.{k}.dcm" for k in (1, 2)]
    for k, path in enumerate(sorted(listener.received), start=1):
        sent, found = pydicom.dcmread(pair / f"view{k}.dcm"), pydicom.dcmread(path)
        assert found == sent
        np.testing.assert_array_equal(found.pixel_array, sent.pixel_array)
    assert [p for p in (tmp_path / "in").rglob("*") if p.is_file() and p.suffix != ".dcm"] == []


def test_single_file_and_hidden_files(pair: Path, tmp_path: Path) -> None:
    hidden = save(dx(3), pair / ".ct.1234.part" / "CT_0001.dcm")
    (pair / "notes.txt").write_text("no DICOM")
    with Listener(tmp_path / "in", port=0) as listener:
        to = f"FEWVIEW@127.0.0.1:{listener.address[1]}"
        assert len(send(pair, to=to, timeout_s=TIMEOUT_S).sent) == 2
        assert send(hidden, to=to, timeout_s=TIMEOUT_S).sent == [hidden]


def test_provider_of_implicit_vr_only(pair: Path) -> None:
    got = []

    def store(event: Any) -> int:
        got.append((event.context.transfer_syntax, event.dataset.PixelData))
        return 0x0000

    with scp(store) as to:
        send(pair, to=to, timeout_s=TIMEOUT_S)
    assert [g[0] for g in got] == [ImplicitVRLittleEndian] * 2
    assert got[0][1] == pydicom.dcmread(pair / "view1.dcm").PixelData


def test_failed_status_of_one_file_does_not_stop_the_others(pair: Path) -> None:
    save(dx(3), pair / "view3.dcm")
    answers = iter([0x0000, 0xA700, 0xB000])
    with (
        scp(lambda event: next(answers)) as to,
        pytest.raises(NetworkError, match=r"sent 2 of 3 files to SCP.*view2.dcm: status 0xA700, refused: out of res"),
    ):
        send(pair, to=to, timeout_s=TIMEOUT_S)


def test_remarks_are_passed_on(pair: Path, caplog: pytest.LogCaptureFixture) -> None:
    with scp(lambda event: 0xB000) as to:
        report = send(pair, to=to, timeout_s=TIMEOUT_S)
    assert len(report.sent) == 2 and "view1.dcm was stored with a remark: status 0xB000" in caplog.text


def test_unsupported_transfer_syntax(pair: Path) -> None:
    compressed = dx(3)
    compressed.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 60])
    compressed["PixelData"].is_undefined_length = True
    save(compressed, pair / "view3.dcm", JPEG2000Lossless)
    with (
        scp(lambda event: 0x0000) as to,
        pytest.raises(NetworkError, match=r"sent 2 of 3 .*view3.dcm: .* takes no Digital X-Ray.* JPEG 2000"),
    ):
        send(pair, to=to, timeout_s=TIMEOUT_S)


def test_unsupported_class(pair: Path) -> None:
    with (
        scp(lambda event: 0x0000, [("1.2.840.10008.5.1.4.1.1.2", [ImplicitVRLittleEndian])]) as to,
        pytest.raises(NetworkError, match=r"sent 0 of 2 .* takes none of these kinds of file: Digital X-Ray"),
    ):
        send(pair, to=to, timeout_s=TIMEOUT_S)


def test_damaged_file_is_named(pair: Path) -> None:
    (pair / "view2.dcm").write_bytes((pair / "view2.dcm").read_bytes()[:180])
    with (
        scp(lambda event: 0x0000) as to,
        pytest.raises(NetworkError, match=r"sent 1 of 2 .*view2.dcm: damaged or not a DICOM file"),
    ):
        send(pair, to=to, timeout_s=TIMEOUT_S)


def test_lost_association(pair: Path) -> None:
    def abort(event: Any) -> int:
        event.assoc.abort()
        return 0x0000

    with (
        scp(abort) as to,
        pytest.raises(NetworkError, match=r"sent 0 of 2 .*view1.dcm: no answer .*view2.dcm: not tried"),
    ):
        send(pair, to=to, timeout_s=TIMEOUT_S)


def test_refused_connection(pair: Path) -> None:
    port = free_port()
    with pytest.raises(NetworkError, match=rf"PACS@127.0.0.1:{port} cannot be reached: connection refused"):
        send(pair, to=f"PACS@127.0.0.1:{port}", timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(
    ("called", "calling", "reason"),
    [
        ("OTHER", "FEWVIEW", "called ae title not recognised"),
        ("FEWVIEW", "STRANGER", "calling ae title not recognised"),
    ],
)
def test_rejected_association(called: str, calling: str, reason: str, pair: Path, tmp_path: Path) -> None:
    with (
        Listener(tmp_path / "in", port=0, from_aet=["FEWVIEW"]) as listener,
        pytest.raises(NetworkError, match=f"rejected the association: {reason}"),
    ):
        send(pair, to=f"{called}@127.0.0.1:{listener.address[1]}", calling_aet=calling, timeout_s=TIMEOUT_S)
    assert not listener.received


@pytest.mark.parametrize("scheme", ["SCP@", "http://"])
def test_server_that_never_answers(scheme: str, pair: Path) -> None:
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        start = time.monotonic()
        with pytest.raises(NetworkError):
            send(pair, to=f"{scheme}127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.5)
        assert time.monotonic() - start < 5


# --- addresses and options


@given(
    st.text(st.sampled_from("ABCxyz019_-. "), min_size=1, max_size=16).filter(str.strip),
    st.sampled_from(["pacs", "192.0.2.7", "pacs.example", "[2001:db8::1]"]),
    st.integers(1, 65535),
)
def test_addresses_are_read_back(aet: str, host: str, port: int) -> None:
    assert parse_address(f"{aet}@{host}:{port}") == Address(aet, host.strip("[]"), port)


@given(st.text(st.sampled_from("AB@:[]\\ 019.%-\né"), max_size=20))
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert 0 < address.port < 65536 and 0 < len(address.aet) <= 16


@pytest.mark.parametrize(
    "text", ["", "pacs:104", "PACS@host", "PACS@host:0", "PACS@host:99999", "A" * 17 + "@h:1", "P\\S@h:1", " @h:1"]
)
def test_what_is_no_address(text: str, pair: Path) -> None:
    with pytest.raises(ValueError, match=r"no address|no application entity title"):
        send(pair, to=text)


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("P@h:1", {"timeout_s": 0}, "timeout_s must be positive"),
        ("P@h:1", {"user": "u", "password_file": "here"}, "C-STORE knows no --user"),
        ("P@h:1", {"ca_file": "here"}, "need --tls"),
        ("https://h", {"user": "u"}, "--user and --password_file go together"),
        ("https://h", {"user": "u", "password_file": "here", "token_file": "here"}, "either --user or --token_file"),
        ("https://h", {"certificate_file": "here"}, "go together"),
        ("P@h:1", {"tls": True, "ca_file": "here"}, "certificates cannot be used"),
        ("https://h", {"token_file": "empty"}, "no first line"),
    ],
)
def test_options_that_do_not_fit(to: str, options: dict[str, Any], message: str, pair: Path, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("something\n")
    (tmp_path / "empty").write_text("\n")
    given_options = {k: tmp_path / v if k.endswith("_file") else v for k, v in options.items()}
    with pytest.raises(ValueError, match=message):
        send(pair, to=to, **given_options)


def test_several_sources_each_file_once(pair: Path, tmp_path: Path) -> None:
    other = save(dx(3), tmp_path / "other.dcm")
    with Listener(tmp_path / "in", port=0) as listener:
        to = f"FEWVIEW@127.0.0.1:{listener.address[1]}"
        assert len(send(pair, other, pair / "view1.dcm", to=to, timeout_s=TIMEOUT_S).sent) == 3
    with pytest.raises(ValueError, match="nothing to send"):
        send(to="P@h:1")


def test_what_is_not_there(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        send(tmp_path / "none", to="P@h:1")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        send(pair, to="https://h", token_file=tmp_path / "none")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no DICOM")
    with pytest.raises(ValueError, match="holds no DICOM file"):
        send(tmp_path / "text", to="P@h:1")


def test_command_line_reads_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in ("send", "receive"):
        monkeypatch.setitem(VERBS, verb, Verb("custom.dicom.network", verb, "PACS"))
    words = ["out", "0002", "--to", "PACS@h:104", "--timeout_s", "5", "--tls", "--ca_file", "ca.pem"]
    positional, keywords = _parse("send", send, [*words, "--calling_aet", "0001"])
    assert positional == ("out", "0002")
    assert keywords == {
        "to": "PACS@h:104", "timeout_s": 5.0, "tls": True, "ca_file": Path("ca.pem"), "calling_aet": "0001"
    }  # fmt: skip
    positional, keywords = _parse("receive", receive, ["in", "--count", "3", "--from_aet", "[A,B]", "--timeout_s", "9"])
    bound = (
        dict(zip(("output", "port", "aet", "host", "count", "timeout_s", "from_aet"), positional, strict=False))
        | keywords
    )
    assert (bound["count"], bound["timeout_s"], list(bound["from_aet"])) == (3, 9.0, ["A", "B"])


# --- STOW-RS


class Web(http.server.BaseHTTPRequestHandler):
    """A DICOMweb server that keeps what it is sent and answers each request as told: (HTTP status, JSON)."""

    server: Any

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        status, content = self.server.answers.pop(0) if self.server.answers else (200, {})
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.got, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


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
REMARK = {"00081199": {"vr": "SQ", "Value": [{"00081196": {"vr": "US", "Value": [0xB000]}}]}}


@pytest.mark.parametrize(
    ("answers", "message", "requests"),
    [
        ([(200, {}), (202, REFUSED)], r"sent 1 of 2 .*view2.dcm: .*failure reason 0xA700", 2),
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
    web.answers = [(200, REMARK)]
    assert len(send(pair, to=web.url, timeout_s=TIMEOUT_S).sent) == 2
    assert "view1.dcm was stored with a remark: warning reason 0xB000" in caplog.text


def test_web_server_is_not_there(pair: Path) -> None:
    with pytest.raises(NetworkError, match=r"cannot be reached: connection refused; 0 of 2 files were stored"):
        send(pair, to=f"http://127.0.0.1:{free_port()}/dicom-web", timeout_s=TIMEOUT_S)


# --- the listener


def send_raw(listener: Listener, dataset: pydicom.Dataset, announced: str | None = None) -> int:
    """C-STORE a data set with a UID of its own choice in the announcement; the status of the answer."""
    entity = AE()
    entity.add_requested_context(dataset.SOPClassUID, ImplicitVRLittleEndian)
    assoc = entity.associate(*listener.address, ae_title="FEWVIEW")
    assert assoc.is_established
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    if announced is not None:
        real = assoc.dimse.send_msg

        def lie(message: Any, context_id: int) -> None:
            message.AffectedSOPInstanceUID = announced
            real(message, context_id)

        assoc.dimse.send_msg = lie
    status = assoc.send_c_store(dataset)
    assoc.release()
    return int(status.Status)


@pytest.mark.parametrize(
    ("tags", "announced", "status"),
    [
        ({"StudyInstanceUID": "../../outside"}, None, 0xC000),
        ({"StudyInstanceUID": "/tmp"}, None, 0xC000),
        ({"StudyInstanceUID": ".."}, None, 0xC000),
        ({"StudyInstanceUID": None}, None, 0xC000),
        ({"StudyInstanceUID": "1." * 33 + "1"}, None, 0xC000),
        ({"SOPInstanceUID": "../outside"}, f"{ROOT}.1.1", 0xC000),
        ({"SOPInstanceUID": f"{ROOT}.9"}, f"{ROOT}.8", 0xA900),
    ],
)
def test_listener_takes_no_path_for_a_name(
    tags: dict[str, Any], announced: str | None, status: int, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, Listener(tmp_path / "a" / "b" / "in", port=0) as listener:
        patch.setattr(pydicom.config.settings, "_reading_validation_mode", pydicom.config.IGNORE)
        assert send_raw(listener, dx(1, **tags), announced) == status
    assert not listener.received and listener.refused == 1
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@given(st.text(max_size=80))
def test_only_digits_and_dots_are_a_uid(text: str) -> None:
    if is_uid(text):
        assert set(text) <= set("0123456789.") and text[0] != "." and text[-1] != "." and ".." not in text


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    with Listener(tmp_path, port=0) as listener:
        assert send_raw(listener, dx(1)) == 0x0000
        assert send_raw(listener, dx(1)) == 0x0000  # sent again: the same, so it is there
        before = listener.received[0].read_bytes()
        assert send_raw(listener, dx(1, PatientID="other")) == 0x0111
    assert len(listener.received) == 1 and listener.refused == 1 and listener.received[0].read_bytes() == before


def test_sender_of_too_much_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    big = dx(1, Rows=400, Columns=600)
    big.PixelData = b"\0" * 480_000
    save(big, tmp_path / "big.dcm")
    small = save(dx(2), tmp_path / "small.dcm")
    with Listener(tmp_path / "in", port=0, max_file_mb=0.1) as listener:
        to = f"FEWVIEW@127.0.0.1:{listener.address[1]}"
        with pytest.raises(NetworkError, match="sent 0 of 1"):
            send(tmp_path / "big.dcm", to=to, timeout_s=TIMEOUT_S)
        assert len(send(small, to=to, timeout_s=TIMEOUT_S).sent) == 1
    assert listener.refused == 1 and "more than 0.1 MB" in caplog.text
    assert [p.name for p in listener.received] == [f"{ROOT}.1.2.dcm"]


def test_full_disk_is_told_to_the_sender(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custom.dicom.listener.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with (
        Listener(tmp_path / "in", port=0) as listener,
        pytest.raises(NetworkError, match=r"sent 0 of 2 .*0xA700, refused: out of resources"),
    ):
        send(pair, to=f"FEWVIEW@127.0.0.1:{listener.address[1]}", timeout_s=TIMEOUT_S)


def test_killed_in_the_middle_of_a_file_leaves_none(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(source: Any, target: Any) -> None:
        raise OSError(5, "Input/output error")

    with Listener(tmp_path / "in", port=0) as listener:
        monkeypatch.setattr("custom.data.files.os.replace", fails)
        with pytest.raises(NetworkError, match="sent 0 of 2"):
            send(pair, to=f"FEWVIEW@127.0.0.1:{listener.address[1]}", timeout_s=TIMEOUT_S)
    assert [p for p in (tmp_path / "in").rglob("*") if p.is_file()] == []


def in_background(**options: Any) -> tuple[threading.Thread, list[Any]]:
    result: list[Any] = []

    def work() -> None:
        try:
            result.append(receive(**options))
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, result


def send_when_it_listens(pair: Path, port: int) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            send(pair, to=f"FEWVIEW@127.0.0.1:{port}", timeout_s=TIMEOUT_S)
            return
        except NetworkError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def test_receive_ends_after_count(pair: Path, tmp_path: Path) -> None:
    port = free_port()
    thread, result = in_background(output=tmp_path / "in", port=port, count=2, timeout_s=60)
    send_when_it_listens(pair, port)
    thread.join(15)
    assert not thread.is_alive() and len(result[0]) == 2 and all(p.is_file() for p in result[0])
    with pytest.raises(NetworkError, match="refused"):
        send(pair, to=f"FEWVIEW@127.0.0.1:{port}", timeout_s=TIMEOUT_S)


def test_receive_ends_in_time(tmp_path: Path) -> None:
    assert receive(tmp_path / "in", port=free_port(), timeout_s=0.2) == []
    with pytest.raises(NetworkError, match=r"received 0 of 2 files within 0.2 s"):
        receive(tmp_path / "in", port=free_port(), count=2, timeout_s=0.2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_receive_ends_at_a_signal(number: int, tmp_path: Path) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    assert receive(tmp_path / "in", port=free_port(), timeout_s=30) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_port_in_use(tmp_path: Path) -> None:
    with Listener(tmp_path, port=0) as listener, pytest.raises(NetworkError, match="address already in use"):
        receive(tmp_path / "in", port=listener.address[1], timeout_s=1)


def test_open_to_others_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    receive(tmp_path / "in", port=free_port(), timeout_s=0.1)
    assert "may store files here" not in caplog.text
    receive(tmp_path / "in", port=free_port(), host="0.0.0.0", timeout_s=0.1)
    assert "may store files here" in caplog.text


@pytest.mark.parametrize(
    "options", [{"count": 0}, {"timeout_s": -1.0}, {"max_file_mb": 0.0}, {"port": 70000}, {"aet": "A" * 17}]
)
def test_listener_options_that_make_no_sense(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be|no application entity title"):
        receive(tmp_path / "in", **{"timeout_s": 0.1} | options)


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate can be made")
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-out", str(paths[0]), "-keyout", str(paths[1])],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return paths


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def test_encrypted_store(certificate: tuple[Path, Path], pair: Path, tmp_path: Path) -> None:
    with Listener(tmp_path / "in", port=0, context=server_context(certificate)) as listener:
        to = f"FEWVIEW@127.0.0.1:{listener.address[1]}"
        assert len(send(pair, to=to, tls=True, ca_file=certificate[0], timeout_s=TIMEOUT_S).sent) == 2
        with pytest.raises(NetworkError, match=r"certificate is not trusted .*--ca_file"):
            send(pair, to=to, tls=True, timeout_s=TIMEOUT_S)
        with pytest.raises(NetworkError, match=r"does it want TLS|cannot be reached"):
            send(pair, to=to, timeout_s=2)


def test_tls_to_a_plain_port(certificate: tuple[Path, Path], pair: Path, tmp_path: Path) -> None:
    with Listener(tmp_path / "in", port=0) as listener, pytest.raises(NetworkError, match="cannot be reached"):
        send(pair, to=f"FEWVIEW@127.0.0.1:{listener.address[1]}", tls=True, ca_file=certificate[0], timeout_s=2)


def test_receive_with_certificates(certificate: tuple[Path, Path], pair: Path, tmp_path: Path) -> None:
    port = free_port()
    thread, result = in_background(
        output=tmp_path / "in", port=port, count=2, timeout_s=60, certificate_file=certificate[0],
        key_file=certificate[1], ca_file=certificate[0],
    )  # fmt: skip
    end = time.monotonic() + 20
    while True:
        try:
            send(
                pair, to=f"FEWVIEW@127.0.0.1:{port}", tls=True, ca_file=certificate[0], certificate_file=certificate[0],
                key_file=certificate[1], timeout_s=TIMEOUT_S,
            )  # fmt: skip
            break
        except NetworkError:
            assert time.monotonic() < end
            time.sleep(0.05)
    thread.join(15)
    assert len(result[0]) == 2


def test_web_server_over_tls(
    certificate: tuple[Path, Path], pair: Path, web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none.pem").write_text("")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    web.socket = server_context(certificate).wrap_socket(web.socket, server_side=True)
    url = web.url.replace("http:", "https:")
    assert len(send(pair, to=url, ca_file=certificate[0], timeout_s=TIMEOUT_S).sent) == 2
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(NetworkError, match=r"cannot be trusted: certificate verify failed, .*--ca_file"):
        send(pair, to=url, timeout_s=TIMEOUT_S)


# --- packages


@pytest.mark.parametrize(
    ("module", "to"), [("pynetdicom", "P@127.0.0.1:1"), ("dicomweb_client", "https://127.0.0.1:1")]
)
def test_missing_package_names_the_extra(module: str, to: str, pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"fewview-ct\[pacs\]"):
        send(pair, to=to)


def test_more_kinds_than_one_association_holds(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custom.dicom.store.MOST_CONTEXTS", 1)
    ct = dx(3, SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    save(ct, pair / "ct.dcm")
    classes = [DX_PROCESSING, "1.2.840.10008.5.1.4.1.1.2"]
    with scp(lambda event: 0x0000, [(c, [ImplicitVRLittleEndian, "1.2.840.10008.1.2.1"]) for c in classes]) as to:
        report = store_scu(sorted(pair.iterdir()), parse_address(to), "FEWVIEW", TIMEOUT_S)
    assert len(report.sent) == 3 and not report.failed
