"""Joseph's method down the columns of an upright detector: compiled for the CPU by numba at the first call.

All rays of such a column lie in one vertical plane. In a plane of the volume that stands across them they have the same
second coordinate, so two neighbouring columns of voxels are blended once for the whole column of pixels, and a ray
needs two values of the blend instead of four of the volume. Numba keeps what it compiled beside this file or in the
user's cache (NUMBA_CACHE_DIR); where neither can be written, every process compiles anew, within seconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["DetectorColumns"]

_Array = NDArray[Any]


@dataclass(frozen=True)
class DetectorColumns:
    """The rays of one view, one column of pixels after another.

    `across` (2, U) and `along` (2, U, V) hold start and slope of the voxel index, start + plane [mm] * slope, along the
    volume's other horizontal axis and along z. `axis` is the one marched along, 0 or 1; `planes` are the positions on
    it [mm], beginning with plane number `first`. Arrays of one dtype, in the order of memory.
    """

    axis: int
    first: int
    planes: _Array
    across: _Array
    along: _Array

    def integrate(self, volume: Tensor) -> Tensor:
        """Sums (U, V) of a volume (X, Y, Z) over the planes."""
        image = volume.new_zeros(self.along.shape[1:])
        arrays = volume.detach().contiguous().numpy(), self.axis, self.first, self.planes, self.across, self.along
        _in_threads(lambda begin, end: _integrate(*arrays, image.numpy(), begin, end), len(image))
        return image

    def smear(self, image: Tensor, volume: Tensor) -> None:
        """The transpose: adds an image (U, V) to a volume (X, Y, Z) in place. Each thread has planes of its own."""
        arrays = volume.numpy(), self.axis, self.first, self.planes, self.across, self.along
        values = image.detach().contiguous().numpy()
        _in_threads(lambda begin, end: _smear(*arrays, values, begin, end), len(self.planes))


def _in_threads(run: Callable[[int, int], None], count: int) -> None:
    """Ranges of 0 to `count` in as many threads as torch has."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        run(0, count)
        return
    bounds = [count * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, bounds[:-1], bounds[1:]))


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # As written: numba does not know the wrapper that checks shapes in tests.
    kernel = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})(inspect.unwrap(function))
    try:
        kernel.enable_caching()
    except RuntimeError:  # no folder can be written
        return kernel
    return kernel


@_compiled
def _neighbours(index: Any, count: int) -> tuple[int, int, Any, Any]:
    """The two voxels beside a fractional index and their weights, 0 for one outside; -1 where both are."""
    zero, one = type(index)(0), type(index)(1)
    floor = np.floor(index)
    low, upper = int(floor), index - floor
    if low < -1 or low >= count:
        return -1, -1, zero, zero
    return max(low, 0), min(low + 1, count - 1), one - upper if low >= 0 else zero, upper if low + 1 < count else zero


@_compiled
def _voxel_columns(volume: _Array, axis: int, plane: int, i: int, j: int) -> tuple[_Array, _Array]:
    """Two columns of voxels in a plane across `axis`."""
    return (volume[plane, i], volume[plane, j]) if axis == 0 else (volume[i, plane], volume[j, plane])


@_compiled
def _integrate(
    volume: _Array,
    axis: int,
    first: int,
    planes: _Array,
    across: _Array,
    along: _Array,
    image: _Array,
    begin: int,
    end: int,
) -> None:
    """Columns `begin` to `end` of the image."""
    others, height = volume.shape[1 - axis], volume.shape[2]
    # Two zeros at each end stand for everything outside.
    blend = np.zeros(height + 4, volume.dtype)
    below, above = planes.dtype.type(-2), planes.dtype.type(height)
    for u in range(begin, end):
        start, slope, sums = along[0, u], along[1, u], image[u]
        for p in range(len(planes)):
            i, j, weight_i, weight_j = _neighbours(across[0, u] + across[1, u] * planes[p], others)
            if i < 0:
                continue
            column_i, column_j = _voxel_columns(volume, axis, first + p, i, j)
            for z in range(height):
                blend[z + 2] = weight_i * column_i[z] + weight_j * column_j[z]
            for v in range(len(sums)):
                z_index = min(max(start[v] + slope[v] * planes[p], below), above)
                floor = np.floor(z_index)
                # Unsigned, so that no negative index has to be provided for.
                k = np.uint32(np.int32(floor) + 2)
                sums[v] += blend[k] + (z_index - floor) * (blend[k + 1] - blend[k])


@_compiled
def _smear(
    volume: _Array,
    axis: int,
    first: int,
    planes: _Array,
    across: _Array,
    along: _Array,
    image: _Array,
    begin: int,
    end: int,
) -> None:
    """The transpose of `_integrate`, for the planes `begin` to `end`."""
    others, height, rows = volume.shape[1 - axis], volume.shape[2], image.shape[1]
    blend = np.zeros(height + 4, volume.dtype)
    where = np.zeros(rows, np.uint32)
    lower, upper_part = np.zeros(rows, volume.dtype), np.zeros(rows, volume.dtype)
    below, above = planes.dtype.type(-2), planes.dtype.type(height)
    for u in range(len(image)):
        start, slope, values = along[0, u], along[1, u], image[u]
        for p in range(begin, end):
            i, j, weight_i, weight_j = _neighbours(across[0, u] + across[1, u] * planes[p], others)
            if i < 0:
                continue
            column_i, column_j = _voxel_columns(volume, axis, first + p, i, j)
            for z in range(height + 4):
                blend[z] = 0
            # First what a vector unit can do, then the additions, one after another.
            for v in range(rows):
                z_index = min(max(start[v] + slope[v] * planes[p], below), above)
                floor = np.floor(z_index)
                where[v] = np.uint32(np.int32(floor) + 2)
                upper_part[v] = (z_index - floor) * values[v]
                lower[v] = values[v] - upper_part[v]
            for v in range(rows):
                blend[where[v]] += lower[v]
                blend[where[v] + 1] += upper_part[v]
            for z in range(height):
                column_i[z] += weight_i * blend[z + 2]
            for z in range(height):
                column_j[z] += weight_j * blend[z + 2]
