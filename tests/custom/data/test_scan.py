"""A tree of files becomes candidates, and a table of what is left out."""

import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from custom.core.names import plain_name
from custom.data.case import load
from custom.data.scan import Candidate, safe_name, scan
from tests.ct_samples import CT_CLASS, ROOT, chest, save, slice_dataset, write_nifti, write_rtstruct, write_series

FEW = chest()[:, :, :4]


def _cases(candidates: list[Candidate]) -> dict[str, str]:
    return {c.case: c.source for c in candidates}


def test_mixed_tree(tmp_path: Path) -> None:
    """Two patients, several series, other modalities and other files in between."""
    write_series(tmp_path / "mess", FEW, "11")
    write_series(tmp_path / "mess", FEW[:, :, ::2], "12", SeriesDescription="thick", SliceThickness=10)
    write_series(tmp_path / "mess", FEW, "13", PatientID="P2", PatientName="Two", StudyInstanceUID=f"{ROOT}.2")
    write_series(tmp_path / "mess", FEW[:, :, :1], "14", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    mr = slice_dataset(FEW[:, :, 0], (0, 0, 0), "15", 1, Modality="MR")
    save(mr, tmp_path / "mess" / "mr", "1.2.840.10008.5.1.4.1.1.4", f"{ROOT}.15.1")
    (tmp_path / "mess" / "notes.txt").write_text("x")
    (tmp_path / "mess" / "broken.dcm").write_bytes(b"")
    (tmp_path / "mess" / "README").write_text("no image")
    candidates, rejected = scan(tmp_path)
    assert list(_cases(candidates)) == ["P1", "P2"]
    reasons = {r.source: r.reason for r in rejected}
    assert reasons["mess/broken.dcm"] == "empty file"
    assert "localizer" in reasons["mess/00-14.dcm"]
    assert "modality MR" in reasons["mess/mr"]
    assert len(rejected) == 3
    # All spacings are equal here, so the longer series is the better one.
    assert len(candidates[0].slices) == 4
    assert [len(a.slices) for a in candidates[0].alternates] == [2]
    both, _ = scan(tmp_path, series_per_study="all")
    assert len(both) == 3 and len({c.case for c in both}) == 3


def test_header_workers_give_the_same(tmp_path: Path) -> None:
    write_series(tmp_path, FEW)
    calls = []

    def spy(function, paths):
        calls.append(len(paths))
        return [function(p) for p in paths]

    assert scan(tmp_path, map_headers=spy) == scan(tmp_path)
    assert calls == [4]


def test_two_persons_with_one_id_are_two_cases_and_one_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path / "a", FEW, "11")
    other = {"PatientName": "Other", "PatientBirthDate": "19500101", "StudyInstanceUID": f"{ROOT}.2"}
    write_series(tmp_path / "b", FEW, "12", **other)
    candidates, rejected = scan(tmp_path)
    assert len(candidates) == 2 and not rejected
    assert len({c.patient for c in candidates}) == 2
    assert {c.group for c in candidates} == {"P1"}
    assert all("carried by 2 persons" in c.facts["note"] for c in candidates)
    assert caplog.text.count("carried by 2 persons") == 1


def test_no_patient_id_is_told_apart_by_study(tmp_path: Path) -> None:
    write_series(tmp_path / "a", FEW, "11", PatientID="")
    write_series(tmp_path / "b", FEW, "12", PatientID="", StudyInstanceUID=f"{ROOT}.2")
    candidates, _ = scan(tmp_path)
    assert len({c.group for c in candidates}) == 2


@pytest.mark.parametrize("by", ["provenance", "folder"])
def test_dicom_and_nifti_of_one_scan_are_one_case(tmp_path: Path, by: str) -> None:
    write_series(tmp_path / "dicom" / ("scan7" if by == "folder" else "x"), FEW, "11")
    write_nifti(tmp_path / "ct" / "scan7.nii.gz", chest())
    facts = {"scan7": {"name": "scan7", "patient_id": "P1", "series_instance_uid": f"{ROOT}.11", "licence": "CC BY"}}
    candidates, _ = scan(tmp_path, provenance=facts if by == "provenance" else None)
    assert [c.case for c in candidates] == ["scan7"]
    assert candidates[0].kind == "dicom" and [a.kind for a in candidates[0].alternates] == ["nifti"]
    if by == "provenance":
        assert candidates[0].facts["provenance"]["licence"] == "CC BY"


def test_same_file_names_in_two_folders_stay_two_cases(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_nifti(tmp_path / folder / "ct.nii.gz", FEW)
    candidates, _ = scan(tmp_path)
    assert _cases(candidates) == {"a_ct": "a/ct.nii.gz", "b_ct": "b/ct.nii.gz"}


def test_missing_slices_reject_the_series_only(tmp_path: Path) -> None:
    write_series(tmp_path / "a", chest()[:, :, :6], "11", skip=(3,))
    write_series(tmp_path / "b", FEW, "12", PatientID="P2", StudyInstanceUID=f"{ROOT}.2")
    candidates, rejected = scan(tmp_path)
    assert list(_cases(candidates)) == ["P2"]
    assert [(r.source, r.reason[:15], r.files) for r in rejected] == [("a", "missing slices:", 5)]


def test_damaged_geometry_names_the_file(tmp_path: Path) -> None:
    write_series(tmp_path, FEW)
    bad = slice_dataset(FEW[:, :, 0], (0, 0, 0), "11", 9, ImagePositionPatient=None)
    save(bad, tmp_path / "bad.dcm", CT_CLASS, f"{ROOT}.11.99")
    candidates, rejected = scan(tmp_path)
    assert not candidates
    assert "bad.dcm: ImagePositionPatient (0020,0032) is absent (truncated?)" in rejected[0].reason


def test_outputs_hidden_and_skipped_folders_are_not_inputs(tmp_path: Path) -> None:
    for folder in ("out", ".cache", "in"):
        write_nifti(tmp_path / folder / f"{folder.strip('.')}.nii.gz", FEW)
    (tmp_path / "in" / "._in.nii.gz").write_bytes(b"mac")
    assert list(_cases(scan(tmp_path, skip=[tmp_path / "out"])[0])) == ["in"]


def test_one_file_is_an_input_too(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "x.nii.gz", FEW)
    assert _cases(scan(path)[0]) == {"x": "x.nii.gz"}


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        scan(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'some'; choose"):
        scan(tmp_path, series_per_study="some")


def test_names_are_safe_as_files() -> None:
    assert safe_name("../Doe^Jane 7/é") == "Doe_Jane_7"
    long = [safe_name("A" * 300 + end) for end in ("", "B")]
    assert long[0] != long[1] and all(plain_name(name, "x") == name and len(name) < 150 for name in long)
    np.testing.assert_equal(safe_name("^^"), "")


def test_rejection_row_carries_identifiers(tmp_path: Path) -> None:
    write_series(tmp_path / "a", FEW)
    candidate = replace(scan(tmp_path)[0][0], case="x")
    row = candidate.rejection("why")
    assert (row.case, row.patient, row.series_uid, row.files, row.reason) == ("x", "P1", f"{ROOT}.11", 4, "why")


def test_one_bad_acquisition_leaves_the_others_of_the_series(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", FEW, AcquisitionNumber=2)
    stray = slice_dataset(FEW[:, :, 0].T, (0, 0, -117.5), "11", 9, AcquisitionNumber=1)
    save(stray, tmp_path / "scan" / "monitoring.dcm", CT_CLASS, f"{ROOT}.11.99")
    candidates, rejected = scan(tmp_path)
    assert [len(c.slices) for c in candidates] == [4]
    assert [(r.source, r.reason) for r in rejected] == [
        ("scan/monitoring.dcm", "a single image, not a stack: monitoring.dcm")
    ]


def test_what_was_put_right_is_noted(tmp_path: Path) -> None:
    path = write_series(tmp_path, FEW)[0]
    (tmp_path / "again.dcm").write_bytes(path.read_bytes())
    candidates, rejected = scan(tmp_path)
    assert not rejected
    assert candidates[0].facts["note"].startswith("copies of slices")


def test_what_differs_within_a_scan_is_noted(tmp_path: Path) -> None:
    paths = write_series(tmp_path, FEW)
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.ConvolutionKernel, dataset.AcquisitionNumber = ("B30f", 1) if number % 2 else ("B70f", 2)
        dataset.save_as(path)
    (candidate,), rejected = scan(tmp_path)
    assert not rejected
    assert "ConvolutionKernel (0018,1210) differs within the scan: B30f, B70f" in candidate.facts["note"]
    assert "slices of 2 acquisitions alternate" in candidate.facts["note"]


def test_pipes_and_broken_links_are_left_out(tmp_path: Path) -> None:
    """Opening a pipe would wait for ever."""
    write_nifti(tmp_path / "x.nii.gz", FEW)
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "broken.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    candidates, rejected = scan(tmp_path)
    assert list(_cases(candidates)) == ["x"]
    assert sorted(one.source for one in rejected) == ["broken.nii.gz", "pipe.dcm"]
    assert all(one.reason.startswith("a broken link, or no file") for one in rejected)


def test_emptied_uids_are_said_once_a_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "a", FEW, SeriesInstanceUID="")
    candidates, rejected = scan(tmp_path)
    assert not candidates
    ((source, reason, files),) = [(r.source, r.reason, r.files) for r in rejected]
    assert (source, files) == ("a", 4) and reason.startswith("Series Instance UID (0020,000E) is empty (anonymised?)")


def test_slices_without_instance_uid_are_sorted_by_position(tmp_path: Path) -> None:
    for path in write_series(tmp_path, FEW):
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = ""
        dataset.save_as(path)
    candidates, rejected = scan(tmp_path)
    assert [len(c.slices) for c in candidates] == [4] and not rejected
    assert candidates[0].facts["note"].startswith("SOP Instance UID (0008,0018) of 4 files is empty (anonymised?)")


@pytest.mark.parametrize("implicit", [True, False])
def test_dicom_without_preamble_and_name_is_read(tmp_path: Path, implicit: bool) -> None:
    for k, path in enumerate(write_series(tmp_path, FEW)):
        dataset = pydicom.dcmread(path)
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, implicit
        del dataset.file_meta
        write_dataset(buffer, dataset)
        (tmp_path / f"I{k}").write_bytes(buffer.getvalue())
        path.unlink()
    candidates, rejected = scan(tmp_path)
    assert [len(c.slices) for c in candidates] == [4] and not rejected
    volume = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(*load(candidates[0]))).dataobj)
    np.testing.assert_array_equal(volume, FEW)


@pytest.mark.parametrize(
    "names",
    [
        ("患者一.nii.gz", "患者二.nii.gz"),
        ("Müller.nii.gz", "Möller.nii.gz"),
        ("a b.nii.gz", "a_b.nii.gz"),
        ("a/b/ct.nii.gz", "a_b/ct.nii.gz"),
    ],
)
def test_names_that_are_one_in_ascii_are_two_cases(tmp_path: Path, names: tuple[str, ...]) -> None:
    """The second was left out as the same scan."""
    for name in names:
        write_nifti(tmp_path / name, FEW)
    candidates, rejected = scan(tmp_path)
    assert sorted(c.source for c in candidates) == sorted(names) and not rejected
    assert len({c.case for c in candidates}) == 2 and all(plain_name(c.case, "case") for c in candidates)
    (tmp_path / names[0]).unlink()
    assert len(scan(tmp_path)[0]) == 1


@pytest.mark.parametrize("name", ["x.nrrd", "x.nhdr", "x.img.hdr", "x.zip", "x.dcm.gz", "x.mgz", "x.tar.gz"])
def test_formats_that_are_not_read_are_said(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    candidates, rejected = scan(tmp_path)
    assert not candidates and [(r.source, r.reason[:40]) for r in rejected] == [
        (name, "not read: DICOM, NIfTI and MetaImage are")
    ]


def test_slices_whose_names_differ_in_writing_are_one_scan(tmp_path: Path) -> None:
    for number, path in enumerate(write_series(tmp_path, FEW)):
        dataset = pydicom.dcmread(path)
        dataset.PatientName = "ONE^" if number % 2 else "One"
        dataset.save_as(path)
    candidates, rejected = scan(tmp_path)
    assert [len(c.slices) for c in candidates] == [4] and not rejected


def test_losses_and_frames_of_reference_are_noted(tmp_path: Path) -> None:
    path = write_series(tmp_path, FEW, LossyImageCompression="01")[0]
    dataset = pydicom.dcmread(path)
    dataset.FrameOfReferenceUID = f"{ROOT}.10"
    dataset.save_as(path)
    (candidate,), _ = scan(tmp_path)
    assert candidate.facts["note"].startswith("FrameOfReferenceUID (0020,0052) differs within the scan")
    assert candidate.facts["note"].endswith("compressed with losses before it came here")


def test_structures_of_a_patient_without_a_ct_are_said(tmp_path: Path) -> None:
    write_series(tmp_path, FEW)
    write_rtstruct(tmp_path / "rs.dcm", {"heart": []}, patient="P2")
    _, rejected = scan(tmp_path)
    assert [(r.source, r.kind) for r in rejected] == [("rs.dcm", "label")]
