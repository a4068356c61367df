"""Geometry of RTIMAGE from its tags: a linac's or simulator's gantry.

References: PS3.3 C.8.8.2 (RT Image) and IEC 61217. IEC axes of a viewer who faces the gantry: X to the right, Y towards
the gantry, Z up. Gantry 0: the source is above; 90: at +X. The receptor's axes turn with the gantry.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pydicom

from custom.core.angles import angle_difference_deg
from custom.dicom.header import Header, numbers, tag, text
from custom.radiographs.acquisition_metadata import AcquisitionMetadata, MetadataValue, Origin, value_of
from custom.radiographs.dicom_pose import common_tags, tagged
from custom.radiographs.readings import Reading, ask, found, merge, note
from custom.radiographs.view_from_metadata import StoredPose, letters

__all__ = ["read_rt_pose"]

#: Rows are the patient's R, A, S in the fixed IEC axes X, Y, Z, by Patient Position (0018,5100).
_PATIENT_AXES = {
    "HFS": ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),
    "HFP": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "FFS": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "FFP": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
}
#: A plane nearer than so many distances to the isocentre is virtual, and is moved to so many of them.
_VIRTUAL, _BEHIND = 1.2, 1.5
_NOT_PICTURES = ("BLANK", "FLUENCE")


def _exposure(dataset: pydicom.Dataset, keyword: str) -> tuple[float, ...] | None:
    """An attribute of the image, or else of the first item of its Exposure Sequence (3002,0030)."""
    values = numbers(dataset, keyword)
    if values is not None:
        return values
    try:
        return numbers(dataset.ExposureSequence[0], keyword)
    except Exception:  # absent, empty or damaged
        return None


def read_rt_pose(
    header: Header, others: Reading, shape: tuple[int, int], frame: int = 1, accept: frozenset[str] = frozenset()
) -> tuple[Reading, StoredPose]:
    """All geometry that the tags hold; see `custom.radiographs.dicom_pose.read_pose`."""
    dataset, given = header.dataset, merge(others)
    for kind in _NOT_PICTURES:
        if kind in text(dataset, "ImageType").split("\\"):
            raise ValueError(f"{header.path}: an RTIMAGE of type {kind} shows no patient")
    # Patient Orientation follows from gantry and patient position here; one that is stored is only compared.
    stored = text(dataset, "PatientOrientation")
    if given.orientation is None and stored.strip("\\"):
        dataset = dataset.copy()
        del dataset.PatientOrientation
    own = _exposure_tags(dataset) + common_tags(replace(header, dataset=dataset))
    by_plane, moved = _image_plane(dataset, given)
    own += by_plane
    position = text(dataset, "PatientPosition")
    own += tagged("patient_position", position if position in _PATIENT_AXES else None, "PatientPosition")
    own += _couch(dataset, given)
    if given.angle_deg is not None and given.orientation is not None:
        return own, StoredPose()
    gantry = _exposure(dataset, "GantryAngle")
    if gantry is None:
        problem = f"the angle: Gantry Angle {tag('GantryAngle')} {merge(own).state_of_tag('angle_deg')}"
        return own + ask(problem, ("angle_deg", "orientation"), '"angle_deg" and "orientation"'), StoredPose()
    if "head-first-supine" in accept:
        own += found("patient_position", "HFS", Origin.OPTION, "head-first-supine")
    if merge(others, own).patient_position is None:
        said = f"is {position!r}" if position else "is empty"
        problem = f"how the patient lay: Patient Position {tag('PatientPosition')} {said}"
        keys, example = (
            ("patient_position", "angle_deg", "orientation"),
            '"patient_position": "HFS", "HFP", "FFS" or "FFP"',
        )
        return own + ask(problem, keys, example, "head-first-supine"), StoredPose()
    by_gantry, pose = _by_gantry(dataset, merge(others, own), gantry[0], shape, stored, moved)
    return own + by_gantry, pose


def _image_plane(dataset: pydicom.Dataset, given: AcquisitionMetadata) -> tuple[Reading, float]:
    """Distances and pixels of the image plane, and the factor by which it was moved along its rays.

    RT Image SID (3002,0026) is the distance to the plane in which the picture is scaled (C.8.8.2), often at the
    isocentre: a DRR's, or a portal image's that was scaled to it. No detector stands there, in the patient. The same
    rays meet a plane behind the patient, in which pixels and offsets are larger as the distance is.
    """
    plane, axis = (
        distance[0] if (distance := numbers(dataset, keyword)) is not None and distance[0] > 0 else None
        for keyword in ("RTImageSID", "RadiationMachineSAD")
    )
    spacing = numbers(dataset, "ImagePlanePixelSpacing", 2)
    size = spacing if spacing is not None and min(spacing) > 0 else None
    own = tagged("source_to_isocenter_mm", axis, "RadiationMachineSAD")
    isocenter = value_of(given.source_to_isocenter_mm) or axis
    told = any(one is not None for one in (given.source_to_detector_mm, given.pixel_mm, given.detector_offset_mm))
    if plane is None or isocenter is None or plane > _VIRTUAL * isocenter or told:
        own += tagged("source_to_detector_mm", plane, "RTImageSID")
        return own + tagged("pixel_mm", size, "ImagePlanePixelSpacing"), 1.0
    factor = _BEHIND * isocenter / plane
    where = f"moved along the rays from the image plane at {plane:g} mm, DICOM {tag('RTImageSID')}"
    own += found("source_to_detector_mm", factor * plane, Origin.DERIVED, where)
    larger = None if size is None else tuple(factor * s for s in size)
    return own + found("pixel_mm", larger, Origin.DERIVED, f"{tag('ImagePlanePixelSpacing')}, {where}"), factor


def _exposure_tags(dataset: pydicom.Dataset) -> Reading:
    own = Reading()
    if "DRR" in text(dataset, "ImageType").split("\\"):
        own += note("this is a DRR, computed from a CT, not a measured radiograph")
    kvp = _exposure(dataset, "KVP")
    if kvp is None or kvp[0] <= 0:
        return own
    if kvp[0] > 400:
        own += note(
            f"a megavoltage beam ({kvp[0]:g} kV): its line integrals are several times smaller than those of the "
            "X-rays that networks are trained with"
        )
    return own + tagged("kvp", kvp[0], "KVP")


def _couch(dataset: pydicom.Dataset, given: AcquisitionMetadata) -> Reading:
    couch = _exposure(dataset, "PatientSupportAngle")
    if couch is None or abs(angle_difference_deg(couch[0], 0)) <= 0.5 or given.angle_deg is not None:
        return Reading()
    problem = (
        f"the angle to the patient: the couch is turned by {couch[0]:g} degrees, Patient Support Angle "
        f"{tag('PatientSupportAngle')}"
    )
    keys = ("angle_deg", "elevation_deg", "orientation")
    return ask(problem, keys, '"angle_deg", "elevation_deg" and "orientation"')


def _receptor_axes(dataset: pydicom.Dataset) -> tuple[np.ndarray, np.ndarray] | Reading:
    """Directions of columns and rows of the stored picture in the receptor's plane (Xr, Yr)."""
    columns, rows = np.array([1.0, 0.0]), np.array([0.0, -1.0])
    cosines = numbers(dataset, "RTImageOrientation", 6)
    plane = text(dataset, "RTImagePlane")
    flat = cosines is None or max(abs(cosines[2]), abs(cosines[5])) < 1e-3
    if cosines is not None and flat:
        columns, rows = np.array(cosines[:2]), np.array(cosines[3:5])
        lengths = float(np.linalg.norm(columns)), float(np.linalg.norm(rows))
        flat = all(abs(n - 1) < 1e-2 for n in lengths) and abs(float(columns @ rows)) < 1e-2
    if flat and plane != "NON_NORMAL":
        return columns, rows
    return ask(
        f"where the receptor stands: RT Image Plane {tag('RTImagePlane')} is {plane or 'empty'} and RT Image "
        f"Orientation {tag('RTImageOrientation')} is not in the receptor's plane",
        ("angle_deg", "orientation", "detector_angles_deg"),
        '"angle_deg", "orientation" and "detector_angles_deg"',
    )


def _by_gantry(
    dataset: pydicom.Dataset,
    known: AcquisitionMetadata,
    gantry_deg: float,
    shape: tuple[int, int],
    stored: str,
    moved: float,
) -> tuple[Reading, StoredPose]:
    axes, position = _receptor_axes(dataset), known.patient_position
    if isinstance(axes, Reading):
        return axes, StoredPose()
    if abs(gantry_deg) > 720 or position is None:
        return Reading(), StoredPose()
    g = math.radians(gantry_deg)
    x_axis, y_axis = np.array([math.cos(g), 0.0, -math.sin(g)]), np.array([0.0, 1.0, 0.0])
    to_patient = np.array(_PATIENT_AXES[position.value], dtype=float)
    toward_source = to_patient @ np.array([math.sin(g), 0.0, math.cos(g)])
    angle = math.degrees(math.atan2(toward_source[1], toward_source[0])) % 360
    where = f"DICOM {tag('GantryAngle')}, {position.provenance}"
    own = found("angle_deg", angle, Origin.FILE, where)
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
    where = f"DICOM {tag('GantryAngle')}, {tag('RTImageOrientation')}, {position.provenance}"
    own += found("orientation", "\\".join(names), Origin.FILE, where)
    if known.orientation is None and stored.replace("\\", "") and stored.split("\\")[0][:1] != names[0][:1]:
        own += note(
            f"Patient Orientation (0020,0020) is {stored[:20]}, but gantry and patient position give "
            f"{names[0]}\\{names[1]}; the latter is used"
        )
    own += tagged("detector_roll_deg", roll if abs(roll) > 0.05 else None, "XRayImageReceptorAngle")
    pixel = value_of(known.pixel_mm)
    corner = numbers(dataset, "RTImagePosition", 2)
    if corner is None or pixel is None:
        return own, StoredPose()
    translation = numbers(dataset, "XRayImageReceptorTranslation", 3) or (0.0, 0.0, 0.0)
    middle = axes[0] * (shape[1] - 1) / 2 * pixel[1] + axes[1] * (shape[0] - 1) / 2 * pixel[0]
    middle = turn @ (np.array(corner) * moved + middle) + np.array(translation[:2]) * moved
    offset = float(middle @ columns), float(middle @ rows)
    where = f"DICOM {tag('RTImagePosition')}, {tag('XRayImageReceptorTranslation')}"
    pose = StoredPose(MetadataValue("detector_offset_mm", offset, Origin.FILE, where))
    return own + _check_receptor(known, translation, offset, moved), pose


def _check_receptor(
    known: AcquisitionMetadata, translation: tuple[float, ...], offset: tuple[float, float], moved: float
) -> Reading:
    sid, sad = value_of(known.source_to_detector_mm), value_of(known.source_to_isocenter_mm)
    own = Reading()
    # A virtual plane stands elsewhere than the receptor.
    if moved == 1 and translation[2] and sid and sad and abs(sad - translation[2] - sid) > 5:
        own += note(
            f"the receptor stands {-translation[2]:g} mm behind the isocentre by (3002,000D), but {sid - sad:g} mm by "
            "RT Image SID and SAD, which are used"
        )
    if max(map(abs, offset)) > 400:
        own += note(f"the picture's middle lies {max(map(abs, offset)):.0f} mm beside the central ray")
    return own
