"""Writer of a plan as DICOM RT Structure Set, RT Plan and RT Dose beside its CT series (PS3.3 A.19, A.20, A.18).

All three share the CT's study and frame of reference. The dose refers to the plan, the plan to the structures, the
structures to the CT's slices: planning systems connect a dose only where its plan is there. Each says that it is
synthetic, research and unapproved.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.valuerep import DSfloat
from scipy import ndimage

from custom import __version__
from custom.core.files import write_bytes
from custom.dicom.strict import encode, new_uid, set_value
from custom.dicom.subject import subject
from custom.radiotherapy.ct_reference import CT_CLASS, CTReference
from custom.radiotherapy.planning import PlannedCase
from custom.radiotherapy.treatment_plan import ISOCENTER, Field, Plan

__all__ = ["RT_FILES", "write_rt_objects"]

STRUCTURES, PLAN, DOSE = (f"1.2.840.10008.5.1.4.1.1.481.{number}" for number in (3, 5, 2))
STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"  # what Referenced Study names as its class
RT_FILES = ("rtstruct.dcm", "rtplan.dcm", "rtdose.dcm")
LABEL, NOTE = "SYNTHETIC", "SYNTHETIC, RESEARCH, NOT FOR TREATMENT"
#: Highest stored dose: 16 bits, since checkers stop at 32.
_HIGHEST = 65000
_COLOURS = {"External": [0, 200, 0], "Heart": [255, 120, 100], "Spine": [255, 220, 120]}
_LUNG_COLOUR, _TARGET_COLOUR = [120, 180, 255], [255, 0, 255]


def write_rt_objects(case: PlannedCase, ct: CTReference, folder: Path) -> list[Path]:
    """Write `RT_FILES` into a folder.

    Contours are polygons in the planes of the CT's slices; holes in an axial slice are closed, since planning systems
    do not agree on how they are written. The dose is of all fractions, 16 bits with a scaling factor.

    Args:
        case: contours, plan and dose, in the frame of the CT series.
        ct: the series.
        folder: exists.

    Raises:
        ValueError: slices of several patients or studies, text that breaks the standard.
    """
    now = datetime.datetime.now()
    uids = {name: new_uid(name, None) for name in RT_FILES}
    for number, (name, sop_class, modality, fill) in enumerate(
        zip(
            RT_FILES,
            (STRUCTURES, PLAN, DOSE),
            ("RTSTRUCT", "RTPLAN", "RTDOSE"),
            (_structures, _plan, _dose),
            strict=True,
        )
    ):
        target = subject(ct.headers, {}, None, now)
        target.pop("LossyImageCompression", None)
        if not "".join([case.plan.template, *(one.name for one in case.plan.fields)]).isascii():
            target.SpecificCharacterSet = "ISO_IR 192"  # the CT's may lack the letters of a given plan
        values = {
            "SOPClassUID": sop_class, "SOPInstanceUID": uids[name], "Modality": modality,
            "InstanceCreationDate": now.strftime("%Y%m%d"), "InstanceCreationTime": now.strftime("%H%M%S"),
            "SeriesInstanceUID": new_uid(f"series of {name}", None), "SeriesNumber": 9101 + number,
            "SeriesDescription": NOTE, "OperatorsName": "", "Manufacturer": "fewview-ct",
            "ManufacturerModelName": "fewview-ct plan", "SoftwareVersions": f"fewview-ct {__version__}",
            "FrameOfReferenceUID": ct.frame_of_reference_uid, "PositionReferenceIndicator": "",
            "InstanceNumber": 1,
        }  # fmt: skip
        _set(target, **values)
        fill(target, case, ct, uids, now)
        write_bytes(folder / name, encode(target))
    return [folder / name for name in RT_FILES]


def _set(target: Dataset, **values: Any) -> Dataset:
    for keyword, value in values.items():
        set_value(target, keyword, value, "plan")
    return target


def _item(**values: Any) -> Dataset:
    return _set(Dataset(), **values)


def _decimal(value: float) -> DSfloat:
    return DSfloat(float(value) + 0.0, auto_format=True)


def _reference(sop_class: str, uid: str) -> Dataset:
    return _item(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=uid)


def _lps(point_mm: npt.ArrayLike) -> list[DSfloat]:
    x, y, z = np.asarray(point_mm, dtype=float)
    return [_decimal(round(v, 4)) for v in (-x, -y, z)]


# Structure Set


def _structures(
    target: Dataset, case: PlannedCase, ct: CTReference, uids: dict[str, Any], now: datetime.datetime
) -> None:
    frame, study = ct.frame_of_reference_uid, str(ct.headers[0].StudyInstanceUID)
    images = [_reference(CT_CLASS, str(one.SOPInstanceUID)) for one in ct.headers]
    series = _item(SeriesInstanceUID=str(ct.headers[0].SeriesInstanceUID), ContourImageSequence=images)
    referenced = _reference(STUDY_MANAGEMENT, study)
    _set(referenced, RTReferencedSeriesSequence=[series])
    rois, contours, observations = [], [], []
    for number, (name, one) in enumerate(case.contours.structures.items(), 1):
        rois.append(
            _item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=frame,
                ROIName=name,
                ROIGenerationAlgorithm="AUTOMATIC",
                ROIGenerationDescription=one.origin[:64],
            )
        )
        polygons = _polygons(case, one.mask, ct)
        colour = _TARGET_COLOUR if one.kind == "CTV" else _COLOURS.get(name, _LUNG_COLOUR)
        roi = _item(ReferencedROINumber=number, ROIDisplayColor=colour)
        if polygons:
            _set(roi, ContourSequence=polygons)
        contours.append(roi)
        observations.append(
            _item(
                ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType=one.kind, ROIInterpreter=""
            )
        )
    _set(
        target,
        StructureSetLabel=LABEL, StructureSetName=NOTE,
        StructureSetDate=now.strftime("%Y%m%d"), StructureSetTime=now.strftime("%H%M%S"),
        ReferencedFrameOfReferenceSequence=[_item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[referenced])],
        StructureSetROISequence=rois, ROIContourSequence=contours, RTROIObservationsSequence=observations,
        ApprovalStatus="UNAPPROVED",
    )  # fmt: skip


def _polygons(case: PlannedCase, mask: npt.NDArray[np.bool_], ct: CTReference) -> list[Dataset]:
    from skimage.measure import find_contours

    grid, found = case.ct.grid, []
    first, spacing = grid.affine()[:3, 3], np.array(grid.spacing_mm)
    for header, z in zip(ct.headers, ct.heights_mm, strict=True):
        layer = round((z - first[2]) / spacing[2])
        if not 0 <= layer < grid.shape[2] or not mask[:, :, layer].any():
            continue
        filled = np.pad(ndimage.binary_fill_holes(mask[:, :, layer]), 1)
        for outline in find_contours(filled.astype(np.float32), 0.5):
            xy = first[:2] + (outline[:-1] - 1) * spacing[:2]  # the last point is the first
            points = np.column_stack([-xy, np.full(len(xy), z)])
            found.append(
                _item(
                    ContourImageSequence=[_reference(CT_CLASS, str(header.SOPInstanceUID))],
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(points),
                    ContourData=[_decimal(round(v, 3)) for v in points.ravel()],
                )
            )
    return found


# Plan


def _plan(target: Dataset, case: PlannedCase, ct: CTReference, uids: dict[str, Any], now: datetime.datetime) -> None:
    plan = case.plan
    beams = [_beam(plan, one, number) for number, one in enumerate(plan.fields, 1)]
    metersets = [
        _item(ReferencedBeamNumber=number, BeamMeterset=_decimal(one.monitor_units))
        for number, one in enumerate(plan.fields, 1)
    ]
    dose = _item(
        DoseReferenceNumber=1, DoseReferenceType="TARGET", DoseReferenceDescription=plan.normalisation[:64],
        TargetPrescriptionDose=_decimal(plan.prescription_gy),
    )  # fmt: skip
    names = list(case.contours.structures)
    if plan.normalisation == ISOCENTER:
        _set(dose, DoseReferenceStructureType="COORDINATES", DoseReferencePointCoordinates=_lps(plan.isocenter_mm))
    elif plan.target in names:
        _set(dose, DoseReferenceStructureType="VOLUME", ReferencedROINumber=names.index(plan.target) + 1)
    else:
        _set(dose, DoseReferenceStructureType="SITE")
    _set(
        target,
        RTPlanLabel=LABEL, RTPlanName=plan.template[:64], RTPlanDescription=f"{NOTE}. {' '.join(plan.notes)}"[:1024],
        RTPlanDate=now.strftime("%Y%m%d"), RTPlanTime=now.strftime("%H%M%S"),
        RTPlanGeometry="PATIENT", PlanIntent="RESEARCH", DoseReferenceSequence=[dose],
        FractionGroupSequence=[
            _item(
                FractionGroupNumber=1, NumberOfFractionsPlanned=plan.fractions, NumberOfBeams=len(beams),
                NumberOfBrachyApplicationSetups=0, ReferencedBeamSequence=metersets,
            )
        ],
        BeamSequence=beams,
        PatientSetupSequence=[_item(PatientSetupNumber=1, PatientPosition="HFS")],
        ReferencedStructureSetSequence=[_reference(STRUCTURES, uids["rtstruct.dcm"])],
        ApprovalStatus="UNAPPROVED",
    )  # fmt: skip


def _beam(plan: Plan, field: Field, number: int) -> Dataset:
    x1, x2, y1, y2 = field.jaws_mm
    devices = [_item(RTBeamLimitingDeviceType=kind, NumberOfLeafJawPairs=1) for kind in ("ASYMX", "ASYMY")]
    places: list[tuple[str, tuple[float, ...]]] = [("ASYMX", (x1, x2)), ("ASYMY", (y1, y2))]
    if field.leaves is not None:
        kind, leaves = f"MLC{field.leaves.along}", field.leaves
        boundaries = [_decimal(v) for v in leaves.boundaries_mm]
        devices.append(
            _item(
                RTBeamLimitingDeviceType=kind,
                NumberOfLeafJawPairs=len(leaves.low_mm),
                LeafPositionBoundaries=boundaries,
            )
        )
        places.append((kind, (*leaves.low_mm, *leaves.high_mm)))
    positions = [
        _item(RTBeamLimitingDeviceType=kind, LeafJawPositions=[_decimal(v) for v in values]) for kind, values in places
    ]
    start = _item(
        ControlPointIndex=0, NominalBeamEnergy=_decimal(float(plan.beam_quality.split()[0])),
        BeamLimitingDevicePositionSequence=positions,
        GantryAngle=_decimal(field.gantry_deg % 360), GantryRotationDirection="NONE",
        BeamLimitingDeviceAngle=_decimal(field.collimator_deg % 360), BeamLimitingDeviceRotationDirection="NONE",
        PatientSupportAngle=0, PatientSupportRotationDirection="NONE",
        TableTopEccentricAngle=0, TableTopEccentricRotationDirection="NONE",
        TableTopVerticalPosition=None, TableTopLongitudinalPosition=None, TableTopLateralPosition=None,
        IsocenterPosition=_lps(plan.isocenter_mm), CumulativeMetersetWeight=0,
    )  # fmt: skip
    return _item(
        BeamNumber=number, BeamName=field.name[:64], BeamDescription=NOTE, BeamType="STATIC", RadiationType="PHOTON",
        TreatmentMachineName=LABEL, PrimaryDosimeterUnit="MU", SourceAxisDistance=_decimal(plan.source_to_axis_mm),
        BeamLimitingDeviceSequence=devices, ReferencedPatientSetupNumber=1, TreatmentDeliveryType="TREATMENT",
        NumberOfWedges=0, NumberOfCompensators=0, NumberOfBoli=0, NumberOfBlocks=0,
        FinalCumulativeMetersetWeight=1, NumberOfControlPoints=2,
        ControlPointSequence=[start, _item(ControlPointIndex=1, CumulativeMetersetWeight=1)],
    )  # fmt: skip


# Dose


def _dose(target: Dataset, case: PlannedCase, ct: CTReference, uids: dict[str, Any], now: datetime.datetime) -> None:
    grid = case.ct.grid
    # RAS+ to LPS: columns run to the left, rows to posterior, frames to the head.
    dose = np.maximum(case.dose_gy, 0)[::-1, ::-1].transpose(2, 1, 0)
    scaling = DSfloat(max(float(dose.max()), 1e-6) / _HIGHEST, auto_format=True)
    stored = np.rint(dose / float(scaling)).clip(0, 65535).astype("<u2")
    corner = grid.affine()[:3, 3] + np.array([grid.shape[0] - 1, grid.shape[1] - 1, 0]) * grid.spacing_mm
    _set(
        target,
        ContentDate=now.strftime("%Y%m%d"), ContentTime=now.strftime("%H%M%S"),
        SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
        NumberOfFrames=stored.shape[0], Rows=stored.shape[1], Columns=stored.shape[2],
        FrameIncrementPointer=Tag("GridFrameOffsetVector"),
        PixelSpacing=[_decimal(grid.spacing_mm[1]), _decimal(grid.spacing_mm[0])],
        SliceThickness=_decimal(grid.spacing_mm[2]),
        ImagePositionPatient=_lps(corner), ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        GridFrameOffsetVector=[_decimal(round(k * grid.spacing_mm[2], 4)) for k in range(stored.shape[0])],
        BitsAllocated=16, BitsStored=16, HighBit=15, PixelRepresentation=0,
        DoseUnits="GY", DoseType="PHYSICAL", DoseComment=NOTE, DoseSummationType="PLAN", DoseGridScaling=scaling,
        TissueHeterogeneityCorrection="IMAGE",
        ReferencedRTPlanSequence=[_reference(PLAN, uids["rtplan.dcm"])],
    )  # fmt: skip
    target.add_new("PixelData", "OW", stored.tobytes())
