"""Radiographs from a PACS: the listener and `fewview-ct receive`."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE

from custom.dicom.listener import Listener, is_uid
from custom.dicom.network import NetworkError, receive, send
from tests.custom.dicom.network_peers import TIMEOUT_S, free_port, in_background, send_when_it_listens
from tests.custom.dicom.stored_radiographs import ROOT, dx, save


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
        monkeypatch.setattr("custom.core.files.os.replace", fails)
        with pytest.raises(NetworkError, match="sent 0 of 2"):
            send(pair, to=f"FEWVIEW@127.0.0.1:{listener.address[1]}", timeout_s=TIMEOUT_S)
    assert [p for p in (tmp_path / "in").rglob("*") if p.is_file()] == []


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
