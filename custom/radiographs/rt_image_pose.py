"""Geometry of RTIMAGE from its tags, as facts with provenance: a linac's or simulator's gantry.

Sources: PS3.3 C.8.8.2 (RT Image) and IEC 61217. IEC axes of a viewer who faces the gantry: X to the right, Y towards
the gantry, Z up. Gantry 0: the source is above; 90: at +X. The receptor's axes turn with the gantry.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pydicom

from custom.dicom.header import Header, numbers, tag, text
from custom.radiographs import dicom_pose as dicom_pose
from custom.radiographs.acquisition_metadata import FactSheet
from custom.radiographs.view_from_metadata import letters

__all__ = ["locate_rt"]

#: Rows are the patient's R, A, S in the fixed IEC axes X, Y, Z, by Patient Position (0018,5100).
_PATIENT_AXES = {
    "HFS": ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),
    "HFP": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "FFS": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "FFP": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
}
_NOT_PICTURES = ("BLANK", "FLUENCE")


def _exposure(dataset: pydicom.Dataset, keyword: str) -> tuple[float, ...] | None:
    """An attribute of the image, or else of the first item of its Exposure Sequence (3002,0030)."""
    found = numbers(dataset, keyword)
    if found is not None:
        return found
    try:
        return numbers(dataset.ExposureSequence[0], keyword)
    except Exception:  # absent, empty or damaged
        return None


def locate_rt(header: Header, sheet: FactSheet, shape: tuple[int, int], frame: int = 1) -> dicom_pose.Pose:
    """Offer all geometry that the tags hold to the sheet; see `custom.radiographs.dicom_pose.locate`."""
    dataset = header.dataset
    for kind in _NOT_PICTURES:
        if kind in text(dataset, "ImageType").split("\\"):
            raise ValueError(f"{header.path}: an RTIMAGE of type {kind} shows no patient")
    if "DRR" in text(dataset, "ImageType").split("\\"):
        sheet.warn("this is a DRR, computed from a CT, not a measured radiograph")
    kvp = _exposure(dataset, "KVP")
    if kvp is not None and kvp[0] > 0:
        sheet.offer("kvp", kvp[0], f"DICOM {tag('KVP')}")
        if kvp[0] > 400:
            sheet.warn(
                f"a megavoltage beam ({kvp[0]:g} kV): its line integrals are several times smaller than those of the "
                "X-rays that networks are trained with"
            )
    # Patient Orientation follows from gantry and patient position here; one that is stored is only compared.
    stored = text(dataset, "PatientOrientation")
    if "orientation" not in sheet.facts and stored.strip("\\"):
        dataset = dataset.copy()
        del dataset.PatientOrientation
    dicom_pose.offer_common(Header(header.path, dataset, header.modality), sheet)
    for key, keyword in (("source_to_detector_mm", "RTImageSID"), ("source_to_isocenter_mm", "RadiationMachineSAD")):
        found = numbers(dataset, keyword)
        if found is not None and found[0] > 0:
            sheet.offer(key, found[0], f"DICOM {tag(keyword)}")
    spacing = numbers(dataset, "ImagePlanePixelSpacing", 2)
    if spacing is not None and min(spacing) > 0:
        sheet.offer("pixel_mm", spacing, f"DICOM {tag('ImagePlanePixelSpacing')}")
    _offer_couch(dataset, sheet)
    gantry = _exposure(dataset, "GantryAngle")
    position = text(dataset, "PatientPosition")
    if position in _PATIENT_AXES:
        sheet.offer("patient_position", position, f"DICOM {tag('PatientPosition')}")
    if sheet.get("angle_deg") is not None and sheet.get("orientation") is not None:
        return dicom_pose.Pose()
    if gantry is None:
        sheet.gap(f"the angle: Gantry Angle {tag('GantryAngle')} is empty", '"angle_deg" and "orientation"')
        return dicom_pose.Pose()
    if sheet.get("patient_position") is None and sheet.accepts("head-first-supine"):
        sheet.offer("patient_position", "HFS", "option --accept head-first-supine")
    if sheet.get("patient_position") is None:
        said = f"is {position!r}" if position else "is empty"
        sheet.gap(
            f"how the patient lay: Patient Position {tag('PatientPosition')} {said}",
            '"patient_position": "HFS", "HFP", "FFS" or "FFP"',
            ["head-first-supine"],
        )
        return dicom_pose.Pose()
    return _by_gantry(dataset, sheet, gantry[0], shape, stored)


def _offer_couch(dataset: pydicom.Dataset, sheet: FactSheet) -> None:
    couch = _exposure(dataset, "PatientSupportAngle")
    if couch is not None and abs((couch[0] + 180) % 360 - 180) > 0.5 and sheet.get("angle_deg") is None:
        sheet.gap(
            f"the angle to the patient: the couch is turned by {couch[0]:g} degrees, Patient Support Angle "
            f"{tag('PatientSupportAngle')}",
            '"angle_deg", "elevation_deg" and "orientation"',
        )


def _receptor_axes(dataset: pydicom.Dataset, sheet: FactSheet) -> tuple[np.ndarray, np.ndarray] | None:
    """Directions of columns and rows of the stored picture in the receptor's plane (Xr, Yr)."""
    columns, rows = np.array([1.0, 0.0]), np.array([0.0, -1.0])
    cosines = numbers(dataset, "RTImageOrientation", 6)
    plane = text(dataset, "RTImagePlane")
    flat = cosines is None or max(abs(cosines[2]), abs(cosines[5])) < 1e-3
    if cosines is not None and flat:
        columns, rows = np.array(cosines[:2]), np.array(cosines[3:5])
        lengths = float(np.linalg.norm(columns)), float(np.linalg.norm(rows))
        flat = all(abs(n - 1) < 1e-2 for n in lengths) and abs(float(columns @ rows)) < 1e-2
    if not flat or plane == "NON_NORMAL":
        sheet.gap(
            f"where the receptor stands: RT Image Plane {tag('RTImagePlane')} is {plane or 'empty'} and RT Image "
            f"Orientation {tag('RTImageOrientation')} is not in the receptor's plane",
            '"angle_deg", "orientation" and "detector_angles_deg"',
        )
        return None
    return columns, rows


def _by_gantry(
    dataset: pydicom.Dataset, sheet: FactSheet, gantry_deg: float, shape: tuple[int, int], stored: str
) -> dicom_pose.Pose:
    axes = _receptor_axes(dataset, sheet)
    if axes is None or abs(gantry_deg) > 720:
        return dicom_pose.Pose()
    g = math.radians(gantry_deg)
    x_axis, y_axis = np.array([math.cos(g), 0.0, -math.sin(g)]), np.array([0.0, 1.0, 0.0])
    to_patient = np.array(_PATIENT_AXES[sheet.get("patient_position")], dtype=float)
    toward_source = to_patient @ np.array([math.sin(g), 0.0, math.cos(g)])
    angle = math.degrees(math.atan2(toward_source[1], toward_source[0])) % 360
    sheet.offer("angle_deg", angle, f"DICOM {tag('GantryAngle')}, {sheet.source('patient_position')}", tolerance=0.5)
    turned = math.radians((numbers(dataset, "XRayImageReceptorAngle") or (0.0,))[0])
    turn = np.array([[math.cos(turned), -math.sin(turned)], [math.sin(turned), math.cos(turned)]])
    columns, rows = turn @ axes[0], turn @ axes[1]
    # The nearest upright position names the directions; the rest is a roll, counter-clockwise from the source.
    heading = math.degrees(math.atan2(columns[1], columns[0]))
    roll = heading - 90 * round(heading / 90)
    back = math.radians(-roll)
    upright = np.array([[math.cos(back), -math.sin(back)], [math.sin(back), math.cos(back)]])
    names = [
        letters(to_patient @ (axis[0] * x_axis + axis[1] * y_axis)) for axis in (upright @ columns, upright @ rows)
    ]
    source = f"DICOM {tag('GantryAngle')}, {tag('RTImageOrientation')}, {sheet.source('patient_position')}"
    sheet.offer("orientation", "\\".join(names), source)
    if stored.replace("\\", "") and stored.split("\\")[0][:1] != names[0][:1] and sheet.source("orientation") == source:
        sheet.warn(
            f"Patient Orientation (0020,0020) is {stored[:20]}, but gantry and patient position give "
            f"{names[0]}\\{names[1]}; the latter is used"
        )
    if abs(roll) > 0.05:
        sheet.offer("detector_roll_deg", roll, f"DICOM {tag('XRayImageReceptorAngle')}", tolerance=0.1)
    pose = dicom_pose.Pose()
    pixel: Any = sheet.get("pixel_mm")
    corner = numbers(dataset, "RTImagePosition", 2)
    if corner is not None and pixel is not None:
        translation = numbers(dataset, "XRayImageReceptorTranslation", 3) or (0.0, 0.0, 0.0)
        middle = np.array(corner) + axes[0] * (shape[1] - 1) / 2 * pixel[1] + axes[1] * (shape[0] - 1) / 2 * pixel[0]
        middle = turn @ middle + np.array(translation[:2])
        pose.offset_mm = float(middle @ columns), float(middle @ rows)
        pose.offset_source = f"DICOM {tag('RTImagePosition')}, {tag('XRayImageReceptorTranslation')}"
        _check_receptor(sheet, translation, pose.offset_mm)
    return pose


def _check_receptor(sheet: FactSheet, translation: tuple[float, ...], offset: tuple[float, float]) -> None:
    sid, sad = sheet.get("source_to_detector_mm"), sheet.get("source_to_isocenter_mm")
    if translation[2] and sid and sad and abs(sad - translation[2] - sid) > 5:
        sheet.warn(
            f"the receptor stands {-translation[2]:g} mm behind the isocentre by (3002,000D), but {sid - sad:g} mm by "
            "RT Image SID and SAD, which are used"
        )
    if max(map(abs, offset)) > 400:
        sheet.warn(f"the picture's middle lies {max(map(abs, offset)):.0f} mm beside the central ray")
