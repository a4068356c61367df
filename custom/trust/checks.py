"""Trust checks: verdicts from statistics and thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from custom.geometry import ViewRow, is_cone
from custom.radiographs import AcquisitionMetadata, Origin
from custom.trust.check_results import CheckResult, Verdict, overall
from custom.trust.check_statistics import STATISTICS, Meter, Statistic
from custom.trust.evidence import Evidence
from custom.trust.thresholds import Threshold, Thresholds, TrainedRange

__all__ = ["NAMES", "overall", "run_checks"]

#: What a report calls each check.
NAMES = {
    "reprojection": "The reconstruction explains the radiographs",
    "agreement": "The radiographs can be of one body",
    "heights": "Lungs, diaphragm and spine lie at the same heights in all radiographs",
    "orientation": "No radiograph looks mirrored or upside down",
    "angles": "The angles fit the radiographs",
    "population": "The radiographs look like those of the training",
    "intensities": "The grey values of the radiographs are as usual",
    "truncation": "The body is not cut off at the sides",
    "samples": "Samples agree as much as usual",
    "expected_error": "The error is expected to be as small as usual",
    "geometry": "The geometry lies in the trained range",
    "views": "The number of radiographs was trained",
    "assumptions": "Nothing unusual had to be assumed",
}

#: What a reader does about a check that did not pass.
ADVICE = {
    "reprojection": "Make sure that all radiographs are of this patient, in the same position and breath, and that "
    "dark and bright were not exchanged when they were read.",
    "agreement": "Compare names and times of the radiographs: another patient, another position or another breath look "
    "like this.",
    "heights": "Compare names and times of the radiographs, and the heights of diaphragm and lung tips in them: "
    "another patient, another breath or a shifted picture look like this.",
    "orientation": "Compare the side markers with the heart, which most people have on the left, and turn the picture "
    "round if it was stored so.",
    "angles": "Make sure of the angles that were stated; '--refine_poses' looks from where they may have been taken.",
    "population": "Look at the radiographs: is this a chest, whole, upright and not inverted? Where the patient is "
    "unlike those of the training, the CT is a guess.",
    "intensities": "Make sure that these are values for processing, not inverted and not windowed for display.",
    "truncation": "Skin, arms and fat there are a guess; lungs and spine are hardly affected.",
    "samples": "Look at the map of uncertainty before any part of the CT is used.",
    "expected_error": "Rely on nothing that a coarse picture of this patient would not show.",
}


def run_checks(evidence: Evidence, thresholds: Thresholds) -> list[CheckResult]:
    """All checks of one reconstruction, in the order of `NAMES`.

    A check that does not apply (agreement of a single view, samples where none were drawn) is NOT CHECKED; one for
    which there is no threshold is REVIEW.
    """
    beam = evidence.beam
    found = thresholds.of(beam, len(evidence.image))
    errors = thresholds.expected_error.get(found[1]) if found else None
    measured = Meter(thresholds.quantiles.get(beam), errors).measure(evidence)
    results = []
    for name in STATISTICS:
        if found is None:
            why = f"no thresholds for {_views(len(evidence.image))} of {beam} beam"
            results.append(_without_threshold(name, measured[name], why))
            continue
        group, group_name = found
        results.append(_judge(name, measured[name], group.get(name), group_name, len(evidence.image)))
    results.append(_geometry(evidence, thresholds.trained))
    results.append(_number_of_views(evidence, thresholds.trained))
    results.append(_assumptions(evidence.radiograph_metadata))
    return results


def _judge(name: str, statistic: Statistic, threshold: Threshold | None, group_name: str, views: int) -> CheckResult:
    beam, count = group_name.split()[0], int(group_name.split()[1])
    if statistic.value is None or threshold is None:
        return _without_threshold(name, statistic, f"no threshold for it among those of {_views(count)} of {beam} beam")
    value = statistic.value
    verdict = threshold.verdict(value)
    by = f" (compared with cases of {_views(count)})" if count != views else ""
    if verdict is Verdict.PASS:
        message = f"As usual: {statistic.detail}{by}."
    else:
        message = f"{_sentence(statistic.detail)}. {_how_unusual(value, threshold, verdict)}{by}. {ADVICE[name]}"
    return CheckResult(name, verdict, value, threshold.review_above, threshold.reject_above, message)


def _how_unusual(value: float, threshold: Threshold, verdict: Verdict) -> str:
    """How many of the good cases of calibration show as much."""
    if verdict is Verdict.REJECT:
        return f"This is far from all {threshold.cases} good cases"
    if not value <= threshold.largest:
        return f"None of {threshold.cases} good cases looked like this"
    if value > threshold.quantile_95:
        return f"Fewer than 1 in 20 of {threshold.cases} good cases look like this"
    return f"Fewer than 1 in 10 of {threshold.cases} good cases look like this"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _without_threshold(name: str, statistic: Statistic, why: str) -> CheckResult:
    if statistic.value is None:
        return CheckResult(name, Verdict.NOT_CHECKED, None, None, None, f"Not checked: {statistic.detail}.")
    message = f"Cannot be judged: {why}; measured was that {statistic.detail}."
    return CheckResult(name, Verdict.REVIEW, statistic.value, None, None, message)


def _views(count: int) -> str:
    return "1 radiograph" if count == 1 else f"{count} radiographs"


def _geometry(evidence: Evidence, trained: TrainedRange) -> CheckResult:
    """How far outside the trained range views stand, as a share of the range's width."""
    excess: list[tuple[float, str]] = []
    for index, view in enumerate(evidence.views.double()):
        name = evidence.name(index)
        beam = "cone" if bool(is_cone(view)) else "parallel"
        if beam not in trained.beams:
            excess.append(
                (math.inf, f"{name} is a {beam} beam, and the model was trained for {', '.join(trained.beams)}")
            )
        for quantity, value in _distances(view).items():
            low, high = getattr(trained, quantity)
            outside = max(low - value, value - high) / max(high - low, 1.0)
            label = quantity.removesuffix("_mm").replace("_", " ")
            excess.append((outside, f"{label} of {name} is {value:.0f} mm, trained were {low:.0f} to {high:.0f} mm"))
        tilt, largest = _tilt_deg(view), trained.tilt_deg
        excess.append(
            (
                (tilt - largest) / max(largest, 1.0),
                f"{name} is tilted by {tilt:.1f} degrees, at most {largest:.1f} is trained",
            )
        )
    worst, text = max(excess)
    limit = trained.reject_beyond
    if worst <= 0:
        return CheckResult(
            "geometry", Verdict.PASS, worst, 0.0, limit, "All radiographs were taken as in the training."
        )
    verdict = Verdict.REVIEW if worst <= limit else Verdict.REJECT
    return CheckResult("geometry", verdict, worst, 0.0, limit, f"Outside the trained range: {text}.")


def _distances(view: Tensor) -> dict[str, float]:
    """Source to isocentre and to detector (13,) [mm], perpendicular to the detector; empty for parallel beam."""
    if not bool(is_cone(view)):
        return {}
    row = ViewRow.from_tensor(view)
    return {
        "source_to_isocenter_mm": float(row.source_to_isocenter_mm),
        "source_to_detector_mm": float(row.source_to_detector_mm),
    }


def _tilt_deg(view: Tensor) -> float:
    """Largest angle with the axial plane of the central ray and of the detector's rows [degrees]."""
    row = ViewRow.from_tensor(view)
    lines = torch.stack([row.head, row.u_step])  # the ray through the isocentre, either way, and a row
    sines = (lines[:, 2] / lines.norm(dim=1)).abs().clamp(max=1)
    return float(torch.rad2deg(torch.asin(sines)).max())


def _number_of_views(evidence: Evidence, trained: TrainedRange) -> CheckResult:
    count = len(evidence.image)
    most = float(max(trained.views))
    if count in trained.views:
        return CheckResult(
            "views", Verdict.PASS, count, most, None, f"{_views(count)}, as in the training.".capitalize()
        )
    known = ", ".join(str(n) for n in trained.views)
    return CheckResult(
        "views", Verdict.REVIEW, count, most, None, f"{_views(count)}; the model was trained with {known}.".capitalize()
    )


def _assumptions(radiographs: Sequence[AcquisitionMetadata]) -> CheckResult:
    """What no file says: what an option allowed asks for a review, usual values (an upright detector) are listed."""
    if not radiographs:
        message = "Not checked: no metadata came with the radiographs."
        return CheckResult("assumptions", Verdict.NOT_CHECKED, None, None, None, message)
    said: dict[Origin, dict[tuple[str, str], list[str]]] = {Origin.OPTION: {}, Origin.USUAL_VALUE: {}}
    for number, metadata in enumerate(radiographs, 1):
        for name, found in metadata.known().items():
            if found.origin in said:
                said[found.origin].setdefault((name.replace("_", " "), found.where), []).append(str(number))
    allowed, defaults = (
        [f"{name} of radiograph {', '.join(which)} ({where})" for (name, where), which in values.items()]
        for values in said.values()
    )
    usual = f" Usual values stand for: {'; '.join(defaults)}." if defaults else ""
    if not allowed:
        asked = any(one.origin is Origin.ANSWER for metadata in radiographs for one in metadata.known().values())
        places = "the files, a sidecar or your answer in the form" if asked else "the files or a sidecar"
        message = f"Every value that matters comes from {places}.{usual}"
        return CheckResult("assumptions", Verdict.PASS, 0, 0, None, message)
    message = f"In no file, but allowed: {'; '.join(allowed)}.{usual}"
    return CheckResult("assumptions", Verdict.REVIEW, len(allowed), 0, None, message)
