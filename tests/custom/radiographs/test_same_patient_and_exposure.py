"""Radiographs of one patient, each another exposure: else it is asked about."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hand_written_dicom import A, F, L, R, dx, picture, save
from pydicom.dataset import Dataset

from custom.data.sample import __path__ as sample_folder
from custom.dicom.identity import PATIENT_ATTRIBUTES, differences
from custom.dicom.subject import subject
from custom.geometry import Geometry, VolumeGrid
from custom.radiographs import MissingMetadata, read_radiographs
from custom.radiographs.radiograph import Radiograph
from custom.radiographs.same_exposure import check_exposures

TRUTH = picture(1500 * A, -300 * A, L, F)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ({"PatientName": "Test^Anna", "PatientID": ""}, {"PatientName": "Other^Berta", "PatientID": ""}, "PatientName"),
        ({"PatientName": "Test^Anna"}, {"PatientName": "Other^Berta"}, "PatientName"),
        ({"IssuerOfPatientID": "HERE"}, {"IssuerOfPatientID": "ELSEWHERE"}, "IssuerOfPatientID"),
        ({"PatientName": ""}, {"PatientID": ""}, "Patient's Name .* and Patient ID .* only"),
        ({"PatientName": "TEST^ANNA^^^", "PatientSex": "F"}, {"PatientName": "Test^Anna"}, ""),
        ({"PatientID": ""}, {"PatientSex": "F"}, ""),
        (
            {"PatientName": "M\u00fcller^Eva", "SpecificCharacterSet": "ISO_IR 192"},
            {"PatientName": "MU\u0308LLER^Eva", "SpecificCharacterSet": "ISO_IR 192"},
            "",
        ),
        ({"PatientName": "Test  Anna"}, {"PatientName": "Test Anna"}, ""),
        (
            {"PatientName": "\ufeffTest^A\u200bnna", "SpecificCharacterSet": "ISO_IR 192"},
            {"PatientName": "\uff34est^Anna", "SpecificCharacterSet": "ISO_IR 192"},
            "",
        ),
        (
            {"PatientName": "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce", "SpecificCharacterSet": "ISO_IR 192"},
            {"PatientName": "Yamada^Tarou", "SpecificCharacterSet": "ISO_IR 192"},
            "",
        ),
        (
            {"PatientName": "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce", "SpecificCharacterSet": "ISO_IR 192"},
            {"PatientName": "Yamada^Tarou=\u5c71\u672c^\u592a\u90ce", "SpecificCharacterSet": "ISO_IR 192"},
            "PatientName",
        ),
    ],
)
def test_one_check_of_one_strength(tmp_path: Path, first: dict, second: dict, says: str) -> None:
    """What a CT series is refused for is asked about when radiographs are read, and nothing else."""
    one, two = dx(PatientBirthDate="19600101", **first), dx("A\\F", "LL", PatientBirthDate="19600101", **second)
    if not says and "PatientName" in second:
        one.PatientName, two.PatientName = first["PatientName"], second["PatientName"]
    paths = [save(tmp_path / "a.dcm", one), save(tmp_path / "b.dcm", two)]
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    if not says:
        assert len(read_radiographs(paths)) == 2
        subject(headers, {}, None, datetime.datetime(2026, 1, 1))
        return
    with pytest.raises(MissingMetadata, match=f"b.dcm: whose it is: .*{says}.*--accept several-patients"):
        read_radiographs(paths)
    with pytest.raises(ValueError, match="of several patients"):
        subject(headers, {}, None, datetime.datetime(2026, 1, 1))
    accepted = read_radiographs(paths, accept="several-patients")[1]
    assert accepted.metadata.patient.provenance == "option --accept several-patients"


@pytest.mark.parametrize(
    ("date", "days"), [("20260103", 0), ("2026.01.09", 0), ("20260110", 8), ("20250102", 365), ("1.1.26", 0), ("", 0)]
)
def test_studies_apart_are_asked_about(tmp_path: Path, date: str, days: int) -> None:
    """2026-01-02 against another day: within a week, or where it cannot be read, a warning."""
    paths = [save(tmp_path / "a.dcm", dx()), save(tmp_path / "b.dcm", dx("A\\F", "LL", StudyDate=date))]
    if not days:
        (warnings,) = [one.warnings for one in read_radiographs(paths)[1:]]
        assert [one.startswith("b.dcm: taken on another day: on ") for one in warnings] == [True] * bool(date)
        return
    readable = f"{date[:4]}-{date[4:6]}-{date[6:]}"
    said = f"it was taken on {readable}, and a.dcm on 2026-01-02, .*{days} days apart.*--accept study-dates-apart"
    with pytest.raises(MissingMetadata, match=said):
        read_radiographs(paths)
    accepted = read_radiographs(paths, accept="study-dates-apart")[1]
    assert accepted.metadata.study_date.provenance == "option --accept study-dates-apart"
    assert f"{days} days apart" in accepted.warnings[-1]


def test_without_a_study_date_that_of_the_exposure_counts(tmp_path: Path) -> None:
    later = dx("A\\F", "LL", StudyDate="", AcquisitionDate="20270102")
    paths = [save(tmp_path / "a.dcm", dx()), save(tmp_path / "b.dcm", later)]
    said = r"on 2027-01-02, and a.dcm on 2026-01-02, by AcquisitionDate \(0008,0022\) and StudyDate .*365 days apart"
    with pytest.raises(MissingMetadata, match=said):
        read_radiographs(paths)


def test_name_and_id_are_joined_by_a_third() -> None:
    nobody = dict.fromkeys(PATIENT_ATTRIBUTES, "")
    name, number = {**nobody, "PatientName": "A^B"}, {**nobody, "PatientID": "1"}
    both = {**nobody, "PatientName": "a^b", "PatientID": "1"}
    assert [(one.index, one.other) for one in differences([name, nobody, number])] == [(2, 0)]
    assert differences([name, number, both]) == []
    assert differences([nobody, nobody]) == []


def again(dataset: Dataset, **attributes: object) -> Dataset:
    for keyword, value in {"SOPInstanceUID": "1.2.3.4.5.6", **attributes}.items():
        setattr(dataset, keyword, value)
    return dataset


def with_noise(photons: float) -> Dataset:
    counted = np.random.default_rng(1).poisson(photons * np.exp(-TRUTH)) * (50000 / photons)
    return again(dx(), PixelData=np.clip(counted, 0, 65535).astype("<u2").tobytes())


def cut(dataset: Dataset, line_integrals: np.ndarray) -> Dataset:
    dataset.Rows, dataset.Columns = line_integrals.shape
    dataset.PixelData = np.rint(50000 * np.exp(-line_integrals)).astype("<u2").tobytes()
    return dataset


def turned(change: Callable[[np.ndarray], np.ndarray]) -> Dataset:
    """The frontal picture, turned or cut, that claims to be a lateral one; its pixels are square."""
    spacing = [4, 3] if change(TRUTH).shape[0] < change(TRUTH).shape[1] else [3, 4]
    picture = cut(dx("A\\F", "LL"), change(TRUTH))
    return again(picture, ImagerPixelSpacing=spacing)


@pytest.mark.parametrize(
    ("copy", "says"),
    [
        (lambda: again(dx()), r"correlate by 1\.000\);"),
        (lambda: with_noise(5000), r"correlate by 0\.9..\);"),
        (lambda: again(dx(), ViewPosition="LL", PatientOrientation=["A", "F"]), "though its view is 90 degrees away"),
        (lambda: again(dx(), ViewPosition="RL", PatientOrientation=["A", "F"]), "though its view is 90 degrees away"),
        (lambda: again(dx(), ViewPosition="PA"), "though its view is 180 degrees away"),
        (lambda: turned(np.rot90), "though its view is 90 degrees away"),
        (lambda: turned(lambda p: np.rot90(p)[::-1]), "though its view is 90 degrees away"),
        (lambda: turned(lambda p: p[8:-6, 10:-20]), "though its view is 90 degrees away"),
        (lambda: turned(lambda p: np.rot90(p[8:-6, 10:-20])), "though its view is 90 degrees away"),
        (lambda: again(cut(dx(), TRUTH[:, 25:])), r"correlate by (1.000|0.9..)\);"),
        (lambda: again(cut(dx(), TRUTH[8:-4, 10:-5])), r"correlate by (1.000|0.9..)\);"),  # of the same shape
    ],
)
def test_one_exposure_under_two_uids(tmp_path: Path, copy: object, says: str) -> None:
    paths = [save(tmp_path / "a.dcm", dx()), save(tmp_path / "b.dcm", copy())]  # type: ignore[operator]
    with pytest.raises(MissingMetadata, match=f"b.dcm: it shows the same exposure as a.dcm .*{says}.*leave one out"):
        read_radiographs(paths)
    first, second = read_radiographs(paths, accept="repeated-exposures")
    assert first.metadata.exposure is None
    assert second.metadata.exposure.provenance == "option --accept repeated-exposures"


def test_two_windows_of_one_size_on_one_exposure(tmp_path: Path) -> None:
    windows = (TRUTH[:, :-14], TRUTH[:, 14:])
    paths = [
        save(tmp_path / f"{k}.dcm", again(cut(dx(), one), SOPInstanceUID=f"1.2.{k}")) for k, one in enumerate(windows)
    ]
    with pytest.raises(MissingMetadata, match=r"1\.dcm: it shows the same exposure as 0\.dcm"):
        read_radiographs(paths)


@pytest.mark.parametrize(("event", "asked"), [("1.2.3", True), ("1.2.4", False), ("", False)])
def test_one_irradiation_event_is_one_exposure(tmp_path: Path, event: str, asked: bool) -> None:
    events = ({"IrradiationEventUID": "1.2.3" if event else ""}, {"IrradiationEventUID": event})
    paths = [save(tmp_path / "a.dcm", dx(**events[0])), save(tmp_path / "b.dcm", dx("A\\F", "LL", **events[1]))]
    if not asked:
        assert len(read_radiographs(paths)) == 2
        return
    with pytest.raises(MissingMetadata, match=r"same exposure as a.dcm \(by Irradiation Event UID \(0008,3010\)\)"):
        read_radiographs(paths)


def test_twice_in_a_stack(tmp_path: Path) -> None:
    import nibabel

    views = [TRUTH, picture(1500 * R, -300 * R, A, F), TRUTH + np.random.default_rng(1).normal(0, 0.02, TRUTH.shape)]
    stack = np.stack(views).astype(np.float32).transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(stack, np.eye(4)), tmp_path / "case.nii.gz")
    Geometry.from_angles(
        [90.0, 0.0, 45.0], "cone", 1500.0, 1800.0, (96, 120), (4.0, 3.0), grid=VolumeGrid.cube(64, 200.0)
    ).save(tmp_path / "case.json")
    with pytest.raises(
        MissingMetadata, match=r"1 thing is .*case.nii.gz\[2\]: it shows .* as case.nii.gz\[0\] .* 45 deg"
    ):
        read_radiographs([tmp_path / "case.nii.gz"])


def test_real_views_are_other_exposures() -> None:
    """A CT's views a few degrees apart, opposite, and with little light; each is a copy only of itself."""
    import nibabel
    import torch

    from custom.core.attenuation import hu_to_attenuation
    from custom.geometry import views_from_angles
    from custom.projection import Projector

    image = nibabel.load(Path(next(iter(sample_folder)), "lidc0001.nii.gz"))
    volume = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))[None, None]
    views = views_from_angles(
        [90.0, 95.0, 100.0, 135.0, 270.0, 0.0, 180.0], source_to_isocenter_mm=1650.0, source_to_detector_mm=1800.0,
        pixel_mm=3.5,
    )  # fmt: skip
    with torch.inference_mode():
        pictures = Projector(VolumeGrid(), (112, 112))(hu_to_attenuation(volume), views)[0]
    generator = torch.Generator().manual_seed(1)
    for photons in (None, 2000.0):
        seen = pictures
        if photons is not None:
            seen = -(torch.poisson(photons * torch.exp(-pictures), generator).clamp(min=0.5) / photons).log()
        field = torch.ones(112, 112, dtype=torch.bool)
        read = [Radiograph(f"{k}", Path(), "", one, field, views[k].double()) for k, one in enumerate(seen)]
        assert check_exposures(read, frozenset())[1] == ()
        copy = Radiograph("copy", Path(), "", pictures[0] + 0.01 * torch.randn(112, 112, generator=generator), field,
                          views[5].double())  # fmt: skip
        (question,) = check_exposures([*read, copy], frozenset())[1]
        assert question.file == "copy"
