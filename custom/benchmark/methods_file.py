"""Reader of the methods file, which names the methods of a comparison. Format: docs/how-to/benchmark.md."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor

from custom.benchmark.bundle_method import ATLAS_KEY, MODEL_KEY, bundle_parser, bundle_row
from custom.benchmark.classical_methods import fdk_row, tv_row
from custom.benchmark.cohort import common_grid
from custom.benchmark.methods import VIEW_SETS, Method, mean_training_ct, network_row, sirt_row
from custom.benchmark.null_rows import ANOTHER_CT, NULL_ROWS
from custom.core.checkpoints import load_checkpoint
from custom.core.files import read_json_object, sha256_file, sha256_files
from custom.core.json_models import StrictModel, validated
from custom.data.datalist import load_cases
from custom.geometry import VolumeGrid

__all__ = ["SIMPLE_METHODS", "Entry", "Setting", "read_methods", "with_null_rows"]

#: Methods without a network, by their names in the file.
SIMPLE_METHODS = ("mean_training_ct", "sirt", "sirt_from_mean", "fdk", "tv")
#: Those that need the training part of a datalist.
_OF_TRAINING = ("mean_training_ct", "sirt_from_mean")


@dataclass(frozen=True)
class Setting:
    """What methods are built for.

    Attributes:
        data_list_file: of the comparison; its training part gives the mean training CT.
        cube: grid of the prepared cubes.
        grid: of the comparison.
        device: to reconstruct on.
        means: mean training CTs that were computed already.
    """

    data_list_file: str
    cube: VolumeGrid
    grid: VolumeGrid
    device: torch.device
    means: dict[str, Method] = field(default_factory=dict)

    def mean(self, options: Mapping[str, Any]) -> Method:
        """The mean training CT, averaged once for all rows."""
        chosen = {"data_list_file": self.data_list_file, **options}
        key = json.dumps(chosen, sort_keys=True)
        if key not in self.means:
            self.means[key] = mean_training_ct(**chosen)
        return self.means[key]


class Entry(StrictModel):
    """A method of the file, by its keys.

    Attributes:
        name: of its row; of two rows, where it gives samples.
        view_sets: those that it runs on alone.
        shuffled: whether, or on which view sets, it also gets the next patient's radiographs.
    """

    name: str = ""
    view_sets: list[str] | None = None
    shuffled: bool | list[str] = False

    @field_validator("view_sets", "shuffled")
    @classmethod
    def _there_are(cls, named: Any, info: ValidationInfo) -> Any:
        known = info.context or {}
        for name in named if isinstance(named, list) else []:
            if name not in known:
                raise ValueError(f"unknown view set {name!r}; known are {', '.join(map(repr, known))}")
        return named

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if not self.name:
            raise ValueError('needs a "name", which its row is called')
        return self

    def runs_on(self, view_set: str, shuffled: bool) -> bool:
        """Whether the file asks for this view set, with the patient's own or the next one's radiographs."""
        if self.view_sets is not None and view_set not in self.view_sets:
            return False
        return not shuffled or self.shuffled is True or (self.shuffled is not False and view_set in self.shuffled)

    def row_names(self, shuffled: bool) -> list[str]:
        """Rows of a job: one, or for samples a single one and the mean of all."""
        return [f"{self.name}, another patient's radiographs" if shuffled else self.name]

    def identity(self, setting: Setting) -> dict[str, Any]:
        """What the results of this method depend on: its keys, and the hashes of all files that they name."""
        content = self.model_dump(exclude_unset=True, exclude={"name", "view_sets", "shuffled"})
        files = {text: sha256_file(text) for text in sorted(_texts(content)) if os.path.isfile(text)}
        return {"content": content, "files": files}

    def guide(self) -> str | None:
        """SHA-256 of the segmenter that guided the training; None without one."""
        checkpoint = getattr(self, "checkpoint", None)
        if checkpoint is None:
            return None
        try:
            meta = load_checkpoint(checkpoint).meta
        except ValueError:  # weights of a user's own bundle, in another format
            return None
        return (meta.get("guidance") or {}).get("segmenter_sha256")

    def check(self, setting: Setting) -> None:
        """Find what would make every case fail, before the first one is reconstructed.

        Raises:
            FileNotFoundError, ValueError: naming the method.
        """
        try:
            self._try(setting)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"method {self.name!r}: {error}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"method {self.name!r}: {error}") from error

    def _try(self, setting: Setting) -> None:
        _check_box(self.build(setting).grid, setting.cube)

    @abstractmethod
    def build(self, setting: Setting) -> Method:
        """The method, its weights loaded."""


class SimpleEntry(Entry):
    """A method without a network; `options` are keywords of its row, and of the mean training CT."""

    simple: Literal["mean_training_ct", "sirt", "sirt_from_mean", "fdk", "tv"]
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_row(cls, content: Any) -> Any:
        """It tells the number of iterations, for one."""
        options = content.get("options", {})
        if content.get("name") or content["simple"] not in SIMPLE_METHODS or not isinstance(options, dict):
            return content
        try:
            return {**content, "name": _simple_name(content["simple"], options)}
        except TypeError as error:
            raise ValueError(str(error)) from error

    def identity(self, setting: Setting) -> dict[str, Any]:
        found = super().identity(setting)
        path = self.options.get("data_list_file", setting.data_list_file)
        if self.simple in _OF_TRAINING and os.path.isfile(path):
            found["files"][path] = sha256_file(path)
            # The same list may name CTs that were prepared anew.
            found["training_cts_sha256"] = sha256_files(Path(case["label"]) for case in load_cases(path, "training"))
        return found

    def _try(self, setting: Setting) -> None:
        _, of_mean = _split_options(self.simple, self.options)
        if self.simple not in _OF_TRAINING:
            self.build(setting)
            return
        path = of_mean.get("data_list_file", setting.data_list_file)
        found = common_grid(load_cases(path, "training"))
        if found != setting.cube:
            raise ValueError(
                f"{path}: training CTs of {found.shape} voxels of {found.spacing_mm} mm, but the compared "
                f"cases have {setting.cube.shape} of {setting.cube.spacing_mm} mm"
            )

    def build(self, setting: Setting) -> Method:
        options, of_mean = _split_options(self.simple, self.options)
        if self.simple == "mean_training_ct":
            return dataclasses.replace(setting.mean(of_mean), name=self.name)
        if self.simple == "sirt_from_mean":
            options["start"] = setting.mean(of_mean)
        row = _row_of(self.simple)(setting.grid, **options)
        return dataclasses.replace(row, name=self.name, run=functools.partial(_on_device, row.run, setting.device))


class NullEntry(Entry):
    """A null row, made of the truth or of the next patient's; its name is its own."""

    null: Literal["another_ct", "water", "bulk", "blurred"]

    @model_validator(mode="before")
    @classmethod
    def _has_its_name(cls, content: Any) -> Any:
        key = content.get("null")
        if "name" in content or "shuffled" in content:
            raise ValueError('a null row has a name of its own and is never "shuffled"')
        return {**content, "name": NULL_ROWS[key][0]} if isinstance(key, str) and key in NULL_ROWS else content

    def runs_on(self, view_set: str, shuffled: bool) -> bool:
        return shuffled == (self.null == ANOTHER_CT) and super().runs_on(view_set, False)

    def row_names(self, shuffled: bool) -> list[str]:
        return [self.name]

    def build(self, setting: Setting) -> Method:
        return Method(self.name, lambda image, views: image, setting.grid, of_truth=NULL_ROWS[self.null][1])


class CheckpointEntry(Entry):
    """Weights of a network of this project; `options` are arguments of it that hold no weights."""

    checkpoint: str
    options: dict[str, Any] = Field(default_factory=dict)
    grid: Literal["own", "comparison"] = "own"
    pixel_at_isocenter_mm: int | float | None = None

    def build(self, setting: Setting) -> Method:
        grid = setting.grid if self.grid == "comparison" else None
        pixel_mm, device = self.pixel_at_isocenter_mm, setting.device
        options = self.options
        return network_row(self.name, self.checkpoint, grid, pixel_at_isocenter_mm=pixel_mm, device=device, **options)


class BundleEntry(Entry):
    """Any bundle that keeps to the contract of docs/how-to/benchmark.md."""

    bundle: str
    checkpoint: str | None = None
    config_files: list[str] = Field(default_factory=lambda: ["configs/inference.json"])
    overrides: dict[str, Any] = Field(default_factory=dict)
    samples: int = Field(1, ge=1)
    seed: int = 0

    def row_names(self, shuffled: bool) -> list[str]:
        (name,) = super().row_names(shuffled)
        return [name] if self.samples == 1 else [f"{name}, a single sample", f"{name}, mean of {self.samples}"]

    def identity(self, setting: Setting) -> dict[str, Any]:
        found = super().identity(setting)
        code = sorted(Path(self.bundle).rglob("*.py"))
        found["files"] |= {str(path): sha256_file(path) for path in (*self._configs(), *code) if path.is_file()}
        weights = self._parser(None)
        for key in (MODEL_KEY, ATLAS_KEY):
            if key in weights and (path := weights.get_parsed_content(key)):
                found["files"][str(path)] = sha256_file(path)
        return found

    def build(self, setting: Setting) -> Method:
        folder = Path(self.bundle).resolve()
        return bundle_row(self.name, folder, self._parser(setting.device), self.samples, self.seed)

    def _configs(self) -> list[Path]:
        return [Path(self.bundle) / name for name in self.config_files]

    def _parser(self, device: torch.device | None) -> Any:
        folder = Path(self.bundle).resolve()
        return bundle_parser(folder, self._configs(), self.overrides, self.checkpoint, device)


_KINDS: dict[str, type[Entry]] = {
    "simple": SimpleEntry,
    "checkpoint": CheckpointEntry,
    "bundle": BundleEntry,
    "null": NullEntry,
}


def with_null_rows(entries: Sequence[Entry]) -> list[Entry]:
    """The mean training CT and all null rows, as far as they are not among the methods already, behind them."""
    there = {entry.name for entry in entries}
    given: list[Any] = ["mean_training_ct", *({"null": key} for key in NULL_ROWS)]
    return [*entries, *(one for one in (_entry(g, "null rows", {}) for g in given) if one.name not in there)]


class _ViewSet(StrictModel):
    angles_deg: list[float] = Field(min_length=1)
    beam: Literal["parallel", "cone"] = "parallel"


class _MethodsFile(StrictModel):
    methods: list[Any] = Field(min_length=1)
    view_sets: dict[str, _ViewSet] | None = Field(None, min_length=1)


def read_methods(path: str | os.PathLike[str]) -> tuple[list[Entry], dict[str, tuple[str, tuple[float, ...]]]]:
    """Read a methods file; nothing that it names is opened.

    Returns:
        The methods, and the view sets that there are: the file's own, else `VIEW_SETS`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming the entry and what is wrong with it.
    """
    path = Path(path)
    content = read_json_object(path, "no such methods file; docs/how-to/benchmark.md shows one")
    file = validated(_MethodsFile, content, str(path))
    views = dict(VIEW_SETS)
    if file.view_sets is not None:
        views = {name: (one.beam, tuple(one.angles_deg)) for name, one in file.view_sets.items()}
    entries = [_entry(given, f"{path}: method {number}", views) for number, given in enumerate(file.methods, 1)]
    rows = [name for entry in entries for name in entry.row_names(False)]
    double = next((name for name in rows if rows.count(name) > 1), None)
    if double is not None:
        raise ValueError(f'{path}: two methods are called {double!r}; give each a "name" of its own')
    return entries, views


def _entry(given: Any, where: str, views: Mapping[str, Any]) -> Entry:
    content = {"simple": given} if isinstance(given, str) else given
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be a name or an object, got {given!r}")
    kinds = [kind for kind in _KINDS if kind in content]
    kind = "bundle" if kinds == ["checkpoint", "bundle"] else kinds[0] if len(kinds) == 1 else ""
    if not kind:
        raise ValueError(f'{where} must have one of "simple", "checkpoint", "bundle" or "null", got {sorted(content)}')
    return validated(_KINDS[kind], content, where, context=views)


def _row_of(name: str) -> Callable[..., Method]:
    """What makes the row of a simple method, apart from the mean training CT."""
    rows: dict[str, Callable[..., Method]] = {
        "sirt": sirt_row,
        "sirt_from_mean": sirt_row,
        "fdk": fdk_row,
        "tv": tv_row,
    }
    return rows[name]


def _simple_name(simple: str, options: Mapping[str, Any]) -> str:
    """What the row calls itself."""
    mean = Method("mean training CT", lambda image, views: image)
    of_row, _ = _split_options(simple, options)
    if simple == "mean_training_ct":
        return mean.name
    start = {"start": mean} if simple == "sirt_from_mean" else {}
    return _row_of(simple)(VolumeGrid(), **of_row, **start).name


def _split_options(simple: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the row, and of the mean training CT that it is or starts from.

    Raises:
        ValueError: for an option that there is none of.
    """
    of_mean = ("data_list_file", "hu_window") if simple in _OF_TRAINING else ()
    of_row: list[str] = []
    if simple != "mean_training_ct":
        of_row = [key for key in inspect.signature(_row_of(simple)).parameters if key not in ("grid", "start", "name")]
    unknown = [key for key in options if key not in (*of_mean, *of_row)]
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r} of {simple!r}; there are {', '.join((*of_row, *of_mean))}")
    row = {key: value for key, value in options.items() if key in of_row}
    return row, {key: value for key, value in options.items() if key in of_mean}


def _on_device(run: Callable[[Tensor, Tensor], Tensor], device: torch.device, image: Tensor, views: Tensor) -> Tensor:
    return run(image.to(device), views.to(device)).cpu()


def _check_box(own: VolumeGrid | None, cube: VolumeGrid) -> None:
    if own is None:
        return
    for axis in range(3):
        middle, half = own.center_mm[axis], own.half_extent_mm[axis]
        needed, spare = cube.half_extent_mm[axis], own.spacing_mm[axis] / 2
        if middle + half < needed - spare or middle - half > spare - needed:
            raise ValueError(
                f"reconstructs {[2 * h for h in own.half_extent_mm]} mm around {list(own.center_mm)} mm, which "
                f"does not cover the cohort's cube of {[2 * h for h in cube.half_extent_mm]} mm"
            )


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return [text for one in inside for text in _texts(one)]
