"""Thresholds: what share of good cases they alarm, and what a damaged file says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from custom.core.files import sha256_file
from custom.trust import Thresholds
from custom.trust.check_statistics import Quantiles
from custom.trust.picture_statistics import LEVELS
from custom.trust.thresholds import Threshold, TrainedRange, fit_thresholds

TRAINED = TrainedRange((1, 2), ("parallel", "cone"), (700.0, 1700.0), (1000.0, 1900.0), 5.0, 0.5)


def cases(count: int, seed: int = 0) -> list[dict[str, float | None]]:
    """Good cases with two statistics of very different size; the angle is seen in half of them."""
    random = np.random.RandomState(seed)
    return [
        {
            "reprojection": float(np.exp(random.normal(-5, 0.5))),
            "orientation": float(random.normal(-0.4, 0.1)),
            "angles": float(random.normal(-0.1, 0.02)) if i % 2 else None,
            "truncation": float(np.exp(random.normal(-5, 0.5))),
            "samples": None,
        }
        for i in range(count)
    ]


def alarmed(case: dict[str, float | None], fitted: dict[str, Threshold]) -> bool:
    return any(v is not None and v > fitted[name].review_above for name, v in case.items() if name in fitted)


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_a_share_of_good_cases_is_alarmed_by_all_checks_together(level: float) -> None:
    fitted = fit_thresholds(cases(400), level, 2.0)
    assert set(fitted) == {"reprojection", "orientation", "angles", "truncation"}
    assert sum(alarmed(case, fitted) for case in cases(400)) / 400 == pytest.approx(level, abs=0.003)
    assert sum(alarmed(case, fitted) for case in cases(4000, seed=1)) / 4000 == pytest.approx(level, abs=0.04)


def test_reject_lies_further_out_and_says_from_what() -> None:
    fitted = fit_thresholds(cases(100), 0.05, 3.0)
    for name, one in fitted.items():
        assert one.median < one.quantile_90 < one.review_above, name
        assert one.reject_above is None or one.review_above < one.reject_above, name
        assert one.largest >= one.quantile_95
    assert fitted["angles"].cases == 50
    angles = fitted["angles"]
    assert angles.reject_above - angles.median == pytest.approx(3 * (angles.review_above - angles.median))
    # A body that is cut off is no reason to refuse a result; a picture that looks better mirrored always asks.
    assert fitted["truncation"].reject_above is None
    assert fitted["orientation"].review_above == 0
    # On a logarithmic scale, the factors multiply.
    one = fitted["reprojection"]
    assert one.reject_above / one.median == pytest.approx((one.review_above / one.median) ** 3, rel=1e-6)


@pytest.mark.parametrize(
    ("count", "level", "factor", "message"),
    [(5, 0.05, 2.0, "at least 10 cases"), (40, 0.0, 2.0, "between 0 and 1"), (40, 0.05, 0.5, "reject_factor")],
)
def test_what_makes_no_thresholds(count: int, level: float, factor: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_thresholds(cases(count), level, factor)


def made() -> Thresholds:
    fitted = fit_thresholds(cases(40), 0.05, 2.0)
    quantiles = Quantiles(tuple(float(i) for i in range(len(LEVELS))), (1.0,) * len(LEVELS))
    made_from = {"model": {"sha256": "0" * 64}, "cases": 40}
    return Thresholds(
        {"parallel 1": fitted, "parallel 2": fitted, "parallel 8": fitted},
        {"parallel": quantiles},
        TRAINED,
        made_from,
        calibrated={"parallel 1": {"truncation": (0.1, 0.2)}},
    )


def test_a_file_is_read_back_as_it_was(tmp_path: Path) -> None:
    thresholds = made()
    assert Thresholds.load(thresholds.save(tmp_path / "thresholds.json")) == thresholds


@pytest.mark.parametrize(
    ("views", "group"),
    [(1, "parallel 1"), (2, "parallel 2"), (3, "parallel 2"), (4, "parallel 2"), (5, "parallel 8"), (7, "parallel 8")],
)
def test_the_nearest_number_of_views(views: int, group: str) -> None:
    found = made().of("parallel", views)
    assert found is not None
    assert found[1] == group


def test_no_thresholds_for_another_beam_or_a_single_view() -> None:
    assert made().of("cone", 2) is None
    only_one = Thresholds({"parallel 1": {}}, {}, TRAINED, {})
    assert only_one.of("parallel", 2) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("groups"), "'groups' is missing"),
        (lambda c: c.pop("format"), "format"),
        (lambda c: c["trained"].pop("tilt_deg"), "'trained.tilt_deg' is missing"),
        (lambda c: c["trained"].update(beams=["fan"]), "beams"),
        (lambda c: c["trained"].update(source_to_isocenter_mm=[5, 1]), "smallest first"),
        (lambda c: c["groups"].update({"sideways 2": {}}), "sideways 2"),
        (lambda c: c["groups"]["parallel 1"].update(colour=None), "colour"),
        (lambda c: c["groups"]["parallel 1"]["angles"].update(review_above=float("nan")), "finite"),
        (lambda c: c["groups"]["parallel 1"]["angles"].update(review_above=9e9), "reject_above"),
        (lambda c: c["quantiles"]["parallel"].update(center=[1.0]), "quantiles"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: Any, message: str) -> None:
    path = made().save(tmp_path / "thresholds.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        Thresholds.load(path)
    assert str(path) in str(error.value)
    assert "calibrate" in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_no_thresholds_at_all(tmp_path: Path, text: str) -> None:
    path = tmp_path / "thresholds.json"
    with pytest.raises(FileNotFoundError, match="calibrate"):
        Thresholds.load(path)
    path.write_text(text)
    with pytest.raises(ValueError, match="not thresholds"):
        Thresholds.load(path)


def test_the_published_thresholds_belong_to_the_published_model() -> None:
    folder = Path(__file__).resolve().parents[3] / "bundles" / "inr_recon" / "models"
    published = Thresholds.load(folder / "thresholds.json")
    assert published.made_from["model"]["sha256"] == sha256_file(folder / "model.pt")
    for views in range(1, 9):
        for beam in ("parallel", "cone"):
            assert published.of(beam, views) is not None


def test_thresholds_are_of_one_model() -> None:
    thresholds = replace(made(), made_from={"model": {"name": "inr_recon", "sha256": "a" * 64}})
    thresholds.require_model("a" * 64, "inr_recon", "thresholds.json")
    for others in (thresholds, replace(thresholds, made_from={})):
        with pytest.raises(ValueError, match=r"thresholds.json: thresholds of another model .*not of x \(bbbb"):
            others.require_model("b" * 64, "x", "thresholds.json")


def test_thresholds_are_of_samples_that_were_drawn_alike() -> None:
    model = {"name": "ldm_recon", "sha256": "a" * 64, "sampling": {"steps": 10, "atlas": {"sha256": "b"}}}
    thresholds = replace(made(), made_from={"model": model})
    for alike in (None, model["sampling"]):
        thresholds.require_model("a" * 64, "ldm_recon", "thresholds.json", alike)
    for changed in ({"steps": 20}, {"atlas": None}, {"new": 1}):
        with pytest.raises(ValueError, match=f"thresholds.json: thresholds of samples with {next(iter(changed))}"):
            thresholds.require_model("a" * 64, "ldm_recon", "thresholds.json", {**model["sampling"], **changed})
    for missing in ({"sampling": None}, {}):
        of_the_mean = {key: value for key, value in model.items() if key != "sampling"} | missing
        thresholds = replace(made(), made_from={"model": of_the_mean})
        thresholds.require_model("a" * 64, "ldm_recon", "thresholds.json")
        with pytest.raises(ValueError, match="thresholds of the one volume of ldm_recon, not of samples"):
            thresholds.require_model("a" * 64, "ldm_recon", "thresholds.json", model["sampling"])
