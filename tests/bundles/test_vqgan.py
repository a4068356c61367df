"""The bundle `vqgan` as a user runs it: train, resume, evaluate, infer, on a tiny cohort."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from custom.core.checkpoints import load_checkpoint
from custom.core.hu_window import hu_to_unit
from custom.networks import VQGAN
from tests.bundles.tiny_cohort import CUBE, GRID_OVERRIDES, LOADING_OVERRIDES, STEPS, make_cohort
from tests.bundles.workflow import (
    Bundle,
    epochs_of,
    killed_after_two_epochs,
    refused,
    trained_by_two_and_then_by_one,
)

BUNDLE = Bundle("vqgan")
config, run = BUNDLE.config, BUNDLE.run

#: What the weights depend on, of training and inference alike.
NETWORK_OVERRIDES: dict[str, Any] = {
    **GRID_OVERRIDES,
    "codes": 16,
    "network_def#encoder_widths": [4, 8],
    "network_def#decoder_widths": [4, 8],
}
TRAIN_OVERRIDES: dict[str, Any] = {
    **NETWORK_OVERRIDES,
    **STEPS,
    **LOADING_OVERRIDES,
    "disc_channels": 8,
    "disc_layers": 2,
    "disc_start_step": 1,
    "disc_ramp_steps": 2,
}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_cohort(folder := tmp_path_factory.mktemp("cohort"))
    return folder / "datalist.json"


@pytest.fixture(scope="module")
def trained(paths: dict[str, Any]) -> dict[str, Any]:
    """The folders after a training of two iterations, with phantoms and patches."""
    extras = {"phantom_list_file": paths["data_list_file"], "phantom_prob": 0.5, "patches_per_volume": 2}
    assert run(["train.json"], "train", **paths, **TRAIN_OVERRIDES, **extras, patch=12) == []
    return paths


def infer(trained: dict[str, Any], image: Path, output: Path, **overrides: Any) -> list[str]:
    keywords = {"bundle_root": trained["bundle_root"], "image": str(image), "output_dir": str(output)}
    return run(["inference.json"], "infer", **keywords, **{**NETWORK_OVERRIDES, **overrides})


# --- the files ---


@pytest.mark.parametrize("preset", ["default", *BUNDLE.presets])
def test_presets_build_networks_of_the_documented_size(preset: str) -> None:
    network = BUNDLE.parser("train.json", preset=preset).get_parsed_content("network_def")
    assert network.compression == 4 and network.embedding_dim == 8 and network.quantiser.num_embeddings == 4096
    assert f"{sum(p.numel() for p in network.parameters()):,}" in BUNDLE.readme
    if preset == "grid_64":
        assert network.latent_grid.shape == (16, 16, 16) and network.latent_grid.spacing_mm == (20.0,) * 3
    else:
        assert network.latent_grid.shape == (32, 32, 32)


def test_metadata_says_what_the_encoder_does() -> None:
    metadata, train = config("metadata.json"), config("train.json")
    latent = metadata["encoder_data_format"]["outputs"]["latent"]
    assert latent["num_channels"] == train["embedding_dim"]
    assert latent["spatial_shape"] == [n // 4 for n in train["grid"]["shape"]]


def test_network_takes_an_image_alone() -> None:
    BUNDLE.takes_an_image_alone(NETWORK_OVERRIDES, [CUBE] * 3)


# --- training, evaluation, inference ---


def test_training_leaves_weights_a_checkpoint_and_curves(trained: dict[str, Any]) -> None:
    folder = Path(trained["bundle_root"])
    checkpoint = load_checkpoint(folder / "models/model.pt")
    assert checkpoint.meta["preset"] == "default" and checkpoint.meta["validation"]["psnr_range"] > 0
    network = checkpoint.network()
    assert isinstance(network, VQGAN) and network.grid.shape == (CUBE,) * 3 and network.latent_grid.shape == (4, 4, 4)
    state = torch.load(folder / "models/checkpoint_last.pt", weights_only=True)
    assert state["trainer"]["iteration"] == TRAIN_OVERRIDES["iterations_per_epoch"]
    assert state["guard"]["steps"] == 2 and state["network"]["quantiser.ready"] == 1
    assert state["disc_optimizer"]["state"], "the discriminators have started"
    curves: set[str] = set()
    for file in (folder / "eval").glob("events.out.tfevents*"):
        events = EventAccumulator(str(file))
        curves |= set(events.Reload().Tags()["scalars"])
    assert {"l1", "commitment", "perplexity", "codebook_use"} <= curves, "every term of the loss has a curve"


def test_evaluation_writes_both_ceilings_of_every_case(trained: dict[str, Any], tmp_path: Path) -> None:
    overrides = {**trained, **TRAIN_OVERRIDES, "output_dir": str(tmp_path)}
    assert run(["train.json", "evaluate.json"], "train", **overrides) == []
    means = json.loads((tmp_path / "autoencoder.json").read_text())
    assert {"psnr_range", "psnr_4095", "ssim", "psnr_range_quantised", "codebook_use", "perplexity"} <= set(means)
    assert 0 < means["codebook_use"] <= 1 <= means["perplexity"] <= 16
    for stem, suffix in (("metrics", ""), ("metrics_quantised", "_quantised")):
        header, *rows = (tmp_path / f"{stem}.csv").read_text().splitlines()
        table = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
        assert [row["case"] for row in table] == ["e1", "e2"]
        mean = sum(float(row["psnr_range"]) for row in table) / 2
        assert means[f"psnr_range{suffix}"] == pytest.approx(mean, abs=1e-3)


def test_inference_writes_reconstruction_and_latents_where_the_ct_is(
    trained: dict[str, Any], datalist: Path, tmp_path: Path
) -> None:
    """Also of a CT that is stored upside down and the other way round."""
    source = datalist.parent / "ct/e1.nii.gz"
    truth = nib.nifti1.load(source)
    turned = tmp_path / "turned.nii.gz"
    nib.nifti1.save(truth.as_reoriented(np.array([[0, -1], [1, 1], [2, -1]])), turned)
    network = load_checkpoint(Path(trained["bundle_root"]) / "models/model.pt").network(precision="fp32")
    unit = hu_to_unit(torch.from_numpy(np.asarray(truth.dataobj, dtype=np.float32))[None, None], [-1000, 1000])
    with torch.no_grad():
        expected, latent = network(unit), network.encode(unit)  # type: ignore[operator]
    for image, quantise in ((source, False), (turned, False), (source, True)):
        output = tmp_path / f"{image.name}_{quantise}"
        assert infer(trained, image, output, save_latents=True, quantise=quantise) == []
        name = image.name.split(".")[0]
        volume = nib.nifti1.load(output / f"{name}_autoencoded.nii.gz")
        assert volume.get_data_dtype() == np.int16 and volume.shape == (CUBE,) * 3
        np.testing.assert_allclose(volume.affine, truth.affine, atol=1e-4)
        difference = np.abs(np.asarray(volume.dataobj) - expected.clamp(-1, 1)[0, 0].numpy() * 1000).max()
        assert (difference <= 1.0) != quantise
        stored = nib.nifti1.load(output / f"{name}_latent.nii.gz")
        np.testing.assert_allclose(np.asarray(stored.dataobj).transpose(3, 0, 1, 2), latent[0].numpy(), atol=1e-4)
        # The latents' first voxel is the middle of the CT's first 4 x 4 x 4.
        np.testing.assert_allclose(stored.affine @ [0, 0, 0, 1], truth.affine @ [1.5, 1.5, 1.5, 1], atol=1e-3)


def test_latents_are_written_only_if_asked(trained: dict[str, Any], datalist: Path, tmp_path: Path) -> None:
    infer(trained, datalist.parent / "ct/e2.nii.gz", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["e2_autoencoded.nii.gz"]


# --- bad input ---


def test_inference_refuses_other_weights_and_bad_volumes(
    trained: dict[str, Any], datalist: Path, tmp_path: Path
) -> None:
    image = datalist.parent / "ct/e1.nii.gz"
    with refused("nowhere.pt: no such checkpoint"):
        infer(trained, image, tmp_path, model_file=str(tmp_path / "nowhere.pt"))
    with refused("model.pt: the weights belong to another architecture"):
        infer(trained, image, tmp_path, codes=24)
    broken = tmp_path / "broken.nii.gz"
    values = np.full((CUBE,) * 3, np.nan, dtype=np.float32)
    nib.nifti1.save(nib.nifti1.Nifti1Image(values, nib.nifti1.load(image).affine), broken)
    with refused("NaN or infinite"):
        infer(trained, broken, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"grid#shape": [16, 16, 18]}, "multiple of 4"),
        ({"perceptual_network": "vgg16"}, "vgg16-397923af.pth"),
        ({"disc_layers": 4}, "num_layers_d"),
        ({"patch": 20}, "a patch of 20 voxels does not fit"),
    ],
)
def test_training_names_what_does_not_fit(
    paths: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with refused(message):
        run(["train.json"], "train", **{**paths, **TRAIN_OVERRIDES, "bundle_root": str(tmp_path), **changes})


# --- the command line ---


def test_a_stopped_training_goes_on_where_it_was(datalist: Path, tmp_path: Path) -> None:
    """By SIGTERM, as a scheduler does it; inr_recon's is killed without a warning."""
    overrides = {**TRAIN_OVERRIDES, "data_list_file": str(datalist)}
    overrides, checkpoint, reached = killed_after_two_epochs(BUNDLE, overrides, tmp_path, signal.SIGTERM)
    log = (tmp_path / "first.log").read_text()
    assert f"stopped by SIGTERM after iteration {reached}; the same command goes on" in log and "Traceback" not in log

    # In this process, so that one command line is enough.
    run(["train.json"], "train", **overrides)
    assert epochs_of(checkpoint) == reached + 2


@pytest.mark.integration
def test_two_processes_train_together(datalist: Path, tmp_path: Path) -> None:
    overrides = {**TRAIN_OVERRIDES, "data_list_file": str(datalist), "iterations_per_epoch": 4}
    assert isinstance(trained_by_two_and_then_by_one(BUNDLE, overrides, tmp_path, curves=3), VQGAN)
