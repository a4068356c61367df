"""The bundle `inr_recon` as a user runs it: train, resume, evaluate, infer, on a tiny cohort."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_net_in_out

from custom.core.checkpoints import definition, load_checkpoint
from custom.geometry import Geometry
from custom.reconstruct import reconstruct
from tests.bundles.documented import unknown_overrides
from tests.bundles.tiny_cohort import COARSE_OVERRIDES, CUBE, INFERENCE_OVERRIDES, NETWORK_OVERRIDES, TRAIN_OVERRIDES
from tests.bundles.workflow import (
    ROOT,
    assert_overlay,
    command_line,
    epochs_of,
    killed_after_two_epochs,
    messages,
    run_workflow,
    train_in_two_processes,
)

BUNDLE = ROOT / "bundles" / "inr_recon"
CONFIGS = BUNDLE / "configs"
PRESETS = sorted(path.stem for path in (CONFIGS / "presets").glob("*.json"))


def config(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / name).read_text())


def run(names: list[str], kind: str, **overrides: Any) -> list[str]:
    return run_workflow([CONFIGS / name for name in names], kind, **overrides)


@pytest.fixture(scope="module")
def trained(paths: dict[str, Any]) -> dict[str, Any]:
    """The folders after a training of two iterations."""
    missing = run(["train.json"], "train", **paths, **TRAIN_OVERRIDES, **NETWORK_OVERRIDES)
    assert missing == []
    return paths


def stored(datalist: Path, case: str = "e1") -> dict[str, str]:
    folder = datalist.parent / "radiographs" / "fine"
    return {"image": str(folder / f"{case}.nii.gz"), "geometry": str(folder / f"{case}.json")}


def infer(trained: dict[str, Any], output: Path, **overrides: Any) -> list[str]:
    keywords = {"bundle_root": trained["bundle_root"], "output_dir": str(output)}
    return run(["inference.json"], "infer", **keywords, **INFERENCE_OVERRIDES, **NETWORK_OVERRIDES, **overrides)


# --- the files ---


def test_network_is_the_same_in_training_and_inference() -> None:
    train, inference = config("train.json"), config("inference.json")
    for key in (
        "network_def",
        "grid",
        "coarse_grid",
        "coarse_margin_mm",
        "coarse_spacing_mm",
        "prior_grid",
        "prior_spacing_mm",
        "hu_window",
        "energy_kev",
        "precision",
        "pixel_at_isocenter_mm",
    ):
        assert train[key] == inference[key], key


@pytest.mark.parametrize("name", ["evaluate.json", "multi_gpu_train.json"])
def test_overlays_are_small_and_replace_what_is_there(name: str) -> None:
    added = {"model_file", "data_list_key", "shuffle_radiographs", "evaluating", "backend", "finalize"}
    added |= {"segmenter_checkpoint"}
    added |= {"train#sampler", "validate#sampler", "train#dataloader#sampler", "validate#dataloader#sampler"}
    assert_overlay(CONFIGS / name, added)


@pytest.mark.parametrize("name", ["coarse_stage.json", *(f"presets/{preset}.json" for preset in PRESETS)])
def test_presets_change_only_what_training_has(name: str) -> None:
    train = config("train.json")
    for key in set(config(name)) - {"_desc_", "_desc_preset"}:
        *parents, last = key.split("#")
        assert last in functools.reduce(dict.__getitem__, parents, train), key


def test_the_coarse_stage_is_the_same_training_at_the_coarse_grid() -> None:
    train, coarse = ConfigParser(), ConfigParser()
    train.read_config(CONFIGS / "train.json")
    coarse.read_config([CONFIGS / "train.json", CONFIGS / "coarse_stage.json"])
    spacing = train["coarse_spacing_mm"]
    for key in ("grid", "body_grid", "loading_grid"):
        fine, own = train.get_parsed_content(key), coarse.get_parsed_content(key)
        assert own.half_extent_mm == fine.half_extent_mm and own.spacing_mm == (spacing,) * 3
    assert coarse["pixel_at_isocenter_mm"] == spacing == train["network_def"]["feature_spacing_mm"]


@pytest.mark.parametrize("preset", ["default", *PRESETS])
def test_presets_have_their_sizes(preset: str) -> None:
    parser = ConfigParser()
    overlay = [] if preset == "default" else [CONFIGS / "presets" / f"{preset}.json"]
    parser.read_config([CONFIGS / "train.json", *overlay])
    network = parser.get_parsed_content("network_def")
    total = sum(p.numel() for p in network.parameters())
    if preset == "default":
        assert total <= 5_000_000 and f"{total:,}" in (BUNDLE / "docs/README.md").read_text()
    if preset == "released_code":
        parts = [network.encoder, *network.view_mlps, network.volume_mlp]
        sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
        assert sizes == [20_284_224, 67_200, 67_200, 66_177] and total == 20_484_801
    if preset == "paper":
        assert len(network.view_mlps) == 1 and network.plain_mean
    if preset == "no_image_features":
        assert network.encoder is None


def test_metadata_says_what_the_network_does() -> None:
    metadata, train = config("metadata.json"), config("train.json")
    shapes = metadata["network_data_format"]
    assert shapes["inputs"]["image"]["spatial_shape"] == train["detector_shape"]
    assert shapes["inputs"]["image"]["num_channels"] == len(train["network_def"]["views"]["angles_deg"])
    assert shapes["outputs"]["pred"]["spatial_shape"] == train["grid"]["shape"]
    assert shapes["post_processed_outputs"]["pred"]["value_range"] == train["hu_window"]


def test_published_weights_are_those_of_the_card_and_fit_the_config() -> None:
    path = BUNDLE / "models/model.pt"
    checkpoint = load_checkpoint(path)
    assert path.stat().st_size <= 15_000_000
    assert checkpoint.hash in (BUNDLE / "models/README.md").read_text()
    parser = ConfigParser()
    parser.read_config(CONFIGS / "inference.json")
    network = parser.get_parsed_content("network_def")
    checkpoint.load_into(network)
    assert network.prior.scales.min() > 0 and 0.3 < network.prior.mean.mean() < 0.7, "the prior of chests is there"
    written = checkpoint.meta["network_def"]
    assert {k: written[k] for k in ("grid", "coarse_grid", "consistency_iterations", "rough_iterations")} == {
        k: definition(network)[k] for k in ("grid", "coarse_grid", "consistency_iterations", "rough_iterations")
    }


def test_network_takes_an_image_alone() -> None:
    shapes = {"_meta_#network_data_format#inputs#image#spatial_shape": [16, 24]}
    options = {"net_id": "network_def", "device": "cpu"}
    files = {"meta_file": str(CONFIGS / "metadata.json"), "config_file": str(CONFIGS / "inference.json")}
    verify_net_in_out(**options, **files, **INFERENCE_OVERRIDES, **NETWORK_OVERRIDES, **shapes)
    shapes["_meta_#network_data_format#outputs#pred#num_channels"] = 3  # type: ignore[assignment]
    with pytest.raises(ValueError, match="channel"):
        verify_net_in_out(**options, **files, **INFERENCE_OVERRIDES, **NETWORK_OVERRIDES, **shapes)


# --- the documentation ---


def test_a_mistyped_override_is_found() -> None:
    command = "python -m monai.bundle run training --config_file bundles/inr_recon/configs/train.json"
    assert unknown_overrides(f"{command} --epochs 3 --grid#shape 1 --grid#shap 1 --learning_rte 2", ROOT) == [
        "grid#shap",
        "learning_rte",
    ]


# --- training, evaluation, inference ---


def test_training_leaves_weights_a_checkpoint_and_curves(trained: dict[str, Any]) -> None:
    folder = Path(trained["bundle_root"])
    checkpoint = load_checkpoint(folder / "models/model.pt")
    assert checkpoint.meta["preset"] == "default" and checkpoint.meta["validation"]["psnr_range"] > 0
    assert checkpoint.meta["network_def"]["grid"]["shape"] == [CUBE] * 3, "overrides of nested keys reached the network"
    assert checkpoint.network().prior.mean.std() > 0.01  # type: ignore[union-attr]
    state = torch.load(folder / "models/checkpoint_last.pt", weights_only=True)
    assert state["trainer"]["iteration"] == TRAIN_OVERRIDES["iterations_per_epoch"]
    assert list((folder / "eval").glob("events.out.tfevents*"))


def test_the_coarse_stage_trains_the_volume_network_that_training_starts_from(
    paths: dict[str, Any], datalist: Path, tmp_path: Path
) -> None:
    """With phantoms mixed in. A training without steps shows what it started from."""
    network = {key: value for key, value in NETWORK_OVERRIDES.items() if "#fine_" not in key}
    coarse = {**TRAIN_OVERRIDES, **network, **COARSE_OVERRIDES, "data_list_file": paths["data_list_file"]}
    mixed = {"phantom_list_file": str(datalist), "phantom_prob": 0.5}
    run(["train.json", "coarse_stage.json"], "train", **coarse, **mixed, bundle_root=str(tmp_path / "coarse"))
    first = tmp_path / "coarse/models/model.pt"
    weights = load_checkpoint(first).state
    assert all(name in weights for name in ("prior.components", "volume_network.leave.weight"))
    assert not any(name.startswith("fine_") for name in weights), "the fine stage comes next"
    assert weights["volume_network.leave.bias"].abs().max() > 0, "the volume network was"
    fine = {**TRAIN_OVERRIDES, **NETWORK_OVERRIDES, "data_list_file": paths["data_list_file"], "learning_rate": 0.0}
    run(["train.json"], "train", **fine, bundle_root=str(tmp_path / "fine"), start_from=str(first))
    second = load_checkpoint(tmp_path / "fine/models/model.pt").state
    for name, value in weights.items():
        torch.testing.assert_close(second[name], value)
    assert any(name.startswith("fine_network") for name in second)


def test_evaluation_sees_the_radiographs_that_it_is_given(trained: dict[str, Any], tmp_path: Path) -> None:
    found = {}
    for shuffle in (False, True):
        output = tmp_path / str(shuffle)
        overrides = {"output_dir": str(output), "shuffle_radiographs": shuffle, "val_angles_deg": [0, 45, 90]}
        run(["train.json", "evaluate.json"], "train", **trained, **TRAIN_OVERRIDES, **NETWORK_OVERRIDES, **overrides)
        found[shuffle] = json.loads((output / "metrics.json").read_text())
        assert (output / "metrics.csv").read_text().count("\n") == 3
    text = json.dumps(found[False])
    assert '"e1"' in text and '"e2"' in text and "psnr_range" in text
    assert text != json.dumps(found[True])


def test_inference_is_reconstruct_in_the_frame_of_the_ct(
    trained: dict[str, Any], datalist: Path, tmp_path: Path
) -> None:
    assert infer(trained, tmp_path, **stored(datalist)) == []
    (written,) = tmp_path.glob("*.nii.gz")
    volume = nib.nifti1.load(written)
    assert written.name == "e1_ct.nii.gz" and volume.get_data_dtype() == np.int16
    truth = nib.nifti1.load(datalist.parent / "ct/e1.nii.gz")
    np.testing.assert_allclose(volume.affine, truth.affine, atol=1e-4)
    assert volume.shape == truth.shape
    files = stored(datalist)
    model = Path(trained["bundle_root"]) / "models/model.pt"
    expected = reconstruct([files["image"]], geometry=files["geometry"], model=model, precision="fp32")
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(volume.dataobj), expected.hu.numpy())


def test_inference_from_one_of_the_views(trained: dict[str, Any], datalist: Path, tmp_path: Path) -> None:
    infer(trained, tmp_path, **stored(datalist), angles_deg=[90])
    assert list(tmp_path.glob("*.nii.gz"))


# --- bad input ---


def test_inference_names_radiographs_that_do_not_fit_the_geometry(
    trained: dict[str, Any], datalist: Path, tmp_path: Path
) -> None:
    files = stored(datalist)
    fewer = tmp_path / "three.json"
    Geometry.load(files["geometry"]).select([0, 1, 2]).save(fewer)
    with pytest.raises(Exception) as error:
        infer(trained, tmp_path / "out", image=files["image"], geometry=str(fewer))
    assert "4 radiographs" in messages(error.value) and "3 views" in messages(error.value)
    with pytest.raises(Exception) as error:
        infer(trained, tmp_path / "out", image=str(tmp_path / "gone.nii.gz"), geometry=files["geometry"])
    assert "gone.nii.gz: no such file" in messages(error.value)
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_inference_refuses_other_weights(trained: dict[str, Any], datalist: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception) as error:
        infer(trained, tmp_path, **stored(datalist), model_file=str(tmp_path / "nowhere.pt"))
    assert "nowhere.pt: no such checkpoint" in messages(error.value)
    with pytest.raises(Exception) as error:
        infer(trained, tmp_path, **{**stored(datalist), "network_def#fine_network#encoder_blocks": [1, 2]})
    assert "model.pt: the weights belong to another architecture" in messages(error.value)


def test_training_names_a_datalist_that_is_missing(paths: dict[str, Any], tmp_path: Path) -> None:
    overrides = {**paths, **TRAIN_OVERRIDES, **NETWORK_OVERRIDES, "data_list_file": str(tmp_path / "datalist.json")}
    with pytest.raises(Exception) as error:
        run(["train.json"], "train", **overrides)
    assert "datalist.json: no such datalist; 'fewview-ct prepare" in messages(error.value)


# --- the command line ---


def test_a_killed_training_goes_on_where_it_was(datalist: Path, tmp_path: Path) -> None:
    overrides = {
        **TRAIN_OVERRIDES,
        **NETWORK_OVERRIDES,
        "bundle_root": str(tmp_path / "bundle"),
        "data_list_file": str(datalist),
        "iterations_per_epoch": 1,
        "val_interval": 100000,
        "epochs": 100000,
    }
    checkpoint = tmp_path / "bundle/models/checkpoint_last.pt"
    first = command_line("bundles/inr_recon/configs/train.json", overrides)
    reached = killed_after_two_epochs(first, checkpoint, tmp_path / "first.log")

    # From another folder, where the package must be installed.
    again = command_line(str(CONFIGS / "train.json"), {**overrides, "epochs": reached + 2})
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"resumed {checkpoint} after epoch {reached}" in done.stdout + done.stderr
    assert epochs_of(checkpoint) == reached + 2


@pytest.mark.integration
def test_two_processes_train_together(datalist: Path, tmp_path: Path) -> None:
    overrides = {
        **TRAIN_OVERRIDES,
        **NETWORK_OVERRIDES,
        "bundle_root": str(tmp_path / "bundle"),
        "data_list_file": str(datalist),
    }
    train_in_two_processes(CONFIGS, overrides)
    assert load_checkpoint(tmp_path / "bundle/models/model.pt").network().prior.mean.std() > 0.01  # type: ignore
    assert len(list((tmp_path / "bundle/eval").glob("events.out.tfevents*"))) <= 2, "one process writes curves"
    # A single process goes on with what two have begun.
    run(["train.json"], "train", **{**overrides, "epochs": 2})
    state = torch.load(tmp_path / "bundle/models/checkpoint_last.pt", weights_only=True)
    assert state["trainer"]["iteration"] == 2 * TRAIN_OVERRIDES["iterations_per_epoch"]


@pytest.mark.integration
def test_network_takes_an_image_alone_at_its_own_size() -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
        device="cpu",
    )
