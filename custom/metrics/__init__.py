"""Metrics of volumes, of posterior samples and of cohorts, with the tables and files that hold them."""

from custom.metrics.image_metrics import (
    BODY_THRESHOLD_HU,
    HU_WINDOW,
    METRIC_NAMES,
    MIN_PATIENTS_FOR_INTERVAL,
    SSIM_WINDOW,
    TISSUE_BANDS_HU,
    VolumeMetric,
    body_mask,
    check_window,
    evaluate_batch,
    evaluate_volume,
    mae,
    psnr,
    rmse,
    ssim3d,
    summarise_cohort,
)
from custom.metrics.posterior_calibration import (
    COVERAGE_LEVELS,
    interval_coverage,
    summarise_case,
)
from custom.metrics.sample_statistics import NOISE_GROUP, SampleStatistics, Volume
from custom.metrics.uncertainty_files import write_maps, write_summary

__all__ = [
    "BODY_THRESHOLD_HU",
    "COVERAGE_LEVELS",
    "HU_WINDOW",
    "METRIC_NAMES",
    "MIN_PATIENTS_FOR_INTERVAL",
    "NOISE_GROUP",
    "SSIM_WINDOW",
    "TISSUE_BANDS_HU",
    "SampleStatistics",
    "Volume",
    "VolumeMetric",
    "body_mask",
    "check_window",
    "evaluate_batch",
    "evaluate_volume",
    "interval_coverage",
    "mae",
    "psnr",
    "rmse",
    "ssim3d",
    "summarise_case",
    "summarise_cohort",
    "write_maps",
    "write_summary",
]
