"""The methods file, the contract of bundles, and the arithmetic of tables and tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from custom.benchmark import resources, summary
from custom.benchmark.bundle_method import bundle_parser, bundle_row
from custom.benchmark.cohort import on_grid
from custom.benchmark.jobs import DONE, FAILED, slug
from custom.benchmark.methods_file import Setting, read_methods
from custom.core.checkpoints import save_checkpoint
from custom.core.files import sha256_file
from custom.geometry import Geometry, VolumeGrid
from custom.sampling import load_sampler
from tests.custom.benchmark.tiny_benchmark import GRID, tiny_network, write_cohort, write_methods, write_toy_bundle
from tests.custom.networks.tiny_diffusion import autoencoder, denoiser, radiographs

BUNDLES = Path(__file__).resolve().parents[3] / "bundles"


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], r"methods.json: 'methods': list should have at least 1 item"),
        ([3], "method 1 must be a name or an object, got 3"),
        (["sart"], "method 1: 'simple': input should be 'mean_training_ct', 'sirt', .* got 'sart'"),
        ([{"name": "a"}], 'method 1 must have one of "simple", "checkpoint", "bundle" or "null"'),
        ([{"name": "a", "simple": "sirt", "bundle": "b"}], 'method 1 must have one of "simple"'),
        (["sirt", {"bundle": "b"}], 'method 2: needs a "name"'),
        (["sirt", "sirt"], "two methods are called 'SIRT, 100 iterations"),
        ([{"name": "a", "checkpoint": "x.pt", "override": {}}], "unknown key 'override'; there are checkpoint, grid"),
        ([{"name": "a", "checkpoint": 3}], "'checkpoint': input should be a valid string, got 3"),
        ([{"name": "a", "checkpoint": "x.pt", "grid": 64}], "'grid': input should be 'own' or 'comparison', got 64"),
        (
            [{"name": "a", "checkpoint": "x.pt", "grid": "64"}],
            "'grid': input should be 'own' or 'comparison', got '64'",
        ),
        ([{"name": "a", "checkpoint": "x.pt", "shuffled": 3}], "'shuffled': input should be a valid boolean, got 3"),
        ([{"name": "a", "checkpoint": "x.pt", "pixel_at_isocenter_mm": "2"}], "'pixel_at_isocenter_mm': input .*'2'"),
        ([{"simple": "sirt", "options": 3}], "'options': input should be a valid dictionary, got 3"),
        ([{"name": "a", "bundle": "b", "samples": 0}], "'samples': input should be greater than or equal to 1, got 0"),
        ([{"name": "a", "bundle": "b", "samples": True}], "'samples': input should be a valid integer, got True"),
        ([{"simple": "sirt", "options": {"iters": 3}}], "method 1: unknown option 'iters' of 'sirt'; there are energy"),
        ([{"simple": "sirt", "view_sets": ["3"]}], "unknown view set '3'; known are '1', '2'"),
    ],
)
def test_a_wrong_methods_file_is_told_apart(tmp_path: Path, methods: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_methods(write_methods(tmp_path, *methods))


def test_more_of_the_methods_file(tmp_path: Path) -> None:
    path = write_methods(tmp_path, "sirt", {"name": "a", "bundle": "b", "samples": 4, "shuffled": ["2"], "_why": ""})
    (sirt, mine), views = read_methods(path)
    assert views == {"1": ("parallel", (0.0,)), "2": ("parallel", (0.0, 90.0))}
    assert (sirt.runs_on("1", False), sirt.runs_on("1", True)) == (True, False)
    assert (mine.runs_on("2", True), mine.runs_on("1", True)) == (True, False)
    assert mine.row_names(False) == ["a, a single sample", "a, mean of 4"]
    with pytest.raises(ValueError, match=r"methods.json: 'view_sets.2.angles_deg' is missing"):
        read_methods(write_methods(tmp_path, "sirt", **{"2": {"angles": [0]}}))
    with pytest.raises(FileNotFoundError, match="no such methods file"):
        read_methods(tmp_path / "none.json")
    path.write_text("{")
    with pytest.raises(ValueError, match="is not a JSON file"):
        read_methods(path)
    path.write_text('{"methods": ["sirt"], "metrics": []}')
    with pytest.raises(ValueError, match="unknown key 'metrics'"):
        read_methods(path)


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"name": "a", "checkpoint": "none.pt"}, FileNotFoundError, "method 'a': none.pt: no such checkpoint"),
        ({"name": "a", "bundle": "none"}, FileNotFoundError, "inference.json: no such config; the bundle .*none needs"),
        ({"name": "a", "bundle": "toy", "overrides": {"steps": 3}}, ValueError, "has no key 'steps' to override"),
        ({"name": "a", "bundle": "toy", "overrides": {"grid#spacing_mm": [5, 5, 5]}}, ValueError, "does not cover"),
        ({"name": "a", "bundle": "toy", "samples": 2}, ValueError, '"samples" 2, but a Level draws none'),
        (
            {"name": "a", "bundle": "toy", "checkpoint": "none.pt"},
            FileNotFoundError,
            "none.pt: the bundle .*toy has no",
        ),
    ],
)
def test_methods_that_cannot_be_built_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any], error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_toy_bundle(tmp_path)
    (method,), _ = read_methods(write_methods(tmp_path, entry))
    setting = Setting(str(write_cohort(tmp_path)), GRID, GRID, torch.device("cpu"))
    with pytest.raises(error, match=message):
        method.check(setting)


def test_a_checkpoint_reconstructs_on_its_own_grid_or_on_that_of_the_comparison(tmp_path: Path) -> None:
    """The pixels of its radiographs are those of its training, else as large as its voxels."""
    weights = save_checkpoint(tmp_path / "model.pt", tiny_network(), {"pixel_at_isocenter_mm": 80.0})
    entry = {"name": "own", "checkpoint": str(weights), "options": {"precision": "fp32"}}
    methods = write_methods(tmp_path, entry, {**entry, "name": "other", "grid": "comparison"})
    coarse = GRID.resized((8, 8, 8))
    setting = Setting(str(write_cohort(tmp_path)), GRID, coarse, torch.device("cpu"))
    own, other = (method.build(setting) for method in read_methods(methods)[0])
    assert (own.name, own.grid, other.grid) == ("own", GRID, coarse)
    views = Geometry.from_angles([0.0, 90.0], beam="parallel", grid=GRID).tensor()
    with pytest.raises(ValueError, match=r"smaller than 8 x 8 pixels of 80.0 mm"):
        own.run(torch.ones(2, 16, 24), views)
    assert other.run(torch.ones(2, 16, 24), views).shape == (8, 8, 8)


def test_simple_methods_are_named_by_their_rows(tmp_path: Path) -> None:
    """And take their options; every one gives a volume on the grid of the comparison."""
    options = {"iterations": 2}
    given = [
        "mean_training_ct",
        "fdk",
        *({"simple": name, "options": options} for name in ("sirt", "sirt_from_mean", "tv")),
    ]
    methods, _ = read_methods(write_methods(tmp_path, *given))
    assert [method.name for method in methods] == [
        "mean training CT",
        "FDK, hann (clipped)",
        "SIRT, 2 iterations (clipped)",
        "SIRT from the mean training CT, 2 iterations (clipped)",
        "total variation, 2 iterations (clipped)",
    ]
    coarse = GRID.resized((12, 12, 12))
    setting = Setting(str(write_cohort(tmp_path)), GRID, coarse, torch.device("cpu"))
    views = Geometry.from_angles([0.0, 90.0], beam="parallel", grid=GRID).tensor()
    for method in methods:
        method.check(setting)
        built = method.build(setting)
        assert built.run(torch.ones(2, 16, 24), views).shape == (built.grid or GRID).shape


def test_samples_of_ldm_recon_come_through_its_own_inference_config(tmp_path: Path) -> None:
    """Checkpoint and parents by the methods file; the volumes are those of the sampler that it builds."""
    model = save_checkpoint(tmp_path / "model.pt", denoiser(), {"pixel_at_isocenter_mm": 20.0})
    parent = save_checkpoint(tmp_path / "vqgan.pt", autoencoder())
    settings = {"steps": 2, "precision": "fp32", "device": "cpu"}
    entry = {"name": "ldm", "bundle": str(BUNDLES / "ldm_recon"), "checkpoint": str(model), "samples": 2, "seed": 3}
    entry["overrides"] = {**settings, "autoencoder_checkpoint": str(parent)}
    (method,), _ = read_methods(write_methods(tmp_path, entry))
    setting = Setting("none.json", GRID, GRID, torch.device("cpu"))
    files = method.identity(setting)["files"]
    assert str(parent) in files and sha256_file(BUNDLES / "ldm_recon/models/atlas.nii.gz") in files.values()
    built = method.build(setting)
    image, views = radiographs()
    assert built.grid == GRID and built.draw is not None
    drawn = list(built.draw(image[0], views[0]))
    expected = [hu[0, 0] for _, hu in load_sampler(model, parent, **settings).samples(image[0], views[0], 2, seed=3)]
    assert len(drawn) == 2
    for found, wanted in zip(drawn, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=0.1, rtol=0)
    assert (drawn[0] - drawn[1]).abs().max() > 1


def test_a_bundle_with_preprocessing_reads_the_radiographs_from_files(tmp_path: Path) -> None:
    """It gets the names of image and geometry, here to bring pixels of 20 mm to 40 mm."""
    changes = {
        "preprocessing": {"_target_": "custom.data.transforms.LoadRadiographsd", "pixel_at_isocenter_mm": 40.0},
        "network_def": {"_target_": "toy_level_method.Level", "shape": "$@grid.shape"},
        "network": "$@network_def.to(torch.float64).float()",
    }
    root = write_toy_bundle(tmp_path, 0.25, **changes)
    parser = bundle_parser(root, [root / "configs/inference.json"], {})
    row = bundle_row("mine", root, parser)
    seen: list[tuple[int, ...]] = []
    parser.get_parsed_content("network").register_forward_pre_hook(lambda m, x: seen.append(tuple(x[0].shape)))
    geometry = Geometry.from_angles([0.0, 90.0], beam="parallel", grid=GRID)
    hu = row.run(torch.ones(2, 16, 24), geometry.tensor())
    assert seen == [(1, 2, 8, 8)]
    assert row.grid == GRID
    torch.testing.assert_close(hu, torch.full(GRID.shape, 250.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": 3, "network_def#shape": [16, 16, 16]}, "grid must be a custom.geometry.VolumeGrid, got int"),
        ({"network_def": {"_target_": "custom.geometry.VolumeGrid"}}, "has no attribute 'load'"),
        ({"initialize": ["$1/0"]}, "inference config cannot be built: division by zero"),
        ({"network_def": {"_target_": "gone_module.Net"}}, "inference config cannot be built: .*gone_module"),
    ],
)
def test_bundles_that_do_not_keep_the_contract(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    root = write_toy_bundle(tmp_path)
    parser = bundle_parser(root, [root / "configs/inference.json"], changes)
    with pytest.raises(ValueError, match=message):
        bundle_row("mine", root, parser)


def test_results_depend_on_the_code_in_the_bundle(tmp_path: Path) -> None:
    root = write_toy_bundle(tmp_path)
    setting = Setting("none.json", GRID, GRID, torch.device("cpu"))

    def identity() -> dict[str, Any]:
        (method,), _ = read_methods(write_methods(tmp_path, {"name": "mine", "bundle": str(root)}))
        return method.identity(setting)

    before = identity()
    assert before == identity()
    (code,) = root.rglob("*.py")
    code.write_text(code.read_text() + "\n")
    assert identity() != before


@pytest.mark.parametrize("options", [{}, {"data_list_file": True}])
def test_results_depend_on_the_training_cts_that_a_list_names(tmp_path: Path, options: dict[str, Any]) -> None:
    datalist = str(write_cohort(tmp_path))
    setting = Setting("none.json" if options else datalist, GRID, GRID, torch.device("cpu"))
    options = {key: datalist for key in options}
    (method,), _ = read_methods(write_methods(tmp_path, {"simple": "sirt_from_mean", "options": options}))
    before = method.identity(setting)
    assert before == method.identity(setting)
    (tmp_path / "case1.nii.gz").write_bytes((tmp_path / "case0.nii.gz").read_bytes())
    assert method.identity(setting) != before


def test_a_pred_of_another_shape_is_a_fault_of_the_bundle(tmp_path: Path) -> None:
    root = write_toy_bundle(tmp_path, network_def={"_target_": "toy_level_method.Level", "shape": [8, 8, 8]})
    row = bundle_row("mine", root, bundle_parser(root, [root / "configs/inference.json"], {}))
    with pytest.raises(TypeError, match=r"pred must be a tensor \(B, 1, 16, 16, 16\), got \(1, 1, 8, 8, 8\)"):
        row.run(torch.ones(2, 16, 24), Geometry.from_angles([0.0, 90.0], beam="parallel", grid=GRID).tensor())


def test_volumes_are_averaged_to_a_coarser_grid_and_cut_from_a_wider_one() -> None:
    fine = VolumeGrid.cube(16, 320)
    volume = torch.randn(fine.shape)
    pooled = torch.nn.functional.avg_pool3d(volume[None], 2)[0]
    torch.testing.assert_close(on_grid(volume, fine, fine.resized((8, 8, 8))), pooled, atol=1e-4, rtol=0)
    wide = torch.nn.functional.pad(volume, (2, 2, 2, 2, 2, 2))
    torch.testing.assert_close(on_grid(wide, fine.padded((2, 2, 2)), fine), volume, atol=1e-3, rtol=0)


def rows(values: dict[str, list[float]], status: str = DONE) -> list[dict[str, Any]]:
    return [
        {
            "case": f"c{i}",
            "patient": f"p{i}",
            "method": method,
            "views": "2",
            "status": status,
            "psnr_range": x,
            "error": "",
        }
        for method, found in values.items()
        for i, x in enumerate(found)
    ]


def test_paired_tests_begin_at_five_patients_and_are_adjusted() -> None:
    base = [20.0, 21.0, 19.0, 22.0, 20.5]
    better, worse, noisy = ([b + d for b in base] for d in (1.0, -2.0, 0.0))
    noisy = [b + d for b, d in zip(base, (0.3, -0.2, 0.4, 0.1, -0.5), strict=True)]
    table = rows({"ours": base, "better": better, "worse": worse, "noisy": noisy})
    found = {test["method"]: test for test in summary.paired_tests(table, "ours", ["psnr_range"])}
    assert list(found) == ["better", "worse", "noisy"]
    assert found["better"]["difference"] == pytest.approx(1.0)
    assert (found["better"]["low"], found["better"]["high"]) == pytest.approx((1.0, 1.0))
    assert found["better"]["p"] == pytest.approx(0.0625), "all of five on one side"
    assert found["better"]["p_holm"] == found["worse"]["p_holm"] == pytest.approx(3 * 0.0625)
    assert found["noisy"]["p"] == pytest.approx(stats.wilcoxon([0.3, -0.2, 0.4, 0.1, -0.5]).pvalue)
    assert found["noisy"]["p_holm"] >= found["worse"]["p_holm"]
    four = [row for row in table if row["case"] != "c4"]
    assert summary.paired_tests(four, "ours", ["psnr_range"]) == []
    same = summary.paired_tests(rows({"ours": base, "copy": base}), "ours", ["psnr_range"])
    assert same[0]["p"] == 1.0


def test_two_cases_of_a_patient_count_once() -> None:
    table = rows({"a": [10.0, 20.0, 30.0]})
    table[1]["patient"] = "p0"
    assert summary.cells(table, ["psnr_range"])["psnr_range"]["a", "2"].mean == pytest.approx((15 + 30) / 2)
    assert summary.patient_cells(table, "psnr_range")[1]["a", "p0"] == {"2": 15.0}


def test_tables_mark_the_best_and_what_is_missing() -> None:
    table = rows({"a": [10.0, 20.0], "b, another patient's radiographs": [40.0, 40.0], "c": [12.0, math.nan]})
    table[-1] = {**table[-1], "status": FAILED, "error": "RuntimeError: a | b"}
    lines = summary.markdown(table, []).splitlines()
    assert "| a | **15.00** |" in lines
    assert "| b, another patient's radiographs | 40.00 |" in lines
    assert "| c | 12.00 [1 patients] |" in lines
    assert "| c | 2 | c1 | failed | RuntimeError: a \\| b |" in lines


def test_intervals_begin_at_five_patients() -> None:
    values = [10.0, 11.0, 12.0, 13.0, 14.0]
    text = summary.markdown(rows({"a": values, "b": values}), [])
    assert "| a | **12.00 (" in text
    assert "(" not in summary.markdown(rows({"a": values[:4]}), []).split("of every patient")[0].split("|")[-2]


def test_names_and_units() -> None:
    assert summary.metric_name("dice2_lung_left") == "DSC lung left (segmenter 2)"
    assert summary.with_unit("psnr_range", 21.157) == "PSNR 21.16 dB"
    assert summary.with_unit("ssim", 0.5) == "SSIM 0.500"
    assert summary.shown("memory_mb", 12.6) == "13"
    assert slug("2") == "2"
    assert slug("a b") != slug("a_b")
    assert "/" not in slug("../../x")


def test_peak_memory_is_that_of_what_ran() -> None:
    if math.isnan(resources.resident_mb()):
        pytest.skip("the system does not tell the memory of a process")
    before = resources.resident_mb()
    with resources.Cost(torch.device("cpu"), before) as small:
        torch.ones(1_000_000).sum()
    with resources.Cost(torch.device("cpu"), before) as large:
        torch.ones(50_000_000).sum()
    assert 200 - 20 < large.memory_mb - small.memory_mb < 220
    assert large.seconds > 0
