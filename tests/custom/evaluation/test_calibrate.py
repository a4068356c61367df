"""From known CTs to a file of thresholds, with a tiny network; and how known CTs become radiographs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.core.checkpoints import save_checkpoint
from custom.core.files import sha256_file
from custom.data.datalist import load_cases
from custom.evaluation.calibrate import calibrate
from custom.geometry import VolumeGrid
from custom.networks.population_prior import OutOfFoldPriors
from custom.trust import Thresholds, run_checks, state_intervals
from custom.trust.calibration_model import loaded_model
from custom.trust.reference_ct import SimulationSettings, detector_of, error_hu, load_ct, model_on, reconstructed
from tests.custom.benchmark.tiny_benchmark import GRID, tiny_network, write_tiny_sampler
from tests.custom.networks.test_coarse_to_fine import small

PERFECT = SimulationSettings.perfect()
SOURCE = VolumeGrid((20, 18, 17), (20.0,) * 3)
TRAINED: dict[str, Any] = {
    "trained_beams": ("parallel", "cone"),
    "source_to_isocenter_mm": (700, 1700),
    "source_to_detector_mm": (1000, 1900),
}


def write_cohort(folder: Path, count: int, prefix: str = "case") -> str:
    """Ellipsoids of water with a lung, each with its source, and a datalist."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(count):
        names = {}
        for key, grid in (("label", GRID), ("source", SOURCE)):
            points = grid.points() / torch.tensor([110.0 + 3 * index, 90.0 + 2 * index, 120.0])
            hu = torch.where(points.norm(dim=-1) < 1, 0.0, -1000.0)
            hu[(points - torch.tensor([0.4, 0.1, 0.1])).norm(dim=-1) < 0.4] = -800.0
            names[key] = f"{key}_{prefix}{index}.nii.gz"
            nib.save(nib.Nifti1Image(hu.numpy().astype(np.int16), grid.affine((5.0, -3.0, 40.0))), folder / names[key])
        entries.append({"case": f"{prefix}{index}", "patient": f"{prefix}{index}", **names})
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": entries[: count // 2], "validation": entries[count // 2 :]}))
    return str(path)


def write_model(folder: Path, **meta: Any) -> str:
    network = tiny_network(consistency_iterations=10)
    content = {"training_views": {"1": 0.5, "2": 0.5, "8": 0.0}, "detector_shape": [16, 24], **meta}
    return str(save_checkpoint(folder / "tiny.pt", network, content))


@pytest.fixture(autouse=True)
def _forget_models() -> None:
    loaded_model.cache_clear()


def test_known_cts_become_thresholds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    datalist, model = write_cohort(tmp_path / "data", 8), write_model(tmp_path)
    phantoms = write_cohort(tmp_path / "phantoms", 6, "phantom")
    output = tmp_path / "models" / "thresholds.json"
    options: dict[str, Any] = {"views": (1, 2), "phantom_list_file": phantoms, "device": "cpu", **TRAINED}
    assert calibrate(datalist, str(output), model, **options) == output
    made = Thresholds.load(output)
    assert set(made.groups) == {"parallel 1", "parallel 2", "cone 1", "cone 2"}
    assert {"reprojection", "intensities", "truncation"} <= set(made.groups["parallel 1"])
    assert "agreement" not in made.groups["parallel 1"]
    assert made.groups["cone 2"]["agreement"].cases == 11
    assert made.trained.views == (1, 2)
    assert made.made_from["cases"] == 11
    values = made.calibrated["parallel 2"]
    assert set(values) == set(made.groups["parallel 2"])
    assert len(values["reprojection"]) == 11 and list(values["reprojection"]) == sorted(values["reprojection"])
    assert values["reprojection"][-1] == pytest.approx(made.groups["parallel 2"]["reprojection"].largest, rel=1e-5)
    assert made.made_from["model"]["sha256"] == loaded_model(model, None, "cpu")[0].sha256
    for key in ("software", "datalist", "phantoms", "false_alarms", "simulation"):
        assert made.made_from[key], key

    # Another body of the same kind passes, and its mirror image along z does not agree with it.
    network = loaded_model(model, None, "cpu")[0]
    ct = load_ct(load_cases(datalist, "training")[1], 20.0)
    shots = ct.radiographs([0.0, 90.0], "parallel", detector_of(network), 20.0, PERFECT)
    found = reconstructed(network, shots)
    honest = {r.name: r for r in run_checks(found, made)}
    assert honest["agreement"].verdict == "PASS"
    shots.image[0] = shots.image[0].roll(5, 0)
    results = {r.name: r for r in run_checks(reconstructed(network, shots), made)}
    assert results["agreement"].verdict != "PASS"

    # The error of known cases is told for a new one: these bodies are nearly alike.
    assert found.hu is not None
    error = made.expected_error["parallel 2"]
    assert error.lowest <= honest["expected_error"].statistic <= error.highest
    assert error.lowest * 0.8 < error_hu(network, found.hu, ct) < error.highest * 1.2

    # Of these bodies, intervals hold what was known; organs need voxels that fit the segmenter's.
    stated = state_intervals(found, [], made, network.hu_window, 0)
    assert stated.patients == 11 and stated.lower is not None and stated.upper is not None
    true = ct.on_grid(network.grid).clamp(*network.hu_window)
    assert float(((true >= stated.lower) & (true <= stated.upper)).float().mean()) > 0.85
    assert {m.name: m.lower for m in stated.measures}["lung_volume_ml"] is None
    assert {m.name: m.lower for m in stated.measures}["frontal_depth_mm"] is not None

    # Started again, finished cases are kept, and another seed makes them anew.
    files = sorted((tmp_path / "models" / "thresholds_cases").glob("*.json"))
    assert len(files) == 11
    before, times = output.read_bytes(), [file.stat().st_mtime_ns for file in files]
    files[0].write_text("{")
    calibrate(datalist, str(output), model, **options)
    assert output.read_bytes() == before
    assert [file.stat().st_mtime_ns for file in files[1:]] == times[1:]
    calibrate(datalist, str(output), model, coverage=0.8, **options)
    assert [file.stat().st_mtime_ns for file in files[1:]] == times[1:]
    assert Thresholds.load(output).intervals["cone 2"].coverage == 0.8
    calibrate(datalist, str(output), model, seed=3, **options)
    assert output.read_bytes() != before


def test_cases_are_computed_again_where_the_sampler_or_a_ct_is_another(tmp_path: Path) -> None:
    datalist, output, model = write_cohort(tmp_path / "data", 10), tmp_path / "t.json", tmp_path / "model"
    options: dict[str, Any] = {"views": (1,), "beams": ("parallel",), "samples": 2, "device": "cpu", **TRAINED}
    write_tiny_sampler(model, residual=True)

    def calibrated(**sampler: Any) -> dict[str, Any]:
        """By case, the time of its file, and what it holds of the spread."""
        loaded_model.cache_clear()
        content = json.loads((model / "model.json").read_text())
        (model / "model.json").write_text(json.dumps({**content, "sampler": {"steps": 2, **sampler}}))
        calibrate(datalist, str(output), str(model), trained_views=(1,), **options)
        files = sorted((tmp_path / "t_cases").glob("*.json"))
        return {f.stem: (f.stat().st_mtime_ns, json.loads(f.read_text())["groups"]["parallel 1"]) for f in files}

    first = calibrated()
    assert len(first) == 10 and calibrated() == first
    narrower = calibrated(residual_scale=[0.5])
    assert all(narrower[case][1]["statistics"] != first[case][1]["statistics"] for case in first)
    settings = [json.loads(file.read_text())["settings"] for file in (tmp_path / "t_cases").glob("*.json")]
    assert all(one["sampler"]["residual_scale"] == [0.5] and one["sampler"]["steps"] == 2 for one in settings)
    changed = tmp_path / "data/source_case3.nii.gz"
    changed.write_bytes((tmp_path / "data/source_case4.nii.gz").read_bytes())
    after = calibrated(residual_scale=[0.5])
    assert [case for case in after if after[case] != narrower[case]] == ["case3_0"]


class _Doses:
    """Gives the patient 3 % more than planned, and 1 % more for each hundred HU by which the case's mean is below 0."""

    rules: ClassVar = {"engine": "none", "segmenter_sha256": "5e9", "planning_sha256": "1"}

    def __call__(self, hu: torch.Tensor, grid: VolumeGrid, ct: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if ct.name == "case2":
            return {"ap_pa": None}, {"ap_pa": None}
        return {"ap_pa": 2.0}, {"ap_pa": 2.06 - 0.0001 * float(np.mean(ct.hu))}


def test_doses_are_calibrated_and_finished_views_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("custom.evaluation.calibrate.kept_doses", lambda templates: _Doses())
    datalist, model, output = write_cohort(tmp_path, 12), write_model(tmp_path), tmp_path / "t.json"
    options: dict[str, Any] = {"beams": ("parallel",), "templates": ("ap_pa",), "device": "cpu", **TRAINED}
    calibrate(datalist, str(output), model, views=(4,), **options)
    first = Thresholds.load(output)
    doses = first.intervals["parallel 4"].doses
    assert doses is not None and dict(doses.rules) == _Doses.rules and doses.templates["ap_pa"].patients == 11
    low, high = doses.templates["ap_pa"].around(2.0, positive=True)
    assert 2.0 < low < high < 2.3
    files = sorted((tmp_path / "t_cases").glob("*.json"))
    before = [json.loads(file.read_text()) for file in files]
    # Two views are added to what was made of four, and only of these there is something new.
    calibrate(datalist, str(output), model, views=(2, 4), **options)
    after = [json.loads(file.read_text()) for file in files]
    assert [one["groups"]["parallel 4"] for one in after] == [one["groups"]["parallel 4"] for one in before]
    both = Thresholds.load(output)
    assert set(both.intervals) == {"parallel 2", "parallel 4"}
    assert both.intervals["parallel 4"] == first.intervals["parallel 4"]
    # What is stated of a reconstruction carries them; without templates there are none.
    network = loaded_model(model, None, "cpu")[0]
    shots = load_ct(load_cases(datalist, "training")[1], 20.0).radiographs(
        [0.0, 90.0], "parallel", detector_of(network), 20.0, PERFECT
    )
    stated = state_intervals(reconstructed(network, shots), [], both, network.hu_window, 0)
    assert stated.doses == both.intervals["parallel 2"].doses
    calibrate(datalist, str(output), model, views=(2,), **{**options, "templates": ()})
    assert Thresholds.load(output).intervals["parallel 2"].doses is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": (3,)}, "views among"),
        ({"beams": ("fan",)}, "beams must be among"),
        ({"output": "thresholds.txt"}, "must end in .json"),
        ({"coverage": 1.0}, "coverage must be"),
        ({"warps": -1}, "warps must not be negative"),
        ({"samples": 1}, "0 or at least 2"),
        ({"samples": 4}, "draws no samples"),
        ({"source_to_detector_mm": None}, "--source_to_detector_mm"),
        ({"parts": ("validation",)}, "at least 10"),
        ({"size": 5}, "cannot become 5"),
        ({"templates": ("prostate",)}, "'prostate' is not known"),
        ({"size": 0}, "size must be at least 1"),
        ({"false_alarms": float("nan")}, "false_alarms must lie"),
        ({"reject_factor": float("inf")}, "reject_factor be 1 or more"),
        ({"photons_per_mm2": (5,)}, "a range has a least and a most"),
        ({"photons_per_mm2": (0, 1)}, "photons_per_mm2 must be"),
        ({"field_mm": (9.0, 1.0)}, "field_mm must be"),
        ({"blur_fwhm_mm": (0.0, float("inf"))}, "blur_fwhm_mm must be"),
        ({"intensity_error": float("nan")}, "intensity_error must be"),
        ({"pose_error_distance": 2.0}, "pose_error_distance must be"),
    ],
)
def test_what_cannot_be_calibrated_is_said_before_the_work(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    datalist, model = write_cohort(tmp_path, 4), write_model(tmp_path)
    arguments: dict[str, Any] = {"output": str(tmp_path / "t.json"), "device": "cpu", **TRAINED, **options}
    with pytest.raises(ValueError, match=message):
        calibrate(datalist, model=model, **arguments)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        calibrate("none.json", str(tmp_path / "t.json"), model="no model either", device="cpu")
    assert not list(tmp_path.glob("*_cases"))


def test_places_that_cannot_be_written_are_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "t.json").mkdir()
    for options in ({"output": "file/t.json"}, {"output": "t.json"}, {"output": "u.json", "work": tmp_path / "file/w"}):
        arguments = {**options, "output": str(tmp_path / str(options["output"]))}
        with pytest.raises((NotADirectoryError, IsADirectoryError), match="choose another output"):
            calibrate("none.json", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("cone", ["cone_prob", "cone_share"])  # the second in checkpoints of version 0.1.0
def test_the_training_range_comes_from_the_checkpoint(tmp_path: Path, cone: str) -> None:
    meta = {cone: 0.0, "source_to_isocenter_mm": [800, 900], "source_to_detector_mm": [1000, 1100]}
    datalist, model = write_cohort(tmp_path, 20), write_model(tmp_path, **meta)
    path = calibrate(datalist, str(tmp_path / "t.json"), model, views=(1,), beams=("parallel",), device="cpu")
    trained = Thresholds.load(path).trained
    assert trained.beams == ("parallel",)
    assert trained.source_to_isocenter_mm == (800.0, 900.0)


def test_cts_are_averaged_and_stay_where_they_are(tmp_path: Path) -> None:
    case = load_cases(write_cohort(tmp_path, 2), "training")[0]
    fine, coarse = load_ct(case, 20.0), load_ct(case, 90.0)
    assert coarse.hu.shape == (10, 9, 8)
    masses = []
    for ct in (fine, coarse):
        image = ct.radiographs([0.0], "parallel", (16, 24), 20.0, PERFECT).image
        rows, columns = image[0].sum(1), image[0].sum(0)
        middle = (columns * torch.arange(24)).sum() / columns.sum(), (rows * torch.arange(16)).sum() / rows.sum()
        masses.append([*map(float, middle), float(image.sum())])
    np.testing.assert_allclose(masses[0], masses[1], rtol=0.05)


def test_what_is_wrong_with_radiographs_depends_on_the_seed_alone(tmp_path: Path) -> None:
    case = load_cases(write_cohort(tmp_path, 2), "training")[0]

    def image(simulation: SimulationSettings, warp: int = 0) -> torch.Tensor:
        ct = load_ct(case, 20.0, warp, simulation)
        return ct.radiographs([0.0, 90.0], "cone", (16, 24), 20.0, simulation).image

    exact = PERFECT
    torch.testing.assert_close(image(SimulationSettings()), image(SimulationSettings()), rtol=0, atol=0)
    assert not torch.equal(image(SimulationSettings()), image(SimulationSettings(seed=1)))
    assert not torch.equal(image(exact), image(exact, warp=1))
    shift = (image(replace(exact, intensity_error=0.02)) - image(exact)).flatten(1)
    assert float(shift.std(1).max()) < 1e-4
    assert 1e-4 < float(shift.mean(1).abs().max()) < 0.0203
    assert float(shift.mean(1)[0]) != pytest.approx(float(shift.mean(1)[1]), abs=1e-4)


def test_a_case_without_source(tmp_path: Path) -> None:
    case = load_cases(write_cohort(tmp_path, 2), "training")[0]
    del case["source"]
    with pytest.raises(ValueError, match="case0: the datalist has no 'source'"):
        load_ct(case, 20.0)


def test_a_model_on_a_coarser_cube(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    model = model_on(path, 8, "cpu")
    assert model.grid == VolumeGrid.cube(8, 320.0)
    assert detector_of(model) == (8, 12)
    assert model.pixel_at_isocenter_mm == 40.0
    case = load_cases(write_cohort(tmp_path / "data", 2), "training")[0]
    shots = load_ct(case, 40.0).radiographs([90.0], "cone", (8, 12), 40.0, SimulationSettings())
    evidence = reconstructed(model, shots)
    assert evidence.hu is not None
    assert tuple(evidence.hu.shape) == (8, 8, 8)
    with pytest.raises(ValueError, match="at least 2 samples"):
        reconstructed(model, shots, samples=1)


def test_a_field_hides_what_lies_beside_it(tmp_path: Path) -> None:
    ct = load_ct(load_cases(write_cohort(tmp_path, 2), "training")[0], 20.0)
    shots = ct.radiographs([0.0], "parallel", (16, 24), 20.0, replace(PERFECT, field_mm=(160.0, 160.0)))
    assert shots.field_mask.sum() == 8 * 8
    assert shots.field_mask[0, 4:12, 8:16].all()
    assert not shots.image[~shots.field_mask].any()
    whole = ct.radiographs([0.0], "parallel", (16, 24), 20.0, PERFECT).image
    torch.testing.assert_close(shots.image[shots.field_mask], whole[shots.field_mask], rtol=1e-4, atol=1e-4)


def test_a_pose_is_stated_wrong_by_no_more_than_is_said(tmp_path: Path) -> None:
    ct = load_ct(load_cases(write_cohort(tmp_path, 2), "training")[0], 20.0)
    settings = replace(PERFECT, pose_error_deg=3.0)
    wrong = ct.radiographs([0.0], "cone", (16, 24), 20.0, settings)
    right = [ct.radiographs([0.0], "cone", (16, 24), 20.0, PERFECT, [d / 2]).image for d in range(-6, 7)]
    torch.testing.assert_close(wrong.views, ct.radiographs([0.0], "cone", (16, 24), 20.0, PERFECT).views)
    differences = [float((image - wrong.image).square().mean()) for image in right]
    assert 0 < min(differences) < 0.05 * max(differences)


def test_training_cases_meet_a_prior_that_does_not_know_them(tmp_path: Path) -> None:
    network = small(fine=False)
    model = str(save_checkpoint(tmp_path / "tiny.pt", network, {"training_views": {"2": 1.0}}))
    others = OutOfFoldPriors(network.prior, 2)
    for prior in others.priors:
        prior.mean += 0.1
    checkpoint = tmp_path / "checkpoint_last.pt"
    torch.save({"out_of_fold": others.state_dict()}, checkpoint)
    datalist, output = write_cohort(tmp_path / "data", 20), tmp_path / "t.json"
    options: dict[str, Any] = {"views": (2,), "beams": ("parallel",), "device": "cpu", **TRAINED}
    calibrate(datalist, str(output), model, priors_from=str(checkpoint), **options)
    made = Thresholds.load(output)
    assert made.made_from["priors_sha256"] == sha256_file(checkpoint)
    # Bodies of the second half, which are larger, are new to the network.
    assert made.made_from["growth_of_errors"] > 1
    calibrate(datalist, str(output), model, **options)
    assert Thresholds.load(output).groups["parallel 2"]["population"] != made.groups["parallel 2"]["population"]
    with pytest.raises(ValueError, match="holds no priors out of fold"):
        torch.save({"model": {}}, checkpoint)
        calibrate(datalist, str(output), model, priors_from=str(checkpoint), **options)
