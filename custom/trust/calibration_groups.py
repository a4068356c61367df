"""What `fewview-ct calibrate` keeps of a case, and limits of all checks from cases of one beam and number of views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from custom.trust.check_statistics import Meter, Quantiles
from custom.trust.evidence import Evidence
from custom.trust.expected_error import ExpectedError, fit_expected_error
from custom.trust.picture_statistics import LEVELS, body_quantiles
from custom.trust.thresholds import Threshold, fit_thresholds, group_name

__all__ = ["fit_groups", "measured"]

#: Values of one statistic, sorted.
Calibrated = tuple[float, ...]


def measured(evidence: Evidence, meter: Meter) -> dict[str, Any]:
    """Statistics (None where not measured) and the pictures' quantiles, as plain numbers."""
    statistics = {name: statistic.value for name, statistic in meter.measure(evidence).items()}
    return {"statistics": statistics, "quantiles": body_quantiles(evidence.image, evidence.field_mask).tolist()}


def fit_groups(
    records: Sequence[Mapping[str, Any]],
    patients: Sequence[str],
    groups: Sequence[tuple[str, int]],
    false_alarms: float,
    reject_factor: float,
) -> tuple[
    dict[str, Quantiles], dict[str, dict[str, Threshold]], dict[str, ExpectedError], dict[str, dict[str, Calibrated]]
]:
    """Quantiles by beam; thresholds, model of errors and calibrated values by `group_name`.

    Args:
        records: of each case, by `group_name`, what `measured` gives and "error_hu".
        patients: whose case it is; of a patient's cases the first alone is kept among the calibrated values.
        groups: beams and numbers of views.
        false_alarms, reject_factor: as in `fit_thresholds`.
    """
    quantiles = {}
    for beam in dict.fromkeys(beam for beam, _ in groups):
        names = [group_name(b, count) for b, count in groups if b == beam]
        pictures = [
            torch.tensor(record[name]["quantiles"]).reshape(-1, len(LEVELS)) for record in records for name in names
        ]
        quantiles[beam] = Quantiles.of(torch.cat(pictures))
    fitted, errors, calibrated = {}, {}, {}
    firsts = sorted({patient: k for k, patient in reversed(list(enumerate(patients)))}.values())
    for beam, count in groups:
        name = group_name(beam, count)
        cases = []
        for record in records:
            shown = torch.tensor(record[name]["quantiles"]).reshape(-1, len(LEVELS))
            distance = max(quantiles[beam].distance(picture) for picture in shown)
            cases.append({**record[name]["statistics"], "intensities": distance})
        errors[name] = fit_expected_error(cases, [record[name]["error_hu"] for record in records])
        expected = [{**case, "expected_error": errors[name].of(case)[0]} for case in cases]
        fitted[name] = fit_thresholds(expected, false_alarms, reject_factor)
        calibrated[name] = {s: _values(s, [expected[k] for k in firsts]) for s in fitted[name]}
    return quantiles, fitted, errors, calibrated


def _values(statistic: str, cases: Sequence[Mapping[str, float | None]]) -> Calibrated:
    """Sorted, to six digits."""
    return tuple(sorted(float(f"{v:.6g}") for case in cases if (v := case[statistic]) is not None))
