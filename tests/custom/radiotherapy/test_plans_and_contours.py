"""Density, contours, isocentre, plans and the paths of their rays on a phantom whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from thorax_phantom import GRID, contoured, field, patient, plan, thorax, with_hu

from custom.geometry import VolumeGrid
from custom.radiotherapy import NUMBERS, Field, NotPossible, PencilBeamEngine, PlanningCT, find_template, planning_ct
from custom.radiotherapy.beam_paths import cut_share, water_equivalent_paths
from custom.radiotherapy.contours import (
    Contours,
    Structure,
    external_contour,
    heart_warnings,
    organ_masks,
    require_chest,
)
from custom.radiotherapy.dose_metrics import volume_at_dose
from custom.radiotherapy.isocenter_rule import thoracic_spine_isocenter
from custom.radiotherapy.plan_templates import unnormalised_plan
from custom.radiotherapy.relative_density import relative_density
from custom.radiotherapy.target_rules import breast, chest_wall

ENGINE = PencilBeamEngine()
CT, MASKS = thorax()


def box(hu: float, depth_mm: float = 100.0) -> PlanningCT:
    """Matter from y = -100 to `depth_mm`, 5 mm voxels, a cube of 300 mm."""
    grid = VolumeGrid((60, 60, 60), (5.0, 5.0, 5.0))
    values = np.full(grid.shape, -1000.0, np.float32)
    y = grid.axis_mm(1).numpy()
    values[:, (y > -100) & (y < depth_mm)] = hu
    return PlanningCT(values, grid)


@pytest.mark.parametrize(("hu", "density"), [(-3000, 0.001), (-90, 0.95), (0, 1.0), (50, 1.0475), (5000, 2.505)])
def test_relative_density_is_the_tables_inside_and_air_outside(hu: float, density: float) -> None:
    values, inside = np.full((1, 1, 2), hu, np.float32), np.array([[[True, False]]])
    assert relative_density(values, inside)[0, 0].tolist() == pytest.approx([density, 0.001])


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'ct9'.*pyradplan"):
        relative_density(np.zeros((1, 1, 1)), np.ones((1, 1, 1), bool), "ct9")
    with pytest.raises(ValueError, match=r"'left_breast'.*ap_pa"):
        find_template("left_breast")
    with pytest.raises(ValueError, match=r"'4 MV'.*15 MV"):
        plan(field(), beam_quality="4 MV")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"jaws_mm": (10.0, -10.0, -1.0, 1.0)}, "X1 < X2"),
        ({"jaws_mm": (-201.0, 10.0, -1.0, 1.0)}, "within 200"),
        ({"couch_deg": 90.0}, "couch at 90"),
        ({"gantry_deg": float("nan")}, "finite"),
        ({"monitor_units": -1.0}, "finite"),
    ],
)
def test_fields_that_cannot_be(change: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(field(), **change)


def test_external_contour_is_the_body_with_its_lungs_and_without_the_couch() -> None:
    hu = CT.hu.copy()
    hu[:, 1] = -300.0  # a couch that does not touch
    assert (external_contour(with_hu(CT, hu)) == MASKS["External"]).mean() > 0.998
    assert external_contour(CT)[MASKS["Lung_L"]].all()
    with pytest.raises(NotPossible, match="no body"):
        external_contour(with_hu(CT, np.full(CT.hu.shape, -1000.0)))


def test_isocenter_lies_in_the_vertebral_body() -> None:
    x, y, z = thoracic_spine_isocenter(CT, MASKS)
    assert (x, z) == pytest.approx((0.0, 0.0), abs=2.6)
    assert y == pytest.approx(-75 + 30, abs=6)  # the lungs end at y = -75 mm
    assert np.hypot(x, y + 55) < 18


def test_isocenter_outside_the_body_is_no_plan() -> None:
    masks = {**MASKS, "External": np.zeros_like(MASKS["External"])}
    with pytest.raises(NotPossible, match="outside the body"):
        thoracic_spine_isocenter(CT, masks)
    with pytest.raises(NotPossible, match="no lung on both sides"):
        thoracic_spine_isocenter(CT, {**MASKS, "Lung_R": np.zeros_like(MASKS["Lung_R"])})


def test_what_is_no_chest_is_refused_with_the_reason() -> None:
    require_chest(CT, MASKS)
    with pytest.raises(NotPossible, match="Lung_R has 0 cm3"):
        require_chest(CT, {**MASKS, "Lung_R": np.zeros_like(MASKS["Lung_R"])})
    with pytest.raises(NotPossible, match="mirrored"):
        require_chest(CT, {**MASKS, "Lung_L": MASKS["Lung_R"], "Lung_R": MASKS["Lung_L"]})
    with pytest.raises(NotPossible, match="measures 20 HU"):
        require_chest(with_hu(CT, np.full(CT.hu.shape, 20.0)), MASKS)


@pytest.mark.parametrize(
    ("heart", "said"), [((3, 6), None), ((5, 7), "20 mm right"), ((0, 1), "90 mm left"), (None, None)]
)
def test_a_heart_on_the_right_is_said(heart: tuple[int, int] | None, said: str | None) -> None:
    """Lungs in columns 0 to 2 and 7 to 9 of 20 mm each: their middle is column 4.5."""
    columns = {"Lung_L": (0, 3), "Lung_R": (7, 10), **({"Heart": heart} if heart else {})}
    masks = {name: np.zeros((10, 2, 2), bool) for name in columns}
    for name, (first, end) in columns.items():
        masks[name][first:end] = True
    found = heart_warnings(Contours({name: Structure(name, "ORGAN", mask, "") for name, mask in masks.items()}), 20.0)
    assert len(found) == (said is not None) and all(said is not None and said in text for text in found)


def test_organs_come_from_the_segmenter_on_the_grid_of_the_ct() -> None:
    class Halves(torch.nn.Module):
        """Left and right halves of the volume; the body for the rest."""

        classes = ("lung_left", "lung_right", "heart", "spine")
        grid, hu_window = VolumeGrid((8, 8, 8), (10.0, 10.0, 10.0)), (-1000.0, 1000.0)

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))  # says on which device it computes

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = torch.linspace(-1, 1, image.shape[2])[None, :, None, None].expand(1, *image.shape[2:])
            return torch.stack([-x, x, image[:, 0], image[:, 0] - 2], 1)

    found = organ_masks(CT, Halves())  # type: ignore[arg-type]
    x = GRID.axis_mm(0).numpy()
    assert found["Lung_L"][x < -10].all() and not found["Lung_L"][x > 10].any()
    assert found["Lung_R"][x > 10].all() and not found["Spine"].any()
    assert (found["Heart"] == (CT.hu > 0)).mean() > 0.85  # 10 mm voxels


def test_a_breast_is_found_in_front_of_the_chest_wall_or_not_at_all() -> None:
    found = breast(CT, MASKS, "L")
    assert isinstance(found, np.ndarray)
    x, y = (GRID.axis_mm(a).numpy()[np.nonzero(found)[a]] for a in (0, 1))
    assert x.max() < 0 and y.min() > 0
    assert not (found & (MASKS["Lung_L"] | ~MASKS["External"])).any()
    flat, masks = thorax(breasts=False)
    assert "a breast has" in str(breast(flat, masks, "L"))
    assert isinstance(chest_wall(flat, masks, "R"), np.ndarray)
    assert "no Breast_L" in patient(flat, masks, ENGINE, "breast_left", "Breast_L").reason


@pytest.mark.parametrize(("side", "template", "gantry"), [("L", "breast_left", 290), ("R", "breast_right", 25)])
def test_tangents_cover_the_breast_and_spare_the_lung(side: str, template: str, gantry: float) -> None:
    case = patient(CT, MASKS, ENGINE, template, f"Breast_{side}").case
    assert case is not None
    medial, lateral = case.plan.fields
    assert gantry <= medial.gantry_deg <= gantry + 45
    assert (lateral.gantry_deg - medial.gantry_deg) % 360 == 180
    # Half-beam blocked: the central plane is the border of both.
    assert 0.0 in medial.jaws_mm[:2] and 0.0 in lateral.jaws_mm[:2]
    assert medial.jaws_mm[:2] == tuple(-x for x in lateral.jaws_mm[1::-1])
    target = case.contours.mask(f"Breast_{side}")
    assert np.median(case.dose_gy[target]) == pytest.approx(50.0, rel=1e-4)
    covered = volume_at_dose(case.dose_gy, target, 45.0)
    assert covered > 80  # these breasts are wide apart from side to side, and that is said
    assert (covered < NUMBERS.acceptable_v90_percent) == any("acceptable plan" in note for note in case.plan.notes)
    assert volume_at_dose(case.dose_gy, MASKS[f"Lung_{side}"], 20.0) < 20
    other = MASKS["Lung_R" if side == "L" else "Lung_L"]
    assert case.dose_gy[other].mean() < 0.5
    # Both templates mirror each other in a mirrored phantom.
    assert case.plan.isocenter_mm[0] * (1 if side == "R" else -1) > 40


def test_prescription_is_met_at_the_isocenter_of_ap_pa() -> None:
    case = patient(CT, MASKS, ENGINE).case
    assert case is not None
    ap, pa = case.plan.fields
    assert (ap.gantry_deg, pa.gantry_deg) == (0.0, 180.0)
    assert ap.monitor_units == pytest.approx(pa.monitor_units)
    voxel = np.round(CT.index(case.plan.isocenter_mm)).astype(int)
    assert case.dose_gy[tuple(voxel)] == pytest.approx(2.0, rel=0.01)
    assert case.plan.scaled(2).monitor_units == pytest.approx(2 * case.plan.monitor_units)
    single = patient(CT, MASKS, ENGINE, "pa").case
    assert single is not None and [one.gantry_deg for one in single.plan.fields] == [180.0]


def test_water_equivalent_path_of_slabs() -> None:
    ct, made = box(0.0), plan(field(0.0, (-20, 20, -20, 20)), field(180.0, (-20, 20, -20, 20)))
    inside = external_contour(ct)
    water = water_equivalent_paths(ct, relative_density(ct.hu, inside), made)
    assert [path.mean() for path in water] == pytest.approx([100.0, 100.0], abs=1.5)
    dense = water_equivalent_paths(ct, 2 * relative_density(ct.hu, inside), made)
    assert np.allclose(dense[0], 2 * water[0], rtol=1e-4)
    more = box(0.0, 120.0)
    longer = water_equivalent_paths(more, relative_density(more.hu, external_contour(more)), made)
    assert [float(np.abs(a - b).mean()) for a, b in zip(longer, water, strict=True)] == pytest.approx([20, 0], abs=0.5)


def test_share_of_a_field_that_the_volume_cuts() -> None:
    ct = box(0.0)
    inside = external_contour(ct)
    whole = plan(field(0.0, (-40, 40, -40, 40)))
    assert cut_share(ct, inside, whole) == [0.0]
    # Half of the field lies beyond the volume's upper end, where the body goes on.
    beyond = replace(whole, isocenter_mm=(0.0, 0.0, 150.0))
    assert cut_share(ct, inside, beyond)[0] == pytest.approx(0.5, abs=0.06)
    # From the side the beam enters a body that the volume's side has cut.
    assert cut_share(ct, inside, plan(field(90.0))) == [1.0]
    # Where there is no body there is nothing to cut.
    assert cut_share(ct, np.zeros_like(inside), beyond) == [0.0]


def test_fields_beyond_the_volume_are_said_or_refused() -> None:
    few = VolumeGrid((*GRID.shape[:2], 24), GRID.spacing_mm)
    ct, masks = thorax(grid=few)  # 120 mm high
    low = PlanningCT(ct.hu[:, :, 8:], few.part((0, 0, 8), (72, 60, 16)))
    with_share = {name: mask[:, :, 8:] for name, mask in masks.items()}
    made = unnormalised_plan("ap_pa", low, with_share)
    assert any("are cut by the volume's side" in note for note in made.notes)
    tiny = PlanningCT(ct.hu[:, :, 8:14], few.part((0, 0, 8), (72, 60, 6)))
    with pytest.raises(NotPossible, match=r"field AP: \d+ % of it are cut"):
        unnormalised_plan("ap_pa", tiny, {name: mask[:, :, 8:14] for name, mask in masks.items()})


def test_planning_ct_keeps_the_place_of_things_whatever_the_axes() -> None:
    """A dense ball at a known place, from a volume with axes turned and voxels of other sizes."""
    place = np.array([12.0, -30.0, 45.0])
    affine = np.array([[0, -1.0, 0, 100], [-2.0, 0, 0, 90], [0, 0, 1.5, -60], [0, 0, 0, 1]])
    index = np.stack(np.meshgrid(*map(np.arange, (100, 200, 100)), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    volume = np.where(((world - place) ** 2).sum(-1) < 15**2, 1000.0, -2000.0)
    ct = planning_ct(volume, affine)
    assert ct.grid.spacing_mm == pytest.approx((NUMBERS.dose_grid_mm,) * 3, rel=0.02)
    dense = ct.grid.points().numpy()[ct.hu > -500]
    assert dense.mean(0) == pytest.approx(place, abs=0.6)
    assert ct.hu.min() == -1000.0
    assert len(dense) * np.prod(ct.grid.spacing_mm) == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.08)


def test_axes_of_a_field_are_right_handed() -> None:
    for gantry in (0.0, 37.0, 90.0, 200.0):
        to_source, xg, yg = Field("f", gantry, (-1, 1, -1, 1), 1.0).axes
        assert np.cross(xg, yg) == pytest.approx(to_source)


def test_contours_say_why_something_is_missing() -> None:
    flat, masks = thorax(breasts=False)
    with pytest.raises(NotPossible, match="no Breast_R: "):
        contoured(flat, masks, "Breast_R").mask("Breast_R")
    with pytest.raises(NotPossible, match="no Liver: it was not looked for"):
        contoured(flat, masks).mask("Liver")
