"""A CT series that says what it is, lies where the volume lay, and belongs to the patient of its radiographs."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from custom import __version__
from custom.dicom import write_ct
from custom.dicom.strict import encode, new_uid, strict_validation
from custom.dicom.write_ct import SyntheticCT, write_ct_series
from tests.custom.dicom.stored_radiographs import DX_PROCESSING, MODEL, ROOT, dx, header, save
from tests.custom.dicom.stored_volumes import read_ct_series
from tests.custom.dicom.synthetic_ct import AFFINE, DERIVATION, SHAPE, first_slice, synthetic, volume


def test_volume_comes_back_on_its_grid(dx_headers: list[Dataset], tmp_path: Path) -> None:
    files = write_ct_series(synthetic(dx_headers), tmp_path / "ct")
    assert [f.name for f in files] == [f"CT_{k:04d}.dcm" for k in range(1, 7)] and all(f.is_file() for f in files)
    hu, affine = read_ct_series(tmp_path / "ct")
    np.testing.assert_array_equal(hu, volume())
    np.testing.assert_allclose(affine, AFFINE, atol=1e-9)


def test_bright_voxel_stands_where_the_headers_put_it(tmp_path: Path) -> None:
    """Read by the standard's formula (PS3.3 C.7.6.2.1.1), not by our reader: patient's left, front, above."""
    hu = np.full(SHAPE, -1000, dtype=np.int16)
    hu[2, 7, 4] = 1000
    files = write_ct_series(synthetic([], hu), tmp_path / "ct")
    found = []
    for path in files:
        image = pydicom.dcmread(path)
        values = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
        for row, column in np.argwhere(values == 1000):
            along_row, along_column = np.array(image.ImageOrientationPatient, dtype=float).reshape(2, 3)
            rows_mm, columns_mm = (float(v) for v in image.PixelSpacing)
            found.append(
                np.array(image.ImagePositionPatient, dtype=float)
                + along_row * columns_mm * column
                + along_column * rows_mm * row
            )
    assert len(found) == 1
    ras = AFFINE[:3] @ (2, 7, 4, 1)
    np.testing.assert_allclose(found[0], ras * (-1, -1, 1), atol=1e-6)
    assert found[0][0] > 0  # LPS x grows to the left, where RAS x is negative


@pytest.mark.parametrize("degrees", [0.0, 12.0, -25.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_oblique_grid(degrees: float, axis: int, tmp_path: Path) -> None:
    a, b = [k for k in range(3) if k != axis]
    turn = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
    affine = turn @ AFFINE
    files = write_ct_series(synthetic([], affine=affine), tmp_path / "ct")
    hu, found = read_ct_series(tmp_path / "ct")
    np.testing.assert_array_equal(hu, volume())
    np.testing.assert_allclose(found, affine, atol=1e-6)
    directions = np.array(pydicom.dcmread(files[0]).ImageOrientationPatient, dtype=float).reshape(2, 3)
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-9)


@pytest.mark.parametrize("convert", [lambda v: torch.from_numpy(v.astype(np.float32)) + 0.3, torch.from_numpy])
def test_tensors_are_rounded_to_whole_hu(convert: Any, tmp_path: Path) -> None:
    write_ct_series(synthetic([], convert(volume())), tmp_path / "ct")
    np.testing.assert_array_equal(read_ct_series(tmp_path / "ct")[0], volume())


def test_series_says_what_it_is(dx_headers: list[Dataset], tmp_path: Path) -> None:
    image = first_slice(dx_headers, tmp_path / "ct")
    assert image.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2" and image.Modality == "CT"
    assert list(image.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert image.SeriesDescription == "SYNTHETIC CT, NOT FOR DIAGNOSTIC USE"
    assert image.DerivationDescription == DERIVATION and len(image.DerivationCodeSequence) == 1
    assert image.RescaleType == "HU" and image.PatientPosition == "HFS" and image.BodyPartExamined == "CHEST"
    equipment = image.ContributingEquipmentSequence[0]
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert equipment.DeviceSerialNumber == MODEL["sha256"] and equipment.ManufacturerModelName == "inr_recon"
    assert f"fewview-ct {__version__}" in list(equipment.SoftwareVersions)
    assert [i.ReferencedSOPInstanceUID for i in image.SourceImageSequence] == [f"{ROOT}.1.1", f"{ROOT}.1.2"]
    assert {i.ReferencedSOPClassUID for i in image.SourceImageSequence} == {DX_PROCESSING}
    assert {i.SpatialLocationsPreserved for i in image.SourceImageSequence} == {"NO"}
    assert [i.SeriesInstanceUID for i in image.ReferencedSeriesSequence] == [f"{ROOT}.1.0.1", f"{ROOT}.1.0.2"]


def test_uids_are_a_function_of_the_seed(dx_headers: list[Dataset], tmp_path: Path) -> None:
    def uids(folder: str, seed: str) -> list[str]:
        files = write_ct_series(synthetic(dx_headers), tmp_path / folder, uid_seed=seed)
        images = [pydicom.dcmread(f) for f in files]
        return [*(i.SOPInstanceUID for i in images), images[0].SeriesInstanceUID, images[0].FrameOfReferenceUID]

    assert uids("a", "one") == uids("b", "one")
    assert not set(uids("c", "one")) & set(uids("d", "two"))
    assert new_uid("x", "s").is_valid and len(new_uid("x", "s")) <= 64 and new_uid("x", "s") != new_uid("y", "s")


def test_lossy_compression_is_not_taken_back(tmp_path: Path) -> None:
    lossy = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": 12.5,
        "LossyImageCompressionMethod": "ISO_10918_1",
    }
    headers = [header(save(dx(k, **(lossy if k == 2 else {})), tmp_path / f"{k}.dcm")) for k in (1, 2)]
    image = first_slice(headers, tmp_path / "ct")
    assert (image.LossyImageCompression, float(image.LossyImageCompressionRatio)) == ("01", 12.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hu": np.full(SHAPE, -2000)}, "HU run from -2000"),
        ({"hu": np.full(SHAPE, np.nan)}, "720 voxels of the CT are NaN"),
        ({"hu": np.zeros(SHAPE[:2])}, "needs a volume"),
        ({"affine": np.diag([-1.0, 1, 1, 1])}, "axes run to LAS"),
        ({"affine": np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])}, "right angles"),
        ({"affine": np.diag([0.0, 1, 1, 1])}, "invertible"),
    ],
)
def test_volumes_that_no_series_holds(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_ct_series(synthetic([], **change), tmp_path / "ct")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "written"),
    [("CHEST", "CHEST"), ("HEART", "HEART"), ("THORAX", "ABDOMEN"), ("LUNG", "ABDOMEN"), (None, "ABDOMEN")],
)
def test_body_part_is_never_a_pair(said: str | None, written: str, tmp_path: Path) -> None:
    source = header(save(dx(1, BodyPartExamined=said), tmp_path / "dx.dcm"))
    assert first_slice([source], tmp_path / "ct", body_part="ABDOMEN").BodyPartExamined == written
    with pytest.raises(ValueError, match="body_part is 'HAND'"):
        write_ct_series(synthetic([source], body_part="HAND"), tmp_path / "hand")


@pytest.mark.parametrize(("said", "written"), [("HFP", "HFP"), ("SITTING", "HFS"), (None, "HFS")])
def test_patient_position(said: str | None, written: str, tmp_path: Path) -> None:
    image = first_slice([header(save(dx(1, PatientPosition=said), tmp_path / "dx.dcm"))], tmp_path / "ct")
    assert image.PatientPosition == written
    assert ("as in the radiographs" in image.ImageComments) == (said == "HFP")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_give_a_series_or_one_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(save(dx(1, SpecificCharacterSet="ISO_IR 192"), folder / "dx.dcm").read_bytes())
    end = content.index(b"\xe0\x7f\x10\x00")
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(132, end - 1))] = data.draw(st.integers(0, 255))
    (folder / "dx.dcm").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            source = header(folder / "dx.dcm")
        except Exception:
            return  # the reader's matter
        try:
            write_ct_series(SyntheticCT(np.zeros((2, 2, 2)), np.eye(4), [source], MODEL, DERIVATION), folder / "ct")
        except ValueError as error:
            assert "\n" not in str(error)
            assert not (folder / "ct").exists()
        else:
            read_ct_series(folder / "ct")


@pytest.mark.parametrize("key", ["name", "sha256", "version"])
def test_model_must_be_named(key: str, tmp_path: Path) -> None:
    model = {k: v for k, v in MODEL.items() if k != key}
    with pytest.raises(ValueError, match=f"the model lacks {key}"):
        write_ct_series(SyntheticCT(volume(), AFFINE, [], model, DERIVATION), tmp_path / "ct")


def test_validation_is_strict_only_while_writing(dx_headers: list[Dataset], tmp_path: Path) -> None:
    before = (pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode)
    with pytest.raises(RuntimeError), strict_validation():
        assert pydicom.config.settings.reading_validation_mode == pydicom.config.RAISE
        assert pydicom.config.settings.writing_validation_mode == pydicom.config.RAISE
        raise RuntimeError
    write_ct_series(synthetic(dx_headers), tmp_path / "ct")
    assert before == (pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode)
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = DX_PROCESSING, "2.25.1"
    with pytest.warns(UserWarning, match="."):
        dataset.PatientID = "9" * 80
    with pytest.raises(ValueError, match="PatientID"):
        encode(dataset)


def test_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.replace, []

    def fails_at_the_fourth(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("custom.core.files.os.replace", fails_at_the_fourth)
    with pytest.raises(OSError, match=r"no space left to write .*CT_0004.dcm"):
        write_ct_series(synthetic([]), tmp_path / "ct")
    assert len(calls) == 4 and not list(tmp_path.iterdir())


def write_slowly(folder: Path, started: Any) -> None:
    """Write a series and stop for a long time after three slices, telling so."""
    real, calls = write_ct.encode, []

    def encode_three(dataset: Dataset) -> bytes:
        calls.append(dataset)
        if len(calls) == 4:
            started.set()
            time.sleep(60)
        return real(dataset)

    write_ct.encode = encode_three
    write_ct_series(synthetic([]), folder)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_killed_run_leaves_no_half_series(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=write_slowly, args=(tmp_path / "ct", started))
    process.start()
    assert started.wait(30)
    process.kill()
    process.join(10)
    assert process.exitcode == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and left[0].name.startswith(".ct.") and len(list(left[0].iterdir())) == 3
    assert not list(tmp_path.glob("ct/*"))
    write_ct_series(synthetic([]), tmp_path / "ct")
    assert [p.name for p in tmp_path.iterdir()] == ["ct"]  # the next run cleans up
    np.testing.assert_array_equal(read_ct_series(tmp_path)[0], volume())


def test_existing_series_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "ct").mkdir()
    write_ct_series(synthetic([]), tmp_path / "ct")
    before = {p: p.read_bytes() for p in (tmp_path / "ct").iterdir()}
    with pytest.raises(FileExistsError, match="choose another output"):
        write_ct_series(synthetic([]), tmp_path / "ct")
    assert before == {p: p.read_bytes() for p in (tmp_path / "ct").iterdir()}
    assert (tmp_path / "ct").stat().st_mode & 0o777 == 0o700


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    origin=st.tuples(*[st.floats(-1e4, 1e4)] * 3),
    spacing=st.tuples(*[st.floats(0.05, 20)] * 3),
    low=st.integers(-1024, 32000),
)
def test_any_position_and_spacing_fits_decimal_strings(
    origin: tuple[float, ...], spacing: tuple[float, ...], low: int, tmp_path: Path
) -> None:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    hu = np.arange(low, low + 24).reshape(2, 3, 4)
    folder = tmp_path / "ct"
    shutil.rmtree(folder, ignore_errors=True)
    write_ct_series(synthetic([], hu, affine), folder)
    found, matrix = read_ct_series(folder)
    np.testing.assert_array_equal(found, hu)
    np.testing.assert_allclose(matrix, affine, atol=1e-6, rtol=1e-9)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)")
@pytest.mark.parametrize("kind", ["dx_headers", "pictures", "deidentified", "kanji", "thorax"])
def test_no_errors_by_dciodvfy(kind: str, tmp_path: Path) -> None:
    tags: dict[str, Any] = {
        "deidentified": {"PatientIdentityRemoved": "YES", "DeidentificationMethod": "Basic profile"},
        "kanji": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"},
        "thorax": {"BodyPartExamined": "THORAX"},
    }.get(kind, {})
    sources = [] if kind == "pictures" else [header(save(dx(k, **tags), tmp_path / f"{k}.dcm")) for k in (1, 2)]
    files = write_ct_series(synthetic(sources), tmp_path / "ct")
    entities = subprocess.run(
        ["dcentvfy", *map(str, files), *map(str, tmp_path.glob("*.dcm"))],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert entities.returncode == 0 and not entities.stdout + entities.stderr, entities.stdout + entities.stderr
    for path in (files[0], files[-1]):
        result = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False, timeout=60)
        report = result.stdout + result.stderr
        assert "CTImage" in report
        assert result.returncode == 0 and "Error" not in report, report
