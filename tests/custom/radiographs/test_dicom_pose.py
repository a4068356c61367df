"""The heart lands where the geometry of the read view says, for headers written after the standard's text."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hand_written_dicom import A, F, H, L, P, R, base, dx, intensity, picture, save, without

from custom.radiographs import MissingMetadata, read_radiographs
from tests.custom.radiographs.seen_heart import check, read


@pytest.mark.parametrize(
    ("position", "stored", "angle", "flips"),
    [
        ("AP", "L\\F", 90, "none"),
        ("AP", "R\\F", 90, "columns reversed"),
        ("PA", "R\\F", 270, "none"),
        ("PA", "L\\F", 270, "columns reversed"),
        ("PA", "R\\H", 270, "rows reversed"),
        ("LL", "A\\F", 0, "none"),
        ("LL", "P\\F", 0, "columns reversed"),
        ("RL", "P\\F", 180, "none"),
        ("RL", "A\\F", 180, "columns reversed"),
        ("AP", "F\\L", 90, "transposed"),
        ("PA", "H\\L", 270, "transposed, columns reversed, rows reversed"),
    ],
)
def test_dx(tmp_path: Path, position: str, stored: str, angle: float, flips: str) -> None:
    radiograph = read(save(tmp_path / "a.dcm", dx(stored, position)))
    check(radiograph)
    assert radiograph.metadata.angle_deg.value == angle
    assert radiograph.metadata.flips.value == flips
    assert radiograph.metadata.orientation.provenance == "DICOM (0020,0020)"
    assert radiograph.metadata.source_to_detector_mm.provenance == "DICOM (0018,1110)"
    assert radiograph.warnings == ()
    assert radiograph.modality == "DX"
    assert "PixelData" not in radiograph.header


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"DistanceSourceToDetector": 180, "DistanceSourceToPatient": 150}, "a picture of 384 mm at 180 mm"),
        ({"DistanceSourceToDetector": 180}, "a picture of 384 mm at 180 mm from the source"),
        (
            {"EstimatedRadiographicMagnificationFactor": "", "DistanceSourceToPatient": 150},
            "distances that magnify the patient 12 times",
        ),
        ({"EstimatedRadiographicMagnificationFactor": 120}, "distances that magnify the patient 120 times"),
        ({"ImagerPixelSpacing": ["0.4", "0.3"]}, "a picture of 38.4 mm, which shows no body"),
        ({"ImagerPixelSpacing": ["0.004", "0.003"]}, "a picture of 0.384 mm, which shows no body"),
        ({"ImagerPixelSpacing": [40, 30]}, "a picture of 3.84e.03 mm, which shows no body"),
        ({"ImagerPixelSpacing": ["4", "0.3"]}, "pixels of 4 x 0.3 mm, far from square"),
    ],
)
def test_lengths_that_exclude_each_other(tmp_path: Path, attributes: dict, says: str) -> None:
    """Centimetres, metres and percents where the standard says millimetres and ratios."""
    path = save(tmp_path / "a.dcm", dx(**attributes))
    with pytest.raises(MissingMetadata, match=rf"a\.dcm: lengths that cannot be: {says}.*in cm.*in mm into a\.json"):
        read(path)
    answer = {"source_to_detector_mm": 1800, "source_to_isocenter_mm": 1500, "pixel_mm": [4, 3]}
    (tmp_path / "a.json").write_text(json.dumps(answer))
    check(read(path))


def test_heart_on_the_left_of_every_frontal_picture(tmp_path: Path) -> None:
    """As seen from the source, a heart on the left is at the right of an AP and at the left of a PA picture."""
    for position, right in (("AP", True), ("PA", False)):
        found = read(save(tmp_path / f"{position}.dcm", dx("L\\F", position))).line_integrals
        column = int(found.flatten().argmax()) % found.shape[1]
        assert (column > found.shape[1] / 2) == right


@pytest.mark.parametrize(
    ("primary", "secondary", "side", "elevation"),
    [(0, 0, "PA", 0), (90, 0, "lateral from the right", 0), (-30, 0, "RAO", 0), (45, 20, "LAO cranial", -20)],
)
def test_xa(tmp_path: Path, primary: float, secondary: float, side: str, elevation: float) -> None:
    """PS3.3 C.8.7.5.1.2: the intensifier faces the chest at 0, is at the patient's left at 90, cranial positive."""
    p, s = math.radians(primary), math.radians(secondary)
    toward_detector = math.cos(s) * (math.sin(p) * L + math.cos(p) * A) + math.sin(s) * H
    # Shown as one looks at the patient from the detector: for a PA beam the patient's left at the right.
    columns = math.cos(p) * L + math.sin(p) * P
    rows = np.cross(columns, toward_detector)
    assert rows[2] < 0
    letters = "L" if abs(primary) < 45 else "P" if primary == 90 else "LP"
    stored = intensity(picture(-720 * toward_detector, 380 * toward_detector, columns, rows, (2.5, 3.5), (120, 100)))
    dataset = base(
        "XA", stored, PositionerPrimaryAngle=primary, PositionerSecondaryAngle=secondary, DistanceSourceToPatient=720,
        DistanceSourceToDetector=1100, ImagerPixelSpacing=[2.5, 3.5], PatientOrientation=[letters, "F"],
    )  # fmt: skip
    radiograph = read(save(tmp_path / "xa.dcm", dataset))
    check(radiograph)
    assert radiograph.metadata.elevation_deg.value == elevation
    assert radiograph.metadata.angle_deg.value == pytest.approx((primary - 90) % 360), side


def test_magnification_before_table_distance(tmp_path: Path) -> None:
    """In DX, (0018,1111) is measured to the table or bucky; the factor is the ratio at the object."""
    path = save(tmp_path / "a.dcm", dx(DistanceSourceToPatient=1700))
    radiograph = read(path)
    check(radiograph)
    assert radiograph.metadata.source_to_isocenter_mm.value == pytest.approx(1500)
    assert "1700" in radiograph.warnings[0]
    path = save(tmp_path / "b.dcm", without(dx(), "EstimatedRadiographicMagnificationFactor"))
    radiograph = read(path)
    check(radiograph)
    assert "table or bucky" in radiograph.warnings[0]


def test_pixel_spacing_after_imager_pixel_spacing(tmp_path: Path) -> None:
    radiograph = read(save(tmp_path / "a.dcm", dx(PixelSpacing=[4 / 1.2, 3 / 1.2])))
    check(radiograph)
    assert radiograph.warnings == ()
    radiograph = read(save(tmp_path / "b.dcm", dx(PixelSpacing=[2, 1.5])))
    check(radiograph)
    assert "magnification of 2.000" in radiograph.warnings[0]


def test_pixel_spacing_alone(tmp_path: Path) -> None:
    plain = without(dx(PixelSpacing=[4, 3]), "ImagerPixelSpacing")
    path = save(tmp_path / "a.dcm", plain)
    with pytest.raises(
        MissingMetadata, match=r"does not say at which depth.*--accept pixel-spacing-at-detector"
    ) as caught:
        read(path)
    assert len(caught.value.questions) == 1
    check(read(path, accept=["pixel-spacing-at-detector"]))
    patient = without(dx(PixelSpacing=[4 / 1.2, 3 / 1.2]), "ImagerPixelSpacing")
    check(read(save(tmp_path / "b.dcm", patient), accept="pixel-spacing-at-isocenter"))
    patient.PixelSpacingCalibrationType = "GEOMETRY"
    radiograph = read(save(tmp_path / "c.dcm", patient))
    check(radiograph)
    assert radiograph.metadata.pixel_mm.provenance == "DICOM (0028,0030), (0018,1114)"


def test_offset_within_the_active_area(tmp_path: Path) -> None:
    """A picture 30 mm to the right of and 20 mm below the middle of the active area, in a detector of 2 x 2 mm."""
    for flip, rotation in (("NO", 0), ("YES", 0), ("NO", 180)):
        # Physical detector: seen from the source, as stored when nothing is turned.
        stored = picture(1500 * A, -300 * A + 30 * L + 20 * F, L, F)
        if flip == "YES":
            stored = stored[:, ::-1]
        if rotation == 180:
            stored = stored[::-1, ::-1]
        sides = {"NO0": ["L", "F"], "YES0": ["R", "F"], "NO180": ["R", "H"]}[f"{flip}{rotation}"]
        size = (96 * 4 + 60, 120 * 3 + 100)
        origin = [10 + (size[0] / 2 + 20 - 96 * 2) / 2, 14 + (size[1] / 2 + 30 - 120 * 1.5) / 2]
        dataset = dx(
            DetectorActiveDimensions=list(size), DetectorActiveOrigin=[10, 14], DetectorElementSpacing=[2, 2],
            FieldOfViewOrigin=origin, FieldOfViewRotation=rotation, FieldOfViewHorizontalFlip=flip,
            PatientOrientation=sides,
        )  # fmt: skip
        dataset.PixelData = intensity(stored).astype("<u2").tobytes()
        radiograph = read(save(tmp_path / "a.dcm", dataset))
        check(radiograph)
        assert radiograph.metadata.detector_offset_mm.value == pytest.approx((30, -20))
        assert bool(radiograph.field_mask.all())


def test_outside_the_active_area_is_not_exposed(tmp_path: Path) -> None:
    dataset = dx(
        DetectorActiveDimensions=[96 * 4 - 40, 360], DetectorActiveOrigin=[0, 0], DetectorElementSpacing=[4, 3],
        FieldOfViewOrigin=[-5, 0],
    )  # fmt: skip
    field_mask = read(save(tmp_path / "a.dcm", dataset)).field_mask
    assert not field_mask[:5].any()
    assert not field_mask[-5:].any()
    assert field_mask[5:-5].all()


def test_tilted_detector(tmp_path: Path) -> None:
    """PS3.3 C.8.7.5.1.4: beam tilted to higher columns (primary) or to lower rows (secondary) is positive."""
    for primary, secondary in ((15.0, 0.0), (0.0, 12.0)):
        b_columns, b_rows = math.tan(math.radians(primary)), -math.tan(math.radians(secondary))
        normal = P - b_columns * L - b_rows * F
        normal /= np.linalg.norm(normal)
        columns = L - (L @ normal) * normal
        columns /= np.linalg.norm(columns)
        rows = np.cross(normal, columns)
        assert P @ columns == pytest.approx(b_columns * (P @ normal))
        dataset = dx(DetectorPrimaryAngle=primary, DetectorSecondaryAngle=secondary)
        dataset.PixelData = intensity(picture(1500 * A, -300 * A, columns, rows)).astype("<u2").tobytes()
        radiograph = read(save(tmp_path / "a.dcm", dataset))
        check(radiograph)
        assert radiograph.metadata.detector_angles_deg.value == pytest.approx((primary, secondary))
    with pytest.raises(MissingMetadata, match=r"Column Angulation \(0018,1450\) is 10 degrees"):
        read(save(tmp_path / "b.dcm", dx(ColumnAngulation=10)))


def test_views_by_code(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "399173006", "SCT", "left lateral"
    radiograph = read(save(tmp_path / "a.dcm", dx("A\\F", "LL", ViewPosition=None, ViewCodeSequence=[item])))
    check(radiograph)
    assert radiograph.metadata.view_position.provenance == "DICOM (0054,0220)"


def test_view_position_against_view_code(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "272479007", "SCT", "postero-anterior"
    path = save(tmp_path / "a.dcm", dx(ViewCodeSequence=[item]))
    with pytest.raises(MissingMetadata, match=r"AP by DICOM \(0018,5101\), but PA by DICOM \(0054,0220\)") as caught:
        read(path)
    assert len(caught.value.questions) == 1
    (tmp_path / "a.json").write_text('{"view_position": "AP"}')
    radiograph = read(path)
    check(radiograph)
    assert any("PA by DICOM" in w for w in radiograph.warnings)


def test_angles_differ_by_degrees_not_by_a_share(tmp_path: Path) -> None:
    """170 degrees are not 90, and 359.9 are 0.1."""
    dataset = dx(ViewPosition=None, PositionerType="CARM", PositionerPrimaryAngle=-100)
    (tmp_path / "a.json").write_text('{"angle_deg": 120}')
    assert any("120.0" in w and "170.0" in w for w in read(save(tmp_path / "a.dcm", dataset)).warnings)
    (tmp_path / "a.json").write_text('{"angle_deg": 359.9}')
    lateral = dx("A\\F", "LL", ViewPosition=None, PositionerType="CARM", PositionerPrimaryAngle=90.1)
    assert read(save(tmp_path / "a.dcm", lateral)).warnings == ()


def test_examples_of_distances_can_be_copied(tmp_path: Path) -> None:
    keys = ("DistanceSourceToDetector", "DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor")
    for missing in (keys, keys[:1], keys[1:]):
        path = save(tmp_path / "a.dcm", without(dx(), *missing))
        with pytest.raises(MissingMetadata) as caught:
            read(path)
        examples = ", ".join(re.findall(r'"source_to_\w+": \d+', str(caught.value)))
        (tmp_path / "a.json").write_text(f"{{{examples}}}")
        assert read(path).metadata.magnification.value > 1
        (tmp_path / "a.json").unlink()


def test_conflicts_and_gaps(tmp_path: Path) -> None:
    """Every missing thing of every file, once, in one line, with its remedy."""
    lateral = save(tmp_path / "lateral.dcm", dx("A\\F", "LL", PatientOrientation=None, DistanceSourceToPatient=None,
                                                EstimatedRadiographicMagnificationFactor=None))  # fmt: skip
    frontal = save(tmp_path / "frontal.dcm", dx(ViewPosition=None, DistanceSourceToDetector=None,
                                                ImagerPixelSpacing=None, PatientOrientation=None))  # fmt: skip
    with pytest.raises(MissingMetadata) as caught:
        read_radiographs([frontal, lateral])
    message = str(caught.value)
    assert "\n" not in message
    for text in (
        "frontal.dcm: the distance from source to detector", "frontal.dcm: the size of its pixels",
        "frontal.dcm: from where it was taken", "lateral.dcm: the distance from source to the middle of the patient",
        "lateral.dcm: which way round it is stored", '"orientation": "A/F"', "--accept default-distances",
        "write \"source_to_isocenter_mm\": 1000 into lateral.json", "--accept seen-from-source",
    ):  # fmt: skip
        assert text in message
    assert "as-displayed" not in message
    check(read(lateral, accept=["seen-from-source", "default-distances"]), tolerance=9)
    (tmp_path / "lateral.json").write_text('{"orientation": "A/F", "source_to_isocenter_mm": 1500}')
    radiograph = read(lateral)
    check(radiograph)
    assert radiograph.metadata.orientation.provenance == "sidecar lateral.json"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"PatientOrientation": ["A", "F"]}, r"Patient Orientation A\\F .* cannot be seen from 90 degrees"),
        ({"PatientOrientation": ["L", "R"]}, "cannot be seen"),
        ({"PositionerType": "CARM", "PositionerPrimaryAngle": 0}, "two views that exclude each other: AP"),
        ({"DistanceSourceToPatient": 1900, "EstimatedRadiographicMagnificationFactor": None}, "distances that cannot"),
        ({"ViewPosition": "LAT"}, "View Position"),
    ],
)
def test_what_cannot_be(tmp_path: Path, attributes: dict[str, object], message: str) -> None:
    with pytest.raises(MissingMetadata, match=message):
        read(save(tmp_path / "a.dcm", dx(**attributes)))


def test_wall_stand_positioner_angle_is_not_used(tmp_path: Path) -> None:
    """Such devices write 0 whatever the view; only a C-arm's angle has the meaning of C.8.7.5."""
    check(read(save(tmp_path / "a.dcm", dx("A\\F", "LL", PositionerType="COLUMN", PositionerPrimaryAngle=0))))


def test_sidecar_before_dicom(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", dx(DistanceSourceToDetector=1700))
    (tmp_path / "a.json").write_text('{"source_to_detector_mm": 1800, "source_to_isocenter_mm": 1500}')
    radiograph = read(path)
    check(radiograph)
    assert radiograph.metadata.source_to_detector_mm.provenance == "sidecar a.json"
    assert any("1800" in w and "1700" in w for w in radiograph.warnings)


def test_hung_as_displayed(tmp_path: Path) -> None:
    for position in ("AP", "PA"):
        path = save(tmp_path / f"{position}.dcm", dx("L\\F", position, PatientOrientation=None))
        check(read(path, accept=["as-displayed"]))
    path = save(tmp_path / "b.dcm", dx("P\\F", "LL", PatientOrientation=None))
    check(read(path, accept=["as-displayed", "seen-from-detector"]))


def test_directions_of_the_test_itself() -> None:
    """The letters used above form RAS+: right, anterior and head are right-handed."""
    assert np.array_equal(np.cross(R, A), H)
