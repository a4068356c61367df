"""Detection of one exposure that is given as two views: another UID, added noise, processed anew.

Equal files are refused before they are read. Here the pictures are compared, and the places from which they claim to be
taken: two views of one patient look less alike, the further they are apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.signal import fftconvolve

from custom.dicom.header import text
from custom.geometry import ViewRow
from custom.radiographs.acquisition_metadata import Contradiction
from custom.radiographs.radiograph import Radiograph

__all__ = ["check_exposures"]

Array = npt.NDArray[np.float32]

_OPTION = "repeated-exposures"
#: Pictures are compared at so many pixels a side, without what changes slowly over a few of them: noise averages out,
#: ribs, vessels and borders are left.
_SIDE, _SLOW = 64, 2.0
#: Pictures of views that claim to be at most so many degrees apart are one exposure from this correlation on. A chest
#: CT's views correlate by 0.998 at 1 degree, 0.97 at 5, 0.91 at 10, 0.80 at 20; copies with the noise of 2000 photons
#: in a pixel of 3.5 mm by 0.99; ellipsoids, which look alike from all sides, by 0.97 at 90 degrees.
_LIMITS = ((1.0, 0.9), (4.0, 0.9995), (360.0, 0.985))
#: Opposite views are nearly mirrored (0.92), in a parallel beam wholly.
_OPPOSITE_DEG, _OPPOSITE = 160.0, 0.995
#: How a picture may be turned: its axes, and those that are flipped.
_TURNS: tuple[tuple[tuple[int, int], tuple[int, ...]], ...] = tuple(
    product(((0, 1), (1, 0)), ((), (1,), (0,), (0, 1)))  # type: ignore[arg-type]
)
_MIRRORED = ((0, 1), (1,))
#: Pictures are also compared at so many pixels a side of the larger, in all positions in which at least so much of the
#: smaller lies in it.
_FINE_SIDE, _WITHIN = 128, 0.7
#: The same limits for them. A piece of a chest CT's view correlates by 0.978 or more with the whole; with views 2
#: degrees away by 0.991, as it may shift, 0.97 at 5, 0.94 at 10, at most 0.84 beyond 15.
_CUT_LIMITS = ((1.0, 0.9), (5.0, 0.9995), (15.0, 0.985), (360.0, 0.95))


@dataclass(frozen=True, eq=False)
class _Looks:
    """What of a radiograph is compared: fine structure (V, U), its mask, and where the beam comes from."""

    structure: Array
    mask: Array
    toward_source: Array
    is_cone: bool
    radiograph: Radiograph

    @property
    def size_mm(self) -> tuple[float, float]:
        """Rows and columns of the picture, mm."""
        pixel = ViewRow.from_tensor(self.radiograph.view.double()).pixel_mm.tolist()
        rows, columns = self.radiograph.line_integrals.shape
        return rows * pixel[0], columns * pixel[1]


def _structure(radiograph: Radiograph, size: tuple[int, int], slow: float, fast: float = 0.0) -> tuple[Array, Array]:
    """Fine structure and mask at so many rows and columns, without what changes over `slow` pixels or within `fast`."""
    both = torch.stack([radiograph.line_integrals.float(), radiograph.field_mask.float()])
    picture, full = torch.nn.functional.adaptive_avg_pool2d(both[None], size)[0].numpy()
    mask = (full > 0.999).astype(np.float32)

    def smooth(sigma: float) -> Array:
        weight = np.maximum(ndimage.gaussian_filter(mask, sigma), 1e-3)
        return np.asarray(ndimage.gaussian_filter(picture * mask, sigma) / weight, dtype=np.float32)

    return ((smooth(fast) if fast else picture) - smooth(slow)) * mask, mask


def _looks(radiograph: Radiograph) -> _Looks:
    rows, columns = radiograph.line_integrals.shape
    share = min(_SIDE / max(rows, columns), 1.0)
    structure, mask = _structure(radiograph, (max(4, round(share * rows)), max(4, round(share * columns))), _SLOW)
    row = ViewRow.from_tensor(radiograph.view.double())
    direction = row.toward_source.numpy()
    return _Looks(structure, mask, direction / np.linalg.norm(direction), bool(row.is_cone), radiograph)


def _correlation(one: Array, other: Array, mask: Array) -> float:
    if mask.sum() < 64:
        return 0.0
    size = float(np.sqrt((one * one * mask).sum() * (other * other * mask).sum()))
    return float((one * other * mask).sum()) / size if size > 0 else 0.0


def _alike(one: _Looks, other: _Looks) -> tuple[float, float, bool]:
    """Largest correlation of two pictures however they are turned, degrees between them, and whether they are one."""
    apart = float(np.degrees(np.arccos(np.clip(one.toward_source @ other.toward_source, -1, 1))))
    limit, cut_limit = (next(most for degrees, most in each if apart <= degrees) for each in (_LIMITS, _CUT_LIMITS))
    opposite = apart >= _OPPOSITE_DEG
    if one.structure.shape in (other.structure.shape, other.structure.shape[::-1]):
        cut_limit = max(cut_limit, limit)  # both may be cut out of one picture, or one was made coarser
    best = _cut_out(one, other, opposite)
    is_one = best > cut_limit
    for axes, flip in _TURNS:
        turned, mask = (np.flip(part.transpose(axes), flip) for part in (other.structure, other.mask))
        if turned.shape != one.structure.shape:
            continue
        correlation = _correlation(one.structure, turned, one.mask * mask)
        mirrored = opposite and (axes, flip) == _MIRRORED
        is_one |= correlation > (limit if not mirrored else _OPPOSITE if one.is_cone else np.inf)
        best = max(best, correlation)
    return best, apart, is_one


def _cut_out(one: _Looks, other: _Looks, opposite: bool) -> float:
    """Largest correlation of two pictures, of which one may be cut out of the other, or both out of a third.

    Opposite views, which are nearly mirrored, are not compared so.
    """
    large, small = (one, other) if max(one.size_mm) >= max(other.size_mm) else (other, one)
    per_mm = _FINE_SIDE / max(large.size_mm)
    parts = []
    for looks in (large, small):
        size = [max(4, round(mm * per_mm)) for mm in looks.size_mm]
        structure, mask = _structure(looks.radiograph, (size[0], size[1]), 2 * _SLOW, 1.0)
        # What is slow near a border depends on what was cut off there.
        whole = ndimage.binary_erosion(np.pad(mask, 1) > 0, iterations=1 + int(4 * _SLOW))[1:-1, 1:-1]
        parts.append((structure * whole, whole.astype(np.float32)))
    (field, field_mask), (piece, piece_mask) = parts
    best = 0.0
    for axes, flip in _TURNS:
        if opposite and (axes, flip) == _MIRRORED:
            continue
        # Turned once more by both axes: a convolution then slides it.
        turned, mask = (np.flip(np.flip(part.transpose(axes), flip), (0, 1)) for part in (piece, piece_mask))
        shared = fftconvolve(field_mask, mask)
        power = fftconvolve(field**2, mask) * fftconvolve(field_mask, turned**2)
        enough = (shared >= max(256.0, _WITHIN * float(mask.sum()))) & (power > 1e-6)
        if enough.any():
            best = max(best, float((fftconvolve(field, turned)[enough] / np.sqrt(power[enough])).max()))
    return best


def _event(radiograph: Radiograph) -> str:
    """Irradiation Event UID (0008,3010)."""
    return "" if radiograph.header is None else text(radiograph.header, "IrradiationEventUID")


def _pairs(radiographs: Sequence[Radiograph]) -> Iterator[tuple[int, int, str, float]]:
    """Of every radiograph that shows the exposure of an earlier one: both indices, by what, and degrees apart."""
    looks, copies = [_looks(radiograph) for radiograph in radiographs], set[int]()
    for first, second in combinations(range(len(looks)), 2):
        if copies & {first, second}:
            continue
        correlation, apart, is_one = _alike(looks[first], looks[second])
        same_event = _event(radiographs[first]) == _event(radiographs[second]) != ""
        if is_one or same_event:
            copies.add(second)
            by_picture = f"the pictures correlate by {correlation:.3f}"
            yield first, second, by_picture if is_one else "by Irradiation Event UID (0008,3010)", apart


def check_exposures(
    radiographs: Sequence[Radiograph], accept: frozenset[str]
) -> tuple[list[Radiograph], tuple[Contradiction, ...]]:
    """One exposure under two names is a question.

    Returns:
        The radiographs with what an option allowed, and the questions.
    """
    checked, questions = list(radiographs), []
    for first, second, why, apart in _pairs(radiographs):
        name = radiographs[first].name
        claim = "" if apart < 1 else f", though its view is {apart:.0f} degrees away"
        problem = f"it shows the same exposure as {name} ({why}){claim}"
        if _OPTION not in accept:
            advice = f"leave one out, or give --accept {_OPTION} if both were taken and their views are right"
            questions.append(Contradiction(problem, (), "", (_OPTION,), advice, radiographs[second].name))
            continue
        checked[second] = checked[second].with_allowed("exposure", f"another than {name}", _OPTION, problem)
    return checked, tuple(questions)
