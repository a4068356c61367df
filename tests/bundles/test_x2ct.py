"""The bundle `x2ct` as a user runs it: train, resume, evaluate, infer, on a tiny cohort."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_net_in_out
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from custom.benchmark import network_row
from custom.core.checkpoints import load_checkpoint
from custom.data.transforms import LoadRadiographsd
from custom.networks import X2CT
from custom.reconstruct import reconstruct
from tests.bundles.tiny_cohort import CUBE, VOXEL_MM
from tests.bundles.workflow import (
    ROOT,
    assert_overlay,
    command_line,
    epochs_of,
    keys_in_order_of_inr_recon,
    killed_after_two_epochs,
    messages,
    run_workflow,
    train_in_two_processes,
)

BUNDLE = ROOT / "bundles" / "x2ct"
CONFIGS = BUNDLE / "configs"
PRESETS = sorted(path.stem for path in (CONFIGS / "presets").glob("*.json"))

#: What the weights depend on, of training and inference alike.
NETWORK_OVERRIDES: dict[str, Any] = {
    "precision": "fp32",
    "pixel_at_isocenter_mm": VOXEL_MM,
    "grid#shape": [CUBE] * 3,
    "grid#spacing_mm": [VOXEL_MM] * 3,
    "dense_layers": [1, 1],
    "decoder_channels": [2, 2, 4],
    "network_def#stem_channels": 4,
    "network_def#growth": 4,
}
TRAIN_OVERRIDES: dict[str, Any] = {
    **NETWORK_OVERRIDES,
    "epochs": 1,
    "constant_epochs": 0,
    "iterations_per_epoch": 2,
    "val_interval": 1,
    "batch_size": 2,
    "detector_shape": [16, 16],
    "body_margin_mm": [4 * VOXEL_MM, 2 * VOXEL_MM, 0],
    "loading_margin_mm": [8 * VOXEL_MM, 4 * VOXEL_MM, 4 * VOXEL_MM],
    "loading_spacing_mm": VOXEL_MM,
    "disc_channels": 4,
    "disc_layers": 2,
}
SHARED = (
    "network_def",
    "grid",
    "hu_window",
    "energy_kev",
    "precision",
    "pixel_at_isocenter_mm",
    "view_count",
    "angle_tolerance_deg",
    "dense_layers",
    "decoder_channels",
)


def config(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / name).read_text())


def run(names: list[str], kind: str, **overrides: Any) -> list[str]:
    return run_workflow([CONFIGS / name for name in names], kind, **overrides)


@pytest.fixture(scope="module")
def trained(paths: dict[str, Any]) -> dict[str, Any]:
    """The folders after a training of two iterations, with phantoms."""
    extras = {"phantom_list_file": paths["data_list_file"], "phantom_prob": 0.5}
    assert run(["train.json"], "train", **paths, **TRAIN_OVERRIDES, **extras) == []
    return paths


def stored(datalist: Path, case: str = "e1") -> dict[str, str]:
    folder = datalist.parent / "radiographs" / "fine"
    return {"image": str(folder / f"{case}.nii.gz"), "geometry": str(folder / f"{case}.json")}


def infer(trained: dict[str, Any], output: Path, names: tuple[str, ...] = (), **overrides: Any) -> list[str]:
    keywords = {"bundle_root": trained["bundle_root"], "output_dir": str(output), **NETWORK_OVERRIDES, **overrides}
    return run(["inference.json", *names], "infer", **keywords)


# --- the files ---


def test_network_is_the_same_in_training_and_inference() -> None:
    train, inference = config("train.json"), config("inference.json")
    for key in SHARED:
        assert train[key] == inference[key], key


def test_keys_are_those_of_inr_recon_and_stand_in_its_order() -> None:
    """A user who knows one bundle knows all."""
    assert {
        "epochs",
        "learning_rate",
        "grid",
        "view_weights",
        "warp_mm",
        "val_angles_deg",
        "ema",
    } <= keys_in_order_of_inr_recon(CONFIGS)


@pytest.mark.parametrize("name", ["evaluate.json", "multi_gpu_train.json"])
def test_overlays_are_small_and_replace_what_is_there(name: str) -> None:
    added = {"model_file", "data_list_key", "shuffle_radiographs", "evaluating", "backend", "finalize"}
    added |= {"validate#sampler", "validate#dataloader#sampler"}
    assert_overlay(CONFIGS / name, added)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_change_only_what_training_has(preset: str) -> None:
    train = ConfigParser(config("train.json"))
    for key in config(f"presets/{preset}.json"):
        assert key == "_desc_preset" or key.replace("#", "::") in train, key


#: Presets to the generator's parameters; those at 128^3 are the published numbers.
SIZES = {
    (): 61_740_467,
    ("gan",): 61_740_467,
    ("single_view",): 29_384_481,
    ("grid_64",): 58_988_003,
    ("grid_64", "single_view"): 28_022_097,
}


@pytest.mark.parametrize("presets", SIZES)
def test_presets_build_networks_of_the_documented_size(presets: tuple[str, ...]) -> None:
    parser = ConfigParser()
    parser.read_config([CONFIGS / "train.json", *(CONFIGS / f"presets/{preset}.json" for preset in presets)])
    assert parser["network_def#views#angles_deg"] == parser["val_angles_deg"]
    parser["network_def#views"] = None
    with torch.device("meta"):
        network, judge = parser.get_parsed_content("network_def"), parser.get_parsed_content("discriminator_def")
    assert sum(p.numel() for p in network.parameters()) == SIZES[presets]
    assert f"{SIZES[presets]:,}" in (BUNDLE / "docs/README.md").read_text()
    assert network.view_count == judge.view_count == (1 if "single_view" in presets else 2)
    network.require_angles(parser["val_angles_deg"])
    if presets == ("gan",):
        assert sum(p.numel() for p in judge.parameters()) == 11_055_169
        assert parser.get_parsed_content("loss").weights == {
            "reconstruction": 10,
            "projection": 10,
            "adversarial": 0.1,
        }
    if presets == ():
        assert parser.get_parsed_content("loss").weights == {"reconstruction": 10, "projection": 0, "adversarial": 0}
    if "grid_64" in presets:
        assert network.grid.shape == (64,) * 3 and network.grid.half_extent_mm == (160.0,) * 3
        assert "NOT the published network" in config("presets/grid_64.json")["_desc_preset"]


def test_every_preset_is_there_and_documented() -> None:
    assert PRESETS == ["gan", "grid_64", "single_view"]
    readme = (BUNDLE / "docs/README.md").read_text()
    assert all(f"presets/{preset}.json" in readme for preset in PRESETS)


def test_metadata_says_what_the_network_does() -> None:
    metadata, train = config("metadata.json"), config("train.json")
    shapes = metadata["network_data_format"]
    assert shapes["inputs"]["image"]["spatial_shape"] == train["detector_shape"]
    assert shapes["inputs"]["image"]["num_channels"] == train["view_count"]
    assert shapes["outputs"]["pred"]["spatial_shape"] == train["grid"]["shape"]
    assert shapes["post_processed_outputs"]["pred"]["value_range"] == train["hu_window"]


def test_network_takes_an_image_alone() -> None:
    options = {"net_id": "network_def", "device": "cpu"}
    files = {"meta_file": str(CONFIGS / "metadata.json"), "config_file": str(CONFIGS / "inference.json")}
    shapes: dict[str, Any] = {
        "_meta_#network_data_format#inputs#image#spatial_shape": [16, 16],
        "_meta_#network_data_format#outputs#pred#spatial_shape": [CUBE] * 3,
    }
    verify_net_in_out(**options, **files, **NETWORK_OVERRIDES, **shapes)
    shapes["_meta_#network_data_format#outputs#pred#num_channels"] = 3
    with pytest.raises(ValueError, match="channel"):
        verify_net_in_out(**options, **files, **NETWORK_OVERRIDES, **shapes)


# --- training, evaluation, inference ---


def test_training_leaves_weights_a_checkpoint_and_curves(trained: dict[str, Any]) -> None:
    folder = Path(trained["bundle_root"])
    checkpoint = load_checkpoint(folder / "models/model.pt")
    assert checkpoint.meta["preset"] == "default" and checkpoint.meta["validation"]["psnr_range"] > 0
    assert checkpoint.meta["pixel_at_isocenter_mm"] == VOXEL_MM and checkpoint.meta["training_views"] == {"2": 1}
    assert checkpoint.meta["cone_prob"] == 0 and len(checkpoint.meta["source_to_detector_mm"]) == 2
    network = checkpoint.network()
    assert isinstance(network, X2CT) and network.grid.shape == (CUBE,) * 3
    state = torch.load(folder / "models/checkpoint_last.pt", weights_only=True)
    assert state["trainer"]["iteration"] == TRAIN_OVERRIDES["iterations_per_epoch"]
    assert not state["disc_optimizer"]["state"], "X2CT-CNN has no discriminator"
    assert scalars(folder) >= {"reconstruction", "projection"} and "adversarial" not in scalars(folder)


def scalars(folder: Path) -> set[str]:
    curves: set[str] = set()
    for file in (folder / "eval").glob("events.out.tfevents*"):
        curves |= set(EventAccumulator(str(file)).Reload().Tags()["scalars"])
    return curves


def test_the_gan_trains_its_discriminator_from_the_cnns_weights(trained: dict[str, Any], tmp_path: Path) -> None:
    overrides = {**trained, **TRAIN_OVERRIDES, "bundle_root": str(tmp_path)}
    start = Path(trained["bundle_root"]) / "models/model.pt"
    names = ["train.json", "presets/gan.json"]
    assert run(names, "train", **{**overrides, "start_from": str(start), "learning_rate": 0.0}) == []
    state = torch.load(tmp_path / "models/checkpoint_last.pt", weights_only=True)
    assert state["disc_optimizer"]["state"] and state["discriminator"]
    assert scalars(tmp_path) >= {"reconstruction", "projection", "adversarial", "discriminator"}
    checkpoint = load_checkpoint(tmp_path / "models/model.pt")
    assert checkpoint.meta["preset"] == "gan"
    for name, value in load_checkpoint(start).state.items():
        torch.testing.assert_close(checkpoint.state[name], value)


def test_one_view_from_training_to_inference(paths: dict[str, Any], datalist: Path, tmp_path: Path) -> None:
    overrides = {**paths, **TRAIN_OVERRIDES, "bundle_root": str(tmp_path)}
    assert run(["train.json", "presets/single_view.json"], "train", **overrides) == []
    row = network_row("x2ct", tmp_path / "models/model.pt")
    written = {}
    for angle in (0, 90):
        output = tmp_path / str(angle)
        files = {**stored(datalist), "angles_deg": [angle]}
        infer({"bundle_root": str(tmp_path)}, output, ("presets/single_view.json",), **files)
        written[angle] = np.asarray(nib.nifti1.load(output / "e1_ct.nii.gz").dataobj)
        case = LoadRadiographsd(angles_deg=[angle])(stored(datalist))
        np.testing.assert_allclose(row.run(case["image"], case["views"]).numpy(), written[angle], atol=1.0)
    assert np.abs(written[0] - written[90]).max() > 1
    with pytest.raises(Exception) as error:
        infer({"bundle_root": str(tmp_path)}, tmp_path, ("presets/single_view.json",), **stored(datalist))
    assert "for 1 radiograph(s), a lateral or a frontal one, got 4" in messages(error.value)


def test_evaluation_sees_the_radiographs_that_it_is_given(trained: dict[str, Any], tmp_path: Path) -> None:
    found = {}
    for shuffle in (False, True):
        output = tmp_path / str(shuffle)
        overrides = {**trained, **TRAIN_OVERRIDES, "output_dir": str(output), "shuffle_radiographs": shuffle}
        run(["train.json", "evaluate.json"], "train", **overrides)
        found[shuffle] = json.loads((output / "metrics.json").read_text())
        assert (output / "metrics.csv").read_text().count("\n") == 3
    text = json.dumps(found[False])
    assert '"e1"' in text and '"e2"' in text and "psnr_range" in text
    assert text != json.dumps(found[True])


def test_inference_is_reconstruct_in_the_frame_of_the_ct(
    trained: dict[str, Any], datalist: Path, tmp_path: Path
) -> None:
    assert infer(trained, tmp_path, **stored(datalist), angles_deg=[0, 90]) == []
    (written,) = tmp_path.glob("*.nii.gz")
    volume, truth = nib.nifti1.load(written), nib.nifti1.load(datalist.parent / "ct/e1.nii.gz")
    assert written.name == "e1_ct.nii.gz" and volume.get_data_dtype() == np.int16
    np.testing.assert_allclose(volume.affine, truth.affine, atol=1e-4)
    assert volume.shape == truth.shape
    files = stored(datalist)
    model = Path(trained["bundle_root"]) / "models/model.pt"
    expected = reconstruct(
        [files["image"]], geometry=files["geometry"], model=model, angles_deg=[90, 0], precision="fp32"
    )
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)
    np.testing.assert_allclose(np.asarray(volume.dataobj), expected.hu.numpy(), atol=1)


# --- bad input ---


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"val_angles_deg": [0, 45, 90]}, "got 3"),
        ({"val_angles_deg": [0, 45]}, "45.0 degrees off"),
        ({"view_weights": {"3": 1}}, "got 3"),
        ({"view_weights": {"1": 1}}, "got 1"),
        ({"cone_prob": 1.0}, "angle_tolerance_deg"),
        ({"grid#shape": [16, 16, 18]}, "needs a cube"),
        ({"view_count": 3}, "1 or 2 views"),
        ({"constant_epochs": 2}, "cannot keep its learning rate"),
        ({"data_list_file": "nowhere.json"}, "nowhere.json: no such datalist; 'fewview-ct prepare"),
        ({"adversarial_weight": 0.1, "disc_layers": 3}, "use fewer layers (disc_layers)"),
    ],
)
def test_training_names_what_does_not_fit(
    paths: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception) as error:
        run(["train.json"], "train", **{**paths, **TRAIN_OVERRIDES, "bundle_root": str(tmp_path), **changes})
    assert message in messages(error.value)
    assert not (tmp_path / "models/model.pt").exists()


def test_validation_angles_are_judged_before_anything_is_loaded(tmp_path: Path) -> None:
    overrides = {**TRAIN_OVERRIDES, "data_list_file": str(tmp_path / "nowhere.json"), "val_angles_deg": [45]}
    with pytest.raises(Exception) as error:
        run(["train.json"], "train", **overrides, bundle_root=str(tmp_path))
    assert "for 2 radiograph(s)" in messages(error.value)


def test_inference_refuses_four_views_and_other_weights(
    trained: dict[str, Any], datalist: Path, tmp_path: Path
) -> None:
    with pytest.raises(Exception) as error:
        infer(trained, tmp_path, **stored(datalist))
    assert "got 4" in messages(error.value) and "[0, 90]" in messages(error.value)
    with pytest.raises(Exception) as error:
        infer(trained, tmp_path, **stored(datalist), angles_deg=[45, 135])
    assert "45.0 degrees off" in messages(error.value)
    with pytest.raises(Exception) as error:
        infer(trained, tmp_path, **stored(datalist), model_file=str(tmp_path / "nowhere.pt"))
    assert "nowhere.pt: no such checkpoint" in messages(error.value)
    with pytest.raises(Exception) as error:
        infer(trained, tmp_path, **stored(datalist), decoder_channels=[2, 4, 4])
    assert "model.pt: the weights belong to another architecture" in messages(error.value)
    assert not list(tmp_path.rglob("*.nii.gz"))


# --- the command line ---


def test_a_killed_training_goes_on_where_it_was(datalist: Path, tmp_path: Path) -> None:
    overrides = {
        **TRAIN_OVERRIDES,
        "bundle_root": str(tmp_path / "bundle"),
        "data_list_file": str(datalist),
        "adversarial_weight": 0.1,
        "iterations_per_epoch": 1,
        "val_interval": 100000,
        "epochs": 100000,
    }
    checkpoint = tmp_path / "bundle/models/checkpoint_last.pt"
    first = command_line("bundles/x2ct/configs/train.json", overrides)
    reached = killed_after_two_epochs(first, checkpoint, tmp_path / "first.log")

    # In this process, so that one command line is enough.
    run(["train.json"], "train", **{**overrides, "epochs": reached + 2})
    assert epochs_of(checkpoint) == reached + 2
    state = torch.load(checkpoint, weights_only=True)
    steps = {int(entry["step"]) for entry in state["disc_optimizer"]["state"].values()}
    assert steps == {reached + 2}, "the discriminator goes on, too"


@pytest.mark.integration
def test_two_processes_train_together(datalist: Path, tmp_path: Path) -> None:
    overrides = {
        **TRAIN_OVERRIDES,
        "bundle_root": str(tmp_path / "bundle"),
        "data_list_file": str(datalist),
        "adversarial_weight": 0.1,
    }
    train_in_two_processes(CONFIGS, overrides)
    assert isinstance(load_checkpoint(tmp_path / "bundle/models/model.pt").network(), X2CT)
    assert len(list((tmp_path / "bundle/eval").glob("events.out.tfevents*"))) <= 3, "one process writes curves"
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
