"""From a CT to radiographs, into a PACS, back as files, to a CT with report, and into the PACS again.

Everything that a user would do is done by the command line. The radiographs are simulated ("fine", cone beam, quantum
noise) from the sample CT, or from the one that FEWVIEW_ROUND_TRIP_CT names (NIfTI, HU). FEWVIEW_ROUND_TRIP_KEEP names a
new folder that keeps the files. Started by scripts/integration/orthanc.sh.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from chromium import Chromium, find_chromium

from custom.data.sample import sample_ct
from custom.data.simulate import Acquisition, simulate_case
from custom.dicom.write_ct import SERIES_DESCRIPTION
from custom.dicom.write_dx import LOG_SCALE, write_dx
from custom.dicom.write_map import LOWER, MAP_DESCRIPTION, UPPER
from custom.evaluation.evaluate import load_hu, resample_to
from custom.reconstruct import hu_sha256
from tests.custom.dicom.stored_volumes import read_ct_series, read_uncertainty_map
from tests.integration.orthanc_server import MAP, MARKS, Server, fetch, find_series, pixels, running

#: Photons in the unattenuated beam, about 10 uGy at the detector; a pixel of 3.75 mm counts four millions.
PHOTONS_PER_MM2 = 3e5
SOURCE_TO_ISOCENTER_MM, SOURCE_TO_DETECTOR_MM = 1000.0, 1500.0
PATIENT = "Иванова^Анна=山田^花子"
#: What the second pair does not say, and the tag by which the refusal must name it.
MISSING = {
    "PixelIntensityRelationship": "(0028,1040)",
    "PixelIntensityRelationshipSign": "(0028,1041)",
    "DistanceSourceToDetector": "(0018,1110)",
    "DistanceSourceToPatient": "(0018,1111)",
    "EstimatedRadiographicMagnificationFactor": "(0018,1114)",
}
COMMAND = Path(sys.executable).with_name("fewview-ct")

pytestmark = MARKS


def fewview(*words: object, code: int = 0, timeout_s: float = 1200) -> str:
    """Run a command line; what it wrote to the error stream."""
    done = subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stderr


@dataclass
class Body:
    """A CT whose middle is the isocentre."""

    hu: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]

    def on(self, shape: tuple[int, ...], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Its values on another grid, clipped to what networks know."""
        return np.clip(resample_to(self.hu, self.affine, shape, affine), -1000, 1000)


@pytest.fixture(scope="module")
def body() -> Body:
    hu, affine = load_hu(Path(os.environ.get("FEWVIEW_ROUND_TRIP_CT", sample_ct())))
    middle = affine[:3, :3] @ ((np.array(hu.shape) - 1) / 2) + affine[:3, 3]
    centred = affine.copy()
    centred[:3, 3] -= middle
    return Body(hu, centred)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("FEWVIEW_ROUND_TRIP_KEEP")
    if named is None:
        return tmp_path_factory.mktemp("round_trip")
    Path(named).mkdir(parents=True, exist_ok=True)
    assert not any(Path(named).iterdir()), f"FEWVIEW_ROUND_TRIP_KEEP: {named} holds something; name a new folder"
    return Path(named)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


def write_pair(body: Body, folder: Path, degraded: bool) -> str:
    """A frontal and a lateral radiograph as DICOM DX; their study."""
    acquisition = Acquisition(
        "fine", (90.0, 0.0), "cone", SOURCE_TO_ISOCENTER_MM, SOURCE_TO_DETECTOR_MM, (128, 192), 3.75
    )
    cube, side = np.zeros((128, 128, 128), np.int16), (128 - 1) / 2 * 2.5
    grid = np.array([[2.5, 0, 0, -side], [0, 2.5, 0, -side], [0, 0, 2.5, -side], [0, 0, 0, 1.0]])
    images, geometry = simulate_case(cube, grid, acquisition, body.hu, body.affine)
    for name, image, view in zip(("frontal", "lateral"), images, geometry.views, strict=True):
        photons = PHOTONS_PER_MM2 * float(np.prod(geometry.pixel_mm[0]))
        assert photons > 1e6
        path = write_dx(
            folder / f"{name}.dcm", image, view, patient_name=PATIENT, patient_id=f"ROUND-{int(degraded)}",
            study=f"round trip {degraded}", photons=photons, presentation=degraded, monochrome1=degraded,
            drop=tuple(MISSING) if degraded else (),
        )  # fmt: skip
        dataset = pydicom.dcmread(path)
        assert dataset.BitsStored == 14 and dataset.pixel_array.max() > 2**13
    return str(dataset.StudyInstanceUID)


@dataclass
class Trip:
    """One pair that went all the way to a reconstruction."""

    study: str
    radiographs: list[Path]
    output: Path
    said: str = ""

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.output / "result.json").read_text())


@pytest.fixture(scope="module")
def whole(body: Body, folder: Path, orthanc: Server) -> Trip:
    """Full tags: sent, fetched by DICOMweb, reconstructed without an option."""
    study = write_pair(body, folder / "made" / "whole", degraded=False)
    fewview("send", folder / "made" / "whole", "--to", orthanc.dicom)
    assert len(fetch(orthanc, "web", study, folder / "received")) == 2
    got = sorted((folder / "received").iterdir())
    fewview("reconstruct", *got, "--output", folder / "whole")
    return Trip(study, got, folder / "whole")


@pytest.fixture(scope="module")
def degraded(body: Body, folder: Path, orthanc: Server) -> Trip:
    """For presentation, MONOCHROME1, no distances: sent and fetched by C-GET; refused, then accepted with a sidecar."""
    study = write_pair(body, folder / "made" / "degraded", degraded=True)
    fewview("send", folder / "made" / "degraded", "--to", orthanc.dicom)
    fetch(orthanc, "dimse", study, folder / "fetched")
    got = sorted((folder / "fetched").iterdir())
    before = sorted(folder.rglob("*"))
    said = fewview("reconstruct", *got, "--output", folder / "degraded", code=2)
    assert sorted(folder.rglob("*")) == before, "a refused run writes nothing"
    facts = {
        "source_to_detector_mm": SOURCE_TO_DETECTOR_MM, "source_to_isocenter_mm": SOURCE_TO_ISOCENTER_MM,
        "intent": "processing", "intensity_relationship": "LOG", "intensity_sign": 1, "log_scale": LOG_SCALE,
    }  # fmt: skip
    views = [{"file": path.name, **facts} for path in got]
    sidecar = folder / "sidecar.json"
    sidecar.write_text(json.dumps({"format": "fewview-ct radiographs 1", "views": views}))
    words = ["--model", "ldm_recon", "--samples", 2]
    fewview("reconstruct", *got, "--output", folder / "degraded", "--geometry", sidecar, *words)
    return Trip(study, got, folder / "degraded", said)


def test_the_refusal_names_everything_that_is_missing(degraded: Trip) -> None:
    assert degraded.said.count("\n") == 1 and degraded.said.startswith("error: ")
    parts = degraded.said.split(" | ")
    for path in degraded.radiographs:
        mine = " ".join(part for part in parts if path.name in part)
        assert "FOR PRESENTATION" in mine
        for tag in MISSING.values():
            assert tag in mine, (path.name, tag)
    assert all(f'"{key}"' in degraded.said for key in ("source_to_detector_mm", "log_scale", "intensity_sign"))


@pytest.mark.parametrize("trip", ["whole", "degraded"])
def test_the_ct_is_the_patients_and_not_mirrored(trip: str, body: Body, request: pytest.FixtureRequest) -> None:
    found: Trip = request.getfixturevalue(trip)
    hu, affine = load_hu(found.output / "ct.nii.gz")
    truth = body.on(hu.shape, affine)
    right, mirrored = (float(np.corrcoef(hu.ravel(), one.ravel())[0, 1]) for one in (truth, truth[::-1]))
    # Grids are symmetric about the isocentre, so that reversing x mirrors the patient.
    np.testing.assert_allclose(affine[0, 3], -affine[0, 0] * (hu.shape[0] - 1) / 2, atol=1e-3)
    assert right > 0.8 and right > mirrored + 0.02, (right, mirrored)
    error = np.abs(hu - truth).mean()
    assert error < 250, error
    record = found.record
    assert record["verdict"] in ("PASS", "REVIEW"), record["checks"]
    metadata = record["radiographs"][0]["metadata"]
    assert metadata["intent"]["value"] == "processing"
    assert metadata["source_to_detector_mm"]["provenance"].startswith("DICOM" if trip == "whole" else "--geometry")


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize("trip", ["whole", "degraded"])
def test_the_report_opens_in_a_browser(trip: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found: Trip = request.getfixturevalue(trip)
    report = found.output / "report.html"
    with Chromium(tmp_path / "profile") as browser:
        browser.open(report, "document.documentElement?.dataset.viewer === 'ready'")
        text = browser.evaluate("document.body.innerText")
        seen = browser.evaluate(
            "[...document.querySelectorAll('.pictures img')].filter(i => i.complete && i.naturalWidth > 0).length"
        )
        drawn = browser.screenshot("#viewer-canvas")
        asked = [url for url in browser.requests if not url.startswith("data:image/")]
        console = [line for line in browser.console if line.startswith(("error", "exception", "assert"))]
    assert console == [] and asked == [report.resolve().as_uri()]
    for part in ("NOT FOR DIAGNOSTIC USE", found.record["verdict"], "Иванова", *(p.name for p in found.radiographs)):
        assert part in text, part
    assert seen >= 6, "radiograph, reprojection and difference of two views"
    assert len(drawn) > 20_000, "the viewer shows nothing"


@pytest.mark.parametrize(("trip", "transport"), [("whole", "dimse"), ("degraded", "web")])
def test_ct_and_map_go_back_and_come_out_the_same(
    trip: str, transport: str, orthanc: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found: Trip = request.getfixturevalue(trip)
    fewview("send", found.output, "--to", orthanc.dicom)
    hu = np.asarray(nib.nifti1.load(found.output / "ct.nii.gz").dataobj)
    series = find_series(orthanc, transport, found.study)
    kinds = {"DX0", "DX1", "CT", "OT"}
    assert {name[:2] for name in series} == {name[:2] for name in kinds} and len(series) == len(kinds)
    assert series["CT"].SeriesDescription == SERIES_DESCRIPTION
    assert int(series["CT"].NumberOfSeriesRelatedInstances) == hu.shape[2]

    back = fetch(orthanc, transport, found.study, tmp_path / "back")
    assert {str(one.PatientName) for one in back.values()} == {PATIENT}
    assert len({str(one.PatientID) for one in back.values()}) == 1
    sent = sorted((found.output / "ct").iterdir())
    for path in [*found.radiographs, *sent]:
        original = pydicom.dcmread(path)
        assert pixels(back[str(original.SOPInstanceUID)]) == pixels(original), path.name
    volume, affine = read_ct_series(tmp_path / "back")
    np.testing.assert_array_equal(volume, hu)
    np.testing.assert_allclose(affine, nib.nifti1.load(found.output / "ct.nii.gz").affine, atol=1e-3)
    assert hu_sha256(volume) == found.record["volume"]["hu_sha256"]
    named = {str(item.ReferencedSOPInstanceUID) for item in pydicom.dcmread(sent[0]).SourceImageSequence}
    assert named == {str(pydicom.dcmread(path).SOPInstanceUID) for path in found.radiographs}
    if trip == "whole":  # no samples, but intervals
        assert series["OT"].SeriesDescription in {LOWER.description, UPPER.description}
        return
    assert series["OT"].SeriesDescription == MAP_DESCRIPTION
    (path,) = [p for p in (tmp_path / "back").iterdir() if pydicom.dcmread(p).SOPClassUID == MAP]
    std, _ = read_uncertainty_map(path)
    np.testing.assert_array_equal(std, np.asarray(nib.nifti1.load(found.output / "uncertainty.nii.gz").dataobj))
    assert std.max() > 1
