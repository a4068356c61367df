"""The MONAI Label application over REST: the same volume as the command line, and clear refusals.

Started by scripts/integration/monailabel.sh in MONAI Label's own environment.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from custom.core.files import write_nifti
from custom.data.sample import sample_ct
from custom.data.simulate import Acquisition, simulate_case
from custom.dicom.write_dx import LOG_SCALE, write_dx
from custom.evaluation.evaluate import load_hu
from custom.reconstruct import hu_sha256
from tests.custom.benchmark.tiny_benchmark import write_tiny_sampler
from tests.integration.label_server import ROOT, LabelServer, serving, values

logger = logging.getLogger(__name__)

COMMAND = Path(sys.executable).with_name("fewview-ct")
CORE_COMMAND = ROOT / ".venv/bin/fewview-ct"
FRONTAL_DEG, LATERAL_DEG = 90.0, 0.0
MISSING = ("DistanceSourceToDetector", "DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor")
FACTS = {
    "source_to_detector_mm": 1500, "source_to_isocenter_mm": 1000, "intent": "processing",
    "intensity_relationship": "LOG", "intensity_sign": 1, "log_scale": LOG_SCALE,
}  # fmt: skip

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif("FEWVIEW_LABEL" not in os.environ, reason="started by scripts/integration/monailabel.sh"),
]


@dataclass
class Place:
    """A datastore, and models.

    In the datastore: frontal.dcm and lateral.dcm of one patient, copies of both in pair/, stack.nii.gz with its
    geometry, and degraded/ with a pair that does not say enough.
    """

    folder: Path

    @property
    def studies(self) -> Path:
        return self.folder / "studies"

    @property
    def models(self) -> str:
        return f"inr_recon,{self.folder / 'ldm'}"

    @property
    def environment(self) -> dict[str, str]:
        return {"FEWVIEW_MODELS": str(self.folder / "models")}

    def command_line(self, output: str, *words: object, command: Path = COMMAND) -> dict[str, Any]:
        """What `fewview-ct reconstruct` makes of it: result.json."""
        done = subprocess.run(
            [command, "reconstruct", *map(str, words), "--output", self.folder / output, "--noreport"],
            cwd=self.studies, env=dict(os.environ) | self.environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((self.folder / output / "result.json").read_text())

    def ct(self, output: str) -> bytes:
        return (self.folder / output / "ct.nii.gz").read_bytes()


def write_studies(folder: Path) -> None:
    truth, affine = load_hu(sample_ct())
    acquisition = Acquisition("paper", (FRONTAL_DEG, LATERAL_DEG), "cone")
    images, geometry = simulate_case(truth, affine, acquisition)
    pixel_v, pixel_u = geometry.pixel_mm[0]
    write_nifti(
        folder / "stack.nii.gz", images.permute(2, 1, 0).contiguous().numpy(), np.diag([pixel_u, pixel_v, 1.0, 1.0])
    )
    geometry.save(folder / "stack.json")
    for name, image, view in zip(("frontal", "lateral"), images, geometry.views, strict=True):
        write_dx(folder / f"{name}.dcm", image, view, photons=1e6)
        (folder / "pair").mkdir(exist_ok=True)
        shutil.copy(folder / f"{name}.dcm", folder / "pair" / f"{name}.dcm")
        write_dx(
            folder / "degraded" / f"{name}.dcm", image, view, study="degraded", photons=1e6, presentation=True,
            monochrome1=True, drop=MISSING,
        )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("label"))
    place.studies.mkdir()
    write_studies(place.studies)
    write_tiny_sampler(place.folder / "ldm")
    words = ["export", ROOT / "bundles/inr_recon", place.folder / "models/inr_recon"]
    subprocess.run([COMMAND, *words], check=True, timeout=120)
    (place.folder / "secret.dcm").write_bytes((place.studies / "frontal.dcm").read_bytes())
    (place.studies / "links").mkdir()
    (place.studies / "links/secret.dcm").symlink_to(place.folder / "secret.dcm")
    return place


@pytest.fixture(scope="module")
def server(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelServer]:
    with serving(tmp_path_factory.mktemp("server"), place.studies, place.models, place.environment) as server:
        yield server
        logger.info("server: ready after %.1f s, at most %.0f MiB", server.start_seconds, server.peak_mib())


@pytest.fixture(scope="module")
def expected(place: Place) -> dict[str, Any]:
    """The pair by the command line of this environment."""
    return place.command_line("cli", "frontal.dcm", "lateral.dcm", "--nodicom")


def test_info_names_the_models_and_their_parameters(server: LabelServer) -> None:
    info = server.get("/info/").json()
    assert info["name"] == "fewview-ct" and "Not for diagnosis" in info["description"]
    assert set(info["models"]) == {"inr_recon", "tiny"}
    assert set(info["models"]["inr_recon"]["config"]) == {"views", "accept", "seed"}
    assert info["models"]["tiny"]["config"]["volume"] == ["mean", "uncertainty"]
    assert info["datastore"]["total"] == 3


@pytest.mark.parametrize(
    ("image", "views"),
    [("frontal", ["lateral"]), ("frontal.dcm", "frontal.dcm, pair/lateral.dcm"), ("pair", [])],
)
def test_a_pair_gives_the_command_lines_volume(
    image: str, views: Any, server: LabelServer, place: Place, expected: dict[str, Any], tmp_path: Path
) -> None:
    answer = server.infer(image, views=views)
    logger.info("%s and %s: %.1f s", image, views, answer.seconds)
    volume = answer.volume(tmp_path)
    assert volume.shape == (128, 128, 128) and volume.get_data_dtype() == np.int16
    np.testing.assert_allclose(volume.affine, expected["volume"]["affine"], atol=1e-5)
    np.testing.assert_allclose(np.diag(volume.affine)[:3], 2.5)
    assert hu_sha256(values(volume)) == answer.record["hu_sha256"] == expected["volume"]["hu_sha256"]
    assert answer.content == place.ct("cli"), "not the same file as the command line's ct.nii.gz"
    assert values(volume).std() > 100
    for key in ("verdict", "checks", "warnings", "model", "detector_shape"):
        assert answer.record[key] == expected[key], key
    assert answer.record["checks"] and answer.record["returned"] == "mean"
    distance = answer.record["radiographs"][0]["metadata"]["source_to_detector_mm"]
    assert (distance["value"], distance["provenance"]) == (1500.0, "DICOM (0018,1110)")
    assert server.left_over() == []


@pytest.mark.skipif(not CORE_COMMAND.exists(), reason="there is no environment .venv: bash scripts/test.sh makes it")
def test_the_core_environment_gives_the_same_volume(place: Place, expected: dict[str, Any]) -> None:
    """As DICOM too, by thresholds without intervals: the maps of their limits need pydicom 3."""
    thresholds = json.loads((place.folder / "models/inr_recon/thresholds.json").read_text())
    assert thresholds["intervals"]
    (place.folder / "checks.json").write_text(json.dumps(thresholds | {"intervals": {}}))
    words = ["frontal.dcm", "lateral.dcm", "--thresholds", place.folder / "checks.json"]
    core = place.command_line("core", *words, command=CORE_COMMAND)
    here = place.command_line("here", *words)
    assert core["torch"] == here["torch"] and core["settings"] == here["settings"]
    assert core["volume"]["hu_sha256"] == here["volume"]["hu_sha256"] == expected["volume"]["hu_sha256"]
    assert place.ct("core") == place.ct("here") == place.ct("cli")
    slices = [sorted((place.folder / name / "ct").iterdir()) for name in ("core", "here")]
    assert len(slices[0]) == len(slices[1]) == 128
    for one, other in zip(*slices, strict=True):
        assert pydicom.dcmread(one).pixel_array.tobytes() == pydicom.dcmread(other).pixel_array.tobytes()


def test_a_stack_with_its_geometry(server: LabelServer, place: Place, tmp_path: Path) -> None:
    expected = place.command_line("stack", "stack.nii.gz", "--nodicom")
    truth = nib.load(sample_ct())
    for answer in (server.infer("stack"), server.infer("stack.nii.gz", geometry="stack.json")):
        assert answer.content == place.ct("stack")
        assert answer.record["hu_sha256"] == expected["volume"]["hu_sha256"]
        np.testing.assert_allclose(answer.volume(tmp_path).affine, truth.affine, atol=1e-3)
    one = server.infer("stack", angles_deg=[LATERAL_DEG])
    assert len(one.record["radiographs"]) == 1
    assert one.record["hu_sha256"] != expected["volume"]["hu_sha256"]


def test_uploads(server: LabelServer, place: Place, expected: dict[str, Any], tmp_path: Path) -> None:
    """Several files by a session, one file with the request itself."""
    files = [("files", (name, (place.studies / name).read_bytes())) for name in ("frontal.dcm", "lateral.dcm")]
    made = _put(server, files)
    assert server.infer("", session=made).record["hu_sha256"] == expected["volume"]["hu_sha256"]
    geometry = json.loads((place.studies / "stack.json").read_text())
    upload = {"file": ("mine.nii.gz", (place.studies / "stack.nii.gz").read_bytes())}
    query, params = {"output": "image"}, {"params": json.dumps({"geometry": geometry, "result_extension": ".nii"})}
    response = server.post("/infer/inr_recon", params=query, data=params, files=upload)
    assert response.status_code == 200, response.text
    (tmp_path / "ct.nii").write_bytes(response.content)
    sent, stored = nib.load(tmp_path / "ct.nii"), server.infer("stack")
    assert hu_sha256(values(sent)) == stored.record["hu_sha256"]
    np.testing.assert_allclose(sent.affine, stored.volume(tmp_path).affine)
    response = server.post("/infer/inr_recon", files=upload)
    assert response.status_code == 404 and "no geometry" in response.json()["detail"]
    assert server.left_over() == []


def _put(server: LabelServer, files: Any) -> str:
    import requests

    session = requests.Session()
    session.trust_env = False
    return session.put(f"{server.url}/session/", files=files, timeout=60).json()["session_id"]


def test_samples_mean_and_uncertainty(server: LabelServer, place: Place, tmp_path: Path) -> None:
    words = ["frontal.dcm", "lateral.dcm", "--model", place.folder / "ldm", "--samples", 3, "--seed", 5]
    for needing in (words, words[:2]):  # the spread of samples, and the limits of intervals
        with pytest.raises(AssertionError, match=r"--dicom: .*needs pydicom 3, and this environment has 2"):
            place.command_line("drawn", *needing, "--dicom")
    expected = place.command_line("drawn", *words, "--nodicom")
    asked = {"views": "lateral", "samples": "3", "seed": 5}
    mean = server.infer("frontal", "tiny", **asked)
    assert mean.record["hu_sha256"] == expected["volume"]["hu_sha256"] and mean.content == place.ct("drawn")
    spread = server.infer("frontal", "tiny", volume="uncertainty", **asked)
    assert spread.content == (place.folder / "drawn/uncertainty.nii.gz").read_bytes()
    assert spread.record["hu_sha256"] == mean.record["hu_sha256"] and spread.record["returned"] == "uncertainty"
    volume = spread.volume(tmp_path)
    assert volume.get_data_dtype() == np.float32 and values(volume).max() > 1
    other = server.infer("frontal", "tiny", views="lateral", samples=3, seed=6)
    assert other.record["hu_sha256"] != mean.record["hu_sha256"]


def test_what_is_not_known_is_named_and_can_be_said(server: LabelServer, place: Place) -> None:
    status, detail = server.refusal("degraded")
    assert status == 422
    for part in ("frontal.dcm", "lateral.dcm", "(0018,1110)", "FOR PRESENTATION", "scale of its logarithm", "--accept"):
        assert part in detail, part
    assert str(place.folder) not in detail
    names = ("frontal.dcm", "lateral.dcm")
    geometry = {"format": "fewview-ct radiographs 1", "views": [{"file": name, **FACTS} for name in names]}
    (place.folder / "said.json").write_text(json.dumps(geometry))
    expected = place.command_line("said", "degraded", "--geometry", place.folder / "said.json", "--nodicom")
    answer = server.infer("degraded", geometry=geometry)
    assert answer.record["hu_sha256"] == expected["volume"]["hu_sha256"]
    accepted = ["default-distances", "for-presentation", "log-range"]
    roughly = server.infer("degraded", accept=accepted)
    assert roughly.record["settings"]["accept"] == accepted
    assert roughly.record["hu_sha256"] != answer.record["hu_sha256"]


@pytest.mark.parametrize("name", ["../secret.dcm", "/etc/passwd", "{0}/secret.dcm", "pair/../../secret.dcm", "links",
                                  "links/secret.dcm", "/", "~/x.dcm/../../../secret.dcm"])  # fmt: skip
def test_only_the_datastore_is_read(name: str, server: LabelServer, place: Place) -> None:
    name = name.format(place.folder)
    requests: list[tuple[str, dict[str, Any]]] = [
        (name, {}), ("frontal", {"views": [name]}), ("frontal", {"image": name}), ("stack", {"geometry": name}),
    ]  # fmt: skip
    for image, params in requests:
        status, detail = server.refusal(image, **params)
        assert status == 403 and ("is not in the datastore" in detail or "leads out of the datastore" in detail)


@pytest.mark.parametrize(
    ("image", "params", "status", "message"),
    [
        ("nobody", {}, 404, "'nobody': no such id or path in the datastore"),
        ("frontal", {"views": ["nobody"]}, 404, "'nobody': no such id or path in the datastore"),
        ("frontal", {"model": "x"}, 404, "no model 'x' is served here; there are inr_recon, tiny"),
        ("frontal", {"sample": 4}, 400, "parameter 'sample' is not known"),
        ("frontal", {"views": "lateral", "samples": 4}, 400, "draws no samples"),
        ("frontal", {"samples": 1, "model": "tiny"}, 400, "samples must be 0 or at least 2"),
        ("frontal", {"volume": "uncertainty"}, 400, "ask for some"),
        ("frontal", {"accept": "everything"}, 400, "everything is not known"),
        ("frontal", {"views": ["pair"]}, 400, "are the same radiograph"),
        ("frontal", {"result_extension": ".nrrd"}, 400, "returned as .nii.gz or .nii"),
        ("frontal", {"result_dtype": "uint8"}, 400, "no label map"),
        ("frontal", {"save_label": True}, 400, "no label of a radiograph"),
        ("frontal", {"geometry": {"format": "mine"}}, 400, "'format' must be"),
        ("frontal", {"angles_deg": [45]}, 400, "no radiograph at 45 degrees"),
        ("labels", {}, 404, "no radiographs"),
    ],
)
def test_bad_requests(image: str, params: dict[str, Any], status: int, message: str, server: LabelServer) -> None:
    found, detail = server.refusal(image, **params)
    assert found == status and message in detail, detail
    assert "\n" not in detail and server.left_over() == []


@pytest.mark.skipif(os.environ.get("FEWVIEW_LABEL") != "namespace", reason="Orthanc or network namespaces are missing")
def test_series_in_a_pacs(place: Place, expected: dict[str, Any], tmp_path: Path) -> None:
    """By DICOMweb: one id per series; the original files, for in NIfTI there would be no distances."""
    from tests.integration.orthanc_server import PASSWORD, USER, running

    files = [pydicom.dcmread(place.studies / f"{name}.dcm") for name in ("frontal", "lateral")]
    frontal, lateral = (str(file.SeriesInstanceUID) for file in files)
    environment = place.environment | {
        "MONAI_LABEL_DICOMWEB_USERNAME": USER, "MONAI_LABEL_DICOMWEB_PASSWORD": PASSWORD,
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    for name in ("orthanc", "server"):
        (tmp_path / name).mkdir()
    with running(tmp_path / "orthanc") as pacs:
        pacs.client().store_instances(files)
        with serving(tmp_path / "server", pacs.web, "inr_recon", environment) as server:
            assert server.get("/info/").json()["datastore"]["total"] == 2
            for _ in range(2):  # fetched, then from the cache
                answer = server.infer(frontal, views=[lateral])
                assert answer.record["hu_sha256"] == expected["volume"]["hu_sha256"]
                assert answer.record["verdict"] == expected["verdict"]
            cached = {path.name for path in (tmp_path / "cache").rglob("*.dcm")}
            assert cached == {f"{file.SOPInstanceUID}.dcm" for file in files}
            for name, status, part in (
                ("1.2.3", 404, "no such series"),
                ("frontal", 404, "no Series Instance UID"),
                ("..", 404, "no Series Instance UID"),
                ("../../secret.dcm", 403, "not in the datastore"),
            ):
                found, detail = server.refusal(name)
                assert found == status and part in detail, detail
            # A view that comes later is not missed for the cache's sake.
            later = pydicom.dcmread(place.studies / "lateral.dcm")
            later.SeriesInstanceUID = frontal
            pacs.client().store_instances([later])
            assert len(server.infer(frontal).record["radiographs"]) == 2
