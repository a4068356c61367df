"""The bundle `x2ct` as a user runs it: train, resume, evaluate, infer, on a tiny cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from custom.benchmark import network_row
from custom.core.checkpoints import load_checkpoint
from custom.data.transforms import LoadRadiographsd
from custom.networks import X2CT
from tests.bundles.results import assert_as_reconstruct_in_the_frame_of_the_ct, assert_evaluation_sees_the_radiographs
from tests.bundles.tiny_cohort import BODY_OVERRIDES, CUBE, GRID_OVERRIDES, LOADING_OVERRIDES, STEPS, VOXEL_MM
from tests.bundles.workflow import (
    Bundle,
    epochs_of,
    killed_after_two_epochs,
    refused,
    stored,
    trained_by_two_and_then_by_one,
)

BUNDLE = Bundle("x2ct")
config, run = BUNDLE.config, BUNDLE.run

#: What the weights depend on, of training and inference alike.
NETWORK_OVERRIDES: dict[str, Any] = {
    **GRID_OVERRIDES,
    "pixel_at_isocenter_mm": VOXEL_MM,
    "dense_layers": [1, 1],
    "decoder_channels": [2, 2, 4],
    "network_def#stem_channels": 4,
    "network_def#growth": 4,
}
TRAIN_OVERRIDES: dict[str, Any] = {
    **NETWORK_OVERRIDES,
    **STEPS,
    **BODY_OVERRIDES,
    **LOADING_OVERRIDES,
    "constant_epochs": 0,
    "batch_size": 2,
    "detector_shape": [16, 16],
    "disc_channels": 4,
    "disc_layers": 2,
}


@pytest.fixture(scope="module")
def trained(paths: dict[str, Any]) -> dict[str, Any]:
    """The folders after a training of two iterations, with phantoms."""
    extras = {"phantom_list_file": paths["data_list_file"], "phantom_prob": 0.5}
    assert run(["train.json"], "train", **paths, **TRAIN_OVERRIDES, **extras) == []
    return paths


def infer(trained: dict[str, Any], output: Path, names: tuple[str, ...] = (), **overrides: Any) -> list[str]:
    keywords = {"bundle_root": trained["bundle_root"], "output_dir": str(output), **NETWORK_OVERRIDES, **overrides}
    return run(["inference.json", *names], "infer", **keywords)


# --- the files ---


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
    parser = BUNDLE.parser("train.json", *(f"presets/{preset}.json" for preset in presets))
    assert parser["network_def#views#angles_deg"] == parser["val_angles_deg"]
    parser["network_def#views"] = None
    with torch.device("meta"):
        network, judge = parser.get_parsed_content("network_def"), parser.get_parsed_content("discriminator_def")
    assert sum(p.numel() for p in network.parameters()) == SIZES[presets]
    assert f"{SIZES[presets]:,}" in BUNDLE.readme
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
    assert BUNDLE.presets == ["gan", "grid_64", "single_view"]
    assert all(f"presets/{preset}.json" in BUNDLE.readme for preset in BUNDLE.presets)


def test_network_takes_an_image_alone() -> None:
    BUNDLE.takes_an_image_alone(NETWORK_OVERRIDES, [16, 16])


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
    with refused("for 1 radiograph(s), a lateral or a frontal one, got 4"):
        infer({"bundle_root": str(tmp_path)}, tmp_path, ("presets/single_view.json",), **stored(datalist))


def test_evaluation_sees_the_radiographs_that_it_is_given(trained: dict[str, Any], tmp_path: Path) -> None:
    assert_evaluation_sees_the_radiographs(BUNDLE, {**trained, **TRAIN_OVERRIDES}, tmp_path)


def test_inference_is_reconstruct_in_the_frame_of_the_ct(
    trained: dict[str, Any], datalist: Path, tmp_path: Path
) -> None:
    assert infer(trained, tmp_path, **stored(datalist), angles_deg=[0, 90]) == []
    model = Path(trained["bundle_root"]) / "models/model.pt"
    assert_as_reconstruct_in_the_frame_of_the_ct(tmp_path, datalist, model, atol=1, angles_deg=[90, 0])


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
    with refused(message):
        run(["train.json"], "train", **{**paths, **TRAIN_OVERRIDES, "bundle_root": str(tmp_path), **changes})
    assert not (tmp_path / "models/model.pt").exists()


def test_validation_angles_are_judged_before_anything_is_loaded(tmp_path: Path) -> None:
    overrides = {**TRAIN_OVERRIDES, "data_list_file": str(tmp_path / "nowhere.json"), "val_angles_deg": [45]}
    with refused("for 2 radiograph(s)"):
        run(["train.json"], "train", **overrides, bundle_root=str(tmp_path))


def test_inference_refuses_four_views_and_other_weights(
    trained: dict[str, Any], datalist: Path, tmp_path: Path
) -> None:
    with refused("got 4", "[0, 90]"):
        infer(trained, tmp_path, **stored(datalist))
    with refused("45.0 degrees off"):
        infer(trained, tmp_path, **stored(datalist), angles_deg=[45, 135])
    with refused("nowhere.pt: no such checkpoint"):
        infer(trained, tmp_path, **stored(datalist), model_file=str(tmp_path / "nowhere.pt"))
    with refused("model.pt: the weights belong to another architecture"):
        infer(trained, tmp_path, **stored(datalist), decoder_channels=[2, 4, 4])
    assert not list(tmp_path.rglob("*.nii.gz"))


# --- the command line ---


def test_a_killed_training_goes_on_where_it_was(datalist: Path, tmp_path: Path) -> None:
    overrides = {**TRAIN_OVERRIDES, "data_list_file": str(datalist), "adversarial_weight": 0.1}
    overrides, checkpoint, reached = killed_after_two_epochs(BUNDLE, overrides, tmp_path)

    # In this process, so that one command line is enough.
    run(["train.json"], "train", **overrides)
    assert epochs_of(checkpoint) == reached + 2
    state = torch.load(checkpoint, weights_only=True)
    steps = {int(entry["step"]) for entry in state["disc_optimizer"]["state"].values()}
    assert steps == {reached + 2}, "the discriminator goes on, too"


@pytest.mark.integration
def test_two_processes_train_together(datalist: Path, tmp_path: Path) -> None:
    overrides = {**TRAIN_OVERRIDES, "data_list_file": str(datalist), "adversarial_weight": 0.1}
    assert isinstance(trained_by_two_and_then_by_one(BUNDLE, overrides, tmp_path, curves=3), X2CT)
