"""What the trust checks find: detection rates of mistakes that happen, on CTs that neither model nor thresholds know.

    fewview-ct phantom outputs/unseen --count 24 --seed 99
    python scripts/benchmark_trust.py data/prepared/datalist.json outputs/trust \
        --thresholds bundles/inr_recon/models/thresholds.json --phantom_list_file outputs/unseen/datalist.json --size 64

Every CT is radiographed as in `fewview-ct calibrate`, without a mistake and with each of `MISTAKES`; a mistake counts
as found where a check says REVIEW or REJECT. Tables go to trust.md, the statistics of every case to cases/; a killed
run goes on with the next case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fire
import torch
from scipy.stats import spearmanr
from torch import Tensor

from custom import __version__
from custom.core.files import write_bytes, write_json
from custom.core.workers import Workers
from custom.data.datalist import load_cases
from custom.radiographs import Assembled
from custom.trust import Evidence, Thresholds, Verdict, find_prior
from custom.trust.calibration_groups import measured
from custom.trust.calibration_model import loaded_model
from custom.trust.check_statistics import STATISTICS
from custom.trust.expected_error import ExpectedError
from custom.trust.reference_ct import (
    SimulationSettings,
    detector_of,
    error_hu,
    load_ct,
    reconstructed,
)
from custom.trust.thresholds import Threshold

LATERAL, FRONTAL = 0.0, 90.0
VIEW_SETS = {1: (FRONTAL,), 2: (LATERAL, FRONTAL), 4: (LATERAL, 45.0, FRONTAL, 135.0)}
#: Of 14-bit values, in units of the intensity without a patient: darker pixels are stored as this.
SMALLEST = 1 / 16383
#: Share of the range of values that the intensity without a patient reaches.
EXPOSURE = 0.8


def invert_linear(image: Tensor) -> Tensor:
    """Linear values of MONOCHROME1 read as if of MONOCHROME2: what is bright is dark; then the logarithm.

    The brightest value is then that of the densest tissue, and counts as the intensity without a patient.
    """
    intensity = (1 - EXPOSURE * torch.exp(-image)).clamp(min=SMALLEST)
    return -torch.log(intensity / intensity.amax((1, 2), keepdim=True))


def invert_logarithmic(image: Tensor) -> Tensor:
    """Logarithmic values of MONOCHROME1 read as if of MONOCHROME2."""
    return image.amax((1, 2), keepdim=True) - image


@dataclass(frozen=True)
class Shots:
    """Radiographs of a case and what mistakes need: the lateral of the next case, and all with the lateral turned."""

    right: Assembled
    other: Assembled
    turned: Assembled


def _changed(shots: Assembled, index: int, view: Tensor, seen: Tensor | None = None) -> Assembled:
    def put(stack: Tensor, one: Tensor) -> Tensor:
        return torch.stack([one if k == index else old for k, old in enumerate(stack)])

    seen = shots.field_mask[index] if seen is None else seen
    return replace(shots, image=put(shots.image, view * seen), field_mask=put(shots.field_mask, seen))


def _mirrored(shots: Assembled, index: int) -> Assembled:
    return _changed(shots, index, shots.image[index].flip(-1), shots.field_mask[index].flip(-1))


def _inverted(shots: Assembled, invert: Callable[[Tensor], Tensor]) -> Assembled:
    return replace(shots, image=torch.where(shots.field_mask, invert(shots.image), 0.0))


MISTAKES: dict[str, tuple[tuple[int, ...], Callable[[Shots, int], Assembled]]] = {
    "none": ((1, 2, 4), lambda s, n: s.right),
    "frontal view mirrored": ((1, 2, 4), lambda s, n: _mirrored(s.right, n // 2)),
    "lateral view mirrored": ((2,), lambda s, n: _mirrored(s.right, 0)),
    "another patient's lateral": (
        (2, 4), lambda s, n: _changed(s.right, 0, s.other.image[0], s.other.field_mask[0]),
    ),
    "lateral wrong by 5 degrees": ((2, 4), lambda s, n: s.turned),
    "not inverted, linear values": ((1, 2), lambda s, n: _inverted(s.right, invert_linear)),
    "not inverted, logarithmic values": ((1, 2), lambda s, n: _inverted(s.right, invert_logarithmic)),
}  # fmt: skip


@dataclass(frozen=True)
class _Job:
    case: dict[str, Any]
    next_case: dict[str, Any]
    kind: str
    model: str
    size: int | None
    samples: int
    reconstruct_all: bool
    simulation: SimulationSettings
    file: Path


@torch.no_grad()
def _run(job: _Job) -> bool:
    torch.set_num_threads(1)
    model, meter, _ = loaded_model(job.model, job.size, "cpu")
    simulation = replace(job.simulation, energy_kev=model.energy_kev)
    settings = json.loads(json.dumps({
        "case": job.case["case"], "next": job.next_case["case"], "kind": job.kind, "model": model.sha256,
        "size": job.size, "samples": job.samples, "reconstruct_all": job.reconstruct_all,
        "simulation": asdict(simulation), "software": f"fewview-ct {__version__}",
        **({"sampler": model.network.settings} if job.samples else {}),
    }))  # fmt: skip
    if job.file.is_file() and json.loads(job.file.read_text())["settings"] == settings:
        return False
    detector = detector_of(model), model.pixel_at_isocenter_mm, simulation
    ct, following = (load_ct(case, model.pixel_at_isocenter_mm) for case in (job.case, job.next_case))
    found: dict[str, Any] = {}
    for beam in ("parallel", "cone"):
        other = following.radiographs([LATERAL], beam, *detector)
        for count, angles in VIEW_SETS.items():
            right = ct.radiographs(angles, beam, *detector)
            turned = ct.radiographs(angles, beam, *detector, turned_deg=[5.0] + [0.0] * (count - 1))
            for name, (counts, spoil) in MISTAKES.items():
                if count not in counts:
                    continue
                shown = spoil(Shots(right, other, turned), count)
                key = f"{beam} {count}, {name}"
                if name == "none" or (job.reconstruct_all and count == 2):
                    evidence = reconstructed(model, shown, samples=job.samples, seed=job.simulation.seed)
                    assert evidence.hu is not None
                    found[key] = {**measured(evidence, meter), "error_hu": error_hu(model, evidence.hu, ct)}
                else:
                    prior = find_prior(model.network)
                    evidence = Evidence(
                        shown.image, shown.views, shown.field_mask, None, model.grid, training=model.meta, prior=prior
                    )
                    found[key] = measured(evidence, meter)
    write_json(job.file, {"settings": settings, "found": found})
    return True


def _statistics(record: Mapping[str, Any], thresholds: Thresholds, beam: str) -> dict[str, float | None]:
    """With "intensities", which need the thresholds' quantiles."""
    quantiles = thresholds.quantiles[beam]
    distances = [quantiles.distance(torch.tensor(picture)) for picture in record["quantiles"]]
    return {**record["statistics"], "intensities": max(distances)}


def _group(thresholds: Thresholds, beam: str, count: int) -> tuple[Mapping[str, Threshold], ExpectedError | None]:
    found = thresholds.of(beam, count)
    if found is None:
        raise ValueError(f"the thresholds hold none for {count} views of {beam} beam")
    return found[0], thresholds.expected_error.get(found[1])


def _verdicts(record: Mapping[str, Any], thresholds: Thresholds, beam: str, count: int) -> dict[str, Verdict | None]:
    """What each check says; None where one was not made."""
    (group, errors), values = _group(thresholds, beam, count), _statistics(record, thresholds, beam)
    if errors is not None:
        values["expected_error"] = errors.of(values)[0]
    return {
        name: None if (value := values.get(name)) is None or name not in group else group[name].verdict(value)
        for name in STATISTICS
    }


def _share(verdicts: Sequence[Verdict | None]) -> str:
    made = [verdict for verdict in verdicts if verdict is not None]
    alarms = sum(verdict is not Verdict.PASS for verdict in made)
    return (
        f"{100 * alarms / len(made):.0f}%" + (f" of {len(made)}" if len(made) < len(verdicts) else "") if made else ""
    )


def _worst(verdicts: Mapping[str, Verdict | None]) -> Verdict:
    return max((v for v in verdicts.values() if v is not None), key=list(Verdict).index, default=Verdict.PASS)


def _tables(records: Sequence[Mapping[str, Any]], thresholds: Thresholds) -> list[str]:
    checks = [name for name in STATISTICS if name != "samples" or any(r["settings"]["samples"] for r in records)]
    lines: list[str] = []
    for count in VIEW_SETS:
        for beam in ("parallel", "cone"):
            lines += ["", f"{count} view{'s' if count > 1 else ''}, {beam} beam:", ""]
            lines.append("| mistake | any check | " + " | ".join(checks) + " |")
            lines.append("|" + "---|" * (2 + len(checks)))
            for name, (counts, _) in MISTAKES.items():
                if count not in counts:
                    continue
                for kind, some in _kinds(records, split=name == "none"):
                    found = [_verdicts(r["found"][f"{beam} {count}, {name}"], thresholds, beam, count) for r in some]
                    anything = _share([_worst(case) for case in found])
                    each = " | ".join(_share([case[check] for case in found]) for check in checks)
                    lines.append(f"| {name}{kind} ({len(some)}) | {anything} | {each} |")
    return lines


def _kinds(records: Sequence[Mapping[str, Any]], split: bool) -> list[tuple[str, list[Mapping[str, Any]]]]:
    if not split:
        return [("", list(records))]
    kinds = [(f", {kind}", [r for r in records if r["settings"]["kind"] == kind]) for kind in ("patients", "phantoms")]
    return [(kind, some) for kind, some in kinds if some]


def _errors(records: Sequence[Mapping[str, Any]], thresholds: Thresholds) -> list[str]:
    """Verdicts of right radiographs against the error of what was made of them; nothing for thresholds without one."""
    if not thresholds.expected_error:
        return []
    lines = ["", "| views | PASS | REVIEW | REJECT | rank correlation of expected and true error | below the bound |"]
    lines.append("|---|---|---|---|---|---|")
    for beam in ("parallel", "cone"):
        for count in VIEW_SETS:
            found = [record["found"][f"{beam} {count}, none"] for record in records]
            by: dict[Verdict, list[float]] = {Verdict.PASS: [], Verdict.REVIEW: [], Verdict.REJECT: []}
            for one in found:
                by[_worst(_verdicts(one, thresholds, beam, count))].append(one["error_hu"])
            model = _group(thresholds, beam, count)[1]
            assert model is not None
            expected = [model.of(_statistics(one, thresholds, beam)) for one in found]
            errors = [one["error_hu"] for one in found]
            rank = float(spearmanr([e for e, _ in expected], errors)[0])
            inside = sum(error <= bound for error, (_, bound) in zip(errors, expected, strict=True))
            cells = [f"{len(v)}: {sum(v) / len(v):.0f} HU" if v else "0" for v in by.values()]
            lines.append(
                f"| {count}, {beam} | " + " | ".join(cells) + f" | {rank:.2f} | {100 * inside / len(errors):.0f}% |"
            )
    return lines


def main(
    datalist: str,
    output: str,
    thresholds: str,
    model: str = "inr_recon",
    phantom_list_file: str | None = None,
    part: str = "test",
    size: int | None = None,
    samples: int = 0,
    reconstruct_all: int | None = None,
    seed: int = 1,
    workers: int = 1,
) -> None:
    """Write and print trust.md.

    Args:
        datalist: datalist.json of a prepared cohort.
        output: folder.
        thresholds: that `fewview-ct calibrate` made, from other cases.
        model: as for `fewview-ct calibrate`.
        phantom_list_file: of `fewview-ct phantom`, made with another seed than those that were trained on.
        part: of the datalist.
        size: voxels along each side, as in the calibration.
        samples: drawn for their spread, by a model that draws, as in the calibration.
        reconstruct_all: cases whose mistakes are reconstructed too, for the check "reprojection"; all by default. The
            others are reconstructed without a mistake only.
        seed: of noise and errors.
        workers: processes.
    """
    lists = {"patients": load_cases(datalist, part)}
    if phantom_list_file is not None:
        lists["phantoms"] = load_cases(phantom_list_file, "training")
    folder, simulation = Path(output), SimulationSettings(seed=seed)
    step = max(1, sum(map(len, lists.values())) // reconstruct_all) if reconstruct_all else 1
    jobs: list[_Job] = []
    for kind, cases in lists.items():
        for index, case in enumerate(cases):
            following, file = cases[(index + 1) % len(cases)], folder / "cases" / f"{case['case']}.json"
            jobs.append(_Job(case, following, kind, model, size, samples, len(jobs) % step == 0, simulation, file))
    with Workers(workers) as pool:
        pool.run(_run, jobs, label="cases")
    records = [json.loads(job.file.read_text()) for job in jobs]
    limits = Thresholds.load(thresholds)
    lines = _tables(records, limits) + _errors(records, limits)
    write_bytes(folder / "trust.md", ("\n".join(lines).strip() + "\n").encode())
    print((folder / "trust.md").read_text())


if __name__ == "__main__":
    fire.Fire(main)
