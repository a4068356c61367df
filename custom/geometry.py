"""Where every view stands: source, detector and volume grid, in millimetres and degrees.

The world here is the isocentre frame: RAS+ axes (x to the patient's right, y anterior, z superior), origin at the
isocentre. A view is a row of 13 numbers, so that networks and projector see a plain tensor of shape (B, K, 13):

====== ==================================================================================================
0:3    cone beam: source position [mm]; parallel beam: unit ray direction, from source to detector
3:6    detector centre [mm]
6:9    u step: from one column to the next [mm]
9:12   v step: from one row to the next [mm]; row 0 is superior, so it points downwards
12     beam flag: 0 parallel, 1 cone
====== ==================================================================================================

(u step, v step, direction of the rays) is right-handed: the radiograph is the picture as seen from the source.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "VIEW_SIZE",
    "Geometry",
    "VolumeGrid",
    "detector_pixels",
    "is_cone",
    "is_vertical_parallel",
    "pixel_coordinates",
    "projection_matrices",
    "rays",
    "views_from_angles",
]

VIEW_SIZE = 13
PARALLEL, CONE = 0.0, 1.0
BEAMS = {"parallel": PARALLEL, "cone": CONE}
JSON_FORMAT = "fewview-ct geometry 1"


def _positive(name: str, values: Sequence[float]) -> None:
    for value in values:
        if not math.isfinite(value) or value <= 0:
            raise ValueError(f"{name} must be finite and greater than zero, got {tuple(values)}")


@dataclass(frozen=True)
class VolumeGrid:
    """A regular grid of voxels in the isocentre frame.

    Args:
        shape: number of voxels (X, Y, Z).
        spacing_mm: distance between voxel centres along x, y, z.
        center_mm: position of the grid's centre in the isocentre frame.

    Raises:
        ValueError: for a shape or spacing that is not positive and finite.
    """

    shape: tuple[int, int, int] = (128, 128, 128)
    spacing_mm: tuple[float, float, float] = (2.5, 2.5, 2.5)
    center_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name, length in (("shape", 3), ("spacing_mm", 3), ("center_mm", 3)):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} must have {length} numbers, got {getattr(self, name)}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "spacing_mm", tuple(float(s) for s in self.spacing_mm))
        object.__setattr__(self, "center_mm", tuple(float(c) for c in self.center_mm))
        _positive("shape", self.shape)
        _positive("spacing_mm", self.spacing_mm)
        if not all(map(math.isfinite, self.center_mm)):
            raise ValueError(f"center_mm must be finite, got {self.center_mm}")

    @classmethod
    def cube(cls, size: int, side_mm: float) -> VolumeGrid:
        """The cube of `size`^3 voxels with the given side, centred at the isocentre."""
        return cls((size,) * 3, (side_mm / size,) * 3)

    @property
    def half_extent_mm(self) -> tuple[float, float, float]:
        """Half the grid's side along x, y, z, voxel borders included."""
        return tuple(n * s / 2 for n, s in zip(self.shape, self.spacing_mm, strict=True))  # type: ignore[return-value]

    def axis_mm(self, axis: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Voxel centres along one axis [mm], shape (shape[axis],)."""
        n, step, center = self.shape[axis], self.spacing_mm[axis], self.center_mm[axis]
        return (torch.arange(n, device=device, dtype=dtype or torch.float32) - (n - 1) / 2) * step + center

    def points(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Every voxel centre [mm], shape (X, Y, Z, 3)."""
        axes = [self.axis_mm(axis, device, dtype) for axis in range(3)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)

    def resized(self, shape: Sequence[int]) -> VolumeGrid:
        """The same box in space with another number of voxels."""
        spacing = [n * s / m for n, s, m in zip(self.shape, self.spacing_mm, shape, strict=True)]
        return replace(self, shape=tuple(shape), spacing_mm=tuple(spacing))

    def padded(self, voxels: Sequence[int]) -> VolumeGrid:
        """The grid with `voxels` more on both sides of each axis."""
        return replace(self, shape=tuple(n + 2 * p for n, p in zip(self.shape, voxels, strict=True)))

    def affine(self, isocenter_mm: Sequence[float] | None = None) -> np.ndarray:
        """Voxel index to millimetres, shape (4, 4): the CT's frame if its isocentre is given, else the isocentre's."""
        affine = np.diag([*self.spacing_mm, 1.0])
        first = np.array(self.center_mm) - (np.array(self.shape) - 1) / 2 * np.array(self.spacing_mm)
        affine[:3, 3] = first + (np.zeros(3) if isocenter_mm is None else np.asarray(isocenter_mm, float))
        return affine


def views_from_angles(
    angles_deg: Tensor | Sequence[float],
    beam: str = "cone",
    source_to_isocenter_mm: float | Tensor = 1000.0,
    source_to_detector_mm: float | Tensor = 1500.0,
    pixel_mm: float | Tensor | Sequence[float] = 2.5,
    detector_offset_mm: Sequence[float] = (0.0, 0.0),
) -> Tensor:
    """Views around the superior axis. Differentiable in every tensor argument.

    Args:
        angles_deg: angle of the source about the superior axis, any shape (..., K). 0: source at the patient's right
            (lateral); 90: source anterior (AP); 180: lateral from the left; 270: PA.
        beam: "cone" or "parallel".
        source_to_isocenter_mm: a number or a tensor that broadcasts with the angles.
        source_to_detector_mm: likewise; perpendicular distance from the source to the detector.
        pixel_mm: size of a detector pixel; a pair is (row distance, column distance), i.e. along v and u.
        detector_offset_mm: shift of the detector along +u and along +z.

    Returns:
        Tensor (..., K, 13).

    Raises:
        ValueError: for an unknown beam, or numbers that are not finite and positive.
    """
    if beam not in BEAMS:
        raise ValueError(f"beam must be one of {sorted(BEAMS)}, got {beam!r}")
    angles = torch.as_tensor(angles_deg)
    if not angles.is_floating_point():
        angles = angles.to(torch.float64)
    elif not isinstance(angles_deg, Tensor):
        angles = torch.as_tensor(angles_deg, dtype=torch.float64)
    if not torch.isfinite(angles).all():
        raise ValueError(f"angles_deg must be finite, got {angles_deg}")

    def like_angles(name: str, value: float | Tensor) -> Tensor:
        tensor = torch.as_tensor(value, dtype=angles.dtype, device=angles.device)
        if not (torch.isfinite(tensor).all() and (tensor > 0).all()):
            raise ValueError(f"{name} must be finite and greater than zero, got {value}")
        return tensor.expand(angles.shape).unsqueeze(-1)

    to_isocenter = like_angles("source_to_isocenter_mm", source_to_isocenter_mm)
    to_detector = like_angles("source_to_detector_mm", source_to_detector_mm)
    if (to_detector <= to_isocenter).any() and beam == "cone":
        raise ValueError(
            f"source_to_detector_mm ({source_to_detector_mm}) must be greater than "
            f"source_to_isocenter_mm ({source_to_isocenter_mm}): the detector stands behind the patient"
        )
    if isinstance(pixel_mm, Sequence):
        pixel_v, pixel_u = (like_angles("pixel_mm", p) for p in pixel_mm)
    else:
        pixel_v = pixel_u = like_angles("pixel_mm", pixel_mm)
    radians = torch.deg2rad(angles)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    outward = torch.stack([cos, sin, zero], -1)
    along_u = torch.stack([-sin, cos, zero], -1)
    up = torch.stack([zero, zero, zero + 1], -1)
    center = -(to_detector - to_isocenter) * outward + detector_offset_mm[0] * along_u + detector_offset_mm[1] * up
    source = to_isocenter * outward if beam == "cone" else -outward
    flag = (zero + BEAMS[beam]).unsqueeze(-1)
    return torch.cat([source, center, along_u * pixel_u, -up * pixel_v, flag], -1)


def is_cone(views: Tensor) -> Tensor:
    """Which views are cone beam: bool (..., K)."""
    return views[..., 12] > 0.5


def is_vertical_parallel(views: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Which views factorise over axial slices: parallel rays in the axial plane, upright detector. Bool (..., K)."""
    direction, u_step, v_step = views[..., 0:3], views[..., 6:9], views[..., 9:12]
    upright = v_step[..., :2].abs().amax(-1) <= tolerance * v_step[..., 2].abs()
    level = u_step[..., 2].abs() <= tolerance * u_step[..., :2].norm(dim=-1)
    axial = direction[..., 2].abs() <= tolerance
    return ~is_cone(views) & upright & level & axial


def detector_pixels(views: Tensor, detector_shape: Sequence[int]) -> Tensor:
    """Position of every detector pixel's centre [mm]: (..., K, V, U, 3)."""
    rows, columns = detector_shape
    v = torch.arange(rows, device=views.device, dtype=views.dtype) - (rows - 1) / 2
    u = torch.arange(columns, device=views.device, dtype=views.dtype) - (columns - 1) / 2
    center, u_step, v_step = (views[..., None, None, i : i + 3] for i in (3, 6, 9))
    return center + u[:, None] * u_step + v[:, None, None] * v_step


def rays(views: Tensor, detector_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Origin [mm] and unit direction of the ray that ends in every pixel, both (..., K, V, U, 3).

    The origin is the source (cone beam) or the pixel itself (parallel beam).
    """
    pixels = detector_pixels(views, detector_shape)
    head = views[..., None, None, 0:3]
    cone = is_cone(views)[..., None, None, None]
    direction = torch.where(cone, pixels - head, head.expand_as(pixels))
    origin = torch.where(cone, head.expand_as(pixels), pixels)
    return origin, torch.nn.functional.normalize(direction, dim=-1)


def projection_matrices(views: Tensor, detector_shape: Sequence[int]) -> Tensor:
    """Homogeneous matrices from a point [mm] to detector indices, (..., K, 3, 4).

    With (a, b, w) = M @ (x, y, z, 1) the point is seen at column a / w and row b / w (index 0 is the first pixel's
    centre); w > 0 in front of the source. Parallel and cone beam have the same form.
    """
    rows, columns = detector_shape
    head, center, u_step, v_step = (views[..., i : i + 3] for i in (0, 3, 6, 9))
    normal = torch.linalg.cross(u_step, v_step)
    volume = (normal * normal).sum(-1, keepdim=True)
    u_dual = torch.linalg.cross(v_step, normal) / volume
    v_dual = torch.linalg.cross(normal, u_step) / volume

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1, keepdim=True)

    def plane(vector: Tensor, point: Tensor) -> Tensor:
        return torch.cat([vector, -dot(vector, point)], -1)

    depth = plane(normal, head)
    along = dot(normal, head)
    constant = torch.cat([torch.zeros_like(head), along], -1)
    w = torch.where(is_cone(views)[..., None], depth, constant)

    def row(dual: Tensor, count: int) -> Tensor:
        cone = dot(dual, head - center) * depth + dot(normal, center - head) * plane(dual, head)
        parallel = along * plane(dual, center) - dot(dual, head) * plane(normal, center)
        return torch.where(is_cone(views)[..., None], cone, parallel) + (count - 1) / 2 * w

    return torch.stack([row(u_dual, columns), row(v_dual, rows), w], -2)


def pixel_coordinates(points: Tensor, views: Tensor, detector_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where points are seen on the detectors.

    Args:
        points: (..., N, 3) [mm, isocentre frame], leading dimensions broadcast with those of `views` before K.
        views: (..., K, 13).
        detector_shape: rows and columns (V, U).

    Returns:
        Detector indices (..., K, N, 2) as (column u, row v), and bool (..., K, N): seen, i.e. in front of the source
        and within the detector's outermost pixel borders.
    """
    matrices = projection_matrices(views, detector_shape)
    seen_at = points.unsqueeze(-3) @ matrices[..., :3].mT + matrices[..., 3].unsqueeze(-2)
    w = seen_at[..., 2:]
    in_front = w > 1e-9
    indices = seen_at[..., :2] / torch.where(in_front, w, torch.ones_like(w))
    limit = torch.tensor([detector_shape[1], detector_shape[0]], device=views.device) - 0.5
    inside = ((indices >= -0.5) & (indices <= limit)).all(-1) & in_front.squeeze(-1)
    return indices, inside


@dataclass(frozen=True)
class Geometry:
    """An acquisition: views, detector and volume grid.

    Args:
        views: (K, 13), see the module's table. Kept in float64 on the CPU; `tensor()` gives what networks take.
        detector_shape: rows and columns (V, U) of every radiograph.
        grid: the volume that is projected or reconstructed.
        isocenter_mm: the isocentre in the CT's own frame (RAS+), None where there is no CT.

    Raises:
        ValueError: for NaN, a degenerate or back-to-front detector, a source inside the volume, or a detector that
            misses the volume.
    """

    views: Tensor
    detector_shape: tuple[int, int] = (128, 192)
    grid: VolumeGrid = field(default_factory=VolumeGrid)
    isocenter_mm: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        views = torch.as_tensor(self.views).detach().to("cpu", torch.float64)
        object.__setattr__(self, "views", views)
        object.__setattr__(self, "detector_shape", tuple(int(n) for n in self.detector_shape))
        if self.isocenter_mm is not None:
            object.__setattr__(self, "isocenter_mm", tuple(float(c) for c in self.isocenter_mm))
            if len(self.isocenter_mm) != 3 or not all(map(math.isfinite, self.isocenter_mm)):
                raise ValueError(f"isocenter_mm must be three finite numbers, got {self.isocenter_mm}")
        self._validate()

    @classmethod
    def from_angles(
        cls,
        angles_deg: Sequence[float],
        beam: str = "cone",
        source_to_isocenter_mm: float = 1000.0,
        source_to_detector_mm: float = 1500.0,
        detector_shape: Sequence[int] | None = None,
        pixel_mm: float | Sequence[float] | None = None,
        detector_offset_mm: Sequence[float] = (0.0, 0.0),
        grid: VolumeGrid | None = None,
        isocenter_mm: Sequence[float] | None = None,
    ) -> Geometry:
        """Views around the superior axis (`views_from_angles`).

        The detector defaults to one that sees the cube's diagonal: half as many columns again as the grid is wide,
        pixels of the voxel's size, magnified for cone beam.
        """
        grid = grid or VolumeGrid()
        if pixel_mm is None:
            magnification = source_to_detector_mm / source_to_isocenter_mm if beam == "cone" else 1.0
            pixel_mm = grid.spacing_mm[0] * magnification
        if detector_shape is None:
            detector_shape = (grid.shape[2], math.ceil(max(grid.shape[:2]) * 1.5))
        views = views_from_angles(
            list(angles_deg), beam, source_to_isocenter_mm, source_to_detector_mm, pixel_mm, detector_offset_mm
        )
        return cls(views, tuple(detector_shape), grid, None if isocenter_mm is None else tuple(isocenter_mm))  # type: ignore[arg-type]

    @classmethod
    def from_poses(
        cls,
        source_mm: Any,
        detector_center_mm: Any,
        u_step_mm: Any,
        v_step_mm: Any,
        beam: str = "cone",
        **keywords: Any,
    ) -> Geometry:
        """Explicit poses: four arrays (K, 3) in the isocentre frame; with beam="parallel" the first is the direction
        of the rays (normalised here). `keywords` go to the constructor."""
        if beam not in BEAMS:
            raise ValueError(f"beam must be one of {sorted(BEAMS)}, got {beam!r}")
        parts = [
            torch.as_tensor(np.asarray(p), dtype=torch.float64).reshape(-1, 3)
            for p in (source_mm, detector_center_mm, u_step_mm, v_step_mm)
        ]
        if len({len(p) for p in parts}) != 1:
            raise ValueError(
                f"the four arrays of a pose must name the same number of views, got {[len(p) for p in parts]}"
            )
        if beam == "parallel":
            parts[0] = torch.nn.functional.normalize(parts[0], dim=-1)
        flag = torch.full((len(parts[0]), 1), BEAMS[beam], dtype=torch.float64)
        return cls(torch.cat([*parts, flag], -1), **keywords)

    def __len__(self) -> int:
        return len(self.views)

    @property
    def angles_deg(self) -> list[float]:
        """Angle of every source about the superior axis, in [0, 360)."""
        toward_source = torch.where(is_cone(self.views)[:, None], self.views[:, 0:3], -self.views[:, 0:3])
        angles = torch.rad2deg(torch.atan2(toward_source[:, 1], toward_source[:, 0])) % 360
        return [round(a, 9) % 360 for a in angles.tolist()]

    def tensor(self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The views as networks take them, (K, 13)."""
        return self.views.to(device=device, dtype=dtype)

    def select(self, indices: Sequence[int]) -> Geometry:
        """Some of the views, in the order given."""
        return replace(self, views=self.views[list(indices)])

    def affine(self) -> np.ndarray:
        """Affine (4, 4) of a volume on the grid, in the CT's frame where `isocenter_mm` is known."""
        return self.grid.affine(self.isocenter_mm)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; `from_dict` gives the same geometry back."""
        return {
            "format": JSON_FORMAT,
            "frame": "RAS+ mm, origin at the isocentre",
            "isocenter_mm": None if self.isocenter_mm is None else list(self.isocenter_mm),
            "detector_shape": list(self.detector_shape),
            "grid": {
                "shape": list(self.grid.shape),
                "spacing_mm": list(self.grid.spacing_mm),
                "center_mm": list(self.grid.center_mm),
            },
            "views": [
                {
                    "beam": "cone" if view[12] > 0.5 else "parallel",
                    "source_mm" if view[12] > 0.5 else "ray_direction": view[0:3],
                    "detector_center_mm": view[3:6],
                    "u_step_mm": view[6:9],
                    "v_step_mm": view[9:12],
                }
                for view in self.views.tolist()
            ],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Geometry:
        """The inverse of `to_dict`.

        Raises:
            ValueError: naming the missing or malformed entry.
        """
        if not isinstance(data, dict) or data.get("format") != JSON_FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"not a geometry: 'format' must be {JSON_FORMAT!r}, got {found!r}")
        try:
            views = []
            for view in data["views"]:
                flag = BEAMS[view["beam"]]
                head = view["source_mm"] if flag == CONE else view["ray_direction"]
                views.append([*head, *view["detector_center_mm"], *view["u_step_mm"], *view["v_step_mm"], flag])
            grid = VolumeGrid(**{key: tuple(data["grid"][key]) for key in ("shape", "spacing_mm", "center_mm")})
            isocenter = data["isocenter_mm"]
            tensor = torch.tensor(views, dtype=torch.float64).reshape(len(views), -1)
            return cls(tensor, tuple(data["detector_shape"]), grid, None if isocenter is None else tuple(isocenter))
        except (KeyError, TypeError) as error:
            raise ValueError(f"geometry has a missing or malformed entry: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Geometry:
        """Read what `save` wrote; errors name the file."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such geometry file")
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _validate(self) -> None:
        views = self.views
        if views.ndim != 2 or views.shape[1] != VIEW_SIZE or len(views) == 0:
            raise ValueError(f"views must have shape (K, {VIEW_SIZE}) with at least one view, got {tuple(views.shape)}")
        if len(self.detector_shape) != 2:
            raise ValueError(f"detector_shape must be (rows, columns), got {self.detector_shape}")
        _positive("detector_shape", self.detector_shape)
        if not torch.isfinite(views).all():
            bad = (~torch.isfinite(views)).any(1).nonzero().flatten().tolist()
            raise ValueError(f"views must be finite numbers; view {bad[0]} is {views[bad[0]].tolist()}")
        if not ((views[:, 12] == PARALLEL) | (views[:, 12] == CONE)).all():
            raise ValueError(f"beam flags must be 0 (parallel) or 1 (cone), got {views[:, 12].tolist()}")
        half = torch.tensor(self.grid.half_extent_mm, dtype=torch.float64)
        middle = torch.tensor(self.grid.center_mm, dtype=torch.float64)
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * 3)
        for index, view in enumerate(views):
            head, center, u_step, v_step = (view[i : i + 3] for i in (0, 3, 6, 9))
            normal = torch.linalg.cross(u_step, v_step)
            area = u_step.norm() * v_step.norm()
            if area < 1e-12 or normal.norm() < 1e-3 * area:
                raise ValueError(
                    f"view {index}: u and v steps must be nonzero and not parallel, got {view[6:12].tolist()}"
                )
            cone = bool(view[12] > 0.5)
            ray = center - head if cone else head
            if ray.norm() < 1e-9 or abs(float(ray @ normal)) < 1e-6 * float(ray.norm() * normal.norm()):
                raise ValueError(f"view {index}: the rays run along the detector plane (or have no direction)")
            if float(ray @ normal) < 0:
                raise ValueError(
                    f"view {index}: (u step, v step, ray direction) must be right-handed, the picture as seen from the "
                    "source; reverse u_step or v_step"
                )
            if cone and bool(((head - middle).abs() <= half).all()):
                raise ValueError(
                    f"view {index}: the source {head.tolist()} mm is inside the volume (half extent {half.tolist()} mm)"
                )
        corners = middle + signs * half * (1 - 1e-9)
        _, seen = pixel_coordinates(_dense(self.grid), views, self.detector_shape)
        _, seen_corners = pixel_coordinates(corners, views, self.detector_shape)
        for index, count in enumerate((seen.sum(-1) + seen_corners.sum(-1)).tolist()):
            if count == 0:
                raise ValueError(f"view {index}: the detector misses the volume: no voxel is projected onto it")


def _dense(grid: VolumeGrid) -> Tensor:
    """A coarse sample of the grid's points for validation, (N, 3)."""
    return grid.resized([min(n, 12) for n in grid.shape]).points(dtype=torch.float64).reshape(-1, 3)
