"""Whether calibrated intervals hold: on patients and phantoms that neither model nor calibration know.

    fewview-ct phantom outputs/unseen --count 24 --seed 99
    python scripts/benchmark_intervals.py data/prepared/datalist.json outputs/intervals \
        --thresholds bundles/inr_recon/models/thresholds.json --phantom_list_file outputs/unseen/datalist.json \
        --size 64 --levels outputs/at_50.json,outputs/at_80.json

Every CT is radiographed as in `fewview-ct calibrate`, reconstructed, checked, and its intervals stated. Of voxels
(means over blocks as large as the calibrated voxels) in the predicted body the share that holds is compared with 90 %,
and width and interval score with those of the uncalibrated interval: 1.645 standard deviations of the model's Gaussian
population given the radiographs. Where the thresholds hold doses (`calibrate --templates`), so is the interval of what
the isocentre gets of a plan on the reconstruction. Tables go to intervals.md, coverage of each case to coverage.png,
the numbers of every case to cases/; a killed run goes on with the next case. With --levels, thresholds of the same
calibration (--work) with another --coverage, reliability.png shows for each of them the share that holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from custom import __version__
from custom.core.files import atomic_file, sha256_file, write_bytes, write_json
from custom.core.workers import Workers
from custom.data.datalist import load_cases
from custom.evaluation.delivered_doses import kept_doses
from custom.metrics import body_mask
from custom.metrics.conformal import interval_score
from custom.networks.population_prior import sample_on
from custom.trust import Evidence, Thresholds, run_checks, state_intervals
from custom.trust.body_measures import MEASURES, loaded_segmenter, measure_body
from custom.trust.calibration_model import loaded_model
from custom.trust.radiograph_likelihood import RadiographLikelihood
from custom.trust.reference_ct import ReferenceCT, SimulationSettings, detector_of, error_hu, load_ct, reconstructed
from custom.trust.stated_intervals import StatedIntervals
from custom.trust.voxel_intervals import TISSUES, tissue_of

LATERAL, FRONTAL = 0.0, 90.0
#: By name; "from behind" the frontal view is from the opposite side.
VIEW_SETS = {
    "1": (FRONTAL,),
    "2": (LATERAL, FRONTAL),
    "4": (LATERAL, 45.0, FRONTAL, 135.0),
    "2 from behind": (LATERAL, FRONTAL + 180),
    "3": (LATERAL, 60.0, 120.0),
    "6": tuple(30.0 * i for i in range(6)),
    "8": tuple(22.5 * i for i in range(8)),
}
#: Whose reliability is drawn, if calibrated; colours that differ for all eyes (Okabe and Ito 2008), markers and dashes.
RELIABILITY = {"1": ("#d55e00", "o", "-"), "2": ("#0072b2", "s", "--"),
               "4": ("#009e73", "^", ":"), "8": ("#cc79a7", "D", "-.")}  # fmt: skip
#: Standard deviations that hold 90 % of a Gaussian.
GAUSSIAN_90 = 1.6449
#: What a patient's coverage is drawn against.
GOAL, LEAST = (87, 93), 80
#: A tissue with fewer voxels is not judged.
FEWEST_VOXELS = 50


@dataclass(frozen=True)
class _Job:
    case: dict[str, Any]
    kind: str
    model: str
    size: int | None
    samples: int
    thresholds: str
    levels: tuple[str, ...]
    simulation: SimulationSettings
    view_sets: tuple[str, ...]
    file: Path


def posterior_std(evidence: Evidence) -> Tensor:
    """Standard deviation of the Gaussian population given the radiographs' views, (X, Y, Z) HU on the model's grid."""
    prior = evidence.prior
    if prior is None:
        raise ValueError("the model has no Gaussian population to compare with")
    likelihood = RadiographLikelihood(prior, evidence.energy_kev)
    path, seen, moved = likelihood.prepare(evidence.image, evidence.field_mask, evidence.views)
    precision = torch.eye(len(prior.components), dtype=torch.float64)
    for view, shown in zip(moved, seen, strict=True):
        projected = likelihood.projected(view, path.shape[1:])
        precision = precision + likelihood.term(path[0], shown, projected).normal / prior.noise_mm**2
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision)).float()
    directions = (1000 * prior.components.float() * prior.scales[:, None, None, None]).flatten(1)
    variance = ((covariance @ directions) * directions).sum(0).reshape(1, 1, *prior.grid.shape)
    return sample_on(evidence.grid, variance.clamp(min=0).sqrt(), prior.grid)[0, 0]


def _held(stated: StatedIntervals, true: Mapping[str, float | None]) -> dict[str, bool]:
    return {
        m.name: m.lower <= value <= m.upper
        for m in stated.measures
        if m.lower is not None and m.upper is not None and (value := true[m.name]) is not None
    }


def _doses(stated: StatedIntervals, evidence: Evidence, ct: ReferenceCT) -> dict[str, dict[str, float]]:
    """By column the interval of the dose that the isocentre gets, and what it got, cGy."""
    if stated.doses is None or evidence.hu is None:
        return {}
    limits = kept_doses(tuple(stated.doses.templates)).intervals(stated.doses, evidence.hu, evidence.grid, ct)
    return {f"Dose at the isocentre, {t}, cGy": {k: 100 * v for k, v in one.items()} for t, one in limits.items()}


def _judged(lower: Tensor, upper: Tensor, truth: Tensor, inside: Tensor) -> dict[str, float]:
    low, high, true = (volume[inside].numpy() for volume in (lower, upper, truth))
    # Half a HU, since the CT's values are whole.
    return {
        "coverage": float(((true >= low - 0.5) & (true <= high + 0.5)).mean()),
        "width_hu": float((high - low).mean()),
        "score_hu": float(interval_score(low, high, true).mean()),
    }


@torch.no_grad()
def _run(job: _Job) -> bool:
    torch.set_num_threads(1)
    model, _, _ = loaded_model(job.model, job.size, "cpu")
    thresholds, segmenter = Thresholds.load(job.thresholds), loaded_segmenter()
    levels = [thresholds, *map(Thresholds.load, job.levels)]
    simulation = replace(job.simulation, energy_kev=model.energy_kev)
    settings = json.loads(json.dumps({
        "case": job.case["case"], "kind": job.kind, "model": model.sha256, "size": job.size,
        "samples": job.samples, **({"sampler": model.network.settings} if job.samples else {}),
        "thresholds": [sha256_file(path) for path in (job.thresholds, *job.levels)],
        "simulation": asdict(simulation), "views": job.view_sets,
        "software": f"fewview-ct {__version__}",
    }))  # fmt: skip
    if job.file.is_file() and json.loads(job.file.read_text())["settings"] == settings:
        return False
    ct = load_ct(job.case, model.pixel_at_isocenter_mm)
    fine = ct.on_grid(model.grid).clamp(*model.hu_window)
    found: dict[str, Any] = {}
    for beam in ("parallel", "cone"):
        for name in job.view_sets:
            shown = ct.radiographs(VIEW_SETS[name], beam, detector_of(model), model.pixel_at_isocenter_mm, simulation)
            evidence = reconstructed(model, shown, job.samples, simulation.seed)
            assert evidence.hu is not None
            checks = run_checks(evidence, thresholds)
            stated = state_intervals(evidence, checks, thresholds, model.hu_window, job.samples, segmenter)
            record: dict[str, Any] = {"error_hu": error_hu(model, evidence.hu, ct), "abstained": stated.abstained}
            found[f"{beam} {name}"] = record
            if stated.lower is None or stated.upper is None or stated.block_mm is None:
                continue
            blocks = [round(b / s) for b, s in zip(stated.block_mm, model.grid.spacing_mm, strict=True)]
            hu, truth, lower, upper, std = (
                F.avg_pool3d(volume.float()[None], blocks)[0]
                for volume in (evidence.hu.clamp(*model.hu_window), fine, stated.lower, stated.upper,
                               posterior_std(evidence))
            )  # fmt: skip
            tissue = tissue_of(hu)
            record["calibrated"] = _judged(lower, upper, truth, tissue > 0)
            record["in_true_body"] = _judged(lower, upper, truth, torch.from_numpy(body_mask(truth)))["coverage"]
            record["uncalibrated"] = _judged(hu - GAUSSIAN_90 * std, hu + GAUSSIAN_90 * std, truth, tissue > 0)
            record["tissues"] = {
                words: _judged(lower, upper, truth, tissue == index)["coverage"]
                for index, words in enumerate(TISSUES, 1)
                if int((tissue == index).sum()) >= FEWEST_VOXELS
            }
            grid = model.grid.resized(tuple(truth.shape))
            true = measure_body(truth, grid, None if segmenter is None else segmenter[0]).values
            record["measures"] = {
                m.name: {"lower": m.lower, "upper": m.upper, "truth": true[m.name]}
                for m in stated.measures
                if m.lower is not None and true[m.name] is not None
            } | _doses(stated, replace(evidence, hu=evidence.hu.clamp(*model.hu_window)), ct)
            if name in RELIABILITY and job.levels and stated.views is None:
                record["levels"] = {}
                for one in levels:
                    at = state_intervals(evidence, checks, one, model.hu_window, job.samples, segmenter)
                    assert at.lower is not None and at.upper is not None and at.coverage is not None
                    low, high = (F.avg_pool3d(limit.float()[None], blocks)[0] for limit in (at.lower, at.upper))
                    places = _judged(low, high, truth, tissue > 0)["coverage"]
                    measures = list(_held(at, true).values())
                    record["levels"][f"{at.coverage:g}"] = {"places": places, "measures": measures}
    write_json(job.file, {"settings": settings, "found": found})
    return True


def _rows(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, list[tuple[str, Mapping[str, Any]]]]]:
    """View set, kind and the cases of each."""
    for group in records[0]["found"]:
        for kind in ("patients", "phantoms"):
            cases = [(r["settings"]["case"], r["found"][group]) for r in records if r["settings"]["kind"] == kind]
            if cases:
                yield group, kind, cases


def _percent(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.1f}" if values else ""


def _tables(records: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "Nominal 90 % intervals in the predicted body, means over cases; in brackets the uncalibrated interval.", "",
        "| views | cases | abstained | coverage % | lowest % | in the true body % | width HU | interval score HU |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    tissues = ["", "Coverage by predicted tissue, in %, mean and lowest case:", "",
               "| views | " + " | ".join(TISSUES) + " |", "|---|" + "---|" * len(TISSUES)]  # fmt: skip
    each = ["", "Coverage of each patient, in %:", "", "| views | patient | error HU | coverage | width HU |",
            "|---|---|---|---|---|"]  # fmt: skip
    for group, kind, cases in _rows(records):
        stated = [one for _, one in cases if one["abstained"] is None]
        cells = [f"{group}, {kind}", str(len(cases)), str(len(cases) - len(stated))]
        if stated:
            new, old = ([one[key] for one in stated] for key in ("calibrated", "uncalibrated"))
            for key in ("coverage", "lowest", "true", "width_hu", "score_hu"):
                if key == "true":
                    cells.append(_percent([one["in_true_body"] for one in stated]))
                    continue
                pair = []
                for some in (new, old):
                    values = [one["coverage" if key == "lowest" else key] for one in some]
                    mean = min(values) if key == "lowest" else float(np.mean(values))
                    pair.append(f"{mean:.0f}" if key.endswith("hu") else f"{100 * mean:.1f}")
                cells.append(f"{pair[0]} ({pair[1]})")
            by = [[one["tissues"][name] for one in stated if name in one["tissues"]] for name in TISSUES]
            shown = [f"{_percent(v)}, {100 * min(v):.0f}" if v else "" for v in by]
            tissues.append(f"| {group}, {kind} | " + " | ".join(shown) + " |")
        lines.append("| " + " | ".join(cells + [""] * (8 - len(cells))) + " |")
        if kind == "patients":
            for name, one in cases:
                said = one["abstained"] or f"{100 * one['calibrated']['coverage']:.1f}"
                width = "" if one["abstained"] else f"{one['calibrated']['width_hu']:.0f}"
                each.append(f"| {group} | {name} | {one['error_hu']:.0f} | {said} | {width} |")
    return lines + tissues + _measures(records) + _reliability(records) + each


def _measures(records: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = {name: f"{words}, {unit}" for name, (words, unit, _) in MEASURES.items()}
    columns |= {n: columns.get(n, n) for r in records for one in r["found"].values() for n in one.get("measures", {})}
    lines = ["", "Intervals of measures: how many hold, and their mean width.", "",
             "| views | " + " | ".join([*columns.values(), "all |"]), "|---" * (len(columns) + 2) + "|"]  # fmt: skip
    for group, kind, cases in _rows(records):
        cells, held = [], []
        for name in columns:
            found = [one["measures"][name] for _, one in cases if name in one.get("measures", {})]
            holds = [one["lower"] <= one["truth"] <= one["upper"] for one in found]
            held += holds
            width = float(np.mean([one["upper"] - one["lower"] for one in found])) if found else 0.0
            cells.append(f"{sum(holds)} of {len(holds)}, {width:.{width < 20:d}f}" if found else "")
        total = f"{_percent(held)} % of {len(held)}" if held else ""
        lines.append(f"| {group}, {kind} | " + " | ".join([*cells, total]) + " |")
    return lines


def _at_levels(records: Sequence[Mapping[str, Any]], views: str) -> dict[float, tuple[list[float], list[bool]]]:
    """By nominal coverage: of each patient and beam the share of places that holds, and whether each measure does."""
    found: dict[float, tuple[list[float], list[bool]]] = {}
    for group, kind, cases in _rows(records):
        for one in (one for _, one in cases if kind == "patients" and group.split(" ", 1)[1] == views):
            for level, held in one.get("levels", {}).items():
                places, measures = found.setdefault(float(level), ([], []))
                places.append(held["places"])
                measures += held["measures"]
    return dict(sorted(found.items()))


def _views(number: str) -> str:
    return f"{number} view" + ("s" if number != "1" else "")


def _reliability(records: Sequence[Mapping[str, Any]]) -> list[str]:
    by = {views: found for views in RELIABILITY if (found := _at_levels(records, views))}
    if not by:
        return []
    lines = ["", "What holds at other levels, patients, both beams, in %: places (mean over cases) and measures.", "",
             "| nominal | " + " | ".join(f"places, {w} | measures, {w}" for w in map(_views, by)) + " |",
             "|---|" + "---|---|" * len(by)]  # fmt: skip
    for level in next(iter(by.values())):
        cells = [f"{_percent(found[level][i])}" for found in by.values() for i in (0, 1)]
        lines.append(f"| {100 * level:g} | " + " | ".join(cells) + " |")
    return lines


def _draw_reliability(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Share that holds against the nominal one: places with every patient, and measures."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    titles = "places, mean and each patient", "measures, all patients"
    for index, (axes, title) in enumerate(zip(figure.subplots(1, 2, sharey=True), titles, strict=True)):
        axes.plot((45, 100), (45, 100), color="black", linewidth=0.8, label="as promised")
        for place, (views, (colour, mark, dashes)) in enumerate(RELIABILITY.items()):
            found = _at_levels(records, views)
            nominal = [100 * level for level in found]
            means = [100 * np.mean(held[index]) for held in found.values()]
            axes.plot(nominal, means, color=colour, marker=mark, linestyle=dashes, label=_views(views))
            for level, held in found.items() if index == 0 else ():
                axes.scatter(
                    [100 * level + 0.7 * (place - 1)] * len(held[0]), 100 * np.array(held[0]),
                    s=9, color=colour, alpha=0.45, linewidths=0,
                )  # fmt: skip
        axes.set_title(title)
        axes.set_xlabel("nominal, in %")
        axes.grid(color="#e5e5e5")
        axes.set_axisbelow(True)
        if index == 0:
            axes.set_ylabel("what holds, in %")
            axes.legend()
    with atomic_file(path) as part:
        figure.savefig(part, dpi=110, format="png")


def _picture(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Coverage of every case, by view set, before and after calibration."""
    rows = list(_rows(records))
    figure = Figure(figsize=(9, 1.2 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(*GOAL, color="#dfe8dc", label=f"goal for the mean, {GOAL[0]} to {GOAL[1]} %")
    axes.axvline(LEAST, color="#999999", linewidth=0.8, linestyle=":", label=f"no patient below {LEAST} %")
    axes.axvline(90, color="black", linewidth=0.8, label="nominal, 90 %")
    styles = {"uncalibrated": ("#c46a1b", "x", 0.14), "calibrated": ("#1b6ac4", "o", -0.14)}
    for key, (colour, mark, shift) in styles.items():
        for row, (_, _, cases) in enumerate(rows):
            values = [100 * one[key]["coverage"] for _, one in cases if one["abstained"] is None]
            axes.scatter(
                values, [row + shift] * len(values), s=16, color=colour, marker=mark, alpha=0.7,
                label=f"{key}, one case each" if row == 0 else None,
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"{group}, {kind}" for group, kind, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("share of the predicted body's voxels whose nominal 90 % interval holds the truth, in %")
    axes.set_xlim(right=100)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    with atomic_file(path) as part:
        figure.savefig(part, dpi=110, format="png")


def main(
    datalist: str,
    output: str,
    thresholds: str,
    model: str = "inr_recon",
    phantom_list_file: str | None = None,
    part: str = "test",
    size: int | None = None,
    samples: int = 0,
    views: Sequence[str] = ("1", "2", "4", "8"),
    levels: Sequence[str] = (),
    seed: int = 1,
    workers: int = 1,
) -> None:
    """Write and print intervals.md, and draw coverage.png.

    Args:
        datalist: datalist.json of a prepared cohort.
        output: folder.
        thresholds: that `fewview-ct calibrate` made, from other cases.
        model: as for `fewview-ct calibrate`.
        phantom_list_file: of `fewview-ct phantom`, made with another seed than those that were calibrated with.
        part: of the datalist.
        size: voxels along each side.
        samples: drawn, by a model that draws, as in the calibration; their mean is judged.
        views: of `VIEW_SETS`.
        levels: thresholds with other coverages, of the same calibration.
        seed: of noise and errors.
        workers: processes.
    """
    names, others = (
        tuple(str(name).strip() for name in (str(some).split(",") if isinstance(some, str | int) else some))
        for some in (views, levels)
    )
    if unknown := [name for name in names if name not in VIEW_SETS]:
        raise ValueError(f"views must be among {', '.join(VIEW_SETS)}, got {', '.join(unknown)}")
    lists = {"patients": load_cases(datalist, part)}
    if phantom_list_file is not None:
        lists["phantoms"] = load_cases(phantom_list_file, "training")
    folder, simulation = Path(output), SimulationSettings(seed=seed)
    jobs = [
        _Job(
            case, kind, model, size, samples, thresholds, others, simulation, names,
            folder / "cases" / f"{case['case']}.json",
        )
        for kind, cases in lists.items()
        for case in cases
    ]  # fmt: skip
    with Workers(workers) as pool:
        pool.run(_run, jobs, label="cases")
    records = [json.loads(job.file.read_text()) for job in jobs]
    write_bytes(folder / "intervals.md", ("\n".join(_tables(records)).strip() + "\n").encode())
    _picture(records, folder / "coverage.png")
    if others:
        _draw_reliability(records, folder / "reliability.png")
    print((folder / "intervals.md").read_text())


if __name__ == "__main__":
    fire.Fire(main)
