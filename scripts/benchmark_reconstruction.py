"""The headline table: simple methods and trained networks on the test patients.

    fewview-ct prepare INPUT data/prepared --split split.json
    fewview-ct simulate data/prepared/datalist.json --name fine_parallel
    fewview-ct simulate data/prepared/datalist.json --name fine_cone --beam cone --angles_deg "[0,90]"
    python scripts/benchmark_reconstruction.py data/prepared out \
        --networks "{'inr_recon default': 'bundles/inr_recon/models/model.pt'}"
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import fire
import torch

from custom.benchmark import (
    Method,
    benchmark,
    mean_training_ct,
    network_row,
    same_operator_rows,
    sirt_row,
    write_tables,
)
from custom.geometry import VolumeGrid
from custom.metrics.tables import read_csv


def main(
    prepared: str,
    output: str,
    networks: dict[str, str] | None = None,
    part: str = "test",
    easy: bool = True,
    columns: dict[str, list[str]] | None = None,
    keep: list[str] | None = None,
) -> None:
    """Write benchmark.csv and benchmark.md to `output`, and to `output`/same_operator_64 the easy setting at 64^3.

    Args:
        prepared: folder of `prepare` and `simulate` (datalists datalist_fine_parallel.json, datalist_fine_cone.json).
        output: folder.
        networks: row name to checkpoint. The first is also run with another patient's radiographs.
        part: of the datalist.
        easy: also run the easy setting.
        columns: for networks that are not run on all view sets: row name to names of view sets.
        keep: names of rows that are taken from the benchmark.csv that is in `output` already.
    """
    folder = Path(prepared)
    sets = {kind: folder / f"datalist_fine_{kind}.json" for kind in ("parallel", "cone")}
    mean = mean_training_ct(folder / "datalist.json")

    def simple(grid: VolumeGrid) -> list[Method]:
        return [mean, sirt_row(grid), sirt_row(grid, start=mean)]

    trained = [network_row(name, path, columns=(columns or {}).get(name)) for name, path in (networks or {}).items()]
    known = [row for row in read_csv(Path(output) / "benchmark.csv") if row["method"] in keep] if keep else []
    control = trained[0] if trained else None
    benchmark([*simple(VolumeGrid()), *trained], sets, output, part, shuffled=control, known=known)
    if easy:

        def easy_rows(grid: VolumeGrid) -> list[Method]:
            first = list((networks or {}).items())[:1]
            return [*simple(grid), *(network_row(name, path, grid) for name, path in first)]

        found = same_operator_rows(easy_rows, folder / "datalist.json", part)
        write_tables(found, Path(output) / "same_operator_64")
    print((Path(output) / "benchmark.md").read_text())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")


if __name__ == "__main__":
    fire.Fire(main)
