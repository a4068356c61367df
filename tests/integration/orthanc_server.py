"""A real PACS for tests: Orthanc as Debian packages it, and what a client asks of it.

Started by scripts/integration/orthanc.sh, which gives Orthanc a network of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests
from dicomweb_client.web import DICOMwebClient
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt

from tests.free_ports import free_ports

PLUGIN = Path(os.environ.get("ORTHANC_DICOMWEB", "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"))
DX_PROCESSING, DX_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
CT, MAP = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.30"
RT_OBJECTS = tuple(f"1.2.840.10008.5.1.4.1.1.481.{number}" for number in (2, 3, 5))
FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
USER, PASSWORD = "tester", "only-for-this-test"

#: `pytestmark` of the modules that need the server.
MARKS = [
    pytest.mark.integration,
    pytest.mark.skipif("FEWVIEW_ORTHANC" not in os.environ, reason="started by scripts/integration/orthanc.sh"),
]


@dataclass
class Server:
    """Orthanc, running."""

    dicom_port: int
    http_port: int
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


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """The server, until the context ends; its files are in the folder."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    assert program is not None and PLUGIN.exists(), "scripts/integration/orthanc.sh installs Orthanc and its plugin"
    dicom_port, http_port = free_ports(2)
    configuration = {
        "Name": "test", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "index"),
        "Plugins": [str(PLUGIN)], "HttpServerEnabled": True, "HttpPort": http_port, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD}, "DicomServerEnabled": True,
        "DicomAet": "ORTHANC", "DicomPort": dicom_port, "DicomCheckCalledAet": True, "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True, "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True,
        "UnknownSopClassAccepted": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True, "Ssl": False},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    (folder / "password").write_text(PASSWORD + "\n")
    server = Server(dicom_port, http_port, folder / "password")
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
        classes = (DX_PROCESSING, DX_PRESENTATION, CT, MAP, *RT_OBJECTS)
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
