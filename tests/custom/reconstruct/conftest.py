"""A cohort of ellipsoids and models that have learnt nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from custom.core.checkpoints import save_checkpoint
from custom.core.files import sha256_file
from custom.data.datalist import load_cases
from tests.custom.benchmark.tiny_benchmark import tiny_network, write_cohort
from tests.custom.networks.tiny_diffusion import autoencoder, denoiser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of ellipsoids, a network (inr.pt) and a denoiser with its parents (ldm/), with nothing learnt."""
    folder = tmp_path_factory.mktemp("clinic")
    write_cohort(folder)
    save_checkpoint(folder / "inr.pt", tiny_network())
    ldm = folder / "ldm"
    ldm.mkdir()
    parents = {"autoencoder": autoencoder(), "mean": tiny_network()}
    hashes = {role: sha256_file(save_checkpoint(ldm / f"{role}.pt", network)) for role, network in parents.items()}
    meta = {"parents": hashes, "pixel_at_isocenter_mm": 20.0}
    files = hashes | {"model": sha256_file(save_checkpoint(ldm / "model.pt", denoiser(known_channels=3), meta))}
    content = {"format": "fewview-ct model 1", "name": "tiny", "files": {f"{k}.pt": v for k, v in files.items()}}
    (ldm / "model.json").write_text(json.dumps({**content, "sampler": {"steps": 2}}))
    return folder


@pytest.fixture
def case(folder: Path) -> dict[str, str]:
    return load_cases(folder / "datalist.json", "test")[0]
