"""Data consistency: SIRT iterations from a predicted volume towards the measured radiographs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.core.attenuation import attenuation_bounds, attenuation_to_hu, hu_to_attenuation
from custom.core.hu_window import hu_to_unit, unit_to_hu
from custom.geometry import VolumeGrid
from custom.projection import ProjectorCache, sirt

__all__ = ["ReprojectionCorrection"]


class ReprojectionCorrection:
    """Moves a volume towards its radiographs by SIRT, with the true projector.

    Radiographs see tissue outside the cube too. Were there air around it, that tissue would be put into the cube: the
    CT values of some patients get worse than they were. So SIRT works on a wider grid. It starts around the cube with
    the values at the cube's border, which fade to air over the margin, and moves them as freely as those inside; they
    are not part of the result. (`inr_recon` starts there with its volume network's prediction, which a sample lacks.)

    Args:
        grid: of the volumes.
        iterations: of SIRT.
        energy_kev: of the line integrals.
        hu_window: CT values of -1 and 1.
        margin_mm: how far the wider grid reaches beyond the cube on both sides of x, y and z. By default as the
            coarse grid of `inr_recon`: from left to right, where a chest is wider than a cube of 320 mm.

    Attributes:
        settings: all that the result depends on beside volume and radiographs.

    Raises:
        ValueError: for fewer than one iteration, or a negative margin.
    """

    def __init__(
        self,
        grid: VolumeGrid,
        iterations: int = 10,
        energy_kev: float = 70.0,
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        margin_mm: Sequence[float] = (60.0, 0.0, 0.0),
    ) -> None:
        if iterations < 1:
            raise ValueError(f"a correction needs at least 1 iteration, got {iterations}")
        if min(margin_mm) < 0:
            raise ValueError(f"margin_mm must not be negative, got {tuple(margin_mm)}")
        self.grid, self.iterations, self.energy_kev = grid, int(iterations), energy_kev
        self.hu_window = (float(hu_window[0]), float(hu_window[1]))
        self.margin = [round(mm / spacing) for mm, spacing in zip(margin_mm, grid.spacing_mm, strict=True)]
        self.wide = grid.padded(self.margin)
        self.settings = (self.iterations, energy_kev, self.hu_window, *self.margin)
        self._projector = ProjectorCache(1)

    @torch.no_grad()
    def __call__(self, volume: Tensor, image: Tensor, views: Tensor, view_mask: Tensor | None = None) -> Tensor:
        """The corrected volume.

        Args:
            volume: (B, 1, X, Y, Z) on `grid`, `hu_window` as [-1, 1]; what lies beyond is clipped.
            image: line integrals (B, K, V, U).
            views: (B, K, 13) or (K, 13).
            view_mask: bool (B, K), False for padding; None: every view counts.

        Returns:
            (B, 1, X, Y, Z), clipped to [-1, 1].

        Raises:
            ValueError: as `sirt`, for shapes that do not fit each other.
        """
        if views.ndim == 3 and bool((views == views[:1]).all()):
            views = views[0]  # one operator for the whole batch
        bounds = attenuation_bounds(self.hu_window, self.energy_kev)
        start = self._surrounded(hu_to_attenuation(unit_to_hu(volume, self.hu_window), self.energy_kev))
        projector = self._projector(self.wide, image.shape[2:])
        moved = sirt(projector, image, views, self.iterations, bounds, start, view_mask)
        inside = moved[(..., *self.grid.middle_of(self.wide))]
        return hu_to_unit(attenuation_to_hu(inside, self.energy_kev), self.hu_window)

    def _surrounded(self, attenuation: Tensor) -> Tensor:
        """Attenuation on the cube to attenuation on the wider grid."""
        if not any(self.margin):
            return attenuation
        wide = F.pad(attenuation, [n for side in reversed(self.margin) for n in (side, side)], mode="replicate")
        for axis, margin in enumerate(self.margin):
            steps = torch.arange(wide.shape[2 + axis], device=wide.device)
            outside = (margin - steps).clamp(min=0) + (steps - (len(steps) - 1 - margin)).clamp(min=0)
            fade = 1 - outside / (margin + 1)
            wide = wide * fade.reshape([-1 if other == axis else 1 for other in range(3)])
        return wide
