"""`scripts/hashes.py`: pip's report becomes requirements with hashes, none without."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "hashes.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hashes", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name: str, archive: dict[str, Any]) -> dict[str, Any]:
    url = f"https://example.org/{name}.whl"
    return {"metadata": {"name": name, "version": "1.0"}, "download_info": {"url": url, **archive}}


def test_every_package_has_its_hash(script: ModuleType) -> None:
    found = [package(name, {"archive_info": {"hashes": {"sha256": name * 4}}}) for name in ("Beta", "alpha")]
    assert script.requirements({"install": found}) == [
        "alpha==1.0 --hash=sha256:alphaalphaalphaalpha",
        "beta==1.0 --hash=sha256:BetaBetaBetaBeta",
    ]


@pytest.mark.parametrize("archive", [{}, {"archive_info": {"hashes": {"md5": "0"}}}])
def test_none_goes_without(script: ModuleType, archive: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"alpha 1.0: pip gives no SHA-256 for https://example.org/alpha.whl"):
        script.requirements({"install": [package("alpha", archive)]})
