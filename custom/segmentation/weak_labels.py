"""Weak labels from CT values alone: lungs, body and bone of CTs without a label map.

Classical steps with fixed thresholds, no training. What they cannot tell is left open instead of guessed. They expect
a cube of `prepare`: couch and clothing removed, the voxels around the patient at -1000 HU.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from custom.core.morphology import ball, pieces
from custom.metrics import body_mask

__all__ = ["WEAK_CLASSES", "weak_masks"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]

#: Classes that `weak_masks` makes.
WEAK_CLASSES = ("body", "bone", "lung_left", "lung_right")
AIR_HU, _AIR_MARGIN_HU = -1000.0, 15.0
#: Below this a voxel inside the body holds air.
LUNG_HU = -400.0
#: Widest cross-section of trachea and carina, and how much wider than the slice above it may be.
_AIRWAY_MM2, _AIRWAY_GROWTH = 900.0, 1.8
#: Plausible volumes of one lung.
_LUNG_CM3 = (250.0, 6000.0)
#: Vessels and nodules up to about twice this radius are closed into the lung.
_CLOSING_MM = 7.5
#: Contrast medium, calcium and spongy bone overlap: sure bone, and where doubt begins.
BONE_HU, _DOUBT_HU = 250.0, 120.0
_BONE_CM3 = 1.0


def weak_masks(
    hu: npt.NDArray[np.floating], spacing_mm: Sequence[float]
) -> tuple[dict[str, BoolArray], dict[str, BoolArray]]:
    """Lungs, body and bone.

    Args:
        hu: (X, Y, Z) HU, RAS+ axes.
        spacing_mm: voxel size along X, Y, Z.

    Returns:
        Masks by class (without lungs where they could not be told apart), and where each of them is in doubt.
    """
    spacing = (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2]))
    body = _patient(hu)
    masks, doubt = {"body": body}, {}
    lungs = _lungs(hu, spacing, body)
    if lungs is not None:
        masks["lung_left"], masks["lung_right"] = lungs
    masks["bone"], doubt["bone"] = _bone(hu, spacing, body, None if lungs is None else lungs[0] | lungs[1])
    return masks, doubt


def _patient(hu: npt.NDArray[np.floating]) -> BoolArray:
    """The body; a lung that the cube's side cuts open belongs to it wherever the air around was set to -1000 HU."""
    body = body_mask(hu)
    if (hu[~body] <= AIR_HU).mean() > 0.5:
        labelled, sizes = pieces(hu > AIR_HU + _AIR_MARGIN_HU)
        body = body | (labelled == sizes.argmax())
    return body


def _airways(air: BoolArray, spacing: Sequence[float], body: BoolArray) -> BoolArray:
    """Trachea down to the carina: from the top, the small round air near the midline, slice by slice."""
    area = spacing[0] * spacing[1]
    found = np.zeros_like(air)
    above: BoolArray | None = None
    for z in range(air.shape[2] - 1, -1, -1):
        if not body[:, :, z].any():
            continue
        columns = np.flatnonzero(body[:, :, z].any(1))
        middle, width = (columns[0] + columns[-1]) / 2, columns[-1] - columns[0] + 1
        labelled, sizes = pieces(air[:, :, z])
        if above is None:
            fits = [n for n in np.flatnonzero(sizes) if 30.0 <= sizes[n] * area <= _AIRWAY_MM2 / 1.5]
            centres = {n: float(np.nonzero(labelled == n)[0].mean()) for n in fits}
            near = [n for n in fits if abs(centres[n] - middle) < 0.08 * width]
            if len(near) != 1:
                continue
            above = labelled == near[0]
        else:
            touched = [n for n in np.unique(labelled[above]) if n]
            now = np.isin(labelled, touched)
            if not touched or now.sum() * area > min(_AIRWAY_MM2, _AIRWAY_GROWTH * max(float(above.sum()), 20) * area):
                break
            above = now
        found[:, :, z] = above
    return found


def _split(air: BoolArray, voxel_cm3: float) -> tuple[BoolArray, BoolArray] | None:
    """Left and right lung (RAS+: left has the smaller x) of air that may touch between them."""
    inner = air
    for _ in range(6):
        labelled, sizes = pieces(inner)
        order = np.argsort(sizes)[::-1]
        if len(order) > 1 and sizes[order[1]] > 0.25 * sizes[order[0]] and sizes[order[1]] * voxel_cm3 > 100:
            first, second = labelled == order[0], labelled == order[1]
            if np.nonzero(first)[0].mean() > np.nonzero(second)[0].mean():
                first, second = second, first
            nearest = ndimage.distance_transform_edt(~(first | second), return_distances=False, return_indices=True)
            left = first[tuple(nearest)]
            return air & left, air & ~left
        inner = ndimage.binary_erosion(inner)
    return None


def _lungs(
    hu: npt.NDArray[np.floating], spacing: Sequence[float], body: BoolArray
) -> tuple[BoolArray, BoolArray] | None:
    """Left and right lung: air inside the body without the trachea, split in two and closed over its vessels.

    None where two lungs of plausible size cannot be found (a collapsed or resected lung).
    """
    voxel_cm3 = float(np.prod(spacing)) / 1000
    air = (hu < LUNG_HU) & ndimage.binary_erosion(body, ball(5.0, spacing), border_value=1)
    trachea = ndimage.binary_dilation(_airways(air, spacing, body), ball(spacing[0] * 1.5, spacing))
    labelled, sizes = pieces(air & ~trachea)
    # Bowel gas and the stomach's bubble are apart from the lungs, or smaller than a third of them.
    if not sizes.any():
        return None
    large = np.flatnonzero(sizes >= 0.2 * sizes.max())
    halves = _split(np.isin(labelled, large), voxel_cm3)
    if halves is None:
        logger.warning("the lungs cannot be told apart: no weak label of them")
        return None
    pad = [int(np.ceil(_CLOSING_MM / s)) for s in spacing]
    closed = []
    for half in halves:
        padded = np.pad(half, [(p, p) for p in pad])
        # By distances: as fast for any radius.
        grown = ndimage.distance_transform_edt(~padded, sampling=spacing) <= _CLOSING_MM
        shrunk = ndimage.distance_transform_edt(grown, sampling=spacing) > _CLOSING_MM
        # Holes in 3D: in an axial slice the liver's dome is a hole, too.
        mask = ndimage.binary_fill_holes(shrunk | padded)[tuple(slice(p, -p) for p in pad)]
        closed.append(mask & body & ~trachea)
    left, right = closed[0] & ~halves[1], closed[1] & ~halves[0] & ~closed[0]
    volumes = [float(m.sum()) * voxel_cm3 for m in (left, right)]
    if not all(_LUNG_CM3[0] <= v <= _LUNG_CM3[1] for v in volumes):
        logger.warning("lungs of %.0f and %.0f cm3 are not plausible: no weak label of them", *volumes)
        return None
    return left, right


def _between(lungs: BoolArray) -> BoolArray:
    """What the lungs enclose, slice by slice: between their outermost voxels from side to side and front to back."""
    span = np.logical_or.accumulate(lungs, 0) & np.logical_or.accumulate(lungs[::-1], 0)[::-1]
    depth = np.logical_or.accumulate(lungs, 1) & np.logical_or.accumulate(lungs[:, ::-1], 1)[:, ::-1]
    return span | depth


def _bone(
    hu: npt.NDArray[np.floating], spacing: Sequence[float], body: BoolArray, lungs: BoolArray | None
) -> tuple[BoolArray, BoolArray]:
    """Bone above 250 HU with its marrow, and where it is in doubt.

    Contrast medium is as dense as bone. Dense voxels between the lungs (heart, vessels, vertebral bodies) are in
    doubt, as is everything from 120 HU on that the bone does not enclose. Without lungs nothing dense is sure to be
    bone.
    """
    dense = (hu > BONE_HU) & body
    labelled, sizes = pieces(dense)
    dense &= (sizes * np.prod(spacing) / 1000 >= _BONE_CM3)[labelled]
    bone = ndimage.binary_closing(dense, ball(1.5 * max(spacing), spacing)) | dense
    bone = np.stack([ndimage.binary_fill_holes(bone[:, :, k]) for k in range(bone.shape[2])], axis=2)
    inside = np.ones_like(bone) if lungs is None else _between(lungs)
    doubt = (bone & inside) | ((hu > _DOUBT_HU) & body & ~bone)
    return bone & ~doubt, doubt
