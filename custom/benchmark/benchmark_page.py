"""The output folder of a comparison: CSV, tables, box plots, montages and one page that shows them all."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from custom import __version__
from custom.benchmark import conclusion, summary
from custom.benchmark.jobs import DONE, Job, Plan, slug
from custom.benchmark.null_rows import is_control
from custom.benchmark.radiotherapy_tables import radiotherapy_names, radiotherapy_tables
from custom.core.files import write_bytes, write_json
from custom.metrics.tables import write_csv
from custom.report.boxplots import method_boxplots
from custom.report.document import Markup, picture, write_page
from custom.report.montage import Panel, montage
from custom.report.ranking_plot import ranking_plot

__all__ = ["write_report"]

STEM = "benchmark"
_HEAD = ("case", "patient", "method", "views", "status")
#: One number in two conventions has one distribution; tests and box plots show it once.
_TWICE = ("psnr_4095",)


def write_report(plan: Plan, reference: str, montages: int, title: str) -> Path:
    """Write everything into the folder of the plan.

    Args:
        plan: whose jobs are all done.
        reference: row that the paired tests compare the others with.
        montages: number of cases that get montages.
        title: of the page.
    """
    rows = [_ordered(row) for job in plan.jobs for row in plan.rows(job) or []]
    names = summary.measured_names(rows)
    compared = [n for n in names if n not in (*_TWICE, "seconds", "memory_mb")]
    tests = summary.paired_tests(rows, reference, compared)
    planned, plans = radiotherapy_tables(rows), radiotherapy_names(rows)
    write_csv(_filled(rows, [*names, *plans]), plan.output / f"{STEM}.csv")
    if tests:
        write_csv(tests, plan.output / "paired.csv")
    write_bytes(plan.output / f"{STEM}.md", summary.markdown(rows, tests, planned).encode())
    record = settings(plan, rows)
    content = {**record, "means": _means(rows, names), "paired": tests}
    write_json(plan.output / f"{STEM}.json", content, sort_keys=False)
    views = [views.name for views in plan.cohort.views]
    found = conclusion.leads(rows, names[0]) if names else []
    boxes = {name: _boxes(rows, name, plan.output / "figures" / f"{name}.png", views) for name in compared}
    pictures = _montages(plan, montages, names[0] if names else "")
    return write_page(
        plan.output / f"{STEM}.html",
        "benchmark.html",
        title,
        lead=conclusion.conclusion(found, names[0], record["patients"]) if names else "No method gave a volume.",
        compared=_compared(plan, rows, record),
        leads=[conclusion.lead_cells(lead, names[0]) for lead in found],
        others=conclusion.other_metrics(rows, found, [name for name in compared if name != names[0]]),
        ranking=_ranking(plan, rows, names[0]) if names else None,
        **_tables(plan, rows, names, record),
        **_tests(tests),
        gaps=summary.gaps(rows),
        planned=planned,
        boxes=[
            (
                summary.metric_name(name),
                picture(path, f"{summary.metric_name(name)} of every case by view set and method"),
            )
            for name, path in boxes.items()
            if path is not None
        ],
        montages=[
            (
                f"{case}, view set {views}",
                picture(path, f"Slices of {case} from view set {views}: truth and every method", photograph=True),
            )
            for case, views, path in pictures
        ],
        **_settings_tables(record),
    )


def _ordered(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: row[key] for key in _HEAD}, **row}


def _filled(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Every row with every column, the error last."""
    return [{key: row.get(key, math.nan) for key in (*_HEAD, *names)} | {"error": row["error"]} for row in rows]


def _means(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"metric": name, "method": method, "views": views, **cell._asdict()}
        for name, table in summary.cells(rows, names).items()
        for (method, views), cell in table.items()
    ]


def settings(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the reader has to know beside the numbers, and with what they can be made again."""
    device, grid = plan.setting.device, plan.setting.grid
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    methods = []
    for entry in plan.entries:
        guide = entry.guide()
        guided = guide is not None and guide in plan.judge_hashes.values()
        made_of = entry.identity(plan.setting)
        methods.append({"name": entry.name, **made_of, "guide_sha256": guide, "judge_is_guide": guided})
    return {
        "software": f"fewview-ct {__version__}, torch {torch.__version__}",
        "machine": gpu or f"{platform.processor() or platform.machine()}, CPU threads: {torch.get_num_threads()}",
        "datalist": plan.setting.data_list_file,
        "cases": [case.name for case in plan.cohort.cases],
        "patients": len({case.patient for case in plan.cohort.cases}),
        "grid": {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm)},
        "hu_window": list(plan.hu_window),
        "view_sets": {v.name: {"beam": v.beam, "angles_deg": list(v.angles_deg)} for v in plan.cohort.views},
        "segmenters": dict(plan.judge_hashes),
        "radiotherapy": None if plan.radiotherapy is None else plan.radiotherapy.identity,
        "methods": methods,
        "without_volume": sum(row["status"] != DONE for row in rows),
    }


def _boxes(rows: Sequence[Mapping[str, Any]], name: str, path: Path, views: Sequence[str]) -> Path | None:
    known = any(math.isfinite(row.get(name, math.nan)) for row in rows)
    return method_boxplots(rows, path, name, views) if known else None


def _montages(plan: Plan, count: int, name: str) -> list[tuple[str, str, Path]]:
    """(case, view set, file) of every montage; controls and what gave no volume are left out."""
    drawn = []
    for case in plan.cohort.cases[:count]:
        for views in plan.cohort.views:
            jobs = [j for j in plan.jobs if j.case is case and j.views is views and not j.shuffled]
            panels = [panel for job in jobs for panel in _panels(plan, job, name)]
            if not panels:
                continue
            path = plan.output / "montages" / slug(case.name) / f"{slug(views.name)}.png"
            angles = ", ".join(f"{angle:g}°" for angle in views.angles_deg)
            caption = f"{views.beam} beam, {angles}; middle slices; below each method its difference from the truth"
            truth, spacing_mm = plan.truth_slices(case), plan.setting.grid.spacing_mm
            montage(truth, panels, spacing_mm, path, f"{case.name}, view set {views.name}", caption)
            drawn.append((case.name, views.name, path))
    return drawn


def _panels(plan: Plan, job: Job, name: str) -> list[Panel]:
    panels = []
    for number, row in enumerate(plan.rows(job) or []):
        if row["status"] != DONE:
            continue
        with np.load(plan.path(job, number)) as content:
            slices = {key: content[key] for key in content.files}
        note = summary.with_unit(name, row[name]) if name in row else ""
        panels.append(Panel(row["method"], slices, note))
    return panels


def _ranking(plan: Plan, rows: Sequence[Mapping[str, Any]], name: str) -> Markup | None:
    """The first metric against the number of views; None where no row has it."""
    known = [row for row in rows if row["status"] == DONE and math.isfinite(row.get(name, math.nan))]
    if not known:
        return None
    columns = {views.name: (views.beam, len(views.angles_deg)) for views in plan.cohort.views}
    path = ranking_plot(known, plan.output / "figures" / "ranking.png", name, columns, is_control)
    return picture(path, f"Mean {summary.metric_name(name)} of every method by view set; the tables hold the numbers")


def _compared(plan: Plan, rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> str:
    """What was compared, in a paragraph."""
    methods, (low, high) = {row["method"] for row in rows}, record["hu_window"]
    shape, spacing = record["grid"]["shape"], record["grid"]["spacing_mm"]
    return (
        f"{len(methods)} methods, {len(plan.cohort.views)} view sets, {len(plan.cohort.cases)} cases of "
        f"{record['patients']} patients, "
        f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{s:g}' for s in spacing)} mm. All methods saw the same "
        f"radiographs; both volumes are clipped to {low:g} to {high:g} HU and compared over the whole cube. "
        f"{record['software']}, {record['machine']}."
    )


def _tables(
    plan: Plan, rows: Sequence[Mapping[str, Any]], names: Sequence[str], record: Mapping[str, Any]
) -> dict[str, Any]:
    """A table for every metric: its name, cells, and which of them are the best; and the first one by patient."""
    columns = [views.name for views in plan.cohort.views]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    tables = [
        (summary.metric_name(name), *summary.metric_table(cells, name, methods, columns))
        for name, cells in summary.cells(rows, names).items()
    ]
    few = record["patients"] < summary.MIN_PATIENTS_FOR_INTERVAL
    content: dict[str, Any] = {"columns": columns, "tables": tables, "few": few, "patients": [], "patients_of": ""}
    if names and record["patients"] <= summary.MOST_PATIENTS_SHOWN:
        content["patients_of"] = summary.metric_name(names[0])
        content["patients"] = summary.patient_rows(rows, names[0], methods, columns)
    return content


def _tests(tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    texts = [summary.paired_texts(test) for test in tests]
    return {"tests": texts, "reference": tests[0]["reference"] if tests else ""}


def _settings_tables(record: Mapping[str, Any]) -> dict[str, Any]:
    views = record["view_sets"].items()
    return {
        "guided": [method["name"] for method in record["methods"] if method["judge_is_guide"]],
        "view_sets": [[n, v["beam"], ", ".join(f"{angle:g}" for angle in v["angles_deg"])] for n, v in views],
        "methods": [
            [
                method["name"],
                ", ".join(f"{key}: {value}" for key, value in method["content"].items()),
                ", ".join(f"{Path(file).name} {digest[:12]}" for file, digest in method["files"].items()),
            ]
            for method in record["methods"]
        ],
        "datalist": record["datalist"],
        "cases": record["cases"],
    }
