"""Out of a PACS by DICOMweb, from a server that may say anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pydicom
import pytest

from custom.core.files import sha256_file
from custom.dicom.fetch import fetch
from custom.dicom.network import NetworkError
from custom.dicom.strict import encode
from tests.bombs import deflated
from tests.custom.dicom.network_peers import TIMEOUT_S
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
