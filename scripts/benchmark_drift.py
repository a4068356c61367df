"""How soon `fewview-ct drift` sees another device, and how often it sees one that is not there.

    python scripts/benchmark_drift.py outputs/drift data/other/datalist.json,outputs/unseen/datalist.json

Every phantom is radiographed by three devices, two cone-beam views each: without scatter and with an open beam that is
known ("clean"), with scatter of 0.4 of the primary and an open beam that is wrong by up to 5 % ("scatter"), and as
`fewview-ct calibrate` draws it ("any"). Then, many times: phantoms are shuffled, some are calibrated on one device, the
others come one after the other, first from the same device, then from another.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch

from custom.core.files import write_json
from custom.data.datalist import load_cases
from custom.geometry.acquisition_sampler import PAPER_ANGLES_DEG
from custom.trust.calibration_groups import fit_groups, measured
from custom.trust.check_statistics import Meter, Quantiles
from custom.trust.expected_error import ExpectedError
from custom.trust.picture_statistics import LEVELS
from custom.trust.reference_ct import SimulationSettings, detector_of, error_hu, load_ct, model_on, reconstructed
from custom.uncertainty import Case, find_drift

NAME = "cone 2"
ANY = SimulationSettings()
CLEAN = replace(ANY, photons_per_mm2=(1e5, 1e5), scatter_to_primary=(0.0, 0.0), blur_fwhm_mm=(1.0, 1.0))
DEVICES = {
    "clean": replace(CLEAN, intensity_error=0.0),
    "scatter": replace(CLEAN, scatter_to_primary=(0.4, 0.4), intensity_error=0.05),
    "any": ANY,
}


def _records(folder: Path, datalists: Sequence[str], model: str, size: int) -> list[dict[str, Any]]:
    """Statistics of every phantom on every device; what is there already is kept."""
    loaded, meter = model_on(model, size), Meter()
    angles = PAPER_ANGLES_DEG[2]
    cases = [(Path(d).parent.name, case) for d in datalists for case in load_cases(d, "training")]
    for device, settings in DEVICES.items():
        for index, (cohort, case) in enumerate(cases):
            file = folder / device / f"{cohort}_{case['case']}.json"
            made_from = {
                "model_sha256": loaded.sha256,
                "size": size,
                "settings": json.loads(json.dumps(asdict(settings))),
            }
            if file.is_file() and json.loads(file.read_text()).get("made_from") == made_from:
                continue
            ct = load_ct(case, loaded.pixel_at_isocenter_mm)
            detector = detector_of(loaded), loaded.pixel_at_isocenter_mm
            shots = ct.radiographs(angles[index % len(angles)], "cone", *detector, settings)
            evidence = reconstructed(loaded, shots)
            assert evidence.hu is not None
            error = error_hu(loaded, evidence.hu, ct)
            write_json(file, {**measured(evidence, meter), "error_hu": error, "made_from": made_from})
    names = [f"{cohort}_{case['case']}.json" for cohort, case in cases]
    return [{device: json.loads((folder / device / name).read_text()) for device in DEVICES} for name in names]


def _cases(
    records: Sequence[dict[str, Any]], devices: Sequence[str], fitted: tuple[Quantiles, ExpectedError]
) -> list[Case]:
    """What `fewview-ct reconstruct` with these thresholds would have measured of each phantom on its device."""
    quantiles, errors = fitted
    found = []
    for record, device in zip(records, devices, strict=True):
        shown = torch.tensor(record[device]["quantiles"]).reshape(-1, len(LEVELS))
        statistics = {
            **record[device]["statistics"],
            "intensities": max(quantiles.distance(picture) for picture in shown),
        }
        found.append(Case(NAME, {**statistics, "expected_error": errors.of(statistics)[0]}))
    return found


def _row(
    records: Sequence[dict[str, Any]], usual: str, other: str, calibrated: int, before: int, times: int
) -> tuple[str, str]:
    """Shuffled many times: a line of the table, and how often which number gave the first alarm."""
    waited, first, early = [], Counter[str](), 0
    for seed in range(times):
        order = np.random.default_rng(seed).permutation(len(records))
        old, new = [records[k] for k in order[:calibrated]], [records[k] for k in order[calibrated:]]
        known = [{NAME: record[usual]} for record in old]
        quantiles, _, errors, values = fit_groups(known, list(map(str, range(calibrated))), [("cone", 2)], 0.1, 2.0)
        devices = [usual] * before + [other] * (len(new) - before)
        found = find_drift(_cases(new, devices, (quantiles["cone"], errors[NAME])), values, 0.05, seed)
        alarms = [(drift.alarm, drift.statistic) for drift in found if drift.alarm is not None]
        if alarms and min(alarms)[0] < before:
            early += 1
        elif alarms:
            waited.append(min(alarms)[0] - before + 1)
            first[min(alarms)[1]] += 1
    middle, most = (f"{np.quantile(waited, q):.0f}" if waited else "" for q in (0.5, 0.9))
    after = len(records) - calibrated - before
    then, shares = f"{before} x {usual}, {after} x {other}", f"{early / times:.0%} | {len(waited) / times:.0%}"
    said = f"{usual}, {then}: {dict(first.most_common())}"
    return f"| {usual} | {then} | {shares} | {middle} | {most} |", said


@torch.no_grad()
def main(
    output: str, datalists: Any, model: str = "inr_recon", size: int = 64, calibrated: int = 24, times: int = 100
) -> None:
    """Print the table.

    Args:
        output: folder of the cases, which are kept.
        datalists: datalist.json of phantoms that the model has not seen, several with commas between.
        model: that reconstructs.
        size: voxels along each side.
        calibrated: phantoms that are calibrated; the others come one after the other.
        times: shuffles of the phantoms.
    """
    names = datalists.split(",") if isinstance(datalists, str) else list(datalists)
    records = _records(Path(output), names, model, size)
    rows = [
        _row(records, usual, other, calibrated, before, times)
        for usual, other, before in (
            ("clean", "clean", 0), ("clean", "scatter", 0), ("clean", "scatter", 5),
            ("any", "any", 0), ("any", "scatter", 0), ("any", "clean", 0),
        )
    ]  # fmt: skip
    print(f"{len(records)} phantoms, {calibrated} of them calibrated, {times} shuffles:\n")
    print("| calibrated on | then | alarm before the change | after it | cases from it, median | 90 % |")
    print("|---|---|---|---|---|---|")
    print("\n".join(row for row, _ in rows))
    print("\nFirst alarm by:\n" + "\n".join(text for _, text in rows))


if __name__ == "__main__":
    fire.Fire(main)
