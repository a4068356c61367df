"""Reader of a clinic's RT Plan: static photon fields with jaws and MLC. What cannot be computed is refused, by name."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydicom.dataset import Dataset

from custom.core.limits import check_count, check_file_size
from custom.dicom.header import numbers, tag, text
from custom.dicom.identity import differences, patient_of
from custom.dicom.opener import open_dicom, quiet_pydicom, reason
from custom.radiotherapy.ct_reference import CTReference
from custom.radiotherapy.planning_numbers import NUMBERS
from custom.radiotherapy.rt_objects import PLAN
from custom.radiotherapy.treatment_plan import AS_GIVEN, Field, Leaves, Plan

__all__ = ["read_rt_plan"]

LARGEST_FILE = 64 * 2**20
#: Apertures of all fields, and leaf pairs of one.
MOST_FIELDS, MOST_LEAVES = 60, 200
#: What numbers can be, in the units of DICOM: mm, degrees, MU, MV, Gy.
_RANGES = {
    "BeamNumber": (0, 2**31), "ReferencedBeamNumber": (0, 2**31), "NumberOfFractionsPlanned": (1, 1000),
    "BeamMeterset": (0, 1e5), "BeamDose": (0, 1e3), "TargetPrescriptionDose": (0, 1e3), "NominalBeamEnergy": (0, 1e3),
    "CumulativeMetersetWeight": (0, 1e6), "FinalCumulativeMetersetWeight": (0, 1e6), "SourceAxisDistance": (0, 1e4),
    "IsocenterPosition": (-1e4, 1e4), "LeafJawPositions": (-1e3, 1e3), "LeafPositionBoundaries": (-1e3, 1e3),
    "TableTopVerticalPosition": (-1e4, 1e4), "TableTopLongitudinalPosition": (-1e4, 1e4),
    "TableTopLateralPosition": (-1e4, 1e4),
}  # fmt: skip
_ANY_ANGLE, _ANY_COUNT = (-360, 360), (0, 1e6)
#: Angles that are 0 in what is computed.
_TURNED = (
    "PatientSupportAngle", "TableTopEccentricAngle", "TableTopPitchAngle", "TableTopRollAngle", "GantryPitchAngle",
)  # fmt: skip
#: What stays the same while the beam is on, and what is said where it does not.
_STILL = {
    "GantryAngle": "an arc (the gantry turns while the beam is on) is not computed",
    "BeamLimitingDeviceAngle": "the collimator turns; only static fields are computed",
    "IsocenterPosition": "its isocentre moves while the beam is on; one is computed",
    "NominalBeamEnergy": "its energy changes while the beam is on; one is computed",
    **dict.fromkeys(_TURNED, "the couch turns while the beam is on; only a couch at 0 is computed"),
    **dict.fromkeys(
        ("TableTopVerticalPosition", "TableTopLongitudinalPosition", "TableTopLateralPosition"),
        "the couch moves while the beam is on; only static fields are computed",
    ),
}
#: What a beam may have in its way, how many there are, and where a plan describes it.
_IN_THE_WAY = {
    "wedges": ("NumberOfWedges", "WedgeSequence"), "blocks": ("NumberOfBlocks", "BlockSequence"),
    "compensators": ("NumberOfCompensators", "CompensatorSequence"),
    "boli": ("NumberOfBoli", "ReferencedBolusSequence"), "an applicator": ("", "ApplicatorSequence"),
}  # fmt: skip
#: Angles in degrees and places in mm that differ by less are the same.
_SAME = 0.01


def read_rt_plan(path: Path, ct: CTReference) -> Plan:
    """A plan as it is in the file, with its own monitor units.

    A field of several static apertures (step and shoot) becomes one field for each. Fields that deliver nothing (for
    setup, without monitor units, or in no fraction group) are left out.

    Args:
        path: an RT Plan.
        ct: the series that it is to be computed on.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming file and beam: no RT Plan, another frame of reference or patient, numbers that are missing or
            cannot be, or what the dose engine cannot do: electrons and other particles, arcs and sliding windows,
            wedges, blocks, compensators, boli, applicators, a turned couch, several isocentres or energies, an energy
            or a source distance without its data, another patient position.
    """
    if path.is_file():
        check_file_size(path, LARGEST_FILE)
    dataset = open_dicom(path, pixels=False)
    try:
        with quiet_pydicom():
            return _plan(path, dataset, ct)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    except Exception as error:  # whatever pydicom raises for a damaged element
        raise ValueError(f"{path}: damaged RT Plan, something it needs is missing ({reason(error)})") from error


def _plan(path: Path, dataset: Dataset, ct: CTReference) -> Plan:
    if dataset.get("SOPClassUID") != PLAN:
        raise ValueError(f"is no RT Plan (SOP Class UID {dataset.get('SOPClassUID', 'missing')})")
    _require_same_patient(dataset, ct)
    for setup in dataset.get("PatientSetupSequence") or []:
        if text(setup, "PatientPosition") not in ("HFS", ""):
            raise ValueError(f"Patient Position is {setup.PatientPosition}; only HFS (head first, supine) is computed")
    groups = dataset.get("FractionGroupSequence") or []
    if len(groups) != 1:
        raise ValueError(f"{len(groups) or 'no'} fraction groups; one is computed")
    group, where = groups[0], "its fraction group"
    if any(_optional(group, "NumberOfBrachyApplicationSetups", where) or ()):
        raise ValueError("a brachytherapy plan; only external photon fields are computed")
    fractions = _number(group, "NumberOfFractionsPlanned", where)
    if fractions % 1:
        raise ValueError(f"{where} has {fractions:g} fractions")
    metersets = _by_number(group.get("ReferencedBeamSequence") or [], "ReferencedBeamNumber", where)
    check_count(path, "beams", len(dataset.get("BeamSequence") or []), MOST_FIELDS)
    beams = _by_number(dataset.get("BeamSequence") or [], "BeamNumber", "the plan")
    if absent := sorted(set(metersets) - set(beams)):
        raise ValueError(f"{where} has beam {absent[0]}, which the plan does not hold: parts of the dose are unknown")
    fields: list[Field] = []
    facts: set[tuple[str, tuple[float, ...]]] = set()
    for number, beam in beams.items():
        if number not in metersets or text(beam, "TreatmentDeliveryType") == "SETUP":
            continue
        name = f"beam {number} ({_label(beam, 'BeamName') or 'no name'})"
        units = _number(metersets[number], "BeamMeterset", name)
        if units > 0:
            quality, isocenter, own = _fields(beam, name, units)
            facts.add((quality, isocenter))
            fields += own
            check_count(path, "static apertures", len(fields), MOST_FIELDS)
    if not fields:
        raise ValueError("no treatment beam with monitor units")
    if len(facts) != 1:
        raise ValueError("its beams have several isocentres or energies; one of each is computed")
    quality, (x, y, z) = facts.pop()
    prescription = _prescription(dataset, list(metersets.values()), int(fractions))
    notes = ("computed as given by an RT Plan, with its monitor units; the beam is not the clinic's",)
    label = _label(dataset, "RTPlanLabel") or "RTPLAN"
    return Plan(label, quality, (-x, -y, z), tuple(fields), prescription, int(fractions), AS_GIVEN, notes=notes)


def _require_same_patient(dataset: Dataset, ct: CTReference) -> None:
    found = str(dataset.get("FrameOfReferenceUID", ""))
    if found != ct.frame_of_reference_uid:
        raise ValueError(
            f"its frame of reference is {found or 'not given'}, the CT's {ct.frame_of_reference_uid}: the plan belongs "
            "to another CT, and where its isocentre would lie in this one is not known"
        )
    patients = [patient_of(ct.headers[0]), patient_of(dataset)]
    for one in differences(patients):
        if one.keyword:
            theirs, own = (patient[one.keyword] for patient in patients)
            raise ValueError(f"is of another patient: {one.keyword} {tag(one.keyword)} is {own!r}, the CT's {theirs!r}")


def _by_number(items: Sequence[Dataset], keyword: str, where: str) -> dict[int, Dataset]:
    found: dict[int, Dataset] = {}
    for one in items:
        number = int(_number(one, keyword, where))
        if number in found:
            raise ValueError(f"{where} has beam {number} twice: which one holds?")
        found[number] = one
    return found


def _prescription(dataset: Dataset, beams: Sequence[Dataset], fractions: int) -> float:
    """Of all fractions, Gy: the highest of the targets', else the beams' own doses."""
    targets = [_optional(one, "TargetPrescriptionDose", "it") for one in dataset.get("DoseReferenceSequence") or []]
    doses = [_optional(one, "BeamDose", "its fraction group") for one in beams]
    total = max((one[0] for one in targets if one), default=0.0) or fractions * sum(one[0] for one in doses if one)
    if not total > 0:
        raise ValueError(
            "neither Target Prescription Dose nor Beam Dose: what percents of the dose are of is not known"
        )
    return total


def _fields(beam: Dataset, name: str, meterset: float) -> tuple[str, tuple[float, ...], list[Field]]:
    """Beam quality, isocentre (LPS mm) and a field for each static aperture."""
    if text(beam, "RadiationType") != "PHOTON":
        raise ValueError(f"{name}: radiation is {beam.get('RadiationType') or 'not given'}; only photons are computed")
    if text(beam, "PrimaryDosimeterUnit") not in ("MU", ""):
        raise ValueError(f"{name}: its meterset is in {beam.PrimaryDosimeterUnit}; monitor units are computed")
    for kind, (count, described) in _IN_THE_WAY.items():
        if beam.get(described) or (count and any(_optional(beam, count, name) or ())):
            raise ValueError(f"{name}: has {kind}, whose data no plan holds; fields without them are computed")
    if any(text(one, "FluenceMode") == "NON_STANDARD" for one in beam.get("PrimaryFluenceModeSequence") or []):
        raise ValueError(f"{name}: a beam without flattening filter (or another fluence mode) is not computed")
    distance = _number(beam, "SourceAxisDistance", name)
    if abs(distance - NUMBERS.beam.source_to_axis_mm) > 1:
        raise ValueError(f"{name}: source to axis {distance:g} mm, computed is {NUMBERS.beam.source_to_axis_mm:g} mm")
    points = list(beam.get("ControlPointSequence") or [])
    if len(points) < 2:
        raise ValueError(f"{name}: {len(points)} control points; at least two are needed")
    check_count(name, "control points", len(points), 2 * MOST_FIELDS)
    if text(beam, "BeamType") not in ("STATIC", "DYNAMIC"):
        raise ValueError(f"{name}: Beam Type is {beam.get('BeamType')}")
    _require_static(points, name)
    isocenter = _numbers(points[0], "IsocenterPosition", name, 3)
    energy = _number(points[0], "NominalBeamEnergy", name)
    boundaries = {
        text(one, "RTBeamLimitingDeviceType"): _optional(one, "LeafPositionBoundaries", name, None) or ()
        for one in beam.get("BeamLimitingDeviceSequence") or []
    }
    shares = _shares(beam, points, name)
    devices: dict[str, tuple[float, ...]] = {}
    found: list[Field] = []
    for index, share in enumerate(shares):
        devices |= _positions(points[index], name)
        if share <= 0:
            continue
        later = _positions(points[index + 1], name)
        if any(devices.get(kind) != values for kind, values in later.items()):
            raise ValueError(f"{name}: jaws or leaves move while the beam is on; only static apertures are computed")
        own = f"{name}{f', {len(found) + 1}' if found else ''}"
        found.append(_field(own, points[0], devices, boundaries, meterset * share))
    return f"{energy:g} MV", isocenter, found


def _shares(beam: Dataset, points: Sequence[Dataset], name: str) -> list[float]:
    """Of the meterset, what is delivered from each control point to the next; together 1."""
    total = _number(beam, "FinalCumulativeMetersetWeight", name)
    weights = [_number(point, "CumulativeMetersetWeight", name) for point in points]
    if total <= 0 or any(b < a for a, b in itertools.pairwise(weights)):
        raise ValueError(f"{name}: meterset weights {weights[:9]} of {total:g} do not rise")
    if weights[0] > 0 or abs(weights[-1] - total) > 1e-4 * total:
        raise ValueError(
            f"{name}: meterset weights run from {weights[0]:g} to {weights[-1]:g}, not from 0 to {total:g}: how many "
            "monitor units are delivered is not known"
        )
    return [(b - a) / total for a, b in itertools.pairwise(weights)]


def _require_static(points: Sequence[Dataset], name: str) -> None:
    for keyword, said in _STILL.items():
        is_angle, count = keyword.endswith("Angle"), 3 if keyword == "IsocenterPosition" else 1
        given = [value for point in points if (value := _optional(point, keyword, name, count)) is not None]
        turning = is_angle and any(
            text(point, keyword.replace("Angle", "RotationDirection")) not in ("NONE", "") for point in points
        )
        if turning or any(_apart(a, b, is_angle) for one in given[1:] for a, b in zip(one, given[0], strict=True)):
            raise ValueError(f"{name}: {said}")
        if keyword in _TURNED and given and _apart(given[0][0], 0, True):
            raise ValueError(f"{name}: {keyword} is {given[0][0]:g} degrees; only a couch at 0 is computed")
    _number(points[0], "PatientSupportAngle", name)
    wedges = [one for point in points for one in point.get("WedgePositionSequence") or []]
    if any(text(one, "WedgePosition") not in ("OUT", "") for one in wedges):
        raise ValueError(f"{name}: has wedges, whose data no plan holds; fields without them are computed")


def _apart(one: float, other: float, is_angle: bool) -> bool:
    apart = (one - other + 180) % 360 - 180 if is_angle else one - other
    return abs(apart) > _SAME


def _positions(point: Dataset, name: str) -> dict[str, tuple[float, ...]]:
    found = {}
    for one in point.get("BeamLimitingDevicePositionSequence") or []:
        values = _numbers(one, "LeafJawPositions", name, None)
        check_count(name, "leaf positions", len(values), 2 * MOST_LEAVES)
        found[text(one, "RTBeamLimitingDeviceType")] = values
    return found


def _field(
    name: str,
    first: Dataset,
    devices: Mapping[str, tuple[float, ...]],
    boundaries: Mapping[str, tuple[float, ...]],
    units: float,
) -> Field:
    jaws: dict[str, tuple[float, float]] = {}
    leaves = None
    for kind, values in devices.items():
        axis = kind[-1:]
        if kind in ("X", "Y", "ASYMX", "ASYMY") and len(values) == 2 and axis not in jaws:
            jaws[axis] = (values[0], values[1])
        elif kind in ("MLCX", "MLCY") and leaves is None:
            half = len(values) // 2
            try:
                leaves = Leaves(axis, boundaries.get(kind, ()), values[:half], values[half:])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
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
        name, _number(first, "GantryAngle", name), (*x, *y), units,
        _number(first, "BeamLimitingDeviceAngle", name), 0.0, leaves,
    )  # fmt: skip


def _number(item: Dataset, keyword: str, name: str) -> float:
    return _numbers(item, keyword, name, 1)[0]


def _numbers(item: Dataset, keyword: str, name: str, count: int | None) -> tuple[float, ...]:
    values = _optional(item, keyword, name, count)
    if values is None:
        raise ValueError(f"{name}: {keyword} {tag(keyword)} is missing")
    return values


def _optional(item: Dataset, keyword: str, name: str, count: int | None = 1) -> tuple[float, ...] | None:
    """Numbers within what they can be; None where the attribute is absent or empty.

    Raises:
        ValueError: no numbers, another count of them, or what cannot be.
    """
    raw = item.get_item(keyword) if keyword in item else None
    if raw is None or raw.value is None or (isinstance(raw.value, str | bytes) and not raw.value.strip()):
        return None
    values = numbers(item, keyword, count)
    if values is None:
        raise ValueError(
            f"{name}: {keyword} {tag(keyword)} cannot be read as {count or 'finite'} number{'s'[: count != 1]}"
        )
    low, high = _RANGES.get(keyword, _ANY_ANGLE if keyword.endswith("Angle") else _ANY_COUNT)
    wrong = next((value for value in values if not low <= value <= high), None)
    if wrong is not None:
        raise ValueError(f"{name}: {keyword} {tag(keyword)} is {wrong:g}, which cannot be ({low:g} to {high:g})")
    return values


def _label(item: Dataset, keyword: str) -> str:
    """A name as one line that a page and a DICOM object can hold."""
    words = "".join(c if c.isprintable() else " " for c in str(item.get(keyword) or "")[:200])
    return " ".join(words.split())[:40]
