"""Verdicts, their messages, and what single pictures and geometries say."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from custom.core.attenuation import hu_to_attenuation
from custom.geometry import VolumeGrid, views_from_angles
from custom.projection import Projector
from custom.radiographs import AcquisitionMetadata, MetadataValue, Origin
from custom.trust import NAMES, CheckResult, Evidence, Thresholds, Verdict, overall, run_checks
from custom.trust.check_statistics import STATISTICS, Meter, Quantiles, relative_residuals
from custom.trust.expected_error import ExpectedError
from custom.trust.picture_statistics import LEVELS, body_quantiles, cut_off, lateral_edges
from custom.trust.pose_consistency import rotated
from custom.trust.thresholds import Threshold, TrainedRange

GRID = VolumeGrid.cube(16, 320.0)
SHAPE = (16, 24)
TRAINED = TrainedRange((1, 2), ("parallel", "cone"), (700.0, 1700.0), (1000.0, 1900.0), 5.0, 0.5)


def body() -> Tensor:
    """A ball of water with an off-centre ball of lung in air, HU (X, Y, Z)."""
    points = GRID.points()
    hu = torch.full(GRID.shape, -1000.0)
    hu[points.norm(dim=-1) < 120] = 0.0
    hu[(points - torch.tensor([40.0, 20.0, 0.0])).norm(dim=-1) < 50] = -800.0
    return hu


def evidence(angles: tuple[float, ...] = (0.0, 90.0), beam: str = "parallel", **options: Any) -> Evidence:
    views = views_from_angles(angles, beam, pixel_mm=20.0 * (1.5 if beam == "cone" else 1.0), **options).float()
    image = Projector(GRID, SHAPE)(hu_to_attenuation(body())[None, None], views)[0]
    field_mask = torch.ones_like(image, dtype=torch.bool)
    return Evidence(image, views, field_mask, body(), GRID, training={"energy_kev": 70.0})


def one(review: float, reject: float) -> Threshold:
    return Threshold(review, reject, 0.0, 0.0, 0.0, 0.0, 20)


def thresholds(**limits: tuple[float, float]) -> Thresholds:
    """Wide for all statistics that are not named."""
    group = {name: one(*limits.get(name, (1e6, 2e6))) for name in STATISTICS}
    quantiles = Quantiles((0.0,) * len(LEVELS), (10.0,) * len(LEVELS))
    groups = {f"{beam} {count}": group for beam in ("parallel", "cone") for count in (1, 2)}
    return Thresholds(groups, {"parallel": quantiles, "cone": quantiles}, TRAINED, {})


def verdicts(results: list[CheckResult]) -> dict[str, Verdict]:
    return {result.name: result.verdict for result in results}


def test_every_check_is_there_once_and_a_good_case_passes() -> None:
    results = run_checks(evidence(), thresholds())
    assert [result.name for result in results] == list(NAMES)
    assert overall(results) is Verdict.PASS
    for result in results:
        assert result.message.endswith(".")
        assert "  " not in result.message


@pytest.mark.parametrize(
    ("limits", "verdict"), [((0.5, 1.0), Verdict.PASS), ((-1.0, 1.0), Verdict.REVIEW), ((-2.0, -1.0), Verdict.REJECT)]
)
def test_limits_make_verdicts(limits: tuple[float, float], verdict: Verdict) -> None:
    results = {r.name: r for r in run_checks(evidence(), thresholds(agreement=limits))}
    found = results["agreement"]
    assert found.verdict is verdict
    assert (found.review_above, found.reject_above) == limits
    assert found.statistic is not None
    assert overall(results.values()) is verdict


def test_what_cannot_be_measured_passes_and_says_so() -> None:
    results = {r.name: r for r in run_checks(evidence((90.0,)), thresholds())}
    for name, why in (("agreement", "single radiograph"), ("samples", "no samples"), ("population", "no population")):
        assert results[name].verdict is Verdict.NOT_CHECKED
        assert results[name].statistic is None
        assert results[name].message.startswith("Not checked: ")
        assert why in results[name].message


def test_without_thresholds_nothing_that_was_measured_passes() -> None:
    empty = replace(thresholds(), groups={})
    results = {r.name: r for r in run_checks(evidence(), empty)}
    assert results["reprojection"].verdict is Verdict.REVIEW
    assert "no thresholds for 2 radiographs of parallel beam" in results["reprojection"].message
    partly = replace(thresholds(), groups={"parallel 2": {"agreement": one(1.0, 2.0)}})
    found = verdicts(run_checks(evidence(), partly))
    assert found["agreement"] is Verdict.PASS
    assert found["truncation"] is Verdict.REVIEW


def test_a_statistic_that_is_no_number_is_refused() -> None:
    shown = evidence()
    shown.image[0, 0, 0] = float("nan")
    assert overall(run_checks(shown, thresholds())) is Verdict.REJECT


def test_the_reconstruction_of_other_radiographs_is_found() -> None:
    good = Meter().measure(evidence())["reprojection"].value
    bad = Meter().measure(replace(evidence(), hu=body().flip(0) + 200))["reprojection"].value
    assert good == pytest.approx(0, abs=1e-5)
    assert bad is not None
    assert bad > 0.1
    assert Meter().measure(replace(evidence(), hu=None))["reprojection"].value is None


def test_tissue_outside_the_cube_is_no_residual() -> None:
    image = torch.ones(1, 4, 6)
    field_mask = torch.ones_like(image, dtype=torch.bool)
    assert relative_residuals(image, 0.5 * image, field_mask) == [0.0]
    assert relative_residuals(image, 1.5 * image, field_mask) == [pytest.approx(0.5)]
    field_mask[:, 2:] = False
    image[:, 2:] = 9.0
    assert relative_residuals(image, torch.full_like(image, 1.5), field_mask) == [pytest.approx(0.5)]


def test_the_spread_of_samples_is_that_in_the_body() -> None:
    std = torch.where(body() > -500, 30.0, 500.0)
    value = Meter().measure(replace(evidence(), samples_std=std))["samples"].value
    assert value == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("shown", "verdict", "part"),
    [
        ({"beam": "cone"}, Verdict.PASS, "as in the training"),
        ({"beam": "cone", "source_to_isocenter_mm": 600.0}, Verdict.REVIEW, "source to isocenter of radiograph"),
        ({"beam": "cone", "source_to_detector_mm": 4000.0}, Verdict.REJECT, "source to detector of radiograph"),
    ],
)
def test_distances_outside_the_training(shown: dict[str, Any], verdict: Verdict, part: str) -> None:
    result = {r.name: r for r in run_checks(evidence(**shown), thresholds())}["geometry"]
    assert result.verdict is verdict
    assert part in result.message


def test_a_beam_that_was_not_trained() -> None:
    only = replace(thresholds(), trained=replace(TRAINED, beams=("parallel",)))
    result = {r.name: r for r in run_checks(evidence(beam="cone"), only)}["geometry"]
    assert result.verdict is Verdict.REJECT
    assert "trained for parallel" in result.message


def test_a_tilted_view() -> None:
    shown = evidence()
    views = shown.views.clone()
    views[0, 6:9] = torch.tensor([0.0, 20.0, 2.5])  # the detector is rolled by 7 degrees
    result = {r.name: r for r in run_checks(replace(shown, views=views), thresholds())}["geometry"]
    assert result.verdict is Verdict.REVIEW
    assert "tilted by 7.1 degrees" in result.message


def test_a_number_of_views_that_was_not_trained() -> None:
    results = {r.name: r for r in run_checks(evidence((0.0, 60.0, 120.0)), thresholds())}
    assert results["views"].verdict is Verdict.REVIEW
    assert "trained with 1, 2" in results["views"].message
    assert "(compared with cases of 2 radiographs)" in results["agreement"].message


def test_assumptions_are_listed() -> None:
    by_option = MetadataValue("source_to_detector_mm", 1500.0, Origin.OPTION, "x")
    usual = MetadataValue("detector_roll_deg", 0.0, Origin.USUAL_VALUE, "the detector stands upright")
    known = AcquisitionMetadata(beam=MetadataValue("beam", "cone", Origin.FILE, "DICOM (0018,1110)"))

    def judged(*metadata: AcquisitionMetadata) -> CheckResult:
        checks = run_checks(replace(evidence(), radiograph_metadata=list(metadata)), thresholds())
        return {check.name: check for check in checks}["assumptions"]

    result = judged(replace(known, source_to_detector_mm=by_option))
    assert result.verdict is Verdict.REVIEW
    assert "source to detector mm of radiograph 1 (x)" in result.message
    result = judged(replace(known, detector_roll_deg=usual))
    assert result.verdict is Verdict.PASS
    assert "detector roll deg of radiograph 1 (the detector stands upright)" in result.message
    assert "comes from the files or a sidecar." in result.message
    answered = MetadataValue("source_to_detector_mm", 1500.0, Origin.ANSWER, "answers.json")
    said = judged(replace(known, source_to_detector_mm=answered))
    assert said.verdict is Verdict.PASS and "a sidecar or your answer in the form." in said.message
    both = judged(replace(known, detector_roll_deg=usual), replace(known, detector_roll_deg=usual)).message
    assert "detector roll deg of radiograph 1, 2 (the detector stands upright)." in both


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="views must be"):
        replace(evidence(), views=evidence().views[:1])
    with pytest.raises(ValueError, match="hu must be"):
        replace(evidence(), hu=torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match="energy_kev"):
        Meter().measure(replace(evidence(), training={}))
    nested = replace(evidence(), training={"network_def": {"energy_kev": 80}})
    assert nested.energy_kev == 80.0


def test_a_body_at_the_border() -> None:
    image = torch.zeros(2, 8, 12)
    image[:, :, 3:9] = 4.0
    field_mask = torch.ones_like(image, dtype=torch.bool)
    assert cut_off(image, field_mask)[0] == 0.0
    field_mask[1, :, :5] = False
    share, which = cut_off(image, field_mask)
    assert (share, which) == (pytest.approx(1.0), 1)
    edges, _ = lateral_edges(image, field_mask)
    assert edges[1, :, 0].tolist() == [4.0] * 8
    field_mask[0, 0, 6] = False
    assert lateral_edges(image, field_mask)[1][0].tolist() == [False] + [True] * 7


def test_nothing_exposed_is_no_crash() -> None:
    image, field_mask = torch.ones(1, 4, 6), torch.zeros(1, 4, 6, dtype=torch.bool)
    assert cut_off(image, field_mask) == (0.0, 0)
    assert body_quantiles(image, field_mask).tolist() == [[0.0] * len(LEVELS)]


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 3.0))
def test_intensities_far_from_the_usual(factor: float) -> None:
    shown = evidence()
    usual = body_quantiles(shown.image, shown.field_mask)
    reference = Quantiles.of(torch.cat([usual * s for s in torch.linspace(0.9, 1.1, 21)]))
    value = Meter(reference).measure(replace(shown, image=shown.image * factor))["intensities"].value
    assert value is not None
    # 0.1 of a typical value is one usual deviation, less its ends.
    assert value == pytest.approx(abs(factor - 1) / 0.09, rel=0.15, abs=0.2)


def test_radiographs_are_named_by_their_side_and_angle() -> None:
    shown = evidence((90.0, 0.0), beam="cone")
    assert shown.name(0) == "radiograph 1 (frontal, at 90 degrees)"
    assert replace(shown, views=rotated(shown.views, 10.0)).name(1) == "radiograph 2 (lateral, at 10 degrees)"
    for angle, words in (
        (270.0, "frontal, at 270"), (180.0, "lateral, at 180"), (345.0, "lateral, at 345"), (359.8, "lateral, at 0"),
        (105.0, "frontal, at 105"), (106.0, "oblique, at 106"), (45.0, "oblique, at 45"), (225.0, "oblique, at 225"),
    ):  # fmt: skip
        assert evidence((angle,)).name(0) == f"radiograph 1 ({words} degrees)"


@pytest.mark.parametrize("beam", ["parallel", "cone"])
@pytest.mark.parametrize("angles", [(90.0,), (90.0, 0.0), (90.0, 45.0, 0.0), (90.0, 270.0)])
def test_messages_are_in_a_clinicians_words(beam: str, angles: tuple[float, ...]) -> None:
    shown = evidence(angles, beam=beam)
    usual = body_quantiles(shown.image, shown.field_mask)
    reference = Quantiles.of(torch.cat([usual * s for s in torch.linspace(0.9, 1.1, 21)]))
    said = [one.detail for one in Meter(reference).measure(shown).values()]
    found = [run_checks(shown, limits) for limits in (thresholds(), replace(thresholds(), groups={}))]
    for words in (*said, *(check.message for checks in found for check in checks)):
        assert not re.search(r"integral|derivative|\bviews?\b", words), words


def test_the_worst_verdict_counts() -> None:
    assert overall([]) is Verdict.REVIEW
    made = [CheckResult("a", verdict, None, None, None, "") for verdict in (Verdict.REVIEW, Verdict.PASS)]
    assert overall(made) is Verdict.REVIEW
    assert str(Verdict.REJECT) == "REJECT"


def test_undecided_is_the_share_between_air_and_soft_tissue_whatever_the_voxels() -> None:
    hu = torch.full((16, 16, 16), -1000.0)
    hu[:8] = 40.0
    hu[:4, :, :8] = -800.0
    grid = VolumeGrid.cube(16, 80.0)
    shown = replace(evidence(), hu=hu, grid=grid)
    assert Meter().measure(shown)["undecided"].value == pytest.approx(math.log(1 / 8))
    finer = hu.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    alternating = finer + 100 * (-1.0) ** torch.arange(32)
    shown = replace(evidence(), hu=alternating, grid=VolumeGrid.cube(32, 80.0))
    found = Meter().measure(shown)["undecided"]
    assert found.value == pytest.approx(math.log(1 / 8))
    assert found.detail.startswith("12% of the box")
    assert Meter().measure(replace(evidence(), hu=None))["undecided"].value is None


def test_the_expected_error_follows_what_is_undecided_and_says_so() -> None:
    fitted = {"center": {"undecided": math.log(0.1)}, "spread": {"undecided": 1.0}, "weight": {"undecided": 0.5}}
    errors = ExpectedError(math.log(100.0), **fitted, upper=0.1, coverage=0.9, lowest=80.0, highest=120.0)
    measured = Meter(errors=errors).measure(evidence())
    share = math.exp(measured["undecided"].value or 0.0)
    assert measured["expected_error"].value == pytest.approx(100 * (share / 0.1) ** 0.5)
    assert measured["undecided"].detail in measured["expected_error"].detail
    older = Meter(errors=replace(errors, center={}, spread={}, weight={})).measure(evidence())["expected_error"]
    assert older.value == pytest.approx(100)
    assert "neither air nor soft tissue" not in older.detail
