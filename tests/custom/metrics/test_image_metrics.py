"""Metrics against values computed by hand, scikit-image and MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import SSIMMetric

from custom.metrics import (
    METRIC_NAMES,
    TISSUE_BANDS_HU,
    VolumeMetric,
    body_mask,
    evaluate_batch,
    evaluate_volume,
    ssim3d,
    summarise_cohort,
)


def thorax(side: int = 32) -> np.ndarray:
    """An ellipse of soft tissue with two lungs, a trachea and a spine, HU (X, Y, Z)."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij")
    volume = np.full((side,) * 3, -1000.0, dtype=np.float32)
    volume[(x / 0.9) ** 2 + (y / 0.7) ** 2 < 1] = 40
    for centre in (-0.4, 0.4):
        volume[((x - centre) / 0.28) ** 2 + (y / 0.4) ** 2 + (z / 0.9) ** 2 < 1] = -850
    volume[x**2 + (y - 0.1) ** 2 < 0.005] = -1000
    volume[x**2 + (y + 0.45) ** 2 < 0.02] = 600
    return volume


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    truth = thorax()
    noise = np.random.default_rng(0).normal(0, 60, truth.shape).astype(np.float32)
    return truth + noise, truth


def test_psnr_by_hand() -> None:
    truth = np.zeros((12, 12, 12))
    pred = np.full_like(truth, 20.0)
    values = evaluate_volume(pred, truth)
    assert values["psnr_range"] == pytest.approx(20 * math.log10(2000 / 20))
    assert values["psnr_4095"] - values["psnr_range"] == pytest.approx(20 * math.log10(4095 / 2000))
    assert values["psnr_4095"] - values["psnr_range"] == pytest.approx(6.22, abs=0.005)
    assert values["mae_hu"] == values["rmse_hu"] == pytest.approx(20)


def test_both_volumes_are_clipped_to_the_window() -> None:
    truth = np.full((12, 12, 12), 3000.0)
    pred = np.full_like(truth, 1200.0)
    assert evaluate_volume(pred, truth)["psnr_range"] == math.inf
    assert evaluate_volume(pred, truth, hu_window=(-1000, 2000))["mae_hu"] == pytest.approx(800)


def test_psnr_and_ssim_equal_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    pred, truth = (np.clip(volume, -1000, 1000) + 1000 for volume in pair)
    values = evaluate_volume(*pair)
    assert values["psnr_range"] == pytest.approx(skimage.peak_signal_noise_ratio(truth, pred, data_range=2000))
    peer = skimage.structural_similarity(
        truth.astype(np.float64),
        pred.astype(np.float64),
        data_range=2000,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert values["ssim"] == pytest.approx(peer, abs=1e-5)
    assert values["ssim"] < 0.99


def test_ssim_equals_monai_on_unequal_axes() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand((14, 19, 11), generator=generator)
    pred = (truth + 0.2 * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    peer = SSIMMetric(spatial_dims=3, data_range=1.0)(pred[None, None], truth[None, None]).item()
    assert ssim3d(pred, truth, 1.0) == pytest.approx(peer, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(error=st.floats(0.5, 900), sign=st.sampled_from([-1, 1]))
def test_ssim_of_equals_is_one_and_psnr_falls_with_the_error(error: float, sign: int) -> None:
    truth = thorax(16)
    inside = np.where(truth > -1000, np.clip(truth + sign * error, -1000, 1000), truth)
    worse = evaluate_volume(inside, truth, names=["psnr_range", "ssim", "rmse_hu"])
    assert worse["psnr_range"] == pytest.approx(20 * math.log10(2000 / worse["rmse_hu"]))
    assert -1 <= worse["ssim"] < 1
    assert evaluate_volume(truth, truth, names=["ssim"])["ssim"] == pytest.approx(1)


def test_bands_hold_the_whole_body_and_only_their_own_tissue() -> None:
    truth = thorax()
    body = body_mask(truth)
    counts = {}
    for band, (low, high) in TISSUE_BANDS_HU.items():
        voxels = body & (truth >= low) & (truth < high)
        counts[band] = voxels.sum()
        pred = truth.copy()
        pred[voxels] += -100 if band != "air" else 100
        values = evaluate_volume(pred, truth)
        for other in TISSUE_BANDS_HU:
            assert values[f"mae_hu_{other}"] == pytest.approx(100 if other == band else 0), (band, other)
            assert values[f"rmse_hu_{other}"] == pytest.approx(100 if other == band else 0)
    assert all(counts.values())
    assert sum(counts.values()) == body.sum()


def test_bands_are_set_on_the_unclipped_truth() -> None:
    truth = thorax()
    values = evaluate_volume(truth + 10, truth, hu_window=(-200, 300))
    assert values["mae_hu_bone"] == 0
    assert values["mae_hu_soft_tissue"] == pytest.approx(10)
    assert values["mae_hu_lung"] == 0


def test_missing_band_is_nan() -> None:
    truth = thorax()
    truth[truth == 600] = 40
    assert math.isnan(evaluate_volume(truth, truth)["mae_hu_bone"])


def test_body_holds_lung_and_trachea_but_no_outside_air_or_couch() -> None:
    truth = thorax()
    truth[:, 1, :] = 200
    body = body_mask(truth)
    assert body[truth == -850].all()
    assert body[16, 17, 16]
    assert not body[0, 0].any()
    assert not body[:, 1, :].any()


def test_body_keeps_a_lung_that_the_edge_cuts_open() -> None:
    cut = thorax()[11:]
    assert (cut[0] == -850).any()
    body = body_mask(cut)
    assert body[cut == -850].all()
    assert not body[:, 0].any()


def test_body_of_air_is_empty() -> None:
    assert not body_mask(np.full((5, 5, 5), -1000.0)).any()
    values = evaluate_volume(np.full((11,) * 3, -1000.0), np.full((11,) * 3, -1000.0))
    assert math.isnan(values["mae_hu_body"])


def test_network_range_equals_hu(pair: tuple[np.ndarray, np.ndarray]) -> None:
    low, high = -900.0, 1100.0
    batch = [torch.from_numpy((volume - low) / (high - low) * 2 - 1)[None, None] for volume in pair]
    expected = evaluate_volume(*pair, hu_window=(low, high))
    (found,) = evaluate_batch(*batch, hu_window=(low, high))
    for name in METRIC_NAMES:
        assert found[name] == pytest.approx(expected[name], rel=1e-3), name


def test_bfloat16_prediction_is_measured_in_float32(pair: tuple[np.ndarray, np.ndarray]) -> None:
    pred, truth = (torch.from_numpy(volume) / 1000 for volume in pair)
    coarse = evaluate_batch(pred[None, None].bfloat16(), truth[None, None], names=["psnr_range"])[0]
    assert coarse["psnr_range"] == pytest.approx(evaluate_volume(*pair, names=["psnr_range"])["psnr_range"], abs=0.05)


def test_volume_metric_as_key_metric_of_an_evaluator() -> None:
    from monai.data import DataLoader, Dataset, decollate_batch
    from monai.engines import SupervisedEvaluator

    cases = [{"image": torch.zeros(1, 12, 12, 12) + level, "label": torch.zeros(1, 12, 12, 12)} for level in (0.1, 0.2)]
    metrics = {
        name: IgniteMetricHandler(metric_fn=VolumeMetric(name), output_transform=from_engine(["pred", "label"]))
        for name in ("psnr_range", "mae_hu", "mae_hu_bone")
    }
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases), batch_size=2),
        network=torch.nn.Identity(),
        key_val_metric={"psnr_range": metrics["psnr_range"]},
        additional_metrics={name: metrics[name] for name in ("mae_hu", "mae_hu_bone")},
        decollate=True,
    )
    evaluator.run()
    expected = np.mean([20 * math.log10(2000 / error) for error in (100, 200)])
    assert evaluator.state.metrics["psnr_range"] == pytest.approx(expected, rel=1e-5)
    assert evaluator.state.metrics["mae_hu"] == pytest.approx(150, rel=1e-5)
    assert evaluator.state.metric_details["psnr_range"].shape == (2, 1)
    assert len(decollate_batch(evaluator.state.metric_details["mae_hu"])) == 2


def test_bad_input_names_what_is_wrong(pair: tuple[np.ndarray, np.ndarray]) -> None:
    pred, truth = pair
    with pytest.raises(ValueError, match="differ in shape"):
        evaluate_volume(pred[1:], truth)
    holed = pred.copy()
    holed[0, 0, :3] = np.nan
    with pytest.raises(ValueError, match="reconstruction holds 3 voxels"):
        evaluate_volume(holed, truth)
    with pytest.raises(ValueError, match="unknown metric"):
        evaluate_volume(pred, truth, names=["psnr"])
    with pytest.raises(ValueError, match="unknown metric"):
        VolumeMetric("psnr")
    with pytest.raises(ValueError, match="hu_window"):
        evaluate_volume(pred, truth, hu_window=(1000, -1000))
    with pytest.raises(ValueError, match="at least 11 voxels"):
        evaluate_volume(pred[:10], truth[:10])
    with pytest.raises(ValueError, match="one volume"):
        evaluate_volume(np.stack([pred, pred]), np.stack([truth, truth]))
    with pytest.raises(ValueError, match=r"\(B, 1, X, Y, Z\)"):
        evaluate_batch(torch.zeros(1, 2, 12, 12, 12), torch.zeros(1, 2, 12, 12, 12))
    with pytest.raises(ValueError, match="before aggregate"):
        VolumeMetric().aggregate()
    with pytest.raises(ValueError, match="NaN"):
        VolumeMetric()(torch.full((1, 1, 12, 12, 12), math.nan), torch.zeros(1, 1, 12, 12, 12))


def rows(count: int) -> list[dict[str, object]]:
    return [{"case": f"c{i}", "patient": f"p{i}", "psnr_range": 20.0 + i} for i in range(count)]


def test_cohort_interval_is_reproducible_and_about_the_normal_one() -> None:
    first = summarise_cohort(rows(20))["metrics"]["psnr_range"]
    assert first == summarise_cohort(rows(20))["metrics"]["psnr_range"]
    assert first["mean"] == first["median"] == pytest.approx(29.5)
    half = 1.96 * np.std(np.arange(20)) / math.sqrt(20)
    assert first["ci95"] == pytest.approx((29.5 - half, 29.5 + half), abs=0.15)
    assert summarise_cohort(rows(20), seed=1)["metrics"]["psnr_range"]["ci95"] != first["ci95"]


def test_cohort_below_five_patients_has_no_interval_but_every_patient() -> None:
    summary = summarise_cohort(rows(4))
    assert summary["metrics"]["psnr_range"]["ci95"] is None
    assert list(summary["per_patient"]) == ["p0", "p1", "p2", "p3"]
    assert summarise_cohort(rows(5))["metrics"]["psnr_range"]["ci95"] is not None


def test_two_scans_of_one_patient_count_once() -> None:
    twice = [{"patient": "a", "mae_hu": 10.0}, {"patient": "a", "mae_hu": 30.0}, {"patient": "b", "mae_hu": 60.0}]
    summary = summarise_cohort(twice)
    assert summary["patients"] == 2
    assert summary["metrics"]["mae_hu"]["mean"] == pytest.approx(40)


def test_cohort_leaves_out_nan_and_survives_infinity() -> None:
    values = [math.nan, math.inf, 30.0, 31.0, 32.0, 33.0]
    metric = summarise_cohort([{"patient": str(i), "psnr_range": v} for i, v in enumerate(values)])["metrics"]
    assert metric["psnr_range"]["patients"] == 5
    assert metric["psnr_range"]["ci95"][1] == math.inf
    assert not math.isnan(metric["psnr_range"]["ci95"][0])
    with pytest.raises(ValueError, match="no case"):
        summarise_cohort([])
