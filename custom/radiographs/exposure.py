"""Estimates from the pixels alone: borders of collimator blades, and the unattenuated beam beside the patient.

Both work on relative line integrals q = -log(intensity) + constant, (V, U), averaged to about 256 pixels a side.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import ConvexHull

__all__ = ["Air", "dark_borders", "find_air", "has_noise", "looks_inverted", "round_field", "seen_sign"]

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

_SIDE = 256
#: A blade's edge: the beam is at least this much (in q) stronger on the inner side, along most of the edge.
_STEP = 0.4
_SHARES = (0.45, 0.6, 0.7)
#: Air: within this much (in q) of the strongest beam; more pixels than in the next band of the same width.
_BAND = 0.1
_AIR_SHARE = 0.01
_AIR_EXCESS = 3.0
#: Air that decides which end of the values is the beam: a spine at the side of a narrow field nearly reaches it.
_CLEAR_EXCESS = 6.0
#: Noise is compared between so large parts of the picture at both ends of its values, and tells from this ratio on.
_END, _NOISE_RATIO = 0.1, 2.0
#: Range of q that is given to a picture of unknown meaning.
_RANGE = 5.0
#: A round field: its corners hold one value, within this share of the values' range; it reaches every side but for this
#: share of the picture; and it is convex, but for this share of its area.
_SAME, _REACHES, _DENTS = 0.02, 0.1, 0.03


class Air:
    """The unattenuated beam.

    Args:
        level: its q.
        share: part of the exposed pixels that see it.
    """

    def __init__(self, level: float, share: float) -> None:
        self.level, self.share = level, share


def _blocks(q: Array, field_mask: Mask) -> tuple[Array, Mask, int]:
    """Means of intensity over blocks as q, blocks that are exposed throughout, and a block's side."""
    side = max(1, math.ceil(max(q.shape) / _SIDE))
    rows, columns = (n // side for n in q.shape)
    lowest = float(q[field_mask].min()) if field_mask.any() else 0.0
    intensity = np.exp(np.minimum(lowest - q[: rows * side, : columns * side], 0.0))
    mean = intensity.reshape(rows, side, columns, side).mean((1, 3))
    full: Mask = np.all(field_mask[: rows * side, : columns * side].reshape(rows, side, columns, side), axis=(1, 3))
    return lowest - np.log(np.maximum(mean, 1e-12)), full, side


def _edge(q: Array, lines: Mask, share: float) -> int:
    """Columns at the left that lie behind a blade; 0 for none.

    Args:
        q: (V, U).
        lines: rows that count, those behind the upper and lower blades left out.
        share: of those rows that must show the edge.
    """
    used = q[lines]
    width = used.shape[1]
    if len(used) < 4 or width < 8:
        return 0
    step = (used[:, :-2] - used[:, 2:] > _STEP).mean(0)
    best = 0
    for c in np.flatnonzero(step[: width // 2 - 1] >= share):
        outside = used[:, : c + 1]
        inner = np.median(used[:, c + 2 : c + 3 + max(4, width // 10)], axis=1)
        dark = np.quantile(outside, 0.1, axis=1) > inner + 0.75 * _STEP
        # What is behind a blade is dark throughout; a bright column there means that this edge is the patient's.
        bright = float((np.median(outside, axis=0) < float(np.median(inner)) + 0.5 * _STEP).mean())
        if dark.mean() >= share and bright <= 0.02:
            best = int(c) + 2
    return best


def dark_borders(q: Array, field_mask: Mask) -> Mask:
    """Pixels that are not behind collimator blades parallel to the picture's sides.

    A blade is a border that is dark throughout and ends in a straight, sharp edge along most of its length. Blades that
    stand askew, or that end in front of a body as dark as they are, are not found: tags or a sidecar tell them.

    Args:
        q: relative line integrals (V, U).
        exposed: what is known to be exposed.

    Returns:
        bool (V, U), `exposed` without the blades.
    """
    block, full, side = _blocks(q, field_mask)
    rows, columns = np.flatnonzero(full.any(1)), np.flatnonzero(full.any(0))
    if len(rows) < 16 or len(columns) < 16:
        return field_mask
    top, left = int(rows[0]), int(columns[0])
    block = block[top : rows[-1] + 1, left : columns[-1] + 1]
    height, width = block.shape
    upper = lower = before = after = 0
    for share in _SHARES:
        lines, stripes = np.zeros(height, bool), np.zeros(width, bool)
        lines[upper : height - lower], stripes[before : width - after] = True, True
        before, after = _edge(block, lines, share), _edge(block[:, ::-1], lines, share)
        upper, lower = _edge(block.T, stripes, share), _edge(block[::-1].T, stripes, share)
    if upper + lower >= height - 4 or before + after >= width - 4:
        return field_mask
    inside = np.zeros_like(field_mask)
    first_row, first_column = ((top + upper) * side if upper else 0), ((left + before) * side if before else 0)
    last_row = (top + height - lower) * side if lower else q.shape[0]
    last_column = (left + width - after) * side if after else q.shape[1]
    inside[first_row:last_row, first_column:last_column] = True
    return field_mask & inside


def round_field(values: Array, field_mask: Mask, sign: int) -> Mask:
    """Pixels within the round or eight-sided field of an image intensifier.

    Beside it stand the four corners, all of one value, which are neither air nor anything else of the picture. It is
    told from a body between air by its shape: it is convex and reaches every side of the picture.

    Args:
        values: (V, U) of any meaning.
        field_mask: bool (V, U), what is known to be exposed.
        sign: 1 where high values are more intensity, else -1; the corners have little.

    Returns:
        bool (V, U), `field_mask` without the corners, or as it is where they are none.
    """
    side = max(1, math.ceil(max(values.shape) / _SIDE))
    rows, columns = (n // side for n in values.shape)
    if min(rows, columns) < 16:
        return field_mask
    block = values[: rows * side, : columns * side].reshape(rows, side, columns, side).mean((1, 3))
    corners = block[[0, 0, -1, -1], [0, -1, 0, -1]]
    same = _SAME * float(np.quantile(block, 0.999) - np.quantile(block, 0.001))
    is_bright = sign * float(corners.mean()) > sign * float(np.median(block))
    if is_bright or np.ptp(corners) > same:
        return field_mask
    regions, _ = ndimage.label(np.abs(block - corners.mean()) <= same)
    pieces, count = ndimage.label(~np.isin(regions, regions[[0, 0, -1, -1], [0, -1, 0, -1]]))
    if count == 0:
        return field_mask
    field = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    points = np.argwhere(field)
    ends = zip(points.min(0), points.max(0), field.shape, strict=True)
    if not all(low <= _REACHES * n and high >= (1 - _REACHES) * n - 1 for low, high, n in ends):
        return field_mask
    # Corners of the pixels, so that the area of a straight field is its number of pixels.
    around = ConvexHull(np.concatenate([points + np.array([i, j]) for i in (0, 1) for j in (0, 1)]))
    box = float(np.prod(np.ptp(points, 0) + 1))
    if not _DENTS * box < box - len(points) or len(points) < (1 - _DENTS) * around.volume:
        return field_mask
    inner = ndimage.binary_erosion(field, np.ones((3, 3)), border_value=1)
    whole = np.pad(np.kron(inner, np.ones((side, side), bool)), [(0, n % side) for n in values.shape], "edge")
    return field_mask & whole


def find_air(q: Array, field_mask: Mask) -> Air | None:
    """The level of the unattenuated beam, from air beside the patient.

    Air is a plateau at the lowest q that touches the border of the exposed field: at least 1 % of it, and at least
    three times as many pixels as the next band of q. Radiographs of real CTs that the body fills reach two times; a
    strip of air of two pixels gives more than three.

    Args:
        q: relative line integrals (V, U).
        field_mask: bool (V, U).

    Returns:
        None where no air is seen.
    """
    block, full, _ = _blocks(q, field_mask)
    if full.sum() < 64:
        return None
    smooth = ndimage.median_filter(np.where(full, block, block[full].max()), 3)
    values = smooth[full]
    lowest = float(np.quantile(values, 0.005))
    near = full & (smooth <= lowest + _BAND)
    next_band = full & (smooth > lowest + _BAND) & (smooth <= lowest + 2 * _BAND)
    border = full & ~ndimage.binary_erosion(full, np.ones((3, 3)), border_value=0)
    regions, count = ndimage.label(near, np.ones((3, 3)))
    if count == 0:
        return None
    touching = np.unique(regions[border & near])
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    kept = [n for n in touching if n != 0 and sizes[n] >= max(4, 0.001 * full.sum())]
    air = np.isin(regions, kept)
    share = float(air.sum() / full.sum())
    if share < _AIR_SHARE or air.sum() < _AIR_EXCESS * next_band.sum():
        return None
    return Air(float(np.median(block[air])), share)


def looks_inverted(line_integrals: Array, field_mask: Mask) -> bool:
    """Whether the rim of the exposed field is clearly more attenuated than its middle."""
    block, full, _ = _blocks(line_integrals, field_mask)
    rows, columns = np.flatnonzero(full.any(1)), np.flatnonzero(full.any(0))
    if len(rows) < 16 or len(columns) < 16:
        return False
    field = block[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = field.shape
    middle = np.median(field[height // 4 : -(height // 4), width // 4 : -(width // 4)])
    rim = np.concatenate([field[:, : width // 16 + 1].ravel(), field[:, -(width // 16 + 1) :].ravel()])
    return bool(np.median(rim) > middle + 0.5)


def seen_sign(values: Array, field_mask: Mask, linear: bool) -> int:
    """Sign of the intensity that a picture shows, by the air beside the patient.

    Air is a plateau at one end of the values that touches the border and is mostly there; bone does not touch it.

    Args:
        values: (V, U) of any meaning.
        field_mask: bool (V, U).
        linear: whether high values of a rising picture are proportional to the intensity.

    Returns:
        1: high values are air; -1: low ones are; 0: neither is seen, or both, as in a picture with collimator blades.
    """
    noise = _noise_sign(values, field_mask, linear)
    side = max(1, math.ceil(max(values.shape) / _SIDE))
    rows, columns = (n // side for n in values.shape)
    values, field_mask = values[: rows * side, : columns * side], field_mask[: rows * side, : columns * side]
    values = values.reshape(rows, side, columns, side).mean((1, 3))
    field_mask = np.all(field_mask.reshape(rows, side, columns, side), axis=(1, 3))
    if field_mask.sum() < 64:
        return 0
    low, high = (float(np.quantile(values[field_mask], share)) for share in (0.001, 0.999))
    if high <= low:
        return 0
    share = np.clip((values - low) / (high - low), 0, 1)
    rising = -np.log(np.maximum(share, math.exp(-_RANGE))) if linear else _RANGE * (1 - share)
    ways = {1: rising.astype(np.float32), -1: (_RANGE * share).astype(np.float32)}
    inside = {sign: dark_borders(q, field_mask) for sign, q in ways.items()}
    seen = []
    for sign, q in ways.items():
        # A straight end of the air is a blade's in the other reading; noise tells them apart.
        masks = inside.values() if noise == 0 else [inside[sign]]
        if noise != -sign and all(_air_is_at_the_rim(q, mask) for mask in masks):
            seen.append(sign)
    return seen[0] if len(seen) == 1 else 0


def _noise_sign(values: Array, field_mask: Mask, linear: bool) -> int:
    """Sign of the intensity by the noise of photons; 0 where there is none, or where it does not tell.

    It grows with the square root of the intensity, so it falls with it in a logarithm. Values that are cut off have no
    noise and tell nothing.
    """
    rough = np.abs(values[:, 1:-1] - 0.5 * (values[:, :-2] + values[:, 2:]))
    inside = field_mask[:, :-2] & field_mask[:, 1:-1] & field_mask[:, 2:]
    level, rough = values[:, 1:-1][inside], rough[inside]
    if level.size < 1000:
        return 0
    low, high = (float(np.quantile(level, share)) for share in (_END, 1 - _END))
    at_low, at_high = float(np.median(rough[level <= low])), float(np.median(rough[level >= high]))
    if min(at_low, at_high) <= 0 or max(at_low, at_high) < _NOISE_RATIO * min(at_low, at_high):
        return 0
    return 1 if (at_high > at_low) is linear else -1


def has_noise(values: Array, mask: Mask) -> bool:
    """Whether neighbouring pixels differ as noise makes them, and not as a smooth picture does.

    The middle one of three differs from the mean of the others by more than these do from each other, in noise by 1.7
    times as much; in a smooth picture by less, and in one that was enlarged by as much. Where the body's own slopes
    hide that, fourth differences tell: in noise they are 3.4 times the second ones, in DRRs at most 2.7 times, in DRRs
    with realistic noise 3.2 times and more. Rounding is noise too, whose fourth differences are 1.6 steps.
    """
    inside = mask[:, :-2] & mask[:, 1:-1] & mask[:, 2:]
    before, middle, after = (values[:, c : values.shape[1] - 2 + c][inside] for c in range(3))
    if middle.size < 1000:
        return False
    bend, slope = np.abs(middle - 0.5 * (before + after)), 0.5 * np.abs(after - before)
    if float(np.median(bend)) > 1.2 * float(np.median(slope)) > 0:
        return True
    second, whole = np.diff(values, 2, axis=1), inside[:, :-2] & inside[:, 2:]
    fourth = np.abs(np.diff(second, 2, axis=1)[whole])
    if fourth.size < 1000:
        return False
    step = float(np.diff(np.unique(middle)).min(initial=np.inf))
    return float(np.median(fourth)) > max(5.0 * step, 3.0 * float(np.median(np.abs(second[:, 1:-1][whole]))))


def _air_is_at_the_rim(q: Array, field_mask: Mask) -> bool:
    if find_air(q, field_mask) is None:
        return False
    block, full, _ = _blocks(q, field_mask)
    rows, columns = np.flatnonzero(full.any(1)), np.flatnonzero(full.any(0))
    lowest = float(np.quantile(block[full], 0.005))
    near, following = full & (block <= lowest + _BAND), full & (block > lowest + _BAND) & (block <= lowest + 2 * _BAND)
    if near.sum() < _CLEAR_EXCESS * following.sum():
        return False
    field = near[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if min(field.shape) < 8:
        return False
    down, across = (max(1, n // 8) for n in field.shape)
    rim = np.ones_like(field)
    rim[down:-down, across:-across] = False
    middle = np.zeros_like(field)
    middle[2 * down : -2 * down, 2 * across : -2 * across] = True
    return bool(field[rim].mean() > 2 * field[middle].mean())
