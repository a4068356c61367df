"""The implicit network: published sizes, geometry, chunks, any number of views."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from custom.core.attenuation import hu_to_attenuation
from custom.core.precision import uses_bf16
from custom.geometry import Geometry, VolumeGrid
from custom.networks import FeatureUNet, FourierFeatures, ImplicitReconstructor, PointMLP, PopulationPrior, VolumeUNet
from custom.networks.population_prior import average_pixels
from custom.projection import Projector

RELEASED_FREQUENCIES = [[-8.9113, 19.1638, -8.8575], [3.9577, 10.2506, 3.8891], [12.1395, 5.0181, 12.4339]]
SINE = {"width": 128, "depth": 3, "block": "residual", "activation": "sine", "w0": 50.0, "tied": True}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def fitted_prior() -> PopulationPrior:
    """Of balls of water that differ in place and size."""
    prior = PopulationPrior(VolumeGrid((6, 6, 4), (80.0,) * 3), components=6)
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(64, 1, 1, 1, 3, generator=generator) * 80 - 40
    radii = torch.rand(64, 1, 1, 1, generator=generator) * 60 + 100
    prior.fit(((prior.grid.points() - centers).norm(dim=-1) < radii).float())
    return prior


def small(size: int = 16, volume_network: bool = True, **options: object) -> ImplicitReconstructor:
    torch.manual_seed(0)
    if volume_network:
        options |= {
            "volume_network": {"widths": (4, 6), "encoder_blocks": (1, 1), "decoder_blocks": (1,)},
            "coarse_grid": VolumeGrid((12, 12, 8), (320 / 8,) * 3),
            "rough_iterations": 3,
            "prior": fitted_prior(),
        }
    network = ImplicitReconstructor(
        FeatureUNet(4, (4, 6, 8), 3, output_stride=2),
        VolumeGrid.cube(size, 320),
        FourierFeatures(count=4, scale=1.0),
        {"width": 8, "depth": 1, "activation": "silu", "tied": False},
        {"width": 8, "depth": 1, "activation": "silu", "tied": False},
        precision="fp32",
        **options,  # type: ignore[arg-type]
    )
    for parameter in network.parameters():  # the zero layers of a fresh network would hide what follows them
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


def acquisition(count: int, size: int = 16, beam: str = "parallel") -> tuple[Tensor, Tensor]:
    geometry = Geometry.from_angles(
        [180 / count * k for k in range(count)], beam=beam, grid=VolumeGrid.cube(size, 320), detector_shape=(16, 24)
    )
    image = torch.rand(1, count, 16, 24, generator=torch.Generator().manual_seed(1)) * 5
    return image, geometry.tensor()[None]


def test_released_code_has_the_published_sizes() -> None:
    network = ImplicitReconstructor(
        FeatureUNet(),
        VolumeGrid(),
        FourierFeatures(frequencies=RELEASED_FREQUENCIES, axes=(2, 1, 0)),
        SINE,
        {"width": 128, "depth": 4, "block": "plain", "activation": "sine", "w0": 50.0, "stem": False},
        separate_view_mlps=2,
        plain_mean=True,
    )
    assert parameters(network.encoder) == 20_284_224  # type: ignore[arg-type]
    assert [parameters(mlp) for mlp in network.view_mlps] == [67_200, 67_200]
    assert parameters(network.volume_mlp) == 66_177
    assert parameters(network) == 20_484_801


def test_released_geometry_is_axis_repetition() -> None:
    """Released: the frontal image (z, x) is repeated along y and the lateral (z, y) along x, without flips. Ours has
    rows downwards (v reversed) and, at 90 degrees, columns towards the patient's left (u reversed)."""
    n = 8
    geometry = Geometry.from_angles([0, 90], beam="parallel", grid=VolumeGrid.cube(n, 320), detector_shape=(n, n))

    class Identity(nn.Module):
        out_channels, output_stride = 1, 1

        def forward(self, image: Tensor) -> Tensor:
            return image

    torch.manual_seed(0)
    network = ImplicitReconstructor(
        Identity(),
        VolumeGrid.cube(n, 320),
        FourierFeatures(frequencies=RELEASED_FREQUENCIES, axes=(2, 1, 0)),
        {**SINE, "width": 16},
        {"width": 16, "depth": 4, "block": "plain", "activation": "sine", "w0": 50.0, "stem": False},
        separate_view_mlps=2,
        plain_mean=True,
        coordinate_half_side_mm=160 * (n - 1) / n,
        radiograph_scale=1.0,
        precision="fp32",
    )
    lateral, frontal = torch.rand(2, n, n)  # as released: [z, y] and [z, x]
    ours = torch.stack([lateral.flip(0), frontal.flip(0, 1)])[None]
    pred = network(ours, geometry.tensor())[0, 0]

    axis = torch.linspace(-1, 1, n)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    released_points = torch.stack([z, y, x], -1)
    phase = 2 * torch.pi * released_points @ torch.tensor(RELEASED_FREQUENCIES).T
    encoded = torch.cat([released_points, phase.cos(), phase.sin()], -1)
    repeated = [lateral[:, :, None].expand(n, n, n), frontal[:, None, :].expand(n, n, n)]
    embedded = [
        mlp(torch.cat([feature[..., None], encoded], -1))
        for mlp, feature in zip(network.view_mlps, repeated, strict=True)
    ]
    expected = network.volume_mlp((embedded[0] + embedded[1]) / 2)[..., 0].permute(2, 1, 0)
    torch.testing.assert_close(pred, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_any_number_of_views(count: int, beam: str) -> None:
    image, views = acquisition(count, beam=beam)
    with torch.no_grad():
        pred = small()(image, views)
    assert pred.shape == (1, 1, 16, 16, 16)
    assert torch.isfinite(pred).all()


@pytest.mark.parametrize("volume_network", [True, False])
def test_chunks_do_not_change_the_result(volume_network: bool) -> None:
    image, views = acquisition(3)
    with torch.no_grad():
        whole = small(volume_network=volume_network)(image, views)
        pieces = small(volume_network=volume_network, points_per_chunk=100)(image, views)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)


def test_chunks_do_not_change_the_gradient() -> None:
    image, views = acquisition(2)
    gradients = []
    for chunk in (10**6, 500):
        network = small(points_per_chunk=chunk).train()
        network(image, views).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_points_are_the_volume_at_their_place() -> None:
    network = small().train()  # training: no consistency step
    image, views = acquisition(2)
    with torch.no_grad():
        volume = network(image, views)
        patch = network.grid.points()[3:7, 5:9, 2:6][None]
        pred = network(image, views, points=patch)
    assert pred.shape == (1, 1, 4, 4, 4)
    torch.testing.assert_close(pred, volume[:, :, 3:7, 5:9, 2:6], atol=1e-5, rtol=1e-5)


def test_masked_views_count_for_nothing() -> None:
    network = small()
    image, views = acquisition(3)
    mask = torch.tensor([[True, False, True]])
    with torch.no_grad():
        expected = network(image[:, [0, 2]], views[:, [0, 2]])
        disturbed = image.clone()
        disturbed[:, 1] = 100
        pred = network(disturbed, views, mask)
    # The masked view leaves its rows in SIRT's operator, so that sums round differently.
    torch.testing.assert_close(pred, expected, atol=1e-4, rtol=1e-4)


def test_the_order_of_views_does_not_matter() -> None:
    network = small()
    image, views = acquisition(4)
    order = [2, 0, 3, 1]
    with torch.no_grad():
        torch.testing.assert_close(
            network(image[:, order], views[:, order]), network(image, views), atol=1e-4, rtol=1e-4
        )


def test_consistency_brings_the_radiographs_closer() -> None:
    _, views = acquisition(4)
    residuals = []
    for iterations in (0, 10):
        network = small(size=24, consistency_iterations=iterations)
        projector = Projector(network.grid, (16, 24))
        patient = (network.grid.points().norm(dim=-1) < 100)[None, None].float()
        image = projector(hu_to_attenuation(patient * 1000 - 1000), views)
        with torch.no_grad():
            volume = network._to_water(network(image, views))
        residuals.append(float((projector(volume, views) - network._water_path(image)).norm()))
    assert residuals[1] < 0.5 * residuals[0]


def test_without_a_correction_the_priors_estimate_is_pulled_to_the_radiographs() -> None:
    coarse, (_, views) = VolumeGrid((12, 12, 8), (40.0,) * 3), acquisition(2)
    wide = Projector(VolumeGrid((24, 24, 16), (20.0,) * 3), (16, 24))
    patient = (wide.grid.points().norm(dim=-1) < 100)[None, None].float()
    image = wide(hu_to_attenuation(patient * 1000 - 1000), views[0])
    predictions = []
    for iterations in (0, 12):
        torch.manual_seed(0)
        network = ImplicitReconstructor(
            FeatureUNet(4, (4, 6, 8), 3),
            VolumeGrid.cube(16, 320),
            FourierFeatures(count=4),
            {"width": 8, "depth": 1},
            {"width": 8, "depth": 1},
            volume_network={"widths": (4, 6), "encoder_blocks": (1, 1), "decoder_blocks": (1,)},
            coarse_grid=coarse,
            rough_iterations=iterations,
            prior=fitted_prior(),
        )
        nn.init.zeros_(network.volume_network.leave.weight)  # type: ignore[union-attr, arg-type]
        with torch.no_grad():
            predictions.append(network._to_water(network(image, views, coarse=True)))
    prior = fitted_prior()
    expected = prior.on(coarse, prior.estimate(network._water_path(image), views, None, 4)).clamp(0, 2)
    torch.testing.assert_close(predictions[0], expected, atol=1e-4, rtol=1e-4)
    projector, (seen, doubled) = Projector(coarse, (8, 12)), average_pixels(network._water_path(image), views, 2)
    before, after = ((projector(p, doubled) - seen).norm() for p in predictions)
    assert after < 0.5 * before


def test_each_case_of_a_batch_may_meet_a_prior_of_its_own() -> None:
    """In training: one that has not seen it. In use the network's own."""
    network, (image, views) = small(prior=fitted_prior()), acquisition(2)
    other = fitted_prior()
    other.mean += 0.2
    with torch.no_grad():
        own = network(image, views, coarse=True)
        torch.testing.assert_close(network(image, views, coarse=True, priors=[network.prior]), own)  # type: ignore
        both = network(image.repeat(2, 1, 1, 1), views.repeat(2, 1, 1), coarse=True, priors=[network.prior, other])  # type: ignore
        torch.testing.assert_close(both[:1], own)
        assert float((both[1] - own[0]).abs().mean()) > 1e-3


def test_any_detector_that_the_stride_divides() -> None:
    """Rows and columns that cannot be halved often enough are padded with air, and the padding is cut off again."""
    torch.manual_seed(0)
    encoder = FeatureUNet(3, (4, 6, 8), 3, output_stride=2)
    image = torch.zeros(1, 1, 16, 24)
    image[..., :14, :18] = torch.rand(14, 18)
    with torch.no_grad():
        found = encoder(image[..., :14, :18])
        assert found.shape == (1, 3, 7, 9)
        torch.testing.assert_close(found[..., :5, :7], encoder(image[..., :16, :20])[..., :5, :7])


def test_features_of_larger_pixels() -> None:
    """The encoder reads averaged radiographs; what is finer than its pixels it cannot see."""
    network = small(volume_network=False, feature_spacing_mm=40.0)
    image, views = acquisition(2)
    ripple = torch.zeros_like(image)
    ripple[..., ::2], ripple[..., 1::2] = 0.5, -0.5
    with torch.no_grad():
        torch.testing.assert_close(network(image + ripple, views), network(image, views), atol=1e-5, rtol=1e-5)
        assert network._encode(image, views).shape == (1, 2, 4, 4, 6)  # type: ignore[union-attr]


@pytest.mark.parametrize("supported", [True, False])
def test_auto_precision_takes_bf16_where_the_processor_has_it(supported: bool, monkeypatch) -> None:
    monkeypatch.setattr("custom.core.precision._CPU_HAS_BF16", supported)
    cpu = torch.device("cpu")
    assert uses_bf16("auto", cpu) == supported
    assert uses_bf16("bf16", cpu) and not uses_bf16("fp32", cpu)
    with pytest.raises(ValueError, match="precision must be one of"):
        uses_bf16("fp16", cpu)


def test_fixed_views_serve_forward_without_views() -> None:
    image, views = acquisition(2)
    with torch.no_grad():
        torch.testing.assert_close(small(views=views[0])(image), small()(image, views))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image, views: (image[0], views), "image must be"),
        (lambda image, views: (image, views[:, :1]), "2 radiographs of 1 cases do not match"),
        (lambda image, views: (image, None), "no views"),
        (lambda image, views: (image[..., :11], views), "multiples of 2"),
    ],
)
def test_inputs_that_do_not_match(change: object, message: str) -> None:
    image, views = acquisition(2)
    with pytest.raises(ValueError, match=message):
        small()(*change(image, views))  # type: ignore[operator]


def test_what_a_network_without_the_parts_refuses() -> None:
    image, views = acquisition(2)
    with pytest.raises(ValueError, match="no coarse prediction"):
        small(volume_network=False)(image, views, coarse=True)
    with pytest.raises(ValueError, match="prior is read by the volume_network"):
        small(volume_network=False, prior=fitted_prior())
    with pytest.raises(ValueError, match=r"multiples of 3, the pixels that the encoder reads as one; got \(16, 24\)"):
        small(feature_spacing_mm=60.0)(image, views)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small(precision="fp16"), "multiple values|precision"),
        (lambda: FeatureUNet(output_stride=3), "power of two"),
        (lambda: PointMLP(4, block="dense"), "block"),
        (lambda: PointMLP(4, width=8, stem=False), "without a stem"),
        (lambda: PointMLP(4, activation="relu"), "activation"),
        (lambda: FourierFeatures(frequencies=[[1.0, 2.0]]), "three numbers"),
        (lambda: VolumeUNet(1, 1, (4, 8), (1,), (1,)), "encoder_blocks"),
    ],
)
def test_wrong_arguments(build: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        build()  # type: ignore[operator]


def test_fourier_features_ignore_autocast() -> None:
    fourier = FourierFeatures(count=4, scale=10.0)
    points = torch.rand(100, 3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = fourier(points)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, fourier(points))
