"""A geometry file for DICOM radiographs: what their tags say is compared with it, and decides how they are stored."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_written_dicom import A, F, L, P, R, dx, picture, save

from custom.dicom.write_dx import write_dx
from custom.geometry import Geometry, VolumeGrid
from custom.radiographs import MissingMetadata, Radiograph, read_radiographs

STORED = (96, 120)


def geometry(*angles: float, shape: tuple[int, int] = STORED, **keywords: object) -> Geometry:
    settings = {"source_to_isocenter_mm": 1500.0, "source_to_detector_mm": 1800.0, "pixel_mm": (4.0, 3.0), **keywords}
    return Geometry.from_angles(list(angles), detector_shape=shape, grid=VolumeGrid.cube(64, 200.0), **settings)  # type: ignore[arg-type]


def read(path: Path, described: Geometry) -> Radiograph:
    described.save(path.parent / "g.json")
    (radiograph,) = read_radiographs([path], geometry=path.parent / "g.json")
    return radiograph


@pytest.mark.parametrize(
    ("position", "stored", "angle", "flips"),
    [
        ("AP", "L\\F", 90, "none"),
        ("PA", "R\\F", 270, "none"),
        ("PA", "L\\F", 270, "columns reversed"),
        ("LL", "P\\F", 0, "columns reversed"),
        ("AP", "R\\H", 90, "columns reversed, rows reversed"),
        ("AP", "F\\L", 90, "transposed"),
    ],
)
def test_orientation_decides_the_flip(tmp_path: Path, position: str, stored: str, angle: float, flips: str) -> None:
    """The same picture and view as by the tags alone, without a warning."""
    path = save(tmp_path / "a.dcm", dx(stored, position))
    (expected,) = read_radiographs([path])
    transposed = flips == "transposed"
    described = geometry(angle, shape=STORED[::-1] if transposed else STORED, pixel_mm=(3, 4) if transposed else (4, 3))
    radiograph = read(path, described)
    assert radiograph.metadata.flips.value == flips
    assert torch.allclose(radiograph.view, expected.view, atol=1e-9)
    assert torch.equal(radiograph.line_integrals, expected.line_integrals)
    assert radiograph.warnings == ()


def test_without_orientation_it_is_seen_from_the_source(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", dx("R\\F", "PA", PatientOrientation=None))
    radiograph, (expected,) = read(path, geometry(270)), read_radiographs([path], accept="seen-from-source")
    assert torch.equal(radiograph.line_integrals, expected.line_integrals)


@pytest.mark.parametrize(
    ("described", "values"),
    [
        (geometry(80), ("angle_deg is 80", "AP (90 degrees) by DICOM (0018,5101)")),
        (geometry(90, source_to_detector_mm=1700.0), ("source_to_detector_mm is 1700", "1800.0 by DICOM (0018,1110)")),
        (geometry(90, source_to_isocenter_mm=1400.0), ("source_to_isocenter_mm is 1400", "1500.0 by DICOM")),
        (geometry(90, pixel_mm=(4.0, 3.5)), ("pixel_mm is (4.0, 3.5)", "(4.0, 3.0) by DICOM (0018,1164)")),
        (geometry(90, detector_offset_mm=(25.0, 0.0)), ("detector_offset_mm is (25.0", "(0.0, 0.0) by DICOM")),
        (geometry(90, beam="parallel"), ("beam is parallel by --geometry g.json", "a DX has a point source")),
    ],
)  # fmt: skip
def test_what_differs_is_a_warning(tmp_path: Path, described: Geometry, values: tuple[str, str]) -> None:
    dataset = dx(
        DetectorActiveDimensions=[384, 360], DetectorActiveOrigin=[0, 0], DetectorElementSpacing=[4, 3],
        FieldOfViewOrigin=[0, 0],
    )  # fmt: skip
    warnings = read(save(tmp_path / "a.dcm", dataset), described).warnings
    assert any(all(text in warning for text in (*values, "--geometry g.json")) for warning in warnings), warnings


def test_an_angle_of_a_few_degrees_is_no_conflict(tmp_path: Path) -> None:
    assert read(save(tmp_path / "a.dcm", dx()), geometry(93)).warnings == ()


def test_a_c_arm_far_from_its_view(tmp_path: Path) -> None:
    """Positioner Primary Angle, also where View Position is empty; angles near 0 and 360 are neighbours."""
    path = save(
        tmp_path / "a.dcm", dx("A\\F", "LL", ViewPosition=None, PositionerType="CARM", PositionerPrimaryAngle=89)
    )
    assert read(path, geometry(0)).warnings == ()
    with pytest.raises(
        MissingMetadata, match=r"another side than its view: 359 degrees by DICOM \(0018,1510\), but 90"
    ):
        read(path, geometry(90))


def test_files_in_another_order_are_refused(tmp_path: Path) -> None:
    """A folder comes sorted: 0, 270, 30."""
    described = geometry(270, 0, 30)
    described.save(tmp_path / "g.json")
    directions = {
        270: (P, R),
        0: (R, A),
        30: (math.cos(math.pi / 6) * R + 0.5 * A, 0.5 * L + math.cos(math.pi / 6) * A),
    }
    (tmp_path / "in").mkdir()
    for k, (angle, (toward, columns)) in enumerate(directions.items()):
        clean = picture(1500 * toward, -300 * toward, columns, F)
        write_dx(tmp_path / "in" / f"{angle}_degrees.dcm", clean, described.views[k], photons=None)
    with pytest.raises(MissingMetadata, match=r"0_degrees.dcm: it was taken from another side") as caught:
        read_radiographs([tmp_path / "in"], geometry=tmp_path / "g.json")
    assert [gap.file for gap in caught.value.questions] == ["0_degrees.dcm", "270_degrees.dcm"]
    assert "the views (at 270, 0, 30 degrees)? Name each file, in the order of the views" in str(caught.value)
    files = [tmp_path / "in" / f"{angle}_degrees.dcm" for angle in directions]
    read = read_radiographs(files, geometry=tmp_path / "g.json")
    for radiograph, (toward, columns) in zip(read, directions.values(), strict=True):
        assert radiograph.warnings == ()
        expected = picture(1500 * toward, -300 * toward, columns, F)
        assert float(np.abs(radiograph.line_integrals.numpy() - expected).max()) < 0.1


@pytest.mark.parametrize("position", [None, "AP"])
def test_an_orientation_that_the_view_cannot_show_is_refused(tmp_path: Path, position: str | None) -> None:
    """Also where the angle is another one, too, by a few degrees."""
    path = save(tmp_path / "a.dcm", dx("A\\F", "LL", ViewPosition=position))
    with pytest.raises(MissingMetadata, match=r"Patient Orientation A\\F .* cannot be seen in its view"):
        read(path, geometry(80 if position else 90))
