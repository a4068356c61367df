"""Cached latents: of their own CT, the same after a kill, and of one autoencoder and mean network only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from custom.core.checkpoints import load_checkpoint, save_checkpoint
from custom.core.hu_window import hu_to_unit
from custom.data.augmentation import RandThoraxAugment
from custom.data.shapes import ShapeModel
from custom.geometry import VolumeGrid
from custom.sampling import EncodedMean
from custom.training.drawn_entries import EntryFolder, drawn_from
from custom.training.latent_dataset import LatentDataset, write_latents
from tests.custom.networks.tiny_diffusion import GRID, acquisition, autoencoder, mean_network

SOURCE = GRID.padded((2, 1, 0))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "vqgan.pt", autoencoder())


def write(
    folder: Path, checkpoint: Path, count: int = 4, seed: int = 0, grid: VolumeGrid = SOURCE, **options: Any
) -> Path:
    generator = torch.Generator().manual_seed(3)
    volumes = [torch.rand(1, 24, 22, 20, generator=generator) * 1000 - 800 for _ in range(2)]
    cases = [{"source": volume, "case": "ab"[fold], "fold": fold} for fold, volume in enumerate(volumes)]
    augment = RandThoraxAugment(grid.shape, grid.spacing_mm, GRID.spacing_mm, shapes=options.pop("shapes", None))
    return write_latents(folder, cases, [0.5, 0.5], augment, checkpoint, grid, count, seed, **options)


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


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2])
def test_an_entry_with_a_mean_is_what_its_network_makes_of_the_radiographs(
    tmp_path: Path, checkpoint: Path, count: int
) -> None:
    means = [mean_network(tmp_path / f"{seed}.pt", seed) for seed in range(count)]
    write(tmp_path / "latents", checkpoint, 6, radiographs=acquisition(SOURCE), means=means)
    write(tmp_path / "plain", checkpoint, 6)
    data, plain = LatentDataset(tmp_path / "latents", checkpoint), LatentDataset(tmp_path / "plain", checkpoint)
    knowing = [EncodedMean(path, checkpoint) for path in means]
    for entry, alone in zip(data, plain, strict=True):
        assert set(entry) == {"latent", "known", "image", "views", "view_mask", "fold"}
        torch.testing.assert_close(entry["latent"], alone["latent"])
        assert entry["image"].shape[0] == len(entry["views"]) == int(entry["view_mask"].sum())
        mean = knowing[int(entry["fold"]) % count]
        expected = mean(entry["image"][None], entry["views"][None])[0]
        torch.testing.assert_close(entry["known"], expected, atol=5e-3, rtol=5e-3)
    assert len({len(entry["views"]) for entry in data}) > 1 and len({entry["image"].shape[1:] for entry in data}) > 1


def test_radiographs_and_reconstructions_are_those_of_one_folder(tmp_path: Path, checkpoint: Path) -> None:
    own, other = (mean_network(tmp_path / f"{seed}.pt", seed) for seed in (1, 2))
    write(tmp_path / "latents", checkpoint, radiographs=acquisition(SOURCE), means=[own])
    for options, word in (
        ({"means": [other], "radiographs": acquisition(SOURCE)}, "mean_sha256"),
        ({"means": [own], "radiographs": acquisition(SOURCE, cube_prob=0.1)}, "radiographs"),
        ({"radiographs": acquisition(SOURCE)}, "mean_sha256, radiographs"),
    ):
        with pytest.raises(ValueError, match=rf"other settings \({word}\)"):
            write(tmp_path / "latents", checkpoint, **options)  # type: ignore[arg-type]
    LatentDataset(tmp_path / "latents", checkpoint, own)
    with pytest.raises(ValueError, match="know the reconstructions of another mean network"):
        LatentDataset(tmp_path / "latents", checkpoint, other)
    for wrong, message in (
        ({"means": [own]}, "means need radiographs"),
        ({"means": [own], "radiographs": acquisition(GRID)}, "the body_grid"),
        ({"means": [own] * 3, "radiographs": acquisition(SOURCE)}, "3 mean networks for 2 folds"),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "none", checkpoint, **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()


def test_chests_take_the_shapes_of_others(tmp_path: Path, checkpoint: Path) -> None:
    """A shape model of two patients of whom one is 20 mm further to the right."""
    still = torch.zeros(3, *SOURCE.shape)
    moved = still + torch.tensor([20.0, 0, 0])[:, None, None, None]
    fields = {name: {"to_reference": f, "from_reference": -f} for name, f in (("a", still), ("b", moved))}
    grid = {"shape": list(SOURCE.shape), "spacing_mm": list(SOURCE.spacing_mm)}
    torch.save({"grid": grid, "fields": fields}, tmp_path / "shapes.pt")
    write(tmp_path / "own", checkpoint)
    write(tmp_path / "mixed", checkpoint, shapes=ShapeModel(tmp_path / "shapes.pt"))
    for one, other in zip(contents(tmp_path / "own"), contents(tmp_path / "mixed"), strict=True):
        assert not torch.equal(one["source"], other["source"])
    with pytest.raises(ValueError, match=r"other settings \(shapes\)"):
        write(tmp_path / "own", checkpoint, shapes=ShapeModel(tmp_path / "shapes.pt"))


@pytest.mark.parametrize("known", [False, True])
def test_a_killed_run_is_completed_with_the_same_entries(tmp_path: Path, checkpoint: Path, known: bool) -> None:
    means = [mean_network(tmp_path / "mean.pt", 1)] if known else []
    for seed, name in enumerate(("whole", "parts")):
        torch.manual_seed(seed)  # whatever was drawn before
        write(tmp_path / name, checkpoint, radiographs=acquisition(SOURCE), means=means)
    kept = tmp_path / "parts" / "000000.pt"
    before = kept.stat().st_mtime_ns
    for index in (1, 3):
        (tmp_path / "parts" / f"{index:06d}.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"000001\.pt: missing, of 4 latents"):
        LatentDataset(tmp_path / "parts", checkpoint)
    write(tmp_path / "parts", checkpoint, radiographs=acquisition(SOURCE), means=means)
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


def test_settings_know_the_cts_by_their_content(tmp_path: Path) -> None:
    augment = RandThoraxAugment(SOURCE.shape, SOURCE.spacing_mm, GRID.spacing_mm)
    files = {key: tmp_path / f"{key}.nii.gz" for key in ("label", "source")}
    cases = [{"case": "a", "fold": 1, **{key: str(path) for key, path in files.items()}}]
    found = []
    for source in (b"one", b"one", b"another"):
        files["label"].write_bytes(b"cube")
        files["source"].write_bytes(source)
        found.append(drawn_from(cases, [1.0], augment))
    assert found[0] == found[1] and found[0]["cases"][0][:2] == ["a", 1]
    assert found[2]["cases"] != found[0]["cases"] and {**found[2], "cases": 0} == {**found[0], "cases": 0}


def test_a_number_of_entries_that_cannot_be_is_soon_refused(tmp_path: Path) -> None:
    entries = EntryFolder(tmp_path, "index.json", "entries", "write them")
    for count, error in ((10**15, FileNotFoundError), (0, ValueError), (1.5, ValueError)):
        (tmp_path / "index.json").write_text(json.dumps({"count": count}))
        with pytest.raises(error, match="write them"):
            entries.complete()


def test_bad_requests(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there are no latents"):
        LatentDataset(tmp_path, checkpoint)
    with pytest.raises(ValueError, match="same margin"):
        write(tmp_path / "latents", checkpoint, grid=VolumeGrid((17, 16, 16), GRID.spacing_mm))
    with pytest.raises(ValueError, match="at least 2"):
        write(tmp_path / "latents", checkpoint, count=1)
