"""Reader of a clinic's RT Plan: static photon fields with jaws and MLC. What cannot be computed is refused, by name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from custom.core.limits import check_count, check_file_size
from custom.dicom.opener import open_dicom
from custom.radiotherapy.planning_numbers import NUMBERS
from custom.radiotherapy.rt_objects import PLAN
from custom.radiotherapy.treatment_plan import AS_GIVEN, Field, Leaves, Plan

__all__ = ["read_rt_plan"]

LARGEST_FILE = 64 * 2**20
#: Apertures of all fields, and leaf pairs of one.
MOST_FIELDS, MOST_LEAVES = 60, 200
_NOTHING = (None, "", 0)


def read_rt_plan(path: Path, frame_of_reference_uid: str) -> Plan:
    """A plan as it is in the file, with its own monitor units.

    A field of several static apertures (step and shoot) becomes one field for each.

    Args:
        path: an RT Plan.
        frame_of_reference_uid: of the CT that it is to be computed on.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming file and beam: no RT Plan, another frame of reference, or what the dose engine cannot do:
            electrons and other particles, arcs and sliding windows, wedges, blocks, compensators, boli, a turned couch,
            several isocentres or energies, an energy or a source distance without its data, another patient position.
    """
    if path.is_file():
        check_file_size(path, LARGEST_FILE)
    dataset = open_dicom(path, pixels=False)
    if dataset.get("SOPClassUID") != PLAN:
        raise ValueError(f"{path}: is no RT Plan (SOP Class UID {dataset.get('SOPClassUID', 'missing')})")
    try:
        return _plan(path, dataset, frame_of_reference_uid)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: damaged RT Plan, something it needs is missing ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _plan(path: Path, dataset: Dataset, frame: str) -> Plan:
    found = str(dataset.get("FrameOfReferenceUID", ""))
    if found != frame:
        raise ValueError(
            f"its frame of reference is {found or 'not given'}, the CT's {frame}: the plan belongs to another CT, and "
            "where its isocentre would lie in this one is not known"
        )
    for setup in dataset.get("PatientSetupSequence") or []:
        if setup.get("PatientPosition", "HFS") not in ("HFS", None, ""):
            raise ValueError(f"Patient Position is {setup.PatientPosition}; only HFS (head first, supine) is computed")
    groups = dataset.get("FractionGroupSequence") or []
    if len(groups) != 1:
        raise ValueError(f"{len(groups) or 'no'} fraction groups; one is computed")
    group = groups[0]
    if int(group.get("NumberOfBrachyApplicationSetups") or 0):
        raise ValueError("a brachytherapy plan; only external photon fields are computed")
    metersets = {int(one.ReferencedBeamNumber): one for one in group.get("ReferencedBeamSequence") or []}
    check_count(path, "beams", len(dataset.get("BeamSequence") or []), MOST_FIELDS)
    fields: list[Field] = []
    facts: set[tuple[str, tuple[float, ...]]] = set()
    for beam in dataset.get("BeamSequence") or []:
        number = int(beam.BeamNumber)
        if number not in metersets or str(beam.get("TreatmentDeliveryType") or "TREATMENT") != "TREATMENT":
            continue  # setup fields deliver nothing
        name = f"beam {number} ({beam.get('BeamName') or 'no name'})"
        quality, isocenter, own = _fields(
            beam, name, _number(metersets[number].get("BeamMeterset"), name, "Beam Meterset")
        )
        facts.add((quality, isocenter))
        fields += own
        check_count(path, "static apertures", len(fields), MOST_FIELDS)
    if not fields:
        raise ValueError("no treatment beam with monitor units")
    if len(facts) != 1:
        raise ValueError("its beams have several isocentres or energies; one of each is computed")
    quality, (x, y, z) = facts.pop()
    fractions = int(group.get("NumberOfFractionsPlanned") or 1)
    prescription = _prescription(dataset, metersets.values(), fractions)
    notes = ("computed as given by an RT Plan, with its monitor units; the beam is not the clinic's",)
    label = str(dataset.get("RTPlanLabel") or "RTPLAN")
    return Plan(label, quality, (-x, -y, z), tuple(fields), prescription, fractions, AS_GIVEN, notes=notes)


def _prescription(dataset: Dataset, beams: Any, fractions: int) -> float:
    """Of all fractions, Gy: the highest of the targets', else the beams' own doses."""
    doses = [float(one.get("TargetPrescriptionDose") or 0) for one in dataset.get("DoseReferenceSequence") or []]
    total = max(doses, default=0.0) or fractions * sum(float(one.get("BeamDose") or 0) for one in beams)
    if not (math.isfinite(total) and total > 0):
        raise ValueError(
            "neither Target Prescription Dose nor Beam Dose: what percents of the dose are of is not known"
        )
    return total


def _fields(beam: Dataset, name: str, meterset: float) -> tuple[str, tuple[float, ...], list[Field]]:
    """Beam quality, isocentre (LPS mm) and a field for each static aperture."""
    if str(beam.get("RadiationType")) != "PHOTON":
        raise ValueError(f"{name}: radiation is {beam.get('RadiationType') or 'not given'}; only photons are computed")
    for keyword in ("NumberOfWedges", "NumberOfBlocks", "NumberOfCompensators", "NumberOfBoli"):
        if int(beam.get(keyword) or 0):
            kind = keyword.removeprefix("NumberOf").lower()
            raise ValueError(f"{name}: has {kind}, whose data no plan holds; fields without them are computed")
    if any(str(one.get("FluenceMode")) == "NON_STANDARD" for one in beam.get("PrimaryFluenceModeSequence") or []):
        raise ValueError(f"{name}: a beam without flattening filter (or another fluence mode) is not computed")
    distance = _number(beam.get("SourceAxisDistance"), name, "Source-Axis Distance")
    if abs(distance - NUMBERS.beam.source_to_axis_mm) > 1:
        raise ValueError(f"{name}: source to axis {distance:g} mm, computed is {NUMBERS.beam.source_to_axis_mm:g} mm")
    points = list(beam.get("ControlPointSequence") or [])
    if len(points) < 2:
        raise ValueError(f"{name}: {len(points)} control points; at least two are needed")
    check_count(name, "control points", len(points), 2 * MOST_FIELDS)
    first = points[0]
    isocenter = tuple(_number(v, name, "Isocenter Position") for v in first.IsocenterPosition)
    if len(isocenter) != 3:
        raise ValueError(f"{name}: Isocenter Position has {len(isocenter)} values")
    energy = _number(first.get("NominalBeamEnergy"), name, "Nominal Beam Energy")
    boundaries = {
        str(one.RTBeamLimitingDeviceType): [float(v) for v in one.get("LeafPositionBoundaries") or []]
        for one in beam.get("BeamLimitingDeviceSequence") or []
    }
    _require_static(points, name, str(beam.get("BeamType")))
    total = _number(beam.get("FinalCumulativeMetersetWeight"), name, "Final Cumulative Meterset Weight")
    weights = [_number(p.get("CumulativeMetersetWeight"), name, "Cumulative Meterset Weight") for p in points]
    if total <= 0 or any(b < a for a, b in itertools.pairwise(weights)):
        raise ValueError(f"{name}: meterset weights {weights} of {total:g} do not rise")
    devices: dict[str, list[float]] = {}
    found: list[Field] = []
    for index, point in enumerate(points[:-1]):
        changed = _positions(point, name)
        devices |= changed
        share = (weights[index + 1] - weights[index]) / total
        if share <= 0:
            continue
        later = _positions(points[index + 1], name)
        if any(devices.get(kind) != values for kind, values in later.items()):
            raise ValueError(f"{name}: jaws or leaves move while the beam is on; only static apertures are computed")
        found.append(
            _field(f"{name}{f', {len(found) + 1}' if found else ''}", first, devices, boundaries, meterset * share)
        )
    return f"{energy:g} MV", isocenter, found


def _require_static(points: Sequence[Dataset], name: str, kind: str) -> None:
    first = points[0]
    gantry, collimator = first.get("GantryAngle"), first.get("BeamLimitingDeviceAngle")
    for point in points:
        turning = str(point.get("GantryRotationDirection") or "NONE") != "NONE"
        if turning or point.get("GantryAngle", gantry) != gantry:
            raise ValueError(f"{name}: an arc (the gantry turns while the beam is on) is not computed")
        if point.get("BeamLimitingDeviceAngle", collimator) != collimator:
            raise ValueError(f"{name}: the collimator turns; only static fields are computed")
        for keyword in (
            "PatientSupportAngle",
            "TableTopEccentricAngle",
            "TableTopPitchAngle",
            "TableTopRollAngle",
            "GantryPitchAngle",
        ):
            value = point.get(keyword)
            if value not in _NOTHING and float(value) % 360:
                raise ValueError(f"{name}: {keyword} is {float(value):g} degrees; only a couch at 0 is computed")
        if any(str(one.get("WedgePosition") or "OUT") != "OUT" for one in point.get("WedgePositionSequence") or []):
            raise ValueError(f"{name}: has wedges, whose data no plan holds")
    if kind not in ("STATIC", "DYNAMIC"):
        raise ValueError(f"{name}: Beam Type is {kind}")


def _positions(point: Dataset, name: str) -> dict[str, list[float]]:
    found = {}
    for one in point.get("BeamLimitingDevicePositionSequence") or []:
        values = one.get("LeafJawPositions") or []
        check_count(name, "leaf positions", len(values), 2 * MOST_LEAVES)
        found[str(one.RTBeamLimitingDeviceType)] = [_number(v, name, "Leaf/Jaw Positions") for v in values]
    return found


def _field(
    name: str, first: Dataset, devices: dict[str, list[float]], boundaries: dict[str, list[float]], units: float
) -> Field:
    jaws: dict[str, tuple[float, float]] = {}
    leaves = None
    for kind, values in devices.items():
        axis = kind[-1:]
        if kind in ("X", "Y", "ASYMX", "ASYMY") and len(values) == 2:
            jaws[axis] = (values[0], values[1])
        elif kind in ("MLCX", "MLCY") and leaves is None:
            half = len(values) // 2
            if len(values) != 2 * half or len(boundaries.get(kind, [])) != half + 1:
                raise ValueError(f"{name}: {len(values)} leaf positions and {len(boundaries.get(kind, []))} boundaries")
            leaves = Leaves(axis, tuple(boundaries[kind]), tuple(values[:half]), tuple(values[half:]))
        else:
            raise ValueError(f"{name}: beam limiting device {kind} with {len(values)} positions is not computed")
    x, y = jaws.get("X"), jaws.get("Y")
    if leaves is None and (x is None or y is None):
        raise ValueError(f"{name}: neither two pairs of jaws nor leaves say how large the field is")
    if leaves is not None:
        across, along = (y, x) if leaves.along == "X" else (x, y)
        reach = leaves.outline()
        along, across = along or reach[0], across or reach[1]
        x, y = (along, across) if leaves.along == "X" else (across, along)
    assert x is not None and y is not None
    return Field(
        name, _number(first.get("GantryAngle"), name, "Gantry Angle"), (*x, *y), units,
        _number(first.get("BeamLimitingDeviceAngle"), name, "Beam Limiting Device Angle"), 0.0, leaves,
    )  # fmt: skip


def _number(value: Any, name: str, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {what} is missing or no number") from error
    if not math.isfinite(number):
        raise ValueError(f"{name}: {what} is {number}")
    return number
