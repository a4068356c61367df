"""Simulated DX files: the standard's own checker finds no error, and the reader gives back what went in."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hand_written_dicom import integrals

from custom.dicom.write_dx import LOG_SCALE, write_dx
from custom.geometry import rays, views_from_angles
from custom.radiographs import MissingMetadata, read_radiographs

SHAPE = (96, 140)


def view_of(angle: float, offset: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    return views_from_angles([angle], "cone", 1000.0, 1500.0, (4.5, 3.5), offset)[0]


def truth_of(view: torch.Tensor) -> np.ndarray:
    origin, direction = rays(view[None], SHAPE)
    return integrals(view[:3].numpy(), (origin + direction * 100)[0].numpy())


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 180.0, 270.0])
@pytest.mark.parametrize("offset", [(0.0, 0.0), (25.0, -12.0)])
def test_round_trip(tmp_path: Path, angle: float, offset: tuple[float, float]) -> None:
    view = view_of(angle, offset)
    truth = truth_of(view)
    path = write_dx(tmp_path / "a.dcm", truth, view, photons=None)
    (radiograph,) = read_radiographs([path])
    assert torch.allclose(radiograph.view, view, atol=1e-4)
    assert float(np.abs(radiograph.line_integrals.numpy() - truth).max()) < 0.02
    assert radiograph.warnings == ()


def test_degraded_pair_is_refused_then_explained(tmp_path: Path) -> None:
    view = view_of(90.0)
    truth = truth_of(view)
    path = write_dx(
        tmp_path / "frontal.dcm", truth, view, presentation=True, monochrome1=True, photons=None,
        drop=["DistanceSourceToDetector", "EstimatedRadiographicMagnificationFactor"],
        empty=["DistanceSourceToPatient"],
    )  # fmt: skip
    with pytest.raises(MissingMetadata) as caught:
        read_radiographs([path])
    problems = " ".join(gap.problem for gap in caught.value.questions)
    for thing in ("source to detector", "middle of the patient", "FOR PRESENTATION", "scale of its logarithm"):
        assert thing in problems
    (tmp_path / "frontal.json").write_text(
        f'{{"source_to_detector_mm": 1500, "source_to_isocenter_mm": 1000, "intent": "processing", '
        f'"log_scale": {LOG_SCALE}}}'
    )
    (radiograph,) = read_radiographs([path])
    assert float(np.abs(radiograph.line_integrals.numpy() - truth).max()) < 0.02


def test_attributes(tmp_path: Path) -> None:
    view = view_of(270.0)
    path = write_dx(tmp_path / "a.dcm", truth_of(view), view, patient_name="Иванов^Иван=山田^太郎", drop=["KVP"])
    again = write_dx(tmp_path / "b.dcm", truth_of(view), view, patient_name="Иванов^Иван=山田^太郎", drop=["KVP"])
    dataset = pydicom.dcmread(path)
    assert path.read_bytes() == again.read_bytes()
    assert str(dataset.PatientName) == "Иванов^Иван=山田^太郎"
    assert (dataset.BitsStored, dataset.PresentationIntentType) == (14, "FOR PROCESSING")
    assert (dataset.ViewPosition, list(dataset.PatientOrientation)) == ("PA", ["L", "F"])
    assert "KVP" not in dataset
    assert dataset.pixel_array.max() <= 16383
    noisy = write_dx(tmp_path / "c.dcm", truth_of(view), view, seed=1)
    assert pydicom.dcmread(noisy).SOPInstanceUID != dataset.SOPInstanceUID
    assert pydicom.dcmread(noisy).StudyInstanceUID == dataset.StudyInstanceUID


def test_refused(tmp_path: Path) -> None:
    parallel = views_from_angles([0.0], "parallel")[0]
    with pytest.raises(ValueError, match="upright cone-beam view"):
        write_dx(tmp_path / "a.dcm", np.zeros(SHAPE), parallel)
    with pytest.raises(ValueError, match=r"must be \(V, U\)"):
        write_dx(tmp_path / "a.dcm", np.zeros((2, *SHAPE)), view_of(0.0))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("keywords", [{}, {"presentation": True}, {"presentation": True, "monochrome1": True}])
def test_dciodvfy(tmp_path: Path, keywords: dict[str, bool]) -> None:
    for angle in (0.0, 30.0, 90.0):
        path = write_dx(tmp_path / f"{angle}.dcm", truth_of(view_of(angle)), view_of(angle), **keywords)  # type: ignore[arg-type]
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in done.stderr, done.stderr
