"""Folders of entries that are drawn from warped training CTs once: what they were made with, and what is missing.

An entry is a file of tensors. Entry i is the same whenever and wherever it is written, so a killed run is taken up
where it stopped, and more entries can be added later.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom.core.files import read_json_object, sha256_files, write_json
from custom.core.tensor_files import load_tensors
from custom.core.workers import Workers
from custom.data.augmentation import RandThoraxAugment
from custom.training.prepare_batch import SimulatedRadiographs

__all__ = ["EntryFolder", "Job", "drawn_from", "of_radiographs"]

#: A job has at most so many entries of one case: what a break costs on a cluster, and what its loading is worth.
ENTRIES_PER_JOB = 8


@dataclass(frozen=True)
class Job:
    """A case, and some of its entries that are not there yet."""

    case: Mapping[str, Any]
    indices: tuple[int, ...]

    def warped(
        self,
        loading: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        augment: RandThoraxAugment,
        seed: int,
        key: str = "source",
        shape: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Number, seed and warped CT (1, X, Y, Z) in HU of each entry.

        Args:
            loading: makes of the case the loaded one, in which `key` is the CT (1, X, Y, Z) in HU.
            augment: the warp.
            seed: of all entries.
            key: of the CT.
            shape: voxels that the CT must have; None: any.

        Raises:
            ValueError: for a CT of another shape.
        """
        loaded = torch.as_tensor(loading(self.case)[key])
        if shape is not None and tuple(loaded.shape[1:]) != tuple(shape):
            raise ValueError(f"{self.case.get('case', 'a case')}: {tuple(loaded.shape[1:])} voxels, not {tuple(shape)}")
        for index in self.indices:
            own_seed = seed * 1_000_003 + index
            augment.set_random_state(own_seed)
            augment.randomize(self.case)
            yield index, own_seed, augment(loaded, randomize=False)


@dataclass(frozen=True)
class EntryFolder:
    """A folder of entries and its index, a JSON file with the settings that they were made with.

    Attributes:
        folder: of the entries.
        index: name of the index.
        kind: what the entries are called in messages.
        remedy: what a message says is to be done where there are none.
    """

    folder: Path
    index: str
    kind: str
    remedy: str

    def path(self, number: int) -> Path:
        """File of an entry."""
        return self.folder / f"{number:06d}.pt"

    def claim(self, settings: Mapping[str, Any], results: set[str]) -> dict[str, Any]:
        """Say what the folder holds before anything is in it, or find out that it holds something else.

        Args:
            settings: all that the entries depend on.
            results: what the index holds beside them.

        Returns:
            The settings as they stand in the index.

        Raises:
            ValueError: it holds entries of other settings, which are named.
        """
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        if not (self.folder / self.index).is_file():
            write_json(self.folder / self.index, plain)
        other = self._differing(read_json_object(self.folder / self.index), plain, results)
        if other:
            raise ValueError(f"{self.folder} holds {self.kind} of other settings ({other}): choose another folder")
        return plain

    def complete(self, settings: Mapping[str, Any] | None = None, unchecked: set[str] | None = None) -> dict[str, Any]:
        """The index of a folder that is whole.

        Args:
            settings: those that the entries must have; None: any.
            unchecked: what may be otherwise.

        Raises:
            FileNotFoundError: there are no entries, or not all of them.
            ValueError: entries of other settings, or a damaged index.
        """
        path = self.folder / self.index
        content = read_json_object(path) if path.is_file() else {}
        if "count" not in content:
            raise FileNotFoundError(f"{path}: there are no {self.kind}, or not all of them: {self.remedy}")
        if not isinstance(content["count"], int) or content["count"] < 1:
            raise ValueError(f"{path}: damaged, its count is {content['count']!r}: {self.remedy}")
        if settings is not None:
            other = self._differing(content, json.loads(json.dumps(settings)), {"count", *(unchecked or ())})
            if other:
                raise ValueError(
                    f"{path}: these {self.kind} were made with other settings ({other}): pass the options that they "
                    "were written with, or write others to another folder"
                )
        missing = next((n for n in range(content["count"]) if not self.path(n).is_file()), None)
        if missing is not None:  # a damaged count may be any number: the first one is enough
            raise FileNotFoundError(f"{self.path(missing)}: missing, of {content['count']} {self.kind}: {self.remedy}")
        return content

    @staticmethod
    def _differing(one: Mapping[str, Any], other: Mapping[str, Any], without: set[str]) -> str:
        return ", ".join(sorted(k for k in (one.keys() | other.keys()) - without if one.get(k) != other.get(k)))

    def load(self, number: int, mmap: bool = False) -> dict[str, Tensor]:
        """The tensors of an entry.

        Raises:
            ValueError: naming the file, if it is damaged.
        """
        path = self.path(number)
        try:
            content: Any = load_tensors(path, mmap)
        except (ValueError, RuntimeError, EOFError, KeyError, OSError, pickle.UnpicklingError) as error:
            raise self.damaged(number, error) from error
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise self.damaged(number, "it holds no tensors by name")
        return content

    def damaged(self, number: int, what: object) -> ValueError:
        """The error of an entry that is not what was written."""
        return ValueError(
            f"{self.path(number)}: damaged ({what}): remove it and start the command that writes the {self.kind} "
            "again, which makes what is missing"
        )

    def fill(
        self,
        make: Callable[[Job], None],
        cases: Sequence[Mapping[str, Any]],
        weights: Sequence[float],
        count: int,
        seed: int,
        scheduler: str | None = None,
    ) -> None:
        """Have all entries written that are not there.

        Args:
            make: writes the entries of a job; a case is loaded once for `ENTRIES_PER_JOB` of them.
            cases: training cases.
            weights: how often each case is drawn.
            count: number of entries.
            seed: of the draw.
            scheduler: see `custom.core.workers.Workers`.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(torch.tensor(weights), count, replacement=True, generator=generator).tolist()
        waiting: dict[int, list[int]] = {}
        for number, case in enumerate(drawn):
            if not self.path(number).is_file():
                waiting.setdefault(case, []).append(number)
        jobs = [
            Job(cases[case], tuple(numbers[first : first + ENTRIES_PER_JOB]))
            for case, numbers in waiting.items()
            for first in range(0, len(numbers), ENTRIES_PER_JOB)
        ]
        with Workers(1, scheduler) as pool:
            pool.run(make, jobs, label=self.kind, unit="entry", size=lambda job: len(job.indices))


def drawn_from(
    cases: Sequence[Mapping[str, Any]], weights: Sequence[float], augment: RandThoraxAugment
) -> dict[str, Any]:
    """Settings of what entries are drawn from: cases with fold and content, how often, and the warp.

    Args:
        cases: with "case", "fold" (where there is one), and "label" and "source" where they are files.
        weights: how often each case is drawn.
        augment: the warp.
    """
    found: dict[str, Any] = {
        "cases": [
            [
                str(case.get("case")),
                int(case.get("fold", 0)),
                sha256_files(Path(case[key]) for key in ("label", "source") if isinstance(case.get(key), str)),
            ]
            for case in cases
        ],
        "weights": [round(float(weight), 9) for weight in weights],
        "augmentation": _plain(augment),
    }
    return found if augment.shapes is None else {**found, "shapes": _plain(augment.shapes)}


def of_radiographs(radiographs: SimulatedRadiographs, unused: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Settings of simulated radiographs, by the names of the classes that draw them.

    Args:
        radiographs: of a training step.
        unused: attributes that do not matter.
    """
    parts = (radiographs, radiographs.acquisition, radiographs.pose_error, radiographs.degradation)
    found = {type(part).__name__: _plain(part) for part in parts if part is not None}
    return {name: {k: v for k, v in values.items() if k not in unused} for name, values in found.items()}


def _plain(part: Any) -> dict[str, Any]:
    """The settings of an object that are numbers, words, or lists of them."""
    values = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(part).items()}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float | str)
        or (isinstance(value, list | tuple) and all(isinstance(one, int | float | str) for one in value))
    }
