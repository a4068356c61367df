"""Whose the CT series is: patient, study, character sets, and radiographs that do not belong together."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from custom.dicom.write_ct import write_ct_series
from tests.custom.dicom.stored_radiographs import ROOT, dx, header, save
from tests.custom.dicom.synthetic_ct import first_slice, synthetic


def test_same_patient_and_study_new_series(dx_headers: list[Dataset], tmp_path: Path) -> None:
    files = write_ct_series(synthetic(dx_headers), tmp_path / "ct")
    images = [pydicom.dcmread(f) for f in files]
    for keyword in (
        "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID",
        "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "StudyDescription", "ReferringPhysicianName",
    ):  # fmt: skip
        assert images[0].get(keyword) == dx_headers[0].get(keyword), keyword
    series = {i.SeriesInstanceUID for i in images}
    frames = {i.FrameOfReferenceUID for i in images}
    assert len(series) == len(frames) == 1 and not series & {h.SeriesInstanceUID for h in dx_headers}
    assert len({i.SOPInstanceUID for i in images}) == len(images)
    assert all(f"{i.file_meta.MediaStorageSOPInstanceUID}" == i.SOPInstanceUID for i in images)
    again = pydicom.dcmread(write_ct_series(synthetic(dx_headers), tmp_path / "again")[0])
    assert again.SeriesInstanceUID not in series and again.FrameOfReferenceUID not in frames


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 144", "Люкceмбypг^Иван"),
        ("ISO_IR 192", "Достоевский^Фёдор"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        ("GB18030", "Wang^XiaoDong=王^小东="),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("ISO_IR 100", "Müller^Jürg"),
    ],
)
def test_names_survive_in_the_character_set_of_the_source(charset: Any, name: str, tmp_path: Path) -> None:
    source = save(dx(1, SpecificCharacterSet=charset, PatientName=name), tmp_path / "dx.dcm")
    image = first_slice([header(source)], tmp_path / "ct")
    wanted = header(source)
    stored = [d.get_item("PatientName").value for d in (image, wanted)]
    assert isinstance(stored[0], bytes) and stored[0].rstrip(b"= ") == stored[1].rstrip(b"= ")
    assert image.SpecificCharacterSet == wanted.SpecificCharacterSet
    assert str(image.PatientName) == str(wanted.PatientName) and str(image.PatientName).rstrip("=") == name.rstrip("=")


def test_different_character_sets_meet_in_unicode(tmp_path: Path) -> None:
    headers = [
        header(save(dx(1, SpecificCharacterSet="ISO_IR 144", PatientName="Иванов^Иван"), tmp_path / "a.dcm")),
        header(save(dx(2, SpecificCharacterSet="ISO_IR 192", PatientName="Иванов^Иван"), tmp_path / "b.dcm")),
    ]
    image = first_slice(headers, tmp_path / "ct")
    assert image.SpecificCharacterSet == "ISO_IR 192" and str(image.PatientName) == "Иванов^Иван"


def test_source_without_character_set_stays_without(tmp_path: Path) -> None:
    source = save(dx(1, SpecificCharacterSet=None), tmp_path / "dx.dcm")
    assert "SpecificCharacterSet" not in first_slice([header(source)], tmp_path / "ct")


def test_text_that_the_character_set_lacks_is_an_error(tmp_path: Path) -> None:
    source = header(save(dx(1), tmp_path / "dx.dcm"))
    source.PatientName = "山田^太郎"
    with pytest.raises(ValueError, match="ISO_IR 100"):
        write_ct_series(synthetic([source]), tmp_path / "ct")
    assert not (tmp_path / "ct").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"PatientID": "4712"}, r"several patients: PatientID \(0010,0020\) is '4711' in view1.dcm and '4712' in v"),
        ({"PatientName": "Doe^John"}, "several patients: PatientName"),
        ({"PatientBirthDate": "19600301"}, "several patients: PatientBirthDate"),
        ({"IssuerOfPatientID": "ELSEWHERE"}, "several patients: IssuerOfPatientID"),
        ({"StudyInstanceUID": f"{ROOT}.2"}, "several studies: StudyInstanceUID"),
        ({"StudyInstanceUID": None}, "view2.dcm has no StudyInstanceUID"),
        ({"SOPInstanceUID": ""}, r"view2.dcm has no SOPInstanceUID \(0008,0018\)"),
        ({"SeriesInstanceUID": None}, "view2.dcm has no SeriesInstanceUID"),
    ],
)
def test_radiographs_that_do_not_belong_together(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    headers = [header(save(dx(k), tmp_path / f"view{k}.dcm")) for k in (1, 2)]
    for keyword, value in change.items():
        if value is None:
            delattr(headers[1], keyword)
        else:
            setattr(headers[1], keyword, value)
    with pytest.raises(ValueError, match=message):
        write_ct_series(synthetic(headers), tmp_path / "ct")
    assert {p.name for p in tmp_path.iterdir()} == {"view1.dcm", "view2.dcm"}


def test_an_unknown_character_set_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    """pydicom puts the traceback into the message of its own error."""
    path = save(dx(1), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"CS\x0a\0ISO_IR 100", b"CS\x0a\0ISO_IR 999"))
    with pytest.raises(ValueError, match="cannot be written as DICOM with character set ISO_IR 999: ") as error:
        write_ct_series(synthetic([header(path)]), tmp_path / "ct")
    assert "Traceback" not in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("change", [{"PatientName": "DOE^JANE^^"}, {"PatientID": ""}, {"PatientBirthDate": None}])
def test_padding_and_silence_are_no_contradiction(change: dict[str, Any], tmp_path: Path) -> None:
    headers = [header(save(dx(k, **(change if k == 2 else {})), tmp_path / f"{k}.dcm")) for k in (1, 2)]
    image = first_slice(headers, tmp_path / "ct")
    assert (image.PatientName, image.PatientID, image.PatientBirthDate) == ("Doe^Jane", "4711", "19600229")


def test_deidentification_is_claimed_only_where_every_source_claims_it(tmp_path: Path) -> None:
    flags = {"PatientIdentityRemoved": "YES", "DeidentificationMethod": "Basic profile"}
    clean = [header(save(dx(k, **flags), tmp_path / f"clean{k}.dcm")) for k in (1, 2)]
    plain = [header(save(dx(k), tmp_path / f"plain{k}.dcm")) for k in (1, 2)]
    image = first_slice(clean, tmp_path / "clean")
    assert (image.PatientIdentityRemoved, image.DeidentificationMethod) == ("YES", "Basic profile")
    for name, sources in (("plain", plain), ("mixed", [clean[0], plain[1]])):
        image = first_slice(sources, tmp_path / name)
        assert "PatientIdentityRemoved" not in image and "DeidentificationMethod" not in image


def test_pictures_without_a_patient(tmp_path: Path) -> None:
    image = first_slice([], tmp_path / "ct")
    assert not any((image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex))
    assert image.StudyInstanceUID and image.StudyDate and "SourceImageSequence" not in image
    patient = {"PatientName": "Doe^Jane", "PatientID": "7", "PatientBirthDate": "19600229", "PatientSex": "F"}
    given = first_slice([], tmp_path / "given", patient=patient)
    assert {k: str(given.get(k)) for k in patient} == patient and given.StudyInstanceUID != image.StudyInstanceUID


@pytest.mark.parametrize(
    ("patient", "message"),
    [
        ({"PatientBirthDate": "1960-02-29"}, r"PatientBirthDate \(0010,0030\) is not valid DICOM"),
        ({"PatientID": "9" * 80}, r"PatientID \(0010,0020\) is not valid DICOM"),
        ({"PatientSex": "X"}, "give M, F, O"),
        ({"Name": "Doe"}, "unknown key 'Name'"),
    ],
)
def test_given_patient_is_checked(patient: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_ct_series(synthetic([], patient=patient), tmp_path / "ct")


def test_given_patient_beside_dicom_is_refused(dx_headers: list[Dataset], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give no patient beside them"):
        write_ct_series(synthetic(dx_headers, patient={"PatientID": "7"}), tmp_path / "ct")


def test_bad_identity_in_the_source_is_an_error_bad_remarks_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.warns(UserWarning, match="."):
        source = dx(1, PatientID="9" * 80)
    with pytest.raises(ValueError, match=r"PatientID \(0010,0020\) is not valid DICOM"):
        write_ct_series(synthetic([source]), tmp_path / "ct")
    with pytest.warns(UserWarning, match="."):
        source = dx(1, StudyDate="2026.1.2", PatientSex="W")
    with caplog.at_level(logging.WARNING):
        image = first_slice([source], tmp_path / "ct")
    assert not image.StudyDate and not image.PatientSex
    assert "StudyDate" in caplog.text and "PatientSex" in caplog.text


@pytest.mark.parametrize(
    ("keyword", "values", "written"),
    [
        ("StudyDescription", ["CT", "XR thorax"], None),
        ("AccessionNumber", ["A17", "A18"], ""),
        ("PatientWeight", ["70", "71"], None),
        ("BodyPartExamined", ["CHEST", "ABDOMEN"], "CHEST"),
        ("PatientPosition", ["HFP", "FFP"], "HFS"),
    ],
)
def test_remarks_of_several_values_do_not_stop_a_reconstruction(
    keyword: str, values: list[str], written: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as a description with a backslash in it; who the patient is must not be in doubt."""
    sources = [header(save(dx(1, **{keyword: values}), tmp_path / "a.dcm"))]
    with caplog.at_level(logging.WARNING):
        found = first_slice(sources, tmp_path / "ct")
    assert found.get(keyword) == written
    assert f"a.dcm: {keyword}" in caplog.text and "has 2 values" in caplog.text
    with pytest.raises(ValueError, match=r"a\.dcm: PatientID \(0010,0020\) has 2 values, it must have one"):
        first_slice([header(save(dx(1, PatientID=["1", "2"]), tmp_path / "a.dcm"))], tmp_path / "ct2")
