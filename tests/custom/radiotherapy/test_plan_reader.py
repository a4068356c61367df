"""Plans of a clinic that say too little, too much, or what cannot be; and those that only look unusual."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from thorax_phantom import field, plan

from custom.dicom.write_ct import SyntheticCT, write_ct_series
from custom.geometry import VolumeGrid
from custom.radiotherapy import (
    Contours,
    CTReference,
    PlannedCase,
    PlanningCT,
    Structure,
    read_ct_reference,
    read_rt_plan,
    write_rt_objects,
)

GRID = VolumeGrid((8, 8, 4), (20.0, 20.0, 20.0))
Change = Callable[[Dataset], Any]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> CTReference:
    folder = tmp_path_factory.mktemp("series") / "ct"
    model = {"name": "inr_recon", "sha256": "a" * 64, "version": "1"}
    whose = {"PatientName": "A^B", "PatientID": "1"}
    write_ct_series(SyntheticCT(np.zeros(GRID.shape, np.float32), GRID.affine(), [], model, "A box.", whose), folder)
    return read_ct_reference(folder)


def case_of(*names: str) -> PlannedCase:
    box = np.ones(GRID.shape, bool)
    fields = [field(180.0 * k) for k in range(len(names))]
    made = plan(*[replace(one, name=name) for one, name in zip(fields, names, strict=True)])
    ct = PlanningCT(np.zeros(GRID.shape, np.float32), GRID)
    return PlannedCase(ct, Contours({"External": Structure("External", "EXTERNAL", box, "")}), made, 0 * ct.hu)


@pytest.fixture(scope="module")
def written(reference: CTReference, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A plan of two fields, 100 MU each."""
    folder = tmp_path_factory.mktemp("rt")
    write_rt_objects(case_of("AP", "PA"), reference, folder)
    return (folder / "rtplan.dcm").read_bytes()


def edited(written: bytes, folder: Path, change: Change) -> Path:
    dataset, path = pydicom.dcmread(io.BytesIO(written)), folder / "plan.dcm"
    mode, pydicom.config.settings.writing_validation_mode = pydicom.config.settings.writing_validation_mode, 0
    try:
        change(dataset)
        dataset.save_as(path)
    finally:
        pydicom.config.settings.writing_validation_mode = mode
    return path


def item(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def _at(dataset: Dataset, place: tuple[Any, ...]) -> Dataset:
    for step in place:
        dataset = dataset[step].value if isinstance(step, str) else dataset[step]
    return dataset


def raw(keyword: str, value: str, *place: Any) -> Change:
    """Text as it stands in the file, whatever pydicom thinks of it."""

    def change(dataset: Dataset) -> None:
        tag = Tag(keyword)
        kind = pydicom.datadict.dictionary_VR(tag)
        _at(dataset, place)._dict[tag] = RawDataElement(tag, kind, len(value), value.encode(), 0, False, True)

    return change


def beam(**values: Any) -> Change:
    return lambda d: [setattr(d.BeamSequence[0], key, value) for key, value in values.items()]


def point(index: int, **values: Any) -> Change:
    return lambda d: [
        setattr(d.BeamSequence[0].ControlPointSequence[index], key, value) for key, value in values.items()
    ]


def without(keyword: str, *place: Any) -> Change:
    return lambda d: delattr(_at(d, place), keyword)


def leaves(boundaries: list[float], positions: list[float], kind: str = "MLCX") -> Change:
    def change(dataset: Dataset) -> None:
        one = dataset.BeamSequence[0]
        device = item(RTBeamLimitingDeviceType=kind, NumberOfLeafJawPairs=1, LeafPositionBoundaries=boundaries)
        one.BeamLimitingDeviceSequence.append(device)
        place = item(RTBeamLimitingDeviceType=kind, LeafJawPositions=positions)
        one.ControlPointSequence[0].BeamLimitingDevicePositionSequence.append(place)

    return change


def weights(*values: float | None, total: float = 1) -> Change:
    def change(dataset: Dataset) -> None:
        one = dataset.BeamSequence[0]
        one.FinalCumulativeMetersetWeight = total
        for control, value in zip(one.ControlPointSequence, values, strict=True):
            control.CumulativeMetersetWeight = value

    return change


def both(*changes: Change) -> Change:
    return lambda d: [change(d) for change in changes]


def references(**values: Any) -> Change:
    return lambda d: [
        setattr(one, k, v) for one in d.FractionGroupSequence[0].ReferencedBeamSequence for k, v in values.items()
    ]


GROUP, MU = ("FractionGroupSequence", 0), ("FractionGroupSequence", 0, "ReferencedBeamSequence", 0)
FIRST, LAST = (("BeamSequence", 0, "ControlPointSequence", k) for k in (0, 1))
JAWS = (*FIRST, "BeamLimitingDevicePositionSequence", 0)
X_TWICE = item(RTBeamLimitingDeviceType="X", LeafJawPositions=[-10, 10])

REFUSED: dict[str, tuple[Change, str]] = {
    "electrons": (beam(RadiationType="ELECTRON"), "radiation is ELECTRON"),
    "wedge": (beam(NumberOfWedges=1), "has wedges"),
    "block": (beam(NumberOfBlocks=1), "has blocks"),
    "bolus": (beam(NumberOfBoli=1), "has boli"),
    "distance": (beam(SourceAxisDistance=800), "source to axis 800 mm"),
    "arc": (point(0, GantryRotationDirection="CW"), "an arc"),
    "turned on": (point(1, GantryAngle=10.0), "an arc"),
    "collimator": (point(1, BeamLimitingDeviceAngle=30.0), "collimator turns"),
    "couch": (point(0, PatientSupportAngle=90.0), "PatientSupportAngle is 90"),
    "moving jaws": (
        point(1, BeamLimitingDevicePositionSequence=[item(RTBeamLimitingDeviceType="ASYMX", LeafJawPositions=[-9, 9])]),
        "while the beam is on",
    ),
    "energies": (point(0, NominalBeamEnergy=10.0), "several isocentres or energies"),
    "energy": (
        lambda d: [setattr(one.ControlPointSequence[0], "NominalBeamEnergy", 4) for one in d.BeamSequence],
        "beam quality '4 MV' is not known",
    ),
    "isocentres": (point(0, IsocenterPosition=[9, 0, 0]), "several isocentres"),
    "frame": (lambda d: setattr(d, "FrameOfReferenceUID", "1.2.3"), "another CT"),
    "position": (lambda d: setattr(d.PatientSetupSequence[0], "PatientPosition", "FFS"), "Patient Position is FFS"),
    "no meterset": (without("BeamMeterset", *MU), r"BeamMeterset .* is missing"),
    "no prescription": (without("DoseReferenceSequence"), "Target Prescription Dose"),
    "no points": (without("ControlPointSequence", "BeamSequence", 0), "0 control points"),
    "crossed": (point(0, BeamLimitingDevicePositionSequence=[]), "how large the field is"),
    "many": (lambda d: setattr(d, "BeamSequence", Sequence([d.BeamSequence[0]] * 61)), "61 beams"),
    "no plan": (lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.481.2"), "no RT Plan"),
    "beam twice": (lambda d: setattr(d.BeamSequence[1], "BeamNumber", 1), "the plan has beam 1 twice"),
    "reference twice": (references(ReferencedBeamNumber=1), "its fraction group has beam 1 twice"),
    "no such beam": (
        lambda d: d.FractionGroupSequence[0].ReferencedBeamSequence.append(item(ReferencedBeamNumber=7)), "has beam 7",
    ),
    "nothing delivered": (references(BeamMeterset=0), "no treatment beam with monitor units"),
    **{f"{value} MU": (raw("BeamMeterset", value, *MU), r"beam 1 \(AP\): BeamMeterset")
       for value in ("-5", "nan", "inf", "1e308", "abc", "1,5")},
    "no fractions": (without("NumberOfFractionsPlanned", *GROUP), "NumberOfFractionsPlanned .* is missing"),
    **{f"{value} fractions": (raw("NumberOfFractionsPlanned", value, *GROUP), "fraction")
       for value in ("", "0", "-3", "1000000000", "x", "1.5")},
    **{f"{value} Gy": (raw("TargetPrescriptionDose", value, "DoseReferenceSequence", 0), "TargetPrescriptionDose")
       for value in ("nan", "1e308", "-2", "5000")},
    **{f"isocentre {value}": (raw("IsocenterPosition", value, *FIRST), r"beam 1 \(AP\): IsocenterPosition")
       for value in ("nan\\0\\0", "1e308\\0\\0", "1\\2", "")},
    "isocentre moves": (point(1, IsocenterPosition=[9, 9, 9]), "isocentre moves"),
    "energy changes": (point(1, NominalBeamEnergy=15), "energy changes"),
    "no energy": (point(0, NominalBeamEnergy=None), "NominalBeamEnergy .* is missing"),
    "gantry 1e308": (raw("GantryAngle", "1e308", *FIRST), "GantryAngle .* cannot be"),
    "no gantry": (without("GantryAngle", *FIRST), "GantryAngle .* is missing"),
    "no collimator": (without("BeamLimitingDeviceAngle", *FIRST), "BeamLimitingDeviceAngle .* is missing"),
    "collimator will turn": (point(0, BeamLimitingDeviceRotationDirection="CW"), "collimator turns"),
    "no couch": (without("PatientSupportAngle", *FIRST), "PatientSupportAngle .* is missing"),
    "couch nan": (raw("PatientSupportAngle", "nan", *FIRST), "PatientSupportAngle .* cannot be read"),
    "couch turns": (point(0, PatientSupportRotationDirection="CC"), "couch turns"),
    "couch moves": (both(point(0, TableTopLateralPosition=0), point(1, TableTopLateralPosition=9)), "couch moves"),
    "wedge described": (beam(NumberOfWedges=None, WedgeSequence=Sequence([item(WedgeNumber=1)])), "has wedges"),
    "wedge in": (point(0, WedgePositionSequence=Sequence([item(WedgePosition="IN")])), "has wedges"),
    "wedges unreadable": (raw("NumberOfWedges", "x", "BeamSequence", 0), "NumberOfWedges .* cannot be read"),
    "block described": (beam(BlockSequence=Sequence([item(BlockNumber=1)])), "has blocks"),
    "bolus described": (beam(ReferencedBolusSequence=Sequence([item(ReferencedROINumber=1)])), "has boli"),
    "compensator described": (beam(CompensatorSequence=Sequence([item(CompensatorNumber=1)])), "has compensators"),
    "cone": (beam(ApplicatorSequence=Sequence([item(ApplicatorType="STEREOTACTIC")])), "has an applicator"),
    "minutes": (beam(PrimaryDosimeterUnit="MINUTE"), "meterset is in MINUTE"),
    "no flattening": (
        beam(PrimaryFluenceModeSequence=Sequence([item(FluenceMode="NON_STANDARD")])), "without flattening filter",
    ),
    "first weight": (weights(0.2, 1), "weights run from 0.2 to 1"),
    "last weight": (weights(0, 0.5), "weights run from 0 to 0.5"),
    "weight above": (weights(0, 2), "weights run from 0 to 2"),
    "no weight": (weights(0, None), "CumulativeMetersetWeight .* is missing"),
    "jaws inverted": (lambda d: setattr(_at(d, JAWS), "LeafJawPositions", [50, -50]), r"beam 1 \(AP\): jaws X1 < X2"),
    "jaws closed": (lambda d: setattr(_at(d, JAWS), "LeafJawPositions", [0, 0]), r"beam 1 \(AP\): jaws X1 < X2"),
    "one jaw": (lambda d: setattr(_at(d, JAWS), "LeafJawPositions", [5]), r"beam 1 \(AP\): .*ASYMX with 1 pos"),
    "jaws far": (raw("LeafJawPositions", "-1e308\\1e308", *JAWS), r"LeafJawPositions .* cannot be"),
    "jaws twice": (
        lambda d: _at(d, FIRST).BeamLimitingDevicePositionSequence.append(X_TWICE), "device X with 2 positions",
    ),
    "leaves cross": (leaves([-20, 0, 20], [10, 10, -10, -10]), r"beam 1 \(AP\): leaves cross"),
    "boundaries fall": (leaves([20, 0, -20], [-10, -10, 10, 10]), r"beam 1 \(AP\): boundaries of leaves must rise"),
    "boundaries equal": (leaves([0, 0, 20], [-10, -10, 10, 10]), r"beam 1 \(AP\): boundaries of leaves must rise"),
    "leaves far": (leaves([-20, 0, 20], [-1e9, -1e9, 1e9, 1e9]), r"beam 1 \(AP\): LeafJawPositions .* cannot be"),
    "no boundaries": (leaves([], [-1, -1, 1, 1]), r"beam 1 \(AP\): leaves along X"),
    "two layers": (leaves([-20, 0, 20], [-1, -1, 1, 1], "MLCX1"), "device MLCX1 with 4 positions"),
    "another patient": (lambda d: setattr(d, "PatientID", "2"), r"another patient: PatientID .* is '2', the CT's '1'"),
    "sitting": (lambda d: setattr(d.PatientSetupSequence[0], "PatientPosition", "SITTING"), "is SITTING"),
    "two groups": (lambda d: d.FractionGroupSequence.append(d.FractionGroupSequence[0]), "2 fraction groups"),
    "brachytherapy": (lambda d: setattr(_at(d, GROUP), "NumberOfBrachyApplicationSetups", 1), "brachytherapy"),
    "damaged class": (raw("SOPClassUID", "1.2\0.3"), "is no RT Plan"),
}  # fmt: skip


def setup_field(dataset: Dataset) -> None:
    other = copy.deepcopy(dataset.BeamSequence[0])
    other.BeamNumber, other.TreatmentDeliveryType = 9, "SETUP"
    dataset.BeamSequence.append(other)
    dataset.FractionGroupSequence[0].ReferencedBeamSequence.append(item(ReferencedBeamNumber=9))


#: What conforms to the standard, and is read as two fields of 100 MU.
READ: dict[str, Change] = {
    "as written": lambda d: None,
    "setup field": setup_field,
    "port film": beam(TreatmentDeliveryType="OPEN_PORTFILM"),
    "continued": beam(TreatmentDeliveryType="CONTINUATION"),
    "empty angle": point(1, GantryAngle=None),
    "same again": point(1, GantryAngle=0, NominalBeamEnergy=6, IsocenterPosition=[0, 0, 0]),
    "a whole turn": both(point(0, GantryAngle=0), point(1, GantryAngle=360), point(0, PatientSupportAngle=360)),
    "rounded": both(point(0, TableTopPitchAngle=1e-7), weights(0, 0.9999999)),
    "weights of 100": weights(0, 100, total=100),
    "leaves": leaves([-20, 0, 20], [-10, -10, 10, 10]),
    "leaves along Y": leaves([-20, 0, 20], [-10, -10, 10, 10], "MLCY"),
    "no setups": without("PatientSetupSequence"),
    "beam dose": both(without("DoseReferenceSequence"), references(BeamDose=1.0)),
    "name padded": lambda d: setattr(d, "PatientName", "a^b^^"),
    "name elsewhere": both(without("PatientID"), without("PatientName")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name(name: str, reference: CTReference, written: bytes, tmp_path: Path) -> None:
    change, said = REFUSED[name]
    path = edited(written, tmp_path, change)
    with pytest.raises(ValueError, match=said) as error:
        read_rt_plan(path, reference)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", READ)
def test_what_conforms_is_read(name: str, reference: CTReference, written: bytes, tmp_path: Path) -> None:
    found = read_rt_plan(edited(written, tmp_path, READ[name]), reference)
    assert [one.monitor_units for one in found.fields] == pytest.approx([100, 100], rel=1e-6)
    assert found.prescription_gy == 2 and found.beam_quality == "6 MV"


def test_step_and_shoot_becomes_a_field_for_each_aperture(
    reference: CTReference, written: bytes, tmp_path: Path
) -> None:
    def change(dataset: Dataset) -> None:
        points = dataset.BeamSequence[0].ControlPointSequence
        points[1].CumulativeMetersetWeight = 0.25
        narrow = item(RTBeamLimitingDeviceType="ASYMY", LeafJawPositions=[-20, 20])
        moved = item(ControlPointIndex=2, CumulativeMetersetWeight=0.25, BeamLimitingDevicePositionSequence=[narrow])
        points.extend([moved, item(ControlPointIndex=3, CumulativeMetersetWeight=1.0)])

    found = read_rt_plan(edited(written, tmp_path, change), reference)
    assert [one.monitor_units for one in found.fields] == pytest.approx([25, 75, 100], rel=1e-6)
    assert found.fields[1].jaws_mm == pytest.approx((-50, 50, -20, 20), abs=1e-3)


def test_a_plan_that_was_cut_off_is_refused_or_whole(reference: CTReference, written: bytes, tmp_path: Path) -> None:
    path = tmp_path / "plan.dcm"
    path.write_bytes(written)
    whole = read_rt_plan(path, reference)
    for length in range(1, len(written), 17):
        path.write_bytes(written[:length])
        try:
            assert read_rt_plan(path, reference) == whole, length
        except ValueError as error:
            assert str(error).startswith(f"{path}: "), length


def test_names_of_a_plan_are_kept_whatever_letters_the_ct_has(
    reference: CTReference, written: bytes, tmp_path: Path
) -> None:
    def change(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet, dataset.BeamSequence[0].BeamName = "ISO_IR 192", "Füll 左"

    path = edited(written, tmp_path, change)
    named = read_rt_plan(path, reference).fields[0].name
    assert named == "beam 1 (Füll 左)"
    headers = [copy.deepcopy(one) for one in reference.headers]
    for one in headers:
        one.SpecificCharacterSet = "ISO_IR 100"
    latin = CTReference(headers, reference.frame_of_reference_uid)
    write_rt_objects(case_of(named, "PA"), latin, tmp_path)
    again = pydicom.dcmread(tmp_path / "rtplan.dcm")
    assert again.BeamSequence[0].BeamName == named and str(again.PatientName) == "A^B"
    write_rt_objects(case_of("AP", "PA"), latin, tmp_path)
    assert pydicom.dcmread(tmp_path / "rtplan.dcm").SpecificCharacterSet == "ISO_IR 100"
