"""Reader of PNG and TIFF pictures, 8 or 16 bits of grey."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from custom.core.limits import check_expansion
from custom.dicom.header import LARGEST_PIXELS, one_line

__all__ = ["read_picture"]

#: Bytes that a picture may have whatever its file's size; what is larger and empty is no radiograph.
_SMALL_BYTES = 64 * 2**20
_DEPTHS = {"L": 255, "I;16": 65535, "I;16B": 65535, "I;16L": 65535, "I": 65535}


#: TIFF attributes, and what Photometric Interpretation 0 says: lower values are brighter.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
#: TIFF attribute; up to this value only mirrored or upside down, in which Pillow turns it as viewers do.
_ORIENTATION, _UPRIGHT = 274, 4


def read_picture(path: Path) -> tuple[npt.NDArray[np.float32], int, str]:
    """Grey values (V, U) of a PNG or TIFF as the file has them, the highest that it can hold, and how they are shown.

    Pillow inverts TIFF with WhiteIsZero where they have 8 bits, and not where they have 16; here neither is.

    Returns:
        Values, highest value, "MONOCHROME2" (higher values are brighter) or "MONOCHROME1".

    Raises:
        ValueError: colour, transparency, several pages, another depth, a size that is no radiograph's, damaged.
    """
    from PIL import Image, UnidentifiedImageError

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
                    raise ValueError(f"mode {image.mode}; only 8 or 16 bits of grey are read: save it as greyscale")
                tags = getattr(image, "tag_v2", {})
                if tags.get(_ORIENTATION, 1) > _UPRIGHT:  # Pillow mixes up the rows of some
                    raise ValueError(f"Orientation {tags[_ORIENTATION]}: it lies on its side; save it as it is shown")
                highest, inverted = _depth(image.mode, tags), _is_inverted(image)
                pixels = np.asarray(image)
        except UnidentifiedImageError as error:
            raise ValueError(f"{path}: not a readable radiograph (damaged, or no picture: export it anew)") from error
        except Exception as error:  # whatever Pillow raises for a damaged file
            raise ValueError(f"{path}: not a readable radiograph ({one_line(error)})") from error
    if pixels.shape != (rows, columns) or pixels.min() < 0 or pixels.max() > highest:
        raise ValueError(f"{path}: values from {pixels.min()} to {pixels.max()} are not 8 or 16 bits of grey")
    values = highest - pixels.astype(np.float32) if inverted else pixels.astype(np.float32)
    return values, highest, "MONOCHROME1" if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else "MONOCHROME2"


def _depth(mode: str, tags: Any) -> int:
    """The highest value that a file can hold."""
    bits = tags.get(_BITS_PER_SAMPLE, (0,))
    bits = bits[0] if isinstance(bits, tuple) else bits
    return (1 << bits) - 1 if mode != "L" and 8 < bits < 16 else _DEPTHS[mode]


def _is_inverted(image: Any) -> bool:
    """Whether Pillow turns round what the file holds, by the raw mode that it decodes with, such as "L;I"."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""
    raw = str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    return raw.startswith("L;") and "I" in raw.removeprefix("L;")
