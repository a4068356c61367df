"""Data set of the latents of warped training CTs, computed once, so that the diffusion trains without encoder.

An entry is a file of tensors: the latent, and the warped CT that it came from, so that radiographs at any angle can be
projected from the very same volume in the training step.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from custom.core.checkpoints import definition, load_checkpoint
from custom.core.files import read_json_object, sha256_file, write_json, write_tensors
from custom.core.hu_window import hu_to_unit
from custom.core.tensor_files import load_tensors
from custom.data.augmentation import RandThoraxAugment
from custom.geometry import VolumeGrid

__all__ = ["LatentDataset", "write_latents"]

logger = logging.getLogger(__name__)

INDEX = "latents.json"


def write_latents(
    folder: str | os.PathLike[str],
    cases: Sequence[Mapping[str, Any]],
    weights: Sequence[float],
    augment: RandThoraxAugment,
    autoencoder_checkpoint: str | os.PathLike[str],
    body_grid: VolumeGrid,
    count: int,
    seed: int = 0,
    device: str | torch.device = "cpu",
    key: str = "source",
) -> Path:
    """Warp training CTs at random, encode them, and write `count` entries and an index.

    Entry i is the same whenever it is written: a killed run is taken up where it stopped.

    Args:
        folder: of the entries.
        cases: training cases; `key` is a CT (1, X, Y, Z) in HU around the isocentre, "fold" (where there is one) the
            part of the patients that it belongs to.
        weights: how often each case is drawn.
        augment: the warp, to `body_grid`.
        autoencoder_checkpoint: model.pt of `vqgan`; the middle of the warped CT on its grid is encoded.
        body_grid: grid of the warped CT; of the autoencoder's spacing, with the same margin on both sides.
        count: number of entries.
        seed: of cases and warps.
        device: where the autoencoder runs.
        key: of the CT.

    Returns:
        The index, latents.json.

    Raises:
        ValueError: if the folder holds entries of other settings, or grids do not fit each other.
    """
    if count < 2:
        raise ValueError(f"at least 2 latents are needed to know their spread, got {count}")
    folder = Path(folder)
    checkpoint = load_checkpoint(autoencoder_checkpoint)
    autoencoder: Any = checkpoint.network().to(device)
    cube = (slice(None), *autoencoder.grid.middle_of(body_grid))
    settings = {
        "autoencoder_sha256": checkpoint.hash,
        "grid": definition(autoencoder.grid),
        "source_grid": definition(body_grid),
        "hu_window": list(autoencoder.hu_window),
        "seed": seed,
        "folds": [int(case.get("fold", 0)) for case in cases],
        "weights": [round(float(weight), 9) for weight in weights],
        "loaded_shapes": sorted({tuple(case[key].shape[1:]) for case in cases}),
        "augmentation": {k: v for k, v in vars(augment).items() if isinstance(v, int | float | tuple) and k != "R"},
    }
    settings = json.loads(json.dumps(settings))
    _claim(folder, settings)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(torch.tensor(weights), count, replacement=True, generator=generator).tolist()
    total, squares, voxels = torch.zeros(0), torch.zeros(0), 0
    for index in tqdm(range(count), desc="latents", unit="latent", disable=None):
        path = entry_path(folder, index)
        if path.is_file():
            latent = load_tensors(path)["latent"]
        else:
            augment.set_random_state(seed * 1_000_003 + index)
            case = cases[drawn[index]]
            volume = augment(torch.as_tensor(case[key])).round().to(torch.int16)
            unit = hu_to_unit(volume[cube].to(device), autoencoder.hu_window)
            with torch.no_grad():
                latent = autoencoder.encode(unit[None])[0].half().cpu()
            write_tensors(path, {"latent": latent, "source": volume, "fold": torch.tensor(int(case.get("fold", 0)))})
        wide = latent.double().flatten(1)
        total = wide.sum(1) + (total if len(total) else 0)
        squares = wide.square().sum(1) + (squares if len(squares) else 0)
        voxels += wide.shape[1]
    mean = total / voxels
    std = (squares / voxels - mean.square()).clamp(min=0).sqrt()
    content = {**settings, "count": count, "latent_mean": mean.tolist(), "latent_std": std.tolist()}
    write_json(folder / INDEX, content)
    logger.info("%d latents in %s", count, folder)
    return folder / INDEX


def entry_path(folder: Path, index: int) -> Path:
    """File of an entry."""
    return folder / f"{index:06d}.pt"


class LatentDataset(Dataset):
    """Entries of `write_latents`: "latent" (C, x, y, z), "source" (1, X, Y, Z) in HU, "fold".

    Args:
        folder: of the entries.
        autoencoder_checkpoint: model.pt that will decode what is learnt from them.

    Attributes:
        latent_mean, latent_std: of every channel, over all entries.
        folds: number of parts of the patients.

    Raises:
        FileNotFoundError: if there are none, or some are missing.
        ValueError: if they were made by another autoencoder.
    """

    def __init__(self, folder: str | os.PathLike[str], autoencoder_checkpoint: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        index = self.folder / INDEX
        content = read_json_object(index) if index.is_file() else {}
        if "count" not in content:
            raise FileNotFoundError(
                f"{index}: there are no latents, or not all of them: write them with "
                "latents.json of the bundle ldm_recon (its page says how)"
            )
        found = sha256_file(autoencoder_checkpoint)
        if content["autoencoder_sha256"] != found:
            raise ValueError(
                f"{index}: these latents were encoded by another autoencoder (SHA-256 "
                f"{content['autoencoder_sha256'][:12]}) than {autoencoder_checkpoint} ({found[:12]}): encode the CTs "
                "again in another folder, or pass the checkpoint that made them"
            )
        self.count = int(content["count"])
        self.latent_mean = torch.tensor(content["latent_mean"])
        self.latent_std = torch.tensor(content["latent_std"])
        self.folds = max(content["folds"]) + 1
        missing = [i for i in range(self.count) if not entry_path(self.folder, i).is_file()]
        if missing:
            raise FileNotFoundError(f"{entry_path(self.folder, missing[0])}: missing, and {len(missing) - 1} more")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"there are {self.count} latents, got index {index}")
        entry = load_tensors(entry_path(self.folder, index))
        return {"latent": entry["latent"].float(), "source": entry["source"].float(), "fold": entry["fold"]}


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Say what the folder holds before anything is in it, or find out that it holds something else."""
    index = folder / INDEX
    if index.is_file():
        content = read_json_object(index)
        other = sorted(k for k, v in settings.items() if content.get(k) != v)
        if other:
            raise ValueError(f"{folder} holds latents of other settings ({', '.join(other)}): choose another folder")
        return
    write_json(index, settings)
