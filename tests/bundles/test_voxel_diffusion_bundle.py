"""The bundle `voxel_diffusion` as a user runs it: training, resuming, evaluation, inference, on a tiny cohort."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.core.checkpoints import load_checkpoint, save_checkpoint
from custom.geometry import VolumeGrid
from custom.networks import VQGAN, FeatureUNet, LatentDenoiser
from tests.bundles.results import assert_it_goes_on_where_it_stopped, assert_samples_of_both_cases
from tests.bundles.tiny_cohort import (
    BODY_OVERRIDES,
    CUBE,
    GRID_OVERRIDES,
    LOADING_OVERRIDES,
    STEPS,
    VOXEL_MM,
    make_cohort,
)
from tests.bundles.workflow import ROOT, Bundle, command_line, refused, stored, trained_by_two_and_then_by_one

BUNDLE = Bundle("voxel_diffusion")
config = BUNDLE.config
GRID = VolumeGrid((CUBE,) * 3, (VOXEL_MM,) * 3)

TRAIN: dict[str, Any] = {
    **STEPS,
    **GRID_OVERRIDES,
    **BODY_OVERRIDES,
    **LOADING_OVERRIDES,
    "val_steps": 2,
    "noises_per_case": 2,
    "detector_shape": [16, 24],
    "feature_channels": 4,
    "network_def#encoder#widths": [4, 4, 4],
    "network_def#unet#channels": [8, 16],
    "network_def#unet#attention_levels": [False, True],
    "network_def#unet#num_res_blocks": 1,
    "network_def#unet#num_head_channels": 8,
    "network_def#unet#norm_num_groups": 4,
}
EVALUATE: dict[str, Any] = {"samples": 3, "sample_batch_size": 2, "steps": 2}


def run(names: list[str], kind: str, **overrides: Any) -> list[str]:
    return BUNDLE.run(names, kind, "run", names == ["train.json"], **overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    paths = {
        "bundle_root": str(tmp_path_factory.mktemp("voxels") / "bundle"),
        "data_list_file": str(make_cohort(tmp_path_factory.mktemp("cohort"))),
    }
    assert run(["train.json"], "train", **paths, **TRAIN) == []
    return paths


def test_training_leaves_weights_that_know_their_data(trained: dict[str, Any]) -> None:
    models = Path(trained["bundle_root"]) / "models"
    checkpoint = load_checkpoint(models / "model.pt")
    assert checkpoint.meta["pixel_at_isocenter_mm"] == VOXEL_MM and checkpoint.meta["preset"] == "default"
    network = checkpoint.network()
    assert isinstance(network, LatentDenoiser) and network.grid == GRID and network.latent_channels == 1
    cases = json.loads(Path(trained["data_list_file"]).read_text())["training"]
    cubes = [nib.nifti1.load(Path(trained["data_list_file"]).parent / case["label"]).get_fdata() for case in cases]
    assert float(network.latent_mean) == pytest.approx(np.clip(cubes, -1000, 1000).mean() / 1000, abs=0.02)
    assert float(network.latent_std) == pytest.approx(np.clip(cubes, -1000, 1000).std() / 1000, abs=0.02)
    assert (models / "checkpoint_last.pt").is_file() and list((Path(trained["bundle_root"]) / "eval").glob("events*"))


def test_training_goes_on_where_it_stopped(trained: dict[str, Any]) -> None:
    assert_it_goes_on_where_it_stopped(BUNDLE, {**trained, **TRAIN})


def test_evaluation_gives_samples_their_mean_and_their_spread(trained: dict[str, Any], tmp_path: Path) -> None:
    output = {"output_dir": str(tmp_path), "val_angles_deg": [0, 45, 90, 135], "pixel_at_isocenter_mm": None}
    corrected = {"consistency_weight": 0.5, "consistency_iterations": 2, "consistency_final": 5}
    run(["train.json", "evaluate.json"], "train", **{**trained, **TRAIN, **EVALUATE, **output, **corrected})
    assert_samples_of_both_cases(tmp_path, Path(trained["data_list_file"]), corrected)


def inference(trained: dict[str, Any], output: Path, **overrides: Any) -> None:
    case = stored(Path(trained["data_list_file"]))
    options = {**EVALUATE, "bundle_root": trained["bundle_root"], "precision": "fp32", "output_dir": str(output)}
    run(["inference.json"], "infer", **{**case, **options, **overrides})


def test_inference_is_the_same_for_the_same_seed_whatever_the_batch(trained: dict[str, Any], tmp_path: Path) -> None:
    """With weights that all matter: after two steps the last layer is still almost zero, and no noise comes through."""
    network, volumes = load_checkpoint(Path(trained["bundle_root"]) / "models/model.pt").network(), []
    torch.manual_seed(0)
    for parameter in network.unet.parameters():  # type: ignore[union-attr]
        torch.nn.init.normal_(parameter, std=0.15)
    model = str(save_checkpoint(tmp_path / "model.pt", network, {"pixel_at_isocenter_mm": VOXEL_MM}))
    for name, options in (("a", {}), ("b", {"sample_batch_size": 1, "keep_samples": True}), ("c", {"sample_seed": 1})):
        inference(trained, tmp_path / name, model_file=model, **options)
        volumes.append(np.asarray(nib.nifti1.load(tmp_path / name / "e1" / "mean.nii.gz").dataobj, np.int32))
    assert volumes[0].shape == GRID.shape
    assert np.abs(volumes[0] - volumes[1]).max() <= 1 and np.abs(volumes[0] - volumes[2]).max() > 1
    assert len(list((tmp_path / "b" / "e1").glob("sample_*.nii.gz"))) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"samples": 0}, "samples must be at least 2"),
        ({"model_file": "missing.pt"}, "no such"),
        ({"angles_deg": [10]}, "10"),
        ({"model_file": "vqgan"}, "a checkpoint of VQGAN, not of ldm_recon or voxel_diffusion"),
        ({"model_file": "ldm"}, "was trained on latents, not on voxels"),
    ],
)
def test_bad_requests(trained: dict[str, Any], tmp_path: Path, overrides: dict, message: str) -> None:
    vqgan = VQGAN(GRID, encoder_widths=(8, 8), decoder_widths=(8, 8), codes=16, embedding_dim=3)
    unet = {"channels": [8, 16], "attention_levels": [False, True], "num_head_channels": 8, "norm_num_groups": 4}
    ldm = LatentDenoiser(FeatureUNet(4, (4, 6)), vqgan.latent_grid, 3, {"num_res_blocks": 1, **unet})
    meta = {"pixel_at_isocenter_mm": VOXEL_MM, "parents": {"autoencoder": "0" * 64}}
    files = {name: save_checkpoint(tmp_path / f"{name}.pt", n, meta) for name, n in (("vqgan", vqgan), ("ldm", ldm))}
    chosen = {k: str(files[v]) if isinstance(v, str) and v in files else v for k, v in overrides.items()}
    with refused(message):
        inference(trained, tmp_path, **chosen)


def test_from_the_command_line(trained: dict[str, Any], tmp_path: Path) -> None:
    command = command_line(
        str(BUNDLE.configs / "train.json"), {**trained, **TRAIN, "bundle_root": str(tmp_path / "bundle")}
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "bundle/models/model.pt").is_file()


@pytest.mark.integration
def test_two_processes_train_together(trained: dict[str, Any], tmp_path: Path) -> None:
    assert isinstance(trained_by_two_and_then_by_one(BUNDLE, {**trained, **TRAIN}, tmp_path), LatentDenoiser)


# --- the files ---


def test_the_papers_preset_has_its_heads_and_views() -> None:
    """4 heads with 8 dimensions wherever there is attention; at most two views; every voxel."""
    parser = BUNDLE.parser("train.json", preset="paper")
    network = parser.get_parsed_content("network_def")
    heads = {(m.num_heads, m.dim_head) for m in network.unet.modules() if hasattr(m, "num_heads")}
    assert heads == {(4, 8)}
    assert (
        network.space_to_depth == 1 and network.grid.shape == (128, 128, 128) and network.prediction_type == "epsilon"
    )
    assert max(int(views) for views in parser["view_weights"]) == 2
    assert parser["epochs"] * parser["iterations_per_epoch"] == 700_000
    assert isinstance(parser.get_parsed_content("loss"), torch.nn.L1Loss)


def test_the_small_preset_is_small_and_says_so() -> None:
    parser = BUNDLE.parser("train.json", preset="grid_64")
    network = parser.get_parsed_content("network_def")
    assert network.grid == VolumeGrid.cube(64, 320) and network.space_to_depth == 4
    assert "Smaller than" in parser["_desc_preset"]
    assert parser.get_parsed_content("body_grid").spacing_mm == network.grid.spacing_mm


def test_keys_that_bundles_share_mean_the_same() -> None:
    """Evaluation and inference with one another, and with `ldm_recon`."""
    evaluate, inferred = config("evaluate.json"), config("inference.json")
    sibling = Bundle("ldm_recon").config("evaluate.json")
    shared = ["samples", "sample_seed", "keep_samples", "steps", "guidance_scale", "solver", "pixel_at_isocenter_mm"]
    for key in [*shared, "consistency_weight", "consistency_iterations", "consistency_final"]:
        assert evaluate[key] == inferred[key], key
        assert key == "steps" or inferred[key] == sibling[key], key  # an atlas needs fewer
    assert config("train.json")["hu_window"] == inferred["hu_window"]
