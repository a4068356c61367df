"""Garbage in: a clean result or a ValueError of one line, nothing else, and no hang."""

from __future__ import annotations

import contextlib
import struct
import tempfile
import time
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hand_written_dicom import A, F, L, base, dx, intensity, picture, to_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset

from custom.dicom.header import NotARadiograph, tag
from custom.radiographs import ACCEPT, MissingMetadata, read_radiographs

#: 32 x 40 pixels are enough to go through every step, and quick.
_SMALL = intensity(picture(1500 * A, -300 * A, L, F, (11.0, 9.0), (32, 40)))


def _seeds() -> list[bytes]:
    rt = base(
        "RTIMAGE", _SMALL, GantryAngle=0, PatientPosition="HFS", RadiationMachineSAD=1500, RTImageSID=1800,
        ImagePlanePixelSpacing=[11, 9], RTImagePosition=[-175.5, 170.5], RTImageOrientation=[1, 0, 0, 0, -1, 0],
        XRayImageReceptorTranslation=[0, 0, -300], XRayImageReceptorAngle=0, PatientSupportAngle=0,
    )  # fmt: skip
    xa = base(
        "XA", _SMALL, PositionerPrimaryAngle=180, PositionerSecondaryAngle=0, DistanceSourceToPatient=1500,
        DistanceSourceToDetector=1800, ImagerPixelSpacing=[11, 9], PatientOrientation=["L", "F"],
        DetectorPrimaryAngle=0, DetectorSecondaryAngle=0, CollimatorShape="POLYGONAL",
        VerticesOfThePolygonalCollimator=[1, 1, 1, 40, 32, 40, 32, 1],
    )  # fmt: skip
    frontal = dx(
        ImagerPixelSpacing=[11, 9], CollimatorShape=["RECTANGULAR", "CIRCULAR"], CollimatorLeftVerticalEdge=1,
        CollimatorRightVerticalEdge=40, CollimatorUpperHorizontalEdge=1, CollimatorLowerHorizontalEdge=32,
        CenterOfCircularCollimator=[16, 20], RadiusOfCircularCollimator=60, DetectorActiveDimensions=[352, 360],
        DetectorActiveOrigin=[0, 0], DetectorElementSpacing=[11, 9], FieldOfViewOrigin=[0, 0], FieldOfViewRotation=0,
        FieldOfViewHorizontalFlip="NO", RescaleSlope=1, RescaleIntercept=0, PixelPaddingValue=3, NumberOfFrames=1,
    )  # fmt: skip
    frontal.Rows, frontal.Columns = _SMALL.shape
    frontal.PixelData = _SMALL.astype("<u2").tobytes()
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "399348003", "SCT", "antero-posterior"
    frontal.ViewCodeSequence = [item]
    return [to_bytes(dataset) for dataset in (frontal, xa, rt)]


SEEDS = _seeds()
WORDS = [b"\xff" * 4, b"\0" * 4, b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"SQ", b"OB", b"UN", b"1e999", b"nan", b"-1"]
KEYWORDS = (
    "Rows", "Columns", "BitsStored", "HighBit", "BitsAllocated", "PixelRepresentation", "SamplesPerPixel",
    "NumberOfFrames", "PixelIntensityRelationshipSign", "RescaleSlope", "RescaleIntercept", "ImagerPixelSpacing",
    "DistanceSourceToDetector", "DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor",
    "PositionerPrimaryAngle", "PositionerSecondaryAngle", "DetectorPrimaryAngle", "GantryAngle", "RTImageOrientation",
    "RTImagePosition", "ImagePlanePixelSpacing", "RTImageSID", "XRayImageReceptorAngle", "CollimatorLeftVerticalEdge",
    "RadiusOfCircularCollimator", "VerticesOfThePolygonalCollimator", "DetectorActiveDimensions", "FieldOfViewOrigin",
    "FieldOfViewRotation", "PixelPaddingValue", "ColumnAngulation",
)  # fmt: skip


def read(content: bytes, name: str = "a.dcm", sidecar: str | None = None) -> None:
    """Read it with everything accepted and with nothing; anything but a ValueError of one line gets out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        if sidecar is not None:
            (Path(folder) / f"{name.split('.')[0]}.json").write_text(sidecar)
        for accept in ((), tuple(ACCEPT)):
            start = time.perf_counter()
            try:
                for radiograph in read_radiographs([path], accept=accept):
                    assert radiograph.line_integrals.dtype == torch.float32
                    assert bool(torch.isfinite(radiograph.line_integrals).all())
                    assert bool(torch.isfinite(radiograph.view).all())
                    assert radiograph.line_integrals.shape == radiograph.field_mask.shape
            except ValueError as error:
                assert type(error) in (ValueError, NotARadiograph, MissingMetadata)
                assert "\n" not in str(error)
                # The file, or the JSON beside it.
                assert "a." in str(error)
            assert time.perf_counter() - start < 20


FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def test_a_length_that_swallows_the_rest() -> None:
    """A text that holds everything after it, line breaks included, is still reported in one line."""
    content = bytearray(SEEDS[0])
    start = content.find(b"MONOCHROME2 ") - 2
    content[start : start + 2] = struct.pack("<H", 300)
    content[start + 60] = ord("\n")
    read(bytes(content))


def test_control_characters_of_a_damaged_uid_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """The transfer syntax goes into the decoder's message, and that into ours."""
    path = tmp_path / "a.dcm"
    path.write_bytes(SEEDS[0].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.1\x1b[2J\x07\x7f12.1\0", 1))
    with pytest.raises(ValueError, match="decoded") as error:
        read_radiographs([path])
    assert str(error.value).isprintable()


def test_a_header_that_ends_early_is_said_to_be_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(SEEDS[0][: SEEDS[0].find(b"MONOCHROME2") - 8])
    with pytest.raises(ValueError, match=r"a\.dcm: no Photometric Interpretation \(0028,0004\); is the file truncated"):
        read_radiographs([path])


@pytest.mark.parametrize("vr", [b"OB\0\0", b"OW\0\0"])
def test_a_claimed_length_reserves_no_memory(tmp_path: Path, vr: bytes) -> None:
    """4 GB are announced in a file of 4 kB, by the file meta information or by the pixels."""
    content = bytearray(SEEDS[0])
    start = content.find(vr)
    content[start + 4 : start + 8] = struct.pack("<I", 2**32 - 2)
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            read_radiographs([path])
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", ["1e-30", "1e30", "4e-4", "51"])
def test_an_impossible_pixel_is_named_and_asked_for(tmp_path: Path, value: str) -> None:
    """It would take endless memory on the way to the model's detector, or be a guess."""
    dataset = pydicom.dcmread(BytesIO(SEEDS[0]))
    dataset.ImagerPixelSpacing = [value, value]
    path = tmp_path / "a.dcm"
    path.write_bytes(to_bytes(dataset))
    with pytest.raises(MissingMetadata, match=r"\(0018,1164\) cannot be; write \"pixel_mm\"") as error:
        read_radiographs([path], accept=tuple(ACCEPT))
    assert len(error.value.questions) == 1
    (tmp_path / "a.json").write_text('{"pixel_mm": [11, 9]}')
    (radiograph,) = read_radiographs([path])
    assert radiograph.metadata.pixel_mm.value == (11, 9)
    assert any("cannot be and is not used" in warning for warning in radiograph.warnings)


@pytest.mark.parametrize(
    ("keyword", "value", "named"),
    [
        ("DistanceSourceToDetector", "1e300", "source to detector"),
        ("DistanceSourceToDetector", "9", "source to detector"),
        ("EstimatedRadiographicMagnificationFactor", "1e9", "middle of the patient"),
    ],
)
def test_an_impossible_distance_is_named_and_asked_for(tmp_path: Path, keyword: str, value: str, named: str) -> None:
    dataset = pydicom.dcmread(BytesIO(SEEDS[0]))
    del dataset.DistanceSourceToPatient
    setattr(dataset, keyword, value)
    path = tmp_path / "a.dcm"
    path.write_bytes(to_bytes(dataset))
    with pytest.raises(MissingMetadata, match=rf"{named}.* cannot be; write") as error:
        read_radiographs([path])
    assert tag(keyword) in str(error.value)


def test_seeds_are_clean() -> None:
    """Otherwise the mutations below would only find the first error."""
    for content in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.dcm"
            path.write_bytes(content)
            (radiograph,) = read_radiographs([path])
            assert radiograph.line_integrals.shape == (32, 40)


@FUZZ
@given(data=st.data())
def test_mutated_bytes(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    header = len(content) - 2 * _SMALL.size
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(132, header + 20))
        kind = data.draw(st.sampled_from(["byte", "word", "cut", "insert", "length"]))
        if kind == "byte":
            content[position : position + 1] = bytes([data.draw(st.integers(0, 255))])
        elif kind == "word":
            word = data.draw(st.sampled_from(WORDS))
            content[position : position + len(word)] = word
        elif kind == "cut":
            del content[position : position + data.draw(st.integers(1, 50))]
        elif kind == "insert":
            content[position:position] = data.draw(st.binary(max_size=30))
        else:
            content[position : position + 4] = struct.pack("<I", data.draw(st.integers(0, 2**32 - 1)))
    read(bytes(content))


@FUZZ
@given(data=st.data())
def test_mutated_values(data: st.DataObject) -> None:
    """Well-formed files that say impossible things."""
    dataset = pydicom.dcmread(BytesIO(data.draw(st.sampled_from(SEEDS))))
    content = None
    number = st.sampled_from([0, -1, 1, 2, 1e-30, 1e30, -1e9, 65535, 89.999, 1e7, 40])
    for keyword in data.draw(st.lists(st.sampled_from(KEYWORDS), min_size=1, max_size=3, unique=True)):
        vr = pydicom.datadict.dictionary_VR(keyword)
        values: object = data.draw(st.lists(number, max_size=6))
        try:
            if vr in ("US", "SS", "US or SS"):
                setattr(dataset, keyword, int(abs(data.draw(number))) % 65536)
            elif vr == "IS":
                setattr(dataset, keyword, [int(v) % 10**9 for v in values])  # type: ignore[union-attr,attr-defined]
            else:
                setattr(dataset, keyword, [f"{v:.6g}" for v in values])  # type: ignore[attr-defined]
            content = to_bytes(dataset)
        except (ValueError, OverflowError, TypeError, AttributeError, OSError, struct.error):
            continue
    if content is not None:
        read(content)


@FUZZ
@given(content=st.binary(max_size=400), name=st.sampled_from(["a.dcm", "a.png", "a.tif", "a.nii", "a.nii.gz"]))
def test_noise(content: bytes, name: str) -> None:
    starts = {"a.dcm": b"\0" * 128 + b"DICM", "a.png": b"\x89PNG\r\n\x1a\n", "a.tif": b"II*\0"}
    sidecar = '{"format": "fewview-ct geometry 1"}' if "nii" in name else None
    read(starts.get(name, b"") + content, name, sidecar)


@FUZZ
@given(content=st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["views", "format", "file", "angle_deg", "pixel_mm", "orientation", "frame", "unattenuated"]),
        inner, max_size=4),
    max_leaves=8,
))  # fmt: skip
def test_sidecars(content: object) -> None:
    import json

    read(SEEDS[0], sidecar=json.dumps(content))


@pytest.mark.parametrize("mode", ["I;16", "L"])
def test_mutated_pictures(mode: str) -> None:
    generator = np.random.default_rng(0)
    array = _SMALL.astype(np.uint16) if mode == "I;16" else (_SMALL / 256).astype(np.uint8)
    for kind in ("png", "tiff"):
        buffer = BytesIO()
        Image.fromarray(array).save(buffer, kind)
        for _ in range(25):
            content = bytearray(buffer.getvalue())
            for position in generator.integers(4, len(content), 3):
                content[position] = generator.integers(256)
            read(bytes(content), f"a.{kind.removesuffix('f')}")
