"""Image metrics of a reconstructed CT (PSNR, SSIM, MAE, RMSE): one definition for every bundle.

Both volumes are clipped to the HU window first and compared over the whole cube, so that values which no network can
produce (metal, air below the window) weigh nothing. ``psnr_range`` uses the width of the window as peak;
``psnr_4095`` uses 4095, the peak of a 12-bit scanner that several papers report, and is 6.22 dB higher at the default
window for the very same error. They are never to be compared with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from monai.metrics.utils import do_metric_reduction
from monai.utils import MetricReduction
from scipy import ndimage

from custom.core.morphology import largest_piece

__all__ = [
    "HU_WINDOW",
    "METRIC_NAMES",
    "TISSUE_BANDS_HU",
    "VolumeMetric",
    "body_mask",
    "evaluate_batch",
    "evaluate_volume",
    "mae",
    "psnr",
    "rmse",
    "ssim3d",
    "summarise_cohort",
]

HU_WINDOW = (-1000.0, 1000.0)
PEAK_12_BIT = 4095.0
SSIM_WINDOW = 11
#: Voxels along an axis whose smoothing matrix fits into memory (64 MB).
LONGEST_AXIS = 4096
SSIM_SIGMA = 1.5
BODY_THRESHOLD_HU = -500.0
OUTSIDE_AIR_HU = -950.0
MIN_PATIENTS_FOR_INTERVAL = 5

TISSUE_BANDS_HU: dict[str, tuple[float, float]] = {
    "air": (-math.inf, -950.0),
    "lung": (-950.0, -500.0),
    "soft_tissue": (-500.0, 200.0),
    "bone": (200.0, math.inf),
}
"""HU limits [low, high) of the tissue bands, applied to the truth inside the body; together they hold every voxel."""

METRIC_NAMES: tuple[str, ...] = (
    "psnr_range",
    "psnr_4095",
    "ssim",
    "mae_hu",
    "rmse_hu",
    "mae_hu_body",
    "rmse_hu_body",
    *(f"{kind}_hu_{band}" for band in TISSUE_BANDS_HU for kind in ("mae", "rmse")),
)


def check_window(hu_window: Sequence[float]) -> tuple[float, float]:
    low, high = (float(limit) for limit in hu_window)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"hu_window must be two finite numbers, the lower first; got {list(hu_window)}")
    return low, high


def _as_volume(values: torch.Tensor | np.ndarray, name: str) -> torch.Tensor:
    """Returns a plain float32 (X, Y, Z) tensor, leading axes of length 1 dropped, every value finite."""
    if isinstance(values, torch.Tensor):
        volume = torch.Tensor(values.detach()).as_subclass(torch.Tensor)
    else:
        volume = torch.from_numpy(np.ascontiguousarray(values))
    while volume.ndim > 3 and volume.shape[0] == 1:
        volume = volume[0]
    if volume.ndim != 3:
        raise ValueError(f"{name} must be one volume (X, Y, Z); got shape {tuple(values.shape)}")
    volume = volume.to(torch.float32)
    bad = int((~torch.isfinite(volume)).sum())
    if bad:
        raise ValueError(f"{name} holds {bad} voxels of {volume.numel()} that are NaN or infinite; nothing to measure")
    return volume


def mae(pred: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean absolute error in the unit of the input, NaN where there is no voxel."""
    return (pred - truth).abs().mean(dtype=torch.float64).item() if pred.numel() else math.nan


def rmse(pred: torch.Tensor, truth: torch.Tensor) -> float:
    """Root mean squared error in the unit of the input, NaN where there is no voxel."""
    return math.sqrt((pred - truth).square().mean(dtype=torch.float64).item()) if pred.numel() else math.nan


def psnr(pred: torch.Tensor, truth: torch.Tensor, peak: float) -> float:
    """Peak signal-to-noise ratio ``20 log10(peak / RMSE)`` in dB; infinite for equal volumes."""
    error = rmse(pred, truth)
    return math.inf if error == 0 else 20 * math.log10(peak / error)


def _smoothing_matrix(length: int, device: torch.device) -> torch.Tensor:
    """Gaussian weights as a banded matrix (length - window + 1, length): one product smooths an axis, borders cut."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    weights /= weights.sum()
    matrix = torch.zeros(length - SSIM_WINDOW + 1, length, dtype=torch.float64)
    for row in range(matrix.shape[0]):
        matrix[row, row : row + SSIM_WINDOW] = weights
    return matrix.to(device=device, dtype=torch.float32)


def _smooth(volume: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    along_x, along_y, along_z = matrices
    smoothed = torch.tensordot(along_x, volume, dims=1)
    smoothed = torch.matmul(along_y, smoothed)
    return torch.matmul(smoothed, along_z.T)


def ssim3d(pred: torch.Tensor, truth: torch.Tensor, data_range: float) -> float:
    """Structural similarity in 3D: Gaussian window of 11 voxels, sigma 1.5, borders left out.

    The same value as MONAI's ``SSIMMetric(spatial_dims=3)`` and scikit-image's Gaussian variant, but the window is
    applied axis by axis: a 128^3 pair takes well under a second on one core.

    Args:
        pred: (X, Y, Z) values from 0 to ``data_range``. SSIM's luminance term is not blind to an offset, so HU are
            counted from the lower end of the window, never from water.
        truth: the same shape and values.
        data_range: width of the window, fixed; never taken from the volumes themselves.

    Raises:
        ValueError: an axis shorter than the window, or longer than any CT's.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, eq. 13.
    """
    if min(pred.shape) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs at least {SSIM_WINDOW} voxels along each axis; got shape {tuple(pred.shape)}")
    if max(pred.shape) > LONGEST_AXIS:
        raise ValueError(f"SSIM takes at most {LONGEST_AXIS} voxels along each axis; got shape {tuple(pred.shape)}")
    pred, truth = pred / data_range, truth / data_range
    matrices = [_smoothing_matrix(length, pred.device) for length in pred.shape]
    with torch.autocast(pred.device.type, enabled=False):
        mean_p, mean_t = _smooth(pred, matrices), _smooth(truth, matrices)
        var_p = _smooth(pred * pred, matrices) - mean_p * mean_p
        var_t = _smooth(truth * truth, matrices) - mean_t * mean_t
        covariance = _smooth(pred * truth, matrices) - mean_p * mean_t
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_p * mean_t + c1) * (2 * covariance + c2)
    similarity /= (mean_p * mean_p + mean_t * mean_t + c1) * (var_p + var_t + c2)
    return similarity.mean(dtype=torch.float64).item()


def body_mask(truth_hu: torch.Tensor | np.ndarray) -> np.ndarray:
    """Everything inside the patient's skin, lungs and airways included.

    The largest piece of tissue above -500 HU, and in each axial slice whatever it does not leave to the outside air.
    A lung that the edge of the volume cuts open stays in the body: a region that touches the edge counts as outside
    air only where its median is below -950 HU.

    Args:
        truth_hu: (X, Y, Z) HU, third axis from inferior to superior or back.

    Returns:
        bool (X, Y, Z); all False when nothing is above -500 HU.
    """
    volume = truth_hu.detach().cpu().numpy() if isinstance(truth_hu, torch.Tensor) else np.asarray(truth_hu)
    tissue = largest_piece(volume > BODY_THRESHOLD_HU)
    body = np.zeros(volume.shape, dtype=bool)
    for z in np.flatnonzero(tissue.any(axis=(0, 1))):
        gaps, _ = ndimage.label(~tissue[:, :, z])
        rim = np.concatenate([gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]])
        open_gaps = [gap for gap in np.unique(rim) if gap != 0]
        outside = [gap for gap in open_gaps if np.median(volume[:, :, z][gaps == gap]) < OUTSIDE_AIR_HU]
        body[:, :, z] = ~np.isin(gaps, outside)
    return body


def _prepare_pair(
    pred_hu: torch.Tensor | np.ndarray, truth_hu: torch.Tensor | np.ndarray, hu_window: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor, tuple[float, float]]:
    low, high = check_window(hu_window)
    pred, truth = _as_volume(pred_hu, "the reconstruction"), _as_volume(truth_hu, "the truth")
    if pred.shape != truth.shape:
        raise ValueError(
            f"reconstruction and truth differ in shape: {tuple(pred.shape)} and {tuple(truth.shape)}; "
            "resample one onto the grid of the other first"
        )
    return pred, truth.to(pred.device), (low, high)


def _tissue_errors(
    pred: torch.Tensor, truth: torch.Tensor, truth_hu: torch.Tensor, names: Sequence[str]
) -> dict[str, float]:
    """Errors by band; ``truth_hu`` is the truth before clipping, since a narrow window must not move a voxel's band."""
    body = torch.from_numpy(body_mask(truth_hu)).to(truth.device)
    values: dict[str, float] = {}
    pred, truth, truth_hu = pred[body], truth[body], truth_hu[body]
    for region, (low, high) in {"body": (-math.inf, math.inf), **TISSUE_BANDS_HU}.items():
        inside = (truth_hu >= low) & (truth_hu < high)
        for kind, function in (("mae", mae), ("rmse", rmse)):
            if f"{kind}_hu_{region}" in names:
                values[f"{kind}_hu_{region}"] = function(pred[inside], truth[inside])
    return values


def evaluate_volume(
    pred_hu: torch.Tensor | np.ndarray,
    truth_hu: torch.Tensor | np.ndarray,
    hu_window: Sequence[float] = HU_WINDOW,
    names: Sequence[str] = METRIC_NAMES,
) -> dict[str, float]:
    """Compares a reconstruction with the truth.

    Args:
        pred_hu: (X, Y, Z) HU; leading axes of length 1 are dropped.
        truth_hu: (X, Y, Z) HU on the same grid.
        hu_window: both volumes are clipped to it; its width is the range of ``psnr_range`` and of SSIM.
        names: which of ``METRIC_NAMES`` to compute, all by default.

    Returns:
        A value per name: PSNR in dB, SSIM from -1 to 1, MAE and RMSE in HU: of the whole cube (``mae_hu``), inside
        the body (``mae_hu_body``) and of the voxels inside the body whose true HU lie in a band of
        ``TISSUE_BANDS_HU`` (``mae_hu_lung``, ...; NaN where the truth has no such voxel).

    Raises:
        ValueError: shapes that differ, NaN or infinite voxels, an unknown name, an axis too short for SSIM.
    """
    unknown = [name for name in names if name not in METRIC_NAMES]
    if unknown:
        raise ValueError(f"unknown metric {unknown}; known are {list(METRIC_NAMES)}")
    pred, raw_truth, (low, high) = _prepare_pair(pred_hu, truth_hu, hu_window)
    pred, truth = pred.clamp(low, high), raw_truth.clamp(low, high)
    width = high - low
    whole: dict[str, Callable[[], float]] = {
        "psnr_range": lambda: psnr(pred, truth, width),
        "psnr_4095": lambda: psnr(pred, truth, PEAK_12_BIT),
        "ssim": lambda: ssim3d(pred - low, truth - low, width),
        "mae_hu": lambda: mae(pred, truth),
        "rmse_hu": lambda: rmse(pred, truth),
    }
    values = {name: whole[name]() for name in names if name in whole}
    if len(values) < len(names):
        values |= _tissue_errors(pred, truth, raw_truth, names)
    return {name: values[name] for name in names}


def evaluate_batch(
    pred: torch.Tensor,
    truth: torch.Tensor,
    hu_window: Sequence[float] = HU_WINDOW,
    names: Sequence[str] = METRIC_NAMES,
    in_hu: bool = False,
) -> list[dict[str, float]]:
    """Compares the cases of a batch.

    Args:
        pred: (B, 1, X, Y, Z) in network range: -1 at the lower end of the window and 1 at the upper.
        truth: the same shape and range.
        hu_window: HU at -1 and at 1; both volumes are clipped to it.
        names: which of ``METRIC_NAMES`` to compute.
        in_hu: the volumes are in HU already (a postprocessing that scales them back runs before metrics).
    """
    low, high = check_window(hu_window)
    if pred.shape != truth.shape or pred.ndim != 5 or pred.shape[1] != 1:
        raise ValueError(f"expected two (B, 1, X, Y, Z) tensors; got {tuple(pred.shape)} and {tuple(truth.shape)}")

    def to_hu(volume: torch.Tensor) -> torch.Tensor:
        return volume if in_hu else (volume.float() + 1) * ((high - low) / 2) + low

    return [
        evaluate_volume(to_hu(one_pred[0]), to_hu(one_truth[0]), hu_window, names)
        for one_pred, one_truth in zip(pred, truth, strict=True)
    ]


class VolumeMetric(CumulativeIterationMetric):
    """One metric of this module for MONAI's engines, on volumes in network range [-1, 1].

    Wrap it as ``IgniteMetricHandler(metric_fn=VolumeMetric("psnr_range"), output_transform=from_engine(["pred",
    "label"]))`` for ``key_val_metric`` or ``additional_metrics``.

    Args:
        name: one of ``METRIC_NAMES``.
        hu_window: HU at -1 and at 1.
        reduction: MONAI's reduction over the cases; cases without the tissue band (NaN) are left out.
        in_hu: volumes are in HU already.

    Raises:
        ValueError: an unknown name; while running, a prediction with NaN (a mean that skips it would praise a
            network that has diverged).
    """

    def __init__(
        self,
        name: str = "psnr_range",
        hu_window: Sequence[float] = HU_WINDOW,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        in_hu: bool = False,
    ) -> None:
        super().__init__()
        if name not in METRIC_NAMES:
            raise ValueError(f"unknown metric {name!r}; known are {list(METRIC_NAMES)}")
        self.name = name
        self.hu_window = check_window(hu_window)
        self.reduction = reduction
        self.in_hu = in_hu

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        if y is None:
            raise ValueError(f"{self.name} compares with a true volume; got none")
        values = [case[self.name] for case in evaluate_batch(y_pred, y, self.hu_window, [self.name], self.in_hu)]
        return torch.tensor(values, dtype=torch.float32).unsqueeze(1)

    def aggregate(self, reduction: MetricReduction | str | None = None) -> torch.Tensor:
        """Reduces the cases seen since the last reset; see MONAI's ``do_metric_reduction``."""
        data = self.get_buffer()
        if not isinstance(data, torch.Tensor):
            raise ValueError(f"{self.name}: no case was measured before aggregate()")
        result, _ = do_metric_reduction(data, reduction or self.reduction)
        return result


def summarise_cohort(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Mean, median and, for five or more patients, the bootstrap 95% interval of the mean.

    The patient is the unit: several cases of one patient are averaged first, so that they do not count twice.

    Args:
        rows: one mapping per case: its metrics as numbers, and its "patient" (where that is missing, each case is
            taken for a patient of its own). Other texts are ignored.
        seed: of the bootstrap; the same rows give the same interval.

    Returns:
        ``{"patients": count, "per_patient": {patient: {metric: value}}, "metrics": {metric: {"mean", "median",
        "patients", "ci95"}}}``; ``ci95`` is (low, high), or None below five patients with a value, where every
        patient has to be shown instead.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no case to summarise")
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for index, row in enumerate(rows):
        grouped.setdefault(str(row.get("patient") or row.get("case") or index), []).append(row)
    names = [name for name, value in rows[0].items() if isinstance(value, int | float) and not isinstance(value, bool)]
    per_patient = {
        patient: {name: _mean([float(case[name]) for case in cases]) for name in names}
        for patient, cases in grouped.items()
    }
    metrics: dict[str, dict[str, Any]] = {}
    for name in names:
        values = np.array([patient[name] for patient in per_patient.values()])
        values = values[~np.isnan(values)]
        enough = len(values) >= MIN_PATIENTS_FOR_INTERVAL
        metrics[name] = {
            "mean": _mean(values),
            "median": float(np.median(values)) if len(values) else math.nan,
            "patients": len(values),
            "ci95": _bootstrap_interval(values, seed) if enough else None,
        }
    return {"patients": len(per_patient), "per_patient": per_patient, "metrics": metrics}


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else math.nan


def _bootstrap_interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    draws = np.random.default_rng(seed).integers(0, len(values), size=(10_000, len(values)))
    means = values[draws].mean(axis=1)
    # No interpolation between two means: an infinite PSNR (equal volumes) would turn the limit into NaN.
    return float(np.quantile(means, 0.025, method="lower")), float(np.quantile(means, 0.975, method="higher"))
