"""The table: rows and columns are what they say, on a tiny stored cohort."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.benchmark import Method, benchmark, mean_training_ct, network_row, same_operator_rows, sirt_row
from custom.core.attenuation import hu_to_attenuation
from custom.core.checkpoints import save_checkpoint
from custom.data.datalist import load_cases
from custom.geometry import Geometry, VolumeGrid
from custom.metrics.tables import read_csv
from custom.projection import Projector
from custom.reconstruct import reconstruct
from tests.custom.benchmark.tiny_benchmark import GRID, patient, tiny_network, write_cohort


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path)


def test_mean_training_ct_is_the_mean(cohort: Path) -> None:
    mean = mean_training_ct(cohort).run(torch.zeros(1), torch.zeros(1))
    torch.testing.assert_close(mean, (patient(90) + patient(110)) / 2)


def test_sirt_from_the_mean_keeps_what_no_radiograph_contradicts(cohort: Path) -> None:
    """From the lateral view of a patient who is the mean nothing changes; the row says where it started."""
    mean = mean_training_ct(cohort)
    row = sirt_row(GRID, iterations=5, start=mean)
    assert row.name == "SIRT from the mean training CT, 5 iterations (clipped)"
    geometry = Geometry.from_angles([0.0], beam="parallel", grid=GRID)
    hu = mean.run(torch.zeros(1), torch.zeros(1))
    image = Projector.from_geometry(geometry)(hu_to_attenuation(hu[None, None]))[0]
    torch.testing.assert_close(row.run(image, geometry.tensor()), hu, atol=0.5, rtol=0)
    assert (sirt_row(GRID, iterations=5).run(image, geometry.tensor()) - hu).abs().max() > 100


def test_a_network_can_answer_on_another_grid(cohort: Path, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "model.pt", tiny_network())
    other = VolumeGrid.cube(8, 320)
    geometry = Geometry.from_angles([0.0, 90.0], beam="parallel", grid=other)
    assert network_row("net", checkpoint, other).run(torch.zeros(2, 8, 12), geometry.tensor()).shape == (8, 8, 8)


def test_table_of_simple_rows_and_the_control(cohort: Path, tmp_path: Path) -> None:
    simple = sirt_row(GRID, iterations=20)
    view_sets = {"2": ("parallel", (0.0, 90.0)), "1 lateral": ("parallel", (0.0,)), "2 cone": ("cone", (0.0,))}
    out = tmp_path / "out"
    rows = benchmark(
        [mean_training_ct(cohort), simple], {"parallel": cohort}, out, view_sets=view_sets, shuffled=simple,
        metrics=("psnr_range", "psnr_4095", "ssim"),
    )  # fmt: skip
    assert len(rows) == 2 * 2 * 3
    psnr = {(r["case"], r["method"], r["views"]): r["psnr_range"] for r in rows}
    own = psnr["case2", simple.name, "2"]
    assert own > psnr["case2", simple.name, "1 lateral"]
    assert own > psnr["case2", f"{simple.name}, another patient's radiographs", "2"] + 3
    assert len(list(csv.DictReader((out / "benchmark.csv").open()))) == len(rows)
    assert "| mean training CT | case3 |" in (out / "benchmark.md").read_text()


def test_a_comparison_in_larger_voxels_averages_truth_and_results(cohort: Path, tmp_path: Path) -> None:
    view_sets = {"2": ("parallel", (0.0, 90.0))}
    methods = [
        Method("fine", lambda image, views: patient(80)),
        Method("coarse", lambda image, views: torch.nn.functional.avg_pool3d(patient(80)[None], 2)[0]),
    ]
    rows = benchmark(
        methods, {"parallel": cohort}, tmp_path / "out", view_sets=view_sets, grid=VolumeGrid.cube(8, 320),
        metrics=("psnr_range",),
    )  # fmt: skip
    values = {(row["case"], row["method"]): row["psnr_range"] for row in rows}
    assert values["case2", "fine"] == values["case2", "coarse"] > 100 > values["case3", "coarse"] > 5


def test_rows_of_an_earlier_run_are_taken_over_and_columns_can_be_left_out(cohort: Path, tmp_path: Path) -> None:
    view_sets = {"2": ("parallel", (0.0, 90.0)), "1 lateral": ("parallel", (0.0,))}
    calls: list[str] = []

    def method(name: str, columns: list[str] | None = None) -> Method:
        return Method(name, lambda image, views: (calls.append(name), patient(100))[1], columns)

    options = {"view_sets": view_sets, "metrics": ("psnr_range",)}
    first = benchmark([method("slow")], {"parallel": cohort}, tmp_path / "a", **options)  # type: ignore[arg-type]
    assert calls == ["slow"] * len(first)
    read = read_csv(tmp_path / "a/benchmark.csv")
    calls.clear()
    rows = benchmark(
        [method("slow"), method("partial", ["2"])], {"parallel": cohort}, tmp_path / "b", known=read, **options
    )  # type: ignore[arg-type]
    assert set(calls) == {"partial"} and {r["views"] for r in rows if r["method"] == "partial"} == {"2"}
    assert [r for r in rows if r["method"] == "slow"] == first
    table = (tmp_path / "b/benchmark.md").read_text()
    assert any(line.startswith("| partial | ") and line.endswith("|  |") for line in table.splitlines())


def test_easy_setting_averages_a_finer_answer(cohort: Path) -> None:
    def rows(grid: VolumeGrid) -> list[Method]:
        assert grid.shape == (8, 8, 8)
        exact = Method("truth", lambda image, views: patient(80))  # right for the first case, at twice the grid
        return [exact, sirt_row(grid, iterations=10)]

    found = same_operator_rows(rows, cohort, size=8, metrics=("psnr_range",))
    assert {row["method"] for row in found} == {"truth", "SIRT, 10 iterations (clipped)"}
    psnr = {row["case"]: row["psnr_range"] for row in found if row["method"] == "truth"}
    assert psnr["case2"] > 100 > psnr["case3"]


def test_network_row_is_what_reconstruct_writes(cohort: Path, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "model.pt", tiny_network())
    case = load_cases(cohort, "test")[0]
    found = reconstruct([case["image"]], geometry=case["geometry"], model=checkpoint, precision="fp32")
    np.testing.assert_allclose(found.affine, nib.load(case["label"]).affine)
    from custom.data.transforms import LoadRadiographsd

    stored = LoadRadiographsd()(case)
    expected = network_row("net", checkpoint).run(stored["image"], stored["views"])
    np.testing.assert_allclose(found.hu.numpy(), expected.numpy(), atol=0.51)


@pytest.mark.parametrize(
    ("change", "part", "error", "message"),
    [
        (None, "test", FileNotFoundError, "no such datalist"),
        ("{", "test", ValueError, "is not a JSON file"),
        ('{"training": [{"case": "a"}]}', "test", ValueError, r"no cases under 'test'; it has \['training'\]"),
        ('{"test": [{"case": "a", "label": "gone.nii.gz"}]}', "test", FileNotFoundError, "gone.nii.gz: .*missing"),
    ],
)
def test_datalists_that_do_not_serve(tmp_path: Path, change: str | None, part: str, error: type, message: str) -> None:
    if change is not None:
        (tmp_path / "list.json").write_text(change)
    with pytest.raises(error, match=message):
        load_cases(tmp_path / "list.json", part)


def test_shuffled_radiographs_keep_the_truth(cohort: Path) -> None:
    cases, shuffled = load_cases(cohort, "test"), load_cases(cohort, "test", shuffle_radiographs=True)
    assert [c["label"] for c in shuffled] == [c["label"] for c in cases]
    assert [c["image"] for c in shuffled] == [cases[1]["image"], cases[0]["image"]]
