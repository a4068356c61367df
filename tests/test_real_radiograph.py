"""The parts of scripts/real_radiograph.py that an analytic truth can check."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))  # as Python does for a script
        return importlib.import_module("real_radiograph")


def _localizer(path: Path, **changes: object) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    data.Rows, data.Columns, data.PixelSpacing = 4, 6, [0.5, 0.6]
    data.ImagePositionPatient, data.ImageOrientationPatient = [-1.0, 0, 60], [1, 0, 0, 0, 0, -1]
    data.DistanceSourceToPatient, data.DistanceSourceToDetector = 541, 949
    data.RescaleSlope, data.RescaleIntercept = 2, -10
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelData = np.arange(24, dtype=np.int16).tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def test_the_tags_of_a_localizer_say_where_it_is(script: ModuleType, tmp_path: Path) -> None:
    found = script.read_localizer(str(_localizer(tmp_path / "scout.dcm")))
    assert found.values[1, 2] == 8 * 2 - 10
    assert found.pixel_mm == (0.5, 0.6)
    assert found.middle_mm == pytest.approx((-1 + 2.5 * 0.6, 60 - 1.5 * 0.5))
    assert (found.source_to_isocenter_mm, found.source_to_detector_mm) == (541, 949)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, "localizer"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "frontal"),
        ({"DistanceSourceToPatient": None}, "DistanceSourceToPatient"),
    ],
)
def test_another_picture_is_refused(script: ModuleType, tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        script.read_localizer(str(_localizer(tmp_path / "other.dcm", **change)))


def test_the_curve_finds_a_monotone_law(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(-400, 300, (200, 200))
    law = ((values + 400) / 100) ** 0.8
    x, y = script.fit_curve(values, law + rng.normal(0, 0.3, values.shape))
    assert (np.diff(y) >= 0).all()
    assert np.abs(np.interp(values, x, y) - law).max() < 0.15


def test_a_curve_through_points_begins_at_air_and_goes_on(script: ModuleType) -> None:
    x, y = script.through_points([(-200, 1), (0, 3)], -450)
    assert np.interp([-450, -200, -100, 100], x, y) == pytest.approx([0, 1, 2, 4])


def test_a_shift_is_found_with_its_sign(script: ModuleType) -> None:
    still = gaussian_filter(np.random.default_rng(1).normal(size=(120, 130)), 4)
    moved = np.roll(still, (3, -2), (0, 1))
    found = script.agreement(moved, still, (0.5, 2.0))
    assert found["shift_down_mm"] == pytest.approx(1.5, abs=0.1)
    assert found["shift_left_mm"] == pytest.approx(-4.0, abs=0.2)
    assert found["correlation_gained_by_shift"] > 0.1


def test_averaging_keeps_places(script: ModuleType) -> None:
    rows, columns, fine = 400, 500, (0.5, 0.4)
    localizer = script.Localizer(np.zeros((rows, columns)), fine, (3.0, -20.0), 541.0, 949.0)
    z = -20 + ((rows - 1) / 2 - np.arange(rows)) * fine[0]
    left = 3 + (np.arange(columns) - (columns - 1) / 2) * fine[1]
    case = SimpleNamespace(rows=32, columns=40, pixel_mm=2.5, isocenter=(0.0, 0.0, -25.0))
    found = script.averaged(localizer, z[:, None] + 0 * left, case).numpy()
    assert found == pytest.approx((-25 + (15.5 - np.arange(32)) * 2.5)[:, None] + np.zeros(40), abs=0.02)
    found = script.averaged(localizer, 0 * z[:, None] + left, case).numpy()
    assert found == pytest.approx((np.arange(40) - 19.5) * 2.5 + np.zeros((32, 1)), abs=0.02)
    with pytest.raises(ValueError, match="does not cover"):
        script.averaged(localizer, z[:, None] + left, SimpleNamespace(**{**vars(case), "rows": 128}))
