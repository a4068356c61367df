"""Opening NIfTI files, in this one place: the header is checked against the file before memory is reserved."""

from __future__ import annotations

import gzip
import logging
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.spatialimages import HeaderDataError

from custom.core.limits import check_count, check_expansion

__all__ = ["open_nifti"]

nibabel_logger.setLevel(logging.CRITICAL)  # what it sets right it says without the file's name
#: Bytes before the voxels: header and extensions.
LARGEST_HEAD = 16 * 2**20
_MAGIC = {348: (344, b"n+1"), 540: (4, b"n+2")}
#: Codes of lengths (xyzt_units): unknown, m, mm, micron.
_LENGTHS = (0, 1, 2, 3)


def open_nifti(path: Path) -> nib.nifti1.Nifti1Image:
    """A NIfTI image (NIfTI-1 or 2, one file), its voxels not read yet.

    Args:
        path: ends in .nii or .nii.gz.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming the file: another kind, damaged, or larger in memory than `custom.core.limits` allows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: is not a NIfTI file: its name must end in .nii or .nii.gz")
    try:
        with open(path, "rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if packed != name.endswith(".gz"):
                said = f"it is {'' if packed else 'not '}compressed by gzip"
                raise ValueError(f"{path}: is truncated or damaged, or its name is wrong: {said}")
            if packed:
                with gzip.GzipFile(fileobj=plain) as stream:
                    _check(path, cast(BinaryIO, stream), packed=True)
            else:
                _check(path, plain, packed=False)
        image = nib.load(path)
        if not isinstance(image, nib.nifti1.Nifti1Image):
            raise ValueError(f"is not a NIfTI image but {type(image).__name__}")
        return image
    except (ImageFileError, HeaderDataError, EOFError, OSError, ValueError, zlib.error, struct.error) as error:
        text = " ".join(str(error).split())[:300]
        if text.startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: is truncated or damaged, or not a NIfTI file ({text})") from error


def _check(path: Path, stream: BinaryIO, packed: bool) -> None:
    """Sizes that header and extensions claim, against the file."""
    head = stream.read(544)
    size, order = _size_and_order(head)
    place, magic = _MAGIC[size]
    if head[place : place + 3] != magic:
        raise ValueError("no header and voxels in one file")
    if size == 348:
        dims = struct.unpack_from(f"{order}8h", head, 40)
        code, offset = struct.unpack_from(f"{order}h", head, 70)[0], struct.unpack_from(f"{order}f", head, 108)[0]
        scale, units = struct.unpack_from(f"{order}2f", head, 112), head[123]
    else:
        code = struct.unpack_from(f"{order}h", head, 12)[0]
        dims, offset = struct.unpack_from(f"{order}8q", head, 16), struct.unpack_from(f"{order}q", head, 168)[0]
        scale, units = struct.unpack_from(f"{order}2d", head, 176), struct.unpack_from(f"{order}i", head, 500)[0]
    if not 1 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 1:
        raise ValueError(f"dimensions {dims[1:]}")
    try:
        kind = np.dtype(cast(Any, nib.nifti1.data_type_codes.dtype[int(code)]))
    except KeyError as error:
        raise ValueError(f"data type {code} is not known") from error
    if kind.kind == "c":
        raise ValueError(f"{path}: holds complex numbers, which are no CT, labels or line integrals; export real ones")
    if units & 7 not in _LENGTHS:
        raise ValueError(f"{path}: its unit of length is {units & 7} (xyzt_units), which is none: 1 m, 2 mm, 3 micron")
    # What nibabel would pass over in silence: NaN stands for "no scale", an infinite one for nothing.
    if any(map(math.isinf, scale)):
        raise ValueError(f"{path}: its scale is infinite (scl_slope {scale[0]:g}, scl_inter {scale[1]:g})")
    if offset < size:
        raise ValueError(f"{path}: its voxels begin at byte {offset:g} (vox_offset), within the header of {size} bytes")
    width = kind.itemsize
    needed = float(np.prod([float(n) for n in dims[1 : dims[0] + 1]])) * width
    check_count(path, "bytes of header and extensions", offset, LARGEST_HEAD)
    if packed:
        check_expansion(path, needed)
    elif needed + offset > path.stat().st_size:
        raise ValueError(f"{path.stat().st_size} bytes, {needed + offset:.0f} are needed")
    _check_extensions(head[size:] + stream.read(max(0, int(offset) - len(head))), int(offset) - size, order)


def _size_and_order(head: bytes) -> tuple[int, str]:
    for order in "<>":
        if len(head) >= 352 and (size := struct.unpack_from(f"{order}i", head)[0]) in _MAGIC:
            return size, order
    raise ValueError("no header of 348 or 540 bytes")


def _check_extensions(content: bytes, length: int, order: str) -> None:
    """nibabel would reserve what an extension claims."""
    if length < 4 or content[:1] == b"\0":
        return
    place = 4
    while place + 8 <= length:
        size = struct.unpack_from(f"{order}i", content, place)[0] if place + 8 <= len(content) else -1
        if size < 8 or place + size > length:
            raise ValueError(f"a header extension of {size} bytes, {length - place} are left")
        place += size
