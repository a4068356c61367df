"""The verb `fewview-ct evaluate`: compares reconstructions on disk with the true volumes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
from rich.console import Console
from scipy import ndimage
from tqdm import tqdm

from custom.core.names import inside, no_link
from custom.data.datalist import read_datalist
from custom.data.volume_files import load_hu
from custom.metrics import HU_WINDOW, evaluate_volume
from custom.metrics.tables import cohort_table, write_metrics
from custom.report.figures import reconstruction_figure

__all__ = ["evaluate", "load_hu", "pair_cases", "resample_to"]

logger = logging.getLogger(__name__)

SUFFIXES = (".nii.gz", ".nii")
DATALIST = "datalist.json"
AIR_HU = -1000.0
# Voxel centres may differ by this share of a voxel: affines go through float32 in NIfTI headers.
GRID_TOLERANCE = 0.01


class Case(NamedTuple):
    """A reconstruction and the volume it is compared with."""

    name: str
    patient: str
    pred: Path
    truth: Path


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _volumes(folder: Path) -> dict[str, Path]:
    return {_stem(path): path for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES)}


def _truths(folder: Path) -> dict[str, tuple[str, Path]]:
    """Patient and file of every true volume by case, from a datalist or the folder's own files."""
    datalist = folder / DATALIST
    if not datalist.is_file():
        return {name: (name, path) for name, path in _volumes(folder).items()}
    entries: list[dict[str, Any]] = []
    for part in read_datalist(datalist).values():
        if isinstance(part, list):
            entries.extend(entry for entry in part if isinstance(entry, dict) and "label" in entry)
    return {
        str(entry.get("case", _stem(Path(entry["label"])))): (
            str(entry.get("patient") or entry.get("case") or _stem(Path(entry["label"]))),
            folder / entry["label"],
        )
        for entry in entries
    }


def pair_cases(pred: Path, truth: Path) -> list[Case]:
    """Finds the true volume of every reconstruction.

    Args:
        pred: a NIfTI file, or a folder of them named ``<case>.nii.gz``.
        truth: a NIfTI file, or a folder of them with the same names, or a folder that `prepare` wrote.

    Raises:
        FileNotFoundError: a path that does not exist, a folder without volumes.
        ValueError: a file beside a folder, a reconstruction without its truth.
    """
    for path in (pred, truth):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    if pred.is_file() and truth.is_file():
        return [Case(_stem(truth), _stem(truth), pred, truth)]
    if truth.is_file():
        raise ValueError(f"{pred} is a folder but {truth} a file; give two files or two folders")
    preds = {_stem(pred): pred} if pred.is_file() else _volumes(pred)
    if not preds:
        raise FileNotFoundError(f"{pred}: no NIfTI volume ({' or '.join(SUFFIXES)}) in this folder")
    truths = _truths(truth)
    orphans = [name for name in preds if name not in truths]
    if orphans:
        missing, there = (", ".join([*names[:10], *["..."][: len(names) > 10]]) for names in (orphans, sorted(truths)))
        raise ValueError(f"{truth} has no volume for {missing}; it has {there or 'none'}")
    return [Case(name, truths[name][0], path, truths[name][1]) for name, path in preds.items()]


def resample_to(
    volume: npt.NDArray[np.float32],
    affine: npt.NDArray[np.float64],
    shape: Sequence[int],
    target_affine: npt.NDArray[np.float64],
) -> npt.NDArray[np.float32]:
    """Trilinear values of a volume on another grid; air (-1000 HU) outside of it."""
    to_source = np.linalg.inv(affine) @ target_affine
    return ndimage.affine_transform(
        volume, to_source[:3, :3], to_source[:3, 3], tuple(shape), order=1, mode="constant", cval=AIR_HU
    )


def _same_grid(
    pred: npt.NDArray[np.float32], affine: npt.NDArray[np.float64], truth_shape: tuple[int, ...], truth_affine: Any
) -> bool:
    if pred.shape != truth_shape:
        return False
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * [*np.array(pred.shape) - 1, 1]
    distance = np.linalg.norm((corners @ (affine - truth_affine).T)[:, :3], axis=1).max()
    return bool(distance <= GRID_TOLERANCE * nib.affines.voxel_sizes(truth_affine).min())


def _measure(case: Case, output: Path, hu_window: Sequence[float], resample: bool, figures: bool) -> dict[str, Any]:
    truth, truth_affine = load_hu(case.truth)
    pred, affine = load_hu(case.pred)
    if not _same_grid(pred, affine, truth.shape, truth_affine):
        if not resample:
            raise ValueError(
                f"{case.pred} {pred.shape} and {case.truth} {truth.shape} lie on different grids; "
                "give --resample to bring the reconstruction onto the grid of the truth"
            )
        pred = resample_to(pred, affine, truth.shape, truth_affine)
    try:
        values = evaluate_volume(pred, truth, hu_window)
    except ValueError as error:
        raise ValueError(f"{case.pred} against {case.truth}: {error}") from error
    if figures:
        spacing = nib.affines.voxel_sizes(truth_affine).tolist()
        caption = f"PSNR {values['psnr_range']:.2f} dB  ·  SSIM {values['ssim']:.3f}  ·  MAE {values['mae_hu']:.1f} HU"
        reconstruction_figure(
            None,
            truth,
            pred,
            spacing,
            inside(output, f"figures/{case.name}.png", "case"),
            title=case.name,
            caption=caption,
        )
    return {"case": case.name, "patient": case.patient, **values}


def evaluate(
    pred: str,
    truth: str,
    output: str = "outputs/evaluation",
    hu_window: tuple[float, float] = HU_WINDOW,
    resample: bool = False,
    figures: bool = True,
) -> None:
    """Compares reconstructions with the true volumes: table, CSV, JSON and a picture per case.

    Args:
        pred: a NIfTI file in HU, or a folder of them named <case>.nii.gz.
        truth: a NIfTI file in HU, or a folder of them with the same names, or a folder that `prepare` wrote.
        output: folder for metrics.csv, metrics.json and figures/<case>.png.
        hu_window: both volumes are clipped to it; its width is the peak of psnr_range.
        resample: bring a reconstruction on another grid onto that of the truth, instead of refusing it.
        figures: write the pictures.

    Raises:
        FileNotFoundError: a path that does not exist, a folder without volumes.
        ValueError: a reconstruction without its truth, on another grid, or with NaN.
    """
    cases = pair_cases(Path(pred), Path(truth))
    folder = no_link(Path(output))
    rows = [
        _measure(case, folder, hu_window, resample, figures)
        for case in tqdm(cases, desc="evaluate", unit="case", disable=len(cases) == 1)
    ]
    write_metrics(rows, folder, hu_window=list(hu_window), pred=str(pred), truth=str(truth), resampled=resample)
    Console().print(cohort_table(rows))
    logger.info("written to %s", folder)
