"""Discovery of radiographs among files and folders that are named, in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from custom.core.files import read_json
from custom.dicom.opener import looks_like_dicom

__all__ = ["find_radiographs", "kind_of"]

_PICTURES = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}
_IGNORED = (".json", ".txt", ".md", ".csv", ".xml", ".html", ".htm", ".log", ".pdf", ".jpg", ".jpeg")
#: What is often given by mistake, by how it begins, whatever its name.
_FOREIGN = {b"%PDF-": "a PDF", b"\xff\xd8\xff": "a JPEG picture", b"PK\x03\x04": "a zip archive or office document"}
#: Radiographs of one run; more is a mistake, such as a folder of CT slices.
MOST_FILES = 512
#: Files of a folder, such as a patient's CD with a viewer on it, among which they are looked for.
MOST_LOOKED_AT = 20_000

#: The file in a folder that `fewview-ct reconstruct` wrote, and how its "format" begins.
_RESULT, _RESULT_FORMAT = "result.json", "fewview-ct reconstruction"


def kind_of(path: Path) -> str:
    """ "DICOM", "PNG", "TIFF", "NIfTI", or "" for what is none of them, by content before name."""
    start, name = _start(path), path.name.lower()
    if start[128:] == b"DICM":
        return "DICOM"
    if _foreign(start):
        return ""
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if name.endswith((".nii", ".nii.gz")):
        return "NIfTI"
    if path.suffix.lower() in _PICTURES:
        return _PICTURES[path.suffix.lower()]
    return "DICOM" if looks_like_dicom(path) else ""


def _start(path: Path) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(132)


def _foreign(start: bytes) -> str:
    return next((what for magic, what in _FOREIGN.items() if start.startswith(magic)), "")


def find_radiographs(paths: Sequence[str | os.PathLike[str]]) -> list[tuple[Path, str, bool]]:
    """Files to read, each with its kind and whether it was named itself (False: found in a folder).

    Named files keep their order; those of a folder (and its subfolders) come sorted by path. Below a folder, whatever
    is hidden is passed over, such as the leftovers of a killed run, and so are results of this package.

    Args:
        paths: files and folders.

    Raises:
        FileNotFoundError: for a path that is not there, or where nothing is found.
        ValueError: for a named file of unknown kind, a file that is given twice (also by its folder), no paths, or
            more files than one run takes.
    """
    if not paths:
        raise ValueError("no radiographs given: name DICOM, PNG, TIFF or NIfTI files, or folders of them")
    found: dict[Path, tuple[Path, str, bool]] = {}
    for given in map(Path, paths):
        if given.is_dir():
            before = len(found)
            files = list(islice(_below(given), MOST_LOOKED_AT + 1))
            if len(files) > MOST_LOOKED_AT:
                raise ValueError(f"{given}: more than {MOST_LOOKED_AT} files; name the radiographs")
            for path in sorted(files):
                looked_at = path.suffix.lower() not in _IGNORED and path.name.upper() != "DICOMDIR"
                kind = kind_of(path) if looked_at else ""
                if kind:
                    _add(found, path, kind, False)
            if len(found) - before > MOST_FILES:
                count = len(found) - before
                raise ValueError(f"{given}: {count} pictures are more than a patient has radiographs; name them")
        elif given.is_file():
            kind = kind_of(given)
            if not kind:
                what = _foreign(_start(given))
                raise ValueError(f"{given}: {f'{what}, ' if what else ''}neither DICOM nor PNG, TIFF or NIfTI")
            _add(found, given, kind, True)
        else:
            raise FileNotFoundError(f"{given}: no such file or folder")
    if not found:
        raise FileNotFoundError(f"no radiographs (DICOM, PNG, TIFF, NIfTI) in {', '.join(map(str, paths))}")
    return list(found.values())


def _below(folder: Path) -> Iterator[Path]:
    """Files in a folder and its subfolders, without hidden ones and without folders that hold a result of ours."""
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_result(here / name)]
        yield from (here / name for name in names if not name.startswith(".") and (here / name).is_file())


def _is_result(folder: Path) -> bool:
    try:
        content = read_json(folder / _RESULT)
    except (OSError, ValueError):  # none there, or another program's
        return False
    return isinstance(content, dict) and str(content.get("format")).startswith(_RESULT_FORMAT)


def _add(found: dict[Path, tuple[Path, str, bool]], path: Path, kind: str, named: bool) -> None:
    key = path.resolve()
    if key in found:
        other = found[key][0]
        also = "" if other == path else f" (also as {other})"
        raise ValueError(f"{path}: the same radiograph is given twice{also}; give it once, or only its folder")
    found[key] = (path, kind, named)
