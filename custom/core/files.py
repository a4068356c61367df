"""Writers of files that are whole or absent, with the same bytes for the same content; hashes of files."""

import contextlib
import errno
import glob
import gzip
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from custom.core.file_modes import new_mode
from custom.core.limits import check_file_size

PART_SUFFIX = ".part"
#: Bytes of a JSON file, and how deeply it may be nested.
LARGEST_JSON, DEEPEST_JSON = 64 * 2**20, 64


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream to write a file into, which gets its name when the block ends without an error.

    Until then it lies beside it under a hidden name; it is on the disk before it is renamed, so that a power failure
    leaves no empty file under the name of a whole one.

    Raises:
        OSError: naming the file, and what to do where the disk (or the quota) is full; no partial file is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        path.parent.mkdir(mode=new_mode(0o777), parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(temporary, flags, new_mode(0o666)), "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        message = f"{path}: could not be written: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = (
                f"no space left to write {path}: free some or choose another output folder, then start again; what is "
                "complete is kept"
            )
        raise (OSError(message) if error.errno is None else OSError(error.errno, message)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` by way of `atomic_file`."""
    with atomic_file(path) as stream:
        stream.write(content)


def read_json_object(path: Path, missing: str = "no such file") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        missing: what to say where it is not there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming the file: no JSON, or no object.
    """
    content = read_json(path, missing)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    return content


def read_json(path: Path, missing: str = "no such file") -> Any:
    """What a JSON file holds; the one reader of such files. Some editors write UTF-16, or a byte order mark: read, too.

    Args:
        path: of the file.
        missing: what to say where it is not there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming the file: no JSON, nested too deeply, or larger than is read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {missing}")
    check_file_size(path, LARGEST_JSON)
    try:
        content = path.read_bytes()
        return parsed_json(content.decode(json.detect_encoding(content)))
    except ValueError as error:
        raise ValueError(f"{path}: is not a JSON file: {error}") from error


def parsed_json(text: str) -> Any:
    """`json.loads`, with the depth bounded: what is nested deeper breaks whoever walks through it.

    Raises:
        ValueError: no JSON, nested more than `DEEPEST_JSON` times, a key that is there twice in one object, or a whole
            number that no float can hold.
    """
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", re.sub(r'"(?:[^"\\]++|\\.)*+"?', "", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > DEEPEST_JSON:
        raise ValueError(f"nested {deepest} times, at most {DEEPEST_JSON} are read")
    return json.loads(text, object_pairs_hook=_object, parse_int=_whole_number)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} is there twice: which one holds?")
    return content


def _whole_number(digits: str) -> int:
    if len(digits) > 300:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def write_json(path: str | os.PathLike[str], content: object, sort_keys: bool = True) -> Path:
    """Write valid JSON with a newline at the end, atomically: NaN as null, infinity as the text "Infinity".

    Args:
        path: target; its folder is made.
        content: mappings, lists, texts and numbers.
        sort_keys: False: in the order that they have, where a person reads them or columns are made of them.
    """
    path = Path(path)
    text = json.dumps(_finite(content), indent=1, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False)
    # What is no Unicode, such as a byte of a file's name, becomes the escape that JSON has for it.
    write_bytes(path, (text + "\n").encode(errors="backslashreplace"))
    return path


def _finite(value: Any) -> Any:
    """The same without numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def write_tensors(path: Path, content: object) -> None:
    """Write with torch.save, atomically. What earlier runs left of this file goes: checkpoints are large.

    Args:
        path: target; its folder is made.
        content: tensors, numbers and strings in dictionaries and lists, so that it loads with weights_only=True.

    Raises:
        OSError: with the file, where it could not be written; no partial file is left.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{PART_SUFFIX}"):
        left.unlink(missing_ok=True)
    try:
        # Into a stream: of a path torch would store the name, and no two files would be the same.
        with atomic_file(path) as stream:
            torch.save(content, stream)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(f"{path}: could not be written (disk full?): {error}") from error


def nifti_bytes(array: npt.NDArray[np.generic], affine: npt.NDArray[np.floating], description: str = "") -> bytes:
    """A NIfTI file in mm, not compressed; the affine is sform and qform alike (scanner coordinates).

    Args:
        array: (X, Y, Z), in its own data type.
        affine: (4, 4) voxel to world RAS+ mm.
        description: at most 79 characters of ASCII.
    """
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:79]
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return image.to_bytes()


def write_nifti(
    path: Path, array: npt.NDArray[np.generic], affine: npt.NDArray[np.floating], description: str = ""
) -> None:
    """Write NIfTI atomically and without a time stamp, so that equal content has equal bytes.

    Args:
        path: target; compressed where it ends in .gz.
        array, affine, description: as in `nifti_bytes`.
    """
    content = nifti_bytes(array, affine, description)
    write_bytes(path, compressed(content) if path.name.endswith(".gz") else content)


def compressed(content: bytes) -> bytes:
    """In gzip's format, without a time stamp."""
    return gzip.compress(content, compresslevel=5, mtime=0)


def remove_parts(folder: Path) -> int:
    """Remove the temporary files which a killed run left under ``folder``; returns how many."""
    parts = [p for p in folder.rglob(f".*{PART_SUFFIX}") if p.is_file()]
    for part in parts:
        part.unlink()
    return len(parts)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_files(paths: Iterable[Path]) -> str:
    """One SHA-256 for several files: of their digests, sorted, so that neither names nor order matter."""
    total = hashlib.sha256()
    for digest in sorted(sha256_file(p) for p in paths):
        total.update(digest.encode())
    return total.hexdigest()
