"""A cohort of ellipsoids and models that have learnt nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from custom.core.checkpoints import save_checkpoint
from custom.data.datalist import load_cases
from tests.custom.benchmark.tiny_benchmark import tiny_network, write_cohort, write_tiny_sampler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of ellipsoids, a network (inr.pt) and a denoiser with its parents (ldm/), with nothing learnt."""
    folder = tmp_path_factory.mktemp("clinic")
    write_cohort(folder)
    save_checkpoint(folder / "inr.pt", tiny_network())
    write_tiny_sampler(folder / "ldm")
    return folder


@pytest.fixture
def case(folder: Path) -> dict[str, str]:
    return load_cases(folder / "datalist.json", "test")[0]
