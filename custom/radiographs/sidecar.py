"""JSON descriptions of radiographs: a sidecar beside each, or the file of `--geometry` for all."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from custom.core.files import read_json
from custom.geometry import JSON_FORMAT, Geometry
from custom.radiographs.acquisition_metadata import MetadataValue, Origin, names_direction, quantity
from custom.radiographs.readings import Reading

__all__ = [
    "ANSWERS_FORMAT",
    "KEYS",
    "SIDECAR_FORMAT",
    "DescriptionFile",
    "GivenView",
    "find_sidecar",
    "load_geometry_file",
    "load_sidecar",
]

SIDECAR_FORMAT = "fewview-ct radiographs 1"
#: The same, written by the page of `fewview-ct app` of what its user answered there.
ANSWERS_FORMAT = "fewview-ct answers 1"
#: Letters of a user's own name of a file.
_LONGEST_NAME = 60


def _number(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError("must be a number")
        if not low <= value <= high:
            raise ValueError(f"must be within {low:g} to {high:g}")
        return float(value)

    return check


def _within(key: str) -> Callable[[Any], float]:
    return _number(*quantity(key).limits)


def _whole(low: float, high: float) -> Callable[[Any], float]:
    within = _number(low, high)

    def check(value: Any) -> float:
        if within(value) != int(value):
            raise ValueError("must be a whole number")
        return float(value)

    return check


def _pair(check: Callable[[Any], float], single: bool = False) -> Callable[[Any], tuple[float, float]]:
    def pair(value: Any) -> tuple[float, float]:
        if single and not isinstance(value, list):
            return check(value), check(value)
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError("must be a list of two numbers")
        return check(value[0]), check(value[1])

    return pair


def _choice(*allowed: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if isinstance(value, bool) or value not in allowed:
            raise ValueError(f"must be one of {', '.join(map(str, allowed))}")
        return value

    return check


def _orientation(value: Any) -> str:
    text = str(value).upper().replace("/", "\\")
    parts = text.split("\\")
    if len(parts) != 2 or not all(map(names_direction, parts)):
        raise ValueError(r"must name the directions of rows and of columns, such as 'L\\F' or 'A/F' (of R L A P H F)")
    return text


#: What a sidecar may say about one radiograph, and how it is checked.
KEYS: dict[str, Callable[[Any], Any]] = {
    "beam": _choice("cone", "parallel"),
    "view_position": _choice("AP", "PA", "LL", "RL"),
    "angle_deg": _number(-360, 360),
    "elevation_deg": _within("elevation_deg"),
    "source_to_detector_mm": _within("source_to_detector_mm"),
    "source_to_isocenter_mm": _within("source_to_isocenter_mm"),
    "pixel_mm": _pair(_within("pixel_mm"), single=True),
    "detector_offset_mm": _pair(_within("detector_offset_mm")),
    "detector_angles_deg": _pair(_within("detector_angles_deg")),
    "detector_roll_deg": _number(-180, 180),
    "patient_position": _choice("HFS", "HFP", "FFS", "FFP"),
    "orientation": _orientation,
    "frame": _whole(1, 1e6),
    "kvp": _within("kvp"),
    "intent": _choice("processing", "presentation"),
    "intensity_relationship": _choice("LIN", "LOG"),
    "intensity_sign": _choice(1, -1),
    "zero_intensity": _number(-1e9, 1e9),
    "log_scale": _number(1e-6, 1e9),
    "unattenuated": _number(-1e9, 1e9),
}


@dataclass(frozen=True, eq=False)
class GivenView:
    """A view that a `Geometry` gives whole; its picture is seen from the source, row 0 superior.

    Args:
        geometry: of the file.
        index: of the view.
        origin: geometry file or sidecar.
        where: name of that file.
    """

    geometry: Geometry
    index: int
    origin: Origin
    where: str

    @property
    def view(self) -> Tensor:
        """(13,) float64."""
        return self.geometry.views[self.index]

    @property
    def provenance(self) -> str:
        """Where it comes from, in words."""
        return MetadataValue("", None, self.origin, self.where).provenance


@dataclass(frozen=True, eq=False)
class DescriptionFile:
    """A JSON file that describes radiographs.

    Args:
        path: the file.
        origin: geometry file or sidecar.
        values: that hold for all that it stands beside.
        entries: values by a radiograph's name.
        geometry: whole views, in the radiographs' order.
        called: the user's own names of files, by the files' names; text alone, no paths.
    """

    path: Path
    origin: Origin
    values: Reading = field(default_factory=Reading)
    entries: Mapping[str, Reading] = field(default_factory=dict)
    geometry: Geometry | None = None
    called: Mapping[str, str] = field(default_factory=dict)

    def reading(self, *names: str) -> Reading:
        """What it says of a radiograph, by any of these names; the first goes before the others."""
        own = (self.entries[name] for name in dict.fromkeys(names) if name in self.entries)
        return sum(own, Reading()) + self.values

    def views(self, index: int) -> list[GivenView]:
        """The view that it gives whole, if it does."""
        return [] if self.geometry is None else [GivenView(self.geometry, index, self.origin, self.path.name)]


def _reading(path: Path, content: Any, origin: Origin) -> Reading:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be a JSON object of values, got {type(content).__name__}")
    values = []
    for key, value in content.items():
        if key in ("file", "format") or key.startswith("_"):
            continue
        if key not in KEYS:
            raise ValueError(f"{path}: {key!r} is not known; a sidecar may say {', '.join(KEYS)}")
        try:
            values.append(MetadataValue(key, KEYS[key](value), origin, path.name))
        except ValueError as error:
            raise ValueError(f"{path}: {key} is {value!r}, it {error}") from error
    return Reading(tuple(values))


def _geometry(path: Path, content: Any) -> Geometry | None:
    if not (isinstance(content, dict) and content.get("format") == JSON_FORMAT):
        return None
    try:
        return Geometry.from_dict(content)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error


def find_sidecar(path: Path) -> Path | None:
    """The JSON beside a radiograph: frontal.json or frontal.dcm.json for frontal.dcm."""
    stem = path.name.removesuffix(".gz").removesuffix(".nii") if path.name.endswith(".nii.gz") else path.stem
    for name in (f"{path.name}.json", f"{stem}.json"):
        if (path.parent / name).is_file() and name != path.name:
            return path.parent / name
    return None


def load_sidecar(path: Path) -> DescriptionFile | None:
    """What the JSON beside a radiograph or a stack says; None: there is none.

    Raises:
        ValueError: naming the file and the entry that is unknown or out of range.
    """
    beside = find_sidecar(path)
    if beside is None:
        return None
    content = read_json(beside)
    geometry = _geometry(beside, content)
    values = _reading(beside, content, Origin.SIDECAR) if geometry is None else Reading()
    return DescriptionFile(beside, Origin.SIDECAR, values, geometry=geometry)


def load_geometry_file(path: Path) -> DescriptionFile:
    """The file of `--geometry`.

    Raises:
        FileNotFoundError: where it is not there.
        ValueError: naming the file and what is wrong in it.
    """
    content = read_json(path)
    geometry = _geometry(path, content)
    if geometry is not None:
        return DescriptionFile(path, Origin.GEOMETRY_FILE, geometry=geometry)
    origins = {SIDECAR_FORMAT: Origin.GEOMETRY_FILE, ANSWERS_FORMAT: Origin.ANSWER}
    if not isinstance(content, dict) or content.get("format") not in list(origins):
        raise ValueError(f"{path}: 'format' must be {SIDECAR_FORMAT!r} or {JSON_FORMAT!r}")
    origin, views = origins[content["format"]], content.get("views")
    if not isinstance(views, list) or not all(isinstance(v, dict) and isinstance(v.get("file"), str) for v in views):
        raise ValueError(f"{path}: 'views' must be a list of objects, each with the 'file' that it describes")
    entries: dict[str, Reading] = {}
    for view in views:
        if view["file"] in entries:
            raise ValueError(f"{path}: {view['file']!r} is described twice")
        entries[view["file"]] = _reading(path, view, origin)
    return DescriptionFile(path, origin, entries=entries, called=_called(path, content.get("called", {})))


def _called(path: Path, names: Any) -> dict[str, str]:
    """Names of files that a user gave, without folders, and with "\ufffd" in place of what cannot be seen."""
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{path}: 'called' must be an object of names by file")
    last = {file: " ".join(re.split(r"[\\/]", name)[-1].split()) for file, name in names.items()}
    seen = {file: "".join(c if c.isprintable() else "\ufffd" for c in name) for file, name in last.items()}
    return {file: name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…" for file, name in seen.items()}
