"""A real PACS: radiographs in and back, CT series and map stored, queried and fetched, pixel by pixel the same.

Started by scripts/integration/orthanc.sh, which gives Orthanc a network of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client.web import DICOMwebClient
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt

from custom.dicom.network import NetworkError, receive, send
from custom.dicom.write_ct import SERIES_DESCRIPTION, SyntheticCT, read_ct_series, write_ct_series
from custom.dicom.write_map import MAP_DESCRIPTION, read_uncertainty_map, write_uncertainty_map
from tests.custom.dicom.stored_radiographs import DX_PROCESSING, MODEL, ROOT, dx, header, save

PLUGIN = Path(os.environ.get("ORTHANC_DICOMWEB", "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"))
CT, MAP = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.30"
FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
USER, PASSWORD = "tester", "only-for-this-test"
NAME = "Yamada^Tarou=山田^太郎=やまだ^たろう"
SHAPE = (24, 20, 16)
AFFINE = np.array([[2.5, 0, 0, -28.75], [0, 2.5, 0, -23.75], [0, 0, 2.5, -18.75], [0, 0, 0, 1]])

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif("FEWVIEW_ORTHANC" not in os.environ, reason="started by scripts/integration/orthanc.sh"),
]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@dataclass
class Server:
    """Orthanc, running."""

    dicom_port: int
    http_port: int
    our_port: int
    password_file: Path

    @property
    def dicom(self) -> str:
        return f"ORTHANC@127.0.0.1:{self.dicom_port}"

    @property
    def rest(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def web(self) -> str:
        return f"{self.rest}/dicom-web"

    def session(self) -> requests.Session:
        session = requests.Session()
        session.auth = (USER, PASSWORD)
        session.trust_env = False
        return session

    def client(self) -> DICOMwebClient:
        return DICOMwebClient(self.web, session=self.session())


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    assert program is not None and PLUGIN.exists(), "scripts/integration/orthanc.sh installs Orthanc and its plugin"
    folder = tmp_path_factory.mktemp("orthanc")
    dicom_port, http_port, our_port = free_ports(3)
    configuration = {
        "Name": "test", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "index"),
        "Plugins": [str(PLUGIN)], "HttpServerEnabled": True, "HttpPort": http_port, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD}, "DicomServerEnabled": True,
        "DicomAet": "ORTHANC", "DicomPort": dicom_port, "DicomCheckCalledAet": True, "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True, "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True,
        "UnknownSopClassAccepted": False, "DicomModalities": {"fewview": ["FEWVIEW", "127.0.0.1", our_port]},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True, "Ssl": False},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    (folder / "password").write_text(PASSWORD + "\n")
    server = Server(dicom_port, http_port, our_port, folder / "password")
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                if server.session().get(f"{server.rest}/system", timeout=2).ok:
                    break
            except requests.RequestException:
                pass
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-3000:]
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def store(server: Server, transport: str, *sources: Path) -> int:
    """Send by C-STORE or STOW-RS; the number of files."""
    if transport == "dimse":
        return len(send(*sources, to=server.dicom).sent)
    return len(send(*sources, to=server.web, user=USER, password_file=server.password_file).sent)


def find_series(server: Server, transport: str, study: str) -> dict[str, Dataset]:
    """Modality to what a query at series level (C-FIND or QIDO-RS) says of it."""
    if transport == "web":
        fields = ["Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances"]
        found = [Dataset.from_json(s) for s in server.client().search_for_series(study, fields=fields)]
    else:
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "SERIES", study
        for keyword in ("SeriesInstanceUID", "Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances"):
            setattr(query, keyword, "")
        entity = AE(ae_title="FEWVIEW")
        entity.add_requested_context(FIND)
        assoc = entity.associate("127.0.0.1", server.dicom_port, ae_title="ORTHANC")
        found = [answer for status, answer in assoc.send_c_find(query, FIND) if answer is not None]
        assoc.release()
    return {f"{s.Modality}{k if s.Modality == 'DX' else ''}": s for k, s in enumerate(sorted(found, key=_number))}


def _number(series: Dataset) -> str:
    return str(series.SeriesInstanceUID)


def fetch(server: Server, transport: str, study: str, folder: Path) -> dict[str, Dataset]:
    """Every object of a study by C-GET or WADO-RS, by SOP Instance UID; written into a folder as well."""
    got: list[Dataset] = []
    if transport == "web":
        got = list(server.client().retrieve_study(study))
    else:

        def keep(event: Any) -> int:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            got.append(dataset)
            return 0x0000

        # An association of its own: roles that are negotiated for C-GET would break C-STORE.
        classes = (DX_PROCESSING, CT, MAP)
        entity = AE(ae_title="FEWVIEW")
        entity.add_requested_context(GET)
        for sop_class in classes:
            entity.add_requested_context(sop_class)
        assoc = entity.associate(
            "127.0.0.1", server.dicom_port, ae_title="ORTHANC", evt_handlers=[(evt.EVT_C_STORE, keep)],
            ext_neg=[build_role(sop_class, scp_role=True) for sop_class in classes],
        )  # fmt: skip
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", study
        statuses = [int(status.Status) for status, _ in assoc.send_c_get(query, GET)]
        assoc.release()
        assert statuses[-1] == 0x0000
    folder.mkdir()
    for number, dataset in enumerate(got):
        pydicom.dcmwrite(folder / f"{number:04d}.dcm", dataset, enforce_file_format=True)
    return {str(d.SOPInstanceUID): d for d in got}


def pixels(dataset: Dataset) -> bytes:
    return dataset.FloatPixelData if "FloatPixelData" in dataset else dataset.PixelData


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


def test_server_sends_to_our_listener(orthanc: Server, tmp_path: Path) -> None:
    study = f"{ROOT}.7"
    sent = [
        save(
            dx(
                k, StudyInstanceUID=study, SOPInstanceUID=f"{study}.2.{k}", SeriesInstanceUID=f"{study}.1.{k}",
                PatientName=NAME, SpecificCharacterSet="ISO_IR 192",
            ),
            tmp_path / "in" / f"{k}.dcm",
        )
        for k in (1, 2)
    ]  # fmt: skip
    store(orthanc, "dimse", tmp_path / "in")
    result: list[list[Path]] = []
    thread = threading.Thread(
        target=lambda: result.append(
            receive(tmp_path / "got", port=orthanc.our_port, count=2, timeout_s=60, from_aet=["ORTHANC"])
        ),
        daemon=True,
    )
    thread.start()
    session = orthanc.session()
    query = {"Level": "Study", "Query": {"StudyInstanceUID": study}}
    (identifier,) = session.post(f"{orthanc.rest}/tools/find", json=query, timeout=10).json()
    end = time.monotonic() + 30
    while not session.post(f"{orthanc.rest}/modalities/fewview/store", data=identifier, timeout=30).ok:
        assert time.monotonic() < end  # our listener has not started yet
        time.sleep(0.2)
    thread.join(30)
    assert [p.parent.name for p in result[0]] == [study] * 2
    assert_same_objects(sent, {str(d.SOPInstanceUID): d for d in map(pydicom.dcmread, result[0])})


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
