"""The comparison in one process, from Python: rows of methods, columns of view sets, the test patients of a cohort.

The command `fewview-ct benchmark` (`custom.benchmark.comparison`) does the same for methods that a file names, resumes,
and writes a page; this is what scripts with methods of their own use.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from nibabel import nifti1
from torch import Tensor
from tqdm import tqdm

from custom.benchmark.methods import METRICS, VIEW_SETS, Method, read_volume
from custom.core.attenuation import hu_to_attenuation
from custom.data.datalist import load_cases
from custom.data.transforms import LoadRadiographsd
from custom.geometry import Geometry, VolumeGrid
from custom.metrics import evaluate_volume
from custom.projection import Projector

__all__ = ["benchmark", "same_operator_rows", "write_tables"]

logger = logging.getLogger(__name__)


def _stored(cases: Mapping[str, Mapping[str, Any]], case: str, angles: Sequence[float]) -> tuple[Tensor, Tensor]:
    entry = cases[case]
    loaded = LoadRadiographsd(angles_deg=angles)({"image": entry["image"], "geometry": entry["geometry"]})
    return loaded["image"], loaded["views"]


def benchmark(
    methods: Iterable[Method],
    radiographs: Mapping[str, str | os.PathLike[str]],
    output: str | os.PathLike[str],
    part: str = "test",
    view_sets: Mapping[str, tuple[str, Sequence[float]]] | None = None,
    shuffled: Method | None = None,
    metrics: Sequence[str] = METRICS,
    known: Sequence[Mapping[str, Any]] = (),
    grid: VolumeGrid | None = None,
) -> list[dict[str, Any]]:
    """Run every method on every case and view set; write `benchmark.csv` and `benchmark.md`.

    Args:
        methods: rows.
        radiographs: radiograph set to the datalist that `simulate` wrote for it, {"parallel": ..., "cone": ...}.
        output: folder.
        part: of the datalist.
        view_sets: columns, `VIEW_SETS` by default; those whose radiograph set is not given are left out.
        shuffled: also run this method with the radiographs of the next patient.
        metrics: to measure.
        known: rows of an earlier run, which are taken over and not measured again.
        grid: of the comparison, the prepared cube in larger voxels; truth and results are averaged to it.

    Returns:
        One mapping per case, method and view set, as in the CSV. `seconds` is wall time of the reconstruction.
    """
    cohorts = {name: {case["case"]: case for case in load_cases(path, part)} for name, path in radiographs.items()}
    names = list(next(iter(cohorts.values())))
    columns = {k: v for k, v in (view_sets or VIEW_SETS).items() if v[0] in cohorts}
    jobs = [(method, False) for method in methods] + ([(shuffled, True)] if shuffled else [])
    found = {(row["case"], row["method"], row["views"]): dict(row) for row in known}
    rows: list[dict[str, Any]] = []
    for index, case in enumerate(tqdm(names, desc="benchmark", unit="case", disable=None)):
        truth = read_volume(next(iter(cohorts.values()))[case]["label"])
        if grid is not None:
            truth = _averaged(truth, grid)
        for column, (kind, angles) in columns.items():
            for method, other in jobs:
                name = f"{method.name}, another patient's radiographs" if other else method.name
                if method.columns is not None and column not in method.columns:
                    continue
                if (case, name, column) in found:
                    rows.append(found[case, name, column])
                    continue
                shown = names[(index + 1) % len(names)] if other else case
                image, views = _stored(cohorts[kind], shown, angles)
                start = time.perf_counter()
                pred = method.run(image, views)
                seconds = time.perf_counter() - start
                if grid is not None:
                    pred = _averaged(pred, grid)
                values = evaluate_volume(pred, truth, names=metrics)
                rows.append({"case": case, "method": name, "views": column, **values, "seconds": seconds})
                logger.info("%s, %s, %s views: %.2f dB", case, name, column, values["psnr_range"])
    write_tables(rows, output)
    return rows


def _averaged(hu: Tensor, grid: VolumeGrid) -> Tensor:
    return F.adaptive_avg_pool3d(hu[None], grid.shape)[0]


def write_tables(rows: Sequence[Mapping[str, Any]], output: str | os.PathLike[str]) -> None:
    """`benchmark.csv`, every case; `benchmark.md`, the mean of each metric, then `psnr_range` of every patient."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    _replace(folder / "benchmark.csv", text.getvalue())
    columns = list(dict.fromkeys(row["views"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    lines = []
    for metric in [m for m in (*METRICS, "seconds") if m in rows[0]]:
        lines += [f"Mean `{metric}` of {len(cases)} patients:", "", _header("method", columns)]
        for method in methods:
            cells = [[r[metric] for r in rows if r["method"] == method and r["views"] == c] for c in columns]
            digits = 3 if metric == "ssim" else 2
            lines.append(
                f"| {method} | " + " | ".join(f"{statistics.fmean(x):.{digits}f}" if x else "" for x in cells) + " |"
            )
        lines.append("")
    lines += ["`psnr_range` of every patient:", "", _header("method | patient", columns)]
    for method in methods:
        for case in cases:
            found = {r["views"]: r["psnr_range"] for r in rows if r["method"] == method and r["case"] == case}
            texts = [f"{found[c]:.2f}" if c in found else "" for c in columns]
            lines.append(f"| {method} | {case} | " + " | ".join(texts) + " |")
    _replace(folder / "benchmark.md", "\n".join(lines) + "\n")


def _header(first: str, columns: Sequence[str]) -> str:
    count = first.count("|") + 1
    return f"| {first} | " + " | ".join(columns) + " |\n|" + "---|" * (count + len(columns))


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def same_operator_rows(
    methods: Callable[[VolumeGrid], Sequence[Method]],
    data_list_file: str | os.PathLike[str],
    part: str = "test",
    size: int = 64,
    energy_kev: float = 70.0,
    metrics: Sequence[str] = ("psnr_range", "ssim"),
) -> list[dict[str, Any]]:
    """The easy setting, for comparison with figures elsewhere: the cube at `size`^3, parallel beam, no noise, and the
    same operator simulates and reconstructs.

    Args:
        methods: from the coarse grid to rows; a row may answer on a finer grid, which is averaged down.
        data_list_file: prepared cohort.
        part: of it.
        size: voxels per side.
        energy_kev: of the line integrals.
        metrics: to measure.
    """
    rows: list[dict[str, Any]] = []
    for case in load_cases(data_list_file, part):
        cube = nifti1.load(case["label"])
        side = float(cube.header.get_zooms()[0]) * cube.shape[0]
        grid = VolumeGrid.cube(size, side)
        truth = F.adaptive_avg_pool3d(read_volume(case["label"])[None], size)[0].clamp(-1000, 1000)
        for column, (kind, angles) in VIEW_SETS.items():
            if kind != "parallel":
                continue
            geometry = Geometry.from_angles(angles, beam="parallel", grid=grid)
            projector = Projector.from_geometry(geometry)
            image = projector(hu_to_attenuation(truth[None, None], energy_kev))[0]
            for method in methods(grid):
                pred = F.adaptive_avg_pool3d(method.run(image, geometry.tensor())[None], size)[0]
                values = evaluate_volume(pred, truth, names=metrics)
                rows.append({"case": case["case"], "method": method.name, "views": column, **values})
    return rows
