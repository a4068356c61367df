"""To a PACS by C-STORE: files arrive as they were sent, and every refusal is one line that says why."""

from __future__ import annotations

import io
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom.acse import ACSE

from custom.cli import VERBS, Verb
from custom.cli.arguments import parsed
from custom.cli.command_line import command_app
from custom.dicom.network import NetworkError, send
from custom.dicom.store import Address, parse_address, store_scu
from tests.custom.dicom.network_peers import CT, TIMEOUT_S, scp, store, talking
from tests.custom.dicom.stored_radiographs import DX_PROCESSING, ROOT, dx, save
from tests.free_ports import free_ports


def test_radiographs_arrive_as_they_were_sent(pair: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), store() as pacs:
        report = send(pair, to=pacs.to, timeout_s=TIMEOUT_S)
    assert len(report.sent) == 2 and not report.failed
    assert "sent 2 of 2 files" in caplog.text
    assert [(one.StudyInstanceUID, one.SOPInstanceUID) for one in pacs.received] == [
        (f"{ROOT}.1", f"{ROOT}.1.{k}") for k in (1, 2)
    ]
    for k, found in enumerate(pacs.received, start=1):
        sent = pydicom.dcmread(pair / f"view{k}.dcm")
        assert found == sent
        np.testing.assert_array_equal(found.pixel_array, sent.pixel_array)


def test_single_file_and_hidden_files(pair: Path, tmp_path: Path) -> None:
    hidden = save(dx(3), pair / ".ct.1234.part" / "CT_0001.dcm")
    (pair / "notes.txt").write_text("no DICOM")
    with store() as pacs:
        assert len(send(pair, to=pacs.to, timeout_s=TIMEOUT_S).sent) == 2
        assert send(hidden, to=pacs.to, timeout_s=TIMEOUT_S).sent == [hidden]


def test_files_without_preamble(pair: Path, tmp_path: Path, web: Any) -> None:
    """What reconstruct and prepare read is sent, too, and arrives as a file."""
    bare = tmp_path / "bare" / "IM0001"
    bare.parent.mkdir()
    sent = pydicom.dcmread(pair / "view1.dcm")
    pydicom.dcmwrite(bare, pydicom.Dataset(sent), implicit_vr=True, little_endian=True)
    assert bare.read_bytes()[:2] == b"\x08\x00"
    (bare.parent / "notes.txt").write_text("no DICOM")
    with store() as pacs:
        assert send(bare.parent, to=pacs.to, timeout_s=TIMEOUT_S).sent == [bare]
    assert pacs.received[0].PixelData == sent.PixelData
    assert send(bare, to=web.url, timeout_s=TIMEOUT_S).sent == [bare]
    body = web.got[0][2]
    arrived = pydicom.dcmread(io.BytesIO(body[body.index(b"DICM") - 128 :]), stop_before_pixels=True)
    assert arrived.file_meta.MediaStorageSOPInstanceUID == arrived.SOPInstanceUID == sent.SOPInstanceUID
    assert arrived.file_meta.FileMetaInformationGroupLength > 0


def test_provider_of_implicit_vr_only(pair: Path) -> None:
    got = []

    def store(event: Any) -> int:
        got.append((event.context.transfer_syntax, event.dataset.PixelData))
        return 0x0000

    with scp(store) as to:
        send(pair, to=to, timeout_s=TIMEOUT_S)
    assert [g[0] for g in got] == [ImplicitVRLittleEndian] * 2
    assert got[0][1] == pydicom.dcmread(pair / "view1.dcm").PixelData


def assert_refused(
    pair: Path, message: str, answer: Callable[[Any], int] = lambda event: 0x0000, **keywords: Any
) -> None:
    """Sending to a provider that answers so, and takes these `contexts`, fails with this message."""
    with scp(answer, **keywords) as to, pytest.raises(NetworkError, match=message):
        send(pair, to=to, timeout_s=TIMEOUT_S)


def test_failed_status_of_one_file_does_not_stop_the_others(pair: Path) -> None:
    save(dx(3), pair / "view3.dcm")
    answers = iter([0x0000, 0xA700, 0xB000])
    assert_refused(
        pair, r"sent 2 of 3 files to SCP.*view2.dcm: status 0xA700, refused: out of res", lambda event: next(answers)
    )


def test_remarks_are_passed_on(pair: Path, caplog: pytest.LogCaptureFixture) -> None:
    with scp(lambda event: 0xB000) as to:
        report = send(pair, to=to, timeout_s=TIMEOUT_S)
    assert len(report.sent) == 2 and "view1.dcm was stored with a remark: status 0xB000" in caplog.text


@pytest.mark.parametrize(("uid", "stored"), [(f"{ROOT}.1.1", 1), (f"{ROOT}.9", 0), ("", 1)])
def test_an_answer_about_another_object_confirms_nothing(uid: str, stored: int, pair: Path) -> None:
    def change(event: Any) -> None:
        event.message.command_set.AffectedSOPInstanceUID = uid

    (pair / "view2.dcm").unlink()
    with scp(lambda event: 0x0000, sent=change) as to:
        if stored:
            assert len(send(pair, to=to, timeout_s=TIMEOUT_S).sent) == 1
        else:
            with pytest.raises(NetworkError, match=rf"sent 0 of 1 .*view1.dcm: the answer is about another .*{uid}"):
                send(pair, to=to, timeout_s=TIMEOUT_S)


def test_files_of_several_patients_are_warned_of_before_sending(pair: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), store() as pacs:
        send(pair, to=pacs.to, timeout_s=TIMEOUT_S)
        assert "patients" not in caplog.text
        save(dx(3, PatientName="Other^Patient", PatientID="2"), pair / "view3.dcm")
        save(dx(4, PatientName="", PatientID=""), pair / "view4.dcm")
        send(pair, to=pacs.to, timeout_s=TIMEOUT_S)
        warning = caplog.text.index(f"the 4 files are of 2 patients; all are sent to {pacs.to}")
        assert warning < caplog.text.index("sent 4 of 4 files")


def test_unsupported_transfer_syntax(pair: Path) -> None:
    compressed = dx(3)
    compressed.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 60])
    compressed["PixelData"].is_undefined_length = True
    save(compressed, pair / "view3.dcm", JPEG2000Lossless)
    assert_refused(pair, r"sent 2 of 3 .*view3.dcm: .* takes no Digital X-Ray.* JPEG 2000")


def test_unsupported_class(pair: Path) -> None:
    assert_refused(
        pair,
        r"sent 0 of 2 .* takes none of these kinds of file: Digital X-Ray",
        contexts=[("1.2.840.10008.5.1.4.1.1.2", [ImplicitVRLittleEndian])],
    )


def test_damaged_file_is_named(pair: Path) -> None:
    (pair / "view2.dcm").write_bytes((pair / "view2.dcm").read_bytes()[:180])
    assert_refused(pair, r"sent 1 of 2 .*view2.dcm: damaged or not a DICOM file")


def test_lost_association(pair: Path) -> None:
    def abort(event: Any) -> int:
        event.assoc.abort()
        return 0x0000

    assert_refused(pair, r"sent 0 of 2 .*view1.dcm: no answer .*view2.dcm: not tried", abort)


def test_refused_connection(pair: Path) -> None:
    (port,) = free_ports(1)
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
        store(from_aet=["FEWVIEW"]) as pacs,
        pytest.raises(NetworkError, match=f"rejected the association: {reason}"),
    ):
        send(pair, to=pacs.to.replace("FEWVIEW", called), calling_aet=calling, timeout_s=TIMEOUT_S)
    assert not pacs.received


def test_a_rejection_is_understood_though_the_connection_closes_at_once(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Orthanc does it: pynetdicom then often finds no connection, and asks no further."""
    send_request = ACSE.send_request

    def slowly(self: ACSE) -> None:
        send_request(self)
        time.sleep(0.5)  # long enough for the answer to come and the connection to go

    def reject() -> None:
        peer, _ = server.accept()
        with peer:
            if peer.recv(65536):
                peer.sendall(bytes([3, 0, 0, 0, 0, 4, 0, 1, 1, 7]))

    monkeypatch.setattr(ACSE, "send_request", slowly)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=reject, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        with pytest.raises(NetworkError, match="rejected the association: called ae title not recognised"):
            send(pair, to=f"OTHER@127.0.0.1:{port}", timeout_s=TIMEOUT_S)
    thread.join(5)


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
    ("length", "again", "pause_s"), [(0xFFFFFFF0, b"\0" * 2**16, 0.0), (1000, b"\0", 0.05), (1000, b"\0" * 9, 100.0)]
)
def test_an_answer_without_end_is_not_waited_for(length: int, again: bytes, pause_s: float, pair: Path) -> None:
    start = time.monotonic()
    with talking(struct.pack(">BBI", 2, 0, length), again=again, pause_s=pause_s) as url:
        where = url.removeprefix("http://").removesuffix("/dicom-web")
        with pytest.raises(NetworkError, match="cannot be reached"):
            send(pair, to=f"PACS@{where}", timeout_s=0.5)
    assert time.monotonic() - start < 15


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
    with store() as pacs:
        assert len(send(pair, other, pair / "view1.dcm", to=pacs.to, timeout_s=TIMEOUT_S).sent) == 3
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
    monkeypatch.setitem(VERBS, "send", Verb("custom.dicom.network", "send", "PACS"))
    words = ["out", "0002", "--to", "PACS@h:104", "--timeout_s", "5", "--tls", "--ca_file", "ca.pem"]
    bound = parsed(command_app("send"), "send", [*words, "--calling_aet", "0001"])
    positional, keywords = bound.args, bound.kwargs
    assert positional == ("out", "0002")
    assert keywords == {
        "to": "PACS@h:104", "timeout_s": 5.0, "tls": True, "ca_file": Path("ca.pem"), "calling_aet": "0001"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("module", "to"), [("pynetdicom", "P@127.0.0.1:1"), ("dicomweb_client", "https://127.0.0.1:1")]
)
def test_missing_package_names_the_extra(module: str, to: str, pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"fewview-ct\[pacs\]"):
        send(pair, to=to)


def test_more_kinds_than_one_association_holds(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custom.dicom.store.MOST_CONTEXTS", 1)
    save(dx(3, SOPClassUID=CT), pair / "ct.dcm")
    classes = [DX_PROCESSING, CT]
    with scp(lambda event: 0x0000, [(c, [ImplicitVRLittleEndian, "1.2.840.10008.1.2.1"]) for c in classes]) as to:
        report = store_scu(sorted(pair.iterdir()), parse_address(to), "FEWVIEW", TIMEOUT_S)
    assert len(report.sent) == 3 and not report.failed
