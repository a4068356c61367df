"""The folder that a comparison leaves: CSV, tables, box plots, montages and one page that shows them all."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from custom import __version__
from custom.benchmark import summary
from custom.benchmark.jobs import DONE, Job, Plan, slug
from custom.core.files import write_bytes, write_json
from custom.metrics.tables import write_csv
from custom.report.boxplots import method_boxplots
from custom.report.document import Document
from custom.report.montage import Panel, montage

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

    Returns:
        The page.
    """
    rows = [_ordered(row) for job in plan.jobs for row in plan.rows(job) or []]
    names = summary.measured_names(rows)
    compared = [n for n in names if n not in (*_TWICE, "seconds", "memory_mb")]
    tests = summary.paired_tests(rows, reference, compared)
    write_csv(_filled(rows, names), plan.output / f"{STEM}.csv")
    if tests:
        write_csv(tests, plan.output / "paired.csv")
    write_bytes(plan.output / f"{STEM}.md", summary.markdown(rows, tests).encode())
    record = settings(plan, rows)
    content = {**record, "means": _means(rows, names), "paired": tests}
    write_json(plan.output / f"{STEM}.json", content, sort_keys=False)
    views = [views.name for views in plan.cohort.views]
    boxes = {name: _boxes(rows, name, plan.output / "figures" / f"{name}.png", views) for name in compared}
    pictures = _montages(plan, montages, names[0] if names else "")
    document = _page(plan, rows, tests, record, title)
    _show_boxes(document, {name: path for name, path in boxes.items() if path is not None})
    _show_montages(document, pictures)
    _show_settings(document, record)
    return document.write(plan.output / f"{STEM}.html")


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


def _page(
    plan: Plan,
    rows: Sequence[Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
    title: str,
) -> Document:
    """The page with its tables."""
    names = summary.measured_names(rows)
    tables = summary.cells(rows, names)
    columns = [views.name for views in plan.cohort.views]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    patients, (low, high) = record["patients"], record["hu_window"]
    shape, spacing = record["grid"]["shape"], record["grid"]["spacing_mm"]
    few = patients < summary.MIN_PATIENTS_FOR_INTERVAL
    document = Document(
        title,
        f"{len(methods)} methods, {len(columns)} view sets, {len(plan.cohort.cases)} cases of {patients} patients, "
        f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{s:g}' for s in spacing)} mm. All methods saw the same "
        f"radiographs; both volumes are clipped to {low:g} to {high:g} HU and compared over the whole cube. "
        f"{record['software']}, {record['machine']}.",
    )
    document.section("Tables")
    document.paragraph(
        "Means over the patients; the best of a view set is bold. "
        + ("Fewer than five patients: no interval and no test, see every patient below. " if few else "")
        + ("In brackets the bootstrap 95% interval of the mean. " if not few else "")
        + "PSNR 4095 takes the peak of a 12-bit scanner, PSNR the width of the HU window: the same error, never to be "
        "compared with each other."
    )
    for name in names:
        best = summary.best_cells(tables[name], name) if name not in ("seconds", "memory_mb") else set()
        cells = [[m, *[summary.cell_text(name, tables[name].get((m, v))) for v in columns]] for m in methods]
        bold = [(methods.index(method), columns.index(views) + 1) for method, views in best]
        document.table(["method", *columns], cells, summary.metric_name(name), bold)
    _show_guides(document, record)
    if tests:
        document.section("Paired tests")
        document.paragraph(
            f"Method minus {tests[0]['reference']}, patient by patient: mean difference, its bootstrap 95% interval, "
            "Wilcoxon's signed-rank test, and its p adjusted by Holm for the methods of the same metric and view set. "
            "With five patients the smallest p is 0.06."
        )
        head = ["metric", "views", "method", "difference", "95% interval", "p", "p (Holm)"]
        document.table(head, [summary.paired_texts(test) for test in tests], words=(1, 2))
    if names and patients <= summary.MOST_PATIENTS_SHOWN:
        _show_patients(document, rows, names[0], columns, methods)
    missing = summary.gaps(rows)
    if missing:
        document.section("Without a volume")
        keys = ("method", "views", "cases", "status", "reason")
        document.table(keys, [[gap[key] for key in keys] for gap in missing], words=(1, 2, 3, 4))
    return document


def _show_guides(document: Document, record: Mapping[str, Any]) -> None:
    guided = [method["name"] for method in record["methods"] if method["judge_is_guide"]]
    if guided:
        document.paragraph(
            f"The segmenter that judges has guided the training of {', '.join(guided)}: its DSC is what was trained "
            "for. Let a segmenter that was trained apart judge too."
        )


def _show_patients(
    document: Document, rows: Sequence[Mapping[str, Any]], name: str, columns: Sequence[str], methods: Sequence[str]
) -> None:
    patients, table = summary.patient_cells(rows, name)
    document.section("Every patient")
    lines = []
    for method in methods:
        for patient in patients:
            by_views = table.get((method, patient), {})
            lines.append([method, patient, *[summary.shown(name, by_views.get(views, math.nan)) for views in columns]])
    document.table(["method", "patient", *columns], lines, summary.metric_name(name), words=(1,))


def _show_boxes(document: Document, boxes: Mapping[str, Path]) -> None:
    if not boxes:
        return
    document.section("Box plots")
    document.paragraph("Every case is a dot; boxes appear from five cases on.")
    for name, path in boxes.items():
        document.picture(path, f"{summary.metric_name(name)} of every case by view set and method")


def _show_montages(document: Document, pictures: Sequence[tuple[str, str, Path]]) -> None:
    if not pictures:
        return
    document.section("Montages")
    document.paragraph(
        "The patient's right is on the left. Differences: blue where a method is too thin, orange where too dense."
    )
    for number, (case, views, path) in enumerate(pictures):
        document.begin_details(f"{case}, view set {views}", opened=number == 0)
        document.picture(path, f"Slices of {case} from view set {views}: truth and every method", photograph=True)
        document.end_details()


def _show_settings(document: Document, record: Mapping[str, Any]) -> None:
    document.section("Settings")
    document.table(
        ["view set", "beam", "angles [degrees]"],
        [[n, v["beam"], ", ".join(f"{a:g}" for a in v["angles_deg"])] for n, v in record["view_sets"].items()],
        words=(1, 2),
    )
    rows = []
    for method in record["methods"]:
        content = ", ".join(f"{key}: {value}" for key, value in method["content"].items())
        hashes = ", ".join(f"{Path(file).name} {digest[:12]}" for file, digest in method["files"].items())
        rows.append([method["name"], content, hashes])
    document.table(["method", "as given", "files, SHA-256"], rows, words=(1, 2))
    document.paragraph(f"Cases of {record['datalist']}: {', '.join(record['cases'])}.")
