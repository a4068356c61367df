"""Conversion to and from the geometry and arrays of CERN/TIGRE.

TIGRE (conventions of version 3.1.3): arrays (z, y, x) and (view, v, u), row 0 at the lowest z, angles in radians,
source at DSO (cos a, sin a, 0), u along (-sin a, cos a, 0), v along +z; with three angles the rotation
Rz(a) Ry(b) Rz(c) is applied to source and detector. Ours differ in the order of the axes and of the rows only.
Nothing here needs TIGRE but `to_tigre`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.transform import Rotation

from custom.geometry.geometry import Geometry
from custom.geometry.grid import VolumeGrid

__all__ = [
    "TIGRE_INSTALL",
    "from_tigre",
    "image_from_tigre",
    "image_to_tigre",
    "tigre_parameters",
    "to_tigre",
    "volume_from_tigre",
    "volume_to_tigre",
]

TIGRE_INSTALL = "pip install git+https://github.com/CERN/TIGRE"
Array = npt.NDArray[Any]

_TOLERANCE_MM = 1e-3
_TOLERANCE = 1e-6


def tigre_parameters(geometry: Geometry) -> dict[str, Any]:
    """The attributes of a `tigre.geometry` as plain numbers and arrays, plus "angles".

    Raises:
        ValueError: for what TIGRE cannot hold: both beams at once, pixels that differ between views or are no
            rectangles, a source that does not stand above the isocentre on the detector's normal, and in parallel beam
            tilts (its kernels treat z as fixed) and displaced detectors (its kernels tilt the rays then).
    """
    views = geometry.views.numpy()
    flags = set(views[:, 12])
    if len(flags) != 1:
        raise ValueError("TIGRE holds either parallel or cone beam, not both at once; split the views")
    cone = flags == {1.0}
    pixel_u, pixel_v = (np.linalg.norm(views[:, i : i + 3], axis=1) for i in (6, 9))
    if np.ptp(pixel_u) > _TOLERANCE or np.ptp(pixel_v) > _TOLERANCE:
        raise ValueError(
            f"TIGRE has one pixel size for all views, got u {pixel_u.tolist()} and v {pixel_v.tolist()} mm"
        )
    along_u, up = views[:, 6:9] / pixel_u[:, None], -views[:, 9:12] / pixel_v[:, None]
    for k, skew in enumerate(np.abs((along_u * up).sum(1))):
        if skew > _TOLERANCE:
            raise ValueError(f"view {k}: TIGRE's pixels are rectangles, but u and v steps are not perpendicular")
    towards_source = np.cross(along_u, up)
    source = views[:, 0:3] if cone else _outside(geometry) * -views[:, 0:3]
    detector = views[:, 3:6]
    off_axis = np.linalg.norm(source - (source * towards_source).sum(1, keepdims=True) * towards_source, axis=1)
    upright = (np.abs(up[:, 2] - 1) < _TOLERANCE) & (np.abs(along_u[:, 2]) < _TOLERANCE)
    offsets = np.stack([(detector * up).sum(1), (detector * along_u).sum(1)], -1)
    for k in range(len(views)):
        if off_axis[k] > _TOLERANCE_MM:
            raise ValueError(
                f"view {k}: TIGRE's source stands on the detector's normal through the isocentre; "
                f"this one is {off_axis[k]:.3g} mm beside it"
            )
        if not cone and not upright[k]:
            raise ValueError(f"view {k}: TIGRE's parallel beam cannot be tilted; use engine='torch'")
        if not cone and np.abs(offsets[k]).max() > _TOLERANCE_MM:
            raise ValueError(
                f"view {k}: TIGRE tilts the rays of parallel beams with a displaced detector "
                f"(v, u = {offsets[k].round(4).tolist()} mm); use engine='torch'"
            )
    to_isocenter = (source * towards_source).sum(1)
    to_detector = to_isocenter - (detector * towards_source).sum(1)
    if not cone:
        # A parallel ray only has to start and end outside the volume.
        to_detector = 2 * to_isocenter
    shape, spacing = np.array(geometry.grid.shape[::-1]), np.array(geometry.grid.spacing_mm[::-1])
    counts, pixels = np.array(geometry.detector_shape), np.array([pixel_v[0], pixel_u[0]])
    return {
        "mode": "cone" if cone else "parallel",
        "nVoxel": shape,
        "dVoxel": spacing,
        "sVoxel": shape * spacing,
        "nDetector": counts,
        "dDetector": pixels,
        "sDetector": counts * pixels,
        "DSO": _one_or_all(to_isocenter),
        "DSD": _one_or_all(to_detector),
        "offOrigin": np.array(geometry.grid.center_mm[::-1]),
        "offDetector": offsets,
        "rotDetector": np.zeros(3),
        "COR": 0.0,
        "accuracy": 0.5,
        "angles": _angles(towards_source, along_u, up, upright),
    }


def to_tigre(geometry: Geometry) -> tuple[Any, Array]:
    """A `tigre.geometry` and its angles [rad], (K,) or, where a view is tilted, (K, 3).

    Raises:
        ImportError: without CERN/TIGRE, with the line that installs it.
        ValueError: see `tigre_parameters`.
    """
    parameters = tigre_parameters(geometry)
    tigre = _import_tigre()
    angles = parameters.pop("angles")
    # TIGRE's constructor overwrites what belongs to a parallel beam, so everything is set afterwards.
    result = tigre.geometry(mode=parameters["mode"], nVoxel=parameters["nVoxel"])
    for name, value in parameters.items():
        setattr(result, name, value)
    return result, angles


def from_tigre(geo: Any, angles: Array, isocenter_mm: Sequence[float] | None = None) -> Geometry:
    """A `tigre.geometry` with its angles [rad] as a Geometry.

    Args:
        geo: anything with TIGRE's attributes.
        angles: (K,), or (K, 3) for Rz Ry Rz.
        isocenter_mm: the isocentre in a CT's frame.

    Raises:
        ValueError: for a turned detector (rotDetector), a volume that moves from view to view, or parallel beam with a
            displaced detector.
    """
    angles = np.asarray(angles, dtype=float)
    if angles.ndim not in (1, 2) or (angles.ndim == 2 and angles.shape[1] != 3) or len(angles) == 0:
        raise ValueError(f"angles must be (K,) or (K, 3) in radians, got shape {angles.shape}")
    count = len(angles)
    cone = (getattr(geo, "mode", None) or "cone") == "cone"
    euler = angles if angles.ndim == 2 else np.stack([angles, np.zeros(count), np.zeros(count)], -1)
    frame = Rotation.from_euler("ZYZ", euler).as_matrix()
    towards_source, along_u, up = (frame[:, :, i] for i in range(3))
    if np.any(np.asarray(getattr(geo, "rotDetector", 0.0), dtype=float) != 0):
        raise ValueError(f"a turned detector is not supported, got rotDetector {geo.rotDetector}")
    center = np.atleast_2d(np.asarray(getattr(geo, "offOrigin", np.zeros(3)), dtype=float))
    if np.ptp(center, axis=0).max() > _TOLERANCE_MM:
        raise ValueError("offOrigin differs between views; a Geometry has one volume for all of them")
    offset = np.broadcast_to(np.asarray(getattr(geo, "offDetector", np.zeros(2)), dtype=float), (count, 2))
    if not cone and np.abs(offset).max() > _TOLERANCE_MM:
        raise ValueError("TIGRE tilts the rays of parallel beams with a displaced detector (offDetector)")
    pixel_v, pixel_u = (float(p) for p in geo.dDetector)
    to_isocenter, to_detector, shift = (
        np.broadcast_to(np.asarray(value, dtype=float).reshape(-1), (count,))[:, None]
        for value in (geo.DSO, geo.DSD, getattr(geo, "COR", 0.0))
    )
    detector = -(to_detector - to_isocenter) * towards_source + offset[:, :1] * up + (offset[:, 1:] + shift) * along_u
    source = to_isocenter * towards_source + shift * along_u
    grid = VolumeGrid(
        tuple(int(n) for n in geo.nVoxel[::-1]),  # type: ignore[arg-type]
        tuple(float(d) for d in geo.dVoxel[::-1]),  # type: ignore[arg-type]
        tuple(center[0, ::-1].tolist()),
    )
    head = source if cone else -towards_source
    flag = np.full((count, 1), float(cone))
    views = np.concatenate([head, detector, along_u * pixel_u, -up * pixel_v, flag], 1)
    shape = (int(geo.nDetector[0]), int(geo.nDetector[1]))
    return Geometry(torch.from_numpy(views), shape, grid, None if isocenter_mm is None else tuple(isocenter_mm))  # type: ignore[arg-type]


def volume_to_tigre(volume: Array) -> Array:
    """(..., X, Y, Z) to TIGRE's (..., Z, Y, X), float32, contiguous."""
    return np.ascontiguousarray(np.swapaxes(volume, -1, -3), dtype=np.float32)


def volume_from_tigre(volume: Array) -> Array:
    """TIGRE's (..., Z, Y, X) to (..., X, Y, Z)."""
    return np.ascontiguousarray(np.swapaxes(volume, -1, -3))


def image_to_tigre(image: Array) -> Array:
    """Radiographs (..., K, V, U), row 0 superior, to TIGRE's, row 0 inferior."""
    return np.ascontiguousarray(image[..., ::-1, :], dtype=np.float32)


def image_from_tigre(image: Array) -> Array:
    """TIGRE's radiographs (..., K, V, U), row 0 inferior, to ours, row 0 superior."""
    return np.ascontiguousarray(image[..., ::-1, :])


def _outside(geometry: Geometry) -> float:
    """A distance from the isocentre that is outside the volume and its corners [mm]."""
    half, center = np.array(geometry.grid.half_extent_mm), np.array(geometry.grid.center_mm)
    return 2.0 * float(np.linalg.norm(half) + np.linalg.norm(center))


def _one_or_all(values: Array) -> float | Array:
    # TIGRE mistakes arrays of one number, and repeats plain floats itself.
    return float(values[0]) if np.ptp(values) <= _TOLERANCE_MM * 1e-3 else values


def _angles(towards_source: Array, along_u: Array, up: Array, upright: Array) -> Array:
    around_z = np.arctan2(towards_source[:, 1], towards_source[:, 0])
    if upright.all():
        return around_z
    euler = Rotation.from_matrix(np.stack([towards_source, along_u, up], -1)).as_euler("ZYZ")
    euler[upright] = np.stack([around_z, 0 * around_z, 0 * around_z], -1)[upright]
    return euler


def _import_tigre() -> Any:
    try:
        tigre = importlib.import_module("tigre")
    except ImportError as error:
        raise ImportError(f"TIGRE cannot be imported ({error}); install it: {TIGRE_INSTALL}") from error
    if not hasattr(tigre, "geometry"):
        raise ImportError(f"the package 'tigre' here is another one (genomics, from PyPI); install: {TIGRE_INSTALL}")
    return tigre
