"""FDK and total variation: against exact line integrals, and against what they promise to minimise."""

from __future__ import annotations

import math

import pytest
import torch
from analytic import UNIFORM, ellipsoid_integrals, ellipsoid_volume, relative_error
from torch import Tensor

from custom.geometry import Geometry, VolumeGrid, views_from_angles
from custom.projection import Projector, sirt
from custom.projection.filtered_backprojection import FILTER_WINDOWS, angular_weights, fdk
from custom.projection.tv_minimisation import total_variation, tv

GRID = VolumeGrid.cube(24, 320.0)
WATER = 0.02


def even(count: int, circle: float = 180.0) -> list[float]:
    return [i * circle / count for i in range(count)]


def exact(geometry: Geometry, power: int = 2) -> Tensor:
    return ellipsoid_integrals(geometry.views, geometry.detector_shape, power)[None].float()


# --- angular weights ---


@pytest.mark.parametrize(
    ("angles", "expected"),
    [
        ([0, 90], [90, 90]),
        ([90], [180]),
        ([0, 45, 90, 135], [45] * 4),
        ([90, 0, 45], [67.5, 67.5, 45]),  # gaps 45, 45 and 90, whatever the order
        ([0, 180], [90, 90]),
        ([0, 0, 90, 180, 270], [30, 30, 45, 30, 45]),
        (even(8, 360), [22.5] * 8),
        ([359.9999999, 90], [90, 90]),
    ],
)
@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_every_view_stands_for_half_the_gaps_to_its_neighbours(
    beam: str, angles: list[float], expected: list[float]
) -> None:
    weights = angular_weights(views_from_angles(angles, beam)[None])
    torch.testing.assert_close(weights.rad2deg()[0], torch.tensor(expected, dtype=torch.float64), atol=1e-3, rtol=0)


def test_a_masked_view_leaves_its_share_to_the_others() -> None:
    views = views_from_angles([0.0, 30.0, 90.0])[None].expand(2, -1, -1)
    weights = angular_weights(views, torch.tensor([[True, False, True], [True, True, True]])).rad2deg()
    torch.testing.assert_close(weights, torch.tensor([[90, 0, 90], [60, 45, 75]], dtype=torch.float64))


# --- FDK ---


@pytest.mark.parametrize(
    ("beam", "angles", "size", "bar", "bias"),
    [
        ("parallel", even(36), 24, 0.07, 0.02),
        ("parallel", even(45), 48, 0.03, 0.01),
        ("cone", even(60, 360), 24, 0.07, 0.03),
        ("cone", even(36), 24, 0.11, 0.08),  # no weights for what a half circle of fans sees twice
    ],
)
def test_many_exact_radiographs_give_the_volume_back(
    beam: str, angles: list[float], size: int, bar: float, bias: float
) -> None:
    grid = VolumeGrid.cube(size, 320.0)
    geometry = Geometry.from_angles(angles, beam, grid=grid)
    truth = ellipsoid_volume(grid).float()
    found = fdk(Projector.from_geometry(geometry), exact(geometry), window="ram-lak")
    assert relative_error(found, truth) < bar
    assert float((found - truth).mean() / truth.mean()) == pytest.approx(0, abs=bias), "the scale is right"


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_the_detector_may_be_finer_and_shifted(beam: str) -> None:
    truth = ellipsoid_volume(GRID).float()
    magnified = 20.0 if beam == "cone" else 40 / 3

    def error(**keywords: object) -> float:
        geometry = Geometry.from_angles(even(36, 360), beam, grid=GRID, **keywords)  # type: ignore[arg-type]
        return relative_error(fdk(Projector.from_geometry(geometry), exact(geometry)), truth)

    usual = error()
    assert error(detector_shape=(48, 80), pixel_mm=magnified / 2) < 1.1 * usual
    assert error(detector_offset_mm=(30.0, 5.0)) < 1.1 * usual


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_tissue_outside_the_grid_does_no_harm(beam: str) -> None:
    geometry = Geometry.from_angles(even(36, 360), beam, grid=GRID)
    small = VolumeGrid((8, 8, 8), GRID.spacing_mm)
    projector, image = Projector.from_geometry(geometry), exact(geometry)
    inside = fdk(Projector(small, geometry.detector_shape, geometry.tensor()), image)
    torch.testing.assert_close(inside, fdk(projector, image)[..., 8:16, 8:16, 8:16])


def test_windows_and_cutoffs_trade_noise_for_resolution() -> None:
    geometry = Geometry.from_angles(even(12), "parallel", grid=GRID)
    projector = Projector.from_geometry(geometry)
    noise = torch.randn(1, 12, 24, 36, generator=torch.Generator().manual_seed(0))
    free = (-math.inf, math.inf)
    spread = [float(fdk(projector, noise, window=name, bounds=free).std()) for name in FILTER_WINDOWS]
    assert spread == sorted(spread, reverse=True) and spread[-1] < 0.6 * spread[0]
    half, whole = (float(fdk(projector, noise, cutoff=share, bounds=free).std()) for share in (0.5, 1.0))
    assert half < 0.5 * whole


def test_voxels_larger_than_pixels_get_no_more_than_they_can_hold() -> None:
    """The default cutoff is the voxels' Nyquist frequency."""
    coarse = GRID.resized((12, 12, 12))
    geometry = Geometry.from_angles(even(12), "parallel", grid=GRID)
    projector, image = Projector(coarse, geometry.detector_shape, geometry.tensor()), exact(geometry, UNIFORM)
    torch.testing.assert_close(fdk(projector, image), fdk(projector, image, cutoff=0.5))


def test_batches_masks_and_bounds_of_fdk() -> None:
    sets = [Geometry.from_angles(angles, "cone", grid=GRID) for angles in ([0.0, 50.0, 90.0], [30.0, 100.0, 140.0])]
    views = torch.stack([g.tensor() for g in sets])
    projector = Projector(GRID, sets[0].detector_shape)
    image = torch.cat([exact(g) for g in sets])
    spoilt = image.clone()
    spoilt[:, 1] = 99.0
    mask = torch.tensor([[True, False, True]] * 2)
    together = fdk(projector, spoilt, views, view_mask=mask, bounds=(0.001, 0.01))
    assert together.min() == torch.tensor(0.001) and together.max() == torch.tensor(0.01)
    for b in range(2):
        alone = fdk(projector, image[b : b + 1, [0, 2]], views[b, [0, 2]], bounds=(0.001, 0.01))
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-6)


def test_what_fdk_refuses() -> None:
    geometry = Geometry.from_angles([0.0, 90.0], grid=GRID)
    projector, image = Projector.from_geometry(geometry), torch.zeros(1, 2, 24, 36)
    with pytest.raises(ValueError, match=r"window must be one of .*, got 'box'"):
        fdk(projector, image, window="box")
    with pytest.raises(ValueError, match=r"cutoff must lie in \(0, 1\].*got 1.5"):
        fdk(projector, image, cutoff=1.5)
    with pytest.raises(ValueError, match="there are 2 views, but image"):
        fdk(projector, image[:, :1])
    rolled = geometry.tensor()
    rolled[1, 6:9], rolled[1, 9:12] = geometry.tensor()[1, 9:12], -geometry.tensor()[1, 6:9]
    with pytest.raises(ValueError, match="view 1 of case 0 is tilted by 90 degrees; sirt and tv take any view"):
        fdk(projector, image, rolled)


# --- total variation ---


def blocks() -> Tensor:
    volume = torch.zeros(1, 1, *GRID.shape)
    volume[..., 4:20, 6:18, 3:21] = WATER
    volume[..., 7:11, 9:15, 6:18] = 0.3 * WATER
    volume[..., 13:17, 8:12, 6:18] = 1.6 * WATER
    return volume


def objective(volume: Tensor, projector: Projector, image: Tensor, weight: float, pixel_mm: float = 40 / 3) -> float:
    """As the docstring says it, for a parallel beam."""
    lengths = projector(torch.ones_like(volume))
    share = pixel_mm**2 / math.prod(GRID.spacing_mm) / lengths.clamp(min=0.1 * GRID.spacing_mm[0])
    share = torch.where(lengths > 0.1 * GRID.spacing_mm[0], share, 0)
    fit = (share * (projector(volume) - image).square()).sum() / 2
    return float(fit + weight * total_variation(volume, GRID))


def test_total_variation_of_a_block_is_its_surface() -> None:
    volume = torch.zeros(2, 1, *GRID.shape)
    volume[:, :, 4:9, 3:13, 2:4] = torch.tensor([1.0, 2.0])[:, None, None, None, None]
    spacing = GRID.spacing_mm[0]
    faces = 2 * (5 * 10 + 10 * 2 + 2 * 5) / spacing
    measured = total_variation(volume, GRID)
    # Where forward differences of two or three axes meet in a voxel, the norm is shorter than their sum.
    assert 0.9 * faces < float(measured[0]) < faces
    assert float(measured[1]) == pytest.approx(2 * float(measured[0]))


def test_blocks_come_back_from_few_views_where_sirt_leaves_streaks() -> None:
    geometry = Geometry.from_angles(even(6), "parallel", grid=GRID)
    projector = Projector.from_geometry(geometry)
    truth = blocks()
    image = projector(truth)
    bounds = (0.0, 2 * WATER)
    smooth = tv(projector, image, weight=0.002, iterations=300, bounds=bounds)
    assert relative_error(smooth, truth) < 0.5 * relative_error(
        sirt(projector, image, iterations=300, bounds=bounds), truth
    )


@pytest.mark.parametrize("weight", [0.0005, 0.01])
def test_it_is_the_minimum(weight: float) -> None:
    geometry = Geometry.from_angles([0.0, 40.0, 100.0], "parallel", grid=GRID)
    projector = Projector.from_geometry(geometry)
    truth = blocks()
    image = projector(truth)
    bounds = (0.0, 2 * WATER)
    found = tv(projector, image, weight=weight, iterations=500, bounds=bounds)
    least = objective(found, projector, image, weight)
    assert least < 1.01 * objective(truth, projector, image, weight)
    others = [sirt(projector, image, iterations=100, bounds=bounds), 0.98 * found, (1.02 * found).clamp(*bounds)]
    moved = [found.roll(1, axis) for axis in (2, 3, 4)]
    random = (found + 0.01 * WATER * torch.randn(found.shape, generator=torch.Generator().manual_seed(1))).clamp(
        *bounds
    )
    assert all(least < objective(other, projector, image, weight) for other in [*others, *moved, random])
    half_way = objective(tv(projector, image, weight=weight, iterations=200, bounds=bounds), projector, image, weight)
    assert least <= half_way < 1.05 * least, "it converges"


def test_without_weight_the_radiographs_are_explained_and_more_of_it_flattens_the_volume() -> None:
    geometry = Geometry.from_angles([0.0, 90.0], "cone", grid=GRID)
    projector = Projector.from_geometry(geometry)
    image = projector(blocks())
    found = {weight: tv(projector, image, weight=weight, iterations=100) for weight in (0.0, 0.001, 0.05, 0.5)}
    assert relative_error(projector(found[0.0]), image) < 0.02
    variation = [float(total_variation(volume, GRID)) for volume in found.values()]
    assert variation == sorted(variation, reverse=True) and variation[-1] < 0.5 * variation[0]


def test_one_weight_serves_every_grid() -> None:
    """Twice as many voxels a side, twice as fine a detector: the same volume."""
    truth, found = blocks(), {}
    for size in (12, 24):
        grid = GRID.resized((size,) * 3)
        geometry = Geometry.from_angles([0.0, 60.0, 120.0], "parallel", grid=grid)
        projector = Projector.from_geometry(geometry)
        image = projector(torch.nn.functional.adaptive_avg_pool3d(truth, size))
        found[size] = torch.nn.functional.adaptive_avg_pool3d(tv(projector, image, weight=0.02), 12)
    assert relative_error(found[12], found[24]) < 0.1
    assert float(found[12].max() / truth.max()) < 0.9, "at a weight that matters"


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_batches_masks_bounds_and_starts_of_tv(beam: str) -> None:
    sets = [Geometry.from_angles(angles, beam, grid=GRID) for angles in ([0.0, 50.0, 90.0], [30.0, 100.0, 140.0])]
    views = torch.stack([g.tensor() for g in sets])
    projector = Projector(GRID, sets[0].detector_shape)
    image = projector(blocks().expand(2, -1, -1, -1, -1), views)
    spoilt = image.clone()
    spoilt[:, 1] = 99.0
    mask = torch.tensor([[True, False, True]] * 2)
    options = {"weight": 0.002, "iterations": 60, "bounds": (0.001, 0.02)}
    together = tv(projector, spoilt, views, view_mask=mask, **options)  # type: ignore[arg-type]
    assert together.min() >= torch.tensor(0.001) and together.max() <= torch.tensor(0.02)
    for b in range(2):
        alone = tv(projector, image[b : b + 1, [0, 2]], views[b, [0, 2]], **options)  # type: ignore[arg-type]
        # Steps are those of the whole batch, the minimum is each one's own.
        assert relative_error(together[b : b + 1], alone) < 0.1
    start = together.clone()
    again = tv(projector, spoilt, views, view_mask=mask, initial=start, **options)  # type: ignore[arg-type]
    assert torch.equal(start, together) and relative_error(again, together) < 0.1


def test_what_tv_refuses() -> None:
    projector = Projector.from_geometry(Geometry.from_angles([0.0], grid=GRID))
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        tv(projector, torch.zeros(1, 1, 24, 36), iterations=0)
    with pytest.raises(ValueError, match=r"weight must not be negative, got -0\.1"):
        tv(projector, torch.zeros(1, 1, 24, 36), weight=-0.1)
    with pytest.raises(ValueError, match="there are 1 views, but image"):
        tv(projector, torch.zeros(1, 2, 24, 36))
