"""Statistics of samples against numpy, closed forms and posteriors whose calibration is known."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy import stats

from custom.metrics import (
    NOISE_GROUP,
    SampleStatistics,
    interval_coverage,
    summarise_case,
    write_maps,
    write_summary,
)
from custom.metrics.posterior_calibration import mean_error

SHAPE = (5, 4, 3)
EVERYWHERE = torch.ones(SHAPE, dtype=torch.bool)


def draws(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """(count, 1, X, Y, Z) HU within the window, float32."""
    return 200 * torch.randn(count, 1, *shape, generator=torch.Generator().manual_seed(seed)).clamp(-4, 4)


def collect(samples: torch.Tensor, body: torch.Tensor | None = EVERYWHERE) -> SampleStatistics:
    statistics = SampleStatistics(body=body)
    statistics.update(samples)
    return statistics


def gaussian_case(
    count: int, spread: float = 1.0, offset: float = 0.0, side: int = 28
) -> tuple[SampleStatistics, torch.Tensor]:
    """Truth from a Gaussian of mean 0 and a std that varies by voxel, samples from `spread` times that std."""
    generator = torch.Generator().manual_seed(3)
    shape = (side,) * 3
    std = 20 + 60 * torch.rand(shape, generator=generator, dtype=torch.float64)
    truth = std * torch.randn(shape, generator=generator, dtype=torch.float64)
    statistics = SampleStatistics(body=torch.ones(shape))
    for _ in range(count):
        statistics.update(offset + spread * std * torch.randn(shape, generator=generator, dtype=torch.float64))
    return statistics, truth


@pytest.mark.parametrize("count", [2, 5, 16, 20, 32])
def test_noises_that_sum_to_zero_give_a_better_mean_and_the_same_variance(count: int) -> None:
    groups = torch.randn(2, NOISE_GROUP, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    groups = (groups - groups.mean(1, keepdim=True)) * math.sqrt(NOISE_GROUP / (NOISE_GROUP - 1))
    shape = (30, 10, 10)
    statistics = SampleStatistics(body=torch.ones(shape), noise_group=NOISE_GROUP)
    for sample in groups.flatten(0, 1)[:count]:
        statistics.update(100 * sample.reshape(shape))
    share = statistics.mean_variance_share()
    assert share == pytest.approx(float((statistics.mean() / 100).square().mean()), rel=0.1, abs=1e-12)
    assert share <= (0 if count % NOISE_GROUP == 0 else 1 / count)
    assert float(statistics.variance().mean()) == pytest.approx(100**2, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 9), seed=st.integers(0, 2**31), offset=st.floats(-900, 900), scale=st.floats(1e-4, 20))
def test_mean_and_variance_equal_numpy(count: int, seed: int, offset: float, scale: float) -> None:
    samples = offset + scale / 200 * draws(count, seed).double()
    statistics = collect(samples)
    expected = samples[:, 0].numpy()
    np.testing.assert_allclose(statistics.mean(), expected.mean(0), rtol=1e-13, atol=1e-10)
    # A naive sum of squares would lose every digit here: offset 900, spread 1e-4.
    np.testing.assert_allclose(statistics.variance(), expected.var(0, ddof=1), rtol=1e-6, atol=1e-18)
    np.testing.assert_allclose(statistics.variance(unbiased=False), expected.var(0), rtol=1e-6, atol=1e-18)
    np.testing.assert_allclose(statistics.std(), expected.std(0, ddof=1), rtol=1e-6, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 2**31))
def test_no_bit_depends_on_how_samples_are_batched(sizes: list[int], seed: int) -> None:
    samples = draws(sum(sizes), seed)
    one, split = collect(samples), SampleStatistics(body=EVERYWHERE)
    for batch in samples.split(sizes):
        split.update(batch)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, split.state_dict()[name]), name


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 9), seed=st.integers(0, 2**31), shift=st.floats(-150, 150))
def test_squared_error_is_squared_bias_plus_variance(count: int, seed: int, shift: float) -> None:
    samples, truth = draws(count, seed).double(), draws(1, seed + 1)[0, 0].double() + shift
    statistics = collect(samples)
    squared_bias, variance = mean_error(statistics, truth).square(), statistics.variance(unbiased=False)
    direct = (samples[:, 0] - truth).square().mean(0)
    torch.testing.assert_close(squared_bias + variance, direct, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(squared_bias, (samples[:, 0].mean(0) - truth) ** 2, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(variance, samples[:, 0].var(0, correction=0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("done", [0, 1, 2, 5, 8])
def test_a_killed_run_resumes_to_the_same_bits(done: int) -> None:
    samples, whole, killed = draws(11), collect(draws(11)), SampleStatistics(body=EVERYWHERE)
    if done:
        killed.update(samples[:done])
    file = io.BytesIO()
    torch.save(killed.state_dict(), file)
    file.seek(0)
    resumed = SampleStatistics(body=EVERYWHERE)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.update(samples[done:])
    assert resumed.convergence() == whole.convergence()
    assert {name: tensor.tolist() for name, tensor in resumed.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in whole.state_dict().items()
    }


def test_a_state_is_a_snapshot_and_brings_its_body_along() -> None:
    statistics = collect(draws(3))
    state = statistics.state_dict()
    resumed = SampleStatistics()
    resumed.load_state_dict(state)
    statistics.update(draws(2, seed=1))
    resumed.update(draws(2, seed=1))
    assert int(state["count"]) == 3
    assert torch.equal(resumed.body(), EVERYWHERE)
    assert torch.equal(resumed.variance(), statistics.variance())


def test_memory_does_not_grow_with_the_samples() -> None:
    statistics, sizes = SampleStatistics(body=EVERYWHERE), []
    for index in range(40):
        statistics.update(draws(1, seed=index))
        sizes.append(sum(tensor.numel() for name, tensor in statistics.state_dict().items() if name != "convergence"))
    assert len(set(sizes)) == 1


def test_a_state_that_does_not_fit_is_refused() -> None:
    state = collect(draws(3)).state_dict()
    fresh = SampleStatistics(body=EVERYWHERE)
    with pytest.raises(ValueError, match=r"lacks \['squares'\]"):
        fresh.load_state_dict({name: tensor for name, tensor in state.items() if name != "squares"})
    with pytest.raises(ValueError, match="lacks"):
        fresh.load_state_dict({})
    with pytest.raises(ValueError, match=r"its squares is no finite"):
        fresh.load_state_dict({**state, "squares": torch.full(SHAPE, math.nan, dtype=torch.float64)})
    with pytest.raises(ValueError, match=r"has shape \(2, 4, 3\)"):
        fresh.load_state_dict({**state, "squares": state["squares"][:2]})
    with pytest.raises(ValueError, match="HU window"):
        SampleStatistics(body=EVERYWHERE, hu_window=(-1000, 2000)).load_state_dict(state)
    other = EVERYWHERE.clone()
    other[0] = False
    with pytest.raises(ValueError, match="another patient"):
        SampleStatistics(body=other).load_state_dict(state)
    assert fresh.count == 0


@pytest.mark.parametrize("kind", ["one by one", "metatensor", "half", "int16", "gradient"])
def test_samples_of_any_kind(kind: str) -> None:
    samples = draws(4).round().clamp(-500, 500)
    statistics = SampleStatistics(body=EVERYWHERE)
    if kind == "one by one":
        for sample in samples:
            statistics.update(sample[0])
    else:
        statistics.update(
            {
                "metatensor": MetaTensor(samples),
                "half": samples.half(),
                "int16": samples.to(torch.int16),
                "gradient": samples.clone().requires_grad_(),
            }[kind]
        )
    assert type(statistics.mean()) is torch.Tensor
    assert not statistics.mean().requires_grad
    torch.testing.assert_close(statistics.variance(), samples[:, 0].double().var(0))


def test_samples_and_truth_are_clipped_to_the_window_and_left_untouched() -> None:
    samples = torch.tensor([900.0, 1500.0]).reshape(2, 1, 1, 1, 1).expand(-1, -1, *SHAPE).clone()
    statistics, truth = collect(samples), torch.full(SHAPE, 3000.0)
    assert statistics.mean()[0, 0, 0] == 950
    assert mean_error(statistics, truth)[0, 0, 0] == -50
    assert samples.max() == 1500
    assert truth.max() == 3000


def test_truth_and_mask_as_files_and_flips_give_them() -> None:
    statistics, truth = collect(draws(3)), draws(1, seed=9)[0, 0].round()
    expected = mean_error(statistics, truth)
    array = truth.numpy()
    flipped_twice = np.ascontiguousarray(array[::-1])[::-1]
    for same in (array, array.astype(">i2"), flipped_twice, truth[None, None], MetaTensor(truth)):
        assert torch.equal(mean_error(statistics, same), expected)
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[1] = 2
    assert SampleStatistics(body=mask).body()[1].all()
    assert SampleStatistics(body=mask).body().sum() == 12


def test_what_is_missing_or_wrong_is_named() -> None:
    empty, single = SampleStatistics(body=EVERYWHERE), collect(draws(1))
    with pytest.raises(ValueError, match=r"mean of 0 samples.*N >= 1"):
        empty.mean()
    for statistics in (empty, single):
        for ask in (statistics.variance, statistics.std, statistics.spread_hu, lambda s=statistics: summarise_case(s)):
            with pytest.raises(ValueError, match=rf"at least 2 samples, got {statistics.count}"):
                ask()
        assert statistics.convergence() == []
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        single.variance(unbiased=False)
    with pytest.raises(ValueError, match=r"a sample has shape \(5, 4, 2\), the body mask \(5, 4, 3\)"):
        single.update(draws(1)[..., :2])
    with pytest.raises(ValueError, match=r"earlier samples \(5, 4, 3\)"):
        collect(draws(1), body=None).update(draws(1)[..., :2])
    for shape in ((2, 3, *SHAPE), (2, *SHAPE), (4, 3), (0, 1, *SHAPE)):
        with pytest.raises(ValueError, match=r"\(B, 1, X, Y, Z\)"):
            single.update(torch.zeros(shape))
    with pytest.raises(ValueError, match="body mask is empty"):
        SampleStatistics(body=torch.zeros(SHAPE))
    with pytest.raises(ValueError, match="hu_window"):
        SampleStatistics(hu_window=(1000, -1000))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_batch_with_a_bad_sample_is_refused_as_a_whole(bad: float) -> None:
    statistics, batch = collect(draws(3)), draws(4, seed=1)
    before = statistics.state_dict()
    batch[2, 0, 1, 1, :2] = bad
    with pytest.raises(ValueError, match=r"sample 6 \(index 2 of its batch\) holds 2 voxels of 60"):
        statistics.update(batch)
    assert all(torch.equal(before[name], tensor) for name, tensor in statistics.state_dict().items())


def test_a_truth_that_does_not_fit_is_refused() -> None:
    statistics, truth = collect(draws(3)), torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"the truth has shape \(4, 4, 3\), the samples \(5, 4, 3\).*resample"):
        mean_error(statistics, truth[1:])
    with pytest.raises(ValueError, match="must be one volume"):
        mean_error(statistics, truth[0])
    with pytest.raises(ValueError, match="the truth holds 60 voxels of 60 that are NaN"):
        summarise_case(statistics, truth * math.nan)
    for level in (0.0, 1.0, 90.0):
        with pytest.raises(ValueError, match=r"levels must lie between 0 and 1.*0\.9 for 90"):
            interval_coverage(statistics, truth, [0.5, level])


def test_body_is_that_of_the_mean_unless_given() -> None:
    x, y, _ = np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing="ij")
    inside = x**2 + y**2 < 0.5
    volume = torch.from_numpy(np.where(inside, 40.0, -1000.0))
    statistics = SampleStatistics()
    statistics.update(volume + 30)
    statistics.update(volume - 30)
    assert (statistics.body().numpy() == inside).all()
    # Outside, -970 and -1000 after clipping, would lower the number: it is taken inside only.
    assert statistics.spread_hu() == pytest.approx(30 * math.sqrt(2))


def test_samples_that_are_not_in_hu_are_noticed_at_the_second() -> None:
    statistics = SampleStatistics()
    statistics.update(torch.full(SHAPE, -600.0))
    with pytest.raises(ValueError, match=r"no body in the mean.*from -600 to -600.*unit_to_hu"):
        statistics.update(torch.full(SHAPE, -600.0))


def test_convergence_is_recorded_at_powers_of_two_and_at_the_end() -> None:
    samples = draws(11)
    body = EVERYWHERE.clone()
    body[:2] = False
    statistics = SampleStatistics(body=body)
    for batch in samples.split(3):
        statistics.update(batch)
    rows = statistics.convergence()
    assert [row["samples"] for row in rows] == [2, 4, 8, 11]
    for row in rows:
        variance = samples[: int(row["samples"]), 0].double().var(0)[body].mean().item()
        assert row["std_hu_body"] == pytest.approx(math.sqrt(variance))
    assert rows[-1]["std_hu_body"] == statistics.spread_hu()
    statistics.update(draws(5, seed=1))
    assert [row["samples"] for row in statistics.convergence()] == [2, 4, 8, 16]


@pytest.mark.parametrize("count", [2, 4, 16])
def test_a_calibrated_posterior_measures_as_calibrated_at_any_count(count: int) -> None:
    statistics, truth = gaussian_case(count)
    values = summarise_case(statistics, truth)
    assert values["samples"] == count
    assert values["calibration_ratio"] == pytest.approx(1, abs=0.05)
    assert values["variance_ratio"] == pytest.approx(count / (count + 1), abs=0.05)
    # Two draws of one posterior differ by twice its variance, the mean of N from the truth by 1 + 1/N of it.
    gain = values["rmse_sample_hu_body"] ** 2 / values["rmse_mean_hu_body"] ** 2
    assert gain == pytest.approx(2 / (1 + 1 / count), rel=0.04)
    for row in interval_coverage(statistics, truth):
        assert row["coverage"] == pytest.approx(row["level"], abs=0.015), row
    assert values["coverage_90"] == pytest.approx(0.9, abs=0.015)
    assert values["spearman_std_error"] > 0.08


def test_samples_too_sure_of_themselves_or_biased_are_told() -> None:
    sure = summarise_case(*gaussian_case(8, spread=0.5))
    # v = s^2 / 4 against (s^2 + v / 8): 0.25 (1 + 1/8) / (1 + 1/32).
    assert sure["calibration_ratio"] == pytest.approx(0.25 * 1.125 / 1.03125, rel=0.05)
    assert sure["coverage_90"] < 0.75
    unsure = summarise_case(*gaussian_case(8, spread=2.0))
    assert unsure["calibration_ratio"] > 2
    assert unsure["coverage_90"] > 0.97
    biased = summarise_case(*gaussian_case(8, offset=80.0))
    assert biased["calibration_ratio"] < 0.5
    assert biased["std_hu_body"] == pytest.approx(summarise_case(*gaussian_case(8))["std_hu_body"])


def test_numbers_of_a_case_by_hand() -> None:
    samples, truth = draws(6), draws(1, seed=9)[0, 0]
    body = EVERYWHERE.clone()
    body[0] = False
    values = summarise_case(collect(samples, body), truth.numpy())
    inside = samples[:, 0].double()[:, body]
    error = (inside.mean(0) - truth.double()[body]).abs()
    std = inside.std(0)
    assert values["std_hu_body"] == pytest.approx(std.square().mean().sqrt().item())
    assert values["rmse_mean_hu_body"] == pytest.approx(error.square().mean().sqrt().item())
    direct = (inside - truth.double()[body]).square().mean().sqrt().item()
    assert values["rmse_sample_hu_body"] == pytest.approx(direct)
    assert values["variance_ratio"] == pytest.approx((std.square().mean() / error.square().mean()).item())
    assert values["calibration_ratio"] == pytest.approx(7 / 6 * values["variance_ratio"])
    assert values["pearson_std_error"] == pytest.approx(stats.pearsonr(std, error).statistic)
    assert values["spearman_std_error"] == pytest.approx(stats.spearmanr(std, error).statistic)
    assert summarise_case(collect(samples, body)) == {"samples": 6, "std_hu_body": values["std_hu_body"]}


def test_samples_that_all_agree() -> None:
    same = draws(1).expand(4, -1, -1, -1, -1)
    right = summarise_case(collect(same), same[0, 0])
    assert right["std_hu_body"] == right["rmse_mean_hu_body"] == 0
    assert right["coverage_90"] == 1
    assert math.isnan(right["variance_ratio"])
    assert math.isnan(right["pearson_std_error"])
    wrong = summarise_case(collect(same), same[0, 0] + 10)
    assert wrong["variance_ratio"] == wrong["coverage_90"] == 0
    middle = torch.zeros(SHAPE)
    lucky = summarise_case(collect(torch.stack([middle - 5, middle + 5])[:, None]), middle)
    assert lucky["variance_ratio"] == lucky["calibration_ratio"] == math.inf


def test_maps_are_in_the_grid_of_the_ct(tmp_path: Path) -> None:
    affine = np.array([[2.5, 0, 0, -171.75], [0, 2.5, 0, 12], [0, 0, 3, -333], [0, 0, 0, 1.0]])
    samples, truth = draws(5), draws(1, seed=9)[0, 0]
    paths = write_maps(collect(samples), tmp_path / "case", affine, truth)
    mean, std = samples[:, 0].double().mean(0), samples[:, 0].double().std(0)
    expected = {
        "mean": (mean.round(), np.int16),
        "std": (std, np.float32),
        "absolute_bias": ((mean - truth).abs(), np.float32),
        "squared_bias": ((mean - truth).square(), np.float32),
    }
    assert sorted(path.name for path in (tmp_path / "case").iterdir()) == sorted(f"{n}.nii.gz" for n in expected)
    for name, (values, dtype) in expected.items():
        image = nib.load(paths[name])
        assert image.get_data_dtype() == dtype
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        np.testing.assert_allclose(np.asarray(image.dataobj), values, rtol=1e-5, atol=1e-3)
    assert set(write_maps(collect(samples), tmp_path / "unknown", affine)) == {"mean", "std"}


def test_summary_is_written(tmp_path: Path) -> None:
    statistics, truth = collect(draws(6)), draws(1, seed=9)[0, 0]
    summary = write_summary(statistics, tmp_path, truth, case="A", views=2, guidance_scale=1.0)
    content = json.loads((tmp_path / "uncertainty.json").read_text())
    assert content["case"] == "A"
    assert content["summary"] == summary == summarise_case(statistics, truth)
    assert content["coverage"] == interval_coverage(statistics, truth)
    with (tmp_path / "convergence.csv").open() as lines:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]
    assert rows == content["convergence"] == statistics.convergence()
    write_summary(statistics, tmp_path / "unknown")
    assert set(json.loads((tmp_path / "unknown" / "uncertainty.json").read_text())) == {"summary", "convergence"}


def test_nothing_is_written_where_there_is_no_variance(tmp_path: Path) -> None:
    for write in (lambda s: write_maps(s, tmp_path, np.eye(4)), lambda s: write_summary(s, tmp_path)):
        with pytest.raises(ValueError, match="at least 2 samples"):
            write(collect(draws(1)))
    with pytest.raises(ValueError, match="the truth has shape"):
        write_maps(collect(draws(2)), tmp_path, np.eye(4), torch.zeros(2, 2, 2))
    assert list(tmp_path.iterdir()) == []
