"""What holds for every bundle alike, so that a new one is looked at without a line of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from custom import __version__
from tests.bundles.workflow import ROOT

BUNDLES = sorted(path.parent.parent for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
TRAIN = {
    path.parent.parent.name: json.loads(path.read_text()) for path in (ROOT / "bundles").glob("*/configs/train.json")
}
SCHEMA = json.loads((ROOT / "tests/data/bundle_metadata_schema.json").read_text())

every_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)


def test_no_bundle_is_missed() -> None:
    assert len(BUNDLES) >= 7 and len(BUNDLES) == sum(path.is_dir() for path in (ROOT / "bundles").iterdir())


@every_bundle
def test_metadata_is_valid(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    jsonschema.validate(metadata, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**metadata, "network_data_format": {"inputs": {}}}, SCHEMA)
    assert metadata["version"] == __version__ and metadata["version"] in metadata["changelog"]


@every_bundle
def test_licence_is_the_repositorys(bundle: Path) -> None:
    assert (bundle / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize(
    "bundle", [b for b in BUNDLES if "cone_prob" in TRAIN.get(b.name, {})], ids=lambda bundle: bundle.name
)
def test_checkpoints_say_what_they_were_trained_for(bundle: Path) -> None:
    """So that `fewview-ct calibrate` need not be told."""
    (meta,) = _values_of("meta", TRAIN[bundle.name])
    assert meta["training_views"] == "@view_weights"
    for key in ("cone_prob", "source_to_isocenter_mm", "source_to_detector_mm"):
        assert meta[key] == f"@{key}" and key in TRAIN[bundle.name]


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
