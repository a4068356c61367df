"""The file that names the methods of a comparison, and how each of them is built. Format: docs/how-to/benchmark.md."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom.benchmark.bundle_method import MODEL_KEY, bundle_parser, bundle_row
from custom.benchmark.classical_methods import fdk_row, tv_row
from custom.benchmark.cohort import common_grid
from custom.benchmark.methods import VIEW_SETS, Method, mean_training_ct, network_row, sirt_row
from custom.core.checkpoints import load_checkpoint
from custom.core.files import read_json_object, sha256_file
from custom.data.datalist import load_cases
from custom.geometry import VolumeGrid

__all__ = ["SIMPLE_METHODS", "Entry", "Setting", "read_methods"]

#: Methods without a network, by their names in the file.
SIMPLE_METHODS = ("mean_training_ct", "sirt", "sirt_from_mean", "fdk", "tv")
#: Those that need the training part of a datalist.
_OF_TRAINING = ("mean_training_ct", "sirt_from_mean")
_KINDS = ("simple", "checkpoint", "bundle")
_COMMON = {"name", "view_sets", "shuffled"}
_KEYS = {
    "simple": {"simple", "options"},
    "checkpoint": {"checkpoint", "options", "grid", "pixel_at_isocenter_mm"},
    "bundle": {"bundle", "checkpoint", "config_files", "overrides", "samples", "seed"},
}
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "name": (str, "a text"),
    "simple": (str, "a text"),
    "checkpoint": (str, "a file name"),
    "bundle": (str, "a folder"),
    "config_files": (list, "a list of file names"),
    "overrides": (dict, "an object"),
    "options": (dict, "an object"),
    "view_sets": (list, "a list of names"),
    "shuffled": ((bool, list), "true or a list of names of view sets"),
    "grid": (str, '"own" or "comparison"'),
    "samples": (int, "a whole number"),
    "seed": (int, "a whole number"),
    "pixel_at_isocenter_mm": ((int, float), "a number"),
}


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


@dataclass(frozen=True)
class Entry:
    """A method of the file.

    Attributes:
        name: of its row; of two rows, where it gives samples.
        kind: "simple", "checkpoint" or "bundle".
        content: its keys, as in the file.
    """

    name: str
    kind: str
    content: Mapping[str, Any]

    @property
    def samples(self) -> int:
        return int(self.content.get("samples", 1))

    def runs_on(self, view_set: str, shuffled: bool) -> bool:
        """Whether the file asks for this view set, with the patient's own or the next one's radiographs."""
        allowed = self.content.get("view_sets")
        if allowed is not None and view_set not in allowed:
            return False
        other = self.content.get("shuffled", False)
        return not shuffled or other is True or (other is not False and view_set in other)

    def row_names(self, shuffled: bool) -> list[str]:
        """Rows of a job: one, or for samples a single one and the mean of all."""
        name = f"{self.name}, another patient's radiographs" if shuffled else self.name
        return [name] if self.samples == 1 else [f"{name}, a single sample", f"{name}, mean of {self.samples}"]

    def identity(self, setting: Setting) -> dict[str, Any]:
        """What the results of this method depend on: its keys, and the hashes of all files that they name."""
        named = set(_texts(self.content))
        if self.content.get("simple") in _OF_TRAINING:
            named.add(setting.data_list_file)
        files = {text: sha256_file(text) for text in sorted(named) if os.path.isfile(text)}
        if self.kind == "bundle":
            code = sorted(Path(self.content["bundle"]).rglob("*.py"))
            files |= {str(path): sha256_file(path) for path in (*self._config_files(), *code) if path.is_file()}
            weights = self._parser(None)
            if MODEL_KEY in weights and (path := weights.get_parsed_content(MODEL_KEY)):
                files[str(path)] = sha256_file(path)
        content = {key: value for key, value in self.content.items() if key not in ("name", "view_sets", "shuffled")}
        return {"content": content, "files": files}

    def guide(self) -> str | None:
        """SHA-256 of the segmenter that guided the training; None without one."""
        checkpoint = self.content.get("checkpoint")
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
            if self.kind == "simple":
                _check_simple(self.content, setting)
            else:
                _check_box(self.build(setting).grid, setting.cube)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"method {self.name!r}: {error}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"method {self.name!r}: {error}") from error

    def build(self, setting: Setting) -> Method:
        """The method, its weights loaded."""
        if self.kind == "simple":
            method = _simple(self.content, setting)
        elif self.kind == "checkpoint":
            grid = setting.grid if self.content.get("grid") == "comparison" else None
            pixel_mm = self.content.get("pixel_at_isocenter_mm")
            options = self.content.get("options", {})
            method = network_row(
                self.name,
                self.content["checkpoint"],
                grid,
                pixel_at_isocenter_mm=pixel_mm,
                device=setting.device,
                **options,
            )
        else:
            parser = self._parser(setting.device)
            folder = Path(self.content["bundle"]).resolve()
            method = bundle_row(self.name, folder, parser, self.samples, int(self.content.get("seed", 0)))
        return dataclasses.replace(method, name=self.name)

    def _config_files(self) -> list[Path]:
        folder = Path(self.content["bundle"])
        return [folder / name for name in self.content.get("config_files", ["configs/inference.json"])]

    def _parser(self, device: torch.device | None) -> Any:
        folder = Path(self.content["bundle"]).resolve()
        overrides, checkpoint = self.content.get("overrides", {}), self.content.get("checkpoint")
        return bundle_parser(folder, self._config_files(), overrides, checkpoint, device)


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
    if not isinstance(content.get("methods"), list) or not content["methods"]:
        raise ValueError(f'{path}: needs a list "methods" with at least one entry')
    surplus = [key for key in content if key not in ("methods", "view_sets") and not key.startswith("_")]
    if surplus:
        raise ValueError(f'{path}: unknown key {surplus[0]!r}; there are "methods" and "view_sets"')
    views = _view_sets(content.get("view_sets"), path)
    entries = [_entry(number, given, views, path) for number, given in enumerate(content["methods"], 1)]
    rows = [name for entry in entries for name in entry.row_names(False)]
    double = next((name for name in rows if rows.count(name) > 1), None)
    if double is not None:
        raise ValueError(f'{path}: two methods are called {double!r}; give each a "name" of its own')
    return entries, views


def _view_sets(given: Any, path: Path) -> dict[str, tuple[str, tuple[float, ...]]]:
    if given is None:
        return dict(VIEW_SETS)
    if not isinstance(given, dict) or not given:
        raise ValueError(f'{path}: "view_sets" must be an object of at least one view set')
    views = {}
    for name, one in given.items():
        content = one if isinstance(one, dict) else {}
        angles: Any = content.get("angles_deg")
        beam = content.get("beam", "parallel")
        numbers = isinstance(angles, list) and angles and all(isinstance(a, int | float) for a in angles)
        if not numbers or beam not in ("parallel", "cone") or set(content) - {"angles_deg", "beam"}:
            raise ValueError(
                f'{path}: view set {name!r} must have "angles_deg", a list of numbers, and may have "beam", "parallel" '
                f'or "cone"; got {one!r}'
            )
        views[name] = (beam, tuple(float(a) for a in angles))
    return views


def _entry(number: int, given: Any, views: Mapping[str, Any], path: Path) -> Entry:
    content = {"simple": given} if isinstance(given, str) else given
    where = f"{path}: method {number}"
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be a name or an object, got {given!r}")
    content = {key: value for key, value in content.items() if not key.startswith("_")}
    kinds = [kind for kind in _KINDS if kind in content]
    kind = "bundle" if kinds == ["checkpoint", "bundle"] else kinds[0] if len(kinds) == 1 else ""
    if not kind:
        raise ValueError(f'{where} must have one of "simple", "checkpoint" or "bundle", got {sorted(content)}')
    for key, value in content.items():
        if key not in _COMMON | _KEYS[kind]:
            raise ValueError(f"{where}: unknown key {key!r}; there are {', '.join(sorted(_COMMON | _KEYS[kind]))}")
        expected, words = _TYPES[key]
        if not isinstance(value, expected) or (isinstance(value, bool) and expected in (int, (int, float))):
            raise ValueError(f"{where}: {key!r} must be {words}, got {value!r}")
    if kind == "simple" and content["simple"] not in SIMPLE_METHODS:
        raise ValueError(f"{where}: unknown method {content['simple']!r}; known are {', '.join(SIMPLE_METHODS)}")
    if content.get("grid", "own") not in ("own", "comparison"):
        raise ValueError(f'{where}: "grid" must be "own" or "comparison", got {content["grid"]!r}')
    if int(content.get("samples", 1)) < 1:
        raise ValueError(f'{where}: "samples" must be at least 1, got {content["samples"]}')
    for key in ("view_sets", "shuffled"):
        named: Any = content.get(key)
        for name in named if isinstance(named, list) else []:
            if name not in views:
                raise ValueError(f"{where}: unknown view set {name!r}; known are {', '.join(map(repr, views))}")
    try:
        name = content.get("name") or (_simple_name(content) if kind == "simple" else "")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    if not name:
        raise ValueError(f'{where}: needs a "name", which its row is called')
    return Entry(name, kind, content)


def _row_of(name: str) -> Callable[..., Method]:
    """What makes the row of a simple method, apart from the mean training CT."""
    rows: dict[str, Callable[..., Method]] = {
        "sirt": sirt_row,
        "sirt_from_mean": sirt_row,
        "fdk": fdk_row,
        "tv": tv_row,
    }
    return rows[name]


def _simple_name(content: Mapping[str, Any]) -> str:
    """What the row calls itself; it tells the number of iterations, for one."""
    mean = Method("mean training CT", lambda image, views: image)
    options, _ = _split_options(content)
    if content["simple"] == "mean_training_ct":
        return mean.name
    start = {"start": mean} if content["simple"] == "sirt_from_mean" else {}
    return _row_of(content["simple"])(VolumeGrid(), **options, **start).name


def _split_options(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the row, and of the mean training CT that it is or starts from.

    Raises:
        ValueError: for an option that there is none of.
    """
    name, options = content["simple"], dict(content.get("options", {}))
    of_mean = ("data_list_file", "hu_window") if name in _OF_TRAINING else ()
    of_row: list[str] = []
    if name != "mean_training_ct":
        of_row = [key for key in inspect.signature(_row_of(name)).parameters if key not in ("grid", "start", "name")]
    unknown = [key for key in options if key not in (*of_mean, *of_row)]
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r} of {name!r}; there are {', '.join((*of_row, *of_mean))}")
    row = {key: value for key, value in options.items() if key in of_row}
    return row, {key: value for key, value in options.items() if key in of_mean}


def _simple(content: Mapping[str, Any], setting: Setting) -> Method:
    options, of_mean = _split_options(content)
    if content["simple"] == "mean_training_ct":
        return setting.mean(of_mean)
    if content["simple"] == "sirt_from_mean":
        options["start"] = setting.mean(of_mean)
    row = _row_of(content["simple"])(setting.grid, **options)
    return dataclasses.replace(row, run=functools.partial(_on_device, row.run, setting.device))


def _on_device(run: Callable[[Tensor, Tensor], Tensor], device: torch.device, image: Tensor, views: Tensor) -> Tensor:
    return run(image.to(device), views.to(device)).cpu()


def _check_simple(content: Mapping[str, Any], setting: Setting) -> None:
    _, of_mean = _split_options(content)
    if content["simple"] in _OF_TRAINING:
        path = of_mean.get("data_list_file", setting.data_list_file)
        found = common_grid(load_cases(path, "training"))
        if found != setting.cube:
            raise ValueError(
                f"{path}: training CTs of {found.shape} voxels of {found.spacing_mm} mm, but the compared "
                f"cases have {setting.cube.shape} of {setting.cube.spacing_mm} mm"
            )
    else:
        _simple(content, setting)


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
