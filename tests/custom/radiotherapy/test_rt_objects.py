"""A plan as DICOM RT objects, read back by others, and plans of a clinic read in."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from matplotlib import path as polygon
from thorax_phantom import patient, plan, thorax

from custom.dicom.write_ct import SyntheticCT, write_ct_series
from custom.geometry import VolumeGrid
from custom.radiotherapy import (
    RT_FILES,
    CTReference,
    Field,
    Leaves,
    PencilBeamEngine,
    PlannedCase,
    has_ct_series,
    plan_case,
    read_ct_reference,
    read_rt_plan,
    write_rt_objects,
)
from custom.radiotherapy.dose_engine import fluence_map

ENGINE = PencilBeamEngine()
#: Square slices: of others rt-utils cuts off what lies beyond their shorter side.
GRID = VolumeGrid((72, 72, 40), (5.0, 5.0, 5.0), (10.0, -20.0, 30.0))
CT, MASKS = thorax(grid=GRID)
MODEL = {"name": "inr_recon", "sha256": "a" * 64, "version": "1"}


@pytest.fixture(scope="module")
def case() -> PlannedCase:
    found = patient(CT, MASKS, ENGINE, "breast_left", "Breast_L").case
    assert found is not None
    return found


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series") / "ct"
    write_ct_series(SyntheticCT(CT.hu, GRID.affine(), [], MODEL, "A phantom.", {"PatientName": "A^B"}), folder)
    return folder


@pytest.fixture(scope="module")
def reference(series: Path) -> CTReference:
    return read_ct_reference(series)


@pytest.fixture(scope="module")
def folder(case: PlannedCase, reference: CTReference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the three objects."""
    found = tmp_path_factory.mktemp("rt")
    assert [path.name for path in write_rt_objects(case, reference, found)] == list(RT_FILES)
    return found


@pytest.fixture
def rt_plan(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(folder / "rtplan.dcm", tmp_path))


def test_references_are_complete_and_each_object_says_what_it_is(folder: Path, reference: CTReference) -> None:
    structures, given, dose = (pydicom.dcmread(folder / name) for name in RT_FILES)
    slices = {str(one.SOPInstanceUID) for one in reference.headers}
    for one in (structures, given, dose):
        assert one.FrameOfReferenceUID == reference.frame_of_reference_uid
        assert one.StudyInstanceUID == reference.headers[0].StudyInstanceUID and str(one.PatientName) == "A^B"
        assert one.SeriesDescription.startswith("SYNTHETIC") and "NOT FOR TREATMENT" in one.SeriesDescription
    assert structures.StructureSetLabel == given.RTPlanLabel == "SYNTHETIC" and "SYNTHETIC" in dose.DoseComment
    assert given.ApprovalStatus == structures.ApprovalStatus == "UNAPPROVED" and given.PlanIntent == "RESEARCH"
    assert dose.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == given.SOPInstanceUID
    assert given.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == structures.SOPInstanceUID
    of_frame = structures.ReferencedFrameOfReferenceSequence[0]
    named = of_frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert {str(one.ReferencedSOPInstanceUID) for one in named.ContourImageSequence} == slices
    for roi in structures.ROIContourSequence:
        for contour in roi.ContourSequence:
            assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID in slices
    rois = {one.ROINumber: one.ROIName for one in structures.StructureSetROISequence}
    assert rois[given.DoseReferenceSequence[0].ReferencedROINumber] == "Breast_L"
    kinds = {rois[one.ReferencedROINumber]: one.RTROIInterpretedType for one in structures.RTROIObservationsSequence}
    assert (kinds["External"], kinds["Heart"], kinds["Breast_L"]) == ("EXTERNAL", "ORGAN", "CTV")


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)")
def test_no_errors_by_dciodvfy(folder: Path) -> None:
    for path in (folder / name for name in RT_FILES):
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False, timeout=60)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert done.returncode == 0 and not errors, (path.name, errors)


def test_second_readers_find_the_contours(case: PlannedCase, series: Path, folder: Path) -> None:
    """matplotlib finds the same voxels inside; rt-utils, which rounds corners to voxels, finds each in its place."""
    rt_utils = pytest.importorskip("rt_utils", reason="rt-utils comes with pydosert")
    structures = pydicom.dcmread(folder / "rtstruct.dcm")
    drawn = rt_utils.RTStructBuilder.create_from(str(series), str(folder / "rtstruct.dcm"))
    assert drawn.get_roi_names() == list(case.contours.structures)
    x, y, z = (GRID.axis_mm(axis).double().numpy() for axis in range(3))
    across = np.stack(np.meshgrid(-x, -y, indexing="ij"), -1).reshape(-1, 2)
    for roi, (name, one) in zip(structures.ROIContourSequence, case.contours.structures.items(), strict=True):
        inside = np.zeros(GRID.shape, int)
        for contour in roi.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            layer = int(np.abs(z - points[0, 2]).argmin())
            assert np.abs(points[:, 2] - z[layer]).max() < 1e-3
            inside[:, :, layer] += polygon.Path(points[:, :2]).contains_points(across).reshape(GRID.shape[:2])
        assert ((inside > 0) == one.mask).all(), name
        # Rows of rt-utils run to posterior and columns to the left.
        mask = np.transpose(drawn.get_roi_mask_by_name(name), (1, 0, 2))[::-1, ::-1]
        apart = np.mean(np.nonzero(mask), 1) - np.mean(np.nonzero(one.mask), 1)
        assert np.abs(apart).max() < 0.55, (name, apart)  # voxels


def test_a_second_reader_finds_the_dose_where_it_is(case: PlannedCase, folder: Path) -> None:
    """pymedphys gives axes in LPS mm, as (z, y, x)."""
    if importlib.util.find_spec("pymedphys") is None:
        pytest.skip("pymedphys has no release for this Python")
    import pymedphys

    (z, y, x), dose = pymedphys.dicom.zyx_and_dose_from_dataset(pydicom.dcmread(folder / "rtdose.dcm"))
    np.testing.assert_allclose(z, GRID.axis_mm(2).numpy(), atol=1e-3)
    np.testing.assert_allclose(y, -GRID.axis_mm(1).numpy()[::-1], atol=1e-3)
    np.testing.assert_allclose(x, -GRID.axis_mm(0).numpy()[::-1], atol=1e-3)
    np.testing.assert_allclose(dose.transpose(2, 1, 0)[::-1, ::-1], case.dose_gy, atol=case.dose_gy.max() / 60000)


def test_a_plan_comes_back_as_it_was(case: PlannedCase, reference: CTReference, rt_plan: Path) -> None:
    found = read_rt_plan(rt_plan, reference)
    assert found.isocenter_mm == pytest.approx(case.plan.isocenter_mm, abs=1e-3)
    assert (found.beam_quality, found.fractions, found.prescription_gy) == ("6 MV", 25, 50.0)
    for one, other in zip(found.fields, case.plan.fields, strict=True):
        assert one.gantry_deg == pytest.approx(other.gantry_deg) and one.jaws_mm == pytest.approx(
            other.jaws_mm, abs=1e-3
        )
        assert one.monitor_units == pytest.approx(other.monitor_units, rel=1e-6)
    again = plan_case(CT, found, case.contours, ENGINE)
    np.testing.assert_allclose(again.dose_gy, case.dose_gy, atol=1e-3 * case.dose_gy.max())
    assert not found.has_point_dose  # half-beam blocked: the isocentre lies on the fields' edge


def test_leaves_shape_the_field_and_come_back(reference: CTReference, tmp_path: Path) -> None:
    """A stair of two leaf pairs beyond the isocentre; jaws cut the second."""
    leaves = Leaves("X", (-40.0, 0.0, 40.0), (-30.0, -10.0), (30.0, 50.0))
    one = Field("stair", 0.0, (-35.0, 35.0, -40.0, 20.0), 100.0, 90.0, 0.0, leaves)
    fluence = fluence_map(one)

    def at(xb: float, yb: float) -> float:
        x, y = one.on_gantry(np.array(xb), np.array(yb))
        return float(fluence[round(float(y) + 199.5), round(float(x) + 199.5)])

    for x, y, value in (
        (-20, -20, 1),
        (20, -20, 1),
        (-20, 10, 0),
        (20, 10, 1),
        (45, 10, 0),
        (20, 30, 0),
        (-34, -20, 0),
    ):
        assert at(x, y) == pytest.approx(value, abs=0.06), (x, y)
    turned = Field("turned", 0.0, (-40.0, 20.0, -35.0, 35.0), 100.0, 0.0, 0.0, Leaves("Y", *tuple(
        (leaves.boundaries_mm, leaves.low_mm, leaves.high_mm))))  # fmt: skip
    assert float(fluence_map(turned).sum()) == pytest.approx(float(fluence.sum()), rel=1e-3)
    whole = PlannedCase(CT, patient(CT, MASKS, ENGINE).contours, plan(one, beam_quality="10 MV"), 0 * CT.hu)
    write_rt_objects(whole, reference, tmp_path)
    (found,) = read_rt_plan(tmp_path / "rtplan.dcm", reference).fields
    assert found.leaves == leaves and found.jaws_mm == one.jaws_mm and found.collimator_deg == 90.0


def test_what_is_no_dicom_is_refused(tmp_path: Path, reference: CTReference) -> None:
    (tmp_path / "plan.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 200)
    with pytest.raises(ValueError, match=r"plan\.dcm"):
        read_rt_plan(tmp_path / "plan.dcm", reference)
    with pytest.raises(FileNotFoundError):
        read_rt_plan(tmp_path / "none.dcm", reference)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"PatientPosition": "HFP"}, "HFP"), ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "axial"),
     ({"FrameOfReferenceUID": "1.2.9"}, "2 frames of reference"), ({"SeriesInstanceUID": "1.2.8"}, "2 CT series"),
     ({"SOPInstanceUID": "../evil"}, "no valid SOPInstanceUID"), ({"ImagePositionPatient": None}, "Position")],
)  # fmt: skip
def test_series_that_a_plan_cannot_belong_to(changes: dict, said: str, series: Path, tmp_path: Path) -> None:
    shutil.copytree(series, tmp_path / "ct")
    path = tmp_path / "ct" / "CT_0003.dcm"
    dataset = pydicom.dcmread(path)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    with pytest.raises(ValueError, match=said):
        read_ct_reference(tmp_path / "ct")
    assert has_ct_series(tmp_path / "ct") and not has_ct_series(tmp_path / "none")


def test_leaves_that_cannot_be() -> None:
    for bad in (
        ("Z", (0, 1), (0,), (1,)), ("X", (0, 1), (0, 0), (1,)), ("X", (1, 0), (0,), (1,)), ("X", (0, 1), (2,), (1,)),
        ("X", (0, float("nan")), (0,), (1,)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="leaves"):
            Leaves(*bad)  # type: ignore[arg-type]


def test_point_dose_of_a_given_plan_needs_open_fields() -> None:
    wide = Field("f", 0.0, (-50.0, 50.0, -50.0, 50.0), 1.0)
    shut = Leaves("X", (-50.0, 0.0, 50.0), (-50.0, 20.0), (50.0, 50.0))
    assert wide.covers_isocenter()
    assert not Field("f", 0.0, (0.0, 50.0, -50.0, 50.0), 1.0).covers_isocenter()
    assert not Field("f", 0.0, (-50.0, 50.0, -50.0, 50.0), 1.0, leaves=shut).covers_isocenter()
    assert torch.equal(fluence_map(wide), fluence_map(Field("f", 0.0, wide.jaws_mm, 2.0)))
