"""What the files of docs/reference/real-collections.md had and was answered wrongly or unclearly, as small files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hand_written_dicom import CLASSES, A, F, L, base, dx, intensity, picture, save, without
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from custom.radiographs import MissingMetadata, exposure, read_radiographs
from custom.radiographs.discovery import MOST_FILES
from custom.radiographs.exposure import round_field
from tests.custom.radiographs.seen_heart import read

TRUTH = picture(1500 * A, -300 * A, L, F)
Y, X = np.meshgrid(np.linspace(-1, 1, 96), np.linspace(-1, 1, 120), indexing="ij")
#: Fields of image intensifiers: round, eight-sided, and cut by a blade below.
FIELDS = {
    "round": X**2 + Y**2 <= 1,
    "eight-sided": np.abs(X) + np.abs(Y) <= 1.5,
    "cut below": (X**2 + Y**2 <= 1) & (Y < 0.85),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", ["XA", "RF"])
@pytest.mark.parametrize("corner", [0, 3])
def test_corners_of_a_round_field_are_no_air(tmp_path: Path, field: str, kind: str, corner: int) -> None:
    """They were taken for air that is stored dark, and the opposite sign was proposed: "the picture shows it"."""
    inside = FIELDS[field]
    dataset = base(kind, np.where(inside, intensity(TRUTH), corner), ImagerPixelSpacing=[4, 3],
                   PositionerPrimaryAngle=180, PositionerSecondaryAngle=0, DistanceSourceToPatient=1500,
                   DistanceSourceToDetector=1800, PatientOrientation=["L", "F"], ViewPosition="AP")  # fmt: skip
    found = read(save(tmp_path / "a.dcm", without(dataset, "PixelIntensityRelationshipSign")))
    mask = found.field_mask.numpy()
    assert not mask[~inside].any()
    assert mask[inside].mean() > 0.9
    assert np.abs(found.line_integrals.numpy() - TRUTH)[mask].max() < 0.01
    assert found.metadata.exposed_field is not None
    assert "a round field" in found.metadata.exposed_field.provenance
    assert not any("no X-ray intensity" in one or "denser" in one for one in found.warnings)


SHOULDERS = (Y > -0.4) | (np.abs(X) < 0.2)
BODIES = {
    "a limb": np.abs(X) < 0.4,
    "a disc within the picture": X**2 + Y**2 < 0.5,
    "a chest": SHOULDERS & ((np.abs(X) < 0.75) | (np.abs(Y) < 0.4)),
    "a chest at one side": (X < 0.6) & SHOULDERS,
    "nothing": np.zeros_like(X, bool),
    "all": np.ones_like(X, bool),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("air", [0.0, 4095.0])
def test_saturated_air_is_no_round_field(body: str, air: float) -> None:
    values = np.where(BODIES[body], 1000 + 300 * np.cos(9 * X), air).astype(np.float32)
    assert round_field(values, np.ones_like(X, bool), 1 if air else -1).all()


def test_a_round_field_of_a_large_picture() -> None:
    y, x = np.meshgrid(np.linspace(-1, 1, 1031), np.linspace(-1, 1, 1023), indexing="ij")
    inside = x**2 + y**2 <= 1
    values = np.where(inside, 1000 + 300 * np.cos(9 * x), 0).astype(np.float32)
    found = round_field(values, np.ones_like(inside), 1)
    assert found[~inside].mean() < 0.01
    assert found[inside].mean() > 0.95


def _item(meaning: str) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "T-1", "SRT", meaning
    return Sequence([item])


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"BodyPartExamined": "EXTREMITY"}, "Anatomic Region: EXTREMITY"),
        ({"BodyPartExamined": "", "AnatomicRegionSequence": _item("Hand")}, "Anatomic Region: HAND"),
        ({"BodyPartExamined": "CHEST", "AnatomicRegionSequence": _item("Hand")}, ""),
        ({"BodyPartExamined": "TORAX PA"}, ""),
        ({"AnatomicRegionSequence": _item("Chest")}, ""),
        ({"PatientSpeciesDescription": "Feline"}, "an animal by Patient Species (0010,2201): FELINE"),
        ({"PatientSpeciesCodeSequence": _item("Canis lupus familiaris")}, "CANIS LUPUS FAMILIARIS"),
        ({"PatientSpeciesDescription": "Homo sapiens"}, ""),
    ],
)
def test_another_part_of_the_body_is_said(tmp_path: Path, attributes: dict, said: str) -> None:
    warnings = " ".join(read(save(tmp_path / "a.dcm", dx(**attributes))).warnings)
    assert said in warnings
    assert bool(said) == ("it shows an" in warnings)


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing"])
def test_pixels_of_no_size_are_named_where_their_size_is_asked_for(tmp_path: Path, keyword: str) -> None:
    dataset = without(dx(), "ImagerPixelSpacing")
    setattr(dataset, keyword, ["0.000", "0.000"])
    with pytest.raises(
        MissingMetadata, match=r"no usable Imager Pixel .*\(0\.0, 0\.0\) by DICOM \(00(28|18),.* cannot"
    ):
        read(save(tmp_path / "a.dcm", dataset))


@pytest.mark.parametrize(
    ("sop_class", "said"),
    [
        ("1.2.840.10008.5.1.4.1.1.1.2", "a breast, and a chest cannot"),
        ("1.2.840.10008.5.1.4.1.1.1.2.1", "a breast, and a chest cannot"),
        ("1.2.840.10008.5.1.4.1.1.1.3", "teeth, and"),
        ("1.2.840.10008.5.1.4.1.1.12.1.1", "store one frame as XA or RF"),
        ("1.2.840.10008.5.1.4.1.1.12.2.1", "store one frame as XA or RF"),
        ("1.2.840.10008.5.1.4.1.1.13.1.3", "a volume already"),  # breast tomosynthesis
        ("1.2.840.10008.5.1.4.1.1.7", "export it as 16-bit PNG"),
        ("1.2.840.10008.5.1.4.1.1.7.3", "export it as 16-bit PNG"),
        ("1.2.840.10008.5.1.4.1.1.2", "a CT already"),
        ("1.2.840.10008.5.1.4.1.1.2.1", "a CT already"),
        ("1.2.840.10008.5.1.4.1.1.4", ""),
        ("1.2.840.10008.5.1.4.1.1.6.1", ""),
    ],
)
def test_other_objects_have_their_own_advice(tmp_path: Path, sop_class: str, said: str) -> None:
    """A CT slice or an ultrasound as PNG, as once was advised, would be read as a radiograph."""
    path = save(tmp_path / "a.dcm", dx(SOPClassUID=sop_class))
    with pytest.raises(ValueError, match=r"a\.dcm: a DICOM .*, not a radiograph.*: DX, CR, XA, RF and") as error:
        read_radiographs([path])
    assert said in str(error.value)
    assert ("PNG" in str(error.value)) is ("PNG" in said)
    assert bool(said) == ("(" in str(error.value))


def test_grey_in_three_colours_is_to_be_saved_as_grey(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "film.tif")
    with pytest.raises(ValueError, match=r"film\.tif: .*mode RGB; .*save it as greyscale"):
        read_radiographs([tmp_path / "film.tif"])


def test_one_frame_of_a_run_is_chosen(tmp_path: Path) -> None:
    """As in the angiography of the collections: the question names the file to write, and the answer is enough."""
    dataset = base("XA", np.concatenate([intensity(TRUTH)] * 2), ImagerPixelSpacing=[4, 3], PositionerPrimaryAngle=180,
                   PositionerSecondaryAngle=0, DistanceSourceToPatient=1500, DistanceSourceToDetector=1800,
                   PatientOrientation=["L", "F"], Rows=96, NumberOfFrames=2)  # fmt: skip
    path = save(tmp_path / "a.dcm", dataset)
    assert dataset.SOPClassUID == CLASSES["XA"]
    with pytest.raises(ValueError, match=r'2 frames; choose one: write "frame": 1 \(to 2\) into a\.json'):
        read(path)
    (tmp_path / "a.json").write_text(json.dumps({"frame": 2}))
    assert np.abs(read(path).line_integrals.numpy() - TRUTH).max() < 0.01


def test_other_patients_and_days_are_asked_about_in_the_first_round(tmp_path: Path) -> None:
    """Before: all sizes of all files were asked for, answered, and only then whose they are."""
    for k, name in enumerate(("Ann", "Ann", "Bob")):
        facts = {"PatientName": name, "PatientID": name, "StudyDate": f"2026{k + 1:02d}01"}
        save(tmp_path / f"{k}.dcm", without(dx(**facts), "DistanceSourceToDetector"))
    with pytest.raises(MissingMetadata) as error:
        read_radiographs([tmp_path])
    asked = [(one.file, one.problem[:11]) for one in error.value.questions]
    assert asked[:3] == [("2.dcm", "whose it is"), ("1.dcm", "whether the"), ("2.dcm", "whether the")]
    assert {one.file for one in error.value.questions if "to detector" in one.problem} == {"0.dcm", "1.dcm", "2.dcm"}


def test_one_question_about_many_files_is_written_once(tmp_path: Path) -> None:
    for k in range(5):
        save(tmp_path / f"{k}.dcm", without(dx(InstanceNumber=k), "DistanceSourceToDetector"))
    with pytest.raises(MissingMetadata) as error:
        read_radiographs([tmp_path])
    assert len([one for one in error.value.questions if "to detector" in one.problem]) == 5
    said = str(error.value)
    assert said.count("the distance from source to detector") == 1
    assert "0.dcm, 1.dcm and 3 more: the distance from source to detector" in said
    assert "into 0.json, 1.json and 3 more or the file of --geometry" in said
    assert "\n" not in said


def test_a_disc_with_a_viewer_is_searched(tmp_path: Path) -> None:
    """A patient's CD holds a few radiographs and hundreds of files of a viewer."""
    (tmp_path / "VIEWER").mkdir()
    for k in range(MOST_FILES + 1):
        (tmp_path / "VIEWER" / f"{k}.dll").write_bytes(b"MZ" + bytes(200))
    save(tmp_path / "IM0001", dx())
    assert [one.name for one in read_radiographs([tmp_path])] == ["IM0001"]
    for k in range(MOST_FILES):
        (tmp_path / "VIEWER" / f"{k}.dcm").write_bytes(b"any")
    with pytest.raises(ValueError, match="513 pictures are more than a patient has radiographs; name them"):
        read_radiographs([tmp_path])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 900), (900, 1), (2, 3), (3, 900), (900, 9), (64, 2), (15, 600), (40, 12)]
)
@pytest.mark.parametrize("linear", [True, False])
def test_narrow_pictures_are_looked_at_too(shape: tuple[int, int], linear: bool) -> None:
    """A strip, as of a damaged file, is narrower than what one block of a large picture shows."""
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    values[:, : shape[1] // 3] = 1.5  # air that touches the border
    for field in (np.ones(shape, bool), np.zeros(shape, bool)):
        sign = exposure.seen_sign(values, field, linear)
        assert sign in (-1, 0, 1)
        assert exposure.round_field(values, field, sign or 1).shape == shape
        assert exposure.dark_borders(values, field).shape == shape
        air = exposure.find_air(values, field)
        assert air is None or 0 < air.share <= 1
        assert exposure.looks_inverted(values, field) in (True, False)
