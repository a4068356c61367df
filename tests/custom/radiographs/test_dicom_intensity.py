"""Stored values become the line integrals that made them, or the reader says why they cannot."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hand_written_dicom import A, F, L, base, dx, intensity, picture, save, stored_dx, to_bytes, without
from pydicom.dataset import Dataset

from custom.radiographs import MissingMetadata, Radiograph
from tests.custom.radiographs.seen_heart import read

TRUTH = picture(1500 * A, -300 * A, L, F)


def error(radiograph: Radiograph) -> float:
    """Largest error where exposed."""
    return float(np.abs(radiograph.line_integrals.numpy() - TRUTH)[radiograph.field_mask.numpy()].max())


def test_air_is_found(tmp_path: Path) -> None:
    radiograph = read(save(tmp_path / "a.dcm", dx()))
    assert error(radiograph) < 0.02
    assert radiograph.metadata.unattenuated.value == pytest.approx(50000, rel=2e-3)
    assert radiograph.metadata.unattenuated.provenance.startswith("estimated from air")
    assert radiograph.metadata.exposed_field.value == "100 % of the picture"


def test_monochrome_changes_no_physics(tmp_path: Path) -> None:
    """C.8.11.3.1.2: sign and relationship are about stored values; Photometric Interpretation is for display."""
    radiograph = read(save(tmp_path / "a.dcm", dx(PhotometricInterpretation="MONOCHROME1")))
    assert error(radiograph) < 0.02


def test_falling_linear_values(tmp_path: Path) -> None:
    dataset = stored_dx(65535 - intensity(TRUTH), PixelIntensityRelationshipSign=-1)
    radiograph = read(save(tmp_path / "a.dcm", dataset))
    assert error(radiograph) < 0.02
    assert "fall with the X-ray intensity" in radiograph.warnings[0]


def test_rescale_with_negative_slope(tmp_path: Path) -> None:
    """65535 - stored by the rescale: the sign is about stored values, so what comes out rises with the intensity."""
    dataset = stored_dx(
        65535 - intensity(TRUTH), PixelIntensityRelationshipSign=-1, RescaleSlope=-1, RescaleIntercept=65535
    )
    radiograph = read(save(tmp_path / "a.dcm", dataset))
    assert error(radiograph) < 0.02
    assert radiograph.warnings == ()
    assert radiograph.metadata.rescale.value == "-1 * stored + 65535"


@pytest.mark.parametrize("sign", [1, -1])
def test_logarithm_needs_its_scale(tmp_path: Path, sign: int) -> None:
    stored = np.rint(30000 - sign * TRUTH * 2000)
    path = save(tmp_path / "a.dcm", stored_dx(stored, PixelIntensityRelationship="LOG",
                                              PixelIntensityRelationshipSign=sign))  # fmt: skip
    with pytest.raises(MissingMetadata, match=r'the scale of its logarithm.*"log_scale": 1000.*--accept log-range'):
        read(path)
    (tmp_path / "a.json").write_text('{"log_scale": 2000}')
    assert error(read(path)) < 0.02
    (tmp_path / "a.json").write_text('{"log_scale": 2000, "unattenuated": 30000}')
    assert error(read(path)) < 0.001
    (tmp_path / "a.json").unlink()
    accepted = read(path, accept=["log-range"])
    top = float(np.quantile(accepted.line_integrals.numpy(), 0.999))
    assert top == pytest.approx(5.0, rel=0.02)
    assert accepted.metadata.log_scale.provenance == "option --accept log-range"
    assert accepted.metadata.log_scale.value == pytest.approx(2000 * np.quantile(TRUTH, 0.999) / 5, rel=0.05)


def test_modality_lut_of_xa(tmp_path: Path) -> None:
    """C.8.7.1.1.2: LOG with a Modality LUT that leads back to linear."""
    codes = np.arange(4096)
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [4096, 0, 16], "US"
    item.LUTData = np.rint(60000 * np.exp((codes - 4095) / 500)).astype("<u2").tobytes()
    stored = np.rint(4000 - 500 * TRUTH)
    dataset = base(
        "XA", stored, PixelIntensityRelationship="LOG", ModalityLUTSequence=[item], PositionerPrimaryAngle=180,
        PositionerSecondaryAngle=None, DistanceSourceToPatient=1500, DistanceSourceToDetector=1800,
        ImagerPixelSpacing=[4, 3], PatientOrientation=["L", "F"], BitsStored=12, HighBit=11,
    )  # fmt: skip
    radiograph = read(save(tmp_path / "a.dcm", dataset))
    assert error(radiograph) < 0.02
    assert "linear by Modality LUT" in radiograph.metadata.intensity_relationship.provenance
    with pytest.raises(ValueError, match=r"a.dcm: has a Modality LUT \(0028,3000\), which is only followed in XA"):
        read(save(tmp_path / "a.dcm", dx(ModalityLUTSequence=[item])))
    item.ModalityLUTType = "OD"
    with pytest.raises(ValueError, match=r"a.dcm: Modality LUT Type \(0028,3004\) is OD, no intensity"):
        read(save(tmp_path / "a.dcm", dataset))


def test_unused_bits_are_removed(tmp_path: Path) -> None:
    """12 bits stored in 15..4, an overlay in the lowest bits."""
    stored = intensity(TRUTH, 4000.0).astype(np.int64)
    dataset = stored_dx(stored * 16 + 5, BitsStored=12, HighBit=15)
    radiograph = read(save(tmp_path / "a.dcm", dataset))
    assert radiograph.metadata.unattenuated.value == pytest.approx(4000, rel=2e-3)
    assert error(radiograph) < 0.1


def test_stray_values_above_bits_stored_are_said(tmp_path: Path) -> None:
    """Overlays in unused bits and the sign of negative values are no such values."""
    path, stored = tmp_path / "a.dcm", intensity(TRUTH, 4000.0).astype(np.int64)
    (tmp_path / "a.json").write_text('{"unattenuated": 4000}')
    stray = stored.copy()
    stray[0, :5] = 12000
    warnings = read(save(path, stored_dx(stray, BitsStored=12, HighBit=11))).warnings
    assert any("bits above High Bit (0028,0102)" in w and "Bits Stored (0028,0101) 12" in w for w in warnings)
    overlay = stored_dx(stored + 0x1000, BitsStored=12, HighBit=11)
    overlay.add_new((0x6000, 0x0102), "US", 12)
    for quiet, zero in (
        (stored_dx(stored, BitsStored=12, HighBit=11), 0), (overlay, 0),
        (stored_dx(stored - 2000, BitsStored=12, HighBit=11, PixelRepresentation=1), -2000),
    ):  # fmt: skip
        (tmp_path / "a.json").write_text(f'{{"unattenuated": {4000 + zero}, "zero_intensity": {zero}}}')
        assert not any("High Bit" in w for w in read(save(path, quiet)).warnings)


def test_a_rescale_that_is_no_number_is_said(tmp_path: Path) -> None:
    raw = to_bytes(dx(RescaleSlope="7.25", RescaleIntercept="0"))
    (tmp_path / "a.dcm").write_bytes(raw.replace(b"7.25", b"nan "))
    assert "rescale NAN by DICOM (0028,1053) cannot be read and is not used" in read(tmp_path / "a.dcm").warnings[0]


def test_another_relationship_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", dx(PixelIntensityRelationship="DISP"))
    with pytest.raises(
        MissingMetadata, match=r"Relationship \(0028,1040\) is 'DISP', which is neither LIN nor LOG"
    ) as caught:
        read(path)
    assert "absent" not in str(caught.value)


def test_for_presentation_is_refused(tmp_path: Path) -> None:
    stored = np.rint(np.clip(TRUTH / 8, 0, 1) * 16383)
    path = save(tmp_path / "a.dcm", stored_dx(
        stored, SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", PresentationIntentType="FOR PRESENTATION",
        PixelIntensityRelationship="LOG", PixelIntensityRelationshipSign=-1, BitsStored=14, HighBit=13,
    ))  # fmt: skip
    with pytest.raises(MissingMetadata, match=r"FOR PRESENTATION by DICOM \(0008,0068\).*--accept for-presentation"):
        read(path)
    radiograph = read(path, accept=["for-presentation", "log-range"])
    assert float(np.corrcoef(radiograph.line_integrals.numpy().ravel(), TRUTH.ravel())[0, 1]) > 0.999
    (tmp_path / "a.json").write_text('{"intent": "processing", "log_scale": 2047.875}')
    radiograph = read(path)
    assert error(radiograph) < 0.02
    assert radiograph.metadata.intent.provenance == "sidecar a.json"
    assert any("intent is processing by sidecar" in w for w in radiograph.warnings)


@pytest.mark.parametrize(("photometric", "rising"), [("MONOCHROME1", False), ("MONOCHROME2", True)])
def test_accepted_presentation_follows_photometric(tmp_path: Path, photometric: str, rising: bool) -> None:
    """Bones are bright: high values in MONOCHROME2, low values in MONOCHROME1."""
    share = np.clip(TRUTH / 8, 0, 1)
    stored = np.rint((share if rising else 1 - share) * 65535)
    dataset = without(
        stored_dx(stored, PhotometricInterpretation=photometric),
        "PixelIntensityRelationship", "PixelIntensityRelationshipSign", "PresentationIntentType",
    )  # fmt: skip
    path = save(tmp_path / "a.dcm", dataset)
    with pytest.raises(MissingMetadata, match=r"Pixel Intensity Relationship \(0028,1040\) is absent"):
        read(path)
    radiograph = read(path, accept=["for-presentation", "log-range"])
    assert float(np.corrcoef(radiograph.line_integrals.numpy().ravel(), TRUTH.ravel())[0, 1]) > 0.999


def test_a_sign_against_the_picture_is_asked_about(tmp_path: Path) -> None:
    """Air touches the border, bone does not; who writes the sign is believed, with a warning."""
    path = save(tmp_path / "a.dcm", stored_dx(65535 - intensity(TRUTH)))
    with pytest.raises(MissingMetadata, match=r'intensity_sign 1 by .* densest part.*"intensity_sign": -1 \(the pict'):
        read(path)
    (tmp_path / "a.json").write_text('{"intensity_sign": -1}')
    assert error(read(path)) < 0.02
    (tmp_path / "a.json").write_text('{"intensity_sign": 1, "unattenuated": 60000}')
    assert any("is it inverted" in w for w in read(path).warnings)


def test_no_air_is_a_gap(tmp_path: Path) -> None:
    """A picture that the body fills: its most transparent part is no plateau."""
    inside = picture(1500 * A, -300 * A, L, F, pixel=(1.2, 1.2))
    dataset = stored_dx(intensity(inside), ImagerPixelSpacing=[1.2, 1.2])
    path = save(tmp_path / "a.dcm", dataset)
    with pytest.raises(MissingMetadata, match="no air is seen beside the patient"):
        read(path)
    (tmp_path / "a.json").write_text('{"unattenuated": 50000}')
    assert float(np.abs(read(path).line_integrals.numpy() - inside).max()) < 0.02
    (tmp_path / "a.json").unlink()
    accepted = read(path, accept="brightest-as-air")
    assert accepted.metadata.unattenuated.provenance == "option --accept brightest-as-air"


@pytest.mark.parametrize(("photons", "said"), [(2000, True), (0, False)])
def test_a_detector_that_ends_below_its_range_is_said(tmp_path: Path, photons: float, said: bool) -> None:
    """Air of one value among pixels with noise is saturated; in a computed picture nothing has noise."""
    seen = np.exp(-TRUTH)
    if photons:
        seen = np.random.default_rng(1).poisson(photons * seen) / photons
    stored = np.minimum(np.rint(50000 * seen), 30000 if photons else 65535)
    warnings = read(save(tmp_path / "a.dcm", stored_dx(stored))).warnings
    assert any("is of one value, 30000, without the noise of the rest" in w for w in warnings) == said


def test_an_intensity_that_cannot_be(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", dx())
    (tmp_path / "a.json").write_text('{"zero_intensity": 60000}')
    with pytest.raises(ValueError, match=r"a\.dcm: zero_intensity is 60000, which leaves no pixel any X-ray intensity"):
        read(path)
    (tmp_path / "a.json").write_text('{"unattenuated": 5e6}')
    assert any("no line integral is below 4.6" in w for w in read(path).warnings)


def test_saturated_air_is_said(tmp_path: Path) -> None:
    stored = np.minimum(intensity(TRUTH, 90000.0), 65535)
    assert any("saturated" in w for w in read(save(tmp_path / "a.dcm", stored_dx(stored))).warnings)


def test_noise_and_scatter_of_blades(tmp_path: Path) -> None:
    """Blades let 1 % through; the field's edges are found to a pixel, and air is looked for inside."""
    generator = np.random.default_rng(1)
    shape = (300, 400)
    truth = picture(1500 * A, -300 * A, L, F, (1.4, 1.2), shape)
    field = np.zeros(shape, dtype=bool)
    field[30:-40, 25:-60] = True
    photons = 20000 * np.where(field, np.exp(-truth), 0.01)
    stored = generator.poisson(photons)
    dataset = stored_dx(stored, ImagerPixelSpacing=[1.4, 1.2])
    dataset.Rows, dataset.Columns = shape
    radiograph = read(save(tmp_path / "a.dcm", dataset))
    found = radiograph.field_mask.numpy()
    assert not (found & ~field).any()
    assert (field & ~found).sum() < 0.05 * field.sum()
    assert radiograph.metadata.exposed_field.where == "straight dark borders"
    assert float(radiograph.line_integrals[~radiograph.field_mask].abs().max()) == 0
    assert float(np.abs(radiograph.line_integrals.numpy() - truth)[found].mean()) < 0.05


def test_nothing_is_masked_without_blades(tmp_path: Path) -> None:
    """The body's own edges and its dark lower end are no blades."""
    truth = picture(1500 * A, -300 * A + 60 * F, L, F, (1.6, 1.4), (240, 320))
    stored = np.random.default_rng(2).poisson(5000 * np.exp(-1.5 * truth))
    dataset = stored_dx(stored, ImagerPixelSpacing=[1.6, 1.4])
    dataset.Rows, dataset.Columns = truth.shape
    assert bool(read(save(tmp_path / "a.dcm", dataset)).field_mask.all())


def test_collimator_and_shutter_tags(tmp_path: Path) -> None:
    """C.8.7.3 and C.7.6.11: rows and columns count from 1."""
    dataset = dx(
        CollimatorShape=["RECTANGULAR", "CIRCULAR"], CollimatorLeftVerticalEdge=11, CollimatorRightVerticalEdge=110,
        CollimatorUpperHorizontalEdge=5, CollimatorLowerHorizontalEdge=90, CenterOfCircularCollimator=[48, 60],
        RadiusOfCircularCollimator=60, ShutterShape="POLYGONAL",
        VerticesOfThePolygonalShutter=[1, 1, 1, 120, 96, 120, 96, 21, 70, 1],
    )  # fmt: skip
    field_mask = read(save(tmp_path / "a.dcm", dataset)).field_mask.numpy()
    row, column = np.mgrid[1:97, 1:121]
    expected = (column >= 11) & (column <= 110) & (row >= 5) & (row <= 90)
    expected &= (row - 48) ** 2 + (column - 60) ** 2 <= 3600
    cut = (row - 70) * 20 > (column - 1) * 26  # below the line from (70, 1) to (96, 21)
    assert (field_mask != (expected & ~cut)).sum() <= 30
    assert field_mask.sum() == pytest.approx((expected & ~cut).sum(), abs=30)
    assert not field_mask[:4].any()
    assert field_mask[10, 60]


def test_padding_is_not_exposed(tmp_path: Path) -> None:
    stored = intensity(TRUTH)
    stored[:, :15] = 0
    radiograph = read(save(tmp_path / "a.dcm", stored_dx(stored, PixelPaddingValue=0)))
    assert not radiograph.field_mask[:, :15].any()
    assert radiograph.field_mask[:, 15:].all()
    assert error(radiograph) < 0.02


@pytest.mark.parametrize(
    "coder", ["RLELossless", "JPEG2000Lossless", "dcmcjpeg +e1", "dcmcjpls +el", "dcmconv +tb", "dcmconv +ti"]
)
def test_transfer_syntaxes(tmp_path: Path, coder: str) -> None:
    path, other = save(tmp_path / "a.dcm", dx()), tmp_path / "b.dcm"
    program, *options = coder.split()
    if options and shutil.which(program) is None:
        pytest.skip(f"{program} (dcmtk) is not installed")
    if options:
        subprocess.run([program, *options, str(path), str(other)], check=True)
    else:
        if program == "JPEG2000Lossless":
            pytest.importorskip("openjpeg")
        file = pydicom.dcmread(path)
        file.compress(getattr(pydicom.uid, program))
        file.save_as(other)
    assert (read(other).line_integrals == read(path).line_integrals).all()


def test_deflated_is_read_as_the_same(tmp_path: Path) -> None:
    """What inflates to more than the file explains is refused: tests/custom/core/test_limits.py."""
    file = pydicom.dcmread(save(tmp_path / "a.dcm", dx()))
    file.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(tmp_path / "b.dcm", file)
    assert (read(tmp_path / "a.dcm").line_integrals == read(tmp_path / "b.dcm").line_integrals).all()


def test_code_stream_of_another_size(tmp_path: Path) -> None:
    """A decoder would allocate what the stream announces."""
    pytest.importorskip("openjpeg")
    path = save(tmp_path / "a.dcm", dx())
    file = pydicom.dcmread(path)
    file.compress(pydicom.uid.JPEG2000Lossless)
    file.save_as(path)
    raw = bytearray(path.read_bytes())
    start = raw.find(b"\xff\x4f\xff\x51")
    raw[start + 8 : start + 12] = (60000).to_bytes(4, "big")
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match="a code stream of 60000 x 96 pixels of 1 samples, the header says 120 x 96"):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: setattr(d, "NumberOfFrames", 7), r'a.dcm: 7 frames; choose one: write "frame": 1 \(to 7\)'),
        (lambda d: setattr(d, "PhotometricInterpretation", "RGB"), "colour images are not read"),
        (lambda d: setattr(d, "SamplesPerPixel", 3), "colour images are not read"),
        (lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), "CT Image Storage, not a radiograph"),
        (lambda d: setattr(d, "SOPClassUID", ""), "no SOP class"),
        (lambda d: setattr(d, "Rows", 4), "not the size of a radiograph"),
        (lambda d: delattr(d, "PixelData"), r"no Pixel Data \(7FE0,0010\)"),
        (lambda d: setattr(d, "PixelData", d.PixelData[:-2000]), "pixels cannot be decoded, truncated or damaged"),
        (lambda d: setattr(d, "PixelData", b"\0" * len(d.PixelData)), "all pixels have the same value"),
        (lambda d: setattr(d, "HighBit", 3), "do not fit together"),
    ],
)
def test_refused(tmp_path: Path, change: object, message: str) -> None:
    dataset = dx()
    change(dataset)  # type: ignore[operator]
    path = tmp_path / "a.dcm"
    raw = to_bytes(dataset) if dataset.SOPClassUID else b"\0" * 128 + b"DICM" + b"\x08\x00\x60\x00CS\x02\x00DX"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_frame_by_sidecar(tmp_path: Path) -> None:
    """Frames of a rotating C-arm: the increment moves the angle."""
    other = intensity(picture(1500 * L, -300 * L, A, F))
    stored = np.concatenate([intensity(TRUTH), other])
    dataset = base(
        "XA", stored, NumberOfFrames=2, PositionerPrimaryAngle=180, PositionerPrimaryAngleIncrement=[0, 90],
        DistanceSourceToPatient=1500, DistanceSourceToDetector=1800, ImagerPixelSpacing=[4, 3],
        PatientOrientation=["A", "F"],
    )  # fmt: skip
    dataset.Rows = 96
    path = save(tmp_path / "a.dcm", dataset)
    (tmp_path / "a.json").write_text('{"frame": 2}')
    radiograph = read(path)
    assert radiograph.metadata.angle_deg.value == pytest.approx(180)
    assert float(np.abs(radiograph.line_integrals.numpy()[:, ::-1] - picture(1500 * L, -300 * L, A, F)).max()) < 0.02
    (tmp_path / "a.json").write_text('{"frame": 3}')
    with pytest.raises(ValueError, match="frame 3 is asked for, there are 2"):
        read(path)


@pytest.mark.parametrize("hidden", ["split marker", "fill byte"])
def test_a_code_stream_does_not_hide_its_size(tmp_path: Path, hidden: str) -> None:
    """Fragments are put together, and fill bytes skipped, before the size is read, as decoders do."""
    frame_header = b"\xff\xc0\x00\x0b\x08" + (12000).to_bytes(2, "big") * 2 + b"\x01\x01\x11\x00"
    fragments = {
        "split marker": [b"\xff\xd8", frame_header + b"\xff\xd9"],
        "fill byte": [b"\xff\xd8\xff" + frame_header + b"\xff\xd9"],
    }[hidden]
    file = pydicom.dcmread(save(tmp_path / "a.dcm", dx()))
    file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    items = [fragment + b"\x00" * (len(fragment) % 2) for fragment in fragments]
    file.PixelData = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" + b"".join(
        b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item for item in items
    )
    file["PixelData"].VR, file["PixelData"].is_undefined_length = "OB", True
    file.save_as(tmp_path / "b.dcm")
    with pytest.raises(ValueError, match="a code stream of 12000 x 12000 pixels"):
        read(tmp_path / "b.dcm")
