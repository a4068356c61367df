"""Projection by Joseph's method (IEEE TMI 1:192, 1982) for any pose: parallel or cone, tilted or not.

Rays march through the planes of one axis of the volume and interpolate bilinearly in each plane. All rays of a view
march along the axis closest to its central ray. Where some ray of the view is more than 60 degrees off that axis (very
wide cones) each ray marches along its own closest axis instead, so no ray ever runs along its planes: the component
that is divided by is at least 1/2 or 1/sqrt(3). Planes behind a source do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from custom.geometry import VolumeGrid, is_cone, is_upright, rays
from custom.projection.linear_operator import LinearOperator, csr, transposed_csr

if TYPE_CHECKING:
    from custom.projection.column_kernels import DetectorColumns

__all__ = ["JosephOperator", "joseph"]

_SMALLEST_COMPONENT = 0.5
# One chunk of sample coordinates: what a core's cache holds, or what fills a GPU.
_CHUNK_BYTES = {"cpu": 2**20, "cuda": 2**28}
# Views with more sample coordinates than this do not keep them for a pose gradient; they are computed again.
_KEEP_BYTES = 2**28
_ZEROS_PADDING, _BILINEAR = 0, 0


@dataclass
class _Bundle:
    """Rays of one view that march along the same axis.

    `start` + plane * `slope` are the coordinates of a ray in a plane, normalised as `grid_sample` wants them: (R, 2),
    the second axis in the plane first. `length` (R,) is the path from plane to plane [mm]. `members` are the rays'
    numbers in the view, None for all, counted down the columns: neighbours along z lie side by side in memory.
    """

    axis: int
    first: int
    planes: Tensor
    start: Tensor
    slope: Tensor
    length: Tensor
    members: Tensor | None

    def to(self, dtype: torch.dtype) -> _Bundle:
        planes, start, slope, length = (p.to(dtype) for p in (self.planes, self.start, self.slope, self.length))
        return _Bundle(self.axis, self.first, planes, start, slope, length, self.members)

    def plane_bytes(self) -> int:
        """Size of the sample coordinates in one plane."""
        return max(1, len(self.start) * 2 * self.start.element_size())

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Planes of the volume and where they are (P, 1, 1, 1), a cacheful of samples at a time."""
        count = max(1, _CHUNK_BYTES.get(self.start.device.type, 2**28) // self.plane_bytes())
        for begin in range(0, len(self.planes), count):
            planes = self.planes[begin : begin + count, None, None, None]
            yield slice(self.first + begin, self.first + begin + len(planes)), planes

    def coordinates(self) -> Iterator[tuple[slice, Tensor]]:
        """Planes of the volume and the sample coordinates in them (P, 1, R, 2), all in the same memory."""
        buffer: Tensor | None = None
        for rows, planes in self.parts():
            if buffer is None:
                buffer = self.start.new_empty(len(planes), 1, *self.start.shape)
            yield rows, torch.addcmul(self.start, self.slope, planes, out=buffer[: len(planes)])

    def stack(self, volume: Tensor) -> Tensor:
        """Volumes (B, X, Y, Z) as planes (P, B, first other axis, second other axis)."""
        return volume.movedim(self.axis + 1, 0)


def _plan(view: Tensor, grid: VolumeGrid, detector_shape: Sequence[int], dtype: torch.dtype) -> list[_Bundle]:
    """How the rays of one view (13,) march; computed in float64, differentiable in the view."""
    view = view.double()
    origin, direction = (part[0].transpose(0, 1).reshape(-1, 3) for part in rays(view[None], detector_shape))
    cone = bool(is_cone(view))
    central = (view[3:6] - view[0:3] if cone else view[0:3]).detach()
    axis = int(central.abs().argmax())
    towards = direction.detach() * central[axis].sign()
    if bool((towards[:, axis] >= _SMALLEST_COMPONENT).all()):
        return [_bundle(axis, bool(central[axis] > 0), cone, origin, direction, grid, None).to(dtype)]
    own = direction.detach().abs().argmax(-1)
    bundles = []
    for axis in range(3):
        for forwards in (False, True):
            members = ((own == axis) & ((direction.detach()[:, axis] > 0) == forwards)).nonzero().flatten()
            if len(members):
                chosen = origin[members], direction[members]
                bundles.append(_bundle(axis, forwards, cone, *chosen, grid, members).to(dtype))
    return bundles


def _bundle(
    axis: int,
    forwards: bool,
    cone: bool,
    origin: Tensor,
    direction: Tensor,
    grid: VolumeGrid,
    members: Tensor | None,
) -> _Bundle:
    planes = grid.axis_mm(axis, origin.device, origin.dtype)
    first, last = 0, len(planes)
    if cone:
        source = float(origin[0, axis].detach())
        if forwards:
            first = int((planes <= source).sum())
        else:
            last = int((planes < source).sum())
    # grid_sample names the fastest axis first.
    others = [other for other in (2, 1, 0) if other != axis]
    half = origin.new_tensor([grid.half_extent_mm[other] for other in others])
    middle = origin.new_tensor([grid.center_mm[other] for other in others])
    per_plane = direction / direction[:, axis : axis + 1]
    slope = per_plane[:, others] / half
    start = (origin[:, others] - middle) / half - origin[:, axis : axis + 1] * slope
    length = per_plane.norm(dim=-1) * grid.spacing_mm[axis]
    return _Bundle(axis, first, planes[first:last], start, slope, length, members)


def _integrate(volume: Tensor, bundle: _Bundle) -> Tensor:
    """Line integrals (B, R) of volumes (B, X, Y, Z) along a bundle."""
    stack = bundle.stack(volume)
    total = volume.new_zeros(len(volume), len(bundle.start))
    if not (torch.is_grad_enabled() and (volume.requires_grad or bundle.start.requires_grad)):
        for rows, coordinates in bundle.coordinates():
            total += _sum_samples(stack[rows], coordinates)
        return total * bundle.length

    def traced(planes: Tensor, start: Tensor, slope: Tensor, where: Tensor) -> Tensor:
        return _sum_samples(planes, torch.addcmul(start, slope, where))

    forget = len(bundle.planes) * bundle.plane_bytes() > _KEEP_BYTES
    for rows, where in bundle.parts():
        inputs = stack[rows], bundle.start, bundle.slope, where
        total = total + (checkpoint(traced, *inputs, use_reentrant=False) if forget else traced(*inputs))
    return total * bundle.length


def _sum_samples(planes: Tensor, coordinates: Tensor) -> Tensor:
    """Planes (P, B, first, second) interpolated at (P, 1, R, 2) and added up: (B, R)."""
    return F.grid_sample(planes, coordinates, padding_mode="zeros", align_corners=False).sum((0, 2))


def _smear(image: Tensor, bundle: _Bundle, volume: Tensor) -> None:
    """The transpose of `_integrate`: adds rays (B, R) to volumes (B, X, Y, Z) in place."""
    stack = bundle.stack(volume)
    weighted = (image * bundle.length)[None, :, None]
    for rows, coordinates in bundle.coordinates():
        planes = stack[rows]
        # Only the shape of `planes` matters here: the gradient with respect to them is linear in the image.
        gradient, _ = torch.ops.aten.grid_sampler_2d_backward(
            weighted.expand(len(coordinates), -1, -1, -1),
            planes,
            coordinates,
            _BILINEAR,
            _ZEROS_PADDING,
            False,
            [True, False],
        )
        planes += gradient


def joseph(
    volume: Float[Tensor, "B X Y Z"], views: Float[Tensor, "K 13"], grid: VolumeGrid, detector_shape: Sequence[int]
) -> Float[Tensor, "B K V U"]:
    """Line integrals (B, K, V, U) of a volume (B, X, Y, Z), plain autograd in volume and views (K, 13)."""
    plans = [_plan(view, grid, detector_shape, volume.dtype) for view in views]
    return torch.stack([_view_integrals(volume, plan, detector_shape) for plan in plans], 1)


def _view_integrals(volume: Tensor, plan: list[_Bundle], detector_shape: Sequence[int]) -> Tensor:
    """One radiograph (B, V, U)."""
    rows, columns = detector_shape
    image = volume.new_zeros(len(volume), rows * columns)
    for bundle in plan:
        integrals = _integrate(volume, bundle)
        image = integrals if bundle.members is None else image.index_copy(1, bundle.members, integrals)
    return image.reshape(-1, columns, rows).mT


class JosephOperator(LinearOperator):
    """Any pose, parallel or cone, tilted or not.

    On a CPU the columns of upright detectors are projected by compiled kernels (`DetectorColumns`). Everything else is
    sampled view by view; within `prepared()` on a CPU the sparse matrices of these views and their transposes are
    held, as many as fit in `prepared_bytes`: some times faster for iterative methods.
    """

    prepared_bytes = 2 * 2**30

    def __init__(self, views: Tensor, grid: VolumeGrid, detector_shape: Sequence[int]) -> None:
        super().__init__(views, grid, detector_shape)
        self._plans = [_plan(view, grid, self.detector_shape, views.dtype) for view in self.views]
        upright = is_upright(self.views) & (self.views.device.type == "cpu")
        self._columns = {
            k: _detector_columns(plan[0], grid, self.detector_shape)
            for k, plan in enumerate(self._plans)
            if upright[k] and plan[0].members is None and plan[0].axis < 2
        }
        self._matrices: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def prepared(self) -> Iterator[None]:
        budget = self.prepared_bytes if self.views.device.type == "cpu" else 0
        entry = 4 + self.views.element_size()
        for k, (bundle, *others) in enumerate(self._plans):
            if k in self._columns:
                continue
            # Four values for each crossing of a plane, kept twice: with the transpose.
            most = 2 * entry * 4 * len(bundle.planes) * len(bundle.start)
            if not others and bundle.members is None and most <= budget and k not in self._matrices:
                matrix = _view_matrix(bundle, self.grid)
                self._matrices[k] = matrix, transposed_csr(matrix)
                budget -= 2 * entry * matrix.values().numel()
        try:
            yield
        finally:
            self._matrices.clear()

    def _forward(self, volume: Tensor) -> Tensor:
        rows, columns = self.detector_shape
        images = []
        for k, plan in enumerate(self._plans):
            if k in self._columns:
                sums = torch.stack([self._columns[k].integrate(one) for one in volume])
                images.append((sums * plan[0].length.view(columns, rows)).mT)
            elif k in self._matrices:
                # One matrix-vector product for each volume: MKL's matrix-matrix product is slower for so few columns.
                flat = torch.stack([self._matrices[k][0] @ one for one in volume.reshape(len(volume), -1)])
                images.append(flat.reshape(-1, columns, rows).mT)
            else:
                images.append(_view_integrals(volume, plan, self.detector_shape))
        return torch.stack(images, 1)

    def _transpose(self, image: Tensor) -> Tensor:
        volume = image.new_zeros(len(image), *self.grid.shape)
        for k, plan in enumerate(self._plans):
            flat = image[:, k].mT.reshape(len(image), -1)
            if k in self._columns:
                for one, rays_of in zip(volume, flat * plan[0].length, strict=True):
                    self._columns[k].smear(rays_of.view(*self.detector_shape[::-1]), one)
                continue
            if k in self._matrices:
                for one, rays_of in zip(volume, flat, strict=True):
                    one += (self._matrices[k][1] @ rays_of).reshape(one.shape)
                continue
            for bundle in plan:
                _smear(flat if bundle.members is None else flat[:, bundle.members], bundle, volume)
        return volume


def _detector_columns(bundle: _Bundle, grid: VolumeGrid, detector_shape: Sequence[int]) -> DetectorColumns:
    """A bundle of all rays of an upright view, with voxel indices instead of normalised coordinates."""
    # Numba takes 75 MB and a quarter of a second: not for commands that refuse their input.
    from custom.projection.column_kernels import DetectorColumns

    rows, columns = detector_shape
    half = bundle.start.new_tensor([grid.shape[2], grid.shape[1 - bundle.axis]]) / 2
    index = torch.stack([(bundle.start + 1) * half - 0.5, bundle.slope * half]).view(2, columns, rows, 2)
    across, along = index[:, :, 0, 1], index[..., 0]
    return DetectorColumns(
        bundle.axis, bundle.first, bundle.planes.numpy(), across.contiguous().numpy(), along.contiguous().numpy()
    )


def _view_matrix(bundle: _Bundle, grid: VolumeGrid) -> Tensor:
    """All rays of one view as a CSR matrix (U * V, X * Y * Z) [mm]; rays that are neighbours along z follow each other,
    so they find the same voxels in the cache."""
    strides = (grid.shape[1] * grid.shape[2], grid.shape[2], 1)
    others = [other for other in (2, 1, 0) if other != bundle.axis]

    def taps(i: int) -> tuple[list[Tensor], list[Tensor]]:
        n = grid.shape[others[i]]
        index = (bundle.start[:, i, None] + bundle.slope[:, i, None] * bundle.planes + 1) * (n / 2) - 0.5
        low = index.floor()
        upper = index - low
        low = low.clamp(-2, n).to(torch.int32)
        weights = [
            torch.where((low >= 0) & (low < n), 1 - upper, 0),
            torch.where((low >= -1) & (low < n - 1), upper, 0),
        ]
        return [(low + j).clamp(0, n - 1) * strides[others[i]] for j in (0, 1)], weights

    (fast, fast_weights), (slow, slow_weights) = taps(0), taps(1)
    plane = torch.arange(bundle.first, bundle.first + len(bundle.planes), dtype=torch.int32) * strides[bundle.axis]
    pairs = [(i, j) for i in (0, 1) for j in (0, 1)]
    column = torch.stack([slow[i] + plane + fast[j] for i, j in pairs], -1)
    slow_weights = [weight * bundle.length[:, None] for weight in slow_weights]
    value = torch.stack([slow_weights[i] * fast_weights[j] for i, j in pairs], -1)
    pointer = np.arange(len(bundle.start) + 1, dtype=np.int64) * (4 * len(bundle.planes))
    shape = (len(bundle.start), int(np.prod(grid.shape)))
    matrix = scipy.sparse.csr_matrix((value.flatten().numpy(), column.flatten().numpy(), pointer), shape=shape)
    matrix.eliminate_zeros()
    rows, columns, values = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    return csr(rows, columns, values, shape)
