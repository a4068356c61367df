"""Slices are told apart by position and pixels, and each acquisition is judged for itself."""

from pathlib import Path

import pydicom
import pytest

from custom.dicom.ct_series import Header, read_header
from custom.dicom.ct_stacks import Stack, judge_stacks
from tests.ct_samples import CT_CLASS, ROOT, chest, save, slice_dataset, write_series

VOLUME = chest()[:, :, :6]


def _judged(folder: Path) -> list[Stack]:
    headers = [read_header(path) for path in sorted(folder.rglob("*.dcm"))]
    assert all(isinstance(h, Header) and not h.problem for h in headers), headers
    return judge_stacks([s for h in headers if isinstance(h, Header) for s in h.slices])


def _rename(paths: list[Path], uid: str) -> None:
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
        dataset.save_as(path)


@pytest.mark.parametrize("new_uids", [False, True])
def test_copies_are_dropped_and_said(tmp_path: Path, new_uids: bool) -> None:
    paths = write_series(tmp_path, VOLUME)
    for k, path in enumerate(paths):
        copy = tmp_path / f"copy{path.name}"
        copy.write_bytes(path.read_bytes())
        if new_uids:
            _rename([copy], f"{ROOT}.99.{k}")
    (stack,) = _judged(tmp_path)
    assert not stack.refused
    assert {s.path for s in stack.slices} == set(paths)
    note = f"copies of slices (equal position and pixels) dropped: 6, such as copy{paths[0].name}"
    assert stack.notes == (note,)


@pytest.mark.parametrize("count", [2, 6])
def test_a_uid_that_different_images_share_is_said(tmp_path: Path, count: int) -> None:
    paths = write_series(tmp_path, VOLUME)
    _rename(paths[-count:], f"{ROOT}.7")
    (stack,) = _judged(tmp_path)
    assert [s.path for s in stack.slices] == paths
    assert len(stack.notes) == 1 and stack.notes[0].startswith(f"{count} files carry one SOP Instance UID (0008,0018)")


def test_different_images_at_one_position(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOLUME, "11")
    write_series(tmp_path / "b", VOLUME[:, ::-1], "12")
    (stack,) = _judged(tmp_path)
    assert stack.refused.startswith("two different images at one position")
    assert "-11.dcm and " in stack.refused and "-12.dcm" in stack.refused


def test_acquisitions_at_the_same_positions_are_told_apart(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOLUME, "11", AcquisitionNumber=1)
    write_series(tmp_path / "b", VOLUME, "12", AcquisitionNumber=2)
    assert [(len(stack.slices), stack.refused) for stack in _judged(tmp_path)] == [(6, ""), (6, "")]


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("z", [0.0, 2.0, 300.0], ids=["on a slice", "between slices", "beyond"])
def test_a_stray_slice_of_another_acquisition(tmp_path: Path, number: int, z: float) -> None:
    paths = write_series(tmp_path, VOLUME, AcquisitionNumber=2)
    position = list(pydicom.dcmread(paths[2]).ImagePositionPatient)
    stray = slice_dataset(VOLUME[::-1, ::-1, 2].T, (*position[:2], position[2] + z), "11", 9, AcquisitionNumber=number)
    save(stray, tmp_path / "stray.dcm", CT_CLASS, f"{ROOT}.11.99")
    good, bad = sorted(_judged(tmp_path), key=lambda stack: stack.refused)
    assert [s.path for s in good.slices] == paths
    assert bad.refused == "a single image, not a stack: stray.dcm"


def test_acquisitions_of_one_size_are_judged_for_themselves(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", VOLUME, "11", AcquisitionNumber=1)
    for path in write_series(tmp_path / "b", VOLUME, "12", AcquisitionNumber=2, RescaleSlope=None):
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient[2] += 200
        dataset.save_as(path)
    good, bad = _judged(tmp_path)
    assert {s.path for s in good.slices} == set(paths) and not good.refused
    assert bad.refused.startswith("no Rescale Slope")


def test_a_gap_in_a_scan_of_many_acquisitions_stays_a_gap(tmp_path: Path) -> None:
    for k, path in enumerate(write_series(tmp_path, VOLUME, skip=(3,))):
        dataset = pydicom.dcmread(path)
        dataset.AcquisitionNumber = k
        dataset.save_as(path)
    (stack,) = _judged(tmp_path)
    assert stack.refused.startswith("missing slices: 10 mm")


def test_an_unspecified_rescale_type_is_noted(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME, RescaleType="US")
    (stack,) = _judged(tmp_path)
    assert not stack.refused
    assert stack.notes == (
        "Rescale Type (0028,1054) is US (unspecified): taken as HU if air and soft tissue measure so",
    )


def test_slices_with_a_rescale_of_their_own_are_noted(tmp_path: Path) -> None:
    path = write_series(tmp_path, VOLUME)[1]
    dataset = pydicom.dcmread(path)
    dataset.RescaleIntercept = 0
    dataset.save_as(path)
    (stack,) = _judged(tmp_path)
    assert [note[:60] for note in stack.notes] == ["Rescale Slope and Intercept differ within the scan, 2 of the"]


def test_files_of_one_name_are_told_apart_by_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOLUME)
    write_series(tmp_path / "b", VOLUME[:, ::-1])
    (stack,) = _judged(tmp_path)
    assert "a/00-11.dcm and b/00-11.dcm" in stack.refused
