"""What the tests of comparisons start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.custom.benchmark.tiny_benchmark import write_cohort


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path)
