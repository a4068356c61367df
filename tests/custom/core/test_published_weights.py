"""Weights that were published name classes by the paths of their day: they load wherever the classes are now."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from monai.utils import optional_import

from custom.core import checkpoints
from custom.core.checkpoints import (
    PUBLISHED_CLASSES,
    RENAMED_ARGUMENTS,
    build_network,
    definition,
    load_checkpoint,
)

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = sorted((ROOT / "bundles").glob("*/models/*.pt"))

#: What the meta of the published files names; a class that moves keeps its name here.
NAMED = {
    "inr_recon/model": {
        "custom.geometry.VolumeGrid",
        "custom.networks.CoarseToFineReconstructor",
        "custom.networks.FeatureUNet",
        "custom.networks.PopulationPrior",
    },
    "inr_recon/ten_patients": {
        "custom.geometry.VolumeGrid",
        "custom.networks.FeatureUNet",
        "custom.networks.FourierFeatures",
        "custom.networks.ImplicitReconstructor",
        "custom.networks.PopulationPrior",
    },
    "ldm_recon/model": {
        "custom.geometry.VolumeGrid",
        "custom.networks.FeatureUNet",
        "custom.networks.LatentDenoiser",
    },
    "seg_guidance/judge": {"custom.geometry.VolumeGrid", "custom.networks.SegmentationUNet"},
    "seg_guidance/model": {"custom.geometry.VolumeGrid", "custom.networks.SegmentationUNet"},
    "vqgan/model": {"custom.geometry.VolumeGrid", "custom.networks.VQGAN"},
}


def identity(path: Path) -> str:
    return f"{path.parts[-3]}/{path.stem}"


def test_all_published_weights_are_known() -> None:
    assert {identity(path) for path in WEIGHTS} == set(NAMED)


@pytest.mark.parametrize("path", WEIGHTS, ids=identity)
def test_published_weights_load_by_the_names_that_they_hold(path: Path) -> None:
    content = torch.load(path, map_location="cpu", weights_only=True)
    assert set(re.findall(r'"_target_": "([\w.]+)"', content["meta"])) == NAMED[identity(path)]
    network = load_checkpoint(path).network()
    assert set(network.state_dict()) == set(content["model"])
    described = definition(network)
    assert described["_target_"] in NAMED[identity(path)]
    assert set(re.findall(r"custom\.[\w.]+", str(described))) <= set(PUBLISHED_CLASSES)


@pytest.mark.parametrize("name", RENAMED_ARGUMENTS)
def test_renamed_arguments_are_those_of_the_class_today(name: str) -> None:
    module, _, attribute = PUBLISHED_CLASSES[name].rpartition(".")
    today = set(inspect.signature(optional_import(module, name=attribute)[0]).parameters)
    assert set(RENAMED_ARGUMENTS[name].values()) <= today and not today & set(RENAMED_ARGUMENTS[name])


@pytest.mark.parametrize("pixels, spacing", [(1, None), (2, 5.0)])
def test_denoisers_that_counted_pixels_average_as_they_did(pixels: int, spacing: float | None, tmp_path: Path) -> None:
    content = torch.load(ROOT / "bundles/ldm_recon/models/model.pt", weights_only=True)
    meta = json.loads(content["meta"])
    meta["network_def"]["feature_pixels"], meta["pixel_at_isocenter_mm"] = pixels, 2.5
    torch.save({**content, "meta": json.dumps(meta)}, tmp_path / "model.pt")
    network = load_checkpoint(tmp_path / "model.pt").network()
    assert network.feature_spacing_mm == spacing and network.noise_schedule == "ddpm_linear"
    if pixels > 1:
        del meta["pixel_at_isocenter_mm"]
        torch.save({**content, "meta": json.dumps(meta)}, tmp_path / "model.pt")
        with pytest.raises(ValueError, match=r"model\.pt: averages 2 pixels of None mm"):
            load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("name", PUBLISHED_CLASSES)
def test_every_published_name_leads_to_a_class(name: str) -> None:
    module, _, attribute = PUBLISHED_CLASSES[name].rpartition(".")
    found, exists = optional_import(module, name=attribute)
    assert exists and isinstance(found, type)
    assert f"{found.__module__}.{found.__qualname__}" == PUBLISHED_CLASSES[name]


def test_a_class_that_moved_is_found_by_its_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"_target_": "custom.cellar.Grid", "shape": [4, 4, 4], "spacing_mm": [1.0, 1.0, 1.0]}
    with pytest.raises(ValueError, match=r"custom\.cellar\.Grid"):
        build_network(old)
    where = PUBLISHED_CLASSES["custom.geometry.VolumeGrid"]
    monkeypatch.setattr(checkpoints, "PUBLISHED_CLASSES", {**PUBLISHED_CLASSES, "custom.cellar.Grid": where})
    with pytest.raises(ValueError, match="makes a VolumeGrid, which is no network"):
        build_network(old)
