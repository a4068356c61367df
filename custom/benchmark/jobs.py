"""Jobs of a comparison: one reconstruction per method, view set and case, each with a file of its own."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ignite.utils import manual_seed
from torch import Tensor

from custom import __version__
from custom.benchmark.cohort import Case, Cohort, ViewSet, on_grid, truth_of
from custom.benchmark.methods import Method
from custom.benchmark.methods_file import Entry, Setting
from custom.benchmark.radiotherapy_judge import RadiotherapyJudge
from custom.benchmark.resources import Cost, held_mb, release_memory
from custom.core.files import read_json_object, sha256_file, write_bytes, write_json
from custom.core.hu_window import NotFinite, hu_to_unit
from custom.core.nifti_files import open_nifti
from custom.metrics import evaluate_volume
from custom.models import save_volume
from custom.report.figures import PLANES, plane

__all__ = ["DONE", "FAILED", "REFUSED", "Bench", "Job", "Plan"]

logger = logging.getLogger(__name__)

#: What a row says of a reconstruction: it is there; the method is not made for these views; it went wrong.
DONE, REFUSED, FAILED = "done", "not supported", "failed"
_SEED = 0
_LONGEST_ERROR = 400


@dataclass(frozen=True)
class Job:
    """One reconstruction: which method, whether with the next patient's radiographs, which view set, which case."""

    entry: Entry
    shuffled: bool
    views: ViewSet
    case: Case


@dataclass(frozen=True)
class Plan:
    """All jobs of a comparison and where their results are.

    Attributes:
        output: folder.
        cohort: cases and view sets.
        entries: methods.
        setting: what they are built for.
        metrics: names of `custom.metrics`.
        hu_window: both volumes are clipped to it before they are compared.
        judges: segmenters by the name of their metric: from two volumes (1, X, Y, Z), `hu_window` as [-1, 1], and
            voxel size and HU window to named Dice coefficients.
        judge_hashes: SHA-256 of their checkpoints.
        volumes: also write every reconstruction as NIfTI.
        radiotherapy: what plans on the reconstructions; of samples on their mean alone.
    """

    output: Path
    cohort: Cohort
    entries: Sequence[Entry]
    setting: Setting
    metrics: Sequence[str]
    hu_window: tuple[float, float]
    judges: Mapping[str, Callable[..., dict[str, float]]] = field(default_factory=dict)
    judge_hashes: Mapping[str, str | None] = field(default_factory=dict)
    volumes: bool = False
    radiotherapy: RadiotherapyJudge | None = None

    @cached_property
    def jobs(self) -> list[Job]:
        """Methods one after the other, so that each is built once."""
        return [
            Job(entry, shuffled, views, case)
            for entry in self.entries
            for shuffled in (False, True)
            for views in self.cohort.views
            if entry.runs_on(views.name, shuffled)
            for case in self.cohort.cases
        ]

    @cached_property
    def _methods(self) -> dict[str, dict[str, Any]]:
        return {entry.name: entry.identity(self.setting) for entry in self.entries}

    @cached_property
    def _inputs(self) -> dict[tuple[str, str], list[str]]:
        """Hashes of the truth and the radiographs of every case and beam."""
        return {
            (case.name, beam): [sha256_file(path) for path in (case.label, *pair)]
            for case in self.cohort.cases
            for beam, pair in case.files.items()
        }

    def shown(self, job: Job) -> Case:
        """Whose radiographs the method gets: the case's own, or the next one's."""
        cases = self.cohort.cases
        return cases[(cases.index(job.case) + 1) % len(cases)] if job.shuffled else job.case

    def fingerprint(self, job: Job) -> str:
        """Of all that a result depends on. Results with another one are made anew."""
        parts: list[Any] = [
            self._methods[job.entry.name],
            [job.views.beam, job.views.angles_deg],
            [self._inputs[case.name, job.views.beam] for case in (job.case, self.shown(job))],
            [self.setting.grid.shape, list(self.metrics), self.hu_window],
            [sorted(self.judge_hashes.items()), __version__],
        ]
        if self.radiotherapy is not None:
            parts.append([self.radiotherapy.identity])
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def path(self, job: Job, row: int | None = None) -> Path:
        """File of a job's rows; with `row`, of the slices of one of them."""
        name = job.entry.row_names(job.shuffled)[row or 0]
        stem = self.output / "results" / slug(name) / slug(job.views.name) / slug(job.case.name)
        return stem.with_name(stem.name + (".json" if row is None else ".npz"))

    def volume_path(self, job: Job, row: int) -> Path:
        name = job.entry.row_names(job.shuffled)[row]
        return self.output / "volumes" / slug(name) / slug(job.views.name) / f"{job.case.name}.nii.gz"

    def rows(self, job: Job) -> list[dict[str, Any]] | None:
        """The rows of a finished job; None if it has to run."""
        path = self.path(job)
        if not path.is_file():
            return None
        try:
            content = read_json_object(path)
            if content.get("fingerprint") != self.fingerprint(job):
                return None
            rows = [{key: _number(value) for key, value in row.items()} for row in content["rows"]]
            done = [number for number, row in enumerate(rows) if row["status"] == DONE]
        except (ValueError, KeyError, TypeError, AttributeError):  # damaged: it is made again
            return None
        needed = [self.path(job, number) for number in done]
        needed += [self.volume_path(job, number) for number in done if self.volumes]
        return rows if all(file.is_file() for file in needed) else None

    def truth_slices(self, case: Case) -> dict[str, npt.NDArray[np.int16]]:
        """The middle slices of the truth, as `slices` gives them."""
        return slices(truth_of(case, self.cohort.cube, self.setting.grid))

    def pending(self, retry: bool = False) -> list[int]:
        """Indices of the jobs that have to run; with `retry` also those that gave no volume."""
        waiting = []
        for index, job in enumerate(self.jobs):
            rows = self.rows(job)
            if rows is None or (retry and any(row["status"] != DONE for row in rows)):
                waiting.append(index)
        return waiting


def _number(value: Any) -> Any:
    """The inverse of `write_json`, which has no NaN and no infinity."""
    if value is None:
        return float("nan")
    return float(value) if value in ("Infinity", "-Infinity") else value


def slug(name: str) -> str:
    """A file name that is like the name, and no other name's."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._") or "_"
    return plain if plain == name else f"{plain[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


class Bench:
    """Runs jobs of a comparison and writes each one's rows as soon as it is there.

    Args:
        plan: of the comparison.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._method: Method | None = None
        self._built, self._before_mb = "", 0.0

    def run(self, index: int) -> None:
        """Run a job; the method is kept for the next one, which is likely to be of the same.

        Args:
            index: in `plan.jobs`.
        """
        plan, job = self.plan, self.plan.jobs[index]
        if self._method is None or self._built != job.entry.name:
            self._method = None
            release_memory()
            self._before_mb = held_mb(plan.setting.device)
            self._method, self._built = job.entry.build(plan.setting), job.entry.name
        truth = truth_of(job.case, plan.cohort.cube, plan.setting.grid)
        rows = _run(plan, job, self._method, truth, self._before_mb)
        write_json(plan.path(job), {"fingerprint": plan.fingerprint(job), "rows": rows}, sort_keys=False)
        names = (job.entry.name, job.views.name, job.case.name)
        logger.debug("%s, %s, %s: %s", *names, rows[0]["status"])


def _run(plan: Plan, job: Job, method: Method, truth: Tensor, before_mb: float) -> list[dict[str, Any]]:
    """The rows of a job. Whatever goes wrong with a method is one of them."""
    names = job.entry.row_names(job.shuffled)
    head = {"case": job.case.name, "patient": job.case.patient, "views": job.views.name}
    manual_seed(_SEED)  # every job begins alike, whatever ran before it and in whichever process
    try:
        if method.of_truth is not None:
            shown = truth_of(plan.shown(job), plan.cohort.cube, plan.setting.grid)
            hu = method.of_truth(shown, plan.setting.grid)
            results = [(_measured(plan, hu, truth), hu)]
        else:
            image, views = plan.shown(job).radiographs(job.views)
            results = _reconstructed(plan, method, truth, image, views, before_mb)
        rows = []
        for number, (name, (values, hu)) in enumerate(zip(names, results, strict=True)):
            _keep(plan, job, number, hu)
            if plan.radiotherapy is not None and number == len(results) - 1:
                values = {**values, **_planned(plan, job, name, hu, truth)}
            rows.append({**head, "method": name, "status": DONE, **values, "error": ""})
        return rows
    except Exception as error:
        # A ValueError is how our methods refuse views; any other error, and what was measured, is a fault.
        status = REFUSED if isinstance(error, _Refused) else FAILED
        cause = error.__cause__ if isinstance(error, _Refused) and error.__cause__ is not None else error
        text = " ".join(str(cause).split())[:_LONGEST_ERROR]
        text = text if status == REFUSED else f"{type(cause).__name__}: {text}"
        level = logging.INFO if status == REFUSED else logging.WARNING
        logger.log(level, "%s, %s, %s: %s: %s", job.entry.name, job.views.name, job.case.name, status, text)
        logger.debug("%s", job.entry.name, exc_info=True)
        release_memory()
        return [{**head, "method": name, "status": status, "error": text} for name in names]


class _Refused(Exception):
    """A method has said that it is not made for these radiographs; the cause says why."""


def _reconstructed(
    plan: Plan, method: Method, truth: Tensor, image: Tensor, views: Tensor, before_mb: float
) -> list[tuple[dict[str, float], Tensor]]:
    """Metrics, cost and volume on the comparison's grid, for every row of the job."""
    release_memory(collect=False)
    if method.draw is None:
        with Cost(plan.setting.device, before_mb) as cost:
            hu = _asked(lambda: method.run(image, views))
        hu = _compared(plan, method, hu)
        return [({**_measured(plan, hu, truth), "seconds": cost.seconds, "memory_mb": cost.memory_mb}, hu)]
    samples: list[dict[str, float]] = []
    total, first = torch.zeros_like(truth, dtype=torch.float64), None
    drawn: Iterator[Tensor] = method.draw(image, views)
    seconds, memory_mb = 0.0, 0.0
    while True:
        with Cost(plan.setting.device, before_mb) as cost:
            hu = _asked(lambda: next(drawn, None))
        seconds += cost.seconds
        memory_mb = max(memory_mb, cost.memory_mb)
        if hu is None:
            break
        hu = _compared(plan, method, hu)
        first = hu if first is None else first
        total += hu
        samples.append(_measured(plan, hu, truth))
    if first is None:
        raise RuntimeError("gave no sample")
    mean = (total / len(samples)).float()
    single = {name: float(np.mean([values[name] for values in samples])) for name in samples[0]}
    each = {"seconds": seconds / len(samples), "memory_mb": memory_mb}
    whole = {**_measured(plan, mean, truth), "seconds": seconds, "memory_mb": memory_mb}
    return [({**single, **each}, first), (whole, mean)]


def _asked(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except NotFinite:
        raise
    except ValueError as error:
        raise _Refused from error


def _compared(plan: Plan, method: Method, hu: Tensor) -> Tensor:
    own = method.grid or plan.cohort.cube
    if tuple(hu.shape) != own.shape:
        raise RuntimeError(f"gave a volume of {tuple(hu.shape)} voxels instead of {own.shape}")
    return on_grid(hu.detach().float().cpu(), own, plan.setting.grid)


def _measured(plan: Plan, hu: Tensor, truth: Tensor) -> dict[str, float]:
    values = evaluate_volume(hu, truth, plan.hu_window, plan.metrics)
    pair = [hu_to_unit(volume, plan.hu_window)[None] for volume in (hu, truth)]
    for prefix, judge in plan.judges.items():
        found = judge(*pair, plan.setting.grid.spacing_mm, plan.hu_window)
        values |= {prefix + name.removeprefix("dice"): value for name, value in found.items()}
    return values


def _planned(plan: Plan, job: Job, name: str, hu: Tensor, truth: Tensor) -> dict[str, float]:
    assert plan.radiotherapy is not None
    numbers, pictures = plan.radiotherapy(hu, truth, plan.setting.grid)
    for template, content in pictures.items():
        folder = plan.output / "plans" / slug(name) / slug(job.views.name)
        write_bytes(folder / f"{slug(job.case.name)}_{template}.png", content)
    return numbers


def _keep(plan: Plan, job: Job, row: int, hu: Tensor) -> None:
    """The slices that montages show, and the whole volume if wanted."""
    content = io.BytesIO()
    np.savez_compressed(content, **slices(hu))  # type: ignore[arg-type]
    write_bytes(plan.path(job, row), content.getvalue())
    if plan.volumes:
        affine = open_nifti(Path(job.case.label)).header.get_best_affine()
        cube = plan.cohort.cube
        center = affine[:3, :3] @ ((np.array(cube.shape) - 1) / 2) + affine[:3, 3]
        path = plan.volume_path(job, row)
        save_volume(path, hu, plan.setting.grid, center.tolist())


def slices(hu: Tensor) -> dict[str, npt.NDArray[np.int16]]:
    """The middle slice of each plane, turned as it is shown, int16 HU."""
    limits = np.iinfo(np.int16)
    volume = hu.round().clamp(limits.min, limits.max).to(torch.int16).numpy()
    return {name: np.ascontiguousarray(plane(volume, name)) for name in PLANES}
