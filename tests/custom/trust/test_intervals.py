"""Intervals of voxels and measures on bodies whose errors are known, and when none is stated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from custom.geometry import Geometry, VolumeGrid
from custom.trust import CheckResult, Evidence, Thresholds, Verdict, state_intervals
from custom.trust.body_measures import MEASURES, measure_body
from custom.trust.calibrated_intervals import CalibratedIntervals, DoseIntervals, fit_intervals, interval_record
from custom.trust.measure_intervals import (
    Kind,
    MeasureInterval,
    errors_of_measures,
    fit_measure_intervals,
    growth_of_errors,
)
from custom.trust.stated_intervals import StatedMeasure
from custom.trust.thresholds import Threshold, TrainedRange
from custom.trust.voxel_intervals import TISSUES, VoxelIntervals, fit_voxel_intervals, residual_table, tissue_of

GRID = VolumeGrid.cube(20, 320.0)
WINDOW = (-1000.0, 1000.0)
ACQUISITION: dict[str, Any] = {
    "spacing_mm": GRID.spacing_mm,
    "angles_deg": ((0.0, 90.0),),
    "samples": 0,
    "segmenter_sha256": "5e9",
}


class _ByDensity(nn.Module):
    """Organs by CT value, so that their volume is known: lungs below -500 HU in the body, a heart above 60 HU."""

    classes = ("body", "lung_left", "lung_right", "heart")
    grid, hu_window = GRID, WINDOW

    def at_its_resolution(self, image: Tensor, spacing_mm: tuple[float, ...]) -> Tensor:
        if tuple(spacing_mm) != self.grid.spacing_mm:
            raise ValueError("voxels that do not fit")
        return image

    def forward(self, image: Tensor) -> Tensor:
        hu = image[:, 0] * 1000
        lung = (hu > -950) & (hu < -500)
        return torch.stack([hu > -950, lung, lung, hu > 60], 1).float() - 0.5


SEGMENTER: Any = _ByDensity()


def predicted() -> Tensor:
    """A body of water with two lungs, a heart and a spine."""
    points = GRID.points()
    hu = torch.full(GRID.shape, -1000.0)
    hu[(points / torch.tensor([140.0, 110.0, 400.0])).norm(dim=-1) < 1] = 20.0
    for x in (-60.0, 60.0):
        hu[((points - torch.tensor([x, 10.0, 0.0])) / torch.tensor([45.0, 60.0, 110.0])).norm(dim=-1) < 1] = -750.0
    hu[((points - torch.tensor([0.0, 30.0, 0.0])) / 45.0).norm(dim=-1) < 1] = 80.0
    hu[((points - torch.tensor([0.0, -70.0, 0.0])) / torch.tensor([30.0, 30.0, 400.0])).norm(dim=-1) < 1] = 400.0
    return hu


def truth(draw: np.random.Generator, scale: float = 1.0) -> Tensor:
    """Errors by tissue, skewed in the lungs, larger or smaller in each patient."""
    hu, tissue = predicted(), tissue_of(predicted())
    size = torch.tensor([1.0, 80.0, 60.0, 20.0, 120.0])[tissue] * scale * float(draw.lognormal(0, 0.2))
    noise = torch.from_numpy(draw.normal(size=GRID.shape)).float()
    skewed = torch.from_numpy(draw.exponential(size=GRID.shape)).float()
    return (hu + size * torch.where(tissue == 1, skewed, noise)).clamp(*WINDOW)


def held(intervals: VoxelIntervals, true: Tensor) -> dict[str, float]:
    lower, upper = intervals.around(predicted(), WINDOW)
    tissue, inside = tissue_of(predicted()), (true >= lower - 0.5) & (true <= upper + 0.5)
    found = {n: float(inside[tissue == i].float().mean()) for i, n in enumerate(TISSUES, 1) if (tissue == i).any()}
    return {**found, "body": float(inside[tissue > 0].float().mean())}


@pytest.fixture(scope="module")
def calibrated() -> CalibratedIntervals:
    draw = np.random.default_rng(0)
    hu, truths = predicted(), [truth(draw) for _ in range(30)]
    records = [json.loads(json.dumps(interval_record(hu, true, GRID, SEGMENTER))) for true in truths]
    volumes = [{**r["measures"], "lung_volume_ml": r["measures"]["lung_volume_ml"] * f} for r, f in
               zip(records, np.exp(0.1 + 0.05 * norm.ppf((np.arange(30) + 0.5) / 30)), strict=True)]  # fmt: skip
    found = fit_intervals(records, volumes, [f"p{i}" for i in range(30)], ACQUISITION)
    assert found is not None
    return found


def test_another_coverage_is_held_too() -> None:
    draw, hu = np.random.default_rng(7), predicted()
    truths = [truth(draw) for _ in range(30)]
    records = [interval_record(hu, true, GRID, None) for true in truths]
    new = [truth(draw) for _ in range(40)]
    for coverage in (0.5, 0.8):
        measures = [r["measures"] for r in records]
        found = fit_intervals(records, measures, [f"p{i}" for i in range(30)], ACQUISITION, coverage=coverage)
        assert found is not None and found.coverage == coverage
        assert np.mean([held(found.voxels, true)["body"] for true in new]) == pytest.approx(coverage + 0.02, abs=0.04)


def test_voxels_of_new_patients_are_held_in_every_tissue(calibrated: CalibratedIntervals) -> None:
    draw = np.random.default_rng(1)
    cases = [held(calibrated.voxels, truth(draw)) for _ in range(60)]
    for name in cases[0]:
        assert 0.89 < np.mean([case[name] for case in cases]) < 0.97, name
    assert min(case["body"] for case in cases) > 0.75 < calibrated.voxels.lowest
    # Nobody drew a skewed interval but the errors did: in the lungs the truth is denser, never thinner.
    lower, upper = calibrated.voxels.around(predicted(), WINDOW)
    lung = predicted() == -750
    assert (upper - predicted())[lung].median() > 5 * (predicted() - lower)[lung].median()
    assert calibrated.voxels.factor["between"] is None  # there is none of it in this body


def test_patients_unlike_the_calibrated_are_not_held(calibrated: CalibratedIntervals) -> None:
    draw = np.random.default_rng(2)
    assert np.mean([held(calibrated.voxels, truth(draw, 3.0))["body"] for _ in range(10)]) < 0.7


def test_air_without_any_error_keeps_an_interval() -> None:
    draw, air = np.random.default_rng(5), tissue_of(predicted()) == 0
    cases = [residual_table(predicted(), torch.where(air, predicted(), truth(draw))) for _ in range(9)]
    lower, upper = fit_voxel_intervals(cases, [f"p{i}" for i in range(9)]).around(predicted(), (-1100.0, 1000.0))
    assert (lower < predicted())[air].all() and (upper > predicted())[air].all()


def test_cases_of_one_patient_count_as_one() -> None:
    draw = np.random.default_rng(3)
    cases = [residual_table(predicted(), truth(draw)) for _ in range(12)]
    with pytest.raises(ValueError, match="need 9 patients, got 6"):
        fit_voxel_intervals(cases, [f"p{i // 2}" for i in range(12)])
    assert fit_intervals([], [], [], ACQUISITION) is None


def test_measures_hold_and_are_corrected_for_what_is_always_wrong(calibrated: CalibratedIntervals) -> None:
    draw, lungs = np.random.default_rng(4), calibrated.measures["lung_volume_ml"]
    assert lungs.center == pytest.approx(0.1, abs=0.03)
    low, high = lungs.around(3000.0, positive=True)
    assert 0.85 < np.mean([low <= 3000 * f <= high for f in draw.lognormal(0.1, 0.05, 2000)]) < 0.99
    few: list[Mapping[str, float | None]] = [{"heart_volume_ml": 500.0} for _ in range(8)]
    assert fit_measure_intervals(few, few, [f"p{i}" for i in range(8)]) == {}


def test_measures_hold_for_new_patients_although_the_network_knows_the_calibrated() -> None:
    draw = np.random.default_rng(6)
    kinds = {f"t{i}": Kind.TRAINED_ON for i in range(60)} | {f"n{i}": Kind.NEW for i in range(40)}
    kinds |= {f"p{i}": Kind.PHANTOM for i in range(40)}
    width = {Kind.TRAINED_ON: 0.02, Kind.NEW: 0.05, Kind.PHANTOM: 0.02}
    shift = {Kind.TRAINED_ON: 0.1, Kind.NEW: 0.1, Kind.PHANTOM: 0.04}
    found = [{"heart_volume_ml": 500.0}] * len(kinds)
    truths = [{"heart_volume_ml": 500 * math.exp(draw.normal(shift[k], width[k]))} for k in kinds.values()]
    patients = list(kinds)
    growth = growth_of_errors([errors_of_measures(found, truths, patients)], kinds)
    assert growth == pytest.approx(2.5, rel=0.25)
    few = {name: kind for name, kind in kinds.items() if name not in {f"n{i}" for i in range(2, 40)}}

    def interval(some: Mapping[str, Kind], kinds: Mapping[str, Kind] | None, growth: float) -> tuple[float, float]:
        chosen = [i for i, name in enumerate(patients) if name in some]
        args = [found[i] for i in chosen], [truths[i] for i in chosen], [patients[i] for i in chosen]
        one = fit_measure_intervals(*args, kinds=kinds, growth=growth)["heart_volume_ml"]
        assert one.patients == len(some)
        return one.center - one.reach, one.center + one.reach

    new = draw.normal(shift[Kind.NEW], width[Kind.NEW], 2000)
    held = {}
    for name, known in {"all alike": (None, 1.0), "by kind": (few, growth)}.items():
        low, high = interval(few, *known)
        held[name] = float(((new > low) & (new < high)).mean())
    assert held["all alike"] < 0.85 < held["by kind"]
    # Neither without new patients, nor where their errors are smaller, does anything grow.
    trained = {n: k for n, k in kinds.items() if k is Kind.TRAINED_ON}
    assert growth_of_errors([{"heart_volume_ml": {n: [0.1] for n in trained}}], trained) == 1
    errors = {n: [float(i)] for i, n in enumerate(trained)} | {"n0": [30.0]}
    assert growth_of_errors([{"heart_volume_ml": errors}], kinds) == 1
    # Phantoms alone have their own median.
    low, high = interval({n: k for n, k in kinds.items() if k is Kind.PHANTOM}, kinds, growth)
    assert low < 0.04 < high < 0.12


def test_measures_of_a_known_body() -> None:
    found = measure_body(predicted(), GRID, SEGMENTER)
    voxel_ml = 16.0**3 / 1000
    assert not found.missing and set(found.values) == set(MEASURES)
    assert found.values["lung_volume_ml"] == pytest.approx(float((predicted() == -750).sum()) * voxel_ml)
    assert found.values["lung_density_hu"] == pytest.approx(-750, abs=0.1)
    without = measure_body(predicted(), GRID)
    assert without.values["heart_volume_ml"] is None and "seg_guidance" in without.missing["heart_volume_ml"]
    # Water of 140 mm before the isocentre, air before that, bone of 30 mm behind it and nothing but air to the left.
    grid = VolumeGrid((40, 40, 4), (10.0, 10.0, 10.0))
    hu = torch.full(grid.shape, -1000.0)
    hu[:, 20:34] = 0.0
    hu[:, 17:20] = 1000.0
    depths = measure_body(hu, grid).values
    assert depths["frontal_depth_mm"] == pytest.approx(140)
    assert depths["lateral_depth_mm"] == pytest.approx(200 * 1.5)  # half of the column is water, half bone
    assert measure_body(torch.full(grid.shape, -1000.0), grid).values["frontal_depth_mm"] is None


def thresholds(calibrated: CalibratedIntervals, **changes: Any) -> Thresholds:
    group = {"population": Threshold(1.0, 2.0, 0.0, 0.5, 0.6, 0.8, 30)}
    trained = TrainedRange((2,), ("parallel",), (900.0, 1000.0), (1400.0, 1500.0), 5.0, 0.5)
    content: dict[str, Any] = {"groups": {"parallel 2": group}, "intervals": {"parallel 2": calibrated}, **changes}
    return Thresholds(quantiles={}, trained=trained, made_from={}, **content)


def evidence(angles: tuple[float, ...] = (0.0, 90.0), hu: Tensor | None = None, grid: VolumeGrid = GRID) -> Evidence:
    views = Geometry.from_angles(angles, "parallel", 1000.0, 1500.0, (8, 8), 20.0).tensor()
    image = torch.zeros(len(angles), 8, 8)
    return Evidence(image, views, torch.ones_like(image) > 0, predicted() if hu is None else hu, grid)


def check(name: str = "population", value: float = 0.5, verdict: Verdict = Verdict.PASS) -> CheckResult:
    return CheckResult(name, verdict, value, None, None, "")


def test_a_case_like_the_calibrated_gets_intervals(calibrated: CalibratedIntervals) -> None:
    stated = state_intervals(evidence(), [check()], thresholds(calibrated), WINDOW, 0, (SEGMENTER, "5e9"))
    assert stated.abstained is None and stated.lower is not None and stated.upper is not None
    assert bool((stated.lower <= predicted()).all() and (stated.upper >= predicted()).all())
    assert "90% of patients like the 30" in stated.basis
    lungs = {one.name: one for one in stated.measures}["lung_volume_ml"]
    assert lungs.lower is not None and lungs.value is not None and lungs.upper is not None
    assert lungs.lower < lungs.value * math.exp(0.1) < lungs.upper
    wide = stated.wider_than(100.0)
    assert wide is not None and bool(wide[predicted() == 400].all()) and not bool(wide[predicted() == 20].all())
    other = state_intervals(evidence(), [check()], thresholds(calibrated), WINDOW, 0, (SEGMENTER, "another"))
    assert other.measures[0].lower is None and "another" in str(other.measures[0].why_not)


@pytest.mark.parametrize("angles", [(0.0, 60.0, 120.0), (30.0, 250.0, 310.0), tuple(22.5 * i for i in range(8))])
def test_more_views_get_the_intervals_of_fewer(calibrated: CalibratedIntervals, angles: tuple[float, ...]) -> None:
    doses = DoseIntervals({}, {"ap_pa": MeasureInterval(0.0, 0.02, 1.9, 2.1, 30)})
    with_doses = thresholds(replace(calibrated, doses=doses))
    two = state_intervals(evidence(), [check()], with_doses, WINDOW)
    more = state_intervals(evidence(angles), [check()], with_doses, WINDOW)
    assert two.views is None and more.views == 2 and "Calibrated were 2 radiographs" in more.basis
    assert two.doses == doses and more.doses is None  # a dose's error changes sign with the views, so it is not lent
    assert two.lower is not None and more.lower is not None and more.upper is not None
    bone = predicted() == 400
    torch.testing.assert_close(two.lower[~bone], more.lower[~bone])
    assert bool((more.lower[bone] == WINDOW[0]).all() and (more.upper[bone] == WINDOW[1]).all())
    # One view was calibrated in two places, and says nothing of views elsewhere.
    alone = replace(calibrated, angles_deg=((0.0,), (90.0,)))
    assert not alone.spread_as_evenly(angles)


def test_finer_voxels_get_the_limits_of_their_block(calibrated: CalibratedIntervals) -> None:
    fine = predicted()
    for axis in range(3):
        fine = fine.repeat_interleave(2, axis)
    grid = VolumeGrid.cube(40, 320.0)
    fine_stated = state_intervals(evidence(hu=fine, grid=grid), [check()], thresholds(calibrated), WINDOW)
    stated = state_intervals(evidence(), [check()], thresholds(calibrated), WINDOW)
    assert fine_stated.lower is not None and stated.lower is not None
    torch.testing.assert_close(fine_stated.lower[::2, 1::2, ::2], stated.lower)
    odd = VolumeGrid.cube(20, 300.0)
    refused = state_intervals(evidence(grid=odd), [check()], thresholds(calibrated), WINDOW)
    assert "do not fit" in str(refused.abstained)


@pytest.mark.parametrize(
    ("angles", "checks", "samples", "changes", "why"),
    [
        ((0.0, 90.0), [check()], 0, {"intervals": {}}, "no intervals are calibrated for this model; ask whoever"),
        ((0.0, 20.0, 70.0), [check()], 0, {}, r"\(parallel 3\) were not calibrated, nor fewer"),
        ((45.0,), [check()], 0, {}, r"\(parallel 1\) were not calibrated"),
        ((0.0, 45.0, 90.0), [check(value=0.9)], 0, {}, "farther from the population"),
        ((0.0, 60.0), [check()], 0, {}, "0, 60 degrees were not calibrated; there are 0, 90"),
        ((0.0, 90.0), [check()], 4, {}, "4 samples, and 0 were calibrated"),
        ((0.0, 90.0), [check(value=0.9)], 0, {}, r"farther from the population .* \(0.9, at most 0.8\)"),
        ((0.0, 90.0), [check(value=math.nan)], 0, {}, "farther from the population"),
        ((0.0, 90.0), [check("agreement", 9.0, Verdict.REJECT)], 0, {}, "REJECT"),
    ],
)
def test_it_abstains_with_a_reason(
    calibrated: CalibratedIntervals, angles: Any, checks: Any, samples: int, changes: dict[str, Any], why: str
) -> None:
    stated = state_intervals(evidence(angles), checks, thresholds(calibrated, **changes), WINDOW, samples)
    assert stated.lower is None and not stated.measures and stated.wider_than(1.0) is None
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(stated.basis)


@pytest.mark.parametrize(("angles", "known"), [((270.0, 0.0), True), ((3.0, 86.0), True), ((0.0, 0.0), False)])
def test_views_near_the_calibrated_and_from_behind_are_known(
    calibrated: CalibratedIntervals, angles: tuple[float, ...], known: bool
) -> None:
    assert calibrated.knows_angles(angles) is known


def test_they_come_back_from_the_file_and_a_broken_one_is_refused(
    calibrated: CalibratedIntervals, tmp_path: Path
) -> None:
    path = thresholds(calibrated).save(tmp_path / "thresholds.json")
    assert asdict(Thresholds.load(path).intervals["parallel 2"]) == asdict(calibrated)
    content = json.loads(path.read_text())

    def refused(match: str, change: Any) -> None:
        broken = json.loads(json.dumps(content))
        change(broken["intervals"]["parallel 2"])
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=match):
            Thresholds.load(path)

    refused("negative and upper", lambda c: c["voxels"]["lower"][0].__setitem__(0, 5.0))
    refused("a row for every class", lambda c: c["voxels"]["upper"].pop())
    refused("factor must hold", lambda c: c["voxels"]["factor"].update(soft=-1.0))
    refused("no measure of this version", lambda c: c["measures"].update(spleen_ml=c["measures"]["body_volume_ml"]))
    refused("coverage", lambda c: c.update(coverage=1.5))
    refused("reach", lambda c: c["measures"]["body_volume_ml"].update(reach=-0.1))


def test_numbers_are_said_as_they_are_read() -> None:
    assert str(StatedMeasure("heart_volume_ml", 600.0, 523.0, 688.0)) == "Heart: 520 to 690 ml"
    assert str(StatedMeasure("frontal_depth_mm", 97.0, 90.6, 103.2)) == (
        "Water-equivalent depth of the isocentre from the front: 90 to 104 mm"
    )
    assert "no heart" in str(replace(StatedMeasure("heart_volume_ml", None), why_not="no heart was found"))
