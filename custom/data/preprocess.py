"""Preprocessing of one CT in HU to the volumes that networks and simulator read, as a pure function."""

from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.processing import resample_to_output
from scipy import ndimage

from custom.core.rejection import Rejected
from custom.data.couch_removal import body_mask, field_of_view, lateral_truncation

AIR_HU = -1000
_LOWEST_HU = -1024
ANCHORS = ("center", "superior", "inferior", "scan")


@dataclass(frozen=True)
class PreparedCase:
    """What `prepare_volume` makes of one CT.

    Attributes:
        cube: int16 HU (size, size, size), RAS+, -1000 outside the body and outside the scan.
        cube_affine: voxel to world mm (RAS+), the CT's own frame.
        source: int16 HU (X, Y, Z), RAS+, isotropic, uncropped, not clipped above; -1000 outside the body.
        source_affine: voxel to world mm of `source`.
        body: boolean (X, Y, Z) on the grid of `source`.
        facts: JSON-able findings for the manifest.
    """

    cube: npt.NDArray[np.int16]
    cube_affine: npt.NDArray[np.float64]
    source: npt.NDArray[np.int16]
    source_affine: npt.NDArray[np.float64]
    body: npt.NDArray[np.bool_]
    facts: dict[str, Any] = field(default_factory=dict)


def averaging_matrix(count_in: int, start: float, step: float, count_out: int) -> npt.NDArray[np.float32]:
    """Area averaging along one axis as a matrix (count_out, count_in).

    Output cell i covers [start + i*step, start + (i+1)*step] in units of input cells (cell j covers [j, j+1]). The
    weights are the shares of overlap; where a cell leaves the input its row sums to less than one. For ``step`` < 1
    the cells are widened to one input cell, which is linear interpolation.
    """
    width = max(step, 1.0)
    centre = start + (np.arange(count_out)[:, None] + 0.5) * step
    low, high = centre - 0.5 * width, centre + 0.5 * width
    edge = np.arange(count_in)[None, :]
    overlap = np.minimum(high, edge + 1.0) - np.maximum(low, edge)
    return (np.clip(overlap, 0.0, None) / width).astype(np.float32)


def crop_and_resize(
    volume: npt.NDArray[Any], start: tuple[float, float, float], step: float, size: int, fill: float = AIR_HU
) -> npt.NDArray[np.float32]:
    """Antialiased cube (size, size, size) out of ``volume``: the cell's mean; ``fill`` outside the volume.

    Args:
        volume: (X, Y, Z).
        start: lower corner of the cube in voxel cells (0 = outer edge of voxel 0), may be negative.
        step: cell side in voxels.
        size: number of cells along each side.
        fill: value outside the volume.
    """
    result = volume.astype(np.float32) - np.float32(fill)
    for axis in range(3):
        matrix = averaging_matrix(volume.shape[axis], start[axis], step, size)
        result = np.moveaxis(np.tensordot(matrix, result, axes=(1, axis)), 0, axis)
    return result + np.float32(fill)


def _cube_centre(body: npt.NDArray[np.bool_], anchor: str, half: float) -> tuple[float, float, float]:
    """Centre of the cube in voxel cells of the source grid."""
    if anchor not in ANCHORS:
        raise ValueError(f"anchor is {anchor!r}; choose one of {', '.join(ANCHORS)}")
    if anchor == "scan":
        x, y, z = (n / 2.0 for n in body.shape)
        return x, y, z
    box = ndimage.find_objects(body.astype(np.uint8))[0]
    x, y, z = ((s.start + s.stop) / 2.0 for s in box)
    if anchor == "superior":
        z = box[2].stop - half
    elif anchor == "inferior":
        z = box[2].start + half
    return x, y, z


def _native_truncation(
    canonical: nib.Nifti1Image, body: npt.NDArray[np.bool_], body_affine: npt.NDArray[np.floating]
) -> float:
    """`lateral_truncation` on the scanner's own grid, where the rim of its field of view is sharp."""
    native = np.asarray(canonical.dataobj)
    to_body = np.linalg.inv(body_affine) @ canonical.affine
    mask = ndimage.affine_transform(
        body.astype(np.uint8), to_body[:3, :3], to_body[:3, 3], output_shape=native.shape, order=0, mode="nearest"
    )
    spacing = np.linalg.norm(canonical.affine[:3, :3], axis=0)
    return lateral_truncation(mask.astype(bool), field_of_view(native), (spacing[0], spacing[1], spacing[2]))


def prepare_volume(
    volume_hu: npt.NDArray[np.generic],
    affine: npt.NDArray[np.floating],
    *,
    size: int = 128,
    cube_mm: float = 320.0,
    anchor: str = "center",
    spacing_mm: float = 1.0,
    remove_couch: bool = True,
) -> PreparedCase:
    """One CT to the cube of the networks and the source of fine simulation. Pure: no files, no global state.

    Args:
        volume_hu: (X, Y, Z) HU.
        affine: (4, 4) voxel to world RAS+ mm; rotations and flips are resolved here.
        size: voxels along each side of the cube.
        cube_mm: side of the cube in mm.
        anchor: where the cube sits: "center" (middle of the body's bounding box), "superior" or "inferior" (in-plane
            the same, flush with the body's upper or lower end), "scan" (middle of the scanned volume).
        spacing_mm: isotropic spacing of `source` in mm.
        remove_couch: set everything outside the body mask to -1000 HU.

    Raises:
        Rejected: no body found, NaN or infinite voxels, not three axes (a ValueError).
        ValueError: an unknown anchor, a size that is not positive.
    """
    if size < 2 or cube_mm <= 0 or spacing_mm <= 0:
        raise ValueError(f"size {size}, cube_mm {cube_mm} and spacing_mm {spacing_mm} must be positive")
    if volume_hu.ndim != 3 or min(volume_hu.shape) < 2:
        raise Rejected(f"a CT volume has three axes of at least 2 voxels, this one has shape {volume_hu.shape}")
    bad = 0 if np.issubdtype(volume_hu.dtype, np.integer) else int((~np.isfinite(volume_hu)).sum())
    if bad:
        raise Rejected(f"{bad} voxels are NaN or infinite")
    # Padding outside the reconstruction circle (-2000, -3024) must not bleed into the body's edge.
    image = nib.Nifti1Image(np.maximum(np.asarray(volume_hu, dtype=np.float32), np.float32(_LOWEST_HU)), affine)
    canonical = nib.as_closest_canonical(image)
    resampled = resample_to_output(canonical, (spacing_mm,) * 3, order=1, cval=AIR_HU)
    source = np.asarray(resampled.dataobj, dtype=np.float32)
    source_affine = np.asarray(resampled.affine, dtype=np.float64)

    body = body_mask(source, (spacing_mm,) * 3)
    if not body.any():
        raise Rejected("no body found: no large connected region above -400 HU; is this a CT in HU?")
    truncation = _native_truncation(canonical, body, resampled.affine)
    if remove_couch:
        source = np.where(body, source, np.float32(AIR_HU))
    rounded = np.clip(np.rint(source), _LOWEST_HU, 32767).astype(np.int16)

    half = cube_mm / 2.0 / spacing_mm
    centre = _cube_centre(body, anchor, half)
    corner = (centre[0] - half, centre[1] - half, centre[2] - half)
    step = cube_mm / size / spacing_mm
    cube = np.rint(crop_and_resize(rounded, corner, step, size)).astype(np.int16)
    cube_affine = np.eye(4)
    cube_affine[:3, :3] *= cube_mm / size
    # World position of the first cell's centre; voxel j's centre stands at cell coordinate j + 0.5.
    first = np.array([c + 0.5 * step - 0.5 for c in corner])
    cube_affine[:3, 3] = source_affine[:3, :3] @ first + source_affine[:3, 3]
    inside = [max(0.0, min(c + 2 * half, n) - max(c, 0.0)) for c, n in zip(corner, body.shape, strict=True)]
    facts = {
        "lateral_truncation": round(truncation, 3),
        "cube_corner_mm": [round(float(v), 3) for v in cube_affine[:3, 3]],
        "cube_filled": round(float(np.prod(inside)) / (2 * half) ** 3, 3),
        "body_litres": round(float(body.sum()) * spacing_mm**3 / 1e6, 2),
    }
    return PreparedCase(cube, cube_affine, rounded, source_affine, body, facts)
