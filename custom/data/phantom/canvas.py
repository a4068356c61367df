"""A voxel canvas for procedural anatomy: smooth shapes in an anatomical frame, painted with partial volume.

Anatomy is described in a template frame (mm, RAS+, one average thorax). A random similarity-like map and a random
diffeomorphism carry it to the patient. Large shapes are signed distances (negative inside) on a coarse lattice, about
5 mm, where they are smooth enough to be interpolated; thin ones (ribs, vessels) are tubes around curves and are drawn
on the voxels themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, map_coordinates

from custom.data.diffeomorphism import random_diffeomorphism, rotation_matrix

COARSE_MM = 5.0
FAR_MM = 60.0
Array = np.ndarray
Points = Sequence[Any] | np.ndarray
Box = tuple[slice, slice, slice]


class Canvas:
    """HU and labels being painted, and the map between patient and template.

    Args:
        shape: voxels (X, Y, Z).
        spacing_mm: isotropic voxel size, mm.
        rng: source of randomness of the warp.
        size: how large the patient is relative to the template along x, y, z.
        origin_mm: template position (x, y, z) that lies at the canvas' centre.
        tilt_deg: rotations of the patient about x, y, z, degrees.
        warp_mm: peak of the diffeomorphism, mm.
    """

    def __init__(
        self,
        shape: Sequence[int],
        spacing_mm: float,
        rng: np.random.RandomState,
        size: Sequence[float],
        origin_mm: Sequence[float],
        tilt_deg: Sequence[float] = (0.0, 0.0, 0.0),
        warp_mm: float = 10.0,
    ) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.spacing = float(spacing_mm)
        self.ratio = max(1, round(COARSE_MM / self.spacing))
        self.step = self.ratio * self.spacing
        self.nodes = tuple(-(-(n - 1) // self.ratio) + 1 for n in self.shape)
        self.size = np.asarray(size, dtype=np.float64)
        self.mean_size = float(np.prod(self.size) ** (1 / 3))
        self.origin = np.asarray(origin_mm, dtype=np.float64)
        self.rotation = rotation_matrix(tilt_deg)
        self.first = -(np.asarray(self.shape) - 1) / 2 * self.spacing
        span = [(n - 1) * self.step for n in self.nodes]
        self.warp = np.zeros((3, *self.nodes), dtype=np.float32)
        if warp_mm > 0:
            nodes = [max(n, 3) for n in self.nodes]
            self.warp = random_diffeomorphism(rng, span, nodes, warp_mm, 75.0, 0.3).numpy()
        axes = [f + self.step * np.arange(n) for f, n in zip(self.first, self.nodes, strict=True)]
        world = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
        linear = np.diag(1 / self.size) @ self.rotation.T
        template = np.einsum("ij,jabc->iabc", linear.astype(np.float32), world + self.warp)
        self.x, self.y, self.z = (
            template + self.origin.astype(np.float32)[:, None, None, None]
        )  # template coordinates of the coarse nodes
        self.hu = np.full(self.shape, -1000.0, dtype=np.float32)
        self.labels = np.zeros(self.shape, dtype=np.uint8)

    @property
    def voxel_mm(self) -> float:
        """Voxel size in template millimetres: the width over which an edge is blended."""
        return self.spacing / self.mean_size

    def to_world(self, points: Array) -> Array:
        """Template positions (N, 3) to patient positions in mm from the canvas' centre, by fixed-point iteration."""
        target = (points - self.origin) * self.size @ self.rotation.T
        world = target.copy()
        for _ in range(8):
            index = ((world - self.first) / self.step).T
            shift = np.stack([map_coordinates(u, index, order=1, mode="nearest") for u in self.warp], axis=1)
            world = target - shift
        return world

    def box(self, coarse: Array, margin: float = 2.0) -> Box | None:
        """Fine box around the nodes where a coarse distance is below ``margin`` mm; None where there are none."""
        inside = coarse < margin
        if not inside.any():
            return None
        slices = []
        for axis, (n, count) in enumerate(zip(self.nodes, self.shape, strict=True)):
            hit = np.flatnonzero(inside.any(axis=tuple(k for k in range(3) if k != axis)))
            low, high = max(hit[0] - 1, 0), min(hit[-1] + 1, n - 1)
            slices.append(slice(low * self.ratio, min(high * self.ratio + 1, count)))
        return slices[0], slices[1], slices[2]

    def fine(self, coarse: Array, box: Box | None = None) -> Array:
        """Interpolate a coarse field trilinearly to the voxels of a box made by :meth:`box` (default: all)."""
        out = np.ascontiguousarray(coarse, dtype=np.float32)
        r = self.ratio
        for axis in range(3):
            part = slice(0, self.shape[axis]) if box is None else box[axis]
            low, count = part.start // r, part.stop - part.start
            high = min(low + -(-(count - 1) // r), out.shape[axis] - 1)
            field = out.swapaxes(0, axis)[low : high + 1]
            target = np.empty((r * (len(field) - 1) + 1, *field.shape[1:]), dtype=np.float32)
            target[::r] = field
            for offset in range(1, r):
                target[offset::r] = field[:-1] + np.float32(offset / r) * (field[1:] - field[:-1])
            out = target[:count].swapaxes(0, axis)
        return np.ascontiguousarray(out)

    def paint(self, distance: Array, hu: float | Array, label: int | None, box: Box | None = None) -> None:
        """Blend HU where a fine signed distance (template mm) is negative; relabel where more than half is covered."""
        part = box if box is not None else (slice(None),) * 3
        self.blend(np.clip(0.5 - distance / self.voxel_mm, 0.0, 1.0), hu, label, part)

    def blend(self, alpha: Array, hu: float | Array, label: int | None, box: Box | None = None) -> None:
        """Blend HU by a share ``alpha`` in [0, 1]; relabel where it exceeds one half."""
        part = box if box is not None else (slice(None),) * 3
        view = self.hu[part]
        view += alpha * (hu - view)
        if label is not None:
            self.labels[part][alpha > 0.5] = label

    def paint_coarse(self, distance: Array, hu: float, label: int | None, texture: Array | None = None) -> None:
        """Paint a coarse signed distance."""
        box = self.box(distance)
        if box is not None:
            value = hu if texture is None else hu + texture[box]
            self.paint(self.fine(distance, box), value, label, box)

    def tube(
        self,
        points: Array,
        radii: Array,
        reach: float = 3.0,
        flat: tuple[Array, float] | None = None,
        coarse: bool = False,
    ) -> tuple[Array, Box] | None:
        """Signed distance to a tube around densely sampled points (see :func:`curve`).

        Args:
            points: (N, 3) template positions; neighbours closer than about half a radius.
            radii: (N,) template mm.
            reach: how far outside the tube the distance is known, mm; beyond it is ``FAR_MM``.
            flat: (N, 3) unit directions and a factor by which the tube is thinner along them.
            coarse: on the coarse lattice instead of the voxels.

        Returns:
            Distance in template mm over a box of the grid and that box, or None when the tube is off the grid.
        """
        if len(points) == 0:
            return None
        world = self.to_world(np.asarray(points, dtype=np.float64))
        radius = np.asarray(radii, dtype=np.float64) * self.mean_size
        step = self.step if coarse else self.spacing
        grid = self.nodes if coarse else self.shape
        index = (world - self.first) / step
        extent = (radius.max() + reach * self.mean_size) / step
        keep = np.all((index > -extent) & (index < np.asarray(grid) - 1 + extent), axis=1)
        if not keep.any():
            return None
        index, radius = index[keep], radius[keep]
        normal = flat[0][keep] if flat is not None else None
        low = np.clip(np.floor(index.min(0) - extent), 0, None).astype(int)
        high = np.minimum(np.ceil(index.max(0) + extent) + 1, grid).astype(int)
        if np.any(high <= low):
            return None
        shape = high - low
        field = torch.full((int(np.prod(shape)),), FAR_MM * self.mean_size)
        half = (radius + reach * self.mean_size) / step
        for size in np.unique(np.ceil(half)).astype(int):
            chosen = np.ceil(half).astype(int) == size
            _splat(
                field,
                index[chosen] - low,
                radius[chosen],
                int(size),
                shape,
                step,
                None if normal is None else normal[chosen],
                1.0 if flat is None else flat[1],
            )
        box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
        return field.numpy().reshape(shape) / np.float32(self.mean_size), box

    def coarse_tube(self, points: Array, radii: Array, reach: float = 25.0) -> Array:
        """Signed distance (template mm) to a tube on the whole coarse lattice, ``FAR_MM`` away from it."""
        whole = np.full(self.nodes, FAR_MM, dtype=np.float32)
        found = self.tube(points, radii, reach, coarse=True)
        if found is not None:
            whole[found[1]] = found[0]
        return whole

    def normalised(self, implicit: Array) -> Array:
        """First-order signed distance in template mm of an implicit function f: f / |gradient f|."""
        gradient = np.gradient(implicit, self.step / self.mean_size)
        norm = np.sqrt(sum(g * g for g in gradient))
        return np.clip(implicit / np.maximum(norm, 1e-6), -FAR_MM, FAR_MM).astype(np.float32)

    def redistanced(self, distance: Array) -> Array:
        """Replace a first-order signed distance away from the surface, where it is a poor guess, by the true one."""
        scale = self.step / self.mean_size
        outside = distance_transform_edt(distance > 0).astype(np.float32)
        inside = distance_transform_edt(distance <= 0).astype(np.float32)
        exact = (np.clip(outside - 0.5, 0, None) - np.clip(inside - 0.5, 0, None)) * np.float32(scale)
        near = np.clip(outside + inside - 1.0, 0, 1)  # 0 at the nodes next to the surface
        return np.clip(distance + near * (exact - distance), -FAR_MM, FAR_MM).astype(np.float32)

    def noise(self, rng: np.random.RandomState, scale_mm: float) -> Array:
        """Smooth random field of unit variance on the coarse lattice, with bumps about ``scale_mm`` wide."""
        counts = [max(2, round((n - 1) * self.step / scale_mm) + 1) for n in self.nodes]
        values = torch.as_tensor(rng.normal(size=(1, 1, *counts)), dtype=torch.float32)
        field = torch.nn.functional.interpolate(values, size=self.nodes, mode="trilinear", align_corners=True)
        result = field[0, 0].numpy()
        return result / max(float(result.std()), 1e-6)


def curve(knots: Points, radii: Points | float, step_mm: float = 1.5) -> tuple[Array, Array]:
    """Sample a smooth curve through knots.

    Args:
        knots: (N, 3) positions in mm, at least 2; Catmull-Rom between them (centripetal enough for even knots).
        radii: one radius a knot, or one for all.
        step_mm: distance of the samples.

    Returns:
        (M, 3) positions and (M,) radii.
    """
    k = np.asarray(knots, dtype=np.float64)
    r = np.broadcast_to(np.asarray(radii, dtype=np.float64), (len(k),))
    padded = np.concatenate([2 * k[:1] - k[1:2], k, 2 * k[-1:] - k[-2:-1]])
    points, widths = [], []
    for i in range(len(k) - 1):
        p0, p1, p2, p3 = padded[i : i + 4]
        count = max(1, int(np.ceil(np.linalg.norm(p2 - p1) / step_mm)))
        t = (np.arange(count + (i == len(k) - 2)) / count)[:, None]
        points.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
        widths.append(r[i] + (r[i + 1] - r[i]) * t[:, 0])
    return np.concatenate(points), np.concatenate(widths)


def smooth_union(fields: Sequence[Array], width_mm: float) -> Array:
    """Union of signed distances with rounded inner edges (soft minimum)."""
    lowest = np.minimum.reduce(fields)
    total = np.zeros_like(lowest)
    for field in fields:
        total += np.exp((lowest - field) / np.float32(width_mm))
    return lowest - np.float32(width_mm) * np.log(total)


def smooth_intersection(fields: Sequence[Array], width_mm: float) -> Array:
    """Intersection of signed distances with rounded edges (soft maximum)."""
    return -smooth_union([-field for field in fields], width_mm)


def ellipsoid(canvas: Canvas, centre: Points, radii: Points, axes: Array | None = None) -> Array:
    """First-order signed distance to an ellipsoid on the coarse lattice, template mm.

    ``axes`` holds the unit directions of the radii as rows (default x, y, z).
    """
    d = [c - np.float32(o) for c, o in zip((canvas.x, canvas.y, canvas.z), centre, strict=True)]
    if axes is not None:
        d = [np.float32(a[0]) * d[0] + np.float32(a[1]) * d[1] + np.float32(a[2]) * d[2] for a in axes]
    k0 = np.sqrt(sum((v / np.float32(r)) ** 2 for v, r in zip(d, radii, strict=True)))
    k1 = np.sqrt(sum((v / np.float32(r) ** 2) ** 2 for v, r in zip(d, radii, strict=True)))
    return np.clip(k0 * (k0 - 1) / np.maximum(k1, 1e-6), -FAR_MM, FAR_MM)


def _splat(
    field: torch.Tensor,
    index: Array,
    radius: Array,
    half: int,
    shape: Array,
    step: float,
    normal: Array | None,
    factor: float,
) -> None:
    """Lower a flat distance field to the distance from each ball, within ``half`` voxels of its centre."""
    offsets = np.stack(np.meshgrid(*[np.arange(-half, half + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    chunk = max(1, 4_000_000 // len(offsets))
    for start in range(0, len(index), chunk):
        centre = index[start : start + chunk]
        voxels = np.rint(centre).astype(np.int32)[:, None] + offsets[None].astype(np.int32)
        delta = ((voxels - centre[:, None]) * step).astype(np.float32)
        squared = np.einsum("nkc,nkc->nk", delta, delta)
        if normal is not None:
            along = np.einsum("nkc,nc->nk", delta, normal[start : start + chunk].astype(np.float32))
            squared = squared + (factor**2 - 1) * along**2
        distance = np.sqrt(squared) - radius[start : start + chunk, None].astype(np.float32)
        inside = np.all((voxels >= 0) & (voxels < shape), axis=-1)
        flat = np.ravel_multi_index(tuple(voxels[inside].T), shape)
        field.scatter_reduce_(0, torch.as_tensor(flat), torch.as_tensor(distance[inside]), "amin", include_self=True)
