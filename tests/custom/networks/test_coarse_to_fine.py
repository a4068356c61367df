"""The two-stage reconstructor: regions, stages, and where detail comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from custom.core.checkpoints import load_checkpoint, save_checkpoint
from custom.geometry import VolumeGrid
from custom.networks import CoarseToFineReconstructor, FeatureUNet
from custom.networks.feature_unet import averaging_factor
from custom.networks.population_prior import average_pixels
from custom.training.initial_weights import load_weights
from tests.custom.networks.test_networks import acquisition, fitted_prior


def small(fine: bool = True, grid: VolumeGrid | None = None, **options: object) -> CoarseToFineReconstructor:
    torch.manual_seed(0)
    if fine:
        options |= {
            "fine_encoder": FeatureUNet(3, (4, 6), 3, full_resolution_skip=True, in_channels=2),
            "fine_network": {"widths": (4, 6), "encoder_blocks": (1, 1), "decoder_blocks": (1,), "norm": "voxel"},
        }
    network = CoarseToFineReconstructor(
        FeatureUNet(4, (4, 6, 8), 3, output_stride=2),
        grid or VolumeGrid.cube(16, 320),
        {"widths": (4, 6), "encoder_blocks": (1, 1), "decoder_blocks": (1,)},
        VolumeGrid((12, 12, 8), (320 / 8,) * 3),
        rough_iterations=3,
        prior=fitted_prior(),
        precision="fp32",
        **options,  # type: ignore[arg-type]
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.mark.parametrize("beam", ["parallel", "cone"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_views_give_the_grid(count: int, beam: str) -> None:
    image, views = acquisition(count, beam=beam)
    with torch.no_grad():
        assert small()(image, views).shape == (1, 1, 16, 16, 16)
        assert small()(image, views, coarse=True).shape == (1, 1, 12, 12, 8)


@pytest.mark.parametrize("fine", [False, True])
def test_a_region_is_its_part_of_the_whole(fine: bool) -> None:
    """To the voxel without the fine stage; with it where its convolutions do not see the region's border."""
    image, views = acquisition(2)
    network = small(fine, grid=VolumeGrid.cube(48, 320))
    region = network.grid.part((4, 0, 0), (44, 44, 48))
    with torch.no_grad():
        whole, alone = network(image, views)[..., 4:, :44, :], network(image, views, region=region)
    assert alone.shape == (1, 1, 44, 44, 48)
    inner = (..., *[slice(21, 23)] * 3) if fine else ...
    torch.testing.assert_close(alone[inner], whole[inner], atol=1e-4, rtol=0)


@pytest.mark.parametrize("fine", [False, True])
def test_several_regions_are_those_that_each_would_be(fine: bool) -> None:
    image, views = acquisition(2)
    image, views = torch.cat([image, image.flip(3)]), views.expand(2, -1, -1)
    network = small(fine)
    parts = [network.grid.part(corner, (8, 8, 8)) for corner in ((0, 0, 0), (5, 8, 3))]
    with torch.no_grad():
        together = network(image, views, region=parts)
        alone = [network(image, views, region=part) for part in parts]
    assert together.shape == (4, 1, 8, 8, 8)
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.allclose(together[:2], together[2:], atol=1e-2)


def test_the_fine_stage_alone_is_trained_on_regions() -> None:
    image, views = acquisition(2)
    network = small().train()
    network(image, views, region=VolumeGrid.cube(16, 320).part((0, 0, 0), (8, 8, 8))).square().sum().backward()
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert trained == {"fine_encoder", "fine_network"}
    network.zero_grad()
    network(image, views, coarse=True).square().sum().backward()
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert trained == {"encoder", "volume_network"}


def test_the_fine_stage_sees_what_is_left_unexplained() -> None:
    """Pixels of 20 mm that the encoder of the coarse stage averages away reach the result through the fine stage."""
    image, views = acquisition(2)
    ripple = torch.zeros_like(image)
    ripple[..., ::2], ripple[..., 1::2] = 0.5, -0.5
    change = {}
    with torch.no_grad():
        for fine in (False, True):
            network = small(fine, feature_spacing_mm=40.0)
            change[fine] = float((network(image + ripple, views) - network(image, views)).abs().max())
    assert change[False] < 1e-4 < 1e-3 < change[True]


def test_a_coarse_checkpoint_starts_the_fine_stage(tmp_path: Path) -> None:
    coarse, network = small(fine=False), small()
    save_checkpoint(tmp_path / "coarse.pt", coarse)
    untrained = network.fine_network.leave.weight.clone()  # type: ignore[union-attr]
    load_weights(network, tmp_path / "coarse.pt")
    torch.testing.assert_close(network.state_dict()["encoder.head.weight"], coarse.state_dict()["encoder.head.weight"])
    torch.testing.assert_close(network.fine_network.leave.weight, untrained)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="another architecture"):
        load_checkpoint(tmp_path / "coarse.pt").load_into(network)
    save_checkpoint(tmp_path / "fine.pt", network)
    with pytest.raises(ValueError, match="unknown"):
        load_weights(coarse, tmp_path / "fine.pt")


def test_fine_encoder_and_network_go_together() -> None:
    with pytest.raises(ValueError, match="go together"):
        small(fine=False, fine_network={"widths": (4, 6), "encoder_blocks": (1, 1), "decoder_blocks": (1,)})


def test_smooth_errors_of_radiographs_are_not_taken_for_tissue() -> None:
    """Too bright an open beam moves a volume that is made consistent with everything, and hardly the other."""
    image, views = acquisition(2)
    moved = {}
    with torch.no_grad():
        for detail in (None, 60.0):
            network = small(fine=False, consistency_iterations=10, consistency_detail_mm=detail)
            coarse = network.coarse_volume(image, network._encode(image, views), views, None, None)
            network.coarse_volume = lambda *_, coarse=coarse: coarse  # type: ignore[method-assign]
            moved[detail] = float((network(image - 0.3, views) - network(image, views)).abs().mean())
    assert moved[60.0] < 0.1 * moved[None]


def test_consistency_explains_the_radiographs_better() -> None:
    image, views = acquisition(2)
    left = []
    with torch.no_grad():
        for iterations in (0, 15):
            network = small(fine=False, consistency_iterations=iterations, consistency_detail_mm=None)
            water = network._to_water(network(image, views))
            seen = network._projector(network.grid, image.shape[2:])(water, views)
            left.append(float((network._water_path(image) - seen).norm()))
    assert left[1] < 0.9 * left[0]


def test_pixels_are_averaged_by_their_size_at_the_isocentre() -> None:
    """By what the views say, not by the grid's voxels: pixels of 20 mm become 40 mm, those of 40 mm stay."""
    network = small(fine=False, feature_spacing_mm=40.0)
    image, views = acquisition(2, beam="cone")
    assert averaging_factor(40.0, views) == 2
    averaged, wider = average_pixels(image, views, 2)
    assert averaging_factor(40.0, wider) == 1
    with torch.no_grad():
        found, expected = network._encode(averaged, wider), network._encode(image, views)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing_whatever_it_holds() -> None:
    image, views = acquisition(2)
    network, nothing = small(), torch.full((1, 1, 16, 24), torch.nan)
    padded = (
        torch.cat([nothing, image, nothing], 1),
        torch.cat([torch.zeros(1, 1, 13), views, torch.zeros(1, 1, 13)], 1),
    )
    mask = torch.tensor([[False, True, True, False]])
    with torch.no_grad():
        torch.testing.assert_close(network(*padded, mask), network(image, views), atol=1e-4, rtol=1e-4)


def test_cases_of_a_batch_have_pixels_of_one_size() -> None:
    """One averaging serves the batch: a case must not come out by what stands beside it."""
    image, views = acquisition(2)
    wider = views.clone()
    wider[..., 6:12] *= 2
    with pytest.raises(ValueError, match=r"pixels of one size at the isocentre, got \[20.0, 40.0\] mm"):
        small()(torch.cat([image, image]), torch.cat([views, wider]))
