"""`fewview-ct app` with a real PACS: a study fetched by the form, reconstructed, planned on, and sent back."""

from __future__ import annotations

import time
from pathlib import Path

import pydicom
import pytest
from orthanc_server import MARKS, USER, find_series, running
from starlette.testclient import TestClient

from custom.app.case_folder import Cases, Limits
from custom.app.pages import create_app
from custom.app.work_queue import Installation
from custom.data.sample import sample_ct
from custom.data.simulate import Acquisition, simulate_case
from custom.dicom.network import send
from custom.dicom.write_dx import write_dx
from custom.evaluation.evaluate import load_hu
from custom.models import find_model

pytestmark = MARKS
HOST = "http://127.0.0.1:8700"


def settled(client: TestClient, case: str) -> str:
    end = time.monotonic() + 400
    while client.get(f"{case}/state").json()["state"] != "idle":
        assert time.monotonic() < end
        time.sleep(0.5)
    page = client.get(case).text
    assert 'role="alert"' not in page, page
    return page


@pytest.mark.parametrize("by_store", [False, True])
def test_from_the_pacs_and_back(tmp_path: Path, by_store: bool) -> None:
    hu, affine = load_hu(sample_ct())
    image, geometry = simulate_case(hu, affine, Acquisition("paper", (270.0, 0.0), "cone", 1650.0, 1800.0))
    (tmp_path / "made").mkdir()
    (tmp_path / "orthanc").mkdir()
    for name, one, view in zip("ab", image.numpy(), geometry.tensor().numpy(), strict=True):
        path = write_dx(tmp_path / "made" / f"{name}.dcm", one, view, photons=4e6, patient_id="APP-1")
    with running(tmp_path / "orthanc") as orthanc:
        send(path.parent, to=orthanc.dicom)
        options = (f"--user={USER}", f"--password_file={orthanc.password_file}")
        target = {"send_to": orthanc.dicom} if by_store else {"send_to": orthanc.web, "send_options": options}
        here = Installation(
            {"inr_recon": (find_model("inr_recon").model.resolve(), False)},
            fetch_from=orthanc.web,
            fetch_options=options,
            templates=("ap_pa",) if by_store else (),
            **target,  # type: ignore[arg-type]
        )
        app = create_app(Cases(tmp_path / "cases", Limits()), here, {"127.0.0.1"})
        with TestClient(app, HOST, headers={"origin": HOST}, follow_redirects=False) as client:
            case = client.post("/cases", data={"by": "patient", "value": "NOBODY"}).headers["location"]
            while client.get(f"{case}/state").json()["state"] != "idle":
                time.sleep(0.5)
            assert "no study of PatientID" in client.get(case).text
            case = client.post("/cases", data={"by": "patient", "value": "APP-1"}).headers["location"]
            assert "2 from the PACS.dcm" in settled(client, case)
            client.post(f"{case}/reconstruct", data={"model": "inr_recon"})
            assert "The CT is there" in settled(client, case)
            if by_store:
                client.post(f"{case}/plan", data={"template": "ap_pa"})
                assert "Open the plan" in settled(client, case)
            client.post(f"{case}/send")
            assert "sent on 2" in settled(client, case)
        study = str(pydicom.dcmread(path).StudyInstanceUID)
        kinds = {"CT", "RTSTRUCT", "RTPLAN", "RTDOSE"} if by_store else {"CT"}
        assert kinds <= set(find_series(orthanc, "web", study))
