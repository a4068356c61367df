"""Feature fusion against an explicit loop in float64, and the promises of its docstrings."""

import numpy as np
import pytest
import torch
from fusion_reference import DETECTOR, GRID, look, make_views, random_features, slow_fuse, slow_sample
from hypothesis import given, settings
from hypothesis import strategies as st

from custom.fusion import FeatureFusion, fuse_features, fuse_points, sample_features
from custom.geometry import VolumeGrid, views_from_angles


@pytest.mark.parametrize("map_shape", [DETECTOR, (3, 4), (1, 1), (18, 30)])
@pytest.mark.parametrize("kind", ["parallel", "cone", "shifted", "tilted", "mixed"])
def test_sample_features_equals_loop(kind, map_shape):
    views = torch.stack([make_views(kind), make_views("cone")])
    points = GRID.points(dtype=torch.float64).reshape(-1, 3)
    features = random_features(2, 3, 4, *map_shape)
    values, seen = sample_features(features, views, points, DETECTOR)
    assert values.shape == (2, 3, 4, len(points)) and seen.shape == (2, 3, len(points)) and seen.dtype == torch.bool
    for b in range(2):
        for k in range(3):
            expected = [slow_sample(features[b, k].numpy(), views[b, k].numpy(), p.numpy(), DETECTOR) for p in points]
            assert seen[b, k].tolist() == [s for _, s in expected]
            np.testing.assert_allclose(values[b, k].T.numpy(), np.stack([v for v, _ in expected]), atol=1e-10)


@pytest.mark.parametrize("with_count", [False, True])
@pytest.mark.parametrize("reduction", ["seen", "plain"])
@pytest.mark.parametrize("kind", ["parallel", "cone", "shifted", "tilted", "mixed"])
def test_fusion_equals_loop(kind, reduction, with_count):
    views = torch.stack([make_views(kind), make_views(kind).flip(0)])
    features = random_features(2, 3, 4, *DETECTOR)
    expected = slow_fuse(
        features, views, GRID.points(dtype=torch.float64).reshape(-1, 3), DETECTOR, None, reduction, with_count
    )
    fusion = FeatureFusion(GRID, DETECTOR, reduction, with_count, antialias=False)
    out = fusion(features, views)
    assert out.shape == (2, 4 + with_count, *GRID.shape)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(out.flatten(2), expected, atol=1e-10, rtol=0)
    low = fusion(features.float(), views.float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.flatten(2).double(), expected, atol=2e-4, rtol=0)


def test_some_voxels_are_partly_seen():
    """The cases above are only worth something if views disagree about which voxels they see."""
    ones = torch.ones(1, 3, 1, *DETECTOR, dtype=torch.float64)
    for kind in ("parallel", "shifted", "cone", "tilted"):
        fraction = FeatureFusion(GRID, DETECTOR, with_count=True)(ones, make_views(kind))[0, 1]
        assert len(fraction.unique()) >= 3, kind


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("kind", ["parallel", "cone"])
def test_any_number_of_views(kind, count):
    views = make_views(kind, count)
    features = random_features(1, count, 2, 5, 6)
    expected = slow_fuse(features, views[None], GRID.points(dtype=torch.float64).reshape(-1, 3), DETECTOR)
    out = fuse_features(features, views, GRID, DETECTOR, antialias=False)
    torch.testing.assert_close(out.flatten(2), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("reduction", ["seen", "plain"])
@pytest.mark.parametrize("kind", ["parallel", "cone", "shifted"])
def test_padding_changes_nothing(kind, reduction):
    views, features = make_views(kind)[None], random_features(1, 3, 4, *DETECTOR)
    fusion = FeatureFusion(GRID, DETECTOR, reduction, with_count=True)
    expected = fusion(features, views)
    padded_features = torch.cat([features[:, :2], torch.full_like(features[:, :1], torch.nan), features[:, 2:]], 1)
    padded_views = torch.cat([views[:, :2], torch.zeros_like(views[:, :1]), views[:, 2:]], 1)
    mask = torch.tensor([True, True, False, True])
    padded_features.requires_grad_()
    out = fusion(padded_features, padded_views, mask)
    torch.testing.assert_close(out, expected)
    assert torch.equal(out, fusion(padded_features, padded_views, mask[None]))
    out.sum().backward()
    assert torch.isfinite(padded_features.grad).all() and (padded_features.grad[:, 2] == 0).all()
    nothing = fusion(padded_features, padded_views, torch.zeros(1, 4, dtype=torch.bool))
    assert (nothing == 0).all()


@pytest.mark.parametrize("kind", ["parallel", "cone"])
def test_items_of_a_batch_do_not_mix(kind):
    """Different views and masks in one batch: every item as if it were alone."""
    views = torch.stack([make_views(kind, 4), make_views(kind, 4).roll(1, 0), make_views("shifted", 4)])
    mask = torch.tensor([[True] * 4, [True, False, True, False], [False, True, True, True]])
    features = random_features(3, 4, 2, *DETECTOR)
    fusion = FeatureFusion(GRID, DETECTOR, with_count=True)
    out = fusion(features, views, mask)
    for b in range(3):
        torch.testing.assert_close(out[b], fusion(features[b : b + 1, mask[b]], views[b, mask[b]])[0])


@pytest.mark.parametrize("kind", ["parallel", "cone", "tilted"])
@pytest.mark.parametrize("angle_index", range(4))
def test_spike_lights_the_voxel(kind, angle_index):
    """Point phantom: a feature at the pixel where a voxel is seen is strongest at voxels on that voxel's ray."""
    grid = VolumeGrid.cube(9, 90.0)
    view = make_views(kind, 4)[angle_index].clone()
    detector = (81, 81)
    view[6:9] *= 2 / view[6:9].norm()
    view[9:12] *= 2 / view[9:12].norm()
    voxel = (6, 3, 7)
    u, v, _ = look(grid.points(dtype=torch.float64)[voxel].numpy(), view.numpy())
    spike = torch.zeros(1, 1, 1, *detector, dtype=torch.float64)
    spike[0, 0, 0, round(v + 40), round(u + 40)] = 1
    fused = FeatureFusion(grid, detector, antialias=False)(spike, view[None])[0, 0]
    assert fused[voxel] > 0.2
    for index in fused.nonzero().tolist():
        u_lit, v_lit, _ = look(grid.points(dtype=torch.float64)[tuple(index)].numpy(), view.numpy())
        assert abs(u_lit - u) < 2 and abs(v_lit - v) < 2


def test_heart_side():
    """A frontal radiograph's column towards the patient's left lights voxels with x < 0 (RAS+)."""
    grid = VolumeGrid.cube(8, 80.0)
    features = torch.zeros(1, 1, 1, 8, 8)
    features[0, 0, 0, 1, 6] = 1
    fused = FeatureFusion(grid, (8, 8))(features, views_from_angles([90.0], "parallel", pixel_mm=10.0).float())[0, 0]
    lit = fused.nonzero()
    assert set(lit[:, 0].tolist()) == {1} and set(lit[:, 2].tolist()) == {6} and len(lit) == 8


@pytest.mark.parametrize("kind", ["parallel", "cone", "shifted"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_accumulated_in_float32(kind, dtype):
    """The result is the float32 result of the same numbers, rounded (twice at most)."""
    views = make_views(kind, 8, torch.float32)
    features = random_features(2, 8, 4, *DETECTOR, dtype=dtype).requires_grad_()
    fusion = FeatureFusion(GRID, DETECTOR, antialias=False)
    with torch.autocast("cpu", torch.bfloat16):
        out = fusion(features, views)
    exact = features.detach().float().requires_grad_()
    expected = fusion(exact, views)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    upstream = random_features(*out.shape, dtype=dtype)
    (gradient,) = torch.autograd.grad(out, features, upstream)
    (expected_gradient,) = torch.autograd.grad(expected, exact, upstream.float())
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.float(), expected_gradient, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("with_count", [False, True])
@pytest.mark.parametrize("reduction", ["seen", "plain"])
@pytest.mark.parametrize("kind", ["parallel", "cone", "shifted"])
def test_gradient_of_features(kind, reduction, with_count):
    grid, detector = VolumeGrid((3, 2, 3), (60.0, 70.0, 55.0)), (3, 4)
    views = make_views(kind, 2)
    views[:, 6:12] *= 2.5
    features = random_features(1, 2, 2, *detector).requires_grad_()
    fusion = FeatureFusion(grid, detector, reduction, with_count, antialias=False, chunk=11)
    assert torch.autograd.gradcheck(lambda f: fusion(f, views), features, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda f: fusion(f, views), features, fast_mode=True)


@pytest.mark.parametrize("kind", ["parallel", "cone", "tilted"])
def test_gradient_of_poses(kind):
    grid, detector = VolumeGrid((2, 2, 2), (41.0, 37.0, 43.0), (3.0, 1.0, -2.0)), (3, 4)
    views = make_views(kind, 2)
    views[:, 6:12] *= 3
    features = random_features(1, 2, 1, 3, 4).requires_grad_()
    fusion = FeatureFusion(grid, detector, "seen", True, antialias=False, chunk=5)
    pose = views[None, :, :12].clone().requires_grad_()

    def fuse(f, p):
        return fusion(f, torch.cat([p, views[None, :, 12:]], -1))

    fixed = fusion(features, views)
    torch.testing.assert_close(fuse(features, pose), fixed, atol=1e-10, rtol=0)
    assert torch.autograd.gradcheck(fuse, (features, pose), eps=1e-6, atol=1e-5, fast_mode=kind != "cone")


def test_gradient_of_points():
    views = make_views("cone", 2)
    views[:, 6:12] *= 2
    features = random_features(1, 2, 2, 5, 6).requires_grad_()
    points = (random_features(1, 6, 3, seed=3) * 40).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, p: fuse_points(f, views, p, (5, 6), chunk=4), (features, points), fast_mode=True
    )
    assert torch.autograd.gradcheck(lambda f, p: sample_features(f, views, p, (5, 6))[0], (features, points))


def test_blocks_change_nothing(monkeypatch):
    """However small the blocks that low precision is handled in, the numbers are the same."""
    from custom.fusion import rows

    views = make_views("parallel", 3, torch.float32)
    features = random_features(2, 3, 4, *DETECTOR, dtype=torch.bfloat16).requires_grad_()
    results = []
    for size in (1, 5000, 2**26):
        monkeypatch.setattr(rows, "BLOCK_BYTES", size)
        monkeypatch.setattr(rows, "COPY_BYTES", size)
        out = FeatureFusion(GRID, DETECTOR, antialias=False)(features, views)
        results.append((out, *torch.autograd.grad(out.square().sum(), features)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


@pytest.mark.parametrize("kind", ["cone", "tilted"])
def test_chunks_change_nothing(kind):
    views = make_views(kind, 3, torch.float32)
    features = random_features(2, 3, 4, *DETECTOR, dtype=torch.float32).requires_grad_()
    whole = FeatureFusion(GRID, DETECTOR, with_count=True)(features, views)
    (whole_gradient,) = torch.autograd.grad(whole.square().sum(), features)
    for chunk in (37, 209, 210):
        out = FeatureFusion(GRID, DETECTOR, with_count=True, chunk=chunk)(features, views)
        torch.testing.assert_close(out, whole, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(
        FeatureFusion(GRID, DETECTOR, with_count=True, chunk=37)(features, views).square().sum(), features
    )
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reduction", ["seen", "plain"])
def test_points_and_grid_agree(reduction):
    """`fuse_points` at voxel centres is the grid fusion; the parallel grid goes another way."""
    views = torch.stack([make_views("shifted"), make_views("parallel")])
    features = random_features(2, 3, 4, *DETECTOR)
    points = GRID.points(dtype=torch.float64).reshape(-1, 3)
    grid = fuse_features(features, views, GRID, DETECTOR, None, reduction, with_count=True, antialias=False)
    at_points = fuse_points(features, views, points, DETECTOR, reduction=reduction, with_count=True, chunk=50)
    torch.testing.assert_close(at_points, grid.flatten(2), atol=1e-10, rtol=0)
    each = fuse_points(features, views, torch.stack([points, points.flip(0)]), DETECTOR, reduction=reduction)
    torch.testing.assert_close(each[1], grid[1, :-1].flatten(1).flip(1), atol=1e-10, rtol=0)


def test_memory_layouts_of_the_features():
    """Contiguous and channels_last maps give the same, and gradients come back."""
    views = make_views("parallel", 3, torch.float32)
    features = random_features(3, 8, *DETECTOR, dtype=torch.float32)
    fusion = FeatureFusion(GRID, DETECTOR)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = features.clone(memory_format=layout).requires_grad_()
        fusion(leaf[None], views).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_patch_of_the_grid():
    """Another grid at run time: a patch equals the cut-out of the whole."""
    views = make_views("cone")
    features = random_features(1, 3, 2, *DETECTOR)
    fusion = FeatureFusion(GRID, DETECTOR)
    middle = [c + (2 + 0.5 - n / 2) * s for c, n, s in zip(GRID.center_mm, GRID.shape, GRID.spacing_mm, strict=True)]
    patch = VolumeGrid((3, 3, 3), GRID.spacing_mm, tuple(middle))
    torch.testing.assert_close(fusion(features, views, grid=patch), fusion(features, views)[..., 1:4, 1:4, 1:4])


def test_parallel_plans_are_kept_and_told_apart():
    """The same views find their plan again; other views, masks and reductions do not."""
    from custom.fusion.plans import _parallel_plan

    _parallel_plan.cache_clear()
    fusion = FeatureFusion(GRID, DETECTOR, antialias=False)
    features = random_features(1, 3, 2, *DETECTOR)
    first = fusion(features, make_views("parallel"))
    again = fusion(features, make_views("parallel"))
    assert torch.equal(first, again) and _parallel_plan.cache_info().hits == 1
    moved = make_views("parallel")
    moved[0, 3:5] += 5.0
    for arguments in ((moved,), (make_views("parallel"), torch.tensor([True, True, False]))):
        assert not torch.equal(fusion(features, *arguments), first)
    assert _parallel_plan.cache_info().hits == 1


@settings(max_examples=15, deadline=None)
@given(
    angles=st.lists(st.floats(0, 360), min_size=1, max_size=4),
    beams=st.lists(st.booleans(), min_size=4, max_size=4),
    turn=st.sampled_from([(0, 0, 0), (0, 0, 0.4), (0.3, 0, 0), (0.1, -0.5, 0.2), (-0.2, 0.3, -0.6)]),
    shift=st.tuples(*[st.floats(-60, 60)] * 2),
    distance=st.floats(400, 1700),
    pixel=st.floats(8, 60),
    map_shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    reduction=st.sampled_from(["seen", "plain"]),
)
def test_any_pose_equals_loop(angles, beams, turn, shift, distance, pixel, map_shape, reduction):
    views = torch.cat(
        [
            views_from_angles([a], "cone" if b else "parallel", distance, distance * 1.4, pixel, shift)
            for a, b in zip(angles, beams, strict=False)
        ]
    )
    skew = torch.tensor([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]], dtype=torch.float64)
    rotation = torch.linalg.matrix_exp(skew)
    for start in (0, 3, 6, 9):
        views[:, start : start + 3] = views[:, start : start + 3] @ rotation.T
    grid = VolumeGrid((3, 4, 3), (50.0, 40.0, 60.0))
    points = grid.points(dtype=torch.float64).reshape(-1, 3)
    # A point exactly on a detector's border may be seen or not by rounding.
    for view in views:
        for point in points:
            u, v, _ = look(point.numpy(), view.numpy())
            if min(abs(abs(u) - DETECTOR[1] / 2), abs(abs(v) - DETECTOR[0] / 2)) < 1e-6:
                return
    features = random_features(1, len(views), 2, *map_shape)
    expected = slow_fuse(features, views[None], points, DETECTOR, None, reduction, True)
    out = fuse_features(features, views, grid, DETECTOR, None, reduction, True, antialias=False, chunk=17)
    torch.testing.assert_close(out.flatten(2), expected, atol=1e-8, rtol=0)


def test_behind_the_source():
    """Points beside or behind the source of a cone beam are not seen and do no harm."""
    view = views_from_angles([0.0], "cone", 100.0, 150.0, 5.0)
    points = torch.tensor([[0.0, 0, 0], [100.0, 0, 0], [100.0, 5, 0], [150.0, 0, 0]], dtype=torch.float64)
    features = torch.full((1, 1, 1, 8, 8), 3.0, dtype=torch.float64)
    values, seen = sample_features(features, view, points, (8, 8))
    assert seen[0, 0].tolist() == [True, False, False, False]
    assert values[0, 0, 0].tolist() == [3, 0, 0, 0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": torch.zeros(3, 2, 9, 12)}, "features must be floating point"),
        ({"features": torch.zeros(1, 3, 2, 9, 12, dtype=torch.int64)}, "features must be floating point"),
        ({"views": torch.zeros(2, 13)}, r"features are of 1 x 3 views, so views must have shape \(1, 3, 13\)"),
        ({"views": torch.zeros(3, 12)}, "views must have shape"),
        ({"views": torch.zeros(2, 3, 13)}, "views must have shape"),
        ({"view_mask": torch.ones(2, dtype=torch.bool)}, "view_mask must have shape"),
        ({"reduction": "sum"}, "reduction must be one of"),
        ({"points": torch.zeros(5, 2)}, "points must have shape"),
        ({"points": torch.zeros(2, 5, 3)}, "points must have shape"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "features": torch.zeros(1, 3, 2, 9, 12),
        "views": make_views("parallel", 3, torch.float32),
        "points": torch.zeros(5, 3),
        "detector_shape": DETECTOR,
    }
    fuse_points(**arguments)
    with pytest.raises(ValueError, match=message):
        fuse_points(**(arguments | change))
    if "reduction" in change:
        with pytest.raises(ValueError, match=message):
            FeatureFusion(GRID, DETECTOR, **change)
