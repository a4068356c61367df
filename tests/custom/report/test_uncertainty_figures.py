"""Pictures of many samples: what is drawn where, and how bright, on volumes that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from custom.metrics import SampleStatistics, interval_coverage
from custom.report.uncertainty_figures import UncertaintyMaps, calibration_figure, uncertainty_figure

SHAPE = (20, 24, 28)
SPACING = (2.0, 2.0, 3.0)


def maps(std: float = 100.0, error: float = 100.0, sample: bool = False) -> UncertaintyMaps:
    """A body whose spread and error are the same in every voxel."""
    truth = np.full(SHAPE, -1000.0, dtype=np.float32)
    truth[2:-2, 2:-2, 2:-2] = 40
    return UncertaintyMaps(truth + error, np.full(SHAPE, std), truth, truth + 50 if sample else None)


def panels(path: Path, columns: int) -> list[np.ndarray]:
    """Mean colour of each column's middle, for a figure of one square-ish row."""
    picture = imread(path)[..., :3]
    width = (10.0 - 2 * 0.55 - (columns - 1) * 0.12) / columns
    width = min(3.0, width)
    left = (10.0 - columns * (width + 0.12) + 0.12) / 2
    middle = picture.shape[0] // 2
    colours = []
    for index in range(columns):
        centre = int(150 * (left + index * (width + 0.12) + width / 2))
        colours.append(picture[middle - 20 : middle, centre - 20 : centre + 20].reshape(-1, 3).mean(0))
    return colours


def test_spread_and_error_share_one_scale(tmp_path: Path) -> None:
    path = uncertainty_figure({"2 views": maps(200, 200)}, SPACING, tmp_path / "a" / "x.png", planes=["axial"])
    assert list(path.parent.iterdir()) == [path]
    truth, mean, spread, error = panels(path, 4)
    assert np.ptp(truth) < 0.01
    assert mean.mean() > truth.mean() + 0.05
    np.testing.assert_allclose(spread, error, atol=0.01)
    assert np.ptp(spread) > 0.2


@pytest.mark.parametrize("squared", [False, True])
def test_brightness_grows_with_the_spread_alone(tmp_path: Path, squared: bool) -> None:
    brightness = []
    for std in (0, 250, 500):
        path = uncertainty_figure({"": maps(std, 0)}, SPACING, tmp_path / "x.png", planes=["axial"], squared=squared)
        _, _, spread, error = panels(path, 4)
        brightness.append(spread.mean())
        assert error.max() < 0.05
    assert sorted(brightness) == brightness
    assert brightness[0] < 0.05
    assert brightness[-1] > 0.8
    # Squared, half the limit is a quarter of the scale.
    assert (brightness[1] < 0.35) == squared


def test_a_scale_is_fixed_unless_told(tmp_path: Path) -> None:
    narrow = panels(uncertainty_figure({"": maps(50, 0)}, SPACING, tmp_path / "a.png", ["axial"], limit_hu=50), 4)
    wide = panels(uncertainty_figure({"": maps(50, 0)}, SPACING, tmp_path / "b.png", ["axial"]), 4)
    assert narrow[2].mean() > 0.8
    assert wide[2].mean() < 0.2


def test_rows_and_columns(tmp_path: Path) -> None:
    def height(cases: dict[str, UncertaintyMaps], planes: list[str]) -> int:
        picture = imread(uncertainty_figure(cases, SPACING, tmp_path / "x.png", planes=planes))
        assert picture.shape[1] == 1500
        return picture.shape[0]

    one, two = {"2 views": maps()}, {"2 views": maps(), "4 views": maps(50, 60)}
    single, double = height(one, ["axial"]), height(two, ["axial"])
    rest = 2 * single - double
    assert 0 < rest < single
    # An axial row is 24 * 2 mm high for 20 * 2 mm across, a coronal one 28 * 3 mm: that much higher than wide.
    assert height(one, ["axial", "coronal"]) - single == pytest.approx((single - rest - 18) * 84 / 48 + 18, abs=3)
    # A column more makes every column, and so the row, smaller; two columns are not blown up to the full width.
    assert height({"": maps(sample=True)}, ["axial"]) < single
    assert height({"": UncertaintyMaps(*maps()[:2])}, ["axial"]) == pytest.approx(rest + 18 + 450 * 1.2, abs=3)


def test_maps_of_statistics_are_drawn(tmp_path: Path) -> None:
    statistics = SampleStatistics()
    generator = torch.Generator().manual_seed(0)
    truth = torch.from_numpy(maps().truth_hu)
    truth[10, 10, 10] = 3000
    for _ in range(4):
        sample = truth + 30 * torch.randn(SHAPE, generator=generator)
        statistics.update(sample)
    drawn = UncertaintyMaps.of(statistics, truth, sample[None, None].bfloat16())
    assert drawn.sample_hu is not None and drawn.sample_hu.shape == SHAPE
    assert drawn.truth_hu is not None and drawn.truth_hu.max() == 1000
    np.testing.assert_array_equal(drawn.std_hu, statistics.std())
    assert UncertaintyMaps.of(statistics).truth_hu is None
    path = uncertainty_figure({"": drawn}, SPACING, tmp_path / "x.png", title="title", caption="text")
    assert imread(path)[..., :3].std() > 0.1

    rows, coverage = statistics.convergence(), interval_coverage(statistics, truth)
    both = imread(calibration_figure({"2 views": rows}, {"2 views": coverage}, tmp_path / "both.png"))
    alone = imread(calibration_figure({"": rows}, {}, tmp_path / "alone.png"))
    assert both.shape[1] == 2 * alone.shape[1]
    assert alone[..., :3].std() > 0.03


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    good = maps()
    with pytest.raises(ValueError, match="no case"):
        uncertainty_figure({}, SPACING, path)
    with pytest.raises(ValueError, match=r"std_hu of case 'b' has shape \(19, 24, 28\)"):
        uncertainty_figure({"a": good, "b": good._replace(std_hu=good.std_hu[1:])}, SPACING, path)
    with pytest.raises(ValueError, match="truth_hu is given for some cases only"):
        uncertainty_figure({"a": good, "b": good._replace(truth_hu=None)}, SPACING, path)
    with pytest.raises(ValueError, match=r"\(X, Y, Z\)"):
        uncertainty_figure({"": UncertaintyMaps(np.zeros((3, 3)), np.zeros((3, 3)))}, SPACING, path)
    for planes in ([], ["oblique"]):
        with pytest.raises(ValueError, match="planes must be some of"):
            uncertainty_figure({"": good}, SPACING, path, planes=planes)
    with pytest.raises(ValueError, match="begins at 2 samples"):
        calibration_figure({"": []}, {}, path)
    assert not path.exists()
