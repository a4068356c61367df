"""RT images: gantry, patient position, receptor and image plane give the view."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_written_dicom import base, intensity, picture, save

from custom.geometry import Geometry, VolumeGrid
from custom.radiographs import MissingMetadata
from tests.custom.radiographs.seen_heart import check, read

#: Where the patient's left, head and front point in a viewer's X (right), Y (to the gantry), Z (up).
POSITIONS = {
    "HFS": {"L": (1, 0, 0), "H": (0, 1, 0), "A": (0, 0, 1)},
    "HFP": {"L": (-1, 0, 0), "H": (0, 1, 0), "A": (0, 0, -1)},
    "FFS": {"L": (-1, 0, 0), "H": (0, -1, 0), "A": (0, 0, 1)},
    "FFP": {"L": (1, 0, 0), "H": (0, -1, 0), "A": (0, 0, -1)},
}


def rt_image(gantry: float, position: str, offset: tuple[float, float] = (0, 0), roll: float = 0, **attributes: object):
    """PS3.3 C.8.8.2 and IEC 61217: at gantry 90 the source is at +X; rows of pixels run along the receptor's +X,
    columns along its -Y, which turn with the gantry, and by the receptor's angle counter-clockwise from the source."""
    g, r = math.radians(gantry), math.radians(roll)
    source = 1000 * np.array([math.sin(g), 0, math.cos(g)])
    x, y = np.array([math.cos(g), 0, -math.sin(g)]), np.array([0, 1.0, 0])
    along_x, along_y = math.cos(r) * x + math.sin(r) * y, math.cos(r) * y - math.sin(r) * x
    middle = -0.5 * source + offset[0] * x + offset[1] * y
    axes = POSITIONS[position]
    room_to_ras = np.array([-np.array(axes["L"]), np.array(axes["A"]), np.array(axes["H"])], dtype=float)
    pixel, shape = (3.0, 4.0), (110, 90)
    stored = picture(
        room_to_ras @ source, room_to_ras @ middle, room_to_ras @ along_x, -(room_to_ras @ along_y), pixel, shape
    )
    written = {
        "GantryAngle": gantry, "PatientPosition": position, "RadiationMachineSAD": 1000, "RTImageSID": 1500,
        "ImagePlanePixelSpacing": list(pixel), "RTImagePlane": "NORMAL", "XRayImageReceptorAngle": roll,
        "XRayImageReceptorTranslation": [offset[0], offset[1], -500], "PatientSupportAngle": 0,
        "RTImagePosition": [-(shape[1] - 1) / 2 * pixel[1], (shape[0] - 1) / 2 * pixel[0]],
        "ImageType": ["ORIGINAL", "PRIMARY", "PORTAL"],
    }  # fmt: skip
    return base("RTIMAGE", intensity(stored), **{**written, **attributes})


@pytest.mark.parametrize("position", list(POSITIONS))
@pytest.mark.parametrize("gantry", [0.0, 90.0, 215.0])
def test_rtimage(tmp_path: Path, gantry: float, position: str) -> None:
    radiograph = read(save(tmp_path / "rt.dcm", rt_image(gantry, position, offset=(12.0, -20.0))))
    check(radiograph)
    if position == "HFS":
        assert radiograph.metadata.angle_deg.value == pytest.approx((gantry + 90) % 360)
    assert radiograph.metadata.source_to_isocenter_mm.provenance == "DICOM (3002,0022)"
    assert radiograph.warnings == ()


def test_rtimage_receptor_turned(tmp_path: Path) -> None:
    radiograph = read(save(tmp_path / "rt.dcm", rt_image(30, "HFS", offset=(10.0, 25.0), roll=8.0)))
    check(radiograph)
    assert radiograph.metadata.detector_roll_deg.value == pytest.approx(8)


def test_rtimage_orientation_of_the_plane(tmp_path: Path) -> None:
    """Rows along -Xr and columns along +Yr: turned by 180 degrees, the first pixel at the lower right."""
    dataset = rt_image(0, "HFS")
    stored = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)
    dataset.PixelData = np.ascontiguousarray(stored[::-1, ::-1]).tobytes()
    dataset.RTImageOrientation = [-1, 0, 0, 0, 1, 0]
    dataset.RTImagePosition = [-float(v) for v in dataset.RTImagePosition]
    radiograph = read(save(tmp_path / "rt.dcm", dataset))
    check(radiograph)
    assert radiograph.metadata.flips.value == "columns reversed, rows reversed"


def test_rtimage_asks(tmp_path: Path) -> None:
    path = save(tmp_path / "rt.dcm", rt_image(0, "HFS", PatientPosition=None, RTImageSID=None))
    with pytest.raises(MissingMetadata, match=r"Patient Position \(0018,5100\) is empty.*RT Image SID") as caught:
        read(path)
    assert len(caught.value.questions) == 2
    (tmp_path / "rt.json").write_text('{"patient_position": "HFS", "source_to_detector_mm": 1500}')
    check(read(path))
    with pytest.raises(MissingMetadata, match="couch is turned by 30"):
        read(save(tmp_path / "couch.dcm", rt_image(0, "HFS", PatientSupportAngle=30)))
    with pytest.raises(ValueError, match="FLUENCE shows no patient"):
        read(save(tmp_path / "f.dcm", rt_image(0, "HFS", ImageType=["ORIGINAL", "PRIMARY", "FLUENCE"])))


@pytest.mark.parametrize(("position", "roll"), [("HFS", 0.0), ("FFP", 8.0)])
def test_rtimage_with_its_view_in_a_geometry_file(tmp_path: Path, position: str, roll: float) -> None:
    """Gantry and patient position are compared with the view, and say how the picture is stored."""
    path = save(tmp_path / "rt.dcm", rt_image(30, position, offset=(10.0, 25.0), roll=roll))
    expected = read(path)
    shape = (expected.line_integrals.shape[0], expected.line_integrals.shape[1])
    Geometry(expected.view[None], shape, VolumeGrid.cube(64, 200.0)).save(tmp_path / "g.json")
    radiograph = read(path, geometry=tmp_path / "g.json")
    assert torch.equal(radiograph.line_integrals, expected.line_integrals)
    assert radiograph.warnings == expected.warnings
    turned = save(tmp_path / "rt.dcm", rt_image(40, position, offset=(10.0, 25.0), roll=roll + 2))
    warnings = read(turned, geometry=tmp_path / "g.json").warnings
    assert any("angle_deg is" in w and "(300A,011E)" in w for w in warnings)
    assert any("detector_roll_deg is" in w and "(3002,000E)" in w for w in warnings)
    turned = save(tmp_path / "rt.dcm", rt_image(120, position))
    with pytest.raises(MissingMetadata, match="another side than its view"):
        read(turned, geometry=tmp_path / "g.json")


def test_megavoltage_is_said(tmp_path: Path) -> None:
    radiograph = read(save(tmp_path / "rt.dcm", rt_image(0, "HFS", KVP=6000)))
    assert "megavoltage beam (6000 kV)" in radiograph.warnings[0]
