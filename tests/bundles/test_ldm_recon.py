"""The bundle `ldm_recon` as a user runs it: latents, training, resuming, evaluation, inference, on a tiny cohort."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.core.checkpoints import load_checkpoint, save_checkpoint
from custom.core.files import sha256_file
from custom.geometry import VolumeGrid
from custom.models.model_files import SAMPLER_OPTIONS
from custom.networks import VQGAN
from scripts import benchmark_posterior
from tests.bundles.documented import unknown_overrides
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
from tests.custom.networks.tiny_diffusion import mean_network

BUNDLE = Bundle("ldm_recon")
config = BUNDLE.config
GRID = VolumeGrid((CUBE,) * 3, (VOXEL_MM,) * 3)

TINY: dict[str, Any] = {**GRID_OVERRIDES, **BODY_OVERRIDES}
LATENTS: dict[str, Any] = {"latents": 4, "detector_shape": [16, 24], **LOADING_OVERRIDES}
TRAIN: dict[str, Any] = {
    **STEPS,
    "val_steps": 2,
    "batch_size": 2,
    "detector_shape": [16, 24],
    "latent_channels": 3,
    "feature_channels": 4,
    "feature_spacing_mm": None,
    "network_def#encoder#widths": [4, 4, 4],
    "network_def#unet#channels": [8, 16],
    "network_def#unet#attention_levels": [False, True],
    "network_def#unet#num_head_channels": 8,
    "network_def#unet#norm_num_groups": 4,
}
#: The same with residual.json, whose batches are of one.
KNOWN = {key: value for key, value in TRAIN.items() if key != "batch_size"}
EVALUATE: dict[str, Any] = {"samples": 3, "sample_batch_size": 2, "steps": 2}


def run(names: list[str], kind: str, run_id: str = "run", **overrides: Any) -> list[str]:
    check = kind == "train" and run_id == "run"
    return BUNDLE.run(names, kind, run_id, check, **overrides)


def autoencoder(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = VQGAN(GRID, encoder_widths=(8, 8), decoder_widths=(8, 8), codes=16, embedding_dim=3, precision="fp32")
    return save_checkpoint(path, network)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ldm")
    return {
        "bundle_root": str(folder / "bundle"),
        "data_list_file": str(make_cohort(tmp_path_factory.mktemp("cohort"))),
        "latents_dir": str(folder / "latents"),
        "autoencoder_checkpoint": str(autoencoder(folder / "vqgan.pt")),
    }


@pytest.fixture(scope="module")
def trained(paths: dict[str, Any]) -> dict[str, Any]:
    run(["train.json", "latents.json"], "train", "encoding", **paths, **TINY, **LATENTS)
    assert run(["train.json"], "train", **paths, **TINY, **TRAIN) == []
    return paths


def test_training_leaves_weights_that_know_their_parents(trained: dict[str, Any]) -> None:
    models = Path(trained["bundle_root"]) / "models"
    checkpoint = load_checkpoint(models / "model.pt")
    assert checkpoint.meta["parents"] == {"autoencoder": sha256_file(trained["autoencoder_checkpoint"]), "mean": None}
    assert checkpoint.meta["pixel_at_isocenter_mm"] == VOXEL_MM
    network = checkpoint.network()
    index = json.loads((Path(trained["latents_dir"]) / "latents.json").read_text())
    torch.testing.assert_close(network.latent_std, torch.tensor(index["latent_std"]))  # type: ignore[arg-type]
    assert (models / "checkpoint_last.pt").is_file() and list((Path(trained["bundle_root"]) / "eval").glob("events*"))


def test_training_goes_on_where_it_stopped(trained: dict[str, Any]) -> None:
    assert_it_goes_on_where_it_stopped(BUNDLE, {**trained, **TINY, **TRAIN})


def test_evaluation_gives_samples_their_mean_and_their_spread(trained: dict[str, Any], tmp_path: Path) -> None:
    output = {"output_dir": str(tmp_path), "val_angles_deg": [0, 45, 90, 135], "pixel_at_isocenter_mm": None}
    corrected = {"consistency_weight": 0.5, "consistency_iterations": 2, "consistency_final": 5}
    run(["train.json", "evaluate.json"], "train", **{**trained, **TINY, **TRAIN, **EVALUATE, **output, **corrected})
    assert_samples_of_both_cases(tmp_path, Path(trained["data_list_file"]), corrected)


def test_the_table_of_the_spread(trained: dict[str, Any], tmp_path: Path) -> None:
    options = {**TINY, **{key: value for key, value in TRAIN.items() if "#" in key}, "sample_batch_size": 2, "steps": 2}
    wanted = {"samples": 2, "columns": ["1 frontal", "2"], "options": options}
    model = str(Path(trained["bundle_root"]) / "models" / "model.pt")
    arguments = (trained["data_list_file"], str(tmp_path), model, trained["autoencoder_checkpoint"])
    benchmark_posterior.main(*arguments, **wanted)
    spread = [json.loads((tmp_path / "2" / case / "uncertainty.json").read_text())["summary"] for case in ("e1", "e2")]
    lines = (tmp_path / "spread.md").read_text().splitlines()
    assert len(lines) == 2 + 2 and len(list(csv.DictReader((tmp_path / "2" / "e1" / "samples.csv").open()))) == 2
    assert lines[-1].startswith(f"| 2 | {sum(one['std_hu_body'] for one in spread) / 2:.3g} | ")
    before = (tmp_path / "2" / "metrics_mean.csv").stat().st_mtime_ns
    benchmark_posterior.main(*arguments, **wanted)
    assert (tmp_path / "2" / "metrics_mean.csv").stat().st_mtime_ns == before


def inference(trained: dict[str, Any], output: Path, **overrides: Any) -> None:
    case = stored(Path(trained["data_list_file"]))
    keys = {key: trained[key] for key in ("bundle_root", "autoencoder_checkpoint")}
    options = {**EVALUATE, "precision": "fp32", "output_dir": str(output)}
    run(["inference.json"], "infer", **{**keys, **case, **options, **overrides})


def test_inference_is_the_same_for_the_same_seed_whatever_the_batch(trained: dict[str, Any], tmp_path: Path) -> None:
    volumes = []
    for name, options in (("a", {}), ("b", {"sample_batch_size": 1, "keep_samples": True}), ("c", {"sample_seed": 1})):
        inference(trained, tmp_path / name, **options)
        volumes.append(np.asarray(nib.nifti1.load(tmp_path / name / "e1" / "mean.nii.gz").dataobj, np.int32))
    assert np.abs(volumes[0] - volumes[1]).max() <= 1 and np.abs(volumes[0] - volumes[2]).max() > 1
    assert len(list((tmp_path / "b" / "e1").glob("sample_*.nii.gz"))) == 3


def test_radiographs_get_the_pixels_of_the_training(
    trained: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    means = []
    with caplog.at_level(logging.WARNING, "custom.core.checkpoints"):
        for name, options in (("a", {}), ("b", {"pixel_at_isocenter_mm": VOXEL_MM})):
            inference(trained, tmp_path / name, **options)
            means.append((tmp_path / name / "e1/mean.nii.gz").read_bytes())
        assert means[0] == means[1] and "was trained with" not in caplog.text
        inference(trained, tmp_path / "c", pixel_at_isocenter_mm=VOXEL_MM / 2)
    assert f"was trained with {VOXEL_MM}" in caplog.text
    loaded = load_checkpoint(Path(trained["bundle_root"]) / "models/model.pt")
    meta = {k: v for k, v in loaded.meta.items() if k not in ("pixel_at_isocenter_mm", "network_def")}
    older = save_checkpoint(tmp_path / "older.pt", loaded.network(), meta)
    with refused("pass --pixel_at_isocenter_mm"):
        inference(trained, tmp_path / "d", model_file=str(older))
    inference(trained, tmp_path / "d", model_file=str(older), pixel_at_isocenter_mm=VOXEL_MM)
    assert (tmp_path / "d/e1/mean.nii.gz").is_file()


def test_samples_are_moved_towards_the_radiographs(trained: dict[str, Any], tmp_path: Path) -> None:
    errors = []
    for name, options in (("off", {}), ("on", {"consistency_final": 20})):
        inference(trained, tmp_path / name, **options)
        errors.append(json.loads((tmp_path / name / "e1/uncertainty.json").read_text()))
    assert errors[1]["reprojection_error_mm"] < 0.5 * errors[0]["reprojection_error_mm"]
    assert (tmp_path / "on/e1/samples.csv").is_file() and not (tmp_path / "off/e1/samples.csv").exists()


@pytest.fixture(scope="module")
def told(paths: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A training with the reconstructions of a mean network, which are written once, and another mean network."""
    folder = tmp_path_factory.mktemp("told")
    means = [str(mean_network(folder / f"mean{seed}.pt", seed, GRID)) for seed in (1, 2)]
    own = {**paths, "latents_dir": str(folder / "latents")}
    latents = {**LATENTS, "mean_checkpoints": means[:1], "view_weights": {"1": 1, "2": 1}, "cone_prob": 0.5}
    run(["train.json", "latents.json"], "train", "encoding", **own, **TINY, **latents)
    own |= {"bundle_root": str(folder / "bundle"), "mean_checkpoint": means[0]}
    run(["train.json", "residual.json"], "train", **own, **TINY, **KNOWN)
    return {**own, "other": means[1]}


def test_a_mean_network_can_be_told_and_corrected(told: dict[str, Any], tmp_path: Path) -> None:
    paths = {key: value for key, value in told.items() if key != "other"}
    checkpoint = load_checkpoint(Path(told["bundle_root"]) / "models/model.pt")
    network = checkpoint.network()
    assert network.residual and not torch.allclose(network.residual_std, torch.ones(3))  # type: ignore[arg-type]
    assert checkpoint.meta["parents"]["mean"] == sha256_file(told["mean_checkpoint"])
    inference(paths, tmp_path / "out", mean_checkpoint=told["mean_checkpoint"])
    assert (tmp_path / "out/e1/mean.nii.gz").is_file()
    with refused("was trained for the mean network"):
        inference(paths, tmp_path / "out", mean_checkpoint=told["other"])


def test_latents_and_training_agree_on_the_mean_network(told: dict[str, Any], trained: dict[str, Any]) -> None:
    paths = {key: value for key, value in told.items() if key != "other"}
    with refused("know the reconstructions of another mean network"):
        run(["train.json", "residual.json"], "train", **{**paths, **TINY, **KNOWN, "mean_checkpoint": told["other"]})
    with refused("which a denoiser without known_channels cannot be told"):
        run(["train.json"], "train", **paths, **TINY, **KNOWN)
    with refused("the latents hold no reconstructions"):
        latents = {"latents_dir": trained["latents_dir"]}
        run(["train.json", "residual.json"], "train", **{**paths, **TINY, **KNOWN, **latents})


def test_residuals_of_training_and_validation_are_compared(told: dict[str, Any], tmp_path: Path) -> None:
    options = {key: value for key, value in told.items() if key != "other"} | {**TINY, "output_dir": str(tmp_path)}
    angles = {"val_angles_deg": [0, 90]}
    run(["train.json", "residual_variance.json"], "train", "measuring", **options, **angles)
    found = json.loads((tmp_path / "residual_variance.json").read_text())
    assert found["ratio"] == pytest.approx(found["validation_variance"] / found["training_variance"])
    assert 0 < found["training_entries"] < LATENTS["latents"]
    assert found["validation_cases"] == 1 and found["views"] == [2]
    with refused("no entry of the latents has [4] views"):
        run(["train.json", "residual_variance.json"], "train", "measuring", **options, val_angles_deg=None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"samples": 0}, "samples must be at least 2"),
        ({"guidance_scale": -1.0}, "guidance_scale must not be negative"),
        ({"autoencoder_checkpoint": "other"}, "was trained on latents of the autoencoder"),
        ({"model_file": "missing.pt"}, "no such"),
        ({"angles_deg": [10]}, "10"),
    ],
)
def test_bad_requests(trained: dict[str, Any], tmp_path: Path, overrides: dict, message: str) -> None:
    files = {"other": autoencoder(tmp_path / "other.pt", seed=1)}
    chosen = {k: str(files[v]) if isinstance(v, str) and v in files else v for k, v in overrides.items()}
    with refused(message):
        inference(trained, tmp_path, **chosen)


def test_latents_of_another_autoencoder_stop_the_training(trained: dict[str, Any], tmp_path: Path) -> None:
    other = {"autoencoder_checkpoint": str(autoencoder(tmp_path / "other.pt", seed=1))}
    with refused("encoded by another autoencoder"):
        run(["train.json"], "train", **{**trained, **TINY, **TRAIN, **other})


def test_from_the_command_line(trained: dict[str, Any], tmp_path: Path) -> None:
    options = {**trained, **TINY, **TRAIN, "bundle_root": str(tmp_path / "bundle")}
    command = command_line(str(BUNDLE.configs / "train.json"), options)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "bundle/models/model.pt").is_file()


# --- the files ---


@pytest.mark.parametrize("preset", ["grid_64"])
def test_presets_build_and_fit_the_autoencoders(preset: str) -> None:
    parsers = [bundle.parser("train.json", preset=preset) for bundle in (BUNDLE, Bundle("vqgan"))]
    denoiser, vqgan = (parser.get_parsed_content("network_def") for parser in parsers)
    assert denoiser.grid == vqgan.latent_grid and denoiser.latent_channels == vqgan.embedding_dim
    assert denoiser.hu_window == vqgan.hu_window


def test_the_default_fits_the_default_autoencoder() -> None:
    vqgan = Bundle("vqgan").config("train.json")
    train = config("train.json")
    assert train["grid"] == vqgan["grid"] and train["latent_channels"] == vqgan["embedding_dim"]
    compression = vqgan["network_def"]["space_to_depth"] * 2 ** (len(vqgan["network_def"]["encoder_widths"]) - 1)
    assert train["compression"] == compression


def test_keys_that_evaluation_and_inference_share_have_the_same_defaults() -> None:
    evaluate, inference, train = config("evaluate.json"), config("inference.json"), config("train.json")
    for key in ["samples", "sample_seed", "keep_samples", "pixel_at_isocenter_mm", *SAMPLER_OPTIONS]:
        assert evaluate[key] == inference[key], key
    for options in (evaluate["+validate#sampler"], inference["network_def"]):
        assert {key: options.get(key) for key in SAMPLER_OPTIONS} == {key: f"@{key}" for key in SAMPLER_OPTIONS}
    for key in ("hu_window", "autoencoder_checkpoint", "mean_checkpoint"):
        assert train[key] == inference[key], key


def test_the_launch_script_runs_all_three_stages(paths: dict[str, Any], tmp_path: Path) -> None:
    """With a `python` that notes what it is asked to do: the commands are what the pages say."""
    note = tmp_path / "note"
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "python $*" >> {note}\n')
    fake.chmod(0o755)
    (tmp_path / "out" / "latents").mkdir(parents=True)
    command = ["bash", str(ROOT / "scripts/train_ldm.sh"), paths["data_list_file"], str(tmp_path / "out"), "grid_64"]
    environment = {"PATH": f"{fake.parent}:/usr/bin:/bin", "OPTIONS_LDM": "--epochs 3"}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=60)
    lines = note.read_text().splitlines()
    assert [line.split()[4] for line in lines] == ["training", "encoding", "training"]
    assert all("presets/grid_64.json" in line for line in lines) and lines[2].endswith("--epochs 3")
    for line in lines:
        start, rest = line.split("--config_file ")
        files, options = rest.split("] ", 1)
        assert unknown_overrides(f'{start} --config_file "{files}]" {options}', ROOT) == []
    command[2] = str(tmp_path / "none.json")
    failed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert failed.returncode == 2 and "no such datalist" in failed.stderr


def test_the_launch_script_passes_a_signal_on(paths: dict[str, Any], tmp_path: Path) -> None:
    """A stage that is told to stop keeps what it has; the next one does not start."""
    note = tmp_path / "note"
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\ntrap "sleep 0.3; echo saved >> {note}; exit 143" TERM\n'
        f"echo started >> {note}\nwhile true; do sleep 0.05; done\n"
    )
    fake.chmod(0o755)
    command = ["bash", str(ROOT / "scripts/train_ldm.sh"), paths["data_list_file"], str(tmp_path / "out")]
    with subprocess.Popen(command, env={"PATH": f"{fake.parent}:/usr/bin:/bin"}) as process:
        while not note.is_file():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=60) == 143
    assert note.read_text().split() == ["started", "saved"]


@pytest.mark.integration
def test_two_processes_train_together(trained: dict[str, Any], tmp_path: Path) -> None:
    network = trained_by_two_and_then_by_one(BUNDLE, {**trained, **TINY, **TRAIN}, tmp_path)
    index = json.loads((Path(trained["latents_dir"]) / "latents.json").read_text())
    torch.testing.assert_close(network.latent_mean, torch.tensor(index["latent_mean"]))
