"""Radiographs are added to a case that is there, and what cannot be read is left out at once."""

from __future__ import annotations

import errno
import html
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from custom.app.case_folder import Case
from tests.custom.app.test_app_pages import client_of, new_case, radiograph, record, send, settled

FOREIGN = {"letter.pdf": b"%PDF-1.7 " + bytes(200), "photo.jpg": b"\xff\xd8\xff\xe0" + bytes(200)}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(tmp_path / "cases", files=6) as client:
        yield client


def read(client: TestClient, case: str) -> str:
    assert client.post(f"{case}/read").status_code == 303
    return html.unescape(settled(client, case))


@pytest.fixture
def begun(client: TestClient, tmp_path: Path) -> tuple[str, dict[str, bytes]]:
    """A case whose radiograph was read, and a second radiograph with its sidecar."""
    picture, sidecar = radiograph(tmp_path, source_to_detector_mm=1800)
    case = new_case(client)
    send(client, case, **{"a.png": picture, "a.json": sidecar})
    assert "What was read" in read(client, case)
    lateral = {**json.loads(sidecar), "view_position": "LL", "orientation": "A/F"}
    return case, {"b.png": picture + b" ", "b.json": json.dumps(lateral).encode()}


def finish(folder: Path, number: int) -> None:
    """What a reconstruction leaves, as far as the pages show it."""
    (folder / "result").mkdir()
    made = {"verdict": "PASS", "checks": [], "radiographs": [{}] * number, "created": f"2026-11-{number:02}T12:00:00"}
    (folder / "result" / "result.json").write_text(json.dumps({**made, "model": {"name": "inr_recon"}}))
    (folder / "result" / "report.html").write_text(f"report {number}")
    (folder / "result" / "ct.nii.gz").write_bytes(b"%d" % number)
    Case(folder).save(sent="2026-11-30 12:00")


def test_a_radiograph_is_added_before_and_after_a_result_and_the_earlier_ct_stays(
    client: TestClient, tmp_path: Path, begun: tuple[str, dict[str, bytes]]
) -> None:
    case, more = begun
    folder, other = tmp_path / case[1:], tmp_path / new_case(client)[1:]
    finish(other, 5)
    finish(folder, 1)
    assert 'id="drop" data-files="4"' in client.get(case).text and "The CT is there" in client.get(case).text
    assert client.get(f"{case}/view/earlier-report.html").status_code == 404

    assert send(client, case, **{"b.png": more["b.png"]}) == [201]
    page = client.get(case).text
    assert "Read the radiographs" in page and "Make the CT" not in page, "nothing is made of what was not shown"
    assert client.post(f"{case}/reconstruct", data={"model": "inr_recon"}).status_code == 409
    assert client.post(f"{case}/send").status_code == 400 and client.get(f"{case}/picture/1").status_code == 404
    assert client.get(f"{case}/view/earlier-report.html").text == "report 1"
    assert send(client, case, **{"b.json": more["b.json"]}) == [201]
    page = read(client, case)
    assert "2. <bdi>b.png</bdi>" in page and "Left lateral" in page and "of 1 radiograph, made" in page

    assert "2026-11-01 12:00" in page
    finish(folder, 2)
    page = client.get(case).text
    assert "of 2 radiographs" in page and "of 1 radiograph, made" in page and "sent" in record(tmp_path, case)
    client.post(f"{case}/edit")
    page = settled(client, case)
    assert "What was read" in page and "of 2 radiographs, made" in page and "of 1 radiograph" not in page
    assert client.get(f"{case}/download/earlier-ct.nii.gz").content == b"2"
    assert client.get(f"{case}/download/ct.nii.gz").status_code == 404
    assert record(tmp_path, case)["sent"] == "", "that was the earlier CT"
    assert (other / "result" / "ct.nii.gz").read_bytes() == b"5" and not (other / "earlier").exists()


def test_what_is_refused_changes_nothing(
    client: TestClient, tmp_path: Path, begun: tuple[str, dict[str, bytes]]
) -> None:
    case, more = begun
    finish(tmp_path / case[1:], 1)
    assert send(client, case, **{"b.png": bytes(1_000_001), "a.json": b"{}"}) == [413, 409]
    assert "The CT is there" in client.get(case).text and len(record(tmp_path, case)["files"]) == 2
    with Case(tmp_path / case[1:]).new_file("b.png", 6) as stream:
        stream.write(more["b.png"])
        for step in ("edit", "plan", "send", "reconstruct", "answers"):
            answer = client.post(f"{case}/{step}", data={"model": "inr_recon"})
            assert answer.status_code == 409 and "b.png is still on its way" in answer.text
        assert (tmp_path / case[1:] / "result").is_dir()
    Case(tmp_path / case[1:]).save(state="running")
    assert send(client, case, **{"c.png": more["b.png"]}) == [409]
    assert (tmp_path / case[1:] / "earlier").is_dir(), "b.png is there"


def test_answers_that_were_written_before_a_radiograph_is_added_are_kept(client: TestClient, tmp_path: Path) -> None:
    picture, sidecar = radiograph(tmp_path)
    case = new_case(client)
    send(client, case, **{"a.png": picture, "a.json": sidecar})
    assert "Distance A" in read(client, case)
    written = {"0:source_to_detector_mm": "1777", "0:pixel_mm": "far", "adding": "1"}
    assert client.post(f"{case}/answers", data=written).status_code == 303
    assert record(tmp_path, case)["state"] == "idle" and record(tmp_path, case)["error"] == ""
    send(client, case, **{"b.png": picture + b" ", "b.json": sidecar})
    page = read(client, case)
    assert page.count("To be answered") == 1 and "<bdi>1777</bdi>" in page


def test_all_that_cannot_be_read_is_left_out_at_once_and_nothing_else(client: TestClient, tmp_path: Path) -> None:
    picture, sidecar = radiograph(tmp_path, source_to_detector_mm=1800)
    case = new_case(client)
    send(client, case, **FOREIGN, **{"a.png": picture, "a.json": sidecar, "b.png": picture + b" ", "b.json": b"{"})
    page = read(client, case)
    assert "3 of 4 files cannot be read" in page and "Leave out all 3 that cannot be read" in page
    for said in (
        "<small>A PDF, neither DICOM nor PNG",
        "<small>A JPEG picture, neither DICOM",
        "<small>Is not a JSON file",
    ):
        assert page.count(said) == 1
    form = page.split("Leave out all")[0].split("<form")[-1]
    wrong = [part.split('"')[0] for part in form.split('value="')[1:]]
    assert client.post(f"{case}/remove-files", data={"file": wrong}).status_code == 303
    page = settled(client, case)
    assert sorted(record(tmp_path, case)["files"].values()) == ["a.json", "a.png", "b.png"]
    assert "a.png" in page and "To be answered" in page and "cannot be read" not in page


def test_a_case_without_radiographs_takes_others(client: TestClient, tmp_path: Path) -> None:
    picture, sidecar = radiograph(tmp_path, source_to_detector_mm=1800)
    case = new_case(client)
    send(client, case, **{"letter.pdf": FOREIGN["letter.pdf"]})
    assert "Leave out the one that cannot be read" in read(client, case)
    client.post(f"{case}/remove-files", data={"file": "radiograph_1.dcm"})
    page = settled(client, case)
    assert "There are no radiographs" in page and 'data-files="6"' in page
    send(client, case, **{"a.png": picture, "a.json": sidecar})
    assert "What was read" in read(client, case)
    assert send(client, case, **{f"{i}.png": picture for i in range(5)}) == [201] * 4 + [413]
    page = settled(client, case)
    assert "This case has 6 files" in page and 'id="drop"' not in page


def test_a_page_that_shows_other_radiographs_answers_nothing(
    client: TestClient, tmp_path: Path, begun: tuple[str, dict[str, bytes]]
) -> None:
    """In a second tab, or after a step back: the answers of the first radiograph went to the one in its place."""
    case, more = begun
    send(client, case, **more)
    page = read(client, case)
    shown = [part.split('"')[0] for part in page.split('name="shown" value="')[1:]]
    assert shown == ["radiograph_1.png", "radiograph_2.png"]
    client.post(f"{case}/remove-files", data={"file": shown[1]})
    settled(client, case)
    send(client, case, **more)
    read(client, case)
    assert "radiograph_3.png" in record(tmp_path, case)["files"], "the number of another radiograph"
    for adding in ({}, {"adding": "1"}):
        answer = client.post(f"{case}/answers", data={"shown": shown, "1:source_to_detector_mm": "1700", **adding})
        assert answer.status_code == 409 and "changed on another page" in answer.text
    assert record(tmp_path, case)["answers"] == {}


def test_a_file_that_comes_too_late_is_named_and_the_limit_holds_for_all_tabs(
    client: TestClient, tmp_path: Path
) -> None:
    case = new_case(client)
    Case(tmp_path / case[1:]).save(state="running")
    answer = client.post(f"{case}/files?name=lateral.dcm", content=b"x")
    assert answer.status_code == 409 and answer.text.startswith("lateral.dcm was not taken: this case is being worked")
    Case(tmp_path / case[1:]).save(state="idle")
    with Case(tmp_path / case[1:]).new_file("1.dcm", 6), Case(tmp_path / case[1:]).new_file("1.dcm", 6):
        assert send(client, case, **{f"{n}.dcm": b"x" for n in range(5)}) == [201] * 4 + [413]


def test_names_of_255_characters_are_told_apart_and_no_longer_ones_are_taken(
    client: TestClient, tmp_path: Path
) -> None:
    """They were cut after 200, with their ending: a PNG was taken for DICOM, and a sidecar for a radiograph."""
    case = new_case(client)
    names = [f"{'a' * 249}{end}" for end in ("1.png", "2.png", ".json", "1.json")]
    assert send(client, case, **{name: b"x" for name in names}) == [201] * 4
    own = {name: own for own, name in record(tmp_path, case)["files"].items()}
    assert [own[name] for name in names[:2]] == ["radiograph_1.png", "radiograph_2.png"]
    assert own[names[3]] == "radiograph_1.json" and own[names[2]] == "radiograph_3.json"
    answer = client.post(f"{case}/files?name={'a' * 252}.png", content=b"x")
    assert answer.status_code == 400 and "may have 255 characters" in answer.text


def test_a_full_disk_stops_no_queue_and_is_said_in_words(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: tuple[str, dict[str, bytes]]
) -> None:
    def full(case: Case, **changes: object) -> None:
        if changes.get("state") != "waiting":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(case, **changes)

    (case, _), save = begun, Case.save
    monkeypatch.setattr("custom.app.work_queue._PAUSE_S", 0.1)
    with monkeypatch.context() as disk:
        disk.setattr(Case, "save", full)
        answer = client.post(f"{new_case(client)}/files?name=a.dcm", content=b"x", headers={"accept": "text/html"})
        assert answer.status_code == 507 and "The disk of this machine is full" in answer.text
        assert client.post(f"{case}/read").status_code == 303
        time.sleep(0.5)
        assert record(tmp_path, case)["state"] == "waiting"
    assert "The disk of this machine is full" in settled(client, case)
    assert "What was read" in read(client, case)
