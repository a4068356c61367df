"""Acquisitions of warped training CTs that are simulated once, so that a training step need not wait for projections.

An entry has the radiographs, the views that the network is told, and the CT on the grid that is learnt, drawn as a step
of the same configuration draws them.
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

from custom.core.checkpoints import definition
from custom.core.files import write_json, write_tensors
from custom.data.augmentation import RandThoraxAugment
from custom.geometry import VolumeGrid
from custom.training.drawn_entries import EntryFolder, Job, drawn_from, of_radiographs
from custom.training.prepare_batch import SimulatedRadiographs

__all__ = ["AcquisitionFolder", "StoredAcquisitions"]

logger = logging.getLogger(__name__)

INDEX = "acquisitions.json"
#: What a step makes of an acquisition, not what it is.
OF_THE_STEP = ("sampling", "points", "patch", "regions_per_step", "hu_window", "volume_key")


class AcquisitionFolder:
    """A folder of acquisitions, to be written and to be trained with by one configuration.

    Args:
        folder: of the entries; None: there is none.
        cases: training cases with their "fold" (where there is one).
        weights: how often each case is drawn.
        augment: the warp, to the radiographs' `body_grid`.
        radiographs: of a training step.
        loading_grid: of the CTs that are warped.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        cases: Sequence[Mapping[str, Any]],
        weights: Sequence[float],
        augment: RandThoraxAugment,
        radiographs: SimulatedRadiographs,
        loading_grid: VolumeGrid,
    ) -> None:
        remedy = "write them with acquisitions.json of the bundle inr_recon (docs/how-to/train-inr.md says how)"
        self.entries = None if folder is None else EntryFolder(Path(folder), INDEX, "acquisitions", remedy)
        self.cases, self.weights, self.augment, self.radiographs = cases, weights, augment, radiographs
        self.loading_grid = loading_grid

    def settings(self) -> dict[str, Any]:
        """All that the acquisitions depend on, apart from the seed."""
        grids = (self.radiographs.grid, self.radiographs.body_grid, self.loading_grid)
        return {
            **dict(zip(("grid", "body_grid", "loading_grid"), map(definition, grids), strict=True)),
            **drawn_from(self.cases, self.weights, self.augment),
            "radiographs": of_radiographs(self.radiographs, OF_THE_STEP),
        }

    def write(
        self,
        count: int,
        seed: int,
        loading: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        scheduler: str | None = None,
    ) -> Path:
        """Write what is missing of `count` acquisitions, and the index.

        Args:
            count: number of entries; raised, those that are there stay.
            seed: of cases, warps and radiographs.
            loading: makes of a case the loaded one, with "source" (1, X, Y, Z) in HU on `loading_grid`. One case is in
                memory at a time.
            scheduler: see `custom.core.workers.Workers`.

        Returns:
            The index, acquisitions.json.

        Raises:
            ValueError: no folder, fewer than one acquisition, or a folder of acquisitions with other settings.
        """
        if self.entries is None:
            raise ValueError("acquisitions_folder is null: name the folder that the acquisitions are written to")
        if count < 1:
            raise ValueError(f"acquisitions is {count}; at least 1 is needed")
        settings = self.entries.claim({**self.settings(), "seed": seed}, {"count"})
        work = partial(
            _acquire,
            entries=self.entries,
            loading=loading,
            augment=self.augment,
            radiographs=self.radiographs,
            shape=self.loading_grid.shape,
            seed=seed,
        )
        self.entries.fill(work, self.cases, self.weights, count, seed, scheduler)
        logger.info("%d acquisitions in %s", count, self.entries.folder)
        return write_json(self.entries.folder / INDEX, {**settings, "count": count})

    def dataset(self, batch_size: int = 1) -> StoredAcquisitions:
        """The acquisitions to train with.

        Raises:
            FileNotFoundError: there are none, or not all of them.
            ValueError: acquisitions of other CTs, grids or settings, damaged ones, or a batch of several.
        """
        if self.entries is None:
            raise ValueError("acquisitions_folder is null: name the folder that the acquisitions are in")
        if batch_size != 1:
            raise ValueError(
                f"batch_size is {batch_size}: stored acquisitions differ in views and pixels, so a step takes one; "
                "raise regions_per_step instead"
            )
        content = self.entries.complete(self.settings(), {"seed"})
        return StoredAcquisitions(self.entries, content["count"], self.radiographs.grid.shape)


class StoredAcquisitions(Dataset):
    """Entries of `AcquisitionFolder`: "image" (K, V, U), "views" (K, 13), "label" (1, X, Y, Z) in HU, "fold".

    Args:
        entries: the folder.
        count: of acquisitions.
        shape: voxels of the labels.

    Raises:
        ValueError: naming the file, for entries that are damaged as far as their headers tell.
    """

    def __init__(self, entries: EntryFolder, count: int, shape: Sequence[int]) -> None:
        self.entries, self.count, self.shape = entries, count, tuple(shape)
        for number in range(count):
            self._checked(number, entries.load(number, mmap=True))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"there are {self.count} acquisitions, got index {index}")
        entry = self._checked(index, self.entries.load(index))
        if not all(bool(torch.isfinite(entry[name]).all()) for name in ("image", "views")):
            raise self.entries.damaged(index, "NaN or infinity in it")
        return entry

    def _checked(self, number: int, entry: dict[str, Tensor]) -> dict[str, Tensor]:
        shapes = {name: tuple(value.shape) for name, value in entry.items()}
        count, *pixels = (*shapes.get("image", ()), 0)[:3]
        wanted = {"image": (count, *pixels), "views": (count, 13), "label": (1, *self.shape), "fold": ()}
        if shapes != wanted:
            raise self.entries.damaged(number, f"it holds {shapes}")
        return entry


@torch.no_grad()
def _acquire(
    job: Job,
    entries: EntryFolder,
    loading: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    augment: RandThoraxAugment,
    radiographs: SimulatedRadiographs,
    shape: Sequence[int],
    seed: int,
) -> None:
    """Write the acquisitions of a job."""
    for number, own_seed, volume in job.warped(loading, augment, seed, shape=shape):
        with torch.random.fork_rng([]):
            radiographs.set_random_state(own_seed)
            image, views, label = radiographs.acquire(volume[None])
        entry = {"image": image[0].clone(), "views": views[0].clone(), "label": label[0].round().to(torch.int16)}
        write_tensors(entries.path(number), {**entry, "fold": torch.tensor(int(job.case.get("fold", 0)))})
