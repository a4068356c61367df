"""Files written whole or not at all, the same bytes for the same content, and their hashes."""

import errno
import gzip
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

PART_SUFFIX = ".part"


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path`` under a temporary name, then rename it.

    Raises:
        OSError: with the file and what to do where the disk (or the quota) is full; no partial file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = (
                f"no space left to write {path} ({len(content) / 1e6:.1f} MB): free some or choose another output "
                "folder, then start again; what is complete is kept"
            )
            raise OSError(error.errno, message) from error
        raise


def read_json_object(path: Path, missing: str = "no such file") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        missing: what to say where it is not there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming the file: no JSON, or no object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {missing}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object")
    return content


def write_json(path: Path, content: object) -> None:
    """Write JSON with sorted keys and a newline at the end, atomically."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_tensors(path: Path, content: object) -> None:
    """Write with torch.save under a temporary name, then rename it.

    Args:
        path: target; its folder is made.
        content: tensors, numbers and strings in dictionaries and lists, so that it loads with weights_only=True.

    Raises:
        OSError: with the file, where it could not be written; no partial file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(content, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: the checkpoint could not be written (disk full?): {error}") from error


def write_nifti(path: Path, array: npt.NDArray[np.generic], affine: npt.NDArray[np.floating]) -> None:
    """Write a compressed NIfTI in mm, atomically and without a time stamp, so that equal content has equal bytes.

    Args:
        path: target, ending in .nii.gz.
        array: (X, Y, Z), written in its own data type.
        affine: (4, 4) voxel to world RAS+ mm, stored as sform and qform (scanner coordinates).
    """
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=5, mtime=0))


def remove_parts(folder: Path) -> int:
    """Remove the temporary files which a killed run left under ``folder``; returns how many."""
    parts = [p for p in folder.rglob(f".*{PART_SUFFIX}") if p.is_file()]
    for part in parts:
        part.unlink()
    return len(parts)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_files(paths: Iterable[Path]) -> str:
    """One SHA-256 for several files: of their digests, sorted, so that neither names nor order matter."""
    total = hashlib.sha256()
    for digest in sorted(sha256_file(p) for p in paths):
        total.update(digest.encode())
    return total.hexdigest()
