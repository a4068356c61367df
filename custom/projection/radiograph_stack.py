"""Reader of stacks of line integrals in NIfTI, as `fewview-ct simulate` writes them."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from custom.core.attenuation import LARGEST_LINE_INTEGRAL
from custom.core.nifti_files import open_nifti
from custom.dicom.header import LARGEST_PIXELS, one_line
from custom.geometry import Geometry

__all__ = ["load_stack", "read_stack"]

_MOST_VIEWS = 1000


def load_stack(image: str | os.PathLike[str], geometry: str | os.PathLike[str]) -> tuple[Tensor, Geometry]:
    """Line integrals (K, V, U), float32, and the geometry of a stored stack, each in its own file.

    Args:
        image: NIfTI, axes u, v, view.
        geometry: JSON of `Geometry.save`.

    Raises:
        FileNotFoundError, ValueError: as `read_stack` does, and for a file that is no geometry.
    """
    acquisition = Geometry.load(geometry)
    return read_stack(image, acquisition, str(geometry)), acquisition


def read_stack(path: str | os.PathLike[str], geometry: Geometry | None, geometry_name: str = "") -> Tensor:
    """Line integrals (K, V, U), float32, of a NIfTI stack with axes u, v, view.

    Args:
        path: the file.
        geometry: of the stack, whose size is checked; None: not known.
        geometry_name: where that comes from, in errors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not readable, another size than the geometry's, not finite, or no line integrals.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of radiographs")
    try:
        image = open_nifti(path)
        shape = tuple(image.shape) + (1,) * (3 - len(image.shape))
        if len(shape) != 3:
            raise ValueError(f"radiographs must be a stack (u, v, view), got shape {shape}")
        columns, rows, count = shape
        if geometry is not None and (rows, columns, count) != (*geometry.detector_shape, len(geometry)):
            expected = f"{len(geometry)} views of {geometry.detector_shape[1]} x {geometry.detector_shape[0]}"
            found = f"{count} radiographs of {columns} x {rows} pixels (u, v)"
            raise ValueError(f"{found}, but {geometry_name} describes {expected}")
        if columns * rows > LARGEST_PIXELS or count > _MOST_VIEWS or 0 in shape:
            raise ValueError(f"{shape} are no radiographs, or too many pixels")
        array = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    except ValueError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: {' '.join(str(error).split())[:300]}") from error
    except (Exception, zlib.error) as error:  # whatever nibabel raises for a damaged file
        raise ValueError(f"{path}: not a readable NIfTI file ({one_line(error)})") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: radiographs contain NaN or infinite values")
    stack = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 1, 0)))
    # Detector values are the commonest mistake, and a network answers them with confidence.
    tops = stack.amax(dim=(1, 2))
    if float(tops.min()) <= 0:
        raise ValueError(f"{path}: a radiograph without any attenuation: empty, or not line integrals -log(I / I0)")
    if float(tops.max()) > LARGEST_LINE_INTEGRAL:
        raise ValueError(
            f"{path}: values up to {float(tops.max()):.4g} are no line integrals -log(I / I0), which reach about 10 "
            "behind a chest: convert the detector's values first"
        )
    return stack
