"""The uncertainty map lies on the CT's grid, in its frame of reference, and belongs to its patient."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch

from custom.dicom import write_map
from custom.dicom.write_ct import SyntheticCT, write_ct_series
from tests.custom.dicom.stored_radiographs import MODEL, dx, header, save
from tests.custom.dicom.stored_volumes import read_uncertainty_map

SHAPE = (12, 10, 6)
AFFINE = np.array([[2.0, 0, 0, -11.0], [0, 3.0, 0, -14.5], [0, 0, 4.0, -10.0], [0, 0, 0, 1]])
STD = np.random.default_rng(1).uniform(0, 300, SHAPE).astype(np.float32)


def series(folder: Path, affine: np.ndarray = AFFINE, **tags: Any) -> Path:
    source = header(save(dx(1, **tags), folder.parent / "dx.dcm"))
    write_ct_series(SyntheticCT(np.zeros(SHAPE, np.int16), affine, [source], MODEL, "Test."), folder)
    return folder


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("degrees", [0.0, 10.0])
def test_map_comes_back_on_the_grid_of_the_ct(degrees: float, convert: Any, tmp_path: Path) -> None:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE
    folder = series(tmp_path / "ct", affine)
    path = write_map.write_uncertainty_map(convert(STD), folder, tmp_path / "map.dcm", MODEL)
    values, found = read_uncertainty_map(path)
    np.testing.assert_array_equal(values, STD)
    np.testing.assert_allclose(found, affine, atol=1e-6)


def test_each_frame_lies_on_its_slice(tmp_path: Path) -> None:
    """By the standard's attributes, not by a reader: position and content of every frame against its CT slice."""
    folder = series(tmp_path / "ct")
    result = pydicom.dcmread(write_map.write_uncertainty_map(STD, folder, tmp_path / "map.dcm", MODEL))
    slices = {s.SOPInstanceUID: s for s in map(pydicom.dcmread, folder.iterdir())}
    assert result.FrameOfReferenceUID == next(iter(slices.values())).FrameOfReferenceUID
    pixels = np.frombuffer(result.FloatPixelData, "<f4").reshape(SHAPE[2], SHAPE[1], SHAPE[0])
    for frame, group in zip(pixels, result.PerFrameFunctionalGroupsSequence, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        np.testing.assert_allclose(position, np.array(slices[source].ImagePositionPatient, dtype=float), atol=1e-6)
        index = round((position[2] - AFFINE[2, 3]) / AFFINE[2, 2])
        np.testing.assert_array_equal(frame, STD[::-1, ::-1, index].T)


def test_map_says_what_it_is(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    path = write_map.write_uncertainty_map(STD, folder, tmp_path / "map.dcm", MODEL)
    result, ct = pydicom.dcmread(path), pydicom.dcmread(next(folder.iterdir()))
    assert "NOT FOR DIAGNOSTIC USE" in result.SeriesDescription and "UNCERTAINTY" in result.SeriesDescription
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate"):
        assert result.get(keyword) == ct.get(keyword), keyword
    assert result.SeriesInstanceUID != ct.SeriesInstanceUID
    shared = result.SharedFunctionalGroupsSequence[0]
    mapping = shared.RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "[hnsf'U]"
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeMeaning == "Standard Deviation"
    purposes = [e.PurposeOfReferenceCodeSequence[0].CodeValue for e in result.ContributingEquipmentSequence]
    assert "109101" not in purposes
    assert MODEL["sha256"] in [e.get("DeviceSerialNumber") for e in result.ContributingEquipmentSequence]


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 144", "Достоевский^Фёдор"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (None, "Doe^Jane"),
    ],
)
def test_names_survive(charset: Any, name: str, tmp_path: Path) -> None:
    folder = series(tmp_path / "ct", SpecificCharacterSet=charset, PatientName=name)
    path = write_map.write_uncertainty_map(STD, folder, tmp_path / "map.dcm", MODEL)
    result, source = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "dx.dcm")
    assert result.get("SpecificCharacterSet") == source.get("SpecificCharacterSet")
    assert str(result.PatientName) == str(source.PatientName) == name


def test_deidentification_and_lossy_compression_are_passed_on(tmp_path: Path) -> None:
    tags = {
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "Basic profile",
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": 12.5,
        "LossyImageCompressionMethod": "ISO_10918_1",
    }
    for name, extra in (("with", tags), ("without", {})):
        (tmp_path / name).mkdir()
        folder = series(tmp_path / name / "ct", **extra)
        path = write_map.write_uncertainty_map(STD, folder, tmp_path / name / "map.dcm", MODEL)
        result = pydicom.dcmread(path)
        assert result.get("PatientIdentityRemoved") == extra.get("PatientIdentityRemoved")
        assert result.LossyImageCompression == extra.get("LossyImageCompression", "00")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (STD[:-1], r"the map has the shape \(11, 10, 6\), the CT series in .* \(12, 10, 6\)"),
        (STD - 1000, "not negative"),
        (STD * np.nan, "must be finite"),
    ],
)
def test_values_that_are_no_standard_deviation(values: np.ndarray, message: str, tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    with pytest.raises(ValueError, match=message):
        write_map.write_uncertainty_map(values, folder, tmp_path / "map.dcm", MODEL)
    assert not (tmp_path / "map.dcm").exists()


@pytest.mark.parametrize("kind", [write_map.LOWER, write_map.UPPER])
def test_limits_of_an_interval_are_maps_of_their_own(kind: write_map.MapKind, tmp_path: Path) -> None:
    folder, values = series(tmp_path / "ct"), np.linspace(-1000, 1000, int(np.prod(SHAPE))).reshape(SHAPE)
    path = write_map.write_uncertainty_map(values, folder, tmp_path / "map.dcm", MODEL, kind=kind, uid_seed="x")
    read, _ = read_uncertainty_map(path)
    np.testing.assert_allclose(np.sort(read.ravel()), np.sort(values.ravel()), atol=1e-3)
    header = pydicom.dcmread(path)
    assert kind.label in header.SeriesDescription and header.ContentLabel == kind.label
    spread = pydicom.dcmread(write_map.write_uncertainty_map(abs(values), folder, tmp_path / "sd.dcm", MODEL))
    assert header.SeriesInstanceUID != spread.SeriesInstanceUID and header.SeriesNumber != spread.SeriesNumber


def test_map_needs_its_ct(tmp_path: Path) -> None:
    save(dx(1), tmp_path / "only" / "dx.dcm")
    with pytest.raises(ValueError, match="no CT series"):
        write_map.write_uncertainty_map(STD, tmp_path / "only", tmp_path / "map.dcm", MODEL)


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = series(tmp_path / "ct")
    before = set(tmp_path.iterdir())

    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("custom.core.files.os.replace", full)
    with pytest.raises(OSError, match="no space left to write"):
        write_map.write_uncertainty_map(STD, folder, tmp_path / "map.dcm", MODEL)
    assert set(tmp_path.iterdir()) == before


def test_seed_fixes_the_uids(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    uids = [
        pydicom.dcmread(write_map.write_uncertainty_map(STD, folder, tmp_path / f"{k}.dcm", MODEL, uid_seed=seed))
        for k, seed in enumerate(("one", "one", None, None))
    ]
    assert uids[0].SOPInstanceUID == uids[1].SOPInstanceUID
    assert len({u.SOPInstanceUID for u in uids}) == 3 == len({u.SeriesInstanceUID for u in uids})


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)")
def test_no_errors_by_dciodvfy(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    path = write_map.write_uncertainty_map(STD, folder, tmp_path / "map.dcm", MODEL)
    result = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False, timeout=60)
    report = result.stdout + result.stderr
    assert "ParametricMap" in report
    assert result.returncode == 0 and "Error" not in report, report


@pytest.mark.parametrize(
    ("pydicom_version", "remedy"),
    [("3.0.2", "is not installed: pip install 'fewview-ct[dicom]'"), ("2.4.5", "this environment has 2.4.5")],
)
def test_the_remedy_for_a_missing_highdicom_fits_the_environment(
    pydicom_version: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write_map.why_no_map() is None
    monkeypatch.setitem(sys.modules, "highdicom", None)
    monkeypatch.setattr(write_map.pydicom, "__version__", pydicom_version)
    assert remedy in str(write_map.why_no_map())
