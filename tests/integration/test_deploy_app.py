"""The MONAI Deploy application: the command line's volume, whichever way it is started, and what it refuses.

Started by scripts/integration/deploy.sh in an environment that has the App SDK; the command line runs there too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from custom import __version__
from custom.core.checkpoints import save_checkpoint
from custom.data.sample import sample_ct
from custom.data.simulate import Acquisition, simulate_case
from custom.dicom.write_dx import write_dx
from custom.evaluation.evaluate import load_hu
from custom.models.model_folder import export
from custom.reconstruct import hu_sha256, reconstruct
from tests.custom.benchmark.tiny_benchmark import tiny_network
from tests.custom.dicom.stored_volumes import read_ct_series, read_uncertainty_map

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "scripts" / "deploy_app"
DISTANCES = ("DistanceSourceToDetector", "DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor")
SECONDARY_CAPTURE, CT = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.2"
NAME = "Иванов^Иван"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif("FEWVIEW_DEPLOY" not in os.environ, reason="started by scripts/integration/deploy.sh"),
]

Write = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def write_pair() -> Write:
    """Writes a frontal (PA) and a lateral radiograph of the sample patient as DX files with full tags and noise."""
    hu, affine = load_hu(sample_ct())
    image, geometry = simulate_case(hu, affine, Acquisition("paper", (270.0, 0.0), "cone", 1650.0, 1800.0))

    def write(folder: Path, **options: Any) -> list[Path]:
        views = zip(("frontal", "lateral"), image.numpy(), geometry.tensor().numpy(), strict=True)
        return [
            write_dx(folder / f"{name}.dcm", one, view, **{"patient_name": NAME, **options})
            for name, one, view in views
        ]

    return write


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported: the published models, and alone in a folder one that has learnt nothing and takes no time."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("inr_recon", "ldm_recon"):
        export(str(ROOT / "bundles" / name), str(folder / "published" / name))
    export(str(save_checkpoint(folder / "tiny.pt", tiny_network())), str(folder / "alone" / "tiny"))
    return folder


def run(
    *words: str | Path, app: Path = APP, cwd: Path | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """The application in a process of its own; settings in capitals are ours unless they are Holoscan's."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH",)}
    for key, value in settings.items():
        environment[key if key.startswith("HOLOSCAN_") else f"FEWVIEW_RECONSTRUCT_{key}"] = value
    return subprocess.run(
        [sys.executable, str(app), *map(str, words)],
        capture_output=True, text=True, check=False, timeout=900, env=environment, cwd=cwd,
    )  # fmt: skip


def result(output: Path) -> tuple[Path, dict[str, Any]]:
    """The one result of an output folder, and nothing beside it."""
    (folder,) = output.iterdir()
    return folder, json.loads((folder / "result.json").read_text(encoding="utf-8"))


def last_line(process: subprocess.CompletedProcess[str]) -> str:
    return process.stderr.strip().splitlines()[-1]


def assert_no_dicom_errors(*paths: Path) -> None:
    if shutil.which("dciodvfy") is None:
        return
    for path in paths:
        found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False, timeout=60)
        said = found.stdout + found.stderr
        assert found.returncode == 0 and "Error" not in said, said


# --- the same volume ---


@pytest.mark.parametrize(
    ("model", "samples", "volumes"),
    [
        ("inr_recon", 0, {"ct", "interval_lower", "interval_upper"}),
        ("ldm_recon", 2, {"ct", "uncertainty", "samples/sample_000", "samples/sample_001"}),
    ],
)
def test_published_model_gives_the_volume_of_the_command_line(
    model: str, samples: int, volumes: set[str], write_pair: Write, models: Path, tmp_path: Path
) -> None:
    sources = [pydicom.dcmread(path) for path in write_pair(tmp_path / "in")]
    exported = models / "published" / model
    console = Path(sys.executable).with_name("fewview-ct")
    words = ["--samples", str(samples), "--seed", "7", "--model", str(exported), "--output", str(tmp_path / "console")]
    subprocess.run([str(console), "reconstruct", str(tmp_path / "in"), *words], check=True, timeout=900)
    options = ["-i", tmp_path / "in", "-o", tmp_path / "out", "-m", exported]
    process = run(*options, SAMPLES=str(samples), SEED="7")
    assert process.returncode == 0, process.stderr[-3000:]

    folder, record = result(tmp_path / "out")
    expected = json.loads((tmp_path / "console" / "result.json").read_text(encoding="utf-8"))
    assert folder.name == sources[0].StudyInstanceUID
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "console").iterdir()}
    for key in ("volume", "model", "settings", "radiographs", "checks", "verdict", "warnings", "detector_shape"):
        assert record[key] == expected[key], key
    same = {name for name in expected["files"] if name.endswith(".nii.gz")}
    assert same == {f"{name}.nii.gz" for name in volumes}
    assert {name: record["files"][name] for name in same} == {name: expected["files"][name] for name in same}

    volume, _ = read_ct_series(folder / "ct")
    assert hu_sha256(volume) == record["volume"]["hu_sha256"] and volume.std() > 100
    slices = sorted((folder / "ct").iterdir())
    header = pydicom.dcmread(slices[0])
    assert str(header.PatientName) == NAME and header.StudyInstanceUID == sources[0].StudyInstanceUID
    assert len(header.SourceImageSequence) == 2
    assert_no_dicom_errors(slices[0], slices[-1])
    if samples:
        assert_no_dicom_errors(folder / "uncertainty.dcm")
        std, _ = read_uncertainty_map(folder / "uncertainty.dcm")
        assert std.shape == volume.shape and std.max() > 10
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")

    again = run(*options, SAMPLES=str(samples))
    assert again.returncode == 2 and f"{folder}: exists: choose another output" in last_line(again)
    assert "from 2 radiographs" in process.stderr and "from 2 radiographs" not in again.stderr  # said before long work
    assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == record


def test_a_package_starts_by_its_environment_alone(write_pair: Write, models: Path, tmp_path: Path) -> None:
    files = write_pair(tmp_path / "in" / "deep")
    for path in files:  # one series holds both views
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = "1.2.3.4"
        dataset.save_as(path)
    expected = reconstruct([tmp_path / "in"], model=models / "alone" / "tiny")
    # As the documentation has a package made: the package `custom` beside app.py. Its version tells it from the other.
    package = tmp_path / "package"
    shutil.copytree(APP, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "custom", package / "custom", ignore=shutil.ignore_patterns("__pycache__"))
    code = package / "custom" / "__init__.py"
    code.write_text(code.read_text(encoding="utf-8").replace(f'"{__version__}"', '"0.0.7"'), encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    process = run(
        app=package, cwd=tmp_path / "elsewhere", HOLOSCAN_INPUT_PATH="../in", HOLOSCAN_OUTPUT_PATH="../out",
        HOLOSCAN_MODEL_PATH=str(models / "alone"),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    _, record = result(tmp_path / "out")
    assert record["software"] == "fewview-ct 0.0.7"
    assert record["volume"]["hu_sha256"] == expected.hu_sha256 and len(record["radiographs"]) == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_every_study_becomes_a_result_and_other_objects_are_left_out(
    write_pair: Write, models: Path, tmp_path: Path
) -> None:
    first = write_pair(tmp_path / "in" / "a", study="one", patient_id="1")
    second = write_pair(tmp_path / "in" / "b", study="two", patient_id="2", photons=500.0)
    for name, modality, sop_class in (("dose", "DX", SECONDARY_CAPTURE), ("slice", "CT", CT)):
        other = pydicom.dcmread(first[0])
        other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = sop_class
        other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        other.Modality = modality
        other.SeriesInstanceUID = generate_uid() if modality == "CT" else other.SeriesInstanceUID
        other.save_as(tmp_path / "in" / "a" / f"{name}.dcm")
    (tmp_path / "in" / "readme.txt").write_text("not DICOM")
    model = models / "alone" / "tiny"
    process = run("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, REPORT="0", STRICT="1")
    assert process.returncode == 4, process.stderr[-3000:]  # without thresholds the verdict is REVIEW
    assert len(list((tmp_path / "out").iterdir())) == 2
    for files in (first, second):
        folder = tmp_path / "out" / pydicom.dcmread(files[0]).StudyInstanceUID
        record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert record["volume"]["hu_sha256"] == reconstruct(files, model=model).hu_sha256
        assert [one["file"] for one in record["radiographs"]] == ["frontal.dcm", "lateral.dcm"]
        assert not (folder / "report.html").exists()
        said = [warning for warning in record["warnings"] if "left out" in warning]
        assert said == (["dose.dcm in the study was left out: no radiograph"] if files is first else [])


def test_what_files_do_not_say_is_asked_for_and_taken(write_pair: Write, models: Path, tmp_path: Path) -> None:
    write_pair(tmp_path / "in", presentation=True, monochrome1=True, drop=DISTANCES)
    options = ["-i", tmp_path / "in", "-o", tmp_path / "out", "-m", models / "published" / "inr_recon"]
    refused = run(*options)
    assert refused.returncode == 2 and list((tmp_path / "out").iterdir()) == []
    message = last_line(refused)
    assert message.startswith("error: ")
    for part in ("frontal.dcm", "lateral.dcm", "(0018,1110)", "default-distances", "for-presentation"):
        assert part in message
    for name in ("frontal", "lateral"):
        said = {"source_to_detector_mm": 1800, "source_to_isocenter_mm": 1650, "log_scale": 2047.875, "unattenuated": 0}
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(said))
    options[-1] = models / "alone"
    process = run(*options, ACCEPT="for-presentation", REPORT="0")
    assert process.returncode == 0, process.stderr[-3000:]
    _, record = result(tmp_path / "out")
    assert record["settings"]["accept"] == ["for-presentation"]
    fact = record["radiographs"][0]["metadata"]["source_to_detector_mm"]
    assert (fact["value"], fact["unit"], fact["provenance"]) == (1800.0, "mm", "sidecar frontal.json")


# --- what is refused ---


def truncate(folder: Path) -> None:
    path = folder / "lateral.dcm"
    path.write_bytes(path.read_bytes()[:700])


def take_uid(folder: Path) -> None:
    dataset = pydicom.dcmread(folder / "lateral.dcm")
    del dataset.StudyInstanceUID
    dataset.save_as(folder / "lateral.dcm")


def climb(folder: Path) -> None:
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        with pydicom.config.disable_value_validation():
            dataset.StudyInstanceUID = "../up"
        dataset.save_as(path)


def only_ct(folder: Path) -> None:
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.Modality, dataset.SOPClassUID = "CT", CT
        dataset.save_as(path)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "settings", "model", "message"),
    [
        (empty, {}, "alone", "in: holds no DICOM files"),
        (only_ct, {}, "alone", "no series of the modalities CR, DX, XA, RF or RTIMAGE"),
        (truncate, {}, "alone", "lateral.dcm: "),
        (take_uid, {}, "alone", "lateral.dcm: MONAI Deploy does not load it"),
        (climb, {}, "alone", "the Study Instance UID (0020,000D) '../up' is none"),
        (None, {}, "none", "argument --model/-m: No such file/folder"),
        (None, {}, "published", "holds the models inr_recon, ldm_recon; choose one by FEWVIEW_RECONSTRUCT_MODEL"),
        (None, {"SAMPLES": "2"}, "alone", "the model tiny gives one volume and draws no samples"),
        (None, {"SAMPLE": "2"}, "alone", "FEWVIEW_RECONSTRUCT_SAMPLE is no setting"),
        (None, {"ACCEPT": "everything"}, "alone", "everything is not known"),
        (None, {"THRESHOLDS": "none.json"}, "alone", "none.json"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    change: Callable[[Path], None] | None,
    settings: dict[str, str],
    model: str,
    message: str,
    write_pair: Write,
    models: Path,
    tmp_path: Path,
) -> None:
    write_pair(tmp_path / "in")
    if change is not None:
        change(tmp_path / "in")
    process = run("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", models / model, **settings)
    assert process.returncode == 2, process.stderr[-3000:]
    assert message in last_line(process) and "error: " in last_line(process)
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("in", "out")) == []


# --- packaging ---


def test_the_packager_understands_our_files(models: Path) -> None:
    from holoscan_cli.packager.config_reader import ApplicationConfiguration
    from holoscan_cli.packager.models import Models
    from holoscan_cli.packager.parameters import PackageBuildParameters

    parameters = PackageBuildParameters()
    parameters.application = APP
    assert parameters.application_type.name == "PythonModule"
    assert parameters.requirements_file_path == APP / "requirements.txt"
    parameters.models = Models().build(models / "published")
    assert set(parameters.models) == {"inr_recon", "ldm_recon"}
    configuration = ApplicationConfiguration()
    configuration.read(APP / "app.yaml")
    manifest = configuration.populate_app_manifest(parameters)
    assert manifest.version == __version__
    assert manifest.input["formats"] == manifest.output["formats"] == ["file"]
    assert configuration.populate_package_manifest(parameters).resources["gpu"] == 0


def test_installed_versions_are_those_that_are_packaged() -> None:
    import importlib.metadata

    lines: Sequence[str] = (APP / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = dict(line.split("==") for line in lines if "==" in line)
    found = {name: importlib.metadata.version(name).split("+")[0] for name in wanted}
    assert found == wanted
    assert np.lib.NumpyVersion(importlib.metadata.version("holoscan-cli")) < "4.3.0"
