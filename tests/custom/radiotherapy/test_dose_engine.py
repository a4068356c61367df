"""Doses of the pencil beam engine against what can be worked out by hand, or was published."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from thorax_phantom import field, plan

from custom.geometry import VolumeGrid
from custom.radiotherapy import Field, PencilBeamEngine, PlanningCT
from custom.radiotherapy.dose_engine import fluence_map, kept_threads
from custom.radiotherapy.dose_metrics import dose_at

ENGINE = PencilBeamEngine()
SPACING = (4.0, 4.0, 4.0)


def water(depth_mm: float, behind_mm: float = 100.0, density: float = 1.0, air_mm: float = 40.0) -> tuple:
    """A box of water whose anterior surface lies `depth_mm` before y = 0, with air before it; half a side is 122 mm."""
    count = round((air_mm + depth_mm + behind_mm) / 4)
    grid = VolumeGrid((61, count, 61), SPACING, (0.0, (air_mm + depth_mm - behind_mm) / 2, 0.0))
    values = np.full(grid.shape, 0.001, np.float32)
    y = grid.axis_mm(1).numpy()
    values[:, y < depth_mm] = density
    return values, grid


def axis_dose(density: np.ndarray, grid: VolumeGrid, made: object, y_mm: float = 0.0) -> float:
    dose = ENGINE.dose(density, grid, made)  # type: ignore[arg-type]
    return dose_at(PlanningCT(np.zeros(grid.shape, np.float32), grid), dose, (0.0, y_mm, 0.0))


def test_monitor_unit_is_one_centigray_at_the_reference_point() -> None:
    density, grid = water(100.0)
    assert axis_dose(density, grid, plan(field())) == pytest.approx(1.0, rel=0.01)


def test_fluence_is_half_at_the_jaws_and_holds_the_fields_area() -> None:
    fluence = fluence_map(field(0.0, (-30, 50, -20, 40)))
    assert float(fluence.sum()) == pytest.approx(80 * 60, rel=1e-4)
    # Pixel centres lie half a millimetre from the jaws; rows run along +Yg, columns along +Xg.
    assert float(fluence[200, 249:251].mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(fluence[239:241, 200].mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(fluence[200, 200]) == pytest.approx(1.0, abs=1e-3)


def test_inverse_square_law() -> None:
    """The same water under a source 100 mm farther away; jaws are closed so that the beam in the water is as wide."""
    near, grid = water(80.0, 60.0)
    first = axis_dose(near, grid, plan(field()))
    narrow = 50 * 1000 / 1100
    # The isocentre stays; the water moves 100 mm away from the source.
    moved = VolumeGrid(grid.shape, SPACING, (0.0, grid.center_mm[1] - 100.0, 0.0))
    second = axis_dose(near, moved, plan(field(0.0, (-narrow, narrow, -narrow, narrow))), -100.0)
    assert second / first == pytest.approx((1000 / 1100) ** 2, rel=0.005)


def test_half_as_thick_and_twice_as_dense_attenuates_the_same() -> None:
    thick, grid = water(160.0, 80.0)
    thin, other = water(80.0, 80.0, density=2.0)
    assert axis_dose(thin, other, plan(field())) == pytest.approx(axis_dose(thick, grid, plan(field())), rel=0.02)


def test_dose_falls_exponentially_behind_the_build_up() -> None:
    """Beer and Lambert, in a narrow field, where little scatter adds to the primary beam."""
    made = plan(field(0.0, (-15, 15, -15, 15)))
    doses = [axis_dose(*water(depth), made) for depth in (100.0, 160.0, 220.0)]
    assert doses[1] ** 2 == pytest.approx(doses[0] * doses[2], rel=0.01)


@pytest.mark.parametrize(("quality", "tpr"), [("6 MV", 0.670), ("10 MV", 0.738), ("15 MV", 0.761)])
def test_depth_doses_and_the_beam_quality_fit_as_published(quality: str, tpr: float) -> None:
    """IAEA TRS-398 (2000), section 6.3.1, gives for 10 x 10 cm: TPR20,10 = 1.2661 PDD20,10 - 0.0595.

    PDD20,10 (source to surface 100 cm) is a prediction of the engine, whose input is TPR20,10 (at the isocentre).
    """
    made = plan(field(), beam_quality=quality)
    depth = [axis_dose(*water(d), made) for d in (100.0, 200.0)]
    assert depth[1] / depth[0] == pytest.approx(tpr, abs=0.012)
    density, grid = water(0.0, 260.0)
    surface = [axis_dose(density, grid, made, -d) for d in (100.0, 200.0)]
    assert 1.2661 * surface[1] / surface[0] - 0.0595 == pytest.approx(tpr, abs=0.012)


# Where the middle of an off-axis field lies (right, anterior, superior): IEC 61217, supine, head first.
@pytest.mark.parametrize(
    ("gantry", "jaws", "collimator", "toward"),
    [
        (0.0, (10, 50, -20, 20), 0.0, (-1, 0, 0)),
        (180.0, (10, 50, -20, 20), 0.0, (1, 0, 0)),
        (90.0, (10, 50, -20, 20), 0.0, (0, -1, 0)),
        (270.0, (10, 50, -20, 20), 0.0, (0, 1, 0)),
        (0.0, (-20, 20, 10, 50), 0.0, (0, 0, 1)),
        (90.0, (-20, 20, 10, 50), 0.0, (0, 0, 1)),
        (0.0, (10, 50, -20, 20), 90.0, (0, 0, 1)),
        (0.0, (-20, 20, 10, 50), 90.0, (1, 0, 0)),
        (180.0, (10, 50, -20, 20), 270.0, (0, 0, -1)),
    ],
)
def test_off_axis_field_lies_where_the_standard_says(
    gantry: float, jaws: tuple[float, ...], collimator: float, toward: tuple[int, int, int]
) -> None:
    grid = VolumeGrid((40, 40, 40), (5.0, 5.0, 5.0))
    dose = ENGINE.dose(np.ones(grid.shape, np.float32), grid, plan(field(gantry, jaws, collimator_deg=collimator)))
    ct = PlanningCT(np.zeros(grid.shape, np.float32), grid)
    across = np.array(toward) * 30.0
    beyond = dose_at(ct, dose, -across)
    assert dose_at(ct, dose, across) > 5 * beyond
    # ... and seen from there the source's side has more dose than the other.
    to_source = Field("f", gantry, (-1, 1, -1, 1), 1.0).axes[0] * 70
    assert dose_at(ct, dose, across + to_source) > dose_at(ct, dose, across - to_source)


def test_opposed_fields_in_a_symmetric_phantom_mirror_each_other() -> None:
    grid = VolumeGrid((41, 41, 31), (5.0, 5.0, 5.0))
    density = np.ones(grid.shape, np.float32)
    front, back, left = (ENGINE.dose(density, grid, plan(field(g))) for g in (0.0, 180.0, 90.0))
    assert np.allclose(front, back[:, ::-1], atol=0.003 * front.max())
    assert np.allclose(front, front[::-1], atol=0.003 * front.max())
    assert np.allclose(front, front[:, :, ::-1], atol=0.003 * front.max())
    # A quarter turn: what is anterior of the first stands on the patient's left (-x) of the other.
    assert np.allclose(front, left.transpose(1, 0, 2)[:, ::-1], atol=0.01 * front.max())


def test_dose_does_not_depend_on_the_air_around_the_volume() -> None:
    grid = VolumeGrid((30, 30, 20), (5.0, 5.0, 5.0), (20.0, 10.0, 0.0))
    density = np.ones(grid.shape, np.float32)
    made = plan(field(90.0), isocenter_mm=(60.0, -40.0, 0.0))  # near a corner
    wide = np.pad(density, [(15, 15), (15, 15), (0, 0)], constant_values=0.001)
    dose = ENGINE.dose(wide, grid.padded((15, 15, 0)), made)[15:-15, 15:-15]
    assert np.allclose(ENGINE.dose(density, grid, made), dose, atol=0.003 * dose.max())


def test_six_millimetres_of_water_by_hand() -> None:
    """AP/PA: 6 mm more on one side take what that side gives, times the attenuation of 6 mm."""
    depth, other, more = 160.0, 60.0, 8.0  # two voxels
    density, grid = water(depth, other, air_mm=40.0)
    wider, _ = water(depth, other, air_mm=40.0)
    y = grid.axis_mm(1).numpy()
    wider[:, (y >= depth) & (y < depth + more)] = 1.0
    made = plan(field(0.0), field(180.0), beam_quality="15 MV")
    found = axis_dose(wider, grid, made) / axis_dose(density, grid, made) - 1
    mu = -math.log(made.tpr_20_10) / 100
    front, back = math.exp(-mu * depth), math.exp(-mu * other)
    assert found == pytest.approx(front / (front + back) * (math.exp(-mu * more) - 1), abs=0.0025)


def test_air_alone_gets_no_dose() -> None:
    grid = VolumeGrid((10, 10, 10), (5.0, 5.0, 5.0))
    assert not ENGINE.dose(np.full(grid.shape, 0.001, np.float32), grid, plan(field())).any()


def test_threads_are_left_as_they_were_found() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), kept_threads():
        torch.set_num_threads(before + 1)
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_missing_engine_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydosert", None)
    with pytest.raises(ModuleNotFoundError, match=r"fewview-ct\[radiotherapy\]"):
        PencilBeamEngine()
