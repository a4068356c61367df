"""What holds for every bundle alike, so that a new one is looked at without a line of its own."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from custom import __version__
from tests.bundles.workflow import ROOT

BUNDLES = sorted(path.parent.parent for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
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
