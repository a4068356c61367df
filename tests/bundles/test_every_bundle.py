"""What holds for every bundle alike, so that a new one is looked at without a line of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from monai.bundle import ConfigParser, load, verify_net_in_out

from custom import __version__
from custom.core.checkpoints import load_checkpoint
from custom.core.config_keys import check_keys
from tests.bundles.workflow import CHECKED_FILES, ROOT, Bundle, keys_in_order_of_inr_recon

BUNDLES = [Bundle(path.parent.parent.name) for path in sorted((ROOT / "bundles").glob("*/configs/metadata.json"))]
TRAINED = [bundle for bundle in BUNDLES if (bundle.configs / "train.json").is_file()]
#: Those that draw samples: their inference builds a sampler around the network of the training.
SAMPLERS = ("ldm_recon", "voxel_diffusion")
ALL_GRIDS = ("grid", "body_grid", "loading_grid", "coarse_grid", "prior_grid", "latent_grid")
SCHEMA = json.loads((ROOT / "tests/data/bundle_metadata_schema.json").read_text())

#: What an overlay of train.json may add, and what it may add in some bundles alone.
ADDED = {
    "model_file", "data_list_key", "evaluating", "backend", "finalize", "shuffle_radiographs", "segmenter_checkpoint",
    "train#sampler", "train#dataloader#sampler", "validate#sampler", "validate#data_sampler",
    "validate#dataloader#sampler",
}  # fmt: skip
SAMPLING = {
    "samples", "sample_seed", "sample_batch_size", "keep_samples", "steps", "guidance_scale", "solver", "quantise",
    "residual_scale", "recentring", "consistency_weight", "consistency_iterations", "consistency_final",
    "atlas", "atlas_file", "atlas_coarse_mm",
}  # fmt: skip
ADDED_BY = {
    "seg_guidance": {"jitter", "weak_truth"}, "ldm_recon": SAMPLING,
    "voxel_diffusion": SAMPLING
    - {"quantise", "residual_scale", "recentring", "atlas", "atlas_file", "atlas_coarse_mm"},
}  # fmt: skip
#: Keys that every train.json has; and where inr_recon has more, those that a bundle has, too.
COMMON = {"epochs", "learning_rate", "grid", "save_dict", "ema"}
COMMON_TOO = {
    "vqgan": {"loading_grid", "warp_mm", "patch"},
    "seg_guidance": {"loading_grid", "warp_mm"},
    "x2ct": {"view_weights", "warp_mm", "val_angles_deg"},
    "ldm_recon": {"body_grid", "view_weights", "val_angles_deg"},
    "voxel_diffusion": {"body_grid", "loading_grid", "view_weights", "warp_mm", "val_angles_deg"},
}

every_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=str)
every_trained_bundle = pytest.mark.parametrize("bundle", TRAINED, ids=str)


def test_no_bundle_is_missed() -> None:
    assert len(BUNDLES) >= 7 and len(BUNDLES) == sum(path.is_dir() for path in (ROOT / "bundles").iterdir())


@every_bundle
def test_metadata_is_valid(bundle: Bundle) -> None:
    metadata = bundle.config("metadata.json")
    jsonschema.validate(metadata, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**metadata, "network_data_format": {"inputs": {}}}, SCHEMA)
    assert metadata["version"] == __version__ and metadata["version"] in metadata["changelog"]


@every_bundle
def test_licence_is_the_repositorys(bundle: Bundle) -> None:
    assert (bundle.root / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@every_bundle
def test_metadata_says_what_the_network_does(bundle: Bundle) -> None:
    config = bundle.config("train.json" if bundle in TRAINED else "inference.json")
    shapes = bundle.config("metadata.json")["network_data_format"]
    image, pred = shapes["inputs"]["image"], shapes["outputs"]["pred"]
    assert pred["spatial_shape"] == config["grid"]["shape"]
    if image["modality"] == "CT":
        assert image["spatial_shape"] == config["grid"]["shape"]
    else:
        angles = config["network_def"].get("views", {}).get("angles_deg") or config["val_angles_deg"]
        assert image["num_channels"] == len(angles) == config.get("view_count", len(angles))
    if "detector_shape" in config:
        assert image["spatial_shape"] == config["detector_shape"]
    if bundle.name != "seg_guidance":
        assert shapes["post_processed_outputs"]["pred"]["value_range"] == config["hu_window"]


@every_bundle
def test_measured_metrics_are_those_of_the_documentation(bundle: Bundle) -> None:
    measured = bundle.config("metadata.json")["eval_metrics"]
    pages = bundle.readme + (ROOT / "docs/explanation/protocol.md").read_text()
    tables = "".join(line for line in pages.splitlines(keepends=True) if line.startswith("|"))
    assert measured
    for name, value in measured.items():
        assert re.search(rf"\b({value:g}0?|{value:.0f})\b", tables), name


@every_trained_bundle
def test_settings_are_the_same_in_training_and_inference(bundle: Bundle) -> None:
    train, inference = bundle.config("train.json"), bundle.config("inference.json")
    own = {"imports", "dataset_dir", "initialize", "run"}
    own |= {"network_def", "pixel_at_isocenter_mm"} if bundle.name in SAMPLERS else set()
    common = {key for key in train if key in inference and not key.startswith("_desc_")} - own
    assert {"hu_window", "precision", "seed", "output_dir"} <= common and ("network_def" in common) != (
        "network_def" in own
    )
    for key in common:
        assert train[key] == inference[key], key


@pytest.mark.parametrize("bundle", [bundle for bundle in TRAINED if bundle.name != "inr_recon"], ids=str)
def test_keys_are_those_of_inr_recon_and_stand_in_its_order(bundle: Bundle) -> None:
    """A user who knows one bundle knows all."""
    assert COMMON | COMMON_TOO.get(bundle.name, set()) <= keys_in_order_of_inr_recon(bundle)


@every_trained_bundle
@pytest.mark.parametrize("name", ["evaluate.json", "multi_gpu_train.json"])
def test_overlays_are_small_and_replace_what_is_there(bundle: Bundle, name: str) -> None:
    assert len((bundle.configs / name).read_text().splitlines()) <= 45
    train, added = ConfigParser(bundle.config("train.json")), ADDED | ADDED_BY.get(bundle.name, set())
    for key in bundle.config(name):
        assert key in added or key.startswith("_desc_") or key.lstrip("+").replace("#", "::") in train, key


@pytest.mark.parametrize(
    ("bundle", "name"),
    [(bundle, f"presets/{preset}.json") for bundle in BUNDLES for preset in bundle.presets]
    + [(Bundle("inr_recon"), "coarse_stage.json")],
    ids=str,
)
def test_presets_change_only_what_is_there(bundle: Bundle, name: str) -> None:
    known = ConfigParser(bundle.config("train.json" if (bundle.configs / "train.json").is_file() else "inference.json"))
    content = bundle.config(name)
    assert content.get("preset", Path(name).stem) == Path(name).stem
    for key in content:
        assert key.startswith("_desc_") or key.replace("#", "::") in known, key


@every_trained_bundle
def test_grids_follow_from_the_grid(bundle: Bundle) -> None:
    """For every preset: what is loaded covers what is projected, and that the cube, with whole voxels on both sides."""
    for preset in ["default", *bundle.presets]:
        parser = bundle.parser("train.json", preset=preset)
        grids = {key: parser.get_parsed_content(key) for key in ALL_GRIDS if key in parser}
        assert all(isinstance(parser[key], str) for key in grids if key != "grid"), "an expression"
        if "body_grid" in grids:
            grids["grid"].middle_of(grids["body_grid"])
        order = [grids[key].half_extent_mm for key in ("grid", "body_grid", "loading_grid") if key in grids]
        assert all(a <= b for inner, outer in pairwise(order) for a, b in zip(inner, outer, strict=True))
        if "latent_grid" in grids:
            assert grids["latent_grid"].half_extent_mm == grids["grid"].half_extent_mm


@pytest.mark.parametrize("bundle", [b for b in TRAINED if "cone_prob" in b.config("train.json")], ids=str)
def test_checkpoints_say_what_they_were_trained_for(bundle: Bundle) -> None:
    """So that `fewview-ct calibrate` need not be told."""
    train = bundle.config("train.json")
    (meta,) = _values_of("meta", train)
    assert meta["training_views"] == "@view_weights"
    for key in ("cone_prob", "source_to_isocenter_mm", "source_to_detector_mm", "pixel_at_isocenter_mm"):
        assert meta[key] == f"@{key}" and key in train


@pytest.mark.parametrize(
    ("bundle", "names"),
    [
        (bundle, names)
        for bundle in BUNDLES
        for base in [("train.json",) if bundle in TRAINED else ("inference.json",)]
        for names in [
            ("inference.json",),
            base,
            *((*base, str(path.relative_to(bundle.configs))) for path in bundle.configs.rglob("*.json")
              if path.name not in ("metadata.json", "inference.json", *base)),
        ]
    ],
    ids=str,
)  # fmt: skip
def test_configs_notice_what_nothing_reads(bundle: Bundle, names: tuple[str, ...]) -> None:
    parser = bundle.parser(*names)
    parser.parse(True)
    check = parser["initialize"][0]
    assert check["_target_"] == "custom.core.config_keys.no_unknown_keys"
    check_keys(parser, check.get("unused", ()))
    with pytest.raises(ValueError, match=r"unknown key hu_windo: .*; did you mean hu_window"):
        check_keys(bundle_parser(bundle, names, hu_windo=[0, 1]), check.get("unused", ()))


def bundle_parser(bundle: Bundle, names: tuple[str, ...], **overrides: Any) -> ConfigParser:
    parser = bundle.parser(*names)
    parser.update(overrides)
    parser.parse(True)
    return parser


@pytest.mark.parametrize("name", ["seg_guidance", "vqgan"])
@pytest.mark.parametrize("kind", ["inference", "train"])
def test_monai_loads_a_bundle_from_any_folder(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = load(name, bundle_dir=str(ROOT / "bundles"), workflow_type=kind, key_in_ckpt="model", device="cpu")
    saved = load_checkpoint(ROOT / "bundles" / name / "models/model.pt").network().state_dict()
    assert all(torch.equal(value, saved[key].to(value.dtype)) for key, value in network.state_dict().items())
    assert not list(tmp_path.iterdir()), "nothing is downloaded or written"


@pytest.mark.integration
@pytest.mark.parametrize("name", ["inr_recon", "x2ct"])
def test_network_takes_an_image_alone_at_its_own_size(name: str) -> None:
    files = {key: str(Bundle(name).configs / f"{file}.json") for key, file in CHECKED_FILES.items()}
    verify_net_in_out(net_id="network_def", device="cpu", **files)


def _values_of(key: str, content: Any) -> Iterator[Any]:
    """Of this key, wherever it stands."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == key:
                yield value
            else:
                yield from _values_of(key, value)
    elif isinstance(content, list):
        for value in content:
            yield from _values_of(key, value)
