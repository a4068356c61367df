"""Past results: what is read of a result folder, in which order, and whose it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pydicom
import pytest

from custom.core.files import sha256_file
from custom.reconstruct import reconstruct
from custom.reconstruct.past_results import first_of_each_patient, read_results


@pytest.fixture
def result(folder: Path, case: dict[str, str], tmp_path: Path) -> Path:
    path = tmp_path / "first"
    reconstruct([case["image"]], geometry=case["geometry"], model=folder / "inr.pt", output=path, report=False)
    return path


def another(result: Path, name: str, tags: dict[str, str] | None = None, **changes: Any) -> Path:
    """A copy with other radiographs and a DICOM series of one slice with other tags; no series without tags."""
    path = result.parent / name
    shutil.copytree(result, path)
    content = json.loads((path / "result.json").read_text())
    for radiograph in content["radiographs"]:
        radiograph["sha256"] = name.encode().hex().ljust(64, "0")
    (path / "result.json").write_text(json.dumps(content | changes))
    slices = sorted((path / "ct").glob("*"))
    for one in slices[1:] if tags else slices:
        one.unlink()
    if tags:
        dataset = pydicom.dcmread(slices[0])
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        dataset.save_as(slices[0])
    return path


def test_what_was_written_is_read(result: Path, folder: Path) -> None:
    (found,) = read_results([result])
    assert (found.beam, found.views, found.samples, found.thresholds) == ("parallel", 2, 0, None)
    assert found.model == sha256_file(folder / "inr.pt") and found.statistics == {}
    assert found.voxels == (16, 16, 16) and len(found.taken) == 14
    assert found.patient is None


def test_the_order_is_that_of_the_studies_or_else_of_creation(result: Path) -> None:
    shutil.rmtree(result / "ct")
    late = another(result, "a", None, created="2026-03-01T10:00:00+01:00")
    early = another(result, "b", None, created="2026-03-01T08:30:00+00:00")
    assert [one.folder for one in read_results([late, early])] == [early, late]


def test_studies_come_before_creation(result: Path) -> None:
    another(result, "c", {"StudyDate": "20260102", "StudyTime": "080000.5"}, created="2026-03-01T08:00:00+00:00")
    another(result, "d", {"StudyDate": "20260101", "StudyTime": "0930"}, created="2026-03-01T09:00:00+00:00")
    another(result, "e", {"StudyDate": "20260101", "StudyTime": "080000"}, created="2026-03-01T10:00:00+00:00")
    shutil.rmtree(result)
    assert [one.folder.name for one in read_results([result.parent])] == ["e", "d", "c"]


def test_the_first_of_each_patient(result: Path) -> None:
    day = {"StudyDate": "20260101"}
    one = another(result, "one", {"PatientID": "7", "StudyTime": "080000", **day})
    again = another(result, "again", {"PatientID": "7", "StudyTime": "090000", **day})
    other = another(result, "other", {"PatientID": "7", "IssuerOfPatientID": "B", "StudyTime": "100000", **day})
    named = another(result, "named", {"PatientID": "", "PatientName": "Doe^Jo", "StudyTime": "110000", **day})
    same = another(result, "same", {"PatientID": "", "PatientName": "DOE^JO", "StudyTime": "120000", **day})
    nobody = another(result, "nobody", {"PatientID": "", "PatientName": "", "StudyTime": "130000", **day})
    twice = result.parent / "twice"
    shutil.copytree(nobody, twice)  # the same radiographs, reconstructed again
    found = first_of_each_patient(read_results([one, again, other, named, same, nobody, twice]))
    assert [p.folder.name for p in found] == ["one", "other", "named", "nobody"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "another"}, "'format'"),
        ({"created": "yesterday"}, "'created'"),
        ({"created": "2026-03-01T08:30:00"}, "'created'"),
        ({"radiographs": []}, "'radiographs'"),
        ({"checks": [{"name": "samples", "statistic": "much"}]}, r"checks\.0\.statistic"),
    ],
)
def test_what_is_no_result_is_said(result: Path, changes: dict[str, Any], message: str) -> None:
    path = another(result, "bad", None, **changes)
    with pytest.raises(ValueError, match=rf"bad/result\.json: .*{message}"):
        read_results([path])


def test_folders_without_results(result: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_results([result / "none"])
    with pytest.raises(FileNotFoundError, match=r"holds a result\.json"):
        read_results([result / "ct"])
    assert len(read_results([result, result.parent])) == 1
    damaged = another(result, "damaged", {"PatientID": "7"})
    next((damaged / "ct").iterdir()).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no slice of a CT series"):
        read_results([damaged])
