"""X2CT: published sizes, the frame that its two views meet in, what it refuses, its loss and its trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from custom.benchmark import network_row
from custom.core.checkpoints import build_network, definition, load_checkpoint, save_checkpoint
from custom.geometry import VolumeGrid
from custom.models import reconstruct_volume
from custom.networks import X2CT, X2CTDiscriminator
from custom.networks.x2ct_planes import FRONTAL, LATERAL, face_picture, ray_deviation_deg, swap_frame
from custom.projection import Projector
from tests.custom.networks.tiny_x2ct import GRID, network, views_at

#: A place that no mirroring or exchange of axes leaves where it is.
VOXEL = (3, 10, 5)


def point_radiographs(views: Tensor, grid: VolumeGrid = GRID, shape: tuple[int, int] = (16, 20)) -> Tensor:
    """Line integrals of one bright voxel."""
    volume = torch.zeros(1, 1, *grid.shape)
    volume[0, 0, *VOXEL] = 1.0
    return Projector(grid, shape)(volume, views)


def peak(volume: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(volume.argmax(), volume.shape))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- sizes ---


def test_published_parameter_counts_at_128() -> None:
    with torch.device("meta"):
        two, one = X2CT(VolumeGrid(), 2), X2CT(VolumeGrid(), 1)
    assert parameters(two) == 61_740_467
    assert parameters(one) == 29_384_481
    assert parameters(X2CTDiscriminator()) == 11_055_169
    assert parameters(two.branches[0]) == parameters(one), "the branches keep their own output layers"


def test_one_stage_less_keeps_the_start_and_the_lower_stages() -> None:
    grid = VolumeGrid((64, 64, 64), (5.0, 5.0, 5.0))
    with torch.device("meta"):
        full = X2CT(VolumeGrid(), 1).branches[0]
        less = X2CT(grid, 1, dense_layers=[12, 24, 16, 6], decoder_channels=[16, 32, 64, 128, 256]).branches[0]
    assert full.side == less.side == 4
    assert full.start[0].out_features == less.start[0].out_features == 256 * 4**3
    assert len(full.stages) - 1 == len(less.stages) == 4
    layers = [len(stage.layers) for stage in full.stages]
    assert layers == [6, 12, 24, 16, 6] and layers[1:] == [len(stage.layers) for stage in less.stages]


def test_the_volume_has_the_grids_shape_and_the_windows_lower_end() -> None:
    net, views = network().eval(), views_at(0, 90)
    image = torch.rand(2, 2, 16, 20)
    with torch.no_grad():
        pred = net(image, views.expand(2, -1, -1))
        assert pred.shape == (2, 1, 16, 16, 16) and pred.dtype == torch.float32
        assert pred.min() >= -1 and pred.std() > 0.01
        # The cases of a batch do not see each other: the normalisation is of one case.
        torch.testing.assert_close(net(image[1:], views)[0], pred[1], rtol=1e-4, atol=1e-4)
        # No radiograph is divided by its own maximum, but a constant factor is normalised away.
        assert (net(image.flip(0), views.expand(2, -1, -1)) - pred).abs().max() > 1e-3


# --- the frame ---


@pytest.mark.parametrize("pair", [(0, 90), (180, 90), (0, 270), (180, 270), (90, 0)])
@pytest.mark.parametrize("shape, pixel", [((16, 20), 10.0), ((16, 16), 10.0), ((36, 40), 5.0)])
def test_expanded_radiographs_of_a_point_meet_at_the_point(
    pair: tuple[int, int], shape: tuple[int, int], pixel: float
) -> None:
    views = views_at(*pair, pixel_mm=pixel)
    spread = network().expanded(point_radiographs(views, shape=shape), views)
    assert spread.shape == (1, 2, *GRID.shape)
    assert peak(spread[0].prod(0)) == VOXEL
    lateral, frontal = spread[0]
    assert torch.equal(lateral, lateral[:1].expand_as(lateral)), "along x"
    assert torch.equal(frontal, frontal[:, :1].expand_as(frontal)), "along y"


def test_parallel_radiographs_of_the_voxels_size_are_taken_over_as_they_are() -> None:
    views = views_at(0, 90)
    image = torch.rand(1, 2, 16, 20)
    cut = image[0, :, :, 2:18]
    lateral = face_picture(image[:, 0], views[:, 0], GRID, LATERAL)[0, 0]
    frontal = face_picture(image[:, 1], views[:, 1], GRID, FRONTAL)[0, 0]
    # Rows run downwards; u runs along y at 0 degrees and against x at 90.
    torch.testing.assert_close(lateral, cut[0].flip(0).T, rtol=0, atol=1e-5)
    torch.testing.assert_close(frontal, cut[1].flip(0, 1).T, rtol=0, atol=1e-5)


def test_a_cone_beam_is_brought_to_its_size_at_the_isocentre() -> None:
    views = views_at(0, 90, beam="cone", pixel_mm=15.0, source_to_isocenter_mm=20000.0, source_to_detector_mm=30000.0)
    spread = network().expanded(point_radiographs(views), views)
    assert peak(spread[0].prod(0)) == VOXEL


def test_a_grid_beside_the_isocentre_and_a_shifted_detector_still_fit() -> None:
    grid = VolumeGrid(GRID.shape, GRID.spacing_mm, (20.0, -30.0, 10.0))
    views = views_at(0, 90, detector_offset_mm=(25.0, -15.0))
    image = point_radiographs(views, grid, (28, 36))
    assert peak(network(grid=grid).expanded(image, views)[0].prod(0)) == VOXEL


@pytest.mark.parametrize("pair", [(0, 90), (270, 180)])
def test_features_of_both_branches_meet_at_the_point(pair: tuple[int, int]) -> None:
    """Inside the network: what the links spread along the rays, with weights that let the picture pass."""
    net, views = network().eval(), views_at(*pair)
    spread: list[Tensor] = []
    with torch.no_grad():
        for branch in net.branches:
            for convolution in (branch.stem[1], branch.links[0].flat[0]):
                convolution.weight.zero_()
                middle = convolution.weight.shape[-1] // 2
                convolution.weight[0, 0, middle, middle] = 1.0
            branch.links[0].deep.register_forward_pre_hook(lambda _, inputs: spread.append(inputs[0]))
        net(point_radiographs(views), views)
    lateral, frontal = (swap_frame(features, plane)[0, 0] for plane, features in enumerate(spread))
    assert lateral.shape == GRID.shape
    assert peak(lateral * frontal) == VOXEL


def test_the_branches_average_in_the_volumes_axes() -> None:
    """A network whose branches give x and y of their own depth: the fused volume sees both in place."""
    net = network()
    seen: list[Tensor] = []
    decoder = net.decoder
    assert decoder is not None
    decoder.merge[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    depth = torch.arange(16.0)[:, None, None].expand(1, 4, 16, 16, 16)
    for branch in net.branches:
        branch.decoder.merge[0].register_forward_hook(lambda *_: depth)
    net(torch.rand(1, 2, 16, 20), views_at(0, 90))
    x, y = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    torch.testing.assert_close(seen[0][0, 0], ((x + y) / 2)[..., None].expand(16, 16, 16))


def test_the_order_of_the_views_and_padding_do_not_matter() -> None:
    net, views = network().eval(), views_at(0, 90)
    image = torch.rand(1, 2, 16, 20)
    with torch.no_grad():
        pred = net(image, views)
        assert torch.equal(net(image.flip(1), views.flip(1)), pred)
        padded, mask = torch.cat([torch.rand(1, 1, 16, 20), image], 1), torch.tensor([[False, True, True]])
        assert torch.equal(net(padded, torch.cat([torch.zeros(1, 1, 13), views], 1), mask), pred)
        stored = network(views=views[0]).eval()
        assert torch.equal(stored(image), pred)


def test_one_branch_serves_either_plane_case_by_case() -> None:
    net = network(1).eval()
    views = torch.cat([views_at(0), views_at(90)])
    image = torch.rand(2, 1, 16, 20)
    with torch.no_grad():
        both = net(image, views)
        for b in range(2):
            torch.testing.assert_close(net(image[b : b + 1], views[b : b + 1])[0], both[b], rtol=1e-4, atol=1e-4)
        # The same picture in another plane is the same volume, turned.
        same = net(torch.cat([image[:1].flip(3), image[:1]]), views)
    torch.testing.assert_close(same[0], same[1].transpose(1, 2), rtol=1e-4, atol=1e-4)


# --- what it refuses ---


@pytest.mark.parametrize(
    "count, angles, message",
    [
        (2, (0, 45, 90), r"for 2 radiograph\(s\), a lateral and a frontal one, got 3.*not for more"),
        (2, (0, 45, 90, 135), "got 4"),
        (2, (90,), r"for 2 radiograph\(s\).*got 1.*train the network"),
        (1, (0, 90), r"for 1 radiograph\(s\), a lateral or a frontal one, got 2"),
        (2, (0, 45), r"view 2 of case 1 run up to 45\.0 degrees off the (lateral|frontal) ones"),
        (2, (0, 100), r"view 2 of case 1 run up to 10\.0 degrees off the frontal ones"),
        (2, (0, 180), "got two lateral ones"),
        (2, (90, 270), "got two frontal ones"),
        (1, (30,), r"30\.0 degrees off the lateral"),
    ],
)
def test_views_that_the_architecture_has_no_place_for(count: int, angles: tuple[float, ...], message: str) -> None:
    net, views = network(count), views_at(*angles)
    with pytest.raises(ValueError, match=message):
        net(torch.rand(1, len(angles), 16, 20), views)
    with pytest.raises(ValueError, match=message):
        net.require_angles(angles)


def test_tolerance_is_a_number_and_counts_every_ray_through_the_cube() -> None:
    image = torch.rand(1, 2, 16, 20)
    near = views_at(4, 92)
    assert network()(image, near).shape == (1, 1, 16, 16, 16)
    with pytest.raises(ValueError, match=r"within 3 degrees .* up to 4.0"):
        network(angle_tolerance_deg=3.0)(image, near)
    cone = views_at(0, 90, beam="cone")
    # From 1000 mm to the near corners of the 160 mm cube: atan(80 sqrt(2) / 920) = 7.01 degrees.
    assert ray_deviation_deg(cone, GRID)[0, 0, LATERAL].item() == pytest.approx(7.012, abs=0.01)
    assert ray_deviation_deg(cone, GRID)[0, 1, FRONTAL].item() == pytest.approx(7.012, abs=0.01)
    with pytest.raises(ValueError, match=r"up to 7\.0 degrees off the lateral"):
        network()(image, cone)
    assert network(angle_tolerance_deg=8.0)(image, cone).shape == (1, 1, 16, 16, 16)
    # A tube that looks down is no lateral view, however well it stands at the side.
    tilted = torch.stack([near[0, 0], near[0, 1]])[None].clone()
    tilted[0, 0, :3] = torch.tensor([-0.9848, 0.0, -0.1736])
    with pytest.raises(ValueError, match=r"up to 10\.0 degrees"):
        network()(image, tilted)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"view_count": 3}, "1 or 2 views, got view_count 3"),
        ({"grid": VolumeGrid((16, 16, 20))}, "needs a cube"),
        ({"grid": VolumeGrid((18, 18, 18))}, "multiple of 4"),
        ({"grid": VolumeGrid((4, 4, 4))}, "at least 8 voxels"),
        ({"decoder_channels": (4, 4)}, "one more than the 2 stages"),
        ({"precision": "half"}, "precision"),
    ],
)
def test_networks_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**changes)


def test_inputs_that_do_not_fit_each_other() -> None:
    net, image = network(), torch.rand(1, 2, 16, 20)
    with pytest.raises(ValueError, match=r"image must be \(B, K, V, U\)"):
        net(image[0], views_at(0, 90))
    with pytest.raises(ValueError, match="no views"):
        net(image)
    with pytest.raises(ValueError, match="do not match views"):
        net(image, views_at(0, 45, 90))
    with pytest.raises(ValueError, match="view_mask must be"):
        net(image, views_at(0, 90), torch.ones(1, 3, dtype=torch.bool))


# --- checkpoint, reconstruction, benchmark ---


def test_a_checkpoint_builds_it_and_a_row_of_the_benchmark_runs_it(tmp_path: Any) -> None:
    net, views = network(views=views_at(0, 90)[0]).eval(), views_at(0, 90)
    path = save_checkpoint(tmp_path / "model.pt", net, {"preset": "default"})
    rebuilt = load_checkpoint(path).network(precision="fp32")
    assert definition(rebuilt) == definition(net) and isinstance(build_network(definition(net)), X2CT)
    image = torch.rand(2, 16, 24)
    expected = reconstruct_volume(net, image, views[0])
    assert expected.shape == GRID.shape and -1000 <= expected.min() < expected.max() <= 1000
    for grid in (None, GRID):
        torch.testing.assert_close(network_row("x2ct", path, grid).run(image, views[0]), expected)
    with pytest.raises(ValueError, match="the weights belong to another architecture"):
        network_row("x2ct", path, VolumeGrid((32, 32, 32), (5.0, 5.0, 5.0)))
    with pytest.raises(ValueError, match="got 4"):
        network_row("x2ct", path).run(torch.rand(4, 16, 24), views_at(0, 45, 90, 135)[0])


def test_the_outputs_rectifier_leaks_in_training_alone() -> None:
    """The published one can die: nothing leads back from a volume of air."""
    image, views = torch.rand(1, 2, 16, 20), views_at(0, 90)
    for slope, alive in ((0.0, False), (0.01, True)):
        net = network(training_slope=slope)
        assert net.decoder is not None
        nn.init.constant_(net.decoder.head.bias, -100.0)
        net(image, views).mean().backward()
        assert bool((net.decoder.head.weight.grad != 0).any()) is alive
        with torch.no_grad():
            assert (net.eval()(image, views) == -1).all()


def test_bf16_and_fp32_agree() -> None:
    image, views = torch.rand(1, 2, 16, 20), views_at(0, 90)
    net = network().eval()
    with torch.no_grad():
        full = net(image, views)
        net.precision = "bf16"
        half = net(image, views)
    assert half.dtype == torch.float32
    assert (half - full).norm() < 0.1 * full.norm()
