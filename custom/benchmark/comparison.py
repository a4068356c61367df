"""The verb `fewview-ct benchmark`: runs every method on the same radiographs and writes one page."""

from __future__ import annotations

import logging
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from custom.benchmark import summary
from custom.benchmark.benchmark_page import write_report
from custom.benchmark.cohort import comparison_grid, load_cohort
from custom.benchmark.jobs import DONE, Bench, Plan
from custom.benchmark.methods_file import Entry, Setting, SimpleEntry, read_methods, with_null_rows
from custom.benchmark.radiotherapy_judge import RadiotherapyJudge
from custom.benchmark.resources import Team
from custom.core.devices import usable_device
from custom.core.workers import Workers
from custom.metrics import METRIC_NAMES, check_window
from custom.models import SEGMENTER, find_model

__all__ = ["compare"]

logger = logging.getLogger(__name__)

#: What `--radiotherapy` plans.
TEMPLATES = "ap_pa,breast_left,breast_right"
METRICS = "psnr_range,psnr_4095,ssim,mae_hu,rmse_hu,mae_hu_body"


def compare(
    datalist: str,
    methods: str,
    output: str = "outputs/benchmark",
    cone_datalist: str | None = None,
    part: str = "test",
    cases: str | None = None,
    views: str | None = None,
    size: int | None = None,
    metrics: str = METRICS,
    hu_window: tuple[float, float] = (-1000.0, 1000.0),
    segmenters: str | None = None,
    reference: str | None = None,
    montages: int = 3,
    volumes: bool = False,
    retry: bool = False,
    device: str | None = None,
    title: str = "Comparison of reconstructions",
    radiotherapy: bool = False,
    templates: str = TEMPLATES,
    scheduler: str | None = None,
) -> None:
    """Run every method on the same radiographs of the same patients, and write tables, pictures and one HTML page.

    Every reconstruction is measured and written as soon as it is there. The same command goes on where it was stopped,
    and makes anew only what depends on a file or setting that has changed. A method that fails on a case is a row that
    says so. Under torchrun the processes share the work; the output folder must be one that all of them see. A bundle
    is code: run only those that you trust.

    Args:
        datalist: datalist of fewview-ct simulate, with radiographs.
        methods: JSON file that names the methods (docs/how-to/benchmark.md).
        output: folder for benchmark.csv, .md, .json and .html, figures/, montages/ and results/.
        cone_datalist: datalist of the same cases with radiographs of the other beam.
        part: of the datalist.
        cases: names, separated by commas; all by default.
        views: names of view sets, such as "1 lateral,2,4"; all that the radiographs allow by default.
        size: voxels along each side in which volumes are compared; as prepared by default.
        metrics: of custom.metrics, separated by commas.
        hu_window: volumes are clipped to it; its width is the peak of psnr_range.
        segmenters: model.pt of seg_guidance, or several; Dice of what they find in reconstruction and truth.
        reference: row that the paired tests compare the others with; the first network by default.
        montages: number of cases that get montages.
        volumes: also write every reconstruction as NIfTI.
        retry: try again what gave no volume before.
        device: torch device; a GPU where there is one, else the CPU.
        title: of the page.
        radiotherapy: also plan on every reconstruction, with tables of how wrong the plans are, their pictures in
            plans/, and null rows to read them by (docs/how-to/benchmark.md).
        templates: of fewview-ct plan, separated by commas.
        scheduler: address of a Dask scheduler, such as tcp://host:8786, whose workers reconstruct; it must be one that
            you trust (docs/how-to/cluster.md).

    Raises:
        FileNotFoundError, ValueError: input that does not serve, before the first reconstruction.
        ModuleNotFoundError: radiotherapy without the extra of this name.
        RuntimeError: no method gave a volume, after the page was written.
    """
    with Team() as team:
        if team.rank:
            logging.getLogger("custom").setLevel(logging.WARNING)
        make_plan = partial(
            _plan,
            [datalist, *([cone_datalist] if cone_datalist else [])],
            methods,
            Path(output),
            part,
            _names(cases),
            _names(views),
            size,
            _names(metrics) or [],
            check_window(hu_window),
            _names(segmenters) or [],
            device,
            volumes,
            (_names(templates) or []) if radiotherapy else None,
        )
        plan = make_plan()
        chosen = _reference(plan.entries, reference)
        pending = team.agreed(plan.pending(retry) if team.rank == 0 else [])
        logger.info("%d of %d reconstructions are there already", len(plan.jobs) - len(pending), len(plan.jobs))
        run = Bench(plan).run if scheduler is None else partial(_run_there, uuid.uuid4().hex, make_plan)
        with Workers(1, scheduler) as pool:
            pool.run(run, pending[team.rank :: team.size], label=None if team.rank else "benchmark")
        team.wait()
        if team.rank == 0:
            page = write_report(plan, chosen, montages, title)
            rows = [row for job in plan.jobs for row in plan.rows(job) or []]
            _print(rows, plan)
            logger.info("written to %s", page)
            if not any(row["status"] == DONE for row in rows):
                raise RuntimeError(f"no method gave a volume: {rows[0]['method']}: {rows[0]['error']}; see {page}")


def _plan(
    datalists: Sequence[str],
    methods: str,
    output: Path,
    part: str,
    cases: Sequence[str] | None,
    views: Sequence[str] | None,
    size: int | None,
    metrics: Sequence[str],
    hu_window: tuple[float, float],
    segmenters: Sequence[str],
    device: str | None,
    volumes: bool,
    templates: Sequence[str] | None = None,
) -> Plan:
    """Everything read and checked."""
    unknown = [name for name in metrics if name not in METRIC_NAMES]
    if unknown or not metrics:
        raise ValueError(f"unknown metric {unknown[:1] or 'none'}; known are {', '.join(METRIC_NAMES)}")
    planner = None
    if templates is not None:
        planner = RadiotherapyJudge(templates, find_model(SEGMENTER).model)
    entries, known = read_methods(methods)
    if planner is not None:
        entries = with_null_rows(entries)
    cohort = load_cohort(datalists, part, cases, views, known)
    if len(cohort.cases) < 2 and planner is not None:
        raise ValueError("radiotherapy compares with another patient's CT and needs at least two cases, got one")
    if len(cohort.cases) < 2 and any(entry.shuffled for entry in entries):
        raise ValueError('another patient\'s radiographs ("shuffled") need at least two cases, got one')
    setting = Setting(
        datalists[0], cohort.cube, comparison_grid(cohort.cube, size), usable_device(device or Team().device)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="monai")
        for entry in entries:
            entry.check(setting)
    judges, hashes = _judges(segmenters, setting)
    plan = Plan(output, cohort, entries, setting, metrics, hu_window, judges, hashes, volumes, planner)
    if not plan.jobs:
        raise ValueError(f"{methods}: no method is to be run on {', '.join(view.name for view in cohort.views)}")
    return plan


def _judges(segmenters: Sequence[str], setting: Setting) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Segmenters by the name of their metric: "dice", "dice2", ..., each tried on the grid of the comparison."""
    if not segmenters:
        return {}, {}
    from custom.segmentation.dice import SegmenterDice

    judges, hashes = {}, {}
    for number, path in enumerate(segmenters, 1):
        judge = SegmenterDice(path, setting.device)
        air = torch.full((1, *setting.grid.shape), -1.0)
        judge(air, air, setting.grid.spacing_mm)  # a voxel size that does not fit is said now
        prefix = "dice" if number == 1 else f"dice{number}"
        judges[prefix], hashes[prefix] = judge, judge.hash
    return judges, hashes


def _names(given: str | None) -> list[str] | None:
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]


def _reference(entries: Sequence[Entry], wanted: str | None) -> str:
    rows = [name for entry in entries for name in entry.row_names(False)]
    if wanted is None:
        trained = next((entry for entry in entries if not isinstance(entry, SimpleEntry)), entries[0])
        return trained.row_names(False)[-1]
    if wanted not in rows:
        raise ValueError(f"no row {wanted!r} to compare with; there are {', '.join(map(repr, rows))}")
    return wanted


#: On a Dask worker, of one command: when the next one comes, files may have changed.
_benches: dict[str, Bench] = {}


def _run_there(command: str, make_plan: Callable[[], Plan], index: int) -> None:
    """Run a job on a Dask worker, which reads and checks everything once for each command."""
    if command not in _benches:
        _benches.clear()
        _benches[command] = Bench(make_plan())
    _benches[command].run(index)


def _print(rows: Sequence[Mapping[str, Any]], plan: Plan) -> None:
    """The first metric in the terminal."""
    name = plan.metrics[0]
    found = summary.cells(rows, [name])[name]
    columns = [views.name for views in plan.cohort.views]
    table = Table(title=Text(summary.metric_name(name)), title_justify="left")
    for column in ("method", *columns):
        table.add_column(Text(column), justify="left" if column == "method" else "right")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [found.get((method, views)) for views in columns]
        table.add_row(Text(method), *[Text(summary.shown(name, cell.mean) if cell else "") for cell in cells])
    Console().print(table)
    count = sum(row["status"] != DONE for row in rows)
    if count:
        logger.info("%d of %d rows are without a volume; the page says why", count, len(rows))
