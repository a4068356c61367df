"""Radiographs finer than the grid are averaged before they are read along rays."""

import pytest
import torch
from fusion_reference import random_features

from custom.fusion import FeatureFusion, antialiasing_factors, fuse_features, sample_features
from custom.geometry import VolumeGrid, views_from_angles


def test_antialiasing_reads_every_pixel():
    """A map four times as fine as the grid: with antialiasing every pixel counts the same, without most are lost."""
    grid = VolumeGrid.cube(8, 80.0)
    views = views_from_angles([0.0, 90.0], "parallel", pixel_mm=2.5)
    features = torch.ones(1, 2, 1, 32, 32, dtype=torch.float64).requires_grad_()
    for antialias in (True, False):
        fused = FeatureFusion(grid, (32, 32), antialias=antialias)(features, views)
        (gradient,) = torch.autograd.grad(fused.sum(), features)
        if antialias:
            torch.testing.assert_close(gradient, torch.full_like(gradient, gradient.mean().item()))
        else:
            assert (gradient == 0).double().mean() > 0.7
    pooled = torch.nn.functional.avg_pool2d(random_features(2, 3, 32, 32), 4)[None]
    fine = random_features(1, 2, 3, 32, 32)
    torch.testing.assert_close(
        fuse_features(fine, views, grid, (32, 32)), fuse_features(pooled, views, grid, (32, 32), antialias=False)
    )


@pytest.mark.parametrize(
    "size, map_shape, beam, expected",
    [
        (128, (128, 128), "parallel", [1, 1]),
        (64, (128, 128), "parallel", [2, 2]),
        (32, (128, 128), "parallel", [4, 4]),
        (48, (128, 128), "parallel", [2, 2]),
        (32, (64, 128), "parallel", [2, 4]),
        (32, (32, 32), "parallel", [1, 1]),
        (64, (128, 128), "cone", [2, 2]),
        (1, (4, 2), "parallel", [4, 2]),
    ],
)
def test_antialiasing_factors(size, map_shape, beam, expected):
    """Pixels of the voxels' size at the isocentre (cone: magnified 1.5 times on the detector), any angle."""
    pixel = 2.5 * (1.5 if beam == "cone" else 1)
    for dtype in (torch.float32, torch.float64):
        views = views_from_angles([0.0, 30.0, 45.0, 90.0], beam, pixel_mm=pixel).to(dtype)
        factors = antialiasing_factors(views, VolumeGrid.cube(size, 320.0), (128, 128), map_shape)
        assert factors.tolist() == [expected] * 4


@pytest.mark.parametrize("reduction", ["seen", "plain"])
def test_antialiasing_of_unequal_views(reduction):
    """Views of different magnification in one batch are averaged by their own factor: a batch is still its items."""
    grid = VolumeGrid.cube(6, 120.0)
    fine = views_from_angles([0.0, 40.0], "cone", pixel_mm=9.0)
    coarse = views_from_angles([90.0, 120.0], "parallel", pixel_mm=13.0)
    views = torch.stack([torch.cat([fine[:1], coarse[:1]]), torch.cat([coarse[1:], fine[1:]])])
    factors = antialiasing_factors(views, grid, (16, 16), (16, 16))
    assert factors[..., 0].tolist() == [[2, 1], [1, 2]]
    features = random_features(2, 2, 3, 16, 16)
    fusion = FeatureFusion(grid, (16, 16), reduction, with_count=True)
    out = fusion(features, views)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    pooled = torch.nn.functional.avg_pool2d(features.flatten(0, 1), 2).unflatten(0, (2, 2))
    points = grid.points(dtype=torch.float64).reshape(-1, 3)
    for b, is_fine in ((0, (True, False)), (1, (False, True))):
        total, number = 0, 0
        for k in range(2):
            maps = (pooled if is_fine[k] else features)[b : b + 1, k : k + 1]
            values, seen = sample_features(maps, views[b, k : k + 1], points, (16, 16))
            total, number = total + values[0, 0], number + seen[0, 0]
        expected = total / (number.clamp(min=1) if reduction == "seen" else 2)
        torch.testing.assert_close(out[b, :-1].flatten(1), expected)
        torch.testing.assert_close(out[b, -1].flatten(), number.double() / 2)
