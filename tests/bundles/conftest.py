"""What the bundles' tests start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bundles.tiny_cohort import make_cohort


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def paths(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Overrides of the paths: a bundle folder of our own, so that nothing is written into the repository."""
    return {"bundle_root": str(tmp_path_factory.mktemp("bundle")), "data_list_file": str(datalist)}
