"""`fewview-ct benchmark` on a tiny cohort: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.benchmark import benchmark_page, comparison, jobs, methods_file
from custom.benchmark.comparison import compare
from custom.benchmark.methods import Method
from custom.core.checkpoints import save_checkpoint
from custom.geometry import Geometry, VolumeGrid
from custom.metrics import evaluate_volume
from custom.metrics.tables import read_csv
from custom.networks.segmentation_unet import SegmentationUNet
from custom.segmentation.dice import SegmenterDice
from tests.custom.benchmark.tiny_benchmark import GRID, patient, write_methods, write_toy_bundle

METRICS = "psnr_range,ssim,mae_hu"


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Box plots take more time than all else on a cohort like this."""
    monkeypatch.setattr(benchmark_page, "method_boxplots", lambda rows, path, metric, groups: None)


def rows_of(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["method"], row["views"], row["case"]): row for row in read_csv(folder / "benchmark.csv")}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every call of SIRT as (method, number of views); it gives what a real one would, faster."""
    made: list[tuple[str, int]] = []

    def row(grid: Any, iterations: int = 100, start: Method | None = None) -> Method:
        def run(image: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
            made.append(("sirt" if start is None else "sirt_from_mean", len(views)))
            return torch.full(grid.shape, -500.0)

        return Method("SIRT" if start is None else "SIRT from the mean", run, grid=grid)

    monkeypatch.setattr(methods_file, "sirt_row", row)
    return made


def test_one_folder_with_everything(cohort: Path, tmp_path: Path) -> None:
    """Real SIRT and a user's own method, made for two views: tables, pictures, and why a cell is empty."""
    bundle = write_toy_bundle(tmp_path)
    methods = write_methods(
        tmp_path,
        "mean_training_ct",
        {"simple": "sirt", "options": {"iterations": 3}, "name": "SIRT <3>", "shuffled": ["2"]},
        {"name": "mine", "bundle": str(bundle)},
    )
    out = tmp_path / "out"
    compare(str(cohort), str(methods), str(out), metrics=METRICS, volumes=True, montages=1)
    rows = rows_of(out)
    assert len(rows) == 2 * (2 + 2 + 1 + 2)
    assert rows["SIRT <3>", "2", "case2"]["psnr_range"] > rows["SIRT <3>", "1", "case2"]["psnr_range"]
    shuffled = rows["SIRT <3>, another patient's radiographs", "2", "case2"]["psnr_range"]
    assert rows["SIRT <3>", "2", "case2"]["psnr_range"] > shuffled + 3
    refused = rows["mine", "1", "case3"]
    assert refused["status"] == jobs.REFUSED
    assert refused["error"] == "this method is made for two views, got 1"
    assert np.isnan(refused["psnr_range"])
    done = rows["mine", "2", "case3"]
    expected = evaluate_volume(torch.full(GRID.shape, 500.0), patient(120.0), names=("psnr_range", "ssim", "mae_hu"))
    assert {name: done[name] for name in expected} == pytest.approx(expected)
    assert done["seconds"] > 0
    table = (out / "benchmark.md").read_text()
    assert "| mine | 1 | all | not supported | this method is made for two views, got 1 |" in table
    assert "95% interval" not in table
    assert not (out / "paired.csv").exists(), "two patients allow no test"
    page = (out / "benchmark.html").read_text()
    for words in ("SIRT &lt;3&gt;", "this method is made for two views", "data:image/png;base64,", "data:image/jpeg"):
        assert words in page
    assert (out / "figures/psnr_range.png").is_file()
    assert len(list((out / "montages").rglob("*.png"))) == 2
    volume = nib.load(next((out / "volumes").glob("mine*/2/case3.nii.gz")))
    np.testing.assert_allclose(volume.affine, nib.load(cohort.parent / "case3.nii.gz").affine)
    assert np.asarray(volume.dataobj).min() == 500
    record = json.loads((out / "benchmark.json").read_text())
    assert str(bundle / "models/model.pt") in record["methods"][2]["files"]


@pytest.mark.parametrize("content", ["[]", "5", "{}", '{"fingerprint": 1}', "[" * 9999, "\ufeff", "", "{"])
def test_a_damaged_result_is_made_again(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = object.__new__(jobs.Plan)
    monkeypatch.setattr(jobs.Plan, "path", lambda self, job: tmp_path / "job.json")
    monkeypatch.setattr(jobs.Plan, "fingerprint", lambda self, job: 1)
    (tmp_path / "job.json").write_text(content)
    assert plan.rows(None) is None  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_pictures")
def test_a_killed_run_goes_on_and_only_changes_are_made_anew(
    cohort: Path, tmp_path: Path, calls: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_toy_bundle(tmp_path) / "models/model.pt"
    methods = write_methods(tmp_path, "sirt", {"name": "mine", "bundle": str(weights.parents[1])})
    out = tmp_path / "out"
    run = jobs._run

    def killed(plan: Any, job: Any, *others: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(plan, job, *others)

    monkeypatch.setattr(jobs, "_run", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(str(cohort), str(methods), str(out), metrics=METRICS, montages=0)
    assert not (out / "benchmark.csv").exists()
    assert len(list((out / "results").rglob("*.json"))) == 3
    monkeypatch.setattr(jobs, "_run", run)
    compare(str(cohort), str(methods), str(out), metrics=METRICS, montages=0)
    assert calls == [("sirt", 1), ("sirt", 1), ("sirt", 2), ("sirt", 2)]
    first = rows_of(out)
    calls.clear()
    torch.save({"level": torch.tensor(-0.5)}, weights)
    damaged = next((out / "results/SIRT").rglob("*.json"))
    damaged.write_text(damaged.read_text()[:20])
    compare(str(cohort), str(methods), str(out), metrics=METRICS, montages=0)
    assert len(calls) == 1, "only the damaged result is made anew"
    second = rows_of(out)
    assert second["mine", "2", "case2"]["psnr_range"] > first["mine", "2", "case2"]["psnr_range"] + 3
    key = ("SIRT", "2", "case3")
    assert second[key] == first[key], "kept, with the seconds that it took"
    calls.clear()
    compare(str(cohort), str(methods), str(out), metrics="ssim", montages=0)
    assert len(calls) == 4, "other metrics are measured on new reconstructions"


@pytest.mark.usefixtures("no_pictures")
def test_radiographs_of_another_beam_leave_what_is_done_alone(
    cohort: Path, tmp_path: Path, calls: list[tuple[str, int]]
) -> None:
    views = {"2": {"angles_deg": [0, 90]}, "2 cone": {"angles_deg": [0, 90], "beam": "cone"}}
    methods, out = write_methods(tmp_path, "sirt", **views), tmp_path / "out"
    compare(str(cohort), str(methods), str(out), metrics="mae_hu", montages=0)
    assert len(calls) == 2
    content = json.loads(cohort.read_text())
    cone = Geometry.from_angles(
        [0.0, 90.0], beam="cone", grid=GRID, isocenter_mm=Geometry.load(tmp_path / "case2.json").isocenter_mm
    )
    cone.save(tmp_path / "cone.json")
    for entry in content["test"]:
        entry["geometry"] = "cone.json"
    other = tmp_path / "cone_datalist.json"
    other.write_text(json.dumps(content))
    compare(str(cohort), str(methods), str(out), cone_datalist=str(other), metrics="mae_hu", montages=0)
    assert len(calls) == 4
    assert {views for _, views, _ in rows_of(out)} == {"2", "2 cone"}


@pytest.mark.usefixtures("no_pictures")
def test_a_failure_is_a_row_and_can_be_tried_again(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = True

    def row(grid: Any) -> Method:
        def run(image: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
            if broken and len(views) == 2:
                raise RuntimeError("out of\nmemory")
            return torch.full(grid.shape, torch.nan if broken else -500.0)

        return Method("SIRT", run, grid=grid)

    monkeypatch.setattr(methods_file, "sirt_row", row)
    methods, out = write_methods(tmp_path, "sirt", "mean_training_ct"), tmp_path / "out"
    compare(str(cohort), str(methods), str(out), metrics=METRICS, montages=0)
    rows = rows_of(out)
    assert rows["SIRT", "2", "case2"]["status"] == jobs.FAILED
    assert rows["SIRT", "2", "case2"]["error"] == "RuntimeError: out of memory"
    assert "NaN" in rows["SIRT", "1", "case2"]["error"]
    assert rows["mean training CT", "2", "case2"]["status"] == jobs.DONE
    alone = tmp_path / "alone"
    with pytest.raises(RuntimeError, match=r"no method gave a volume: SIRT: .*; see .*benchmark.html"):
        compare(str(cohort), str(write_methods(tmp_path, "sirt")), str(alone), metrics=METRICS, montages=1)
    assert "RuntimeError: out of memory" in (alone / "benchmark.html").read_text(), "a page even without any volume"
    write_methods(tmp_path, "sirt", "mean_training_ct")
    broken = False
    compare(str(cohort), str(methods), str(out), metrics=METRICS, montages=0)
    assert [row["error"] for row in rows_of(out).values()] == [row["error"] for row in rows.values()], (
        "a failure stands until it is tried again"
    )
    compare(str(cohort), str(methods), str(out), metrics=METRICS, montages=0, retry=True)
    assert {row["status"] for row in rows_of(out).values()} == {jobs.DONE}


@pytest.mark.usefixtures("no_pictures")
def test_samples_give_a_row_for_one_and_a_row_for_their_mean(cohort: Path, tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path, target="Levels")
    entry = {"name": "mine", "bundle": str(bundle), "samples": 2, "seed": 10, "view_sets": ["2"]}
    out = tmp_path / "out"
    compare(str(cohort), str(write_methods(tmp_path, entry)), str(out), metrics="rmse_hu", montages=0)
    rows = rows_of(out)
    single, mean = rows["mine, a single sample", "2", "case2"], rows["mine, mean of 2", "2", "case2"]
    levels = [evaluate_volume(torch.full(GRID.shape, hu), patient(80.0))["rmse_hu"] for hu in (-890, -690, -790)]
    assert single["rmse_hu"] == pytest.approx((levels[0] + levels[1]) / 2)
    assert mean["rmse_hu"] == pytest.approx(levels[2])
    assert mean["seconds"] == pytest.approx(2 * single["seconds"])


@pytest.mark.usefixtures("no_pictures")
def test_a_coarser_comparison_averages_truth_and_results(cohort: Path, tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path)
    methods, out = write_methods(tmp_path, {"name": "mine", "bundle": str(bundle)}), tmp_path / "out"
    compare(str(cohort), str(methods), str(out), size=12, metrics="mae_hu,ssim", views="2", montages=0)
    assert json.loads((out / "benchmark.json").read_text())["grid"]["shape"] == [12, 12, 12]
    # 16 to 12 voxels is a ratio of 4/3: the mean HU stays, up to how the coarse voxels weigh the fine ones.
    found, exact = rows_of(out)["mine", "2", "case2"]["mae_hu"], float((500 - patient(80.0)).mean())
    assert found == pytest.approx(exact, rel=0.02)


def test_processes_share_the_jobs(cohort: Path, tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    methods = write_methods(tmp_path, "sirt", "sirt_from_mean")
    window = (-1000.0, 1000.0)
    arguments = [[str(cohort)], str(methods), tmp_path / "out", "test", None, None, None, ["mae_hu"], window, []]
    plan = comparison._plan(*arguments, "cpu", False)  # type: ignore[arg-type]
    pending = plan.pending()
    assert pending == list(range(8))
    for rank in range(2):
        bench = jobs.Bench(plan)
        for index in pending[rank::2]:
            bench.run(index)
    assert plan.pending() == []
    assert len(calls) == 8


@pytest.mark.usefixtures("no_pictures")
def test_segmenters_judge_and_say_whom_they_guided(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two judges: one is a threshold at -500 HU; the column of each has a name of its own."""

    class Judge:
        def __init__(self, path: str, device: Any) -> None:
            self.hash, self.level = f"hash of {path}", -0.5 if path == "a.pt" else 2.0

        def __call__(self, pred: Any, truth: Any, spacing_mm: Any, hu_window: Any = None) -> dict[str, float]:
            assert pred.shape == truth.shape == (1, 16, 16, 16)
            ours, theirs = pred > self.level, truth > self.level
            dice = float(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
            return {"dice": dice, "dice_lung_left": dice}

    monkeypatch.setattr("custom.segmentation.dice.SegmenterDice", Judge)
    monkeypatch.setattr(methods_file.Entry, "guide", lambda self: "hash of a.pt")
    bundle = write_toy_bundle(tmp_path)
    methods, out = (
        write_methods(tmp_path, {"name": "mine", "bundle": str(bundle), "view_sets": ["2"]}),
        tmp_path / "out",
    )
    compare(str(cohort), str(methods), str(out), metrics="mae_hu", segmenters="a.pt,b.pt", montages=0)
    row = rows_of(out)["mine", "2", "case2"]
    inside = float((patient(80.0) > -1).float().mean())
    assert row["dice"] == row["dice_lung_left"] == pytest.approx(2 * inside / (1 + inside))
    assert np.isnan(row["dice2"]), "nothing above 2"
    assert "| mine |" in (out / "benchmark.md").read_text().split("Mean DSC of 2 patients, `dice`")[1]
    assert "has guided the training of mine" in (out / "benchmark.html").read_text()


@pytest.mark.usefixtures("no_pictures")
def test_a_checkpoint_of_seg_guidance_judges(cohort: Path, tmp_path: Path) -> None:
    """Its Dice is that of `SegmenterDice`; one of another voxel size is refused before any work."""
    torch.manual_seed(0)
    unet = {"channels": (4, 8), "num_res_units": 0}
    paths = {
        mm: save_checkpoint(tmp_path / f"{mm}.pt", SegmentationUNet(["heart"], VolumeGrid((16,) * 3, (mm,) * 3), unet))
        for mm in (20.0, 30.0)
    }
    bundle = write_toy_bundle(tmp_path)
    methods = write_methods(tmp_path, {"name": "mine", "bundle": str(bundle), "view_sets": ["2"]})
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"trained on voxels of \(30.0, 30.0, 30.0\) mm"):
        compare(str(cohort), str(methods), str(out), segmenters=f"{paths[20.0]},{paths[30.0]}")
    (tmp_path / "taken").mkdir()
    taken = write_methods(tmp_path / "taken", {"name": "no method", "checkpoint": str(paths[20.0])})
    with pytest.raises(ValueError, match=r"method 'no method': .*a SegmentationUNet does not turn radiographs into"):
        compare(str(cohort), str(taken), str(out))
    assert not out.exists()
    compare(str(cohort), str(methods), str(out), metrics="mae_hu", segmenters=str(paths[20.0]), montages=0)
    pair = (torch.full((1, *GRID.shape), 0.5), (patient(80.0) / 1000)[None])
    expected = SegmenterDice(paths[20.0])(*pair, GRID.spacing_mm)["dice"]
    row = rows_of(out)["mine", "2", "case2"]
    assert 0 < expected < 1
    assert row["dice"] == row["dice_heart"] == pytest.approx(expected)


@pytest.mark.usefixtures("no_pictures")
def test_view_sets_come_from_the_datalist_that_has_their_beam(cohort: Path, tmp_path: Path) -> None:
    """A second datalist of the same beam is refused; by default only what the radiographs allow is run."""
    views = {
        "2": {"angles_deg": [0, 90]},
        "4": {"angles_deg": [0, 45, 90, 135]},
        "c": {"angles_deg": [0], "beam": "cone"},
    }
    methods, out = write_methods(tmp_path, "mean_training_ct", **views), tmp_path / "out"
    with pytest.raises(ValueError, match="radiographs of parallel beam; give one datalist for each"):
        compare(str(cohort), str(methods), str(out), cone_datalist=str(cohort))
    with pytest.raises(ValueError, match="view set '4': case case2 has no radiograph at 45 degrees"):
        compare(str(cohort), str(methods), str(out), views="4")
    with pytest.raises(ValueError, match="view set 'c': no datalist has radiographs of cone beam"):
        compare(str(cohort), str(methods), str(out), views="c")
    compare(str(cohort), str(methods), str(out), metrics="mae_hu", montages=0)
    assert {row["views"] for row in csv.DictReader((out / "benchmark.csv").open())} == {"2"}


@pytest.mark.integration
def test_two_processes_under_torchrun(cohort: Path, tmp_path: Path) -> None:
    methods = write_methods(tmp_path, "mean_training_ct", {"simple": "sirt", "options": {"iterations": 2}})
    out = tmp_path / "out"
    program = Path(sys.executable).with_name("fewview-ct")
    words = ["benchmark", str(cohort), str(methods), "--output", str(out), "--metrics", METRICS]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*launcher, str(program), *words], capture_output=True, text=True, timeout=900, env=environment, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert len(rows_of(out)) == 8
    assert found.stdout.count("PSNR") == 1, "one process prints"
