"""Tags, sidecars and code streams that exclude each other, or that no picture has: asked about, refused or said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hand_written_dicom import A, F, L, dx, intensity, picture, save, stored_dx, to_bytes
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000, JPEGLSNearLossless, RLELossless

from custom.radiographs import MissingMetadata, read_radiographs
from custom.radiographs.exposure import has_noise
from tests.custom.radiographs.seen_heart import read

TRUTH = picture(1500 * A, -300 * A, L, F)
FACTS = {
    "view_position": "AP", "source_to_detector_mm": 1800, "source_to_isocenter_mm": 1500, "pixel_mm": [4, 3],
    "orientation": "L/F", "intensity_relationship": "LIN", "intensity_sign": 1,
}  # fmt: skip


def compressed(path: Path, dataset: Dataset, syntax: str, **options: object) -> Path:
    to_bytes(dataset)
    dataset.compress(syntax, generate_instance_uid=False, **options)  # type: ignore[arg-type]
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"NominalScannedPixelSpacing": [2, 2]}, r"two values of pixel mm.*\(0018,1164\).*\(0018,2010\)"),
        ({"PatientOrientation": ["LR", "F"]}, r"\(0020,0020\) is 'LR.+F', which cannot be read"),
        ({"PatientOrientation": ["L", "FH"]}, r"\(0020,0020\) is 'L.+FH', which cannot be read"),
        ({"DistanceSourceToDetector": -1800}, r"-1800.0 by DICOM \(0018,1110\) cannot be, it must be more than 0"),
    ],
)
def test_geometry_that_cannot_be_is_asked_about(tmp_path: Path, attributes: dict, message: str) -> None:
    with pytest.raises(MissingMetadata, match=message):
        read(save(tmp_path / "a.dcm", dx(**attributes)))


def test_a_magnification_below_one_is_said(tmp_path: Path) -> None:
    radiograph = read(save(tmp_path / "a.dcm", dx(EstimatedRadiographicMagnificationFactor=0.9)))
    assert any("0.9 by DICOM (0018,1114) cannot be" in warning for warning in radiograph.warnings)


def test_run_lengths_keep_the_bits_that_tags_deny(tmp_path: Path) -> None:
    """pydicom drops what is above Bits Stored, so that a picture of 16 bits called 12 came folded."""
    with pytest.raises(ValueError, match=r"their values reach 50000, which Bits Stored \(0028,0101\) 12"):
        read(compressed(tmp_path / "a.dcm", stored_dx(intensity(TRUTH), BitsStored=12, HighBit=11), RLELossless))
    shifted = stored_dx(intensity(TRUTH, 4000.0) * 16, BitsStored=12, HighBit=15)
    radiograph = read(compressed(tmp_path / "b.dcm", shifted, RLELossless))
    assert float(np.abs(radiograph.line_integrals.numpy() - TRUTH).mean()) < 0.01


@pytest.mark.parametrize(
    ("syntax", "options"), [(JPEGLSNearLossless, {"jls_error": 2}), (JPEG2000, {"j2k_cr": [20]}), (RLELossless, {})]
)
def test_losses_are_said_whatever_the_header_says(tmp_path: Path, syntax: str, options: dict) -> None:
    pytest.importorskip("jpeg_ls" if syntax == JPEGLSNearLossless else "openjpeg")
    dataset = stored_dx(intensity(TRUTH, 4000.0), BitsStored=12, HighBit=11, LossyImageCompression="00")
    radiograph = read(compressed(tmp_path / "a.dcm", dataset, syntax, **options))
    assert any("compressed with losses" in w for w in radiograph.warnings) == (syntax != RLELossless)


def xa_with_lut(table: np.ndarray, **attributes: object) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", [len(table), 0, 16])
    item.ModalityLUTType = "US"
    item.add_new(0x00283006, "OW", table.astype("<u2").tobytes())
    stored = np.rint(3000 - 400 * TRUTH)
    dataset = stored_dx(stored, BitsStored=12, HighBit=11, PixelIntensityRelationship="LOG", **attributes)
    dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.12.1", "XA"
    dataset.PositionerPrimaryAngle, dataset.PositionerSecondaryAngle = 180, 0
    dataset.ModalityLUTSequence = [item]
    return dataset


def test_a_lookup_table_has_one_intensity_for_each_value(tmp_path: Path) -> None:
    table = np.rint(50000 * np.exp((np.arange(4096) - 3000) / 400)).clip(0, 65535)
    radiograph = read(save(tmp_path / "a.dcm", xa_with_lut(table, RescaleSlope=2, RescaleIntercept=5)))
    assert float(np.abs(radiograph.line_integrals.numpy() - TRUTH).mean()) < 0.01
    assert any("beside the LUT are not used" in warning for warning in radiograph.warnings)
    table[2000:] = table[2000:][::-1]
    with pytest.raises(ValueError, match=r"Modality LUT \(0028,3000\) both rises and falls"):
        read(save(tmp_path / "b.dcm", xa_with_lut(table)))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"log_scale": 1000}, r"log_scale 1000.0 by sidecar a.json is of a logarithm, but .* LIN"),
        ({"unattenuated": 20000}, "% of the exposed pixels are brighter than the unattenuated beam"),
        (
            {"intensity_relationship": "LOG", "log_scale": 9000, "zero_intensity": 5},
            "zero_intensity 5.0 by .* not used",
        ),
        ({}, ""),
    ],
)
def test_what_a_sidecar_says_in_vain_is_a_warning(tmp_path: Path, facts: dict, said: str) -> None:
    Image.fromarray(intensity(TRUTH).astype(np.uint16)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps(FACTS | facts))
    warnings = read(tmp_path / "a.png").warnings
    assert [bool(re.search(said, warning)) for warning in warnings].count(True) == bool(said)
    assert said or not warnings


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"frame": 2}, "a.png: frame 2 is asked for, there is 1"),
        ({"orientation": "LR/F"}, "orientation is 'LR/F', it must name"),
        ({"orientation": "LLL/F"}, "orientation is 'LLL/F', it must name"),
    ],
)
def test_what_a_sidecar_cannot_say_is_refused(tmp_path: Path, facts: dict, message: str) -> None:
    Image.fromarray(intensity(TRUTH).astype(np.uint16)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps(FACTS | facts))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_tiff_that_lies_on_its_side_is_refused(tmp_path: Path, orientation: int) -> None:
    """Pillow turns the others as viewers do, and mixes up the rows of these."""
    stored = intensity(TRUTH).astype(np.uint16)
    stored = {1: stored, 3: stored[::-1, ::-1], 6: np.rot90(stored)}[orientation]
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.tif", tiffinfo={274: orientation})
    (tmp_path / "a.json").write_text(json.dumps(FACTS))
    if orientation == 6:
        with pytest.raises(ValueError, match="Orientation 6: it lies on its side"):
            read(tmp_path / "a.tif")
        return
    assert float(np.abs(read(tmp_path / "a.tif").line_integrals.numpy() - TRUTH).mean()) < 0.01


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_noise_is_seen_between_steep_slopes(noise: float) -> None:
    """Where neighbours differ more by anatomy than by noise; rounding to steps is no noise."""
    rows, columns = np.mgrid[:200, :200]
    values = 4000 * np.exp(-1.5 - np.sin(columns / 6) * np.cos(rows / 9))
    values += noise * np.sqrt(values) * np.random.default_rng(1).standard_normal(values.shape)
    assert has_noise(4 * np.rint(values / 4), np.ones(values.shape, bool)) == (noise > 0)


def test_a_stack_without_contrast_is_refused(tmp_path: Path) -> None:
    stack = np.stack([TRUTH.T, np.full_like(TRUTH.T, 2.0)], -1).astype(np.float32)
    nib.save(nib.Nifti1Image(stack, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ValueError, match="all pixels of a radiograph have the same value"):
        read_radiographs([tmp_path / "a.nii"])
