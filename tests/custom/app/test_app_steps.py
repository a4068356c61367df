"""Steps of the app: they are stopped, they fail in words, and they run with the server's own modules."""

from __future__ import annotations

import html
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hand_written_dicom import dx, save
from starlette.testclient import TestClient

from custom.app.case_folder import Cases
from custom.app.question_fields import asked_about, sentence
from custom.app.work_queue import WorkQueue, _environment, _failure
from custom.radiographs import read_radiographs
from custom.sampling.atlas import WHOSE_DETAIL
from tests.custom.app.test_app_pages import HERE, LIMITS, new_case, radiograph, record, send, settled


def test_a_package_that_is_called_as_a_module_of_python_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As dataclasses 0.6 of 2018, which a package of the extra radiotherapy brings: it breaks Python 3.11."""
    (tmp_path / "dataclasses.py").write_text("raise SystemExit('the old copy')")
    monkeypatch.setattr("custom.__file__", str(tmp_path / "custom" / "__init__.py"))  # both in one site-packages
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    command = [sys.executable, "-c", "import dataclasses, sys; print(sys.path[-1])"]
    done = subprocess.run(command, env=_environment(), cwd=tmp_path.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in _environment()["PYTHONPATH"].split(":")


def test_a_step_is_stopped_and_nothing_is_lost(client: TestClient, tmp_path: Path) -> None:
    content, sidecar = radiograph(tmp_path, source_to_detector_mm=1800)
    cases = [new_case(client), new_case(client)]
    for case in cases:
        send(client, case, **{"a.png": content, "a.json": sidecar})
        client.post(f"{case}/read")
    running, waiting = cases
    end = time.monotonic() + 60
    while client.get(f"{running}/state").json()["state"] != "running":
        assert time.monotonic() < end
    assert client.get(f"{waiting}/state").json()["state"] == "waiting"
    assert f'action="{running}/stop"' in client.get(running).text
    for case in cases:
        assert client.post(f"{case}/stop").status_code == 303
        page = settled(client, case)
        assert "Read the radiographs" in page and "That did not work" not in page
        assert len(record(tmp_path, case)["files"]) == 2
    for case in cases:  # nothing of the stop is left
        assert client.post(f"{case}/read").status_code == 303
        assert "What was read" in settled(client, case)
        assert client.post(f"{case}/stop").status_code == 303, "where nothing runs it changes nothing"
        assert "What was read" in client.get(case).text


def test_a_failure_of_the_program_is_not_said_to_be_one_of_memory(tmp_path: Path) -> None:
    case = Cases(tmp_path / "cases", LIMITS).create()
    (case.folder / "log.txt").write_text("Traceback\n  File\nAttributeError: no attribute 'x'\n")
    assert _failure(case, 1).startswith("The program itself failed (AttributeError: no attribute 'x').")
    assert "memory" in _failure(case, -9)
    (case.folder / "log.txt").write_text("error: a.dcm: damaged\n")
    assert _failure(case, 2) == "a.dcm: damaged"


def test_the_users_own_name_of_a_file_stands_beside_ours(tmp_path: Path) -> None:
    content, sidecar = radiograph(tmp_path, source_to_detector_mm=1800)
    cases = Cases(tmp_path / "cases", LIMITS)
    case, long = cases.create(), "x" * 100
    with case.new_file(f"../ward\\Frau\u202e  Müller {long}.png", 3) as stream:
        stream.write(content)
    (case.folder / "files" / "radiograph_1.json").write_bytes(sidecar)
    words = WorkQueue(cases, HERE)._command(case, "reconstruct", {"model": "inr_recon", "samples": 0})
    (given,) = [word.removeprefix("--geometry=") for word in words if word.startswith("--geometry=")]
    (one,) = read_radiographs([case.folder / "files" / "radiograph_1.png"], case.folder / given)
    assert one.called == f"Frau\ufffd Müller {long}"[:60] + "…"
    assert one.name == "radiograph_1.png" and one.label == f"radiograph_1.png ({one.called})"


def test_the_patients_of_two_radiographs_are_named_where_they_differ(client: TestClient, tmp_path: Path) -> None:
    save(tmp_path / "1.dcm", dx("L\\F", "PA", PatientName="Meyer^Anna", PatientID="1"))
    save(tmp_path / "2.dcm", dx("A\\F", "LL", PatientName="Schmidt^Karl", PatientID="2"))
    case = new_case(client)
    send(client, case, **{name: (tmp_path / name).read_bytes() for name in ("1.dcm", "2.dcm")})
    client.post(f"{case}/read")
    page = settled(client, case)
    assert "PatientName (0010,0010) differs from 1.dcm" in page
    assert "<bdi>Meyer Anna</bdi>" in page and "<bdi>Schmidt Karl</bdi>" in page


def test_an_assumption_says_which_answers_it_stands_for() -> None:
    accept = (["distances"], ["viewing"], ["viewing"], ["viewing", "other"])
    questions = [{"file": "a.dcm", "accept": list(one)} for one in accept] + [{"file": "b.dcm", "accept": []}]
    asked = asked_about({"questions": questions}, "a.dcm")
    assert [one["accept"] for one in asked] == [["distances"], [], [], ["viewing", "other"]]
    assert [one["instead_of"] for one in asked] == ["", "", "", " of answers 2 to 4"]
    assert asked_about({"questions": questions}, "b.dcm")[0]["instead_of"] == ""


@pytest.mark.parametrize(("text", "said"), [("is it?", "Is it?"), ("it is", "It is."), ("it is.", "It is."), ("", ".")])
def test_messages_are_sentences(text: str, said: str) -> None:
    assert sentence(text) == said


@pytest.mark.parametrize("model", [{"sampling": {"atlas": {"sha256": "0"}}}, {"sampling": {"atlas": None}}, {}])
def test_the_result_says_whose_the_detail_of_samples_is(client: TestClient, tmp_path: Path, model: dict) -> None:
    case = new_case(client)
    result = tmp_path / case[1:] / "result"
    result.mkdir()
    content = {"verdict": "PASS", "checks": [], "radiographs": [{}], "created": "2026-11-30T12:00:00"}
    (result / "result.json").write_text(json.dumps({**content, "model": {"name": "ldm_recon", **model}}))
    page = html.unescape(client.get(case).text)
    assert "The CT is there" in page
    assert (WHOSE_DETAIL in page) == bool((model.get("sampling") or {}).get("atlas"))
