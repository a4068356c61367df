"""`prepare_batch` classes: simulate radiographs of a batch of volumes, or load stored ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.transforms import Randomizable
from torch import Tensor

from custom.core.attenuation import hu_to_attenuation
from custom.core.hu_window import hu_to_unit
from custom.geometry import VolumeGrid
from custom.networks.population_prior import OutOfFoldPriors
from custom.projection import Projector

__all__ = ["SimulatedRadiographs", "StoredRadiographs"]

AIR_HU = -1000.0
SAMPLINGS = ("random", "patch", "region", "grid", "coarse")
#: Truncated radiographs lose multiples of it on both sides: encoders halve their size three times.
BORDER_PIXELS = 4


class SimulatedRadiographs(PrepareBatch):
    """Computes the radiographs of a training step from CT volumes, at views drawn for this step.

    The volumes may reach beyond the reconstructed grid: tissue outside casts shadows, as at the clinic. A batch that
    holds an acquisition already ("image", "views" and "label", see `acquire`) keeps it.

    Args:
        acquisition: gives views (K, 13) at every call (`custom.geometry.acquisition_sampler.AcquisitionSampler`).
        grid: the grid that is reconstructed; its voxels are the label.
        body_grid: grid of the volumes in the batch, same spacing and centre, `grid` or larger.
        detector_shape: rows and columns (V, U).
        energy_kev: of the line integrals.
        hu_window: CT values that become -1 and 1 in the label.
        sampling: "random" points of the grid, the points of one "patch" of it, one "region" of it (a grid of its own,
            for `CoarseToFineReconstructor`), the whole "grid", or "coarse": the whole `coarse_grid`, for a network's
            volume network alone.
        points: number of random points.
        patch: voxels along each side of patch or region.
        regions_per_step: of sampling "region": so many of them from the same acquisition, one after the other in the
            label, as the network gives them.
        degradation: applied to the line integrals (B, K, V, U) with their views, such as `RandRadiograph`; None: none.
        pose_error: gives the views that the radiographs are taken from, of those that the network is told; None: the
            same.
        truncated_prob: of the steps, whose radiographs are smaller than `detector_shape`, down to
            `smallest_detector_shape`, so that the body reaches the border.
        smallest_detector_shape: rows and columns (V, U); None: never smaller.
        volume_key: batch entry (B, 1, X, Y, Z) in HU.
        cube_prob: probability that a step sees only what lies in `grid`, as where the papers project the cube itself.
        coarse_grid: for `sampling` "coarse"; of the spacing and centre of `body_grid`, and not larger.
        priors: chosen by the batch entry "fold" and handed to the network; None, or none in it: its own.

    Raises:
        ValueError: if the grids do not fit each other, or for fewer than one region.
    """

    def __init__(
        self,
        acquisition: Callable[[], Tensor],
        grid: VolumeGrid,
        body_grid: VolumeGrid,
        detector_shape: Sequence[int],
        energy_kev: float = 70.0,
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        sampling: str = "random",
        points: int = 32768,
        patch: int = 48,
        regions_per_step: int = 1,
        degradation: Callable[[Tensor, Tensor], Tensor] | None = None,
        pose_error: Callable[[Tensor], Tensor] | None = None,
        truncated_prob: float = 0.0,
        smallest_detector_shape: Sequence[int] | None = None,
        volume_key: str = "source",
        cube_prob: float = 0.0,
        coarse_grid: VolumeGrid | None = None,
        priors: OutOfFoldPriors | None = None,
    ) -> None:
        if sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {SAMPLINGS}, got {sampling!r}")
        if sampling == "coarse" and coarse_grid is None:
            raise ValueError("sampling 'coarse' needs a coarse_grid")
        target = coarse_grid if sampling == "coarse" and coarse_grid is not None else grid
        self.cube, self.region = ((..., *part.middle_of(body_grid)) for part in (grid, target))
        if sampling in ("patch", "region") and patch > min(grid.shape):
            raise ValueError(f"patch must not exceed the grid {grid.shape}, got {patch}")
        if regions_per_step < 1 or (regions_per_step > 1 and sampling != "region"):
            raise ValueError(
                f"regions_per_step must be at least 1, and more needs sampling 'region', got {regions_per_step} and "
                f"{sampling!r}"
            )
        self.acquisition, self.grid, self.body_grid = acquisition, target, body_grid
        self.projector, self.detector_shape = Projector(body_grid, detector_shape), tuple(detector_shape)
        self.energy_kev, self.hu_window = energy_kev, tuple(hu_window)
        self.sampling, self.points, self.patch, self.regions_per_step = sampling, points, patch, regions_per_step
        self.degradation, self.volume_key, self.cube_prob = degradation, volume_key, cube_prob
        self.pose_error, self.truncated_prob = pose_error, truncated_prob
        self.smallest_detector_shape = tuple(smallest_detector_shape or detector_shape)
        self.priors = priors

    def set_random_state(self, seed: int) -> None:
        """What is drawn from now on follows from `seed`: by torch's CPU generator, which it seeds, and by the parts."""
        torch.default_generator.manual_seed(seed)
        parts: tuple[Any, ...] = (self.acquisition, self.pose_error, self.degradation)
        for part in parts:
            own = int(torch.randint(2**31, ()))
            if isinstance(part, Randomizable):
                part.set_random_state(own)
            elif hasattr(part, "generator"):
                part.generator.manual_seed(own)

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple, dict[str, Any]]:
        """Radiographs (B, K, V, U), label (B, 1, *spatial), and the keywords of the network's forward."""

        def move(key: str) -> Tensor:
            return torch.as_tensor(batchdata[key]).to(device, torch.float32, non_blocking=non_blocking)

        acquired = "image" in batchdata
        image, views, hu = map(move, ("image", "views", "label")) if acquired else self.acquire(move(self.volume_key))
        label = hu_to_unit(hu, self.hu_window)
        keywords: dict[str, Any] = {
            "views": views,
            "view_mask": torch.ones(views.shape[:2], dtype=torch.bool, device=views.device),
        }
        if self.priors:
            keywords["priors"] = self.priors.of(batchdata["fold"])
        if self.sampling == "coarse":
            return image, label, (), {**keywords, "coarse": True}
        if self.sampling == "grid":
            return image, label, (), keywords
        if self.sampling == "region":
            corners = [self._corner() for _ in range(self.regions_per_step)]
            keywords["region"] = [self.grid.part(corner, (self.patch,) * 3) for corner in corners]
            return image, torch.cat([label[(..., *self._box(corner))] for corner in corners]), (), keywords
        points = self.grid.points(label.device)
        if self.sampling == "patch":
            box = self._box(self._corner())
            keywords["points"] = points[box].expand(len(label), -1, -1, -1, -1)
            return image, label[(..., *box)], (), keywords
        chosen = torch.randint(points[..., 0].numel(), (self.points,), device=label.device)
        keywords["points"] = points.reshape(-1, 3)[chosen].expand(len(label), -1, -1)
        return image, label.flatten(2)[..., chosen], (), keywords

    @torch.no_grad()
    def acquire(self, volume: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw views and take radiographs.

        Args:
            volume: (B, 1, X, Y, Z) in HU on `body_grid`, float32.

        Returns:
            Radiographs (B, K, V, U); the views (B, K, 13) that the network is told; the CT (B, 1, *spatial) in HU on
            the grid that is learnt.
        """
        if self.cube_prob and float(torch.rand(())) < self.cube_prob:
            whole, volume = volume, torch.full_like(volume, AIR_HU)
            volume[self.cube] = whole[self.cube]
        views = self.acquisition().to(volume.device).expand(len(volume), -1, -1)
        seen_from = views[0] if self.pose_error is None else self.pose_error(views[0])
        image = self.projector(hu_to_attenuation(volume, self.energy_kev), seen_from)
        if self.degradation is not None:
            image = self.degradation(image, seen_from)
        if self.truncated_prob and float(torch.rand(())) < self.truncated_prob:
            image = self._truncated(image)
        return image, views, volume[self.region]

    def _corner(self) -> list[int]:
        """The first voxel of a random patch."""
        return [int(torch.randint(n - self.patch + 1, (1,))) for n in self.grid.shape]

    def _box(self, corner: Sequence[int]) -> tuple[slice, slice, slice]:
        x, y, z = (slice(first, first + self.patch) for first in corner)
        return x, y, z

    def _truncated(self, image: Tensor) -> Tensor:
        """The middle of the radiographs: as much goes on both sides, so the views stay as they are."""
        for axis, smallest in zip((2, 3), self.smallest_detector_shape, strict=True):
            size = image.shape[axis]
            less = BORDER_PIXELS * int(torch.randint(max(0, size - smallest) // (2 * BORDER_PIXELS) + 1, (1,)))
            image = image.narrow(axis, less, size - 2 * less)
        return image.contiguous()


class StoredRadiographs(PrepareBatch):
    """Radiographs, views and (where there is one) the CT of a stored case, as `LoadRadiographsd` reads them.

    Args:
        hu_window: CT values that become -1 and 1 in the label.
    """

    def __init__(self, hu_window: Sequence[float] = (-1000.0, 1000.0)) -> None:
        self.hu_window = tuple(hu_window)

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, tuple, dict[str, Tensor]]:
        """Radiographs (B, K, V, U), label (B, 1, X, Y, Z) or None, and the keywords of the network's forward."""

        def move(key: str) -> Tensor:
            return torch.as_tensor(batchdata[key]).to(device, non_blocking=non_blocking)

        label = hu_to_unit(move("label"), self.hu_window) if "label" in batchdata else None
        return move("image").float(), label, (), {"views": move("views").float(), "view_mask": move("view_mask")}
