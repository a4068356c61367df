"""`PopulationPrior`: a Gaussian over chests, with the mean of a population and its principal components."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.core.checkpoints import describes_itself
from custom.geometry import ViewRow, VolumeGrid
from custom.projection import ProjectorCache
from custom.projection.linear_operator import exact_matmul

__all__ = ["OutOfFoldPriors", "PopulationPrior", "average_pixels", "sample_on"]


def average_pixels(image: Tensor, views: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Radiographs (B, K, V, U) with pixels `factor` times as large, and their views (B, K, 13).

    What does not fill a pixel at the last rows and columns is left out; the detector's centre moves accordingly.
    """
    if factor == 1:
        return image, views
    rows, columns = (n // factor * factor for n in image.shape[2:])
    cut_v, cut_u = image.shape[2] - rows, image.shape[3] - columns
    row = ViewRow.from_tensor(views)
    center = row.detector_center - (row.u_step * (cut_u / 2) + row.v_step * (cut_v / 2))
    moved = replace(row, detector_center=center, u_step=row.u_step * factor, v_step=row.v_step * factor)
    return F.avg_pool2d(image, factor), moved.to_tensor()


def sample_on(grid: VolumeGrid, volume: Tensor, volume_grid: VolumeGrid) -> Tensor:
    """A volume (B, C, X, Y, Z) that fills `volume_grid`, sampled trilinearly at the voxel centres of `grid`.

    It may have another number of voxels than that. Outside, its border goes on. The axes of the two grids are
    parallel, so that three small matrices do what would else take three coordinates for every voxel.
    """
    with torch.autocast(volume.device.type, enabled=False), exact_matmul():
        x, y, z = (_linear_weights(grid, volume, volume_grid, axis) for axis in range(3))
        sampled = (x @ volume.float().flatten(3)).unflatten(3, volume.shape[3:])
        return y @ sampled @ z.mT


def _linear_weights(grid: VolumeGrid, volume: Tensor, volume_grid: VolumeGrid, axis: int) -> Tensor:
    """(N, M): how much each voxel of `volume` along an axis has in each voxel of `grid`."""
    count = volume.shape[2 + axis]
    length = 2 * volume_grid.half_extent_mm[axis]
    from_border = grid.axis_mm(axis, volume.device, torch.float64) - volume_grid.center_mm[axis] + length / 2
    index = (from_border / length * count - 0.5).clamp(0, count - 1)
    voxels = torch.arange(count, device=volume.device, dtype=torch.float64)
    return (1 - (index[:, None] - voxels).abs()).clamp(min=0).float()


@describes_itself
class PopulationPrior(nn.Module):
    """Mean and principal components of a population of chests, and the member that fits given radiographs best.

    Members are x = mean + sum of c_i e_i with c standard normal (principal components scaled by their standard
    deviation, as in appearance models, Cootes et al. 2001). Radiographs are linear in x, so the conditional mean given
    them has a closed form (linear minimum mean square error). Values are in water: 0 for air, 1 for water.

    Args:
        grid: of mean and components; 10 mm voxels suffice for what few radiographs decide.
        components: number of components kept.
        noise_mm: standard deviation that a line integral may deviate by [mm of water]: what the components leave out.

    Attributes:
        mean, spread: (1, 1, X, Y, Z), of the population.
        components: int8 (R, X, Y, Z); `scales` (R,) times them are the components.
    """

    mean: Tensor
    spread: Tensor
    components: Tensor
    scales: Tensor

    def __init__(self, grid: VolumeGrid, components: int = 128, noise_mm: float = 30.0) -> None:
        super().__init__()
        if components < 1 or not noise_mm > 0:
            raise ValueError(f"components and noise_mm must be positive, got {components} and {noise_mm}")
        self.grid, self.noise_mm = grid, noise_mm
        self.register_buffer("mean", torch.zeros(1, 1, *grid.shape))
        self.register_buffer("spread", torch.ones(1, 1, *grid.shape))
        self.register_buffer("components", torch.zeros(components, *grid.shape, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(components))
        self._projector = ProjectorCache()

    @property
    def fitted(self) -> bool:
        """Whether it has seen a population, by itself or through its weights."""
        return bool((self.scales > 0).any())

    @torch.no_grad()
    def fit(self, population: Tensor, smallest_spread: float = 0.02) -> None:
        """Learn mean, spread and components.

        Args:
            population: (N, X, Y, Z) in water, on `grid`; overwritten.
            smallest_spread: added to the spread, so that no voxel is fixed.

        Raises:
            ValueError: for another grid, or fewer members than components.
        """
        count = len(self.components)
        if tuple(population.shape[1:]) != self.grid.shape:
            raise ValueError(f"a prior on {self.grid.shape} cannot be fitted to {tuple(population.shape)}")
        if len(population) <= count:
            raise ValueError(
                f"a prior of {count} components needs at least {count + 1} members, got {len(population)}: raise "
                f"prior_members to {count + 1} or more"
            )
        mean = population.mean(0)
        population -= mean
        population /= (len(population) - 1) ** 0.5
        self.mean.copy_(mean)
        self.spread.copy_(population.square().sum(0).sqrt() + smallest_spread)
        more = min(count + count // 4 + 8, *population.flatten(1).shape)
        with torch.random.fork_rng(devices=[]):  # a random projection, the same for the same population
            torch.manual_seed(0)
            _, values, vectors = torch.svd_lowrank(population.flatten(1), q=more, niter=3)
        found = (vectors * values).T[:count].reshape(count, *self.grid.shape)
        scales = found.flatten(1).abs().amax(1).clamp(min=1e-6) / 127
        self.scales.copy_(scales)
        self.components.copy_((found / scales[:, None, None, None]).round())

    @torch.no_grad()
    def estimate(self, water_path: Tensor, views: Tensor, view_mask: Tensor | None, factor: int) -> Tensor:
        """The conditional mean given radiographs.

        Args:
            water_path: line integrals (B, K, V, U) [mm of water].
            views: (B, K, 13).
            view_mask: bool (B, K), False for padding; None: every view counts.
            factor: pixels to average along each side, so that they are about as large as the grid's voxels.

        Returns:
            (B, 1, X, Y, Z) in water, on `grid`.
        """
        image, views = average_pixels(water_path, views, factor)
        directions = self.components * self.scales[:, None, None, None]
        estimates = []
        for b in range(len(image)):
            used = torch.ones_like(views[b, :, 0], dtype=torch.bool) if view_mask is None else view_mask[b]
            projector = self._projector(self.grid, image.shape[2:])
            seen = projector(directions[:, None], views[b][used]).flatten(1)
            surprise = (image[b][used] - projector(self.mean, views[b][used])[0]).flatten()
            normal = seen @ seen.T
            normal.diagonal().add_(self.noise_mm**2)
            weights = torch.linalg.solve(normal, seen @ surprise)
            estimates.append(torch.einsum("r,rxyz->xyz", weights, directions)[None] + self.mean[0])
        return torch.stack(estimates)

    def on(self, grid: VolumeGrid, volume: Tensor) -> Tensor:
        """A volume (B, 1, X, Y, Z) on the prior's grid, sampled on another."""
        return sample_on(grid, volume, self.grid)


class OutOfFoldPriors(nn.Module):
    """Priors of which each has not seen one part of the training patients.

    A patient whose warps a prior was fitted to is reconstructed better by it than an unknown one. A network that is
    trained on top of such estimates learns to leave them as they are; it must see them as bad as they will be in use.

    Args:
        prior: one of the same kind, which sees everybody and serves in use; None: there are none.
        folds: number of parts; 0: none, every training patient meets `prior`.

    Raises:
        ValueError: for a single fold, whose prior would have nobody left.
    """

    def __init__(self, prior: PopulationPrior | None, folds: int) -> None:
        super().__init__()
        if folds < 0 or folds == 1:
            raise ValueError(f"folds must be 0 or at least 2, got {folds}")
        copies = [] if prior is None else [copy.deepcopy(prior) for _ in range(folds)]
        self.priors: Sequence[PopulationPrior] = nn.ModuleList(copies)  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.priors)

    @torch.no_grad()
    def fit(self, population: Tensor, knows: Tensor) -> None:
        """Fit every prior to the members (N, X, Y, Z) in which its own fold has no part.

        Args:
            population: in water, on the priors' grid.
            knows: bool (N, folds), whether a patient of the fold gave a member tissue or shape.

        Raises:
            ValueError: if a fold leaves too few.
        """
        for fold, prior in enumerate(self.priors):
            others = ~knows[:, fold]
            if others.all():
                continue  # more folds than patients
            if int(others.sum()) <= len(prior.components):
                left, needed = int(others.sum()), len(prior.components) + 1
                enough = math.ceil(1.1 * len(others) * needed / left) if left else 0
                more = f"raise prior_members from {len(others)} to {enough}, " if left else ""
                raise ValueError(
                    f"without fold {fold} of the patients {left} members are left for a prior, which needs {needed}: "
                    f"{more}add training cases, or set prior_folds to 0"
                )
            prior.fit(population[others])

    def of(self, folds: Tensor) -> list[PopulationPrior] | None:
        """The prior that each of B cases may meet, by their folds (B,); None where there are none."""
        return [self.priors[int(fold)] for fold in folds] if len(self.priors) else None
