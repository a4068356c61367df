"""`PosteriorEvaluator`: many samples of every case, their mean and their spread, in files and pictures.

MONAI's evaluator with the sampler as its network, so that the metrics and the writers of the other bundles serve here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor

from custom.core.attenuation import water_attenuation_per_mm
from custom.core.hu_window import hu_to_unit, unit_to_hu
from custom.geometry import VolumeGrid
from custom.metrics import SampleStatistics, body_mask, evaluate_volume, write_maps, write_summary
from custom.metrics.spectrum import spectrum_ratio
from custom.metrics.tables import read_csv, write_csv
from custom.models import save_volume
from custom.projection import Projector
from custom.report.uncertainty_figures import UncertaintyMaps, uncertainty_figure
from custom.sampling import PosteriorSampler, collect_samples

__all__ = ["PosteriorEvaluator", "reprojection_error_mm"]

logger = logging.getLogger(__name__)

#: Error of single samples against the radiographs, before and after the correction of decoded samples.
BEFORE, AFTER = "sample_reprojection_error_mm_before", "sample_reprojection_error_mm"


@torch.no_grad()
def reprojection_error_mm(hu: Tensor, image: Tensor, views: Tensor, grid: VolumeGrid, energy_kev: float) -> float:
    """Root mean square difference between radiographs and those of a volume [mm of water].

    Args:
        hu: (X, Y, Z) on `grid`. Around it there is air: of a CT that was cropped, tissue outside counts as difference.
        image: line integrals (K, V, U).
        views: (K, 13).
        grid: of the volume.
        energy_kev: of the line integrals.
    """
    again = Projector(grid, image.shape[1:]).of_hu(hu, views, energy_kev)
    return float((again - image).square().mean().sqrt()) / water_attenuation_per_mm(energy_kev)


class PosteriorEvaluator(SupervisedEvaluator):
    """Draws N samples of every case. The engine's "pred" is their mean.

    For every case a folder of its own in `output_dir`, named after the batch entry "case" or the radiographs' file:
    mean.nii.gz and std.nii.gz (HU; with a truth also the bias), convergence.csv, uncertainty.json (the numbers of
    `custom.metrics.summarise_case`, and the error against the radiographs), uncertainty.png, and with a truth
    samples.csv with the metrics and the power spectrum of every single sample. Where the sampler corrects decoded
    samples, samples.csv has every sample's error against the radiographs before and after it, and uncertainty.json
    its mean over the samples. A killed run goes on with the next batch of samples.

    Args:
        samples: N, at least 2.
        sample_seed: of the noise.
        output_dir: folder of the cases' folders.
        keep_samples: write every sample as NIfTI too.
        metric_names: of single samples.
        context: what goes into uncertainty.json beside the numbers, such as the checkpoint's hash.
        **kwargs: of MONAI's `SupervisedEvaluator`; `network` is a `PosteriorSampler`, batches hold one case.

    Raises:
        ValueError: for fewer than two samples; while running, for batches of several cases.
    """

    def __init__(
        self,
        *args: Any,
        samples: int,
        output_dir: str | os.PathLike[str],
        sample_seed: int = 0,
        keep_samples: bool = False,
        metric_names: Sequence[str] = ("psnr_range", "psnr_4095", "ssim"),
        context: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if samples < 2:
            raise ValueError(f"samples must be at least 2, to have a spread, got {samples}")
        super().__init__(*args, **kwargs)
        self.samples, self.sample_seed, self.output_dir = samples, sample_seed, Path(output_dir)
        self.keep_samples, self.metric_names, self.context = keep_samples, list(metric_names), dict(context or {})
        self._states: list[Path] = []
        self.add_event_handler(Events.COMPLETED, self._forget)

    def _forget(self, _engine: Any) -> None:
        """All cases are done: what a killed run would have needed goes."""
        for path in self._states:
            path.unlink(missing_ok=True)
        self._states = []

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict:
        image, label, _, keywords = self.prepare_batch(batchdata, engine.state.device, engine.non_blocking)
        if len(image) != 1:
            raise ValueError(f"samples are drawn for one case at a time: set the batch size to 1, got {len(image)}")
        sampler: Any = self.network
        sampler.eval()
        used = keywords["view_mask"][0].bool()
        image, views = image[0][used], keywords["views"][0][used]
        folder = self.output_dir / _case_name(batchdata)
        truth = None if label is None else unit_to_hu(label[0, 0], sampler.hu_window).cpu()
        affine = sampler.grid.affine(_isocenter(batchdata))
        statistics, rows = self._draw(sampler, image, views, folder, truth, _isocenter(batchdata))
        write_maps(statistics, folder, affine, truth)
        mean = statistics.mean().float()
        error = reprojection_error_mm(mean, image.cpu(), views.cpu(), sampler.grid, sampler.denoiser.energy_kev)
        summary = write_summary(
            statistics,
            folder,
            truth,
            **self.context,
            views=len(views),
            steps=sampler.steps,
            guidance_scale=sampler.guidance_scale,
            residual_scale=sampler.residual_scale,
            recentring=sampler.recentring,
            atlas=None if sampler.atlas is None else sampler.atlas.settings,
            consistency_weight=sampler.consistency_weight,
            consistency_iterations=getattr(sampler.consistency, "iterations", None),
            consistency_final=getattr(sampler.final_consistency, "iterations", 0),
            seed=self.sample_seed,
            reprojection_error_mm=error,
            **_average(rows, BEFORE, AFTER),
        )
        logger.info(
            "%s: %d samples, spread %.0f HU in the body, error against the radiographs %.1f mm of water",
            folder, statistics.count, summary["std_hu_body"], error,
        )  # fmt: skip
        maps = UncertaintyMaps.of(statistics, truth)
        caption = f"{len(views)} views, {statistics.count} samples, spread {summary['std_hu_body']:.0f} HU in the body"
        uncertainty_figure(
            {"": maps}, sampler.grid.spacing_mm, folder / "uncertainty.png", title=folder.name, caption=caption
        )
        self._states.append(folder / "state.pt")
        pred = hu_to_unit(mean, sampler.hu_window)[None, None].to(engine.state.device)
        engine.state.output = {Keys.IMAGE: image[None], Keys.LABEL: label, Keys.PRED: pred}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _draw(
        self,
        sampler: PosteriorSampler,
        image: Tensor,
        views: Tensor,
        folder: Path,
        truth: Tensor | None,
        isocenter: Sequence[float] | None,
    ) -> tuple[SampleStatistics, list[dict[str, Any]]]:
        """Statistics of the samples, and the rows of samples.csv."""
        table, state = folder / "samples.csv", folder / "state.pt"
        if not state.is_file():  # what is there is of another run
            for path in (table, *folder.glob("sample_*.nii.gz")):
                path.unlink(missing_ok=True)
        old = read_csv(table) if table.is_file() else []
        rows: dict[int, dict[str, Any]] = {int(row["sample"]): {**row, "sample": int(row["sample"])} for row in old}
        compared = sampler.final_consistency is not None

        def errors(samples: Tensor) -> list[float]:
            energy_kev = sampler.denoiser.energy_kev
            return [reprojection_error_mm(one, image, views, sampler.grid, energy_kev) for one in samples[:, 0]]

        def decoded(first: int, samples: Tensor) -> None:
            for index, error in enumerate(errors(samples), first):
                rows[index] = {"sample": index, BEFORE: error}

        def measure(first: int, samples: Tensor) -> None:
            for index, sample in enumerate(samples[:, 0].cpu(), first):
                if self.keep_samples:
                    save_volume(folder / f"sample_{index:04d}.nii.gz", sample, sampler.grid, isocenter)
                if truth is not None:
                    values = evaluate_volume(sample, truth, sampler.hu_window, self.metric_names)
                    values |= spectrum_ratio(sample, truth, sampler.grid.spacing_mm)
                    rows[index] = {**rows.get(index, {}), "sample": index, **values}
            if compared:
                for index, error in enumerate(errors(samples), first):
                    rows[index][AFTER] = error
            if rows:
                write_csv([rows[index] for index in sorted(rows)], table)

        body = None if truth is None else torch.from_numpy(body_mask(truth))
        before = decoded if compared else None
        found = collect_samples(sampler, image, views, self.samples, self.sample_seed, state, body, measure, before)
        return found, [rows[index] for index in sorted(rows)]


def _average(rows: Sequence[Mapping[str, Any]], *names: str) -> dict[str, float]:
    """Means of the columns that there are."""
    return {name: sum(float(row[name]) for row in rows) / len(rows) for name in names if rows and name in rows[0]}


def _case_name(batch: Mapping[str, Any]) -> str:
    name = batch.get("case") or batch.get("name") or ["radiographs"]
    return str(name[0] if isinstance(name, list | tuple) else name)


def _isocenter(batch: Mapping[str, Any]) -> list[float] | None:
    value = batch.get("isocenter_mm")
    return None if value is None else torch.as_tensor(value).reshape(-1, 3)[0].tolist()
