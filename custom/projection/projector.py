"""From volumes to radiographs and back, for batches of volumes with views of their own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from custom.geometry import Geometry, VolumeGrid
from custom.projection.operators import LinearOperator, joseph, make_operator

__all__ = ["Projector", "sirt"]

_CACHED_OPERATORS = 8


class Projector(nn.Module):
    """Line integrals of volumes and the exact adjoint.

    Args:
        grid: grid of the volumes.
        detector_shape: rows and columns (V, U) of the radiographs.
        views: (K, 13) used where a call names none.

    Values: attenuation in 1/mm gives dimensionless line integrals. float32 and float64 are computed as given; lower
    precisions are computed and returned in float32.
    """

    def __init__(self, grid: VolumeGrid, detector_shape: Sequence[int], views: Tensor | None = None) -> None:
        super().__init__()
        self.grid, self.detector_shape = grid, (int(detector_shape[0]), int(detector_shape[1]))
        self.register_buffer("views", views, persistent=False)
        self._operators: OrderedDict[bytes, LinearOperator] = OrderedDict()

    @classmethod
    def from_geometry(cls, geometry: Geometry) -> Projector:
        """The projector of a stored acquisition."""
        return cls(geometry.grid, geometry.detector_shape, geometry.tensor())

    def forward(self, volume: Tensor, views: Tensor | None = None) -> Tensor:
        """Line integrals (B, K, V, U) of volumes (B, 1, X, Y, Z).

        Args:
            volume: attenuation [1/mm].
            views: (K, 13) for all volumes, or (B, K, 13). Where it requires a gradient, the pose gets one.

        Raises:
            ValueError: if the volume is not on the projector's grid, or there are no views.
        """
        if volume.ndim != 5 or volume.shape[1] != 1 or tuple(volume.shape[2:]) != self.grid.shape:
            raise ValueError(f"volume must be (B, 1, {self.grid.shape}), got {tuple(volume.shape)}")
        views = self._views(views, len(volume))
        with torch.autocast(volume.device.type, enabled=False):
            volume = _full_precision(volume)[:, 0]
            views = views.to(volume)
            if views.requires_grad:
                if views.ndim == 2:
                    return joseph(volume, views, self.grid, self.detector_shape)
                return torch.cat(
                    [joseph(volume[b : b + 1], views[b], self.grid, self.detector_shape) for b in range(len(volume))]
                )
            if views.ndim == 2:
                return self.operator(views).forward(volume)
            return torch.cat([self.operator(v).forward(volume[b : b + 1]) for b, v in enumerate(views)])

    def adjoint(self, image: Tensor, views: Tensor | None = None) -> Tensor:
        """The exact transpose of `forward`: radiographs (B, K, V, U) to (B, 1, X, Y, Z)."""
        views = self._views(views, len(image))
        if image.ndim != 4 or tuple(image.shape[2:]) != self.detector_shape or image.shape[1] != views.shape[-2]:
            raise ValueError(f"image must be (B, {views.shape[-2]}, {self.detector_shape}), got {tuple(image.shape)}")
        with torch.autocast(image.device.type, enabled=False):
            image = _full_precision(image)
            views = views.to(image)
            if views.ndim == 2:
                return self.operator(views).transpose(image).unsqueeze(1)
            return torch.cat([self.operator(v).transpose(image[b : b + 1]) for b, v in enumerate(views)]).unsqueeze(1)

    def operator(self, views: Tensor) -> LinearOperator:
        """The linear operator of one set of views (K, 13), kept for the next call with the same views."""
        key = repr((views.dtype, views.device)).encode() + views.detach().cpu().numpy().tobytes()
        if key in self._operators:
            self._operators.move_to_end(key)
        else:
            self._operators[key] = make_operator(views.detach(), self.grid, self.detector_shape)
            while len(self._operators) > _CACHED_OPERATORS:
                self._operators.popitem(last=False)
        return self._operators[key]

    def _views(self, views: Tensor | None, batch: int) -> Tensor:
        views = self.views if views is None else views
        if views is None:
            raise ValueError("no views: pass views (K, 13) or (B, K, 13), or make the projector from a Geometry")
        if views.shape[-1] != 13 or views.ndim not in (2, 3) or (views.ndim == 3 and len(views) != batch):
            raise ValueError(f"views must be (K, 13) or ({batch}, K, 13), got {tuple(views.shape)}")
        return views


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@torch.no_grad()
def sirt(
    projector: Projector,
    image: Tensor,
    views: Tensor | None = None,
    iterations: int = 100,
    bounds: tuple[float, float] = (0.0, float("inf")),
    initial: Tensor | None = None,
    view_mask: Tensor | None = None,
) -> Tensor:
    """Simultaneous iterative reconstruction technique, clipped to `bounds` after every iteration.

    x <- clip(x + C A^T R (p - A x)), R and C the inverse row and column sums of A (Gilbert 1972; van der Sluis and
    van der Vorst 1990).

    Args:
        projector: its grid is the grid of the result.
        image: line integrals (B, K, V, U).
        views: (K, 13) or (B, K, 13); None for the projector's own.
        iterations: number of iterations.
        bounds: smallest and largest attenuation [1/mm].
        initial: start volume (B, 1, X, Y, Z), zeros if None.
        view_mask: bool (B, K); views that are False carry no weight.

    Returns:
        Attenuation [1/mm], (B, 1, X, Y, Z).
    """
    image = _full_precision(image)
    ones = torch.ones(len(image), 1, *projector.grid.shape, dtype=image.dtype, device=image.device)
    smallest = min(projector.grid.spacing_mm)
    lengths = projector(ones, views)
    # A ray that only grazes a voxel's border has a tiny length; dividing by it would amplify noise.
    row_weight = torch.where(lengths > 0.1 * smallest, 1 / lengths.clamp(min=0.1 * smallest), torch.zeros_like(lengths))
    seen = torch.ones_like(image)
    if view_mask is not None:
        seen = seen * view_mask[:, :, None, None].to(image)
        row_weight = row_weight * seen
    column_sum = projector.adjoint(seen, views)
    column_weight = torch.where(column_sum > 1e-3 * smallest, 1 / column_sum.clamp(min=1e-3 * smallest), 0.0)
    volume = torch.zeros_like(ones) if initial is None else initial.clone().to(image)
    for _ in range(iterations):
        residual = (image - projector(volume, views)) * row_weight
        volume = (volume + column_weight * projector.adjoint(residual, views)).clamp(*bounds)
    return volume
