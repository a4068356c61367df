"""What the spread of ldm_recon's samples says, by number of views. Their table is `fewview-ct benchmark`'s.

    python scripts/benchmark_posterior.py data/prepared/datalist_fine_parallel.json outputs/spread \
        outputs/ldm/models/model.pt --autoencoder outputs/vqgan/models/model.pt

Every view set is evaluated by evaluate.json of the bundle, in a folder of its own with maps and pictures; a killed run
goes on with the next sample.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigWorkflow

from custom.benchmark import VIEW_SETS
from custom.core.files import read_json_object, sha256_file, write_bytes, write_json
from custom.metrics.tables import read_csv

CONFIGS = Path(__file__).resolve().parents[1] / "bundles" / "ldm_recon" / "configs"
SPREAD = {
    "std_hu_body": "spread [HU]",
    "rmse_mean_hu_body": "error of the mean [HU]",
    "variance_ratio": "variance / error²",
    "coverage_90": "in the 90% interval",
    "spearman_std_error": "rank correlation of spread and error",
}


def _evaluate(folder: Path, preset: str, options: Mapping[str, Any]) -> None:
    files = [
        CONFIGS / "train.json",
        *([CONFIGS / "presets" / f"{preset}.json"] if preset else []),
        CONFIGS / "evaluate.json",
    ]
    named = {key: Path(str(value)) for key, value in options.items()} | {file.name: file for file in files}
    hashes = {key: sha256_file(path) for key, path in named.items() if path.is_file()}
    made_from = json.loads(json.dumps({"options": dict(options), "sha256": hashes}))
    done = folder / "made_from.json"
    if done.is_file() and read_json_object(done) == made_from:
        return
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
    write_json(done, made_from)


def _spread(folder: Path) -> dict[str, float]:
    found = [json.loads(path.read_text())["summary"] for path in sorted(folder.glob("*/uncertainty.json"))]
    spread = {key: statistics.fmean(summary[key] for summary in found) for key in SPREAD}
    rows = [row for path in folder.glob("*/samples.csv") for row in read_csv(path)]
    bands = [key for key in rows[0] if key.startswith("spectrum_")]
    return spread | {key: statistics.fmean(float(row[key]) for row in rows) for key in bands}


def main(
    data_list_file: str,
    output: str,
    model: str,
    autoencoder: str,
    mean_checkpoint: str | None = None,
    preset: str = "",
    part: str = "test",
    samples: int = 16,
    columns: Sequence[str] = ("1 frontal", "1 lateral", "2", "4", "8"),
    options: dict[str, Any] | None = None,
) -> None:
    """Write spread.md, and a folder for every view set.

    Args:
        data_list_file: datalist of `simulate`, parallel beam.
        output: folder.
        model: model.pt of ldm_recon.
        autoencoder: model.pt of the vqgan.
        mean_checkpoint: model.pt of the inr_recon that this denoiser is told the reconstruction of.
        preset: of both bundles, as in training.
        part: of the datalist.
        samples: N.
        columns: view sets.
        options: more keys of evaluate.json, such as {"steps": 10}.
    """
    folder = Path(output)
    lines: list[str] = []
    for column in columns:
        place = folder / column.replace(" ", "_")
        settings = {
            "data_list_file": data_list_file,
            "data_list_key": part,
            "model_file": model,
            "autoencoder_checkpoint": autoencoder,
            "mean_checkpoint": mean_checkpoint,
            "val_angles_deg": list(VIEW_SETS[column][1]),
            "samples": samples,
        }
        _evaluate(place, preset, {**settings, **(options or {})})
        found = _spread(place)
        if not lines:
            names = [SPREAD.get(key, key.replace("_", " ")) for key in found]
            lines = ["| views | " + " | ".join(names) + " |", "|" + "---|" * (1 + len(names))]
        lines.append(f"| {column} | " + " | ".join(f"{value:.3g}" for value in found.values()) + " |")
    write_bytes(folder / "spread.md", ("\n".join(lines) + "\n").encode())
    print((folder / "spread.md").read_text())


if __name__ == "__main__":
    fire.Fire(main)
