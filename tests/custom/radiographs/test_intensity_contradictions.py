"""What files say about intensity: contradictions are asked about, what the object type defines is not."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hand_written_dicom import CLASSES, A, F, L, base, dx, intensity, picture, save, to_bytes, without
from pydicom.dataset import Dataset

from custom.radiographs import MissingMetadata, Radiograph
from tests.custom.radiographs.seen_heart import read

TRUTH = picture(1500 * A, -300 * A, L, F)
LOG_SCALE = 4000.0


def correlation(radiograph: Radiograph) -> float:
    return float(np.corrcoef(radiograph.line_integrals.numpy().ravel(), TRUTH.ravel())[0, 1])


def mean_error(radiograph: Radiograph) -> float:
    return float(np.abs(radiograph.line_integrals.numpy() - TRUTH).mean())


def viewing(rising: bool, **attributes: object) -> Dataset:
    """A logarithm FOR PRESENTATION, whose values rise or fall with the X-ray intensity."""
    stored = np.rint((32000 - LOG_SCALE * TRUTH) if rising else LOG_SCALE * TRUTH + 2000)
    dataset = dx(SOPClassUID=CLASSES["DX presentation"], PresentationIntentType="FOR PRESENTATION",
                 PixelIntensityRelationship="LOG", **attributes)  # fmt: skip
    dataset.PixelData = stored.astype("<u2").tobytes()
    return dataset


def xa(kind: str = "XA", stored: np.ndarray | None = None, **attributes: object) -> Dataset:
    written = {
        "PositionerPrimaryAngle": 180, "PositionerSecondaryAngle": 0, "DistanceSourceToPatient": 1500,
        "DistanceSourceToDetector": 1800, "ImagerPixelSpacing": [4, 3], "PatientOrientation": ["L", "F"],
    }  # fmt: skip
    if kind == "RF":
        written["ViewPosition"] = "AP"
    dataset = base(kind, intensity(TRUTH) if stored is None else stored, **{**written, **attributes})
    return without(dataset, "PixelIntensityRelationshipSign")


@pytest.mark.parametrize("kind", ["XA", "RF"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_fluoroscopy_needs_no_sign(tmp_path: Path, kind: str, photometric: str) -> None:
    """C.8.7.1.1.2: LIN is proportional to the X-ray intensity, however it is shown."""
    path = save(tmp_path / "a.dcm", xa(kind, PhotometricInterpretation=photometric))
    assert mean_error(read(path)) < 0.01
    assert mean_error(read(path, accept="for-presentation")) < 0.01
    logarithm = xa(kind, np.rint(40000 - LOG_SCALE * TRUTH), PixelIntensityRelationship="LOG")
    (tmp_path / "a.json").write_text(f'{{"log_scale": {LOG_SCALE}}}')
    assert mean_error(read(save(path, logarithm))) < 0.01


@pytest.mark.parametrize(("photometric", "rising"), [("MONOCHROME1", False), ("MONOCHROME2", True)])
def test_no_option_reads_fluoroscopy_inverted(tmp_path: Path, photometric: str, rising: bool) -> None:
    """Without a usable relationship the display decides, and fluoroscopy shows bones dark."""
    stored = np.rint(40000 - LOG_SCALE * TRUTH if rising else 2000 + LOG_SCALE * TRUTH)
    dataset = xa("XA", stored, PhotometricInterpretation=photometric, PixelIntensityRelationship="DISP")
    radiograph = read(save(tmp_path / "a.dcm", dataset), accept=["for-presentation", "log-range"])
    assert correlation(radiograph) > 0.999


def test_an_option_that_would_invert_is_not_offered(tmp_path: Path) -> None:
    """Bones dark in a picture that says that it is for viewing: the picture knows better than the option."""
    dataset = without(viewing(True), "PixelIntensityRelationshipSign")
    path = save(tmp_path / "a.dcm", dataset)
    for accept in ((), ("for-presentation", "log-range")):
        with pytest.raises(MissingMetadata, match=r'"intensity_sign": 1 \(the picture shows it') as caught:
            read(path, accept=accept)
        (sign,) = [one for one in caught.value.questions if one.keys == ("intensity_sign",)]
        assert sign.accept == ()
    (tmp_path / "a.json").write_text('{"intensity_sign": 1}')
    assert correlation(read(path, accept=("for-presentation", "log-range"))) > 0.999


def test_a_sign_against_the_display_is_asked_about(tmp_path: Path) -> None:
    """High values are the beam, MONOCHROME1 shows them dark and bones bright, but the sign says -1."""
    lies = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    path = save(tmp_path / "a.dcm", viewing(True, PixelIntensityRelationshipSign=-1, **lies))
    with pytest.raises(
        MissingMetadata, match=r"intensity_sign -1 by DICOM \(0028,1041\), but .* MONOCHROME1"
    ) as caught:
        read(path)
    (sign,) = [one for one in caught.value.questions if one.keys == ("intensity_sign",)]
    assert sign.example.startswith('"intensity_sign": 1 (the picture shows it')
    assert sign.accept == ("for-presentation",)
    radiograph = read(path, accept=["for-presentation", "log-range"])
    assert correlation(radiograph) > 0.999
    assert radiograph.metadata.intensity_sign.provenance.startswith("option --accept for-presentation")
    assert any("the latter is used" in w for w in radiograph.warnings)


def test_display_attributes_that_exclude_each_other(tmp_path: Path) -> None:
    """DX Image (C.8.11.3): INVERSE belongs to MONOCHROME1, IDENTITY to MONOCHROME2."""
    dataset = without(viewing(False, PresentationLUTShape="INVERSE"), "PixelIntensityRelationshipSign")
    path = save(tmp_path / "a.dcm", dataset)
    with pytest.raises(MissingMetadata, match=r'MONOCHROME2 by .*, but INVERSE by .*"intensity_sign": -1 \(the pict'):
        read(path, accept=["for-presentation", "log-range"])
    (tmp_path / "a.json").write_text('{"intensity_sign": -1}')
    assert correlation(read(path, accept=["for-presentation", "log-range"])) > 0.999


def test_two_signs_of_one_file(tmp_path: Path) -> None:
    """A sign of -1 in XA contradicts what LIN means there."""
    path = save(tmp_path / "a.dcm", xa())
    assert read(path).metadata.intensity_sign.value == 1
    dataset = xa()
    dataset.PixelIntensityRelationshipSign = -1
    with pytest.raises(MissingMetadata, match=r'two signs that exclude.*"intensity_sign": 1 \(the picture shows it'):
        read(save(path, dataset))


@pytest.mark.parametrize("relationship", ["LIN", "LOG"])
def test_what_an_option_allowed_is_recorded(tmp_path: Path, relationship: str) -> None:
    """Also where it only lifts a refusal: the picture has relationship and sign."""
    dataset = viewing(False, PixelIntensityRelationshipSign=-1)
    accept = ["for-presentation", "log-range"]
    if relationship == "LIN":
        dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LIN", 1
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.PixelData, accept = intensity(TRUTH).astype("<u2").tobytes(), ["for-presentation"]
    radiograph = read(save(tmp_path / "a.dcm", dataset), accept=accept)
    assert radiograph.metadata.tone_curve.provenance == "option --accept for-presentation"
    assert read(save(tmp_path / "b.dcm", dx()), accept=accept).metadata.tone_curve is None


def test_an_intercept_contradicts_lin(tmp_path: Path) -> None:
    """C.8.11.3.1.2: LIN is about stored values."""
    path = save(tmp_path / "a.dcm", dx(RescaleSlope=1, RescaleIntercept=-20000))
    with pytest.raises(
        MissingMetadata, match=r'Rescale Intercept .* -20000; write "zero_intensity": -20000 .*% of the'
    ):
        read(path)
    (tmp_path / "a.json").write_text('{"zero_intensity": -20000}')
    radiograph = read(path)
    assert mean_error(radiograph) < 0.01
    assert radiograph.metadata.unattenuated.value == pytest.approx(30000, rel=2e-3)
    with pytest.raises(MissingMetadata, match=r'"zero_intensity": 500 .* or 0 \(values after rescale are prop'):
        read(save(tmp_path / "b.dcm", dx(RescaleSlope=1, RescaleIntercept=500)))
    signed = dx(RescaleSlope=1, RescaleIntercept=32768, PixelRepresentation=1)
    signed.PixelData = (intensity(TRUTH) - 32768).astype("<i2").tobytes()
    assert mean_error(read(save(tmp_path / "c.dcm", signed))) < 0.01


def test_linear_values_below_zero(tmp_path: Path) -> None:
    """Unsigned values that are called signed: the brightest are negative."""
    path = save(tmp_path / "a.dcm", dx(PixelRepresentation=1))
    with pytest.raises(MissingMetadata, match=r'% of them lie below 0; write "zero_intensity": -3.*the lowest value'):
        read(path)


@pytest.mark.parametrize("slope", [0.5, 1])
@pytest.mark.parametrize("kind", ["OD", "OD REL", "HU"])
def test_a_rescale_type_contradicts_lin(tmp_path: Path, kind: str, slope: float) -> None:
    path = save(tmp_path / "a.dcm", dx(RescaleSlope=slope, RescaleIntercept=0, RescaleType=kind))
    with pytest.raises(MissingMetadata, match=rf"LIN by DICOM \(0028,1040\), but Rescale Type is {kind} by"):
        read(path)
    (tmp_path / "a.json").write_text('{"intensity_relationship": "LIN"}')
    assert mean_error(read(path)) < 0.01


def test_portal_images_are_shown_either_way(tmp_path: Path) -> None:
    """No option says which: the picture or a sidecar does."""
    dataset = base(
        "RTIMAGE", intensity(TRUTH), GantryAngle=0, PatientPosition="HFS", RadiationMachineSAD=1500, RTImageSID=1800,
        ImagePlanePixelSpacing=[4, 3], RTImagePlane="NORMAL", ImageType=["ORIGINAL", "PRIMARY", "PORTAL"],
    )  # fmt: skip
    path = save(tmp_path / "a.dcm", without(dataset, "PixelIntensityRelationshipSign"))
    with pytest.raises(MissingMetadata, match=r'"intensity_sign": 1 \(the picture shows it') as caught:
        read(path, accept="for-presentation")
    assert caught.value.questions[0].accept == ()


def test_falling_values_far_from_the_end_of_the_range(tmp_path: Path) -> None:
    """12 bits in 16: that no X-rays are 65535 is no usual value then."""
    dataset = dx(PixelIntensityRelationshipSign=-1)
    dataset.PixelData = (4095 - intensity(TRUTH, 3500)).astype("<u2").tobytes()
    path = save(tmp_path / "a.dcm", dataset)
    with pytest.raises(MissingMetadata, match="where its intensity is zero: linear values that fall"):
        read(path)
    (tmp_path / "a.json").write_text('{"zero_intensity": 4095}')
    assert mean_error(read(path)) < 0.02


@pytest.mark.parametrize("floor", [0, 40])
def test_the_dark_end_is_checked(tmp_path: Path, floor: int) -> None:
    """An underexposed detector: the denser part is one value. It is not read as denser than it can be."""
    stored = np.where(TRUTH > 1.2, floor, intensity(TRUTH, 3000.0))
    dataset = dx(BitsStored=12, HighBit=11)
    dataset.PixelData = stored.astype("<u2").tobytes()
    radiograph = read(save(tmp_path / "a.dcm", dataset))
    assert any("of the exposed pixels have" in w for w in radiograph.warnings)
    if not floor:
        assert float(radiograph.line_integrals.max()) == pytest.approx(1.2, abs=0.1)
    dataset.PixelData = intensity(TRUTH, 3000.0).astype("<u2").tobytes()
    assert read(save(tmp_path / "b.dcm", dataset)).warnings == ()


@pytest.mark.parametrize("accept", [(), ("brightest-as-air",)])
def test_the_bright_end_is_checked_in_fewer_bits(tmp_path: Path, accept: tuple[str, ...]) -> None:
    """A detector of 12 bits whose file claims 16."""
    dataset = dx()
    dataset.PixelData = np.minimum(intensity(TRUTH, 6000.0), 4095).astype("<u2").tobytes()
    assert any("saturated" in w for w in read(save(tmp_path / "a.dcm", dataset), accept=accept).warnings)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        (
            {"ImagerPixelSpacing": [4.25, 3.25]},
            r"size of its pixels .*; 4,25\\3,25 by DICOM \(0018,1164\) cannot be read; write",
        ),
        ({"DistanceSourceToDetector": 1234.5}, r"source to detector: .*; 1234,5 by DICOM \(0018,1110\) cannot be read"),
        ({"PatientOrientation": "L F"}, r"Patient Orientation \(0020,0020\) is 'L F', which cannot be read"),
        ({"ViewPosition": "OBLIQUE"}, r"View Position \(0018,5101\) is 'OBLIQUE', which names no angle"),
        ({"PixelIntensityRelationshipSign": 2}, r"Sign \(0028,1041\) is 2.0, which is neither 1 nor -1"),
    ],
)
def test_unreadable_is_not_absent(tmp_path: Path, attributes: dict[str, object], said: str) -> None:
    raw = to_bytes(dx(**attributes))
    (tmp_path / "a.dcm").write_bytes(raw.replace(b"4.25\\3.25", b"4,25\\3,25").replace(b"1234.5", b"1234,5"))
    with pytest.raises(MissingMetadata) as caught:
        read(tmp_path / "a.dcm")
    assert re.search(said, str(caught.value)), str(caught.value)
    assert "absent" not in str(caught.value)


@pytest.mark.parametrize("linear", [True, False])
def test_dense_parts_at_the_border_are_no_air(linear: bool) -> None:
    """A narrow field on a body that fills it: nothing tells which end is the beam, in noise or without."""
    from custom.radiographs.exposure import seen_sign

    columns = np.linspace(-1, 1, 120)
    dense = 1.5 + 2.0 * np.abs(columns)[None, :] ** 3 + 0.3 * np.cos(np.linspace(0, 9, 160))[:, None]
    values = 3000 * np.exp(-dense) if linear else 900 * dense
    for noise in (0.0, 0.02):
        seen = values * (1 + noise * np.random.default_rng(1).standard_normal(values.shape))
        assert seen_sign(seen.astype(np.float32), np.ones(values.shape, bool), linear) == 0


@pytest.mark.parametrize(("linear", "sign"), [(True, 1), (False, 1), (False, -1)])
def test_noise_tells_a_straight_silhouette_from_blades(linear: bool, sign: int) -> None:
    """A box in air, and the same places behind blades: without noise each is the other one's negative."""
    from custom.radiographs.exposure import seen_sign

    box = np.zeros((160, 120))
    box[:, 25:95] = 2.0 + 0.3 * np.cos(np.linspace(0, 9, 70))
    field = np.ones_like(box)
    field[:, :25] = field[:, 95:] = 0.01
    body = np.exp(-2.0 - 0.3 * np.cos(np.linspace(0, 9, 120))) * field + 0.001

    def seen(intensity: np.ndarray, photons: float) -> int:
        counted = np.random.default_rng(1).poisson(photons * intensity) / photons if photons else intensity
        values = 4000 * counted if linear else 500 * np.log(np.maximum(counted, 1e-4))
        return seen_sign((sign * values).astype(np.float32), np.ones(box.shape, bool), linear)

    assert seen(np.exp(-box), 0) == 0
    assert seen(np.exp(-box), 5000) == sign
    assert seen(body, 5000) != -sign
