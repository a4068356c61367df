"""The table of ldm_recon: single samples and their mean beside inr_recon and simple methods, and what the spread says.

    python scripts/benchmark_posterior.py data/prepared/datalist_fine_parallel.json outputs/posterior \
        --autoencoder outputs/vqgan/models/model.pt --models "{'ldm_recon': 'outputs/ldm/models/model.pt'}"

Every view set is evaluated by evaluate.json of the bundle, in a folder of its own with maps and pictures; a killed run
goes on with the next sample. Then come the simple rows, on the same grid and radiographs, and benchmark.md, spread.md.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigWorkflow

from custom.benchmark import VIEW_SETS, benchmark, mean_training_ct, network_row, sirt_row, write_tables
from custom.core.checkpoints import load_checkpoint
from custom.core.files import write_bytes
from custom.metrics.tables import read_csv

CONFIGS = Path(__file__).resolve().parents[1] / "bundles" / "ldm_recon" / "configs"
METRICS = ("psnr_range", "psnr_4095", "ssim")
SPREAD = {
    "std_hu_body": "spread [HU]",
    "rmse_mean_hu_body": "error of the mean [HU]",
    "variance_ratio": "variance / error²",
    "coverage_90": "in the 90% interval",
    "spearman_std_error": "rank correlation of spread and error",
}


def _evaluate(folder: Path, preset: str, options: Mapping[str, Any]) -> None:
    if (folder / "metrics_mean.csv").is_file():
        return
    files = [
        CONFIGS / "train.json",
        *([CONFIGS / "presets" / f"{preset}.json"] if preset else []),
        CONFIGS / "evaluate.json",
    ]
    workflow = ConfigWorkflow(
        [str(file) for file in files],
        workflow_type="eval",
        logging_file=False,
        run_id="evaluating",
        output_dir=str(folder),
        **options,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def _rows(folder: Path, name: str, column: str) -> list[dict[str, Any]]:
    """A single sample, as the average of all samples' metrics, and the mean of the samples."""
    rows = []
    for mean in read_csv(folder / "metrics_mean.csv"):
        samples = read_csv(folder / mean["case"] / "samples.csv")
        single = {metric: statistics.fmean(row[metric] for row in samples) for metric in METRICS}
        entry = {"case": mean["case"], "views": column}
        rows.append({**entry, "method": f"{name}, a single sample", **single})
        rows.append({**entry, "method": f"{name}, mean of {len(samples)}", **{m: mean[m] for m in METRICS}})
    return rows


def _spread(folder: Path) -> dict[str, float]:
    found = [json.loads(path.read_text())["summary"] for path in sorted(folder.glob("*/uncertainty.json"))]
    return {key: statistics.fmean(summary[key] for summary in found) for key in SPREAD}


def main(
    data_list_file: str,
    output: str,
    models: dict[str, str],
    autoencoder: str,
    mean_checkpoints: dict[str, str] | None = None,
    inr_recon: str | None = "bundles/inr_recon/models/model.pt",
    preset: str = "",
    part: str = "test",
    samples: int = 16,
    columns: Sequence[str] = ("1 frontal", "1 lateral", "2", "4", "8"),
    shuffled: Sequence[str] = ("2",),
    options: dict[str, Any] | None = None,
) -> None:
    """Write benchmark.csv and .md, and spread.md.

    Args:
        data_list_file: datalist of `simulate`, parallel beam.
        output: folder.
        models: row name to model.pt of ldm_recon.
        autoencoder: model.pt of the vqgan.
        mean_checkpoints: row name to the model.pt of inr_recon that this denoiser is told the reconstruction of.
        inr_recon: checkpoint of a row of its own; None for no such row.
        preset: of both bundles, as in training.
        part: of the datalist.
        samples: N.
        columns: view sets.
        shuffled: view sets for which the radiographs of the next patient are tried too.
        options: more keys of evaluate.json, such as {"steps": 10}.
    """
    folder, means = Path(output), mean_checkpoints or {}
    grid = load_checkpoint(autoencoder).network().grid
    rows: list[dict[str, Any]] = []
    spread: list[tuple[str, str, dict[str, float]]] = []
    for name, model in models.items():
        for column in columns:
            for other in (False, True) if column in shuffled else (False,):
                row_name = f"{name}, another patient's radiographs" if other else name
                place = folder / row_name.replace(" ", "_") / column.replace(" ", "_")
                common = {
                    "data_list_file": data_list_file,
                    "data_list_key": part,
                    "model_file": model,
                    "autoencoder_checkpoint": autoencoder,
                    "mean_checkpoint": means.get(name),
                    "val_angles_deg": list(VIEW_SETS[column][1]),
                    "shuffle_radiographs": other,
                    "samples": samples,
                }
                _evaluate(place, preset, {**common, **(options or {})})
                rows += _rows(place, row_name, column)
                if not other:
                    spread.append((name, column, _spread(place)))
    average = mean_training_ct(data_list_file)
    methods = [average, sirt_row(grid), sirt_row(grid, start=average)]
    if inr_recon is not None:
        methods.append(network_row("inr_recon", inr_recon, grid))
    sets = {column: VIEW_SETS[column] for column in columns}
    simple = benchmark(methods, {"parallel": data_list_file}, folder / "simple", part, sets, metrics=METRICS, grid=grid)
    write_tables([{key: row[key] for key in ("case", "method", "views", *METRICS)} for row in (*simple, *rows)], folder)
    lines = ["| model | views | " + " | ".join(SPREAD.values()) + " |", "|" + "---|" * (2 + len(SPREAD))]
    for name, column, values in spread:
        lines.append(f"| {name} | {column} | " + " | ".join(f"{values[key]:.3g}" for key in SPREAD) + " |")
    write_bytes(folder / "spread.md", ("\n".join(lines) + "\n").encode())
    print((folder / "benchmark.md").read_text(), (folder / "spread.md").read_text(), sep="\n")


if __name__ == "__main__":
    fire.Fire(main)
