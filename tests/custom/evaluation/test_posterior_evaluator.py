"""Samples of cases in files: what is written, what a kill leaves, and the error against the radiographs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from custom.core.attenuation import hu_to_attenuation
from custom.evaluation.posterior_evaluator import PosteriorEvaluator, reprojection_error_mm
from custom.geometry import Geometry
from custom.projection import Projector
from custom.projection.data_consistency import ReprojectionCorrection
from custom.sampling import PosteriorSampler
from custom.training.prepare_batch import StoredRadiographs
from tests.custom.networks.tiny_diffusion import GRID, autoencoder, denoiser


def chest() -> Tensor:
    """Water in air, (16, 16, 16) HU."""
    radius = GRID.points().norm(dim=-1)
    return torch.where(radius < 120, 0.0, -1000.0)


def case() -> dict[str, Any]:
    geometry = Geometry.from_angles([0.0, 90.0], "parallel", grid=GRID, detector_shape=(16, 24))
    image = Projector.from_geometry(geometry)(hu_to_attenuation(chest()[None, None], 70.0))
    views = geometry.tensor()[None]
    mask = torch.ones(1, 2, dtype=torch.bool)
    return {"image": image, "views": views, "view_mask": mask, "label": chest()[None, None], "case": ["p1"]}


def evaluator(
    folder: Path, samples: int = 3, cases: tuple[str, ...] = ("p1",), final: int = 0, **options: Any
) -> PosteriorEvaluator:
    network = denoiser()
    correction = ReprojectionCorrection(GRID, final) if final else None
    sampler = PosteriorSampler(network, autoencoder(), network.scheduler(), steps=2, final_consistency=correction)
    return PosteriorEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{**case(), "case": [name]} for name in cases],
        network=sampler,
        prepare_batch=StoredRadiographs(),
        samples=samples,
        output_dir=folder,
        decollate=False,
        **options,
    )


def run_and_kill(made: PosteriorEvaluator, at: int) -> None:
    """Interrupted in the batch of samples of that number."""
    solve, calls = made.network._solve, []

    def dying(*args: Any) -> Tensor:
        calls.append(args)
        if len(calls) == at:
            raise KeyboardInterrupt
        return solve(*args)

    made.network._solve = dying
    with pytest.raises(KeyboardInterrupt):
        made.run()


def test_the_error_against_the_radiographs_is_that_of_the_volume() -> None:
    stored = case()
    own = reprojection_error_mm(chest(), stored["image"][0], stored["views"][0], GRID, 70.0)
    assert own == pytest.approx(0, abs=1e-3)
    air = reprojection_error_mm(torch.full(GRID.shape, -1000.0), stored["image"][0], stored["views"][0], GRID, 70.0)
    paths = Projector(GRID, (16, 24))((chest()[None, None] + 1000) / 1000, stored["views"][0])
    assert air == pytest.approx(float(paths.square().mean().sqrt()), rel=1e-3)


def test_a_case_is_written_and_the_engine_has_the_mean(tmp_path: Path) -> None:
    made = evaluator(tmp_path, keep_samples=True, context={"model": "x"})
    made.run()
    content = json.loads((tmp_path / "p1/uncertainty.json").read_text())
    assert content["model"] == "x" and content["views"] == 2 and content["summary"]["samples"] == 3
    assert content["atlas"] is None
    names = {path.name for path in (tmp_path / "p1").iterdir()}
    assert {"mean.nii.gz", "std.nii.gz", "squared_bias.nii.gz", "samples.csv", "uncertainty.png"} <= names
    assert {f"sample_000{n}.nii.gz" for n in range(3)} <= names and "state.pt" not in names
    assert made.state.output["pred"].shape == (1, 1, *GRID.shape)  # type: ignore[index]


def test_a_kill_between_batches_loses_nothing(tmp_path: Path) -> None:
    evaluator(tmp_path / "whole").run()
    killed = evaluator(tmp_path / "parts")
    run_and_kill(killed, at=3)
    assert (tmp_path / "parts/p1/state.pt").is_file() and not (tmp_path / "parts/p1/mean.nii.gz").exists()
    evaluator(tmp_path / "parts").run()
    for name in ("mean.nii.gz", "std.nii.gz"):
        assert (tmp_path / "parts/p1" / name).read_bytes() == (tmp_path / "whole/p1" / name).read_bytes()
    tables = [list(csv.DictReader((tmp_path / f / "p1/samples.csv").open())) for f in ("parts", "whole")]
    assert tables[0] == tables[1] and len(tables[0]) == 3


def test_the_error_before_the_correction_at_the_end_stands_beside_that_after_it(tmp_path: Path) -> None:
    for folder, final in ((tmp_path / "off", 0), (tmp_path / "on", 10)):
        evaluator(folder, final=final).run()
    off, on = (json.loads((tmp_path / name / "p1/uncertainty.json").read_text()) for name in ("off", "on"))
    assert off["consistency_final"] == 0 and not any(key.startswith("sample_") for key in off)
    assert on["consistency_final"] == 10 and on["consistency_weight"] == 0
    before, after = on["sample_reprojection_error_mm_before"], on["sample_reprojection_error_mm"]
    assert after < 0.5 * before and on["reprojection_error_mm"] < off["reprojection_error_mm"]
    rows = list(csv.DictReader((tmp_path / "on/p1/samples.csv").open()))
    assert len(rows) == 3 and float(rows[0]["psnr_range"]) > 0
    assert before == pytest.approx(sum(float(row["sample_reprojection_error_mm_before"]) for row in rows) / 3)


def test_without_a_truth_errors_are_kept_over_a_kill_too(tmp_path: Path) -> None:
    def without_truth(folder: Path) -> PosteriorEvaluator:
        made = evaluator(folder, final=2)
        for batch in made.data_loader:  # type: ignore[union-attr]
            batch.pop("label")
        return made

    without_truth(tmp_path / "whole").run()
    killed = without_truth(tmp_path / "parts")
    run_and_kill(killed, at=3)
    without_truth(tmp_path / "parts").run()
    tables = [(tmp_path / f / "p1/samples.csv").read_text() for f in ("parts", "whole")]
    assert tables[0] == tables[1] and tables[0].count("\n") == 4


def test_cases_that_are_done_are_not_drawn_again_after_a_kill(tmp_path: Path) -> None:
    killed = evaluator(tmp_path, cases=("p1", "p2"))
    solve, calls = killed.network._solve, []
    run_and_kill(killed, at=5)
    again = evaluator(tmp_path, cases=("p1", "p2"))
    again.network._solve = lambda *args: (calls.append(args), solve(*args))[1]
    calls.clear()
    again.run()
    assert len(calls) == 2, "three samples of the first case and one of the second were kept"
    assert not list(tmp_path.rglob("state.pt"))


def test_samples_of_another_run_do_not_stand_among_those_of_this_one(tmp_path: Path) -> None:
    evaluator(tmp_path, samples=4, keep_samples=True).run()
    evaluator(tmp_path, samples=2).run()
    assert len(list(csv.DictReader((tmp_path / "p1/samples.csv").open()))) == 2
    assert not list(tmp_path.rglob("sample_*.nii.gz"))


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "p1").mkdir()
    (tmp_path / "p1/state.pt").write_bytes(b"half of a file")
    with pytest.raises(ValueError, match=r"p1/state\.pt: the samples so far cannot be read: remove it"):
        evaluator(tmp_path).run()


def test_one_sample_has_no_spread(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="samples must be at least 2"):
        evaluator(tmp_path, samples=1)
