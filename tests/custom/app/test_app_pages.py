"""The pages of `fewview-ct app`: who may ask, what is taken and asked, and that nothing is lost or shown to others."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from custom.app.case_folder import Case, Cases, Limits, Refused
from custom.app.pages import create_app
from custom.app.question_fields import ASSUMPTIONS, FIELDS, parse_answer, written
from custom.app.work_queue import Installation
from custom.radiographs import ACCEPT
from custom.radiographs.sidecar import KEYS

HOST = "127.0.0.1:8700"
OURS = {"origin": f"http://{HOST}"}
HERE = Installation({"inr_recon": (Path("none.pt"), False), "ldm_recon": (Path("none.pt"), True)}, fetch_from=None)
LIMITS = Limits(file_mb=1, files=3, cases=4)
#: All that a PNG does not say, but for the distance from source to detector.
SIDECAR = {"view_position": "PA", "source_to_isocenter_mm": 1650, "pixel_mm": 5, "orientation": "L/F",
           "intensity_relationship": "LIN", "intensity_sign": 1}  # fmt: skip


def client_of(folder: Path, token: str | None = None, **changes: object) -> TestClient:
    limits = Limits(**{**vars(LIMITS), **changes})  # type: ignore[arg-type]
    app = create_app(Cases(folder, limits), HERE, {"127.0.0.1", "ct.example"}, token)
    return TestClient(app, f"http://{HOST}", headers=OURS, follow_redirects=False)


def new_case(client: TestClient) -> str:
    return f"/cases/{client.post('/cases').json()['id']}"


def record(folder: Path, case: str) -> dict:
    return json.loads((folder / "cases" / case.split("/")[-1] / "case.json").read_text())


def send(client: TestClient, case: str, **files: bytes) -> list[int]:
    """Answers to sending files, by name."""
    return [client.post(f"{case}/files?name={name}", content=data).status_code for name, data in files.items()]


def radiograph(folder: Path, **sidecar: object) -> tuple[bytes, bytes]:
    """A PNG of an ellipse in air, and its sidecar."""
    v, u = np.mgrid[-1:1:96j, -1:1:96j]
    path = np.sqrt(np.clip(1 - (u / 0.7) ** 2 - (v / 0.9) ** 2, 0, None))
    grey = (60000 * np.exp(-3 * path)).astype(np.uint16)
    Image.fromarray(grey).save(folder / "a.png")
    return (folder / "a.png").read_bytes(), json.dumps({**SIDECAR, **sidecar}).encode()


def received(cases: Cases, **files: bytes) -> Case:
    """A new case with files."""
    case = cases.create()
    for name, content in files.items():
        with case.new_file(name, 3) as stream:
            stream.write(content)
    return case


def settled(client: TestClient, case: str) -> str:
    """The page of a case when nothing runs any more."""
    end = time.monotonic() + 300
    while client.get(f"{case}/state").json()["state"] != "idle":
        assert time.monotonic() < end, "the step does not end"
        time.sleep(0.1)
    return client.get(case).text


def test_a_missing_fact_is_asked_for_and_the_answer_is_used(client: TestClient, tmp_path: Path) -> None:
    picture, sidecar = radiograph(tmp_path)
    case = new_case(client)
    assert send(client, case, **{"../../Frontal 1.PNG": picture, "../../frontal 1.json": sidecar}) == [201, 201]
    assert sorted(record(tmp_path, case)["files"]) == ["radiograph_1.json", "radiograph_1.png"]
    assert client.post(f"{case}/read").status_code == 303
    page = settled(client, case)
    assert "Distance A, source to detector" in page and "0:source_to_isocenter" not in page.split("Correct a value")[0]
    assert "sidecar" in page and "../../Frontal 1.PNG" in page and "radiograph_1.png:" not in page
    assert client.post(f"{case}/reconstruct", data={"model": "inr_recon"}).status_code == 409
    assert client.get(f"{case}/picture/1").headers["content-type"] == "image/png"

    client.post(f"{case}/answers", data={"0:source_to_detector_mm": ""})
    assert "Nothing new was answered" in settled(client, case)
    client.post(f"{case}/answers", data={"0:source_to_detector_mm": "1600"})
    assert "1600 mm by your answer in the form" in settled(client, case)  # nearer than the patient
    client.post(f"{case}/answers", data={"0:source_to_detector_mm": "far"})
    assert "“far” must be a number" in settled(client, case)
    # What was allowed before is taken back by a form that offers it and does not have it ticked.
    Case(tmp_path / case[1:]).save(accept=["for-presentation", "log-range"])
    form = {"0:source_to_detector_mm": "1800", "0:pixel_mm": "5,5", "9:angle_deg": "1", "offered": "for-presentation",
            "accept": ["default-distances", "no-such"]}  # fmt: skip
    client.post(f"{case}/answers", data=form)
    page = settled(client, case)
    assert record(tmp_path, case)["accept"] == ["default-distances", "log-range"]
    assert "What was read" in page and "your answer" in page and "Make the CT" in page
    assert "PA: the beam enters at the back" in page and "left at the right edge of the picture, head up</bdi>" in page
    assert "Distance A, source to detector [mm]" in page and "isocenter" not in page.split("All other values")[0]
    reading = json.loads((tmp_path / case[1:] / "reading.json").read_text())
    values = {key: (value, by) for key, _, value, _, by in reading["radiographs"][0]["values"]}
    assert values["source_to_detector_mm"] == ("1800", "your answer")
    assert values["pixel_mm"][0] == "5.5, 5.5"
    assert reading["radiographs"][0]["sides"] == ["L", "R"] and not reading["questions"]
    for bad in ({"model": "../x"}, {"model": "ldm_recon", "samples": "17"}, {"model": "ldm_recon", "samples": "1"}):
        assert client.post(f"{case}/reconstruct", data=bad).status_code == 400
    # The page shows a failure of the step in words: these weights are not there.
    client.post(f"{case}/reconstruct", data={"model": "ldm_recon", "samples": "2"})
    assert "no such model" in settled(client, case)


def test_a_restart_loses_no_step(tmp_path: Path) -> None:
    picture, sidecar = radiograph(tmp_path, source_to_detector_mm=1800)
    cases = Cases(tmp_path / "cases", LIMITS)
    names = []
    for state in ("waiting", "running"):  # the second one was killed in its midst
        case = received(cases, **{"a.png": picture, "a.json": sidecar})
        case.wait_for("read")
        case.save(state=state)
        names.append(f"/cases/{case.id}")
    with pytest.raises(ValueError, match="another app works in this folder"):
        Cases(tmp_path / "cases", LIMITS)
    cases.close()
    with client_of(tmp_path / "cases") as client:
        for name in names:
            assert "What was read" in settled(client, name)


def test_a_file_that_was_coming_when_the_server_ended_is_left_out_and_named(tmp_path: Path) -> None:
    picture, sidecar = radiograph(tmp_path, source_to_detector_mm=1800)
    cases = Cases(tmp_path / "cases", LIMITS)
    case = received(cases, **{"a.png": picture, "a.json": sidecar})
    coming = case.new_file("Second <b>.png", 3)
    stream = coming.__enter__()
    stream.write(picture[:100])
    stream.flush()
    assert len(list((case.folder / "files").iterdir())) == 3  # and the server ends here
    cases.close()
    with client_of(tmp_path / "cases") as client:
        name = f"/cases/{case.id}"
        assert record(tmp_path, name)["files"] == {"radiograph_1.png": "a.png", "radiograph_1.json": "a.json"}
        assert len(list((case.folder / "files").iterdir())) == 2
        page = client.get(name).text
        assert "Not received whole" in page and "Second &lt;b&gt;.png" in page
        assert client.post(f"{name}/read").status_code == 303
        assert "What was read" in settled(client, name)
    with pytest.raises(Refused, match="was taken out while it came"):
        coming.__exit__(None, None, None)
    assert len(list((case.folder / "files").iterdir())) == 2


def test_a_fetch_that_runs_again_takes_nothing_twice(tmp_path: Path) -> None:
    cases = Cases(tmp_path / "cases", LIMITS)
    case = received(cases, **{"1 from the PACS.dcm": b""})
    case.save(state="running", task="fetch", options={"by": "accession", "value": "A1"}, since=0)
    cases.close()
    with client_of(tmp_path / "cases") as client:
        settled(client, f"/cases/{case.id}")
    now = Case(case.folder).record
    assert now["error"] and now["files"] == {}  # no PACS was named
    assert list((case.folder / "files").iterdir()) == []


def test_nothing_is_read_while_a_file_comes(client: TestClient, tmp_path: Path) -> None:
    name = new_case(client)
    case = Case(tmp_path / name[1:])
    with case.new_file("a.png", 3) as stream:
        stream.write(b"half")
        answer = client.post(f"{name}/read")
        assert answer.status_code == 409 and "a.png is still on its way" in answer.text
    assert record(tmp_path, name)["state"] == "idle" and case.unfinished() == []


def test_a_step_that_is_cut_off_by_the_end_of_the_server_waits_again(tmp_path: Path) -> None:
    picture, sidecar = radiograph(tmp_path)
    with client_of(tmp_path / "cases") as client:
        case = new_case(client)
        send(client, case, **{"a.png": picture, "a.json": sidecar})
        client.post(f"{case}/read")
    assert record(tmp_path, case)["state"] in ("waiting", "running")
    Cases(tmp_path / "cases", LIMITS).close()
    assert record(tmp_path, case)["state"] == "waiting"


def test_files_are_bounded_while_they_come(client: TestClient, tmp_path: Path) -> None:
    case = new_case(client)
    folder = tmp_path / "cases" / case.split("/")[-1] / "files"

    def endless() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(100_000)

    for content in (bytes(1_000_001), endless()):
        assert client.post(f"{case}/files?name=a.dcm", content=content).status_code == 413
        assert list(folder.iterdir()) == [] and record(tmp_path, case)["files"] == {}
    assert send(client, case, **{f"IM{number}": b"x" for number in range(4)}) == [201] * 3 + [413]
    assert sorted(path.name for path in folder.iterdir()) == [f"radiograph_{n}.dcm" for n in (2, 3, 4)]
    assert client.post(f"{case}/answers", content=bytes(100_000)).status_code == 413
    for _ in range(3):
        new_case(client)
    answer = client.post("/cases")
    assert answer.status_code == 503 and "4 cases are kept already, and are removed after 30 days" in answer.text


@pytest.mark.parametrize(
    "name",
    ["../../../etc/passwd", "/etc/passwd", "..", "", "a/b.dcm", "\x00", "a" * 255, "..\\..\\x.png", ".json.png"],
)
def test_no_path_comes_from_a_client(client: TestClient, tmp_path: Path, name: str) -> None:
    case = new_case(client)
    before = {path for path in tmp_path.rglob("*")}
    client.post(f"{case}/files", params={"name": name}, content=b"x")
    new = [path for path in tmp_path.rglob("*") if path not in before]
    assert [re.fullmatch(r"radiograph_1\.(dcm|png)", path.name) is not None for path in new] == [True]
    assert new[0].parent.name == "files"
    inside = f"/cases/{'a' * 32}"
    for address in (
        f"{case}/picture/1", f"{case}/picture/{'9' * 400}", f"{case}/picture/{'9' * 5000}",
        f"{case}/download/..%2f..%2fcase.json", f"{case}/download/case.json", f"{case}/view/case.json", "/cases/..%2fx",
        f"{case}/picture/..%2fcase.json", "/static/..%2fpages.py", "/static/../pages.py",
        f"{inside}/download/ct.nii.gz",
    ):  # fmt: skip
        assert client.get(address).status_code == 404


def test_a_sidecar_of_no_radiograph_and_two_of_one_name_are_refused(client: TestClient) -> None:
    case = new_case(client)
    send(client, case, **{"a.dcm": b"x", "b.json": b"{}"})
    answer = client.post(f"{case}/read")
    assert answer.status_code == 400 and answer.text.startswith("b.json: no radiograph has this name")
    assert send(client, case, **{"A.dcm.json": b"{}", "a.json": b"{}"}) == [201, 413], "too many files"
    assert client.post(f"{case}/remove-files", data={"file": "../case.json"}).status_code == 404
    assert client.post(f"{case}/remove-files", data={"file": "radiograph_2.json"}).status_code == 303


def test_nobody_finds_the_case_of_another(client: TestClient, tmp_path: Path) -> None:
    case = new_case(client)
    assert re.fullmatch(r"/cases/[\w-]{32}", case)
    assert case.split("/")[-1] not in client.get("/").text
    for address in ("/cases", "/cases/", case[:-1], f"{case}x", f"/cases/{'A' * 32}"):
        assert client.get(address).status_code in (404, 405)
    for path in [tmp_path / "cases", *(tmp_path / "cases").rglob("*")]:
        most = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(os.stat(path).st_mode) & ~most == 0, path
    assert client.post(f"{case}/delete").status_code == 303
    assert client.get(case).status_code == 404 and not list((tmp_path / "cases").glob("?" * 32))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "127.0.0.2:8700"])
def test_a_foreign_host_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 421
    assert client.get("/", headers={"host": "CT.example:443"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", f"http://{HOST}.evil.example", "http://127.0.0.1", "http://[x"]
)
def test_other_pages_cannot_change_anything(client: TestClient, origin: str) -> None:
    assert client.post("/cases", headers={"origin": origin}).status_code == 403


def test_without_the_token_nothing_is_shown(tmp_path: Path) -> None:
    token = "0123456789abcdefghij"
    with client_of(tmp_path / "cases", token) as client:
        assert client.get("/health").text == "ok\n"
        page = client.get(f"/cases/{'A' * 32}")
        assert page.status_code == 401 and f'value="/cases/{"A" * 32}"' in page.text
        assert client.post("/cases").status_code == 401
        assert client.post("/sign-in", data={"token": "wrong", "next": "/"}).status_code == 403
        client.cookies.set("fewview_session", "0" * 64)
        assert client.get("/").status_code == 401
        client.cookies.clear()
        for host in ("127.0.0.1/static/", "127.0.0.1/health?"):  # that would be the path of an address made of it
            assert client.get("/", headers={"host": host}).status_code == 401
        for target, expected in (
            ("https://evil.example", "/"),
            ("//evil.example", "/"),
            (page.url.path, page.url.path),
        ):
            answer = client.post("/sign-in", data={"token": token, "next": target})
            assert answer.status_code == 303 and answer.headers["location"] == expected
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie and token not in cookie
        assert client.get("/").status_code == 200
        assert "Secure" in client.post("https://ct.example/sign-in", data={"token": token},
                                       headers={"origin": "https://ct.example"}).headers["set-cookie"]  # fmt: skip


def test_every_answer_forbids_frames_scripts_of_others_and_copies(client: TestClient) -> None:
    for answer in (client.get("/"), client.get("/nothing"), client.get("/", headers={"host": "x"})):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"


def test_texts_of_files_and_clients_are_escaped(client: TestClient) -> None:
    case = new_case(client)
    client.post(f"{case}/files", params={"name": "<script>alert(1)</script>.dcm"}, content=b"x")
    page = client.get(case).text
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_old_cases_are_removed_but_not_while_they_wait(tmp_path: Path) -> None:
    cases = Cases(tmp_path / "cases", LIMITS)
    old, waiting, new = cases.create(), cases.create(), cases.create()
    for case in (old, waiting):
        case.save(created=time.time() - 31 * 86400)
    waiting.wait_for("read")
    cases.expire()
    assert {case.id for case in cases} == {waiting.id, new.id}


def test_what_a_removal_left_half_done_is_removed_at_the_next_start(tmp_path: Path) -> None:
    cases = Cases(tmp_path / "cases", LIMITS)
    case = cases.create()
    cases.take_out(case)  # the server ends here
    assert not case.folder.exists() and list(cases) == []
    cases.close()
    Cases(tmp_path / "cases", LIMITS).close()
    assert [path.name for path in (tmp_path / "cases").iterdir()] == [".lock"]


def test_a_removed_case_does_not_stop_the_queue(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(folder: Path, ignore_errors: bool) -> None:
        (folder / "case.json").unlink()  # the rest is there while the step's end is seen
        time.sleep(1)
        remove(folder, ignore_errors)

    remove = shutil.rmtree
    monkeypatch.setattr("custom.app.pages.shutil.rmtree", slow)
    picture, sidecar = radiograph(tmp_path, source_to_detector_mm=1800)
    for removed in (True, False):
        case = new_case(client)
        send(client, case, **{"a.png": picture, "a.json": sidecar})
        client.post(f"{case}/read")
        if removed:
            while client.get(f"{case}/state").json()["seconds"] < 1:
                time.sleep(0.05)
            client.post(f"{case}/delete")
            assert [path.name for path in (tmp_path / "cases").iterdir()] == [".lock"]
    assert "What was read" in settled(client, case)


def test_a_full_disk_is_seen_while_a_file_comes(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = new_case(client)
    monkeypatch.setattr("custom.app.case_folder._FREE_BYTES", 2**63)
    assert client.post(f"{case}/files?name=a.dcm", content=b"x").status_code == 507
    assert record(tmp_path, case)["files"] == {}


def test_names_of_files_are_not_mixed_up(tmp_path: Path) -> None:
    names = ("radiograph_2.dcm", "radiograph_1.dcm")  # the client's; ours count from 1
    case = received(Cases(tmp_path / "cases", LIMITS), **dict.fromkeys(names, b""))
    assert case.shown("files/radiograph_1.dcm and radiograph_2.dcm") == "radiograph_2.dcm and radiograph_1.dcm"


def test_a_pacs_is_asked_only_where_one_was_named(client: TestClient) -> None:
    assert "PACS" not in client.get("/").text
    assert client.post("/cases", data={"by": "accession", "value": "A1"}).status_code == 400


@pytest.mark.parametrize("key", FIELDS)
def test_every_choice_is_one_that_a_sidecar_takes(key: str) -> None:
    for code, _ in FIELDS[key].choices:
        KEYS[key](value := parse_answer(key, code))
        assert written(key, {key: value}) == code
    with pytest.raises(ValueError, match=re.escape(FIELDS[key].label)):
        parse_answer(key, "no such")
    assert parse_answer(key, "  ") is None and set(ASSUMPTIONS) == set(ACCEPT)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [("angle_deg", "12,5", 12.5), ("pixel_mm", "0.14", 0.14), ("pixel_mm", "0.14 x 0,2", [0.14, 0.2]),
     ("detector_angles_deg", "0; 15", [0.0, 15.0])],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(key: str, text: str, value: object) -> None:
    assert parse_answer(key, text) == value
