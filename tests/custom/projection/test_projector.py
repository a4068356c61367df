"""The projector as a linear map: adjoint, gradients, batches, precision, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from custom.geometry import Geometry, VolumeGrid, views_from_angles
from custom.projection import JosephOperator, ParallelOperator, Projector, ProjectorCache, joseph, make_operator
from custom.projection.column_kernels import _compiled
from tests.analytic import turned

GRID = VolumeGrid((20, 24, 16), (6.0, 5.0, 7.0), (4.0, -3.0, 6.0))
SHAPE = (18, 30)


ANGLES = [0.0, 33.0, 90.0, 201.0]
POSES: dict[str, Callable[[], Tensor]] = {
    "parallel": lambda: views_from_angles(ANGLES, "parallel", pixel_mm=(7.5, 6.0), detector_offset_mm=(5.0, -9.0)),
    "parallel, rows are slices": lambda: views_from_angles(ANGLES, "parallel", pixel_mm=7.0, detector_offset_mm=(0, 6)),
    "parallel, tilted": lambda: turned(views_from_angles(ANGLES, "parallel", pixel_mm=8.0)),
    "cone": lambda: views_from_angles(ANGLES, "cone", 800.0, 1300.0, (11.0, 9.0), (6.0, 8.0)),
    "cone, tilted": lambda: turned(views_from_angles(ANGLES, "cone", pixel_mm=11.0)),
    "cone, very wide": lambda: views_from_angles(ANGLES, "cone", 130.0, 200.0, (20.0, 40.0)),
    "both beams": lambda: torch.cat([views_from_angles([20.0], b, pixel_mm=9.0) for b in ("cone", "parallel")]),
}
poses = pytest.mark.parametrize("pose", POSES)


def random_volume(batch: int = 1, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(batch, 1, *GRID.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_image(count: int, batch: int = 1, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.rand(batch, count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@poses
@pytest.mark.parametrize("prepared", [False, True])
def test_adjoint_gap(pose: str, prepared: bool) -> None:
    views = POSES[pose]()
    projector = Projector(GRID, SHAPE)
    x, y = random_volume(2), random_image(len(views), 2)
    operator = projector.operator(views.float())
    with operator.prepared() if prepared else nullcontext():
        forward, back = projector(x, views.float()), projector.adjoint(y, views.float())
    assert (forward > 0).float().mean() > 0.2, "the test must see the volume"
    one, other = (forward.double() * y).sum(), (x.double() * back).sum()
    assert abs(float(one - other)) <= 1e-6 * float(one)


@poses
def test_adjoint_gap_with_signs_in_float64(pose: str) -> None:
    views = POSES[pose]()
    projector = Projector(GRID, SHAPE)
    x, y = random_volume(dtype=torch.float64) - 0.5, random_image(len(views), dtype=torch.float64) - 0.5
    forward, back = projector(x, views), projector.adjoint(y, views)
    gap = abs(float((forward * y).sum() - (x * back).sum()))
    assert gap <= 1e-12 * float(forward.norm() * y.norm())


@pytest.mark.parametrize("pose", ["parallel", "parallel, rows are slices"])
def test_sparse_matrix_is_josephs_method(pose: str) -> None:
    """Two independent implementations, every detector size and offset."""
    views = POSES[pose]()
    for shape in (SHAPE, (16, 30), (9, 7), (33, 64)):
        operator = make_operator(views, GRID, shape)
        assert isinstance(operator, ParallelOperator)
        volume = random_volume(2, torch.float64)[:, 0]
        torch.testing.assert_close(operator.forward(volume), joseph(volume, views, GRID, shape), rtol=1e-9, atol=1e-9)


def test_rows_that_are_slices_are_not_interpolated() -> None:
    views = views_from_angles(ANGLES, "parallel", pixel_mm=7.0, detector_offset_mm=(0, 6))
    assert ParallelOperator(views, GRID, (16, 30))._rows is None
    assert ParallelOperator(views, GRID, (17, 30))._rows is not None


@pytest.mark.parametrize("pose", ["cone", "cone, tilted", "cone, very wide"])
def test_prepared_operator_gives_the_same(pose: str) -> None:
    views = POSES[pose]()
    operator = JosephOperator(views, GRID, SHAPE)
    x, y = random_volume(2, torch.float64)[:, 0], random_image(4, 2, torch.float64)
    plain = operator.forward(x), operator.transpose(y)
    with operator.prepared():
        assert bool(operator._matrices) == (pose == "cone, tilted")
        torch.testing.assert_close((operator.forward(x), operator.transpose(y)), plain, rtol=1e-9, atol=1e-9)
    assert not operator._matrices, "memory is given back"


def test_prepared_operator_keeps_within_its_memory() -> None:
    operator = JosephOperator(POSES["cone, tilted"](), GRID, SHAPE)
    operator.prepared_bytes = 2 * 12 * 4 * 24 * SHAPE[0] * SHAPE[1] + 1000
    with operator.prepared():
        assert 1 <= len(operator._matrices) < 4
        torch.testing.assert_close(
            operator.forward(random_volume(1, torch.float64)[:, 0]),
            joseph(random_volume(1, torch.float64)[:, 0], operator.views, GRID, SHAPE),
        )


@pytest.mark.parametrize("pose", ["cone", "parallel", "source beside the volume"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 1), (33, 7)])
def test_compiled_columns_are_josephs_method(pose: str, shape: tuple[int, int]) -> None:
    """Against the sampling that pose gradients take, and its autograd."""
    near = Geometry.from_poses(
        [[80.0, 0, 0]], [[70.0, -300.0, 0]], [[-10.0, 0, 0]], [[0, 0, -10.0]], detector_shape=SHAPE, grid=GRID
    )
    views = near.views.double() if pose.startswith("source") else POSES[pose]()
    operator = JosephOperator(views, GRID, shape)
    assert len(operator._columns) == len(views)
    volume = random_volume(2, torch.float64)[:, 0].requires_grad_(True)
    sampled = joseph(volume, views, GRID, shape)
    weights = torch.rand(sampled.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (back,) = torch.autograd.grad(sampled, volume, weights)
    torch.testing.assert_close(operator.forward(volume), sampled, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(operator.transpose(weights), back, rtol=1e-9, atol=1e-9)
    single = JosephOperator(views.float(), GRID, shape)
    torch.testing.assert_close(single.forward(volume.float()).double(), sampled, rtol=2e-5, atol=1e-2)
    torch.testing.assert_close(single.transpose(weights.float()).double(), back, rtol=1e-4, atol=1e-2)


def test_compiled_columns_do_not_depend_on_the_number_of_threads() -> None:
    operator, before = JosephOperator(POSES["cone"]().float(), GRID, SHAPE), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3, 50):
            torch.set_num_threads(threads)
            found.append((operator.forward(random_volume(2)[:, 0]), operator.transpose(random_image(4, 2))))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def test_kernels_compile_where_no_cache_can_be_kept() -> None:
    """Numba finds no folder for a function without a file."""
    assert _compiled(eval("lambda x: x + 1"))(1) == 2


@pytest.mark.parametrize("pose", ["parallel", "parallel, tilted", "cone", "cone, tilted", "cone, very wide"])
def test_pose_gradient_is_that_of_finite_differences(pose: str) -> None:
    views = POSES[pose]()
    # Off the symmetric angles: there rays run exactly through voxel centres, where interpolation has a kink.
    views = views[[1, 3]].clone()
    volume, weights = random_volume(dtype=torch.float64), random_image(2, dtype=torch.float64)
    projector = Projector(GRID, SHAPE)

    def loss(v: Tensor) -> Tensor:
        # Views that require a gradient take the general path: upright parallel beams forgive a tilt of a millionth.
        return (projector(volume, v.requires_grad_(True)) * weights).sum()

    leaf = views.clone()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(views.shape, generator=generator, dtype=torch.float64)
        direction[:, 12] = 0
        # In parallel beams the direction is a unit vector, so steps are taken on angles of about the same size.
        direction[:, 0:3] *= 1e-3 if pose.startswith("parallel") else 1.0
        direction[:, 6:12] *= 1e-2
        step = 1e-6
        slope = float((loss(views + step * direction) - loss(views - step * direction)).detach()) / (2 * step)
        terms = gradient * direction
        assert float(terms.sum()) == pytest.approx(slope, rel=1e-5, abs=1e-6 * float(terms.abs().sum()))


@pytest.mark.parametrize("pose", ["cone", "cone, very wide"])
def test_pose_gradient_does_not_depend_on_what_is_kept(pose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for keep in (2**28, 0):
        monkeypatch.setattr("custom.projection.joseph_operator._KEEP_BYTES", keep)
        leaves = POSES[pose]().requires_grad_(True), random_volume(dtype=torch.float64).requires_grad_(True)
        loss = Projector(GRID, SHAPE)(leaves[1], leaves[0]).square().sum()
        found.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_pose_gradient_reaches_angles_and_distances_in_float32() -> None:
    angle = torch.tensor([25.0, 70.0], requires_grad=True)
    distance = torch.tensor(900.0, requires_grad=True)
    views = views_from_angles(angle, "cone", distance, 1400.0, 10.0)
    Projector(GRID, SHAPE)(random_volume(), views).sum().backward()
    for leaf in (angle, distance):
        assert leaf.grad is not None and torch.isfinite(leaf.grad).all() and (leaf.grad != 0).all()


def test_pose_gradient_does_not_change_the_values() -> None:
    for pose, make in POSES.items():
        views = make()
        plain = Projector(GRID, SHAPE)(random_volume(2, torch.float64), views)
        traced = Projector(GRID, SHAPE)(random_volume(2, torch.float64), views.requires_grad_(True))
        torch.testing.assert_close(traced.detach(), plain, rtol=1e-9, atol=1e-9, msg=pose)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_gradient_in_the_volume(beam: str) -> None:
    grid = VolumeGrid((4, 5, 3), (10.0, 10.0, 10.0))
    projector = Projector(grid, (4, 6), views_from_angles([15.0, 100.0], beam, pixel_mm=12.0))
    volume = torch.rand(1, 1, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    image = torch.rand(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(projector, (volume,))
    assert torch.autograd.gradcheck(projector.adjoint, (image,))
    assert torch.autograd.gradgradcheck(lambda v: projector(v).square(), (volume,))


@poses
def test_gradient_in_the_volume_with_and_without_pose_gradient_agree(pose: str) -> None:
    views = POSES[pose]()
    weights = random_image(len(views), dtype=torch.float64)
    gradients = []
    for v in (views, views.clone().requires_grad_(True)):
        volume = random_volume(dtype=torch.float64).requires_grad_(True)
        gradients.append(torch.autograd.grad((Projector(GRID, SHAPE)(volume, v) * weights).sum(), volume)[0])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_batches_with_views_of_their_own(requires_grad: bool) -> None:
    views = torch.stack([POSES[p]() for p in ("parallel", "cone", "cone, tilted")]).float()
    projector, volume = Projector(GRID, SHAPE), random_volume(3)
    together = projector(volume, views.requires_grad_(requires_grad)).detach()
    back = projector.adjoint(together, views)
    assert together.shape == (3, 4, *SHAPE) and back.shape == volume.shape
    for b in range(3):
        torch.testing.assert_close(together[b : b + 1], projector(volume[b : b + 1], views[b]).detach())
        torch.testing.assert_close(back[b : b + 1], projector.adjoint(together[b : b + 1], views[b]))


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_precision(beam: str) -> None:
    geometry = Geometry.from_angles(ANGLES, beam, grid=GRID, detector_shape=SHAPE, pixel_mm=9.0)
    projector = Projector.from_geometry(geometry)
    exact = projector(random_volume(dtype=torch.float64))
    assert exact.dtype == torch.float64
    assert projector.adjoint(exact).dtype == torch.float64
    single = projector(random_volume(dtype=torch.float64).float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=2e-6, atol=2e-4)
    for lower in (torch.bfloat16, torch.float16):
        rounded = random_volume().to(lower)
        found = projector(rounded)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, projector(rounded.float()), rtol=0, atol=0)
        assert projector.adjoint(found.to(lower)).dtype == torch.float32


@pytest.mark.parametrize("pose", ["parallel", "cone"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_autocast_and_matmul_precision_have_no_effect(pose: str, requires_grad: bool) -> None:
    views = POSES[pose]().float().requires_grad_(requires_grad)
    volume = random_volume().requires_grad_(True)

    def run() -> tuple[Tensor, Tensor]:
        projector = Projector(GRID, SHAPE)
        image = projector(volume, views)
        return image, torch.autograd.grad(image.square().sum(), volume)[0]

    plain = run()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = run()
        assert torch.get_float32_matmul_precision() == "medium", "the user's choice is left alone"
    finally:
        torch.set_float32_matmul_precision(before)
    assert inside[0].dtype == torch.float32
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)


def test_operators_are_cached_for_the_same_views_only() -> None:
    projector = Projector(GRID, SHAPE)
    views = POSES["parallel"]().float()
    assert projector.operator(views) is projector.operator(views.clone())
    assert projector.operator(views) is not projector.operator(views.double())
    moved = views.clone()
    moved[0, 3] += 1
    assert projector.operator(views) is not projector.operator(moved)
    for angle in range(20):
        projector.operator(views_from_angles([float(angle)], "parallel"))
    assert len(projector._operators) <= 8


def test_planes_behind_the_source_do_not_count() -> None:
    """A source beside a long volume, a detector at one end: rays that leave the volume see nothing behind them."""
    grid = VolumeGrid((4, 40, 4), (10.0, 10.0, 10.0))
    geometry = Geometry.from_poses(
        [[40.0, 0, 0]], [[30.0, -300.0, 0]], [[-10.0, 0, 0]], [[0, 0, -10.0]], detector_shape=(5, 41), grid=grid
    )
    direction = geometry.views[0, 3] + (20 - torch.arange(41)) * 10.0 - 40.0
    image = Projector.from_geometry(geometry)(torch.ones(1, 1, *grid.shape))[0, 0, 2]
    assert (image[direction > 0] == 0).all(), "these run away from the volume"
    assert (image[(direction < -20) & (direction > -200)] > 0).all()


def test_uniform_box_gives_the_length_of_the_path() -> None:
    grid = VolumeGrid((10, 12, 8), (3.0, 4.0, 5.0))
    views = views_from_angles([0.0, 90.0], "parallel", pixel_mm=1.0)
    image = Projector(grid, (1, 1))(torch.ones(1, 1, *grid.shape), views)
    assert image.flatten().tolist() == pytest.approx([30.0, 48.0], rel=1e-6)


def test_what_is_refused() -> None:
    views = POSES["cone"]().float()
    projector = Projector(GRID, SHAPE)
    with pytest.raises(ValueError, match="no views"):
        projector(random_volume())
    with pytest.raises(ValueError, match=r"volume must be \(B, 1, \*\(20, 24, 16\)\), got \(1, 1, 20, 24, 17\)"):
        projector(torch.zeros(1, 1, 20, 24, 17), views)
    with pytest.raises(ValueError, match="volume must be"):
        projector(torch.zeros(1, 2, *GRID.shape), views)
    with pytest.raises(ValueError, match=r"views must be \(K, 13\) or \(1, K, 13\)"):
        projector(random_volume(), views[:, :12])
    with pytest.raises(ValueError, match=r"views must be .* got \(3, 4, 13\)"):
        projector(random_volume(2), views.expand(3, -1, -1))
    with pytest.raises(ValueError, match=r"there are 4 views, but image \(1, 3, 18, 30\) has 3"):
        projector.adjoint(random_image(3), views)
    with pytest.raises(ValueError, match="image must be"):
        projector.adjoint(torch.zeros(1, 4, 18, 31), views)


def test_the_latest_projectors_are_kept() -> None:
    cache, grids = ProjectorCache(size=2), [VolumeGrid.cube(n, 320.0) for n in (4, 8, 16)]
    first = cache(grids[0], (4, 6))
    cache(grids[1], (4, 6))
    assert cache(grids[0], [4, 6]) is first
    cache(grids[2], (4, 6))
    assert cache(grids[0], (4, 6)) is first, "asked for since the second was"
    cache(grids[1], (4, 6)), cache(grids[2], (4, 6))
    assert cache(grids[0], (4, 6)) is not first
