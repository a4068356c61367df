"""PNG, TIFF and NIfTI beside DICOM: sidecars, geometry files, folders, and what they must not get away with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_written_dicom import A, F, L, R, dx, intensity, picture, save
from PIL import Image

from custom.core.files import write_nifti
from custom.geometry import Geometry, VolumeGrid, rays
from custom.radiographs import ACCEPT, SIDECAR_FORMAT, MetadataValue, MissingMetadata, Origin, read_radiographs
from custom.trust.pose_consistency import rotated

TRUTH = picture(1500 * A, -300 * A, L, F)
FACTS = {
    "view_position": "AP", "source_to_detector_mm": 1800, "source_to_isocenter_mm": 1500, "pixel_mm": [4, 3],
    "orientation": "L/F", "intent": "processing", "intensity_relationship": "LIN", "intensity_sign": 1,
}  # fmt: skip


def save_png(path: Path, stored: np.ndarray, bits: int = 16) -> Path:
    Image.fromarray(stored.astype(np.uint16 if bits == 16 else np.uint8)).save(path)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_picture_with_sidecar(tmp_path: Path, suffix: str) -> None:
    path = save_png(tmp_path / f"frontal{suffix}", intensity(TRUTH))
    (tmp_path / "frontal.json").write_text(json.dumps(FACTS))
    (radiograph,) = read_radiographs([path])
    (expected,) = read_radiographs([save(tmp_path / "a.dcm", dx())])
    assert torch.equal(radiograph.view, expected.view)
    assert torch.equal(radiograph.line_integrals, expected.line_integrals)
    assert radiograph.modality == {".png": "PNG", ".tif": "TIFF"}[suffix]
    assert radiograph.header is None
    assert radiograph.metadata.pixel_mm == MetadataValue("pixel_mm", (4.0, 3.0), Origin.SIDECAR, "frontal.json")
    assert len(radiograph.sha256) == 64


def test_a_sidecar_beside_two_pictures_is_of_neither(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(FACTS))
    both = [save_png(tmp_path / "a.png", intensity(TRUTH)), save_png(tmp_path / "a.tif", intensity(TRUTH) - 1)]
    with pytest.raises(ValueError, match=r"a\.json: stands beside a\.png and a\.tif; call them a\.png\.json and a"):
        read_radiographs(both)


def test_picture_without_sidecar_asks_for_everything(tmp_path: Path) -> None:
    path = save_png(tmp_path / "frontal.png", intensity(TRUTH))
    with pytest.raises(MissingMetadata) as caught:
        read_radiographs([path])
    problems = [gap.problem for gap in caught.value.questions]
    assert {name: known.get("modality") is not None for name, known in caught.value.known.items()} == {
        "frontal.png": True
    }
    assert len(problems) == 6
    for name in ("angle", "source to detector", "middle of the patient", "size of its pixels", "values follow"):
        assert any(name in problem for problem in problems)
    assert all("frontal.json" in gap.remedy for gap in caught.value.questions)


def test_parallel_beam_and_8_bits(tmp_path: Path) -> None:
    stored = np.rint(np.clip(TRUTH / 6, 0, 1) * 255)
    save_png(tmp_path / "a.png", stored, bits=8)
    facts = {
        "beam": "parallel", "angle_deg": 90, "pixel_mm": 2.5, "orientation": "L/F", "intensity_relationship": "LOG",
        "intensity_sign": -1, "log_scale": 255 / 6, "unattenuated": 0,
    }  # fmt: skip
    (tmp_path / "a.png.json").write_text(json.dumps(facts))
    (radiograph,) = read_radiographs(tmp_path)
    assert float(radiograph.view[12]) == 0
    assert radiograph.view[:3].tolist() == [0, -1, 0]
    assert float((radiograph.line_integrals - torch.from_numpy(TRUTH)).abs().max()) < 6 / 255
    assert len(radiograph.warnings) == 1
    assert "8 bits" in radiograph.warnings[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "a.json: is not a JSON file"),
        ("[1]", "must be a JSON object"),
        ('{"source_to_detektor_mm": 1800}', "'source_to_detektor_mm' is not known; a sidecar may say beam"),
        ('{"pixel_mm": "0.1"}', "pixel_mm is '0.1', it must be a number"),
        ('{"pixel_mm": [0.1]}', "list of two numbers"),
        ('{"pixel_mm": true}', "must be a number"),
        ('{"source_to_detector_mm": 1e999}', "must be a number"),
        ('{"view_position": "LAT"}', "must be one of AP, PA, LL, RL"),
        ('{"orientation": "up"}', "must name the directions"),
        ('{"intensity_sign": 2}', "must be one of 1, -1"),
        ('{"angle_deg": 1000}', "must be within -360 to 360"),
        ('{"frame": 1.5}', "frame is 1.5, it must be a whole number"),
    ],
)
def test_sidecar_is_checked(tmp_path: Path, content: str, message: str) -> None:
    path = save_png(tmp_path / "a.png", intensity(TRUTH))
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_radiographs([path])
    assert "\n" not in str(caught.value)


def test_one_file_for_all(tmp_path: Path) -> None:
    paths = [
        save_png(tmp_path / "a.png", intensity(TRUTH)),
        save(tmp_path / "b.dcm", dx(DistanceSourceToDetector=None)),
    ]
    everything = tmp_path / "all.json"
    views = [{"file": "a.png", **FACTS}, {"file": "b.dcm", "source_to_detector_mm": 1800}]
    everything.write_text(json.dumps({"format": SIDECAR_FORMAT, "views": views}))
    first, second = read_radiographs(paths, geometry=everything, accept="repeated-exposures")
    assert torch.equal(first.view, second.view)
    assert second.metadata.source_to_detector_mm.provenance == "--geometry all.json"
    views.append({"file": "c.png"})  # type: ignore[dict-item]
    everything.write_text(json.dumps({"format": SIDECAR_FORMAT, "views": views}))
    with pytest.raises(ValueError, match=r"describes 'c.png', which is not among the radiographs"):
        read_radiographs(paths, geometry=everything, accept="repeated-exposures")
    everything.write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="'format' must be"):
        read_radiographs(paths, geometry=everything, accept="repeated-exposures")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_radiographs(paths, geometry=tmp_path / "none.json")


def geometry_of(count: int = 2, shape: tuple[int, int] = (96, 120)) -> Geometry:
    return Geometry.from_angles(
        [90.0, 0.0][:count], "cone", 1500.0, 1800.0, shape, (4.0, 3.0), grid=VolumeGrid.cube(64, 200.0),
        isocenter_mm=(1.0, 2.0, 3.0),
    )  # fmt: skip


def test_geometry_file_for_pictures(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", dx(DistanceSourceToDetector=None, ViewPosition=None, PatientOrientation=None))
    geometry_of(1).save(tmp_path / "g.json")
    (radiograph,) = read_radiographs([path], geometry=tmp_path / "g.json")
    (expected,) = read_radiographs([save(tmp_path / "b.dcm", dx())])
    assert torch.allclose(radiograph.view, expected.view, atol=1e-9)
    expected_distance = MetadataValue("source_to_detector_mm", 1800.0, Origin.GEOMETRY_FILE, "g.json")
    assert radiograph.metadata.source_to_detector_mm == expected_distance
    geometry_of(2).save(tmp_path / "g.json")
    with pytest.raises(ValueError, match="describes 2 views, there are 1 radiographs"):
        read_radiographs([path], geometry=tmp_path / "g.json")
    geometry_of(1, (90, 120)).save(tmp_path / "g.json")
    with pytest.raises(ValueError, match=r"a.dcm: 120 x 96 pixels, but --geometry g.json describes 120 x 90"):
        read_radiographs([path], geometry=tmp_path / "g.json")


def test_a_sidecar_counts_beside_a_geometry_file(tmp_path: Path) -> None:
    """The geometry goes first; what it does not say, such as the meaning of the values, the sidecar does."""
    path = save_png(tmp_path / "a.png", intensity(TRUTH))
    geometry_of(1).save(tmp_path / "g.json")
    (tmp_path / "a.json").write_text(json.dumps({**FACTS, "source_to_detector_mm": 1700, "kvp": 90}))
    (radiograph,) = read_radiographs([path], geometry=tmp_path / "g.json")
    assert torch.equal(radiograph.view, geometry_of(1).views[0])
    assert np.abs(radiograph.line_integrals.numpy() - TRUTH).max() < 0.02
    assert radiograph.metadata.kvp == MetadataValue("kvp", 90.0, Origin.SIDECAR, "a.json")
    assert radiograph.metadata.source_to_detector_mm.value == 1800
    (warning,) = radiograph.warnings
    assert "1800.0 by --geometry g.json, but 1700.0 by sidecar a.json; the first is used" in warning
    dicom = save(tmp_path / "b.dcm", dx("L\\F", "AP", PatientOrientation=None))
    (tmp_path / "b.json").write_text('{"orientation": "R/F", "unattenuated": 40000}')
    (radiograph,) = read_radiographs([dicom], geometry=tmp_path / "g.json")
    assert radiograph.metadata.flips.value == "columns reversed"
    assert radiograph.metadata.unattenuated.value == 40000


@pytest.mark.parametrize("beam", ["cone", "parallel"])
def test_an_entry_goes_before_a_whole_view_beside_the_file(tmp_path: Path, beam: str) -> None:
    """The view is the one that its values make: nothing else of it changes."""
    path = save_png(tmp_path / "a.png", intensity(TRUTH))
    whole = Geometry.from_angles(
        [80.0], beam, 1500.0, 1800.0, (96, 120), (4.0, 3.0), (20.0, -10.0), VolumeGrid.cube(64, 200.0)
    )
    whole.save(tmp_path / "a.json")
    meaning = {key: value for key, value in FACTS.items() if key.startswith("int")}
    for angle in (None, 90.0):
        views = [{"file": "a.png", **meaning, **({} if angle is None else {"angle_deg": angle})}]
        (tmp_path / "all.json").write_text(json.dumps({"format": SIDECAR_FORMAT, "views": views}))
        (radiograph,) = read_radiographs([path], geometry=tmp_path / "all.json")
        assert radiograph.metadata.angle_deg.value == (angle or 80)
        expected = rays(whole.views, (96, 120)) if angle is None else rays(rotated(whole.views, 10.0), (96, 120))
        origin, direction = rays(radiograph.view[None], (96, 120))
        assert torch.allclose(direction, expected[1], atol=1e-6)
        apart = torch.linalg.cross(origin - expected[0], direction)
        assert float(apart.abs().max()) < 1e-3


@pytest.mark.parametrize("name", ["case.nii.gz", "case.nii.gz[0]"])
def test_nifti_in_a_file_for_all(tmp_path: Path, name: str) -> None:
    """An entry may describe a stack of one view whole, or add to the geometry beside it."""
    path, everything = tmp_path / "case.nii.gz", tmp_path / "all.json"

    def describe(**values: object) -> None:
        everything.write_text(json.dumps({"format": SIDECAR_FORMAT, "views": [{"file": name, **values}]}))

    write_nifti(path, TRUTH.astype(np.float32).transpose()[..., None], np.eye(4))
    describe(angle_deg=90, source_to_detector_mm=1800, source_to_isocenter_mm=1500, pixel_mm=[4, 3])
    (radiograph,) = read_radiographs([path], geometry=everything)
    assert torch.allclose(radiograph.view, geometry_of(1).views[0], atol=1e-9)
    assert np.array_equal(radiograph.line_integrals.numpy(), TRUTH.astype(np.float32))
    describe(angle_deg=90)
    with pytest.raises(MissingMetadata, match=r"case.nii.gz\[0\]: the distance from source to detector"):
        read_radiographs([path], geometry=everything)
    describe(kvp=120)
    geometry_of(1).save(tmp_path / "case.json")
    (radiograph,) = read_radiographs([path], geometry=everything)
    assert torch.equal(radiograph.view, geometry_of(1).views[0]) and radiograph.metadata.kvp.value == 120
    (tmp_path / "case.json").unlink()
    write_nifti(path, np.stack([TRUTH, TRUTH]).astype(np.float32).transpose(2, 1, 0), np.eye(4))
    with pytest.raises(ValueError, match=r"2 radiographs that one entry cannot describe"):
        read_radiographs([path], geometry=everything)


def test_nifti_stack(tmp_path: Path) -> None:
    geometry = geometry_of()
    image = np.stack([TRUTH, picture(1500 * R, -300 * R, A, F)]).astype(np.float32)
    write_nifti(tmp_path / "case.nii.gz", image.transpose(2, 1, 0), np.eye(4))
    with pytest.raises(FileNotFoundError, match=r"case.nii.gz: no geometry: case.json beside it"):
        read_radiographs([tmp_path / "case.nii.gz"])
    geometry.save(tmp_path / "case.json")
    for keywords in ({}, {"geometry": tmp_path / "case.json"}):
        first, second = read_radiographs([tmp_path / "case.nii.gz"], **keywords)  # type: ignore[arg-type]
        assert first.name == "case.nii.gz[0]" and not first.warnings
        assert torch.equal(torch.stack([first.view, second.view]), geometry.views)
        assert np.array_equal(second.line_integrals.numpy(), image[1]) and second.modality == "NIfTI"
        assert second.metadata.isocenter_mm.value == (1.0, 2.0, 3.0)
    write_nifti(tmp_path / "case.nii.gz", np.rint(image).transpose(2, 1, 0), np.eye(4))
    assert all("it was rounded" in one.warnings[0] for one in read_radiographs([tmp_path / "case.nii.gz"]))
    write_nifti(tmp_path / "case.nii.gz", image.transpose(2, 1, 0) * 100, np.eye(4))
    with pytest.raises(ValueError, match="are no line integrals"):
        read_radiographs([tmp_path / "case.nii.gz"])
    write_nifti(tmp_path / "case.nii.gz", image.transpose(2, 1, 0)[:-1], np.eye(4))
    with pytest.raises(ValueError, match=r"of 119 x 96 pixels .* describes 2 views of 120 x 96"):
        read_radiographs([tmp_path / "case.nii.gz"])
    (tmp_path / "case.nii.gz").write_bytes((tmp_path / "case.nii.gz").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"case\.nii\.gz"):
        read_radiographs([tmp_path / "case.nii.gz"])


def test_folders_are_sorted_and_sieved(tmp_path: Path) -> None:
    frontal = save(tmp_path / "b_frontal", dx())
    save(tmp_path / "a_lateral.dcm", dx("A\\F", "LL"))
    save_png(tmp_path / "screenshot.png", intensity(TRUTH))
    save(tmp_path / "sr.dcm", dx(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"))
    (tmp_path / "notes.txt").write_text("hello")
    first, second = read_radiographs([tmp_path])
    assert (first.name, second.name) == ("a_lateral.dcm", "b_frontal")
    assert any("sr.dcm in the folder was left out" in w for w in first.warnings)
    assert any("screenshot.png" in w for w in first.warnings)
    named, other = read_radiographs([frontal, tmp_path / "a_lateral.dcm"])
    assert (named.name, other.name) == ("b_frontal", "a_lateral.dcm")
    with pytest.raises(ValueError, match="Basic Text SR Storage, not a radiograph"):
        read_radiographs([tmp_path / "sr.dcm"])
    with pytest.raises(ValueError, match="neither DICOM nor PNG"):
        read_radiographs([tmp_path / "notes.txt"])
    (tmp_path / "letter.dcm").write_bytes(b"%PDF-1.7")
    with pytest.raises(ValueError, match=r"letter\.dcm: a PDF, neither DICOM nor PNG"):
        read_radiographs([tmp_path / "letter.dcm"])
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_radiographs([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no radiographs"):
        read_radiographs([tmp_path / "empty"])
    with pytest.raises(ValueError, match="no radiographs given"):
        read_radiographs([])


def test_a_damaged_file_is_an_error_whatever_its_folder_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "this is not a radiograph"
    folder.mkdir()
    save(folder / "a.dcm", dx())
    raw = save(folder / "b.dcm", dx("A\\F", "LL")).read_bytes()
    (folder / "b.dcm").write_bytes(raw[: raw.find(b"MONOCHROME2") - 8])
    with pytest.raises(ValueError, match=r"b.dcm: no Photometric Interpretation"):
        read_radiographs([folder])


def test_the_same_twice(tmp_path: Path) -> None:
    first = save(tmp_path / "a.dcm", dx())
    (tmp_path / "b.dcm").write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="are the same radiograph"):
        read_radiographs([tmp_path])


def test_the_same_path_twice(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", dx())
    (tmp_path / "link.dcm").symlink_to(path)
    for given in ([path, path], [path, tmp_path / "link.dcm"], [path, tmp_path], [tmp_path, tmp_path / "." / "a.dcm"]):
        with pytest.raises(ValueError, match=r"\.dcm: the same radiograph is given twice"):
            read_radiographs(given)


def test_hidden_and_own_results_are_passed_over(tmp_path: Path) -> None:
    """What a killed run or a file manager hides, and a result that was written into the folder."""
    save(tmp_path / "a.dcm", dx())
    for hidden in (".out.host-12.part/dicom", ".trash", "sub/.cache", "sub/..data"):
        (tmp_path / hidden).mkdir(parents=True)
        save(tmp_path / hidden / "b.dcm", dx("A\\F", "LL"))
    save(tmp_path / ".c.dcm", dx("A\\F", "LL"))
    (tmp_path / "out/dicom").mkdir(parents=True)
    save(tmp_path / "out/dicom/slice.dcm", dx(SOPClassUID="1.2.840.10008.5.1.4.1.1.2"))
    (tmp_path / "out/result.json").write_text('{"format": "fewview-ct reconstruction 1"}')
    (radiograph,) = read_radiographs([tmp_path])
    assert radiograph.name == "a.dcm"
    assert radiograph.warnings == ()
    (tmp_path / "out/result.json").write_text('{"format": "other"}')
    assert any("slice.dcm" in w for w in read_radiographs([tmp_path])[0].warnings)
    # A hidden folder that is named itself is searched.
    (named,) = read_radiographs([tmp_path / ".trash"])
    assert named.name == "b.dcm"


def test_files_of_one_name(tmp_path: Path) -> None:
    for folder, attributes in (("first", {}), ("second", {"PatientID": "P2"})):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "a.dcm", dx("L\\F" if folder == "first" else "R\\F", **attributes))
    paths = [tmp_path / "first/a.dcm", tmp_path / "second/a.dcm"]
    with pytest.raises(MissingMetadata, match=r"second/a.dcm: whose it is: .* differs from first/a.dcm"):
        read_radiographs(paths)
    read = read_radiographs(paths, accept="several-patients,repeated-exposures")
    assert [radiograph.name for radiograph in read] == ["first/a.dcm", "second/a.dcm"]


def test_nothing_says_whose_it_is(tmp_path: Path) -> None:
    nobody = {"PatientID": "", "PatientName": "^"}
    one, two = save(tmp_path / "a.dcm", dx(**nobody)), save(tmp_path / "b.dcm", dx("A\\F", "LL", **nobody))
    assert read_radiographs([one])[0].warnings == ()
    warnings = [w for radiograph in read_radiographs([one, two]) for w in radiograph.warnings]
    assert len(warnings) == 1
    assert warnings[0].startswith("a.dcm, b.dcm: neither Patient's Name")
    png = save_png(tmp_path / "c.png", intensity(TRUTH))
    (tmp_path / "c.json").write_text(json.dumps(FACTS))
    assert read_radiographs([png])[0].warnings == ()
    (warning,) = [w for radiograph in read_radiographs([two, png]) for w in radiograph.warnings]
    assert warning.startswith("c.png: nothing says that this is of the same patient as b.dcm")


def test_raw_picture_before_its_picture_for_viewing(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    raw = dx()
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = raw.SOPClassUID, raw.SOPInstanceUID
    viewing = dx(
        SOPInstanceUID="1.2.3.4.5", SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1",
        PresentationIntentType="FOR PRESENTATION", SourceImageSequence=[item],
    )  # fmt: skip
    save(tmp_path / "a.dcm", viewing)
    save(tmp_path / "b.dcm", raw)
    (radiograph,) = read_radiographs([tmp_path])
    assert radiograph.name == "b.dcm"
    assert "a.dcm was left out: b.dcm is the same exposure" in radiograph.warnings[0]


def test_different_patients(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a.dcm", dx()), save(tmp_path / "b.dcm", dx("A\\F", "LL", PatientID="P2"))]
    with pytest.raises(
        MissingMetadata, match=r"b.dcm: whose it is: PatientID \(0010,0020\) differs from a.dcm"
    ) as caught:
        read_radiographs(paths)
    assert "P2" not in str(caught.value)
    assert "another patient" in read_radiographs(paths, accept="several-patients")[1].warnings[-1]


def test_accept_is_checked() -> None:
    with pytest.raises(ValueError, match="--accept everything is not known; it takes default-distances"):
        read_radiographs(["a.dcm"], accept=["everything"])
    assert all(len(text) > 20 for text in ACCEPT.values())


def test_pictures_that_are_none(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="mode RGB; only 8 or 16 bits of grey"):
        read_radiographs([tmp_path / "colour.png"])
    Image.new("L", (5, 100)).save(tmp_path / "thin.png")
    with pytest.raises(ValueError, match="not the size of a radiograph"):
        read_radiographs([tmp_path / "thin.png"])
    page = Image.fromarray(intensity(TRUTH).astype(np.uint16))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    with pytest.raises(ValueError, match="2 pages"):
        read_radiographs([tmp_path / "pages.tif"])
    raw = save_png(tmp_path / "a.png", intensity(TRUTH)).read_bytes()
    for cut in (10, 40, len(raw) // 2):
        (tmp_path / "a.png").write_bytes(raw[:cut])
        with pytest.raises(ValueError, match=r"a\.png: not a readable radiograph"):
            read_radiographs([tmp_path / "a.png"])


def test_metadata_is_in_order(tmp_path: Path) -> None:
    (radiograph,) = read_radiographs([save(tmp_path / "a.dcm", dx(KVP=120))])
    keys = list(radiograph.metadata.known())
    assert keys.index("beam") < keys.index("angle_deg") < keys.index("pixel_mm") < keys.index("kvp")
    assert keys.index("kvp") < keys.index("intent") < keys.index("unattenuated")
    assert all(value.provenance and value.key == key for key, value in radiograph.metadata.known().items())
    assert math.isclose(radiograph.metadata.magnification.value, 1.2)
