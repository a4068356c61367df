"""Writer of the uncertainty of one case: maps in NIfTI, numbers in CSV and JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from custom.core.files import write_json, write_nifti
from custom.metrics.posterior_calibration import interval_coverage, mean_error, summarise_case
from custom.metrics.sample_statistics import SampleStatistics, Volume
from custom.metrics.tables import write_csv

__all__ = ["write_maps", "write_summary"]


def write_maps(
    statistics: SampleStatistics,
    folder: str | os.PathLike[str],
    affine: npt.NDArray[np.floating],
    truth_hu: Volume | None = None,
) -> dict[str, Path]:
    """Writes the maps of one case as NIfTI.

    Args:
        statistics: of two or more samples.
        folder: one per case; made if missing.
        affine: (4, 4) voxel to RAS+ mm in the CT's frame: the volume grid's, moved by the isocentre
            (`VolumeGrid.affine`).
        truth_hu: (X, Y, Z) HU on the samples' grid, clipped to their window; None where it is not known.

    Returns:
        Paths by name: ``mean`` (int16 HU) and ``std`` (float32 HU), with a truth also ``absolute_bias``
        (float32, abs(mean - truth) in HU) and ``squared_bias`` (float32, HU^2).

    Raises:
        ValueError: fewer than two samples, shapes that differ, NaN in the truth; nothing is written then.
        OSError: the disk is full.
    """
    # int16 would wrap around in silence where someone's window goes beyond it.
    maps = {"mean": statistics.mean().round().clamp(-32768, 32767).to(torch.int16), "std": statistics.std().float()}
    if truth_hu is not None:
        error = mean_error(statistics, truth_hu)
        maps |= {"absolute_bias": error.abs().float(), "squared_bias": error.square().float()}
    paths = {name: Path(folder) / f"{name}.nii.gz" for name in maps}
    for name, path in paths.items():
        write_nifti(path, maps[name].numpy(), affine)
    return paths


def write_summary(
    statistics: SampleStatistics, folder: str | os.PathLike[str], truth_hu: Volume | None = None, **context: Any
) -> dict[str, float]:
    """Writes ``convergence.csv`` and ``uncertainty.json`` (context, summary, convergence, with a truth coverage).

    Args:
        statistics: of two or more samples.
        folder: one per case; made if missing.
        truth_hu: (X, Y, Z) HU on the samples' grid; None where it is not known.
        context: what the reader has to know beside the numbers: case, checkpoint, views, sampler steps, guidance
            scale, seed.

    Returns:
        What `summarise_case` gives.

    Raises:
        ValueError: as `summarise_case`; nothing is written then.
    """
    summary, convergence = summarise_case(statistics, truth_hu), statistics.convergence()
    content = {**context, "summary": summary, "convergence": convergence}
    if truth_hu is not None:
        content["coverage"] = interval_coverage(statistics, truth_hu)
    write_csv(convergence, Path(folder) / "convergence.csv")
    write_json(Path(folder) / "uncertainty.json", content, sort_keys=False)
    return summary
