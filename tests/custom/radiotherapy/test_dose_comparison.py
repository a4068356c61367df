"""Numbers of doses, the three modes, and intervals over samples."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from thorax_phantom import contoured, patient, thorax, with_hu

import custom.radiotherapy.sample_intervals as sample_intervals
from custom.geometry import VolumeGrid
from custom.radiotherapy import (
    MODES,
    Contours,
    NotPossible,
    Patient,
    PencilBeamEngine,
    PlanningCT,
    compare_modes,
    dose_numbers,
    sample_doses,
)
from custom.radiotherapy.dose_metrics import (
    dose_at,
    dose_error_percent,
    dvh,
    gamma_pass_percent,
    require_gamma,
    structure_numbers,
    volume_at_dose,
)

ENGINE = PencilBeamEngine()
CT, MASKS = thorax()
TRUTH = patient(CT, MASKS, ENGINE)


def cube(count: int = 24, spacing: float = 2.0) -> PlanningCT:
    grid = VolumeGrid((count,) * 3, (spacing,) * 3)
    return PlanningCT(np.zeros(grid.shape, np.float32), grid)


def test_dose_volume_numbers_of_a_known_distribution() -> None:
    dose = np.linspace(0, 60, 1001, dtype=np.float32).reshape(1001, 1, 1)
    mask = np.ones_like(dose, bool)
    assert volume_at_dose(dose, mask, 15.0) == pytest.approx(75.0, abs=0.1)
    assert dvh(dose, mask, np.array([0.0, 30.0, 61.0])) == pytest.approx([100, 50, 0], abs=0.1)
    found = structure_numbers(dose, mask, 50.0, "Lung_L", target=False)
    assert found == pytest.approx({"lung_l_mean_gy": 30.0, "lung_l_d2_gy": 58.8, "lung_l_v20gy_percent": 66.7}, abs=0.1)
    target = structure_numbers(dose, mask, 50.0, "Breast_L", target=True)
    assert target["breast_l_v90_percent"] == pytest.approx(25.0, abs=0.1)
    assert "lung_l_v20gy_percent" not in structure_numbers(dose, mask, 2.0, "Lung_L", target=False)
    assert structure_numbers(dose, ~mask, 50.0, "Heart", target=False) == {}
    assert np.isnan(volume_at_dose(dose, ~mask, 1.0))


def test_dose_at_a_point_is_trilinear() -> None:
    ct = cube()
    dose = ct.grid.points().numpy() @ np.array([1.0, 2.0, 3.0]) + 200
    assert dose_at(ct, dose.astype(np.float32), (3.3, -4.4, 5.5)) == pytest.approx(200 + 3.3 - 8.8 + 16.5, abs=1e-3)


@pytest.mark.parametrize(
    ("factor", "two", "three"), [(1.0, 100, 100), (1.015, 100, 100), (1.025, 0, 100), (1.04, 0, 0)]
)
def test_gamma_of_a_scaled_flat_dose(factor: float, two: float, three: float, caplog: pytest.LogCaptureFixture) -> None:
    """Without a gradient no distance helps: 2.5 % more fails at 2 % everywhere and passes at 3 %."""
    caplog.set_level("INFO")  # of the root logger, as under MONAI
    pytest.importorskip("pymedphys", reason="pymedphys has no release for this Python")
    ct, threads = cube(), torch.get_num_threads()
    flat, inside = np.full(ct.grid.shape, 2.0, np.float32), np.ones(ct.grid.shape, bool)
    found = gamma_pass_percent(ct, flat, flat * np.float32(factor), inside, 2.0, points=200)
    assert found == {"gamma_2_2_percent": two, "gamma_3_3_percent": three}
    assert torch.get_num_threads() == threads


def test_missing_gamma_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymedphys", None)
    with pytest.raises(ModuleNotFoundError, match=r"fewview-ct\[radiotherapy\]"):
        require_gamma()


def test_gamma_forgives_a_shift_within_its_distance_and_looks_at_the_body_alone() -> None:
    pytest.importorskip("pymedphys", reason="pymedphys has no release for this Python")
    ct = cube()
    ramp = np.ascontiguousarray(np.broadcast_to(np.linspace(1, 5, 24, dtype=np.float32), ct.grid.shape))
    body = np.zeros(ct.grid.shape, bool)
    body[4:-4, 4:-4, 4:-4] = True
    assert gamma_pass_percent(ct, ramp, np.roll(ramp, 1, 2), body, 5.0)["gamma_3_3_percent"] == 100
    assert gamma_pass_percent(ct, ramp, np.roll(ramp, 2, 2), body, 5.0)["gamma_2_2_percent"] == 0
    assert gamma_pass_percent(ct, ramp, np.where(body, ramp, 0), body, 5.0)["gamma_2_2_percent"] == 100
    assert np.isnan(gamma_pass_percent(ct, ramp, ramp, ~(body | True), 5.0)["gamma_2_2_percent"])


def test_dose_error_counts_where_the_reference_has_dose() -> None:
    reference = np.array([0.1, 1.0, 2.0, 2.0], np.float32)
    dose = np.array([9.0, 1.2, 2.0, 9.0], np.float32)
    inside = np.array([True, True, True, False])
    assert dose_error_percent(dose, reference, inside, 2.0) == pytest.approx(5.0, abs=1e-4)


def test_truth_against_itself_has_no_error_in_any_mode() -> None:
    pytest.importorskip("pymedphys", reason="pymedphys has no release for this Python")
    found = compare_modes(TRUTH, TRUTH, ENGINE)
    assert tuple(found) == MODES
    for one in found.values():
        assert one.possible
        assert one.true == pytest.approx(one.estimated)
        for name, value in one.errors.items():
            assert value == pytest.approx(100.0 if name.startswith("gamma") else 0.0, abs=1e-4), name


def test_modes_show_denser_tissue_with_the_sign_that_it_has() -> None:
    pytest.importorskip("pymedphys", reason="pymedphys has no release for this Python")
    hu = np.where(MASKS["External"], CT.hu + 40, CT.hu)
    dense = patient(with_hu(CT, hu), MASKS, ENGINE)
    found = compare_modes(dense, TRUTH, ENGINE)
    # Seen through the reconstruction the same monitor units give less; planned on it, more of them are given.
    assert -3 < found["same_mu"].errors["isocenter_error_percent"] < -0.3
    assert 0.3 < found["delivered"].errors["monitor_units_error_percent"] < 3
    assert found["delivered"].true["isocenter_gy"] > 2.006
    assert found["delivered"].estimated["isocenter_gy"] == pytest.approx(2.0, rel=1e-3)
    assert found["delivered"].errors["isocenter_error_percent"] < -0.3
    # Each CT by itself meets its prescription.
    assert found["papers"].errors["isocenter_error_percent"] == pytest.approx(0, abs=0.01)
    assert found["same_mu"].errors["wepl_field_mm"] > 2
    assert found["same_mu"].errors["dose_mae_percent"] > 0.2
    assert found["delivered"].errors["isocenter_distance_mm"] == 0


def test_delivered_moves_the_isocenter_with_the_reconstruction() -> None:
    pytest.importorskip("pymedphys", reason="pymedphys has no release for this Python")
    moved = {name: ndimage.shift(mask.astype(np.uint8), (2, 0, 0), order=0) > 0 for name, mask in MASKS.items()}
    shifted = patient(with_hu(CT, ndimage.shift(CT.hu, (2, 0, 0), order=0, cval=-1000)), moved, ENGINE)
    found = compare_modes(shifted, TRUTH, ENGINE)
    assert found["delivered"].errors["isocenter_distance_mm"] == pytest.approx(10.0, abs=0.1)
    assert found["same_mu"].errors["gamma_2_2_percent"] < 95


def test_a_plan_that_is_not_possible_is_a_result_with_its_reason() -> None:
    pytest.importorskip("pymedphys", reason="pymedphys has no release for this Python")
    flat, masks = thorax(breasts=False)
    none = patient(flat, masks, ENGINE, "breast_left", "Breast_L")
    truth = patient(CT, MASKS, ENGINE, "breast_left", "Breast_L")
    found = compare_modes(none, truth, ENGINE)
    assert {mode: one.possible for mode, one in found.items()} == {
        "delivered": False, "same_mu": True, "papers": False,
    }  # fmt: skip
    assert found["delivered"].reason.startswith("on the reconstruction: no Breast_L")
    assert "isocenter_error_percent" not in found["same_mu"].errors  # it lies on the fields' edge
    empty = compare_modes(Patient(CT, Contours({}), None, "no chest"), truth, ENGINE)
    assert [one.reason for one in empty.values()] == ["on the reconstruction: no chest"] * 3


def test_two_grids_cannot_be_compared() -> None:
    other = PlanningCT(CT.hu, replace(CT.grid, center_mm=(1.0, 0.0, 0.0)))
    with pytest.raises(ValueError, match="one grid"):
        compare_modes(replace(TRUTH, ct=other), TRUTH, ENGINE)


def test_every_number_has_its_interval_over_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    def contour(ct: PlanningCT, segmenter: object, target: str | None) -> Contours:
        if ct.hu.max() < 0:
            raise NotPossible("no body")
        return contoured(ct, MASKS, target)

    monkeypatch.setattr(sample_intervals, "contour", contour)
    assert TRUTH.case is not None
    inside = MASKS["External"]
    samples = [with_hu(CT, np.where(inside, CT.hu + d, CT.hu)) for d in (-40.0, 0.0, 40.0)]
    samples.append(with_hu(CT, np.full(CT.hu.shape, -1000.0)))
    found = sample_doses(TRUTH.case, samples, None, ENGINE)  # type: ignore[arg-type]
    numbers = dose_numbers(CT, TRUTH.contours, TRUTH.case.plan, TRUTH.case.dose_gy)
    assert set(found.intervals) == set(numbers)
    point = found.intervals["isocenter_gy"]
    assert point.low < 1.99 < point.median == pytest.approx(2.0, rel=1e-3)
    assert point.high > 2.005 and point.count == 3
    assert found.refused == ("no body",)
    assert found.coverage(numbers) == 1.0
    assert found.coverage({"isocenter_gy": 3.0, "heart_mean_gy": numbers["heart_mean_gy"]}) == 0.5
    assert found.coverage({"elsewhere": 1.0}) is None
    assert found.histograms["Heart"].shape == (3, 201)
    elsewhere = PlanningCT(CT.hu, replace(CT.grid, center_mm=(1.0, 0.0, 0.0)))
    with pytest.raises(ValueError, match="a sample on the grid"):
        sample_doses(TRUTH.case, [elsewhere], None, ENGINE)  # type: ignore[arg-type]
