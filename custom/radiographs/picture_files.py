"""Pixels of PNG and TIFF pictures, 8 or 16 bits of grey."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt

from custom.core.limits import check_expansion
from custom.dicom.header import LARGEST_PIXELS, one_line

__all__ = ["read_picture"]

#: Bytes that a picture may have whatever its file's size; what is larger and empty is no radiograph.
_SMALL_BYTES = 64 * 2**20
_DEPTHS = {"L": 255, "I;16": 65535, "I;16B": 65535, "I;16L": 65535, "I": 65535}


def read_picture(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """Grey values (V, U) of a PNG or TIFF, and the highest value that it can hold.

    Raises:
        ValueError: colour, transparency, several pages, another depth, a size that is no radiograph's, damaged.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                columns, rows = image.size
                if min(rows, columns) < 8 or rows * columns > LARGEST_PIXELS:
                    raise ValueError(f"{columns} x {rows} pixels are not the size of a radiograph")
                check_expansion(path, 2.0 * columns * rows, _SMALL_BYTES)
                if getattr(image, "n_frames", 1) > 1:
                    raise ValueError(f"{image.n_frames} pages; save one radiograph a file")  # type: ignore[attr-defined]
                if image.mode not in _DEPTHS:
                    raise ValueError(f"mode {image.mode}; only 8 or 16 bits of grey are radiographs, no colour")
                highest = _DEPTHS[image.mode]
                pixels = np.asarray(image)
        except Exception as error:  # whatever Pillow raises for a damaged file
            raise ValueError(f"{path}: not a readable radiograph ({one_line(error)})") from error
    if pixels.shape != (rows, columns) or pixels.min() < 0 or pixels.max() > highest:
        raise ValueError(f"{path}: values from {pixels.min()} to {pixels.max()} are not 8 or 16 bits of grey")
    return pixels.astype(np.float32), highest
