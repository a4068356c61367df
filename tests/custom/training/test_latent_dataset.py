"""Cached latents: of their own CT, the same after a kill, and of one autoencoder only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from custom.core.checkpoints import load_checkpoint, save_checkpoint
from custom.core.hu_window import hu_to_unit
from custom.data.augmentation import RandThoraxAugment
from custom.geometry import VolumeGrid
from custom.training.latent_dataset import LatentDataset, write_latents
from tests.custom.networks.tiny_diffusion import GRID, autoencoder

SOURCE = GRID.padded((2, 1, 0))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "vqgan.pt", autoencoder())


def write(folder: Path, checkpoint: Path, count: int = 4, seed: int = 0, grid: VolumeGrid = SOURCE) -> Path:
    generator = torch.Generator().manual_seed(3)
    cases = [{"source": torch.rand(1, 24, 22, 20, generator=generator) * 1000 - 800, "fold": f} for f in (0, 1)]
    augment = RandThoraxAugment(grid.shape, grid.spacing_mm, GRID.spacing_mm)
    return write_latents(folder, cases, [0.5, 0.5], augment, checkpoint, grid, count, seed)


def contents(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]


@torch.no_grad()
def test_an_entry_is_a_warped_ct_and_its_latent(tmp_path: Path, checkpoint: Path) -> None:
    write(tmp_path / "latents", checkpoint, 6)
    data = LatentDataset(tmp_path / "latents", checkpoint)
    network = load_checkpoint(checkpoint).network()
    for entry in data:
        assert entry["source"].shape == (1, *SOURCE.shape)
        cube = entry["source"][:, 2:-2, 1:-1]
        expected = network.encode(hu_to_unit(cube, (-1000, 1000))[None])[0]  # type: ignore[operator]
        torch.testing.assert_close(entry["latent"], expected, atol=5e-3, rtol=5e-3)
    assert {int(entry["fold"]) for entry in data} == {0, 1}
    values = torch.stack([entry["latent"] for entry in data]).movedim(1, 0).flatten(1)
    torch.testing.assert_close(data.latent_mean, values.mean(1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(data.latent_std, values.std(1, unbiased=False), atol=1e-4, rtol=1e-3)


def test_a_killed_run_is_completed_with_the_same_entries(tmp_path: Path, checkpoint: Path) -> None:
    write(tmp_path / "whole", checkpoint)
    write(tmp_path / "parts", checkpoint)
    kept = tmp_path / "parts" / "000000.pt"
    before = kept.stat().st_mtime_ns
    for index in (1, 3):
        (tmp_path / "parts" / f"{index:06d}.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"000001\.pt: missing, and 1 more"):
        LatentDataset(tmp_path / "parts", checkpoint)
    write(tmp_path / "parts", checkpoint)
    assert kept.stat().st_mtime_ns == before
    for one, other in zip(contents(tmp_path / "whole"), contents(tmp_path / "parts"), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (tmp_path / "whole/latents.json").read_text() == (tmp_path / "parts/latents.json").read_text()


def test_latents_of_another_autoencoder_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    write(tmp_path / "latents", checkpoint)
    other = save_checkpoint(tmp_path / "other.pt", autoencoder(seed=1))
    with pytest.raises(ValueError, match="encoded by another autoencoder"):
        LatentDataset(tmp_path / "latents", other)
    with pytest.raises(ValueError, match=r"other settings \(autoencoder_sha256\)"):
        write(tmp_path / "latents", other)
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        write(tmp_path / "latents", checkpoint, seed=1)


def test_bad_requests(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there are no latents"):
        LatentDataset(tmp_path, checkpoint)
    with pytest.raises(ValueError, match="same margin"):
        write(tmp_path / "latents", checkpoint, grid=VolumeGrid((17, 16, 16), GRID.spacing_mm))
    with pytest.raises(ValueError, match="at least 2"):
        write(tmp_path / "latents", checkpoint, count=1)
