"""`Projector`: volumes to radiographs and back, for batches of volumes with views of their own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from custom.core.attenuation import hu_to_attenuation
from custom.geometry import VIEW_SIZE, Geometry, VolumeGrid
from custom.projection.operators import LinearOperator, joseph, make_operator
from custom.projection.tigre_engine import tigre_forward

__all__ = ["BoundProjector", "Projector", "ProjectorCache", "full_precision"]

ENGINES = ("torch", "tigre")
_CACHED_OPERATORS = 8
#: One for all: a projector that held its own could not be copied.
_CACHES = threading.RLock()


class Projector(nn.Module):
    """Line integrals of volumes and the exact adjoint.

    Args:
        grid: grid of the volumes.
        detector_shape: rows and columns (V, U) of the radiographs.
        views: (K, 13) used where a call names none.
        engine: "torch" (CPU and GPU, exact adjoint, gradients) or "tigre" (CERN/TIGRE on a CUDA GPU, `forward` only,
            float32, no gradients; see custom.projection.tigre_engine).

    Values: attenuation in 1/mm gives dimensionless line integrals. float32 and float64 are computed as given; lower
    precisions are computed and returned in float32, whatever autocast says.
    """

    def __init__(
        self, grid: VolumeGrid, detector_shape: Sequence[int], views: Tensor | None = None, engine: str = "torch"
    ) -> None:
        super().__init__()
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {ENGINES}, got {engine!r}")
        self.engine = engine
        self.grid, self.detector_shape = grid, (int(detector_shape[0]), int(detector_shape[1]))
        # No buffer: casting a network to half precision must not round the views of a projector that it holds.
        self.views = views
        self._operators: OrderedDict[bytes, LinearOperator] = OrderedDict()

    @classmethod
    def from_geometry(cls, geometry: Geometry, engine: str = "torch") -> Projector:
        """The projector of a stored acquisition."""
        return cls(geometry.grid, geometry.detector_shape, geometry.views, engine)

    def forward(
        self, volume: Float[Tensor, "B 1 X Y Z"], views: Float[Tensor, "*_ K 13"] | None = None
    ) -> Float[Tensor, "B K V U"]:
        """Line integrals (B, K, V, U) of volumes (B, 1, X, Y, Z).

        Args:
            volume: attenuation [1/mm].
            views: (K, 13) for all volumes, or (B, K, 13). Where it requires a gradient, the pose gets one.

        Raises:
            ValueError: if the volume is not on the projector's grid, or there are no views.
        """
        self._check_volume(volume)
        views = self._views(views, len(volume))
        if self.engine == "tigre":
            sets = [views] if views.ndim == 2 else list(views)
            parts = [volume[:, 0]] if views.ndim == 2 else volume[:, 0].split(1)
            pairs = zip(parts, sets, strict=True)
            return torch.cat([tigre_forward(part, own, self.grid, self.detector_shape) for part, own in pairs])
        if not (torch.is_grad_enabled() and views.requires_grad):
            return self.bind(views, volume).forward(volume)
        with torch.autocast(volume.device.type, enabled=False):
            volume = full_precision(volume)[:, 0]
            if views.ndim == 2:
                return joseph(volume, views.to(volume), self.grid, self.detector_shape)
            pairs = zip(volume.split(1), views.to(volume), strict=True)
            return torch.cat([joseph(one, own, self.grid, self.detector_shape) for one, own in pairs])

    def adjoint(
        self, image: Float[Tensor, "B K V U"], views: Float[Tensor, "*_ K 13"] | None = None
    ) -> Float[Tensor, "B 1 X Y Z"]:
        """The exact transpose of `forward`: radiographs (B, K, V, U) to (B, 1, X, Y, Z).

        Raises:
            ValueError: if the radiographs' number or size does not fit the views or the detector.
        """
        self.check_image(image, views)
        if self.engine == "tigre":
            raise ValueError("TIGRE's back-projector is not the adjoint of its projector; use engine='torch'")
        return self.bind(views, image).adjoint(image)

    def of_hu(self, hu: Tensor, views: Tensor, energy_kev: float) -> Tensor:
        """Radiographs of one CT: line integrals (K, V, U) of HU (X, Y, Z). Around it there is air."""
        return self(hu_to_attenuation(hu[None, None].float(), energy_kev), views)[0]

    def bind(self, views: Tensor | None, like: Tensor) -> BoundProjector:
        """The operators for these views in the precision and on the device of `like` (whose batch they must fit)."""
        chosen = self._views(views, len(like)).detach().to(full_precision(like))
        return BoundProjector([self.operator(v) for v in (chosen[None] if chosen.ndim == 2 else chosen)])

    def operator(self, views: Tensor) -> LinearOperator:
        """The linear operator of one set of views (K, 13), kept for the next call with the same views."""
        key = repr((views.dtype, views.device)).encode() + views.detach().cpu().numpy().tobytes()
        with _CACHES:
            if key not in self._operators:
                self._operators[key] = make_operator(views.detach(), self.grid, self.detector_shape)
            self._operators.move_to_end(key)
            while len(self._operators) > _CACHED_OPERATORS:
                self._operators.popitem(last=False)
            return self._operators[key]

    def check_image(self, image: Tensor, views: Tensor | None = None) -> None:
        """Raise ValueError unless radiographs (B, K, V, U) fit the views and the detector."""
        if image.ndim != 4 or tuple(image.shape[2:]) != self.detector_shape:
            raise ValueError(f"image must be (B, K, *{self.detector_shape}), got {tuple(image.shape)}")
        count = self._views(views, len(image)).shape[-2]
        if image.shape[1] != count:
            raise ValueError(f"there are {count} views, but image {tuple(image.shape)} has {image.shape[1]}")

    def _check_volume(self, volume: Tensor) -> None:
        if volume.ndim != 5 or volume.shape[1] != 1 or tuple(volume.shape[2:]) != self.grid.shape:
            raise ValueError(f"volume must be (B, 1, *{self.grid.shape}), got {tuple(volume.shape)}")

    def _views(self, views: Tensor | None, batch: int) -> Tensor:
        chosen = self.views if views is None else views
        if chosen is None:
            raise ValueError("no views: pass views (K, 13) or (B, K, 13), or make the projector from a Geometry")
        if chosen.shape[-1] != VIEW_SIZE or chosen.ndim not in (2, 3) or (chosen.ndim == 3 and len(chosen) != batch):
            raise ValueError(f"views must be (K, 13) or ({batch}, K, 13), got {tuple(chosen.shape)}")
        return chosen


class BoundProjector:
    """A projector with its operators at hand: one for the whole batch, or one for each volume."""

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        self.operators = list(operators)

    def forward(self, volume: Float[Tensor, "B 1 X Y Z"]) -> Float[Tensor, "B K V U"]:
        """(B, 1, X, Y, Z) to (B, K, V, U)."""
        with torch.autocast(volume.device.type, enabled=False):
            return self._each([o.forward for o in self.operators], full_precision(volume)[:, 0])

    def adjoint(self, image: Float[Tensor, "B K V U"]) -> Float[Tensor, "B 1 X Y Z"]:
        """(B, K, V, U) to (B, 1, X, Y, Z)."""
        with torch.autocast(image.device.type, enabled=False):
            return self._each([o.transpose for o in self.operators], full_precision(image)).unsqueeze(1)

    @staticmethod
    def _each(maps: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        if len(maps) == 1:
            return maps[0](x)
        return torch.cat([apply(one) for apply, one in zip(maps, x.split(1), strict=True)])


def full_precision(x: Tensor) -> Tensor:
    """float32 and float64 as they are, anything else in float32; a plain tensor."""
    plain = x.as_subclass(Tensor)
    return plain if plain.dtype in (torch.float32, torch.float64) else plain.float()


class ProjectorCache:
    """Projectors by grid and detector shape, the latest few kept, with the operators that they keep.

    Args:
        size: how many.
    """

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self._projectors: OrderedDict[tuple[VolumeGrid, tuple[int, ...]], Projector] = OrderedDict()

    def __call__(self, grid: VolumeGrid, detector_shape: Sequence[int]) -> Projector:
        """The projector of a grid and a detector of (V, U) pixels."""
        key = grid, tuple(detector_shape)
        with _CACHES:
            if key not in self._projectors:
                self._projectors[key] = Projector(grid, detector_shape)
            self._projectors.move_to_end(key)
            while len(self._projectors) > self.size:
                self._projectors.popitem(last=False)
            return self._projectors[key]
