"""Body mask of a CT: removes the couch, the clothing and the air around the patient."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from custom.core.morphology import pieces

TISSUE_HU = -400.0
"""Above this a voxel may be tissue; foam, mattresses and most clothing lie below."""

_WORK_MM = 2.0
_OPENING_MM = 5.0
_SMALL_PART_CM3 = 60.0
_LUNG_HU = -960.0
_AIR_BELOW_HU = -900.0
_RIM_MM = 4.0
_CONTACT_MM = 30.0
_ENCLOSED_SHARE = 0.6

BoolArray = npt.NDArray[np.bool_]


def _opening(mask: BoolArray, radius: float, spacing: tuple[float, ...]) -> BoolArray:
    """Binary opening with a ball of ``radius`` mm, by two distance transforms (fast for any radius).

    The body goes on beyond the first and the last slice. In-plane the outside is background: a couch cut by the
    image's lower edge would grow thick otherwise, and a body cut there loses its corners only.
    """
    pad = tuple(int(np.ceil(radius / s)) + 1 for s in spacing)
    padded = np.pad(mask, [(pad[0], pad[0]), (pad[1], pad[1]), (0, 0)])
    padded = np.pad(padded, [(0, 0), (0, 0), (pad[2], pad[2])], mode="edge")
    eroded = ndimage.distance_transform_edt(padded, sampling=spacing) > radius
    if not eroded.any():
        return np.zeros_like(mask)
    opened = ndimage.distance_transform_edt(~eroded, sampling=spacing) <= radius
    return opened[tuple(slice(p, -p) for p in pad)]


def _fill_axial(mask: BoolArray) -> BoolArray:
    """Fill the holes (lungs, bowel gas) of every axial slice; axis 2 is superior."""
    return np.stack([ndimage.binary_fill_holes(mask[:, :, k]) for k in range(mask.shape[2])], axis=2)


def field_of_view(volume_hu: npt.NDArray[np.floating]) -> BoolArray:
    """(X, Y) mask of what the scanner saw: all but the constant padding outside its reconstruction circle.

    Where the air around the body is constant too (the couch was removed before), no circle can be told and the whole
    image counts.
    """
    lowest = volume_hu.min() + 1
    low = volume_hu <= lowest
    labelled, _ = ndimage.label(low.mean(axis=2) > 0.95)
    border = np.zeros(labelled.shape, dtype=bool)
    border[[0, -1], :] = True
    border[:, [0, -1]] = True
    view = np.asarray(~np.isin(labelled, np.setdiff1d(np.unique(labelled[border]), [0])))
    air = (volume_hu < _AIR_BELOW_HU)[view]
    if air.any():
        masked = float(low[view][air].mean()) > 0.8
    else:
        # A body that fills the circle leaves no air; then the circle reaches all four edges of the image.
        masked = not (view[0].any() and view[-1].any() and view[:, 0].any() and view[:, -1].any())
    return np.ones_like(view) if masked else view


def lateral_truncation(body: BoolArray, view: BoolArray, spacing_mm: tuple[float, float, float]) -> float:
    """Share of slices in which the field of view cuts the body's left or right side.

    A slice counts when the body touches the rim of the field of view, or the image's edge, over 30 mm or more from
    front to back in one piece; a tangent contact stays below that.

    Args:
        body: (X, Y, Z) mask, RAS+ axes.
        view: (X, Y) mask of `field_of_view`.
        spacing_mm: voxel size along X, Y, Z in mm.

    Returns:
        0 to 1, over the slices that hold body.
    """
    depth = ndimage.distance_transform_edt(np.pad(view, 1), sampling=spacing_mm[:2])[1:-1, 1:-1]
    rim = view & (depth <= max(_RIM_MM, *spacing_mm[:2]))
    cut = slices = 0
    for k in range(body.shape[2]):
        if not body[:, :, k].any():
            continue
        slices += 1
        runs, _ = ndimage.label(body[:, :, k] & rim, np.ones((3, 3)))
        lengths = [(box[1].stop - box[1].start) * spacing_mm[1] for box in ndimage.find_objects(runs)]
        cut += max(lengths, default=0.0) >= _CONTACT_MM
    return cut / slices if slices else 0.0


def _close_cut_lungs(solid: BoolArray, coarse: npt.NDArray[np.float32]) -> BoolArray:
    """Wall for lungs which the field of view cuts open, so that they are enclosed and can be filled.

    Along the rim of the field of view everything denser than air (lung) counts as wall; a hole closed in this way is
    kept only where its content is lung, not air.
    """
    view = field_of_view(coarse)
    rim = view & ~ndimage.binary_erosion(view, border_value=0)
    calm = ndimage.uniform_filter(coarse, 3)
    walled = _fill_axial(solid | (rim[:, :, None] & (calm > _LUNG_HU)))
    gained = walled & ~_fill_axial(solid)
    return solid | (gained & (calm > _LUNG_HU))


def _fill_opened_lungs(solid: BoolArray, tissue: BoolArray, coarse: npt.NDArray[np.float32]) -> BoolArray:
    """Lungs behind a chest wall so thin that the opening broke through it.

    Holes that the wall still closed before the opening are kept where their content is lung, not air, and most of
    their border is left: the foam of a couch loses its shell, and the air under a sheet is air.
    """
    gained = _fill_axial(tissue | solid) & ~_fill_axial(solid)
    lungs = np.zeros_like(solid)
    for k in np.flatnonzero(gained.any(axis=(0, 1))):
        labelled, count = ndimage.label(gained[:, :, k])
        for index in range(1, count + 1):
            part = labelled == index
            border = ndimage.binary_dilation(part) & ~part
            enclosed = border.any() and solid[:, :, k][border].mean() >= _ENCLOSED_SHARE
            lungs[:, :, k] |= part & (enclosed and np.median(coarse[:, :, k][part]) > _LUNG_HU)
    return solid | lungs


def _parts(mask: BoolArray, voxel_cm3: float, minimum_cm3: float) -> BoolArray:
    """The largest connected part and every other above ``minimum_cm3`` (arms beside the trunk)."""
    labelled, sizes = pieces(mask)
    keep = sizes * voxel_cm3 >= minimum_cm3
    keep[int(np.argmax(sizes))] = True
    keep[0] = False
    return keep[labelled]


def body_mask(volume_hu: npt.NDArray[np.floating], spacing_mm: tuple[float, float, float]) -> BoolArray:
    """Mask of the patient: trunk, arms and all they enclose, without couch, clothing and air.

    Tissue (> ``TISSUE_HU``) is opened with a ball, which cuts shells of couches, sheets and tubes, thinner than
    ``2 * _OPENING_MM``, away from the body; what is left in large parts is the patient; its holes are filled slice
    by slice; a second opening takes off what still bridges. The work runs on a 2 mm grid.

    Args:
        volume_hu: (X, Y, Z) HU, RAS+ axes.
        spacing_mm: voxel size along X, Y, Z in mm.

    Returns:
        Boolean (X, Y, Z); all False where there is no body.
    """
    steps = [max(1, round(_WORK_MM / s)) for s in spacing_mm]
    counts = [n // s * s for n, s in zip(volume_hu.shape, steps, strict=True)]
    if min(counts) == 0:
        return np.zeros(volume_hu.shape, dtype=bool)
    blocks = volume_hu[: counts[0], : counts[1], : counts[2]].reshape(
        counts[0] // steps[0], steps[0], counts[1] // steps[1], steps[1], counts[2] // steps[2], steps[2]
    )
    coarse = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    spacing = tuple(s * n for s, n in zip(spacing_mm, steps, strict=True))
    voxel_cm3 = float(np.prod(spacing)) / 1000.0

    tissue = coarse > TISSUE_HU
    solid = _parts(_opening(tissue, _OPENING_MM, spacing), voxel_cm3, _SMALL_PART_CM3)
    solid = _fill_opened_lungs(solid, tissue, coarse)
    filled = _fill_axial(_close_cut_lungs(solid, coarse))
    opened = _opening(filled, 2.0 * _OPENING_MM, spacing)
    core = _parts(opened, voxel_cm3, _SMALL_PART_CM3)
    # The openings round corners off (breasts, axillae): give back tissue that lies within the ball of the core.
    reach = ndimage.distance_transform_edt(~core, sampling=spacing) <= _OPENING_MM if core.any() else core
    mask = (filled & reach) | core

    zoomed = np.repeat(np.repeat(np.repeat(mask, steps[0], 0), steps[1], 1), steps[2], 2)
    full = np.pad(zoomed, [(0, n - c) for n, c in zip(volume_hu.shape, counts, strict=True)], mode="edge")
    return ndimage.gaussian_filter(full.astype(np.float32), [0.5 * s for s in steps]) > 0.35
