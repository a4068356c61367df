"""Which files are radiographs: what was named, and what folders hold, in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["find_radiographs", "kind_of"]

_PICTURES = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}
_IGNORED = (".json", ".txt", ".md", ".csv", ".xml", ".html", ".htm", ".log", ".pdf", ".jpg", ".jpeg")
#: Radiographs of one run; more is a mistake, such as a folder of CT slices.
MOST_FILES = 512


def kind_of(path: Path) -> str:
    """ "DICOM", "PNG", "TIFF", "NIfTI", or "" for what is none of them, by content before name."""
    with open(path, "rb") as stream:
        start = stream.read(132)
    name = path.name.lower()
    if start[128:] == b"DICM":
        return "DICOM"
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if name.endswith((".nii", ".nii.gz")):
        return "NIfTI"
    if path.suffix.lower() in _PICTURES:
        return _PICTURES[path.suffix.lower()]
    if path.suffix.lower() in (".dcm", ".ima", ".dicom"):
        return "DICOM"
    # A DICOM file without preamble begins with a group 0008 element.
    return "DICOM" if start[:2] == b"\x08\x00" and start[3:4] == b"\x00" else ""


def find_radiographs(paths: Sequence[str | os.PathLike[str]]) -> list[tuple[Path, str, bool]]:
    """Files to read, each with its kind and whether it was named itself (False: found in a folder).

    Named files keep their order; those of a folder (and its subfolders) come sorted by path. A file that is named twice
    is read once.

    Args:
        paths: files and folders.

    Raises:
        FileNotFoundError: for a path that is not there, or where nothing is found.
        ValueError: for a named file of unknown kind, no paths, or more files than one run takes.
    """
    if not paths:
        raise ValueError("no radiographs given: name DICOM, PNG, TIFF or NIfTI files, or folders of them")
    found: dict[Path, tuple[Path, str, bool]] = {}
    for given in map(Path, paths):
        if given.is_dir():
            files = sorted(p for p in given.rglob("*") if p.is_file() and not p.name.startswith("."))
            files = [p for p in files if p.suffix.lower() not in _IGNORED and p.name.upper() != "DICOMDIR"]
            if len(files) > MOST_FILES:
                raise ValueError(f"{given}: {len(files)} files are more than a patient has radiographs; name them")
            for path in files:
                kind = kind_of(path)
                if kind:
                    found.setdefault(path.resolve(), (path, kind, False))
        elif given.is_file():
            kind = kind_of(given)
            if not kind:
                raise ValueError(f"{given}: neither DICOM nor PNG, TIFF or NIfTI")
            found.setdefault(given.resolve(), (given, kind, True))
        else:
            raise FileNotFoundError(f"{given}: no such file or folder")
    if not found:
        raise FileNotFoundError(f"no radiographs (DICOM, PNG, TIFF, NIfTI) in {', '.join(map(str, paths))}")
    return list(found.values())
