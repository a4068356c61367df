"""Detection of one exposure that is given as two views: another UID, added noise, processed anew.

Equal files are refused before they are read. Here the pictures are compared, and the places from which they claim to be
taken: two views of one patient look less alike, the further they are apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

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


@dataclass(frozen=True, eq=False)
class _Looks:
    """What of a radiograph is compared: fine structure (V, U), its mask, and where the beam comes from."""

    structure: Array
    mask: Array
    toward_source: Array
    is_cone: bool


def _looks(radiograph: Radiograph) -> _Looks:
    rows, columns = radiograph.line_integrals.shape
    share = _SIDE / max(rows, columns)
    size = (max(4, round(min(share, 1.0) * rows)), max(4, round(min(share, 1.0) * columns)))
    both = torch.stack([radiograph.line_integrals.float(), radiograph.field_mask.float()])
    picture, full = torch.nn.functional.adaptive_avg_pool2d(both[None], size)[0].numpy()
    mask = (full > 0.999).astype(np.float32)
    slow = ndimage.gaussian_filter(picture * mask, _SLOW) / np.maximum(ndimage.gaussian_filter(mask, _SLOW), 1e-3)
    row = ViewRow.from_tensor(radiograph.view.double())
    direction = row.toward_source.numpy()
    return _Looks((picture - slow) * mask, mask, direction / np.linalg.norm(direction), bool(row.is_cone))


def _correlation(one: Array, other: Array, mask: Array) -> float:
    if mask.sum() < 64:
        return 0.0
    size = float(np.sqrt((one * one * mask).sum() * (other * other * mask).sum()))
    return float((one * other * mask).sum()) / size if size > 0 else 0.0


def _alike(one: _Looks, other: _Looks) -> tuple[float, float, bool]:
    """Largest correlation of two pictures however they are flipped, degrees between them, and whether they are one."""
    apart = float(np.degrees(np.arccos(np.clip(one.toward_source @ other.toward_source, -1, 1))))
    if one.structure.shape != other.structure.shape:
        return 0.0, apart, False
    limit = next(limit for degrees, limit in _LIMITS if apart <= degrees)
    best, is_one = 0.0, False
    for flip in ((), (1,), (0,), (0, 1)):
        turned, mask = (np.flip(part, flip) for part in (other.structure, other.mask))
        correlation = _correlation(one.structure, turned, one.mask * mask)
        mirrored = flip == (1,) and apart >= _OPPOSITE_DEG
        is_one |= correlation > (limit if not mirrored else _OPPOSITE if one.is_cone else np.inf)
        best = max(best, correlation)
    return best, apart, is_one


def _pairs(radiographs: Sequence[Radiograph]) -> Iterator[tuple[int, int, float, float]]:
    """Of every radiograph that shows the exposure of an earlier one: both indices, correlation and degrees."""
    looks, copies = [_looks(radiograph) for radiograph in radiographs], set[int]()
    for first, second in combinations(range(len(looks)), 2):
        if copies & {first, second}:
            continue
        correlation, apart, is_one = _alike(looks[first], looks[second])
        if is_one:
            copies.add(second)
            yield first, second, correlation, apart


def check_exposures(
    radiographs: Sequence[Radiograph], accept: frozenset[str]
) -> tuple[list[Radiograph], tuple[Contradiction, ...]]:
    """One exposure under two names is a question.

    Returns:
        The radiographs with what an option allowed, and the questions.
    """
    checked, questions = list(radiographs), []
    for first, second, correlation, apart in _pairs(radiographs):
        name = radiographs[first].name
        claim = "" if apart < 1 else f", though its view is {apart:.0f} degrees away"
        problem = f"it shows the same exposure as {name} (the pictures correlate by {correlation:.3f}){claim}"
        if _OPTION not in accept:
            advice = f"leave one out, or give --accept {_OPTION} if both were taken and their views are right"
            questions.append(Contradiction(problem, (), "", (_OPTION,), advice, radiographs[second].name))
            continue
        checked[second] = checked[second].with_allowed("exposure", f"another than {name}", _OPTION, problem)
    return checked, tuple(questions)
