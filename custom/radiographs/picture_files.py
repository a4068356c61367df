"""Pixels of PNG and TIFF pictures, 8 or 16 bits of grey, and stacks of line integrals in NIfTI."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from nibabel import nifti1
from torch import Tensor

from custom.core.attenuation import LARGEST_LINE_INTEGRAL
from custom.dicom.header import LARGEST_PIXELS, one_line
from custom.geometry import Geometry

__all__ = ["read_picture", "read_stack"]

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


def read_stack(path: Path, geometry: Geometry, geometry_name: str) -> Tensor:
    """Line integrals (K, V, U), float32, of a NIfTI stack (u, v, view), as `fewview-ct simulate` writes it.

    Raises:
        ValueError: not readable, another size than the geometry's, not finite, or no line integrals.
    """
    rows, columns = geometry.detector_shape
    expected = (columns, rows, len(geometry))
    try:
        image = nifti1.load(path)
        shape = tuple(image.shape) + (1,) * (3 - len(image.shape))
        if shape != expected:
            raise ValueError(f"radiographs of shape {shape} (u, v, view), but {geometry_name} describes {expected}")
        if columns * rows > LARGEST_PIXELS or len(geometry) > 1000:
            raise ValueError(f"{shape} are too many pixels")
        array = np.asarray(image.dataobj, dtype=np.float32).reshape(expected)
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())[:300]}") from error
    except (Exception, zlib.error) as error:  # whatever nibabel raises for a damaged file
        raise ValueError(f"{path}: not a readable NIfTI file ({one_line(error)})") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: radiographs contain NaN or infinite values")
    stack = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 1, 0)))
    tops = stack.amax(dim=(1, 2))
    if float(tops.min()) <= 0:
        raise ValueError(f"{path}: a radiograph without any attenuation: empty, or not line integrals -log(I / I0)")
    if float(tops.max()) > LARGEST_LINE_INTEGRAL:
        raise ValueError(
            f"{path}: values up to {float(tops.max()):.4g} are no line integrals -log(I / I0), which reach about 10 "
            "behind a chest: convert the detector's values first"
        )
    return stack
