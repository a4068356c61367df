"""The app, asked without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.custom.app.test_app_pages import client_of


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """Of an app without a PACS, whose cases lie in `tmp_path / "cases"`."""
    with client_of(tmp_path / "cases") as client:
        yield client
