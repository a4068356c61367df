"""The verb `fewview-ct drift`: whether a clinic's patients or devices have changed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from custom import __version__
from custom.cli.exit_codes import ExitCode
from custom.core.files import sha256_file, write_json
from custom.models import find_model
from custom.reconstruct.past_results import PastResult, first_of_each_patient, read_results
from custom.trust import NAMES, Thresholds
from custom.trust.thresholds import group_name
from custom.uncertainty import Case, Drift, alarm_limit, cases_until_alarm, find_drift

__all__ = ["command"]

#: Numbers that a finer grid makes smaller; the others hardly change (64^3 and 128^3: docs/explanation/drift.md).
OF_THE_VOXELS = ("agreement", "heights", "angles")

#: What it may mean that a statistic became larger, or smaller, in the order in which to look.
MEANINGS = {
    "reprojection": (
        "more scatter, another intensity scale or processing of the detector, stated distances that are off",
        "less scatter (a new grid, its correction), or finer calibration of the detector",
    ),
    "agreement": (
        "more scatter, or patients who move, breathe or turn between the two radiographs",
        "less scatter, or patients who are positioned better",
    ),
    "heights": (
        "patients who breathe or move between the two radiographs, or radiographs whose heights are stated wrongly",
        "patients who hold their breath better, or less noise",
    ),
    "orientation": ("pictures stored mirrored or turned by a new device or export", "another way to position patients"),
    "angles": ("angles that are stated wrongly: a new room, stand or protocol", "angles that are stated better"),
    "population": (
        "patients unlike the model's (age, size, disease, implants), another body part or device",
        "patients nearer to the model's, or smoother pictures",
    ),
    "intensities": (
        "another detector, tube voltage, scatter or intensity scale; much larger or smaller patients",
        "a narrower range of patients or exposures",
    ),
    "truncation": ("a smaller field, or larger patients", "a larger field, or smaller patients"),
    "samples": ("patients or pictures of which the model is less sure", "those of which it is surer"),
    "expected_error": (
        "larger errors: see which other number changed with it",
        "smaller errors: see which other number changed with it",
    ),
}


def command(
    *results: str,
    model: str = "inr_recon",
    thresholds: str | None = None,
    own_cases: bool = False,
    false_alarms: float = 0.05,
    seed: int = 0,
    output: str | None = None,
) -> ExitCode:
    """Say whether patients or devices have changed, from the numbers that the checks of past results measured.

    One result a patient counts, in the order of their studies. Each number's rank among the calibrated patients and
    those before it makes a martingale, which stays small as long as nothing changes. Ends with exit code 6 if one
    reached its limit.

    Args:
        results: folders of 'fewview-ct reconstruct', or folders that hold such.
        model: name, folder or weights file, for its thresholds.
        thresholds: file of 'fewview-ct calibrate'; by default that of the model.
        own_cases: compare each case with those before it alone, not with the calibrated ones: whether something
            changed among these results.
        false_alarms: chance that there is ever an alarm although nothing changed.
        seed: of the random numbers that ranks of equal values are told apart by.
        output: JSON file for the table, too.

    Raises:
        FileNotFoundError, FileExistsError: a missing folder or thresholds, or an output that is there.
        ValueError: a result that cannot be read, thresholds without calibrated values, or no result that fits them.
    """
    alarm_limit(false_alarms, 1)
    if not results:
        raise ValueError("name result folders of 'fewview-ct reconstruct', or a folder that holds them")
    if output is not None and Path(output).exists():
        raise FileExistsError(f"{output} is there already: name another file, or remove it")
    usual = {} if own_cases else _calibrated(model, thresholds)
    known, voxels = usual.pop("values", {}), usual.pop("voxels", None)
    found = read_results(results)
    used, left_out = _comparable(found, usual or _like(found[-1]), set(known) if known else None)
    used, other_grid = _of_one_grid(used, voxels)
    left_out += other_grid
    cases = first_of_each_patient(used)
    if later := len(used) - len(cases):
        left_out.append(f"later result of a patient, or of radiographs, that came before: {later}")
    drifts = find_drift([Case(_group(one), one.statistics) for one in cases], known, false_alarms, seed)
    limit = alarm_limit(false_alarms, len(drifts))
    patients = max((len(v) for group in known.values() for v in group.values()), default=0)
    said = _said(cases, drifts, limit, false_alarms, patients, left_out)
    if output is not None:
        rows = [_row(drift, cases) for drift in drifts]
        content = {
            "software": f"fewview-ct {__version__}",
            "compared_with": "own cases" if own_cases else "calibrated cases",
            "calibrated_patients": patients,
            "false_alarms": false_alarms,
            "limit": limit,
            "seed": seed,
            "cases": [str(case.folder) for case in cases],
            "left_out": left_out,
            "statistics": rows,
        }
        write_json(Path(output), content)
    sys.stdout.write(said)
    return ExitCode.DRIFTED if any(drift.alarm is not None for drift in drifts) else ExitCode.DONE


def _group(result: PastResult) -> str:
    return group_name(result.beam, result.views)


def _calibrated(model: str, thresholds: str | None) -> dict[str, Any]:
    """What results must have been made with, and under "values" the calibrated ones."""
    files = find_model(model)
    path = Path(thresholds) if thresholds is not None else files.thresholds
    if path is None:
        raise FileNotFoundError(
            f"{model} has no thresholds: make them with 'fewview-ct calibrate', or give --own_cases"
        )
    made = Thresholds.load(path)
    if not made.calibrated:
        raise ValueError(
            f"{path}: holds no values of calibrated cases, since an older version made it: make it anew with "
            "'fewview-ct calibrate', or compare results among themselves with --own_cases"
        )
    made.require_model(sha256_file(files.model), files.name, path)
    about = made.made_from["model"]
    return {
        "values": made.calibrated,
        "thresholds": sha256_file(path),
        "samples": about.get("samples"),
        "voxels": tuple(about.get("voxels", ())),
    }


def _like(last: PastResult) -> dict[str, Any]:
    """The same of the latest result, which others have to fit."""
    return {key: getattr(last, key) for key in ("model", "thresholds", "samples", "voxels")}


def _comparable(
    results: Sequence[PastResult], usual: dict[str, Any], groups: set[str] | None
) -> tuple[list[PastResult], list[str]]:
    """Results whose numbers can be compared, and sentences about the others.

    Raises:
        ValueError: there is none.
    """
    used, reasons = [], Counter[str]()
    for one in results:
        differs = [
            f"{key} {_short(getattr(one, key))}, not {_short(v)}" for key, v in usual.items() if getattr(one, key) != v
        ]
        if one.thresholds is None:
            reasons["made without thresholds, so that nothing was measured"] += 1
        elif differs:
            reasons[f"made with other {differs[0]}"] += 1
        elif groups is not None and _group(one) not in groups:
            reasons[f"{_group(one)}: that beam and number of radiographs was not calibrated"] += 1
        else:
            used.append(one)
    left_out = [f"{reason}: {count}" for reason, count in reasons.items()]
    if not used:
        raise ValueError(
            f"none of {len(results)} results can be compared ({'; '.join(left_out)}): calibrate as you reconstruct, "
            "reconstruct again, or give --own_cases"
        )
    return used, left_out


def _of_one_grid(
    results: Sequence[PastResult], calibrated: tuple[int, ...] | None
) -> tuple[list[PastResult], list[str]]:
    """Results, of other voxels than the calibrated ones without the numbers that depend on them; and a sentence."""
    other = {one.voxels for one in results if calibrated is not None and one.voxels != calibrated}
    if not other:
        return list(results), []
    used = [
        one
        if one.voxels == calibrated
        else replace(one, statistics={k: v for k, v in one.statistics.items() if k not in OF_THE_VOXELS})
        for one in results
    ]
    said = f"{', '.join(OF_THE_VOXELS)} of results with {' or '.join(map(_short, sorted(other)))} voxels: "
    return used, [f"{said}calibrated were {_short(calibrated)}"]


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return value[:12] if isinstance(value, str) else str(value)


def _row(drift: Drift, cases: Sequence[PastResult]) -> dict[str, Any]:
    """One statistic, with folders in place of indices."""
    row = asdict(drift)
    for key in ("alarm", "since"):
        row[key] = None if row[key] is None else str(cases[row[key]].folder)
    return {**row, "meaning": None if drift.alarm is None else _meaning(drift)}


def _meaning(drift: Drift) -> str:
    larger, smaller = MEANINGS[drift.statistic]
    if drift.above >= 0.5:
        return f"larger than {drift.above:.0%} of the cases before, in the mean: {larger}"
    return f"smaller than {1 - drift.above:.0%} of the cases before, in the mean: {smaller}"


def _said(
    cases: Sequence[PastResult],
    drifts: Sequence[Drift],
    limit: float,
    false_alarms: float,
    calibrated: int,
    left_out: Sequence[str],
) -> str:
    """The table, and what it rests on."""
    usual = f"{calibrated} calibrated patients" if calibrated else "those before them"
    lines = [f"Patients: {len(cases)}, compared with {usual}; an alarm is a martingale of {limit:.0f} or more."]
    lines += [f"Left out: {text}." for text in left_out]
    lines += ["", f"{'what is followed':52s}  {'cases':>5s}  {'now':>9s}  {'largest':>9s}"]
    lines += [f"{NAMES[d.statistic]:52s}  {d.cases:5d}  {d.martingale:9.3g}  {d.largest:9.3g}" for d in drifts]
    alarms = [drift for drift in drifts if drift.alarm is not None]
    for drift in alarms:
        assert drift.alarm is not None and drift.since is not None
        since, seen = cases[drift.since], cases[drift.alarm]
        lines += [
            "",
            f"CHANGED since about {_named(since)}, seen at {_named(seen)}: {drift.statistic}, the number behind "
            f'"{NAMES[drift.statistic]}".',
            f"  {_meaning(drift)}.",
        ]
    if alarms:
        lines += [
            "",
            "Look at radiographs of before and after, ask what was changed, and calibrate anew if it is to stay: "
            "verdicts and intervals speak of patients like those that were calibrated.",
            f"Where nothing changed there is such an alarm, ever, with a chance of at most {false_alarms:.0%}.",
        ]
    else:
        needed = cases_until_alarm(calibrated + len(cases), limit)
        further = (
            "none could have come yet: there are too few cases to compare with"
            if needed is None
            else f"a change that made every further patient unlike all before would be seen after about {needed} of "
            "them, a smaller one later or not at all"
        )
        lines += ["", f"No alarm; {further}."]
    return "\n".join(lines) + "\n"


def _named(result: PastResult) -> str:
    taken, created = result.taken, f"{result.created:%Y-%m-%d}"
    return f"{result.folder.name} ({f'{taken[:4]}-{taken[4:6]}-{taken[6:8]}' if taken else created})"
