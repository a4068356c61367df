"""The bundle `seg_guidance` as a user runs it: train, evaluate, infer, guide and judge, on a tiny cohort."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.core.checkpoints import load_checkpoint
from custom.networks import SegmentationUNet
from custom.segmentation import class_rules
from tests.bundles.tiny_cohort import (
    COARSE_OVERRIDES,
    CUBE,
    GRID_OVERRIDES,
    LOADING_OVERRIDES,
    STEPS,
    VOXEL_MM,
    make_cohort,
)
from tests.bundles.tiny_cohort import NETWORK_OVERRIDES as INR_NETWORK
from tests.bundles.tiny_cohort import TRAIN_OVERRIDES as INR_TRAIN
from tests.bundles.workflow import (
    ROOT,
    Bundle,
    command_line,
    refused,
    run_workflow,
    trained_by_two_and_then_by_one,
)

BUNDLE = Bundle("seg_guidance")
config, run = BUNDLE.config, BUNDLE.run
CLASSES = ["body", "lung_left", "lung_right", "spine"]

#: What the weights depend on, of training and inference alike.
NETWORK_OVERRIDES: dict[str, Any] = {
    **GRID_OVERRIDES,
    "classes": CLASSES,
    "network_def#unet#channels": [4, 8, 8],
    "network_def#unet#num_res_units": 1,
}
TRAIN_OVERRIDES: dict[str, Any] = {
    **NETWORK_OVERRIDES,
    **STEPS,
    **LOADING_OVERRIDES,
    "val_phantoms": 1,
}


def add_labels(folder: Path, datalist: Path, **names: str) -> None:
    """Label maps of lungs and spine for every case of a datalist, found by their HU."""
    content = json.loads(datalist.read_text())
    for part in ("training", "validation", "test"):
        for entry in content[part]:
            image = nib.nifti1.load(folder / entry["label"])
            hu = np.asarray(image.dataobj)
            inside = np.zeros(hu.shape, dtype=bool)
            inside[2:-2, 2:-2] = True
            labels = np.zeros(hu.shape, dtype=np.uint8)
            labels[(hu < -300) & inside] = 2
            labels[: CUBE // 2][labels[: CUBE // 2] == 2] = 1
            labels[hu > 150] = 3
            path = folder / f"labels/{entry['case']}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.nifti1.save(nib.nifti1.Nifti1Image(labels, image.affine), path)
            path.with_name(f"{entry['case']}.json").write_text(json.dumps(names))
            entry["segmentation"] = f"labels/{path.name}"
    datalist.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_cohort(folder := tmp_path_factory.mktemp("cohort"))
    names = {"1": "Lung_L", "2": "Lung_R", "3": "spine", "4": "heart"}
    add_labels(folder, path, **names)
    return path


@pytest.fixture(scope="module")
def trained(paths: dict[str, Any]) -> dict[str, Any]:
    """The folders after a training of two iterations, of cases with some classes and phantoms with others."""
    assert run(["train.json"], "train", **paths, **TRAIN_OVERRIDES, phantom_list_file=paths["data_list_file"]) == []
    return paths


# --- the files ---


@pytest.mark.parametrize("preset", ["default", *BUNDLE.presets])
def test_presets_have_known_classes_and_the_documented_size(preset: str) -> None:
    network = BUNDLE.parser("train.json", preset=preset).get_parsed_content("network_def")
    assert list(class_rules(network.classes)) == list(network.classes)
    assert {"lidc": 3, "thoracic": 9}.get(preset, 11) == len(network.classes)
    assert f"{sum(p.numel() for p in network.parameters()):,}" in BUNDLE.readme


def test_metadata_names_the_classes() -> None:
    metadata, train = config("metadata.json"), config("train.json")
    output = metadata["network_data_format"]["outputs"]["pred"]
    assert list(output["channel_def"].values()) == train["classes"] and output["num_channels"] == len(train["classes"])


def test_network_takes_an_image_alone() -> None:
    BUNDLE.takes_an_image_alone(NETWORK_OVERRIDES, [CUBE] * 3, channels=len(CLASSES))


# --- training, evaluation, inference ---


def test_training_leaves_weights_a_checkpoint_and_curves(trained: dict[str, Any]) -> None:
    folder = Path(trained["bundle_root"])
    checkpoint = load_checkpoint(folder / "models/model.pt")
    assert 0 <= checkpoint.meta["validation"]["dice"] <= 1 and checkpoint.meta["preset"] == "default"
    network = checkpoint.network()
    assert isinstance(network, SegmentationUNet) and list(network.classes) == CLASSES
    state = torch.load(folder / "models/checkpoint_last.pt", weights_only=True)
    assert state["trainer"]["iteration"] == TRAIN_OVERRIDES["iterations_per_epoch"]
    assert list((folder / "eval").glob("events.out.tfevents*"))


def test_evaluation_writes_dice_and_distance_of_every_class(trained: dict[str, Any], tmp_path: Path) -> None:
    overrides = {**trained, **TRAIN_OVERRIDES, "output_dir": str(tmp_path)}
    assert run(["train.json", "evaluate.json"], "train", **overrides) == []
    header, *rows = (tmp_path / "segmentation.csv").read_text().splitlines()
    table = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    assert [row["case"] for row in table] == ["e1", "e2"]
    assert {f"{kind}_{name}" for kind in ("dice", "surface_mm") for name in CLASSES} < set(table[0])
    assert all(row["dice_body"] == "" and row["weak_classes"] == "" for row in table), "no map says where the body is"
    assert all(0 <= float(row["dice_lung_left"]) <= 1 for row in table)
    run(["train.json", "evaluate.json"], "train", **overrides, weak_truth=True, jitter=True)
    content = json.loads((tmp_path / "segmentation.json").read_text())
    assert content["jitter"] is True and {row["weak_classes"] for row in content["cases"]} == {"body"}
    assert all(row["dice_body"] is not None for row in content["cases"])


def test_inference_writes_a_label_map_that_training_can_read(
    trained: dict[str, Any], datalist: Path, tmp_path: Path
) -> None:
    image = datalist.parent / "ct/e1.nii.gz"
    keywords = {"bundle_root": trained["bundle_root"], "image": str(image), "output_dir": str(tmp_path)}
    assert run(["inference.json"], "infer", **keywords, **NETWORK_OVERRIDES) == []
    written, truth = nib.nifti1.load(tmp_path / "e1_seg.nii.gz"), nib.nifti1.load(image)
    np.testing.assert_allclose(written.affine, truth.affine, atol=1e-4)
    assert written.get_data_dtype() == np.uint8 and written.shape == (CUBE,) * 3
    names = json.loads((tmp_path / "e1_seg.json").read_text())
    assert names == {str(n): name for n, name in enumerate(CLASSES, 1)}
    network = load_checkpoint(Path(trained["bundle_root"]) / "models/model.pt").network(precision="fp32")
    hu = torch.from_numpy(np.asarray(truth.dataobj, dtype=np.float32))[None, None]
    with torch.no_grad():
        inside = network(hu.clamp(-1000, 1000) / 1000)[0] > 0
    last = (inside * torch.arange(1, 5).reshape(-1, 1, 1, 1)).amax(0)
    np.testing.assert_array_equal(np.asarray(written.dataobj), last.numpy())


# --- guidance ---


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory, paths: dict[str, Any]) -> Path:
    """A segmenter of the coarse grid's voxels."""
    root = tmp_path_factory.mktemp("segmenter")
    coarse = {"grid#shape": [8] * 3, "grid#spacing_mm": [2 * VOXEL_MM] * 3}
    run(["train.json"], "train", **{**paths, **TRAIN_OVERRIDES, **coarse, "bundle_root": str(root)})
    return root / "models/model.pt"


def test_one_override_guides_inr_recon_and_one_judges_it(
    paths: dict[str, Any], segmenter: Path, tmp_path: Path
) -> None:
    inr = ROOT / "bundles/inr_recon/configs"
    network = {key: value for key, value in INR_NETWORK.items() if "#fine_" not in key}
    options = {**INR_TRAIN, **network, **COARSE_OVERRIDES, "data_list_file": paths["data_list_file"]}
    weights = {}
    for name, guide in (("ours", None), ("ours_seg", str(segmenter))):
        root = {"bundle_root": str(tmp_path / name), "seg_guidance_checkpoint": guide, "seg_guidance_weight": 10.0}
        run_workflow([inr / "train.json", inr / "coarse_stage.json"], "train", **options, **root)
        checkpoint = load_checkpoint(tmp_path / name / "models/model.pt")
        weights[name] = checkpoint.state["volume_network.leave.weight"]
        record = checkpoint.meta["guidance"]
        expected = None if guide is None else {"segmenter_sha256": load_checkpoint(guide).hash, "weight": 10.0}
        assert record == expected
    assert not torch.equal(weights["ours"], weights["ours_seg"])
    # Judged at the fine grid, whose voxels are averaged to the segmenter's.
    coarse_alone = {"network_def#fine_encoder": None, "network_def#fine_network": None}
    options = {**INR_TRAIN, **network, **coarse_alone, "data_list_file": paths["data_list_file"]}
    output = {"bundle_root": str(tmp_path / "ours_seg"), "output_dir": str(tmp_path / "out")}
    files = [inr / "train.json", inr / "evaluate.json"]
    run_workflow(files, "train", **options, **output, segmenter_checkpoint=str(segmenter))
    content = json.loads((tmp_path / "out/dice.json").read_text())
    assert content["judge_is_guide"] is True and content["judge_sha256"] == content["guide_sha256"]
    assert [row["case"] for row in content["cases"]] == ["e1", "e2"]
    assert {f"dice_{name}" for name in CLASSES} < set(content["cases"][0])
    assert (tmp_path / "out/metrics.csv").is_file()


def test_guidance_at_random_points_is_refused_before_the_prior_is_fitted(
    paths: dict[str, Any], segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "custom.training.initial_weights.fit_prior", lambda **_: pytest.fail("minutes of work for nothing")
    )
    options = {**INR_TRAIN, **INR_NETWORK, **paths, "bundle_root": str(tmp_path)}
    cases = {
        "random": (str(segmenter), "set sampling to 'region', 'patch' or 'grid'"),
        "grid": ("none.pt", "none.pt: no such"),
    }
    for sampling, (guide, message) in cases.items():
        changed = {**options, "seg_guidance_checkpoint": guide, "sampling": sampling}
        with refused(message):
            run_workflow([ROOT / "bundles/inr_recon/configs/train.json"], "train", **changed)


# --- bad input ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["lung_left", "hart"]}, "unknown class 'hart'"),
        ({"classes": ["lung_left", "aorta"]}, "no training case has a label of aorta"),
        ({"phantom_list_file": "none.json"}, "none.json: no such datalist"),
        ({"dice_weight": -1.0}, "must not be negative"),
    ],
)
def test_training_names_what_does_not_fit(
    paths: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with refused(message):
        run(["train.json"], "train", **{**paths, **TRAIN_OVERRIDES, "bundle_root": str(tmp_path), **changes})


def test_inference_refuses_other_weights(trained: dict[str, Any], datalist: Path, tmp_path: Path) -> None:
    keywords = {"bundle_root": trained["bundle_root"], "image": str(datalist.parent / "ct/e1.nii.gz")}
    changed = {**NETWORK_OVERRIDES, "classes": ["heart"], "output_dir": str(tmp_path)}
    with refused("model.pt: the weights belong to another architecture"):
        run(["inference.json"], "infer", **keywords, **changed)


# --- the command line ---


def test_from_the_command_line(paths: dict[str, Any], tmp_path: Path) -> None:
    """From another folder, where the package must be installed; with the names of a foreign label map."""
    names = {"lung_left": ["Lung_R"]}
    options = {**paths, **TRAIN_OVERRIDES, "classes": ["lung_left"], "label_names": names}
    command = command_line(str(BUNDLE.configs / "train.json"), {**options, "bundle_root": str(tmp_path / "bundle")})
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert load_checkpoint(tmp_path / "bundle/models/model.pt").network().classes == ("lung_left",)  # type: ignore


@pytest.mark.integration
def test_two_processes_train_together(paths: dict[str, Any], tmp_path: Path) -> None:
    options = {**paths, **TRAIN_OVERRIDES, "iterations_per_epoch": 4}
    assert isinstance(trained_by_two_and_then_by_one(BUNDLE, options, tmp_path), SegmentationUNet)
