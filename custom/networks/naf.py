"""Neural Attenuation Fields as a method: a network fitted to one patient's radiographs, without training data.

After Neural Attenuation Fields (Zha et al., MICCAI 2022). `FieldReconstructor` is called like the networks that are
trained; every call fits anew. What it knows is that attenuation lies within bounds and that there is air outside the
box; with few views most volumes that explain the radiographs are wrong, and nothing here prefers the right one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from tqdm import tqdm

from custom import __version__
from custom.core.attenuation import water_attenuation_per_mm
from custom.core.files import write_json
from custom.geometry import VolumeGrid, is_cone, rays
from custom.networks.attenuation_field import AttenuationField
from custom.networks.inputs import batched_views

__all__ = ["FieldFit", "FieldReconstructor", "FitRecord", "FitWriter"]

logger = logging.getLogger(__name__)

# Water paths of a chest in these units are about 1.
_UNIT_MM = 100.0
_POINTS_AT_A_TIME = 2**16
_LEAST_HELD_OUT, _MOST_HELD_OUT = 16, 2048


@dataclass
class FitRecord:
    """How a fit went.

    Attributes:
        steps: taken.
        seconds: wall time.
        reason: why it ended: "steps", "standstill" or "max_seconds".
        error_mm: root mean square error of the water paths of the rays held out, at the end.
        curve: [step, error_mm] at every check.
    """

    steps: int = 0
    seconds: float = 0.0
    reason: str = "steps"
    error_mm: float = math.nan
    curve: list[list[float]] = field(default_factory=list)


class _Rays:
    """The rays that cross a box, with what the radiographs say of them.

    Args:
        image: water paths (K, V, U) [mm].
        views: (K, 13).
        low, high: corners of the box [mm], (3,).
    """

    def __init__(self, image: Tensor, views: Tensor, low: Tensor, high: Tensor) -> None:
        origin, direction = (part.reshape(-1, 3) for part in rays(views, image.shape[1:]))
        safe = torch.where(direction.abs() < 1e-9, 1e-9, direction)
        first, second = (low - origin) / safe, (high - origin) / safe
        near = torch.minimum(first, second).amax(-1)
        far = torch.maximum(first, second).amin(-1)
        # A cone's rays begin at its source; parallel ones have no beginning.
        cone = is_cone(views).repeat_interleave(image[0].numel())
        near = torch.where(cone, near.clamp(min=0), near)
        hit = far > near
        self.origin, self.direction = origin[hit], direction[hit]
        self.near, self.length = near[hit], (far - near)[hit]
        self.path = image.reshape(-1)[hit]

    def __len__(self) -> int:
        return len(self.path)

    def integrals(self, network: nn.Module, index: Tensor, samples: int, jitter: Tensor | float) -> Tensor:
        """Water paths [mm] of some rays by one sample in each of `samples` equal parts of the ray, (R,)."""
        part = (torch.arange(samples, device=index.device) + jitter) / samples
        along = self.near[index, None] + self.length[index, None] * part
        points = self.origin[index, None] + along[..., None] * self.direction[index, None]
        return network(points).mean(-1) * self.length[index]


class FieldFit:
    """Fits a field to radiographs by its line integrals: stratified samples along random rays, squared error, Adam.

    A few rays are held out. The learning rate falls once, at `drop_at` of the fit or as soon as their error stands
    still; when it stands still again, the fit ends.

    Args:
        steps: of the optimizer at most.
        rays_per_step: drawn from all views at random.
        samples_per_ray: within the box.
        learning_rate: of Adam.
        drop: factor of the learning rate.
        drop_at: share of the fit (of its steps, or of `max_seconds` where that is less) after which it drops.
        held_out: share of the rays that are not trained on (16 to 2048 rays).
        check_interval: steps between two looks at them.
        patience: looks without improvement that make a standstill; None: the fit does not end early.
        min_improvement: relative, of their error.
        max_seconds: wall time; None: no limit. With one, the result depends on the machine.
        progress: show a bar where there is a terminal.

    Raises:
        ValueError: for numbers that make no fit.
    """

    def __init__(
        self,
        steps: int = 800,
        rays_per_step: int = 512,
        samples_per_ray: int = 96,
        learning_rate: float = 1e-2,
        drop: float = 0.1,
        drop_at: float = 0.5,
        held_out: float = 0.02,
        check_interval: int = 50,
        patience: int | None = 5,
        min_improvement: float = 0.01,
        max_seconds: float | None = None,
        progress: bool = True,
    ) -> None:
        whole = {"steps": steps, "rays_per_step": rays_per_step, "samples_per_ray": samples_per_ray}
        whole |= {"check_interval": check_interval, "patience": 1 if patience is None else patience}
        for name, number in whole.items():
            if number != int(number) or number < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {number}")
        if not learning_rate > 0 or (max_seconds is not None and not max_seconds > 0):
            raise ValueError(
                f"learning_rate and max_seconds must be greater than 0, got {learning_rate} and {max_seconds}"
            )
        for name, share in {"drop": drop, "drop_at": drop_at, "held_out": held_out}.items():
            if not 0 < share <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {share}")
        if held_out > 0.5 or not 0 <= min_improvement < 1:
            raise ValueError(
                f"held_out must be at most 0.5 and min_improvement in [0, 1), got {held_out} and {min_improvement}"
            )
        self.steps, self.rays_per_step, self.samples_per_ray = int(steps), int(rays_per_step), int(samples_per_ray)
        self.learning_rate, self.drop, self.drop_at = learning_rate, drop, drop_at
        self.held_out, self.check_interval, self.patience = held_out, int(check_interval), patience
        self.min_improvement, self.max_seconds, self.progress = min_improvement, max_seconds, progress

    def settings(self) -> dict[str, Any]:
        """All numbers, by name."""
        return {name: value for name, value in vars(self).items() if name != "progress"}

    def __call__(self, network: nn.Module, known: _Rays, generator: torch.Generator) -> FitRecord:
        """Fit; `generator` (CPU) draws all that is random, so that a seed gives the same field again.

        Raises:
            RuntimeError: if the error is no longer finite.
        """
        device = known.path.device
        order = torch.randperm(len(known), generator=generator).to(device)
        count = min(max(round(self.held_out * len(known)), _LEAST_HELD_OUT), _MOST_HELD_OUT, len(known) // 2)
        held, trained = order[:count], order[count:]
        optimizer = torch.optim.Adam(network.parameters(), self.learning_rate, fused=True)
        record = FitRecord()
        dropped, still, best, told = False, 0, math.inf, 0
        start = time.monotonic()
        with tqdm(total=self.steps, desc="fit", unit="step", disable=None if self.progress else True) as bar:
            while True:
                chosen = trained[torch.randint(len(trained), (self.rays_per_step,), generator=generator).to(device)]
                jitter = torch.rand(self.rays_per_step, self.samples_per_ray, generator=generator).to(device)
                found = known.integrals(network, chosen, self.samples_per_ray, jitter)
                loss = (found - known.path[chosen]).div(_UNIT_MM).square().mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                record.steps += 1
                bar.update()
                share = self._share(record.steps, time.monotonic() - start)
                if record.steps % self.check_interval == 0 or share >= 1:
                    record.error_mm = self._error_mm(network, known, held)
                    record.curve.append([record.steps, round(record.error_mm, 4)])
                    bar.set_postfix_str(f"held out {record.error_mm:.2f} mm")
                    improved = record.error_mm < best * (1 - self.min_improvement)
                    best, still = (record.error_mm, 0) if improved else (best, still + 1)
                    if int(10 * share) > told:  # for a log file, where there is no bar
                        told = int(10 * share)
                        logger.info("step %d: held-out error %.2f mm of water", record.steps, record.error_mm)
                if share >= 1:
                    record.reason = "steps" if record.steps >= self.steps else "max_seconds"
                    break
                stands = self.patience is not None and still >= self.patience
                if dropped and stands:
                    record.reason = "standstill"
                    break
                if not dropped and (stands or share >= self.drop_at):
                    dropped, still = True, 0
                    for group in optimizer.param_groups:
                        group["lr"] *= self.drop
        record.seconds = round(time.monotonic() - start, 2)
        return record

    def _share(self, steps: int, seconds: float) -> float:
        """How much of the fit is done, 0 to 1."""
        return max(steps / self.steps, 0.0 if self.max_seconds is None else seconds / self.max_seconds)

    @torch.no_grad()
    def _error_mm(self, network: nn.Module, known: _Rays, held: Tensor) -> float:
        pieces = held.split(max(1, _POINTS_AT_A_TIME // self.samples_per_ray))
        found = torch.cat([known.integrals(network, piece, self.samples_per_ray, 0.5) for piece in pieces])
        error = float((found - known.path[held]).square().mean().sqrt())
        if not math.isfinite(error):
            raise RuntimeError(f"the fit has diverged (error {error}): lower learning_rate")
        return error


class FieldReconstructor(nn.Module):
    """Radiographs of any views to a CT volume, by a field that is fitted in every call.

    Args:
        grid: the volume that is reconstructed, in the isocentre frame.
        field: keywords of `AttenuationField` (without half_side_mm, center_mm and bounds).
        fit: keywords of `FieldFit`.
        body_margin_mm: how far the field reaches beyond the grid on both sides of x, y and z: radiographs see tissue
            outside the cube, too. Outside the box there is air.
        views: (K, 13) for `forward(image)` without views; None: views must be passed.
        energy_kev: photon energy of the line integrals.
        hu_window: CT values that become -1 and 1; they bound the attenuation.
        seed: of every fit.
        coordinate_half_side_mm: of the cube that the field's encoding covers; None: the smallest around the box.

    Attributes:
        field: the field of the last case.
        records: a `FitRecord` for each case of the last call.

    Raises:
        ValueError: for options that make no sense.
    """

    views: Tensor | None

    def __init__(
        self,
        grid: VolumeGrid,
        field: Mapping[str, Any] | None = None,
        fit: Mapping[str, Any] | None = None,
        body_margin_mm: Sequence[float] = (0.0, 0.0, 0.0),
        views: Tensor | Sequence[Sequence[float]] | None = None,
        energy_kev: float = 70.0,
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        seed: int = 0,
        coordinate_half_side_mm: float | None = None,
    ) -> None:
        super().__init__()
        if len(body_margin_mm) != 3 or not min(body_margin_mm) >= 0:
            raise ValueError(f"body_margin_mm must be three numbers, not negative, got {list(body_margin_mm)}")
        self.grid, self.energy_kev, self.seed = grid, energy_kev, int(seed)
        self.hu_window = (float(hu_window[0]), float(hu_window[1]))
        self.fit = FieldFit(**(fit or {}))
        half = [extent + float(margin) for extent, margin in zip(grid.half_extent_mm, body_margin_mm, strict=True)]
        bounds = max(0.0, self.hu_window[0] / 1000 + 1), self.hu_window[1] / 1000 + 1
        side = max(half) if coordinate_half_side_mm is None else float(coordinate_half_side_mm)
        if side < max(half):
            raise ValueError(
                f"coordinate_half_side_mm must be at least {max(half):g}, half the box's longest side, got {side:g}"
            )
        self.field = AttenuationField(half_side_mm=side, center_mm=grid.center_mm, bounds=bounds, **(field or {}))
        self.box_half_mm = tuple(half)
        fixed = None if views is None else torch.as_tensor(views, dtype=torch.float32)
        self.register_buffer("views", fixed, persistent=False)
        self.records: list[FitRecord] = []

    def forward(self, image: Tensor, views: Tensor | None = None, view_mask: Tensor | None = None) -> Tensor:
        """Fit a field to each case and sample it.

        Args:
            image: line integrals (B, K, V, U).
            views: (B, K, 13) or (K, 13); None for the views given at construction.
            view_mask: bool (B, K), False for padding; None: every view counts.

        Returns:
            Intensities at the voxel centres, `hu_window` as [-1, 1]: (B, 1, X, Y, Z).

        Raises:
            ValueError: if image, views and mask do not match, no view counts, or no ray meets the box.
            RuntimeError: if a fit diverges.
        """
        views = self._check(image, views, view_mask)
        self.records = []
        # An evaluator calls without gradients, an application in inference mode: a fit needs them.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
            volumes = []
            for b in range(len(image)):
                chosen = slice(None) if view_mask is None else view_mask[b].bool().to(image.device).clone()
                paths = image[b].detach().float().clone()[chosen] / water_attenuation_per_mm(self.energy_kev)
                volumes.append(self._reconstruct(paths, views[b].detach().clone()[chosen]))
            return torch.stack(volumes)

    def _check(self, image: Tensor, views: Tensor | None, view_mask: Tensor | None) -> Tensor:
        views = batched_views(image, self.views if views is None else views, view_mask)
        if image.shape[1] == 0 or (view_mask is not None and not bool(view_mask.any(1).all())):
            raise ValueError("every case needs at least one view that counts")
        return views.to(image.device, torch.float32)

    def _reconstruct(self, paths: Tensor, views: Tensor) -> Tensor:
        """One case: water paths (K, V, U) [mm] to (1, X, Y, Z)."""
        center, half = paths.new_tensor(self.grid.center_mm), paths.new_tensor(self.box_half_mm)
        known = _Rays(paths, views, center - half, center + half)
        if len(known) < 2 * _LEAST_HELD_OUT:
            raise ValueError(
                f"only {len(known)} rays of {len(views)} views meet the volume at {self.grid.center_mm} mm: do the "
                "views belong to these radiographs?"
            )
        generator = torch.Generator().manual_seed(self.seed)
        self.field.reset(generator)
        record = self.fit(self.field, known, generator)
        self.records.append(record)
        logger.info(
            "%d views, %d rays: %d steps in %.1f s (%s), held-out error %.2f mm of water",
            len(views), len(known), record.steps, record.seconds, record.reason, record.error_mm,
        )  # fmt: skip
        return self.sample()

    @torch.no_grad()
    def sample(self, grid: VolumeGrid | None = None) -> Tensor:
        """The field of the last case at the voxel centres of a grid within the box, (1, X, Y, Z), as `forward`."""
        grid = grid or self.grid
        low, high = self.hu_window
        points = grid.points(self.field.center_mm.device).reshape(-1, 3)
        density = torch.cat([self.field(piece) for piece in points.split(_POINTS_AT_A_TIME)])
        unit = ((density - 1) * 1000 - low) / (high - low) * 2 - 1
        return unit.clamp(-1, 1).reshape(1, *grid.shape)


class FitWriter:
    """Handler that writes how each fit went: `<name>_fit.json`.

    Args:
        output_dir: folder.
        network: the `FieldReconstructor` of the evaluator.
        name_key: entry of the batch that names the case, as `LoadRadiographsd` sets it.

    Raises:
        OSError: if the folder cannot be made.
    """

    def __init__(self, output_dir: str, network: FieldReconstructor, name_key: str = "name") -> None:
        self.folder, self.network, self.name_key = Path(output_dir), network, name_key
        # Now, not after a fit of minutes.
        self.folder.mkdir(parents=True, exist_ok=True)

    def attach(self, engine: Engine) -> None:
        """Registers with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        names = batch[self.name_key] if isinstance(batch, Mapping) else [case[self.name_key] for case in batch]
        for name, record in zip(names, self.network.records, strict=True):
            content = {
                "software": f"fewview-ct {__version__}",
                "case": name,
                **asdict(record),
                "seed": self.network.seed,
                "box_half_mm": list(self.network.box_half_mm),
                "parameters": sum(p.numel() for p in self.network.field.parameters()),
                "settings": self.network.fit.settings(),
            }
            write_json(self.folder / f"{name}_fit.json", content)
