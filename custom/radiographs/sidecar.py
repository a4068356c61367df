"""JSON that says about radiographs what their files do not: beside each file, or one for all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from custom.geometry import JSON_FORMAT, Geometry
from custom.radiographs.acquisition_metadata import LIMITS

__all__ = ["SIDECAR_FORMAT", "GeometryFile", "Sidecar", "find_sidecar", "load_geometry_file"]

SIDECAR_FORMAT = "fewview-ct radiographs 1"
_LARGEST_FILE = 16 * 2**20


def _number(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError("must be a number")
        if not low <= value <= high:
            raise ValueError(f"must be within {low:g} to {high:g}")
        return float(value)

    return check


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
    if len(parts) != 2 or not all(p and set(p) <= set("RLAPHF") for p in parts):
        raise ValueError(r"must name the directions of rows and of columns, such as 'L\\F' or 'A/F' (of R L A P H F)")
    return text


#: What a sidecar may say about one radiograph, and how it is checked.
KEYS: dict[str, Callable[[Any], Any]] = {
    "beam": _choice("cone", "parallel"),
    "view_position": _choice("AP", "PA", "LL", "RL"),
    "angle_deg": _number(-360, 360),
    "elevation_deg": _number(*LIMITS["elevation_deg"]),
    "source_to_detector_mm": _number(*LIMITS["source_to_detector_mm"]),
    "source_to_isocenter_mm": _number(*LIMITS["source_to_isocenter_mm"]),
    "pixel_mm": _pair(_number(*LIMITS["pixel_mm"]), single=True),
    "detector_offset_mm": _pair(_number(*LIMITS["detector_offset_mm"])),
    "detector_angles_deg": _pair(_number(*LIMITS["detector_angles_deg"])),
    "detector_roll_deg": _number(-180, 180),
    "patient_position": _choice("HFS", "HFP", "FFS", "FFP"),
    "orientation": _orientation,
    "frame": _whole(1, 1e6),
    "kvp": _number(*LIMITS["kvp"]),
    "intent": _choice("processing", "presentation"),
    "intensity_relationship": _choice("LIN", "LOG"),
    "intensity_sign": _choice(1, -1),
    "log_scale": _number(1e-6, 1e9),
    "unattenuated": _number(-1e9, 1e9),
}


@dataclass(frozen=True)
class Sidecar:
    """Facts about one radiograph.

    Args:
        source: for provenance, such as "sidecar frontal.json".
        values: of `KEYS`, checked.
        view: (13,) of a geometry file; then the picture is stored as seen from the source, row 0 superior.
        shape: rows and columns that the geometry file states for it.
        angles_deg: of all views of the geometry file, in their order.
    """

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    view: Tensor | None = None
    shape: tuple[int, int] | None = None
    angles_deg: tuple[float, ...] = ()


@dataclass
class GeometryFile:
    """One JSON for all radiographs: entries by file name, or a `Geometry` whose views are in the files' order."""

    path: Path
    entries: dict[str, Sidecar] = field(default_factory=dict)
    geometry: Geometry | None = None


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{path}: larger than {_LARGEST_FILE // 2**20} MB, not a description of radiographs")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error


def _values(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be a JSON object of facts, got {type(content).__name__}")
    values = {}
    for key, value in content.items():
        if key in ("file", "format") or key.startswith("_"):
            continue
        if key not in KEYS:
            raise ValueError(f"{path}: {key!r} is not known; a sidecar may say {', '.join(KEYS)}")
        try:
            values[key] = KEYS[key](value)
        except ValueError as error:
            raise ValueError(f"{path}: {key} is {value!r}, it {error}") from error
    return values


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


def load_sidecar(path: Path) -> Sidecar:
    """What the JSON beside one radiograph says.

    Raises:
        ValueError: naming the file and the entry that is unknown or out of range.
    """
    content = _read_json(path)
    geometry = _geometry(path, content)
    if geometry is None:
        return Sidecar(f"sidecar {path.name}", _values(path, content))
    if len(geometry) != 1:
        raise ValueError(f"{path}: describes {len(geometry)} views, but stands beside one radiograph")
    return Sidecar(f"sidecar {path.name}", view=geometry.views[0], shape=geometry.detector_shape)


def load_geometry_file(path: Path) -> GeometryFile:
    """The file of `--geometry`.

    Raises:
        FileNotFoundError: where it is not there.
        ValueError: naming the file and what is wrong in it.
    """
    content = _read_json(path)
    geometry = _geometry(path, content)
    if geometry is not None:
        return GeometryFile(path, geometry=geometry)
    if not isinstance(content, dict) or content.get("format") != SIDECAR_FORMAT:
        raise ValueError(f"{path}: 'format' must be {SIDECAR_FORMAT!r} or {JSON_FORMAT!r}")
    views = content.get("views")
    if not isinstance(views, list) or not all(isinstance(v, dict) and isinstance(v.get("file"), str) for v in views):
        raise ValueError(f"{path}: 'views' must be a list of objects, each with the 'file' that it describes")
    found = GeometryFile(path)
    for view in views:
        if view["file"] in found.entries:
            raise ValueError(f"{path}: {view['file']!r} is described twice")
        found.entries[view["file"]] = Sidecar(f"--geometry {path.name}", _values(path, view))
    return found
