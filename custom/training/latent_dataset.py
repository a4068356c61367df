"""Data set of the latents of warped training CTs, computed once, so that the diffusion trains without encoder.

An entry is a file of tensors: the latent, and the warped CT that it came from, so that radiographs at any angle can be
projected from the very same volume in the training step. Or, for denoisers that know a reconstruction: the latent, one
set of radiographs, and what a mean network makes of them, encoded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from custom.core.checkpoints import definition, load_checkpoint
from custom.core.files import sha256_file, write_json, write_tensors
from custom.core.hu_window import hu_to_unit
from custom.data.augmentation import RandThoraxAugment
from custom.geometry import VolumeGrid
from custom.sampling import EncodedMean
from custom.training.drawn_entries import EntryFolder, Job, drawn_from, of_radiographs
from custom.training.prepare_batch import SimulatedRadiographs

__all__ = ["LatentDataset", "write_latents"]

logger = logging.getLogger(__name__)

INDEX = "latents.json"
#: What the index holds beside the settings.
RESULTS = {"count", "latent_mean", "latent_std"}


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
    loading: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    scheduler: str | None = None,
    radiographs: SimulatedRadiographs | None = None,
    means: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Warp training CTs at random, encode them, and write `count` entries and an index.

    Entry i is the same whenever and wherever it is written: a killed run is taken up where it stopped.

    Args:
        folder: of the entries.
        cases: training cases; "fold" (where there is one) is the part of the patients that one belongs to, "case" its
            name, which the augmentation's shape model needs.
        weights: how often each case is drawn.
        augment: the warp, to `body_grid`.
        autoencoder_checkpoint: model.pt of `vqgan`; the middle of the warped CT on its grid is encoded.
        body_grid: grid of the warped CT; of the autoencoder's spacing, with the same margin on both sides.
        count: number of entries.
        seed: of cases and warps.
        device: where the autoencoder runs.
        key: of the CT.
        loading: makes of a case the loaded one, in which `key` is the CT (1, X, Y, Z) in HU around the isocentre; all
            are of one shape. One case is in memory at a time.
        scheduler: see `custom.core.workers.Workers`; the unit of work is a case with all of its entries.
        radiographs: of an entry, with `means`; of sampling "grid", on the autoencoder's grid and `body_grid`.
        means: model.pt of `inr_recon`: one for each fold, which has not seen it, or one for all. With them an entry
            has no "source", but "image" (K, V, U), "views" (K, 13) and the encoded reconstruction "known".

    Returns:
        The index, latents.json.

    Raises:
        ValueError: if the folder holds entries of other settings, grids do not fit each other, or means and folds
            differ in number.
    """
    if count < 2:
        raise ValueError(f"at least 2 latents are needed to know their spread, got {count}")
    folder = Path(folder)
    checkpoint = load_checkpoint(autoencoder_checkpoint)
    autoencoder: Any = checkpoint.network()
    cube = (slice(None), *autoencoder.grid.middle_of(body_grid))
    shape = tuple(loading(cases[0])[key].shape[1:])
    folds = [int(case.get("fold", 0)) for case in cases]
    if len(means) > 1 and len(means) != max(folds) + 1:
        raise ValueError(f"{len(means)} mean networks for {max(folds) + 1} folds of the patients: one for each, or one")
    wanted = ("grid", autoencoder.grid, body_grid)
    if means and (not radiographs or (radiographs.sampling, radiographs.grid, radiographs.body_grid) != wanted):
        raise ValueError("means need radiographs of sampling 'grid', on the autoencoder's grid and the body_grid")
    settings: dict[str, Any] = {
        "autoencoder_sha256": checkpoint.hash,
        "grid": definition(autoencoder.grid),
        "source_grid": definition(body_grid),
        "hu_window": list(autoencoder.hu_window),
        "seed": seed,
        "loaded_shapes": [shape],
        **drawn_from(cases, weights, augment),
    }
    if means and radiographs:
        settings["mean_sha256"] = [EncodedMean(path, autoencoder).hash for path in means]
        settings["radiographs"] = of_radiographs(radiographs)
    entries = _entries(folder)
    settings = entries.claim(settings, RESULTS)
    work = partial(
        _encode,
        entries=entries,
        loading=loading,
        key=key,
        shape=shape,
        augment=augment,
        seed=seed,
        checkpoint=Path(autoencoder_checkpoint),
        cube=cube,
        device=device,
        radiographs=radiographs,
        means=means,
    )
    entries.fill(work, cases, weights, count, seed, scheduler)
    total, squares, voxels = torch.zeros(0), torch.zeros(0), 0
    for index in range(count):
        wide = entries.load(index, mmap=True)["latent"].double().flatten(1)
        total = wide.sum(1) + (total if len(total) else 0)
        squares = wide.square().sum(1) + (squares if len(squares) else 0)
        voxels += wide.shape[1]
    mean = total / voxels
    std = (squares / voxels - mean.square()).clamp(min=0).sqrt()
    content = {**settings, "count": count, "latent_mean": mean.tolist(), "latent_std": std.tolist()}
    write_json(entries.folder / INDEX, content)
    logger.info("%d latents in %s", count, folder)
    return entries.folder / INDEX


@torch.no_grad()
def _encode(
    job: Job,
    entries: EntryFolder,
    loading: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    key: str,
    shape: tuple[int, ...],
    augment: RandThoraxAugment,
    seed: int,
    checkpoint: Path,
    cube: tuple[slice, ...],
    device: str | torch.device,
    radiographs: SimulatedRadiographs | None,
    means: Sequence[str | os.PathLike[str]],
) -> None:
    """Write the entries of one case."""
    autoencoder: Any = load_checkpoint(checkpoint).network().to(device)
    fold = int(job.case.get("fold", 0))
    mean = EncodedMean(means[fold if len(means) > 1 else 0], autoencoder, device) if means else None
    for index, own_seed, warped in job.warped(loading, augment, seed, key, shape):
        volume = warped.round().to(torch.int16)
        unit = hu_to_unit(volume[cube].to(device), autoencoder.hu_window)
        entry = {"latent": autoencoder.encode(unit[None])[0].half().cpu(), "fold": torch.tensor(fold)}
        if mean is None or radiographs is None:
            entry["source"] = volume
        else:
            with torch.random.fork_rng([]):
                radiographs.set_random_state(own_seed)
                image, _, _, seen = radiographs({radiographs.volume_key: volume[None]}, device)
            known = mean(image, seen["views"], seen["view_mask"])[0].half()
            entry |= {"known": known.cpu(), "image": image[0].cpu(), "views": seen["views"][0].cpu()}
        write_tensors(entries.path(index), entry)


def _entries(folder: str | os.PathLike[str]) -> EntryFolder:
    remedy = "write them with latents.json of the bundle ldm_recon (its page says how)"
    return EntryFolder(Path(folder), INDEX, "latents", remedy)


class LatentDataset(Dataset):
    """Entries of `write_latents`: "latent" (C, x, y, z), "fold", and "source" (1, X, Y, Z) in HU, or of means "known"
    (C, x, y, z), "image" (K, V, U), "views" (K, 13) and "view_mask" (K,).

    Args:
        folder: of the entries.
        autoencoder_checkpoint: model.pt that will decode what is learnt from them.
        mean_checkpoint: model.pt whose reconstructions they shall know; None: not compared.

    Attributes:
        latent_mean, latent_std: of every channel, over all entries.

    Raises:
        FileNotFoundError: if there are none, or some are missing.
        ValueError: if they were made by another autoencoder, or by one mean network that is another.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        autoencoder_checkpoint: str | os.PathLike[str],
        mean_checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        self.entries = _entries(folder)
        index, content = self.entries.folder / INDEX, self.entries.complete()
        found = sha256_file(autoencoder_checkpoint)
        if content["autoencoder_sha256"] != found:
            raise ValueError(
                f"{index}: these latents were encoded by another autoencoder (SHA-256 "
                f"{content['autoencoder_sha256'][:12]}) than {autoencoder_checkpoint} ({found[:12]}): encode the CTs "
                "again in another folder, or pass the checkpoint that made them"
            )
        means = content.get("mean_sha256", [])
        if mean_checkpoint is not None and len(means) == 1 and means[0] != (found := sha256_file(mean_checkpoint)):
            raise ValueError(
                f"{index}: these latents know the reconstructions of another mean network (SHA-256 {means[0][:12]}) "
                f"than {mean_checkpoint} ({found[:12]}): pass that one, or encode the CTs again in another folder"
            )
        self.count = int(content["count"])
        self.latent_mean = torch.tensor(content["latent_mean"])
        self.latent_std = torch.tensor(content["latent_std"])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"there are {self.count} latents, got index {index}")
        entry = self.entries.load(index)
        item = {key: value if key == "fold" else value.float() for key, value in entry.items()}
        return item | ({"view_mask": torch.ones(len(item["views"]), dtype=torch.bool)} if "views" in item else {})
