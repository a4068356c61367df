"""Faults in the midst of a request: a client that falls silent, a full disk, an old page, a step that is killed."""

from __future__ import annotations

import errno
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from custom.app.case_folder import Case, Cases, Refused
from custom.app.work_queue import WorkQueue, _failure, _take_fetched
from tests.custom.app.test_app_more_files import finish
from tests.custom.app.test_app_pages import LIMITS, new_case, record, send, settled


def read_already(client: TestClient, tmp_path: Path, questions: int = 0) -> tuple[str, Path]:
    """A case of two radiographs, as the step that reads leaves it."""
    case = new_case(client)
    folder = tmp_path / case[1:]
    assert send(client, case, **{"a.png": b"a", "b.png": b"b"}) == [201, 201]
    shown: dict[str, Any] = {"values": [], "warnings": [], "sides": None, "patient": {}}
    asked = {"file": "radiograph_1.png", "problem": "?", "keys": ["pixel_mm"], "accept": [], "advice": ""}
    reading = {"patient": {}, "radiographs": [{"file": f"radiograph_{n}.png", **shown} for n in (1, 2)],
               "questions": [asked] * questions, "given": {"answers": {}, "accept": []}}  # fmt: skip
    (folder / "reading.json").write_text(json.dumps(reading))
    return case, folder


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "files").iterdir())


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_client_that_falls_silent_holds_no_case_and_no_server(tmp_path: Path) -> None:
    """A laptop that was closed in the midst of an upload: its case could do nothing until the server was killed."""
    program = (
        "import sys, pathlib, custom.app.guard as guard, custom.app.serve as app; guard._SILENCE_S = 1.0; "
        "app._LAST_S = 0; app.serve(pathlib.Path(sys.argv[1]), port=int(sys.argv[2]))"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "cases"), str(port)])

    def ask(path: str, body: str = "", length: int | None = None) -> socket.socket:
        own = f"Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nConnection: close"
        connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        size = f"Content-Length: {length or len(body)}"
        connection.sendall(f"POST {path} HTTP/1.1\r\n{own}\r\n{size}\r\n\r\n{body}".encode())
        return connection

    try:
        end = time.monotonic() + 120
        while True:
            try:
                with ask("/cases").makefile() as answer:
                    case = f"/cases/{json.loads(answer.readlines()[-1])['id']}"
                break
            except ConnectionError:
                assert time.monotonic() < end and server.poll() is None
                time.sleep(0.1)
        for path in (f"{case}/files?name=a.dcm", f"{case}/answers"):
            assert ask(path, "half", 1000).recv(100).startswith(b"HTTP/1.1 408")
        assert record(tmp_path, case)["files"] == {} and files(tmp_path / case[1:]) == []
        silent = ask(f"{case}/files?name=b.dcm", "half", 1000)
        server.terminate()
        assert silent.recv(100).startswith(b"HTTP/1.1 503")
        server.wait(30)
        assert record(tmp_path, case)["files"] == {}
    finally:
        server.kill()
        server.wait()


def test_a_file_whose_failure_could_not_be_written_down_does_not_hold_the_case(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, folder = read_already(client, tmp_path)
    with monkeypatch.context() as disk, pytest.raises(OSError, match="No space"), Case(folder).new_file("c.png", 3):
        disk.setattr(Case, "save", full)
        full()
    assert len(record(tmp_path, case)["files"]) == 3 and len(files(folder)) == 2
    assert client.post(f"{case}/read").status_code == 303
    assert len(record(tmp_path, case)["files"]) == 2


@pytest.mark.parametrize("method", ["set_aside", "save"])
def test_on_a_full_disk_files_are_added_and_taken_out_whole_or_not_at_all(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    case, folder = read_already(client, tmp_path)
    before = record(tmp_path, case)
    with monkeypatch.context() as disk:
        disk.setattr(Case, method, full)
        assert send(client, case, **{"c.png": b"c"}) == [507]
        assert client.post(f"{case}/remove-files", data={"file": "radiograph_1.png"}).status_code == 507
    now = record(tmp_path, case)
    assert {**now, "last": 0} == {**before, "last": 0} and files(folder) == ["radiograph_1.png", "radiograph_2.png"]


def test_all_files_that_a_page_names_are_taken_out_or_none(client: TestClient, tmp_path: Path) -> None:
    """A second press left the first radiograph out of the files, but not out of what was read."""
    case, folder = read_already(client, tmp_path)
    for names in (["radiograph_1.png", "radiograph_7.png"], []):
        assert client.post(f"{case}/remove-files", data={"file": names}).status_code == 404
    assert len(files(folder)) == len(record(tmp_path, case)["files"]) == 2 and "What was read" in client.get(case).text


def test_an_old_page_makes_no_second_ct_in_the_place_of_the_first(client: TestClient, tmp_path: Path) -> None:
    case, folder = read_already(client, tmp_path)
    finish(folder, 2)
    answer = client.post(f"{case}/reconstruct", data={"model": "inr_recon"})
    assert answer.status_code == 409 and "made meanwhile" in answer.text
    assert (folder / "result" / "ct.nii.gz").read_bytes() == b"2" and record(tmp_path, case)["state"] == "idle"


def test_answers_that_were_kept_but_not_read_are_read_before_a_ct_is_made(client: TestClient, tmp_path: Path) -> None:
    case, _ = read_already(client, tmp_path)
    client.post(f"{case}/answers", data={"0:source_to_detector_mm": "1777", "0:pixel_mm": "far"})
    assert record(tmp_path, case)["answers"] == {"radiograph_1.png": {"source_to_detector_mm": 1777}}
    answer = client.post(f"{case}/reconstruct", data={"model": "inr_recon"})
    assert answer.status_code == 409 and "not read yet" in answer.text

    case, _ = read_already(client, tmp_path, questions=1)
    answers = {"0:source_to_detector_mm": "1777"}
    client.post(f"{case}/answers", data={**answers, "0:pixel_mm": "far"})
    assert "must be a number" in record(tmp_path, case)["error"]
    client.post(f"{case}/answers", data={**answers, "0:pixel_mm": ""})
    assert record(tmp_path, case)["task"] == "read", "what was kept is new all the same"


def test_what_was_being_made_or_taken_out_when_the_server_ended_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = Cases(tmp_path / "cases", LIMITS)
    case = cases.create()
    with case.new_file("a.png", 3) as stream:
        stream.write(b"a")
    (case.folder / "files" / "radiograph_1.json").write_text("{}")  # not in the record: it would still be read
    with monkeypatch.context() as disk, pytest.raises(OSError, match="No space"):
        disk.setattr("custom.app.case_folder.write_json", full)
        cases.create()
    cases.close()
    Cases(tmp_path / "cases", LIMITS).close()
    assert files(case.folder) == ["radiograph_1.png"] and Case(case.folder).record["error"] == ""
    assert {path.name for path in (tmp_path / "cases").iterdir()} == {".lock", case.id}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "waiting"}'])
def test_a_damaged_record_keeps_no_other_case_from_its_work(
    client: TestClient, tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = new_case(client)
    (tmp_path / "cases" / damaged.rsplit("/", 1)[-1] / "case.json").write_text(content)
    case, _ = read_already(client, tmp_path)
    answer = client.get(damaged)
    assert answer.status_code == 500 and "record of this case is damaged" in answer.text
    assert client.get(case).status_code == 200
    assert sum("remove its folder" in message for message in caplog.messages) == 1


def test_what_fails_in_the_queue_is_said_and_ends_no_queue(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without descriptors left (many connections), or on anything that nobody foresaw, it ended for all cases."""
    case, folder = read_already(client, tmp_path)
    monkeypatch.setattr("custom.app.work_queue._PAUSE_S", 0.05)
    waiting, errors = WorkQueue.waiting, [OSError(errno.EMFILE, "Too many open files"), KeyError("first")]

    def fails_twice(queue: WorkQueue) -> list[Case]:
        if errors:
            raise errors.pop()
        return waiting(queue)

    def command(*_: object) -> list[str]:
        raise KeyError("models")

    with monkeypatch.context() as faulty:
        faulty.setattr(WorkQueue, "waiting", fails_twice)
        faulty.setattr(WorkQueue, "_command", command)
        client.post(f"{case}/read")
        end = time.monotonic() + 20
        while errors:
            assert time.monotonic() < end, "the queue has ended"
        settled(client, case)
        assert record(tmp_path, case)["error"].startswith("The program itself failed ('models').")
        faulty.setattr(WorkQueue, "_command", lambda *_: [sys.executable, "-c", ""])
        client.post(f"{case}/read")
        assert "That did not work" not in settled(client, case)
        killed = "import os; os.makedirs('.result.host-1-a.part/x'); os.makedirs('fetched'); os.kill(os.getpid(), 9)"
        faulty.setattr(WorkQueue, "_command", lambda *_: [sys.executable, "-c", killed])
        client.post(f"{case}/read")
        assert "ended from outside" in settled(client, case)
    assert not list(folder.glob(".*.part")) and not (folder / "fetched").exists()


def test_a_full_disk_is_said_in_words_of_the_page(tmp_path: Path) -> None:
    case = Cases(tmp_path / "cases", LIMITS).create()
    (case.folder / "log.txt").write_text("error: no space left to write .result.part/ct.nii.gz: choose another\n")
    assert _failure(case, 2).startswith("The disk of this machine is full: tell whoever runs this page")


def test_a_file_without_a_name_gets_one(client: TestClient, tmp_path: Path) -> None:
    case = new_case(client)
    send(client, case, **{"": b"x", " ": b"x"})
    assert set(record(tmp_path, case)["files"].values()) == {"no name"}
    assert re.search("<bdi>no name</bdi>", client.get(case).text)


def test_a_study_with_too_many_radiographs_is_refused_in_words(tmp_path: Path) -> None:
    case = Cases(tmp_path / "cases", LIMITS).create()
    (case.folder / "fetched").mkdir()
    (case.folder / "fetched" / "fetch.json").write_text(json.dumps({"files": {f"{n}.dcm": {} for n in range(4)}}))
    with pytest.raises(Refused, match="has 4 radiographs; at most 3"):
        _take_fetched(case, 3)
    assert not (case.folder / "fetched").exists()
