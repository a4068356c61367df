"""The bundle `inr_recon` as a user runs it: train, resume, evaluate, infer, on a tiny cohort."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from custom.core.checkpoints import definition, load_checkpoint
from custom.geometry import Geometry
from tests.bundles.documented import unknown_overrides
from tests.bundles.results import assert_as_reconstruct_in_the_frame_of_the_ct, assert_evaluation_sees_the_radiographs
from tests.bundles.tiny_cohort import (
    COARSE_OVERRIDES,
    CUBE,
    INFERENCE_OVERRIDES,
    NETWORK_OVERRIDES,
    TRAIN_OVERRIDES,
    VOXEL_MM,
)
from tests.bundles.workflow import (
    ROOT,
    Bundle,
    command_line,
    epochs_of,
    killed_after_two_epochs,
    refused,
    stored,
    trained_by_two_and_then_by_one,
)

BUNDLE = Bundle("inr_recon")
config, run = BUNDLE.config, BUNDLE.run


@pytest.fixture(scope="module")
def trained(paths: dict[str, Any]) -> dict[str, Any]:
    """The folders after a training of two iterations."""
    missing = run(["train.json"], "train", **paths, **TRAIN_OVERRIDES, **NETWORK_OVERRIDES)
    assert missing == []
    return paths


def infer(trained: dict[str, Any], output: Path, **overrides: Any) -> list[str]:
    keywords = {"bundle_root": trained["bundle_root"], "output_dir": str(output)}
    return run(["inference.json"], "infer", **keywords, **INFERENCE_OVERRIDES, **NETWORK_OVERRIDES, **overrides)


# --- the files ---


def test_the_coarse_stage_is_the_same_training_at_the_coarse_grid() -> None:
    train, coarse = BUNDLE.parser("train.json"), BUNDLE.parser("train.json", "coarse_stage.json")
    spacing = train["coarse_spacing_mm"]
    for key in ("grid", "body_grid", "loading_grid"):
        fine, own = train.get_parsed_content(key), coarse.get_parsed_content(key)
        assert own.half_extent_mm == fine.half_extent_mm and own.spacing_mm == (spacing,) * 3
    assert coarse["pixel_at_isocenter_mm"] == spacing == train["network_def"]["feature_spacing_mm"]


@pytest.mark.parametrize("preset", ["default", *BUNDLE.presets])
def test_presets_have_their_sizes(preset: str) -> None:
    network = BUNDLE.parser("train.json", preset=preset).get_parsed_content("network_def")
    total = sum(p.numel() for p in network.parameters())
    if preset == "default":
        assert total <= 5_000_000 and f"{total:,}" in BUNDLE.readme
    if preset == "released_code":
        parts = [network.encoder, *network.view_mlps, network.volume_mlp]
        sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
        assert sizes == [20_284_224, 67_200, 67_200, 66_177] and total == 20_484_801
    if preset == "paper":
        assert len(network.view_mlps) == 1 and network.plain_mean
    if preset == "no_image_features":
        assert network.encoder is None


def test_published_weights_are_those_of_the_card_and_fit_the_config() -> None:
    path = BUNDLE.root / "models/model.pt"
    checkpoint = load_checkpoint(path)
    assert path.stat().st_size <= 15_000_000
    assert checkpoint.hash in (BUNDLE.root / "models/README.md").read_text()
    network = BUNDLE.parser("inference.json").get_parsed_content("network_def")
    checkpoint.load_into(network)
    assert network.prior.scales.min() > 0 and 0.3 < network.prior.mean.mean() < 0.7, "the prior of chests is there"
    written = checkpoint.meta["network_def"]
    assert {k: written[k] for k in ("grid", "coarse_grid", "consistency_iterations", "rough_iterations")} == {
        k: definition(network)[k] for k in ("grid", "coarse_grid", "consistency_iterations", "rough_iterations")
    }


def test_network_takes_an_image_alone() -> None:
    BUNDLE.takes_an_image_alone({**INFERENCE_OVERRIDES, **NETWORK_OVERRIDES}, [16, 24])


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


@pytest.fixture(scope="module")
def acquired(paths: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Overrides of a training with five stored acquisitions, two regions a step, and a result folder of its own."""
    folder = tmp_path_factory.mktemp("acquired")
    own = {**paths, **TRAIN_OVERRIDES, "acquisitions_folder": str(folder / "acquisitions")}
    run(["train.json", "acquisitions.json"], "train", "storing", False, **own, acquisitions=5)
    return {**own, **NETWORK_OVERRIDES, "regions_per_step": 2, "bundle_root": str(folder / "bundle")}


def test_a_stored_acquisition_is_what_a_step_would_have_simulated(acquired: dict[str, Any]) -> None:
    parser = BUNDLE.parser("train.json")
    step = {**acquired, "acquisitions_folder": None, "sampling": "grid", "regions_per_step": 1}
    parser.update({key.replace("#", "::"): value for key, value in step.items()})
    loaded, warp, prepare = (
        parser.get_parsed_content(f"train#{k}") for k in ("loaded", "preprocessing", "prepare_batch")
    )
    draw = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(torch.full((len(loaded),), 1.0), 5, replacement=True, generator=draw).tolist()
    assert len(set(drawn)) > 1
    for number, case in enumerate(drawn):
        warp.transform.set_random_state(number)
        prepare.set_random_state(number)
        item = warp.transform(loaded[case])
        batch = {"source": item["source"][None], "fold": torch.tensor([item["fold"]])}
        image, label, _, keywords = prepare(batch, "cpu")
        entry = torch.load(Path(acquired["acquisitions_folder"]) / f"{number:06d}.pt", weights_only=True)
        assert torch.equal(entry["image"], image[0]) and torch.equal(entry["views"], keywords["views"][0])
        assert int(entry["fold"]) == item["fold"]
        hu = entry["label"].float().clamp(-1000, 1000)
        torch.testing.assert_close(hu / 1000, label[0], atol=0.5e-3 + 1e-6, rtol=0)


def test_a_training_on_stored_acquisitions_goes_on_bit_for_bit(acquired: dict[str, Any], tmp_path: Path) -> None:
    """Two regions a step; the validation patient is in no acquisition, and nothing is loaded but for the priors."""
    index = json.loads((Path(acquired["acquisitions_folder"]) / "acquisitions.json").read_text())
    assert {name for name, *_ in index["cases"]} == {"t1", "t2"} and index["count"] == 5
    assert run(["train.json"], "train", **acquired) == []
    first = Path(acquired["bundle_root"])
    assert epochs_of(first / "models/checkpoint_last.pt") == 2 * TRAIN_OVERRIDES["epochs"]
    shutil.copytree(first, tmp_path / "copy")
    states = []
    for folder in (first, tmp_path / "copy"):
        run(["train.json"], "train", "run", False, **{**acquired, "bundle_root": str(folder), "epochs": 2})
        states.append(torch.load(folder / "models/checkpoint_last.pt", weights_only=True))
    assert states[0]["trainer"]["iteration"] == 4
    for part in ("network", "ema"):
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())
    before = load_checkpoint(first / "models/model.pt").meta
    assert before["training_views"] == config("train.json")["view_weights"]


def test_acquisitions_are_completed_and_more_are_added(acquired: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(acquired["acquisitions_folder"], tmp_path / "acquisitions"))
    files = sorted(folder.glob("*.pt"))
    before = [file.read_bytes() for file in files]
    files[2].unlink()
    own = {key: value for key, value in acquired.items() if key not in NETWORK_OVERRIDES}
    own |= {"acquisitions_folder": str(folder)}
    with refused("000002.pt: missing, of 5 acquisitions: write them with acquisitions.json"):
        run(["train.json"], "train", **{**acquired, "acquisitions_folder": str(folder)})
    run(["train.json", "acquisitions.json"], "train", "storing", False, **own, acquisitions=6)
    assert [file.read_bytes() for file in files] == before and len(list(folder.glob("*.pt"))) == 6
    with refused("of other settings (radiographs)", "choose another folder"):
        run(["train.json", "acquisitions.json"], "train", "storing", False, **own, cone_prob=0.1)
    with refused("of other settings (seed)"):
        run(["train.json", "acquisitions.json"], "train", "storing", False, **own, seed=3)


def test_the_coarse_stage_trains_on_stored_acquisitions_too(paths: dict[str, Any], tmp_path: Path) -> None:
    network = {key: value for key, value in NETWORK_OVERRIDES.items() if "#fine_" not in key}
    own = {**paths, **TRAIN_OVERRIDES, **COARSE_OVERRIDES, "acquisitions_folder": str(tmp_path / "acquisitions")}
    files = ["train.json", "coarse_stage.json"]
    run([*files, "acquisitions.json"], "train", "storing", False, **own, acquisitions=2)
    entry = torch.load(tmp_path / "acquisitions/000001.pt", weights_only=True)
    assert entry["label"].shape == (1, 16, 8, 8), "the whole body on the grid of the coarse stage"
    run(files, "train", "run", False, **{**own, **network, "bundle_root": str(tmp_path)})
    assert load_checkpoint(tmp_path / "models/model.pt").state["volume_network.leave.bias"].abs().max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acquisitions_folder": "nowhere"}, "acquisitions.json: there are no acquisitions, or not all of them: write"),
        (
            {"grid#shape": [2 * CUBE] * 3, "grid#spacing_mm": [VOXEL_MM / 2] * 3},
            "other settings (augmentation, body_grid, grid): pass the options",
        ),
        ({"cone_prob": 0.25, "warp_mm": 3}, "other settings (augmentation, radiographs)"),
        ({"prior_folds": 0}, "other settings (cases)"),
        ({"data_list_file": "other.json"}, "other settings (cases)"),
        ({"batch_size": 2}, "batch_size is 2: stored acquisitions differ"),
        ({"regions_per_step": 0}, "regions_per_step must be at least 1"),
    ],
)
def test_acquisitions_of_other_settings_stop_a_training_before_it_starts(
    acquired: dict[str, Any], datalist: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = json.loads(datalist.read_text())
    # A cohort whose validation patient is in the acquisitions.
    swapped = {**content, "training": content["validation"] + content["training"][1:]}
    swapped["validation"] = content["training"][:1]
    (datalist.parent / "other.json").write_text(json.dumps(swapped))
    change = {k: str(datalist.parent / v) if k == "data_list_file" else v for k, v in change.items()}
    with refused(message):
        run(["train.json"], "train", **{**acquired, "bundle_root": str(tmp_path), **change})
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("damage", ["cut off", "not finite", "another grid", "another file"])
def test_a_damaged_acquisition_is_named(acquired: dict[str, Any], tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(acquired["acquisitions_folder"], tmp_path / "acquisitions"))
    for file in folder.glob("*.pt"):  # a step may draw any
        entry = torch.load(file, weights_only=True)
        if damage == "not finite":
            entry["image"][0, 0, 0] = torch.nan
        if damage == "another grid":
            entry["label"] = entry["label"][:, 1:]
        torch.save({"label": 3} if damage == "another file" else entry, file)
        if damage == "cut off":
            file.write_bytes(file.read_bytes()[:-50])
    own = {**acquired, "acquisitions_folder": str(folder), "bundle_root": str(tmp_path / "bundle")}
    with refused(".pt: damaged (", "remove it and start the command that writes the acquisitions again"):
        run(["train.json"], "train", **own)
    assert not list((tmp_path / "bundle").rglob("model.pt"))


def test_evaluation_sees_the_radiographs_that_it_is_given(trained: dict[str, Any], tmp_path: Path) -> None:
    overrides = {**trained, **TRAIN_OVERRIDES, **NETWORK_OVERRIDES, "val_angles_deg": [0, 45, 90]}
    assert_evaluation_sees_the_radiographs(BUNDLE, overrides, tmp_path)


def test_inference_is_reconstruct_in_the_frame_of_the_ct(
    trained: dict[str, Any], datalist: Path, tmp_path: Path
) -> None:
    assert infer(trained, tmp_path, **stored(datalist)) == []
    assert_as_reconstruct_in_the_frame_of_the_ct(tmp_path, datalist, Path(trained["bundle_root"]) / "models/model.pt")


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
    with refused("4 radiographs", "3 views"):
        infer(trained, tmp_path / "out", image=files["image"], geometry=str(fewer))
    with refused("gone.nii.gz: no such file"):
        infer(trained, tmp_path / "out", image=str(tmp_path / "gone.nii.gz"), geometry=files["geometry"])
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_inference_refuses_other_weights(trained: dict[str, Any], datalist: Path, tmp_path: Path) -> None:
    with refused("nowhere.pt: no such checkpoint"):
        infer(trained, tmp_path, **stored(datalist), model_file=str(tmp_path / "nowhere.pt"))
    with refused("model.pt: the weights belong to another architecture"):
        infer(trained, tmp_path, **{**stored(datalist), "network_def#fine_network#encoder_blocks": [1, 2]})


def test_training_without_validation_cases_ends_before_the_prior_is_fitted(
    paths: dict[str, Any], datalist: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {**json.loads(datalist.read_text()), "validation": []}
    (datalist.parent / "no_validation.json").write_text(json.dumps(content))
    changes = {**paths, "data_list_file": str(datalist.parent / "no_validation.json"), "ckpt_dir": str(tmp_path)}
    with refused("no cases under 'validation'"), caplog.at_level("INFO"):
        run(["train.json"], "train", **changes, **TRAIN_OVERRIDES, **NETWORK_OVERRIDES)
    assert not any("fitting the prior" in said for said in caplog.messages) and list(tmp_path.iterdir()) == []


def test_training_names_a_datalist_that_is_missing(paths: dict[str, Any], tmp_path: Path) -> None:
    overrides = {**paths, **TRAIN_OVERRIDES, **NETWORK_OVERRIDES, "data_list_file": str(tmp_path / "datalist.json")}
    with refused("datalist.json: no such datalist; 'fewview-ct prepare"):
        run(["train.json"], "train", **overrides)


# --- the command line ---


def test_a_killed_training_goes_on_where_it_was(datalist: Path, tmp_path: Path) -> None:
    overrides = {**TRAIN_OVERRIDES, **NETWORK_OVERRIDES, "data_list_file": str(datalist)}
    overrides, checkpoint, reached = killed_after_two_epochs(BUNDLE, overrides, tmp_path)

    # From another folder, where the package must be installed.
    again = command_line(str(BUNDLE.configs / "train.json"), overrides)
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"resumed {checkpoint} after epoch {reached}" in done.stdout + done.stderr
    assert epochs_of(checkpoint) == reached + 2


@pytest.mark.integration
def test_two_processes_train_together(datalist: Path, tmp_path: Path) -> None:
    overrides = {**TRAIN_OVERRIDES, **NETWORK_OVERRIDES, "data_list_file": str(datalist)}
    assert trained_by_two_and_then_by_one(BUNDLE, overrides, tmp_path, curves=2).prior.mean.std() > 0.01
