"""A real PACS: radiographs in and back, CT series and map stored, queried and fetched, pixel by pixel the same.

Started by scripts/integration/orthanc.sh, which gives Orthanc a network of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from custom.dicom.fetch import fetch as fetch_verb
from custom.dicom.network import NetworkError, send
from custom.dicom.write_ct import SERIES_DESCRIPTION, SyntheticCT, write_ct_series
from custom.dicom.write_map import MAP_DESCRIPTION, write_uncertainty_map
from tests.custom.dicom.stored_radiographs import MODEL, ROOT, dx, header, save
from tests.custom.dicom.stored_volumes import read_ct_series, read_uncertainty_map
from tests.integration.orthanc_server import MAP, MARKS, PASSWORD, USER, Server, fetch, find_series, pixels, running

NAME = "Yamada^Tarou=山田^太郎=やまだ^たろう"
SHAPE = (24, 20, 16)
AFFINE = np.array([[2.5, 0, 0, -28.75], [0, 2.5, 0, -23.75], [0, 0, 2.5, -18.75], [0, 0, 0, 1]])

pytestmark = MARKS


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


def store(server: Server, transport: str, *sources: Path) -> int:
    """Send by C-STORE or STOW-RS; the number of files."""
    if transport == "dimse":
        return len(send(*sources, to=server.dicom).sent)
    return len(send(*sources, to=server.web, user=USER, password_file=server.password_file).sent)


def assert_same_objects(sent: list[Path], got: dict[str, Dataset]) -> None:
    """What came back holds every object with the same pixels, patient and study."""
    for path in sent:
        original = pydicom.dcmread(path)
        found = got[str(original.SOPInstanceUID)]
        assert pixels(found) == pixels(original), path.name
        for keyword in ("SOPClassUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            assert found.get(keyword) == original.get(keyword), (path.name, keyword)
        assert str(found.PatientName) == str(original.PatientName) == NAME


@pytest.mark.parametrize("transport", ["dimse", "web"])
def test_radiographs_in_ct_and_map_back(transport: str, orthanc: Server, tmp_path: Path) -> None:
    study = f"{ROOT}.{5 if transport == 'dimse' else 6}"
    tags = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": NAME, "StudyInstanceUID": study}
    radiographs = [
        save(
            dx(k, **tags, SOPInstanceUID=f"{study}.2.{k}", SeriesInstanceUID=f"{study}.1.{k}"),
            tmp_path / "in" / f"view{k}.dcm",
        )
        for k in (1, 2)
    ]
    assert store(orthanc, transport, tmp_path / "in") == 2
    assert len([name for name in find_series(orthanc, transport, study) if name.startswith("DX")]) == 2
    fetched = fetch(orthanc, transport, study, tmp_path / "fetched")
    assert len(fetched) == 2
    assert_same_objects(radiographs, fetched)

    random = np.random.default_rng(3)
    hu = random.integers(-1000, 1000, SHAPE).astype(np.int16)
    std = random.uniform(0, 300, SHAPE).astype(np.float32)
    sources = [header(path) for path in sorted((tmp_path / "fetched").iterdir())]
    slices = write_ct_series(SyntheticCT(hu, AFFINE, sources, MODEL, "Random voxels."), tmp_path / "out" / "ct")
    uncertainty = write_uncertainty_map(std, tmp_path / "out" / "ct", tmp_path / "out" / "uncertainty.dcm", MODEL)
    assert store(orthanc, transport, tmp_path / "out") == SHAPE[2] + 1

    series = find_series(orthanc, transport, study)
    assert series["CT"].SeriesDescription == SERIES_DESCRIPTION and series["OT"].SeriesDescription == MAP_DESCRIPTION
    assert int(series["CT"].NumberOfSeriesRelatedInstances) == SHAPE[2]
    assert int(series["OT"].NumberOfSeriesRelatedInstances) == 1

    back = fetch(orthanc, transport, study, tmp_path / "back")
    assert len(back) == 2 + SHAPE[2] + 1
    assert_same_objects([*radiographs, *slices, uncertainty], back)
    found, affine = read_ct_series(tmp_path / "back")
    np.testing.assert_array_equal(found, hu)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
    maps = [p for p in (tmp_path / "back").iterdir() if pydicom.dcmread(p).SOPClassUID == MAP]
    np.testing.assert_array_equal(read_uncertainty_map(maps[0])[0], std)
    frames = {back[str(pydicom.dcmread(p).SOPInstanceUID)].FrameOfReferenceUID for p in [*slices, uncertainty]}
    assert len(frames) == 1


@pytest.mark.parametrize("transport", ["dimse", "web"])
def test_a_plan_into_the_pacs_and_back(transport: str, orthanc: Server, tmp_path: Path) -> None:
    """Structures, plan and dose beside their CT series, element by element the same."""
    pytest.importorskip("pydosert", reason="pip install 'fewview-ct[radiotherapy]'")
    from custom.radiotherapy import PencilBeamEngine, read_ct_reference, read_rt_plan, write_rt_objects
    from tests.custom.radiotherapy.thorax_phantom import GRID, patient, thorax

    ct, masks = thorax()
    case = patient(ct, masks, PencilBeamEngine()).case
    assert case is not None
    slices = write_ct_series(SyntheticCT(ct.hu, GRID.affine(), [], MODEL, "A phantom."), tmp_path / "out" / "ct")
    reference = read_ct_reference(tmp_path / "out" / "ct")
    written = write_rt_objects(case, reference, tmp_path / "out")
    assert store(orthanc, transport, tmp_path / "out") == len(slices) + 3
    study = str(reference.headers[0].StudyInstanceUID)
    found = find_series(orthanc, transport, study)
    assert set(found) == {"CT", "RTSTRUCT", "RTPLAN", "RTDOSE"}
    assert all("SYNTHETIC" in str(one.SeriesDescription) for one in found.values())
    back = fetch(orthanc, transport, study, tmp_path / "back")
    assert len(back) == len(slices) + 3
    for path in written:
        original = pydicom.dcmread(path)
        assert back[str(original.SOPInstanceUID)].to_json_dict() == original.to_json_dict(), path.name
    (plan_file,) = (path for path in (tmp_path / "back").iterdir() if pydicom.dcmread(path).Modality == "RTPLAN")
    assert read_rt_plan(plan_file, reference).monitor_units == pytest.approx(case.plan.monitor_units)


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("WRONG@127.0.0.1:{0.dicom_port}", {}, "rejected the association: called ae title not recognised"),
        ("http://127.0.0.1:{0.http_port}/dicom-web", {}, "HTTP 401 Unauthorized; give --user"),
        ("http://127.0.0.1:{0.http_port}/elsewhere", {"user": USER}, "HTTP 404 Not Found; is it the URL"),
        ("ORTHANC@127.0.0.1:{0.http_port}", {"timeout_s": 3.0}, "cannot be reached"),
    ],
)
def test_refusals(to: str, options: dict[str, Any], message: str, orthanc: Server, tmp_path: Path) -> None:
    save(dx(1), tmp_path / "in" / "1.dcm")
    if "user" in options:
        options = options | {"password_file": orthanc.password_file}
    with pytest.raises(NetworkError, match=message):
        send(tmp_path / "in", to=to.format(orthanc), **options)


@pytest.mark.parametrize("by", ["study", "accession", "patient"])
def test_the_verb_fetches_by(by: str, orthanc: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = f"{ROOT}.{dict(study=71, accession=72, patient=73)[by]}"
    tags = {"StudyInstanceUID": study, "AccessionNumber": f"A{by}", "PatientID": f"P{by}"}
    for k in (1, 2):
        uids = {"SOPInstanceUID": f"{study}.2.{k}", "SeriesInstanceUID": f"{study}.1.{k}"}
        save(dx(k, **tags, **uids), tmp_path / "in" / f"view{k}.dcm")
    assert store(orthanc, "web", tmp_path / "in") == 2
    value = {"study": study, "accession": f"A{by}", "patient": f"P{by}"}[by]
    monkeypatch.setenv("FEWVIEW_PACS_USER", USER)
    monkeypatch.setenv("FEWVIEW_PACS_PASSWORD", PASSWORD)
    folder = fetch_verb(orthanc.web, str(tmp_path / "out"), modality=("DX",), **{by: value})
    got = {path.name: pydicom.dcmread(path) for path in folder.rglob("*.dcm")}
    assert set(got) == {f"{study}.2.{k}.dcm" for k in (1, 2)}
    for path in (tmp_path / "in").iterdir():
        original = pydicom.dcmread(path)
        assert pixels(got[f"{original.SOPInstanceUID}.dcm"]) == pixels(original)
    with pytest.raises(ValueError, match="no study of"):
        fetch_verb(orthanc.web, str(tmp_path / "no"), patient="NOBODY")
