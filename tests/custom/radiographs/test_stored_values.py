"""Depths, bits, padding, the photometric interpretation of TIFF, and the image plane of RTIMAGE against the file."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_written_dicom import A, F, H, L, base, dx, intensity, picture, save, stored_dx
from pydicom.dataset import Dataset

from custom.dicom.padding import padding_beside
from custom.geometry import rays
from custom.radiographs import MissingMetadata
from tests.custom.radiographs.seen_heart import read

TRUTH = picture(1500 * A, -300 * A, L, F)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (lambda: dx(BitsAllocated=12, BitsStored=12, HighBit=11), "is 12: packed pixels, two in three bytes"),
        (lambda: dx(BitsAllocated=32, BitsStored=32, HighBit=31), "is 32: pixels of 32 bits"),
        (lambda: dx(BitsAllocated=1, BitsStored=1, HighBit=0), "is 1: a mask of one bit"),
        (lambda: dx(BitsAllocated=8, BitsStored=12, HighBit=11), r"12 and High Bit \(0028,0102\) 11 do not fit"),
        (lambda: dx(BitsStored=12, HighBit=10), "do not fit together"),
        (lambda: stored_dx(intensity(TRUTH, 12000.0), BitsStored=12, HighBit=11), "their values reach 12000, which"),
        (lambda: stored_dx(intensity(TRUTH, 4000.0), BitsStored=12, HighBit=15), "lie in bits 11 to 0; correct these"),
    ],
)
def test_bits_that_do_not_fit_the_values(tmp_path: Path, dataset: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.dcm: .*{message}"):
        read(save(tmp_path / "a.dcm", dataset()))  # type: ignore[operator]


@pytest.mark.parametrize("attributes", [{"Columns": 60}, {"Rows": 48}, {"Rows": 95}])
def test_more_pixels_than_the_header_knows(tmp_path: Path, attributes: dict) -> None:
    """With half the columns every other line would be read as the next one; or it is a second frame."""
    dataset = dx(**attributes)
    with pytest.raises(ValueError, match=r"a\.dcm: .*23040 bytes of pixel data, but .* say .*which is wrong"):
        read(save(tmp_path / "a.dcm", dataset))


def test_rounded_line_integrals_are_said(tmp_path: Path) -> None:
    """Values of 0 to 6 that were kept as whole numbers, and those of 8 bits, which suffice."""
    for highest, few in ((TRUTH.max(), True), (255.0, False)):
        stored = np.rint(highest * TRUTH / TRUTH.max())
        facts = {"intensity_relationship": "LOG", "intensity_sign": -1, "log_scale": highest / float(TRUTH.max())}
        (tmp_path / "a.json").write_text(json.dumps(facts))
        warnings = read(save(tmp_path / "a.dcm", stored_dx(stored))).warnings
        assert any("different values: it was rounded" in w for w in warnings) == few, warnings


def test_float_pixels_have_their_own_words(tmp_path: Path) -> None:
    dataset = dx()
    del dataset.PixelData
    dataset.FloatPixelData = TRUTH.astype("<f4").tobytes()
    with pytest.raises(ValueError, match="holds Float Pixel Data"):
        read(save(tmp_path / "a.dcm", dataset))


def test_padding_is_beside_the_picture(tmp_path: Path) -> None:
    """The heart has the padding value too, and a line of equal values that ends at the border is no padding."""
    stored = intensity(TRUTH, 4000.0)
    stored[30:45, 50:70], stored[20, :] = 700, 700
    stored[:, :12] = 700
    radiograph = read(save(tmp_path / "a.dcm", stored_dx(stored, PixelPaddingValue=700)))
    assert not radiograph.field_mask[:, :12].any()
    assert radiograph.field_mask[21:, 13:].all()
    stored[:, :12] = 4000
    radiograph = read(save(tmp_path / "a.dcm", stored_dx(stored, PixelPaddingValue=700, PixelPaddingRangeLimit=705)))
    assert radiograph.field_mask.all()
    assert radiograph.metadata.exposed_field.where == "the picture, no collimator found"


def test_tissue_of_the_padding_value_is_no_air() -> None:
    """0 HU in the middle of a CT slice whose padding is 0."""
    stored = np.full((20, 20), 40)
    stored[:2], stored[8:12, 8:12] = 0, 0
    padding = padding_beside(stored, 0, 0)
    assert padding[:2].all()
    assert not padding[2:].any()


def tiff(path: Path, stored: np.ndarray, photometric: int, bits: int) -> Path:
    """An uncompressed TIFF of one strip, written by hand (TIFF 6.0): 0 is WhiteIsZero, 1 BlackIsZero."""
    data = stored.astype("<u2" if bits == 16 else "u1").tobytes()
    rows, columns = stored.shape
    entries = [(256, 4, columns), (257, 4, rows), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
               (277, 3, 1), (278, 4, rows), (279, 4, len(data))]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", k, t, 1, v) for k, t, v in entries)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + b"\0" * 4)
    return path


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_tiff_is_read_as_the_file_has_it(tmp_path: Path, bits: int, photometric: int) -> None:
    """Pillow inverts 8 bits of WhiteIsZero and not 16; the sign is about what the file holds."""
    highest = (1 << bits) - 1
    facts = {
        "view_position": "AP", "source_to_detector_mm": 1800, "source_to_isocenter_mm": 1500, "pixel_mm": [4, 3],
        "orientation": "L/F", "intensity_relationship": "LOG", "intensity_sign": 1, "log_scale": highest / 6,
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(facts))
    stored = np.rint(highest * (0.95 - np.clip(TRUTH / 6, 0, 0.95)))
    radiograph = read(tiff(tmp_path / "a.tif", stored, photometric, bits))
    assert float(np.abs(radiograph.line_integrals.numpy() - TRUTH).max()) < 0.05
    assert radiograph.metadata.photometric.value == f"MONOCHROME{photometric + 1}"
    # For viewing, bones are bright: low values in WhiteIsZero.
    for key in ("intensity_relationship", "intensity_sign", "log_scale"):
        del facts[key]
    (tmp_path / "a.json").write_text(json.dumps(facts))
    shown = stored if photometric == 0 else highest - stored
    radiograph = read(tiff(tmp_path / "a.tif", shown, photometric, bits), accept="for-presentation,log-range")
    assert float(np.corrcoef(radiograph.line_integrals.numpy().ravel(), TRUTH.ravel())[0, 1]) > 0.999


def rt_image(plane: float, offset: tuple[float, float] = (0.0, 0.0), **attributes: object) -> Dataset:
    """Gantry 0, head first supine: the source in front, columns towards the patient's left, rows to the feet."""
    scale, shape = plane / 1500, (96, 120)
    middle = -500 * A + offset[0] * L + offset[1] * H
    written = {
        "GantryAngle": 0, "PatientPosition": "HFS", "RadiationMachineSAD": 1000, "RTImageSID": plane,
        "ImagePlanePixelSpacing": [4 * scale, 3 * scale], "RTImagePlane": "NORMAL", "PatientSupportAngle": 0,
        "XRayImageReceptorTranslation": [0, 0, 1000 - plane], "ImageType": ["DERIVED", "SECONDARY", "PORTAL"],
        "RTImagePosition": [
            (offset[0] - (shape[1] - 1) / 2 * 3) * scale, (offset[1] + (shape[0] - 1) / 2 * 4) * scale
        ],
    }  # fmt: skip
    stored = intensity(picture(1000 * A, middle, L, F, (4, 3), shape))
    return base("RTIMAGE", stored, **{**written, **attributes})


@pytest.mark.parametrize("plane", [800.0, 999.963, 1000.0, 1000.04, 1100.0])
def test_a_virtual_plane_gives_the_same_rays(tmp_path: Path, plane: float) -> None:
    """RT Image SID is the distance to the plane of the scale (C.8.8.2): anywhere along the rays."""
    radiographs = [read(save(tmp_path / "a.dcm", rt_image(sid, offset=(12.0, -20.0)))) for sid in (1500.0, plane)]
    (_, expected), (_, found) = (rays(r.view[None], r.line_integrals.shape) for r in radiographs)
    assert torch.allclose(found, expected, atol=1e-6)
    assert float(radiographs[1].view[4]) < -400  # behind the patient
    assert "moved along the rays" in radiographs[1].metadata.pixel_mm.provenance
    assert radiographs[1].warnings == ()
    direction = float(torch.acos((found * expected).sum(-1).clamp(max=1)).max())
    assert math.degrees(direction) < 0.01


def test_distances_that_cannot_be_of_a_wall_stand(tmp_path: Path) -> None:
    """Only an RTIMAGE has a virtual plane."""
    with pytest.raises(MissingMetadata, match="distances that cannot be"):
        read(save(tmp_path / "a.dcm", dx(DistanceSourceToDetector=1500, EstimatedRadiographicMagnificationFactor=None)))
