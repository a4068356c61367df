"""What a request asks for, and which files it may name. Nothing here needs MONAI Label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom.radiographs import MissingMetadata

__all__ = ["CLIENT_KEYS", "PARAMETERS", "Outside", "Request", "http_status", "inside", "message", "parse"]

#: What a request may ask for; the command line has the same names, but for `views` and `volume`.
PARAMETERS = ("views", "geometry", "accept", "angles_deg", "samples", "seed", "volume")
VOLUMES = ("mean", "uncertainty")
EXTENSIONS = (".nii.gz", ".nii")

#: What the server and its clients add to every request, and what has no bearing on the result.
CLIENT_KEYS = (
    "model", "image", "description", "device", "client_id", "session", "label", "label_tag", "logging",
    "result_extension", "result_dtype", "result_compress", "save_label", "timeout",
)  # fmt: skip
#: Types of voxels that hold a CT in HU; viewers that want label maps ask for others.
DTYPES = (None, "", "int16", "float32")


class Outside(PermissionError):
    """A path that is not in the datastore."""


@dataclass(frozen=True)
class Request:
    """A request, checked.

    Attributes:
        views: further radiographs beside the request's image: ids, or paths in the datastore.
        geometry: what radiographs do not say about themselves: a path in the datastore, or the JSON itself.
        accept: assumptions that may be made (`custom.radiographs.ACCEPT`).
        angles_deg: views to use, by angle; None: all.
        samples: how many volumes to draw.
        seed: of the samples.
        volume: "mean": the CT; "uncertainty": the standard deviation of the samples.
        extension: of the returned file.
    """

    views: tuple[str, ...] = ()
    geometry: str | dict[str, Any] | None = None
    accept: tuple[str, ...] = ()
    angles_deg: tuple[float, ...] | None = None
    samples: int = 0
    seed: int = 0
    volume: str = "mean"
    extension: str = ".nii.gz"


def parse(request: Mapping[str, Any]) -> Request:
    """Check a request's parameters.

    Lists may come as text with commas and numbers as text, as viewers send what was typed into their forms; empty text
    is as good as none.

    Args:
        request: of `MONAILabelApp.infer`.

    Raises:
        ValueError: an unknown parameter, or a value that makes no sense; one line.
    """
    unknown = sorted(set(request) - set(PARAMETERS) - set(CLIENT_KEYS))
    if unknown:
        raise ValueError(f"parameter {unknown[0]!r} is not known; there are {', '.join(PARAMETERS)}")
    if _truth(request.get("save_label")):
        raise ValueError("save_label: a CT is no label of a radiograph; it is returned and not stored")
    if request.get("result_dtype") not in DTYPES:
        raise ValueError(
            f"result_dtype {request['result_dtype']!r}: the result is a CT in HU and no label map; leave result_dtype "
            "out and load what is returned as a volume"
        )
    extension = request.get("result_extension") or EXTENSIONS[0]
    if extension not in EXTENSIONS:
        raise ValueError(f"result_extension {extension!r}: the volume is returned as {' or '.join(EXTENSIONS)}")
    volume = request.get("volume") or VOLUMES[0]
    if volume not in VOLUMES:
        raise ValueError(f"volume is {volume!r}; it must be {' or '.join(VOLUMES)}")
    samples = _whole("samples", request.get("samples"))
    if volume == "uncertainty" and not samples:
        raise ValueError("volume 'uncertainty' is the spread of samples: ask for some, such as \"samples\": 4")
    angles = _list("angles_deg", request.get("angles_deg"))
    return Request(
        views=tuple(_text("views", one) for one in _list("views", request.get("views"))),
        geometry=_geometry(request.get("geometry")),
        accept=tuple(_text("accept", one) for one in _list("accept", request.get("accept"))),
        angles_deg=tuple(_number("angles_deg", one) for one in angles) or None,
        samples=samples,
        seed=_whole("seed", request.get("seed")),
        volume=volume,
        extension=extension,
    )


def _truth(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "yes") if value is not None else False


def _list(name: str, value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [value]
    raise ValueError(f"{name} must be a list, got {value!r}")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must hold names, got {value!r}")
    return value


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(f"{name} must hold numbers, got {value!r}")
    return number


def _whole(name: str, value: Any) -> int:
    if value is None or value == "":
        return 0
    number = _number(name, value)
    if number != int(number) or not 0 <= number < 2**31:
        raise ValueError(f"{name} must be a whole number from 0 on, got {value!r}")
    return int(number)


def _geometry(value: Any) -> str | dict[str, Any] | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str | dict):
        raise ValueError(f"geometry must be a JSON object or a file in the datastore, got {type(value).__name__}")
    return value


def inside(path: str, roots: Sequence[Path], name: str | None = None) -> Path:
    """A file or folder of the datastore. A server may not read what else is on its disks.

    Args:
        path: relative to the first root, or absolute.
        roots: folders that may be read; symbolic links that lead out of them are not followed.
        name: what the request calls it, where that is not the path.

    Returns:
        The path, absolute and without links.

    Raises:
        Outside: it is in none of the folders, or is a folder that holds a link that leads out of them.
        FileNotFoundError: nothing there.
    """
    allowed, name = [Path(root).resolve() for root in roots], name or path

    def is_allowed(place: Path) -> bool:
        return any(place == root or root in place.parents for root in allowed)

    refusal = f"{name!r} is not in the datastore: name an id, or a path inside it"
    try:
        found = (allowed[0] / path).resolve()
        exists = found.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a name that is too long, links in a circle
        raise Outside(refusal) from error
    if not is_allowed(found):
        raise Outside(refusal)
    if not exists:
        raise FileNotFoundError(f"{name!r}: no such id or path in the datastore")
    if found.is_dir():
        for entry in found.rglob("*"):
            if entry.is_symlink() and not is_allowed(entry.resolve()):
                raise Outside(f"{name!r} holds the link {entry.name!r}, which leads out of the datastore")
    return found


def http_status(error: Exception) -> int:
    """The HTTP status that an error of a request is answered with; 500 where the request is not at fault."""
    if isinstance(error, Outside):
        return 403
    if isinstance(error, FileNotFoundError):
        return 404
    if isinstance(error, MissingMetadata):
        return 422
    if isinstance(error, ModuleNotFoundError):
        return 501
    return 400 if isinstance(error, ValueError) else 500


def message(error: Exception, roots: Sequence[Path]) -> str:
    """An error as the client reads it: one line, without the server's folders."""
    text = " ".join(str(error).split())
    forms = {str(form) for root in roots for form in (root, Path(root).resolve())}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(f"{form}/", "").replace(form, "the datastore")
    return text
