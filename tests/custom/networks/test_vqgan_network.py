"""The autoencoder, its codebook and its discriminators."""

from __future__ import annotations

from pathlib import Path

import ignite.distributed as idist
import pytest
import torch
from ignite.handlers import EMAHandler

from custom.core.checkpoints import load_checkpoint, save_checkpoint
from custom.geometry import VolumeGrid
from custom.networks import VQGAN, CodebookQuantiser, VolumeSliceDiscriminator
from custom.networks.codebook_quantiser import codebook_perplexity
from custom.networks.vqgan import CodedVolume

GRID = VolumeGrid((16, 16, 16), (5.0, 5.0, 5.0))
SMALL = {"encoder_widths": (8, 8), "decoder_widths": (8, 8), "codes": 32, "embedding_dim": 4, "precision": "fp32"}


def network(**changes: object) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(GRID, **{**SMALL, **changes})  # type: ignore[arg-type]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- the codebook ---


def test_nearest_codes_are_those_of_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    quantiser = CodebookQuantiser(codes=37, dim=5)
    latent = torch.randn(2, 5, 3, 4, 5)
    monkeypatch.setattr("custom.networks.codebook_quantiser.TABLE_BYTES", 37 * 4 * 7)  # seven rows at a time
    indices = quantiser.indices(latent)
    flat = latent.movedim(1, -1).reshape(-1, 5)
    expected = torch.cdist(flat, quantiser.embedding.weight).argmin(1)
    assert torch.equal(indices.flatten(), expected)
    codes = quantiser.embed(indices)
    torch.testing.assert_close(codes[1, :, 2, 3, 4], quantiser.embedding.weight[indices[1, 2, 3, 4]])


def test_the_first_batch_is_the_codebook_and_centres_move_as_ema() -> None:
    torch.manual_seed(0)
    quantiser = CodebookQuantiser(codes=2, dim=1, decay=0.9, epsilon=0.0, restart_share=0.0)
    left, right = torch.full((1, 1, 4, 1, 1), -3.0), torch.full((1, 1, 4, 1, 1), 5.0)
    quantiser(torch.cat([left, right]))
    assert bool(quantiser.ready)
    quantiser.embedding.weight.copy_(torch.tensor([[-3.0], [5.0]]))
    quantiser.ema_w.copy_(quantiser.embedding.weight * 4)
    quantiser.ema_cluster_size.fill_(4.0)
    quantiser(torch.cat([left + 1, right[:, :, :2].repeat(1, 1, 2, 1, 1)]))
    # 0.9 * (4 tokens at -3) + 0.1 * (4 tokens at -2), over 4 tokens.
    torch.testing.assert_close(quantiser.embedding.weight.flatten(), torch.tensor([-2.9, 5.0]))


def test_evaluation_leaves_the_codebook_alone() -> None:
    quantiser = CodebookQuantiser(codes=8, dim=3).eval()
    before = {name: value.clone() for name, value in quantiser.state_dict().items()}
    quantiser(torch.randn(1, 3, 4, 4, 4))
    for name, value in quantiser.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("share, alive", [(0.0, False), (0.2, True)])
def test_dead_codes_are_replaced_by_latents(share: float, alive: bool) -> None:
    torch.manual_seed(0)
    quantiser = CodebookQuantiser(codes=16, dim=2, decay=0.8, restart_share=share)
    quantiser(torch.randn(1, 2, 4, 4, 4))
    with torch.no_grad():
        quantiser.embedding.weight[3:] += 100  # far from everything
        quantiser.ema_w.copy_(quantiser.embedding.weight * quantiser.ema_cluster_size[:, None])
    latent = torch.randn(1, 2, 8, 8, 8)
    for _ in range(20):
        quantiser(latent)
    used = torch.bincount(quantiser.indices(latent).flatten(), minlength=16)
    assert ((used > 0).sum() >= 14) == alive


def test_gradient_passes_straight_through_and_is_float32_under_autocast() -> None:
    quantiser = CodebookQuantiser(codes=8, dim=3).train()
    latent = torch.randn(1, 3, 2, 2, 2).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        codes, commitment, _ = quantiser(latent)
    assert codes.dtype == commitment.dtype == quantiser.ema_w.dtype == torch.float32
    weights = torch.randn_like(codes)
    (gradient,) = torch.autograd.grad((codes * weights).sum(), latent)
    torch.testing.assert_close(gradient.float(), weights, atol=0.02, rtol=0.01)
    assert not quantiser.embedding.weight.requires_grad


def test_perplexity_counts_the_codes_in_use() -> None:
    assert codebook_perplexity(torch.tensor([5, 5, 5, 5, 0, 0])) == pytest.approx(4.0)
    assert codebook_perplexity(torch.tensor([7, 0, 0])) == pytest.approx(1.0)


def test_few_tokens_fill_a_large_codebook_with_different_codes() -> None:
    torch.manual_seed(0)
    quantiser = CodebookQuantiser(codes=64, dim=3)
    quantiser(torch.randn(1, 3, 2, 2, 2))
    assert len(torch.unique(quantiser.embedding.weight, dim=0)) == 64


def peak_mib() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def test_memory_at_32_cubed_tokens_and_4096_codes() -> None:
    """Under 200 MB, by the issue; a table of all distances alone is 512."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    except OSError as error:
        pytest.skip(f"this system does not let a process reset its peak memory: {error}")
    quantiser = CodebookQuantiser(codes=4096, dim=8)
    latent = torch.randn(1, 8, 32, 32, 32)
    before = peak_mib()
    quantiser(latent)
    assert peak_mib() - before < 200
    table = torch.ones(32**3, 4096)
    assert peak_mib() - before > 500, "the measurement sees what it shall see"
    del table


def learn_share(_local_rank: int, folder: str) -> None:
    """Each of two processes sees half of the batches."""
    torch.manual_seed(idist.get_rank())
    quantiser = CodebookQuantiser(codes=16, dim=2, decay=0.7, restart_share=0.2)
    generator = torch.Generator().manual_seed(5)
    for _ in range(15):
        both = torch.randn(2, 2, 4, 4, 4, generator=generator)
        quantiser(both[idist.get_rank()][None])
    torch.save(quantiser.state_dict(), Path(folder) / f"{idist.get_rank()}.pt")


@pytest.mark.integration
def test_the_codebook_is_one_on_all_processes(tmp_path: Path) -> None:
    with idist.Parallel(backend="gloo", nproc_per_node=2) as parallel:
        parallel.run(learn_share, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    # Both shares were counted: 2 x 64 tokens a step, all averages started at that number.
    assert float(first["ema_cluster_size"].sum()) == pytest.approx(128, rel=0.3)


# --- the autoencoder ---


def test_layers_of_the_upstream_code_have_its_number_of_parameters() -> None:
    upstream = network(
        space_to_depth=1,
        encoder_widths=(16, 32, 64),
        encoder_blocks=(0, 1, 1),
        decoder_widths=(32, 64, 64),
        decoder_blocks=(2, 2, 0),
        resample_kernel=4,
        normalisation="group",
        groups=32,
        end_norms=True,
        padding_mode="replicate",
    )
    assert (count(upstream.encoder), count(upstream.decoder)) == (441_568, 948_417)
    judges = {"channels": 64, "norm": "BATCH", "bias": True}
    discriminator = VolumeSliceDiscriminator(judges, judges)
    assert (count(discriminator.volume), count(discriminator.slices)) == (11_049_665, 2_764_481)  # type: ignore[arg-type]
    assert upstream(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 1, 16, 16, 16)


@pytest.mark.parametrize(
    "changes, compression",
    [
        ({}, 4),
        ({"space_to_depth": 1}, 2),
        ({"space_to_depth": 4}, 8),
        ({"resample_kernel": 4, "normalisation": "group", "end_norms": True, "padding_mode": "replicate"}, 4),
        (
            {
                "encoder_widths": (4, 4, 8),
                "decoder_widths": (4, 8, 8),
                "encoder_blocks": (0, 1, 0),
                "decoder_blocks": (1, 0, 2),
            },
            8,
        ),
    ],
)
def test_shapes(changes: dict, compression: int) -> None:
    net = network(**changes).eval()
    image = torch.rand(2, 1, 16, 24, 8) * 2 - 1
    latent = net.encode(image)
    assert net.compression == compression
    assert latent.shape == (2, 4, 16 // compression, 24 // compression, 8 // compression)
    assert net.decode(latent).shape == image.shape
    assert net.latent_grid.shape == (16 // compression,) * 3
    assert net.latent_grid.spacing_mm == (5.0 * compression,) * 3


def test_what_is_decoded() -> None:
    net = network().eval()
    image = torch.rand(2, 1, 16, 16, 16) * 2 - 1
    latent = net.encode(image)
    codes = net.quantise(latent)
    torch.testing.assert_close(net(image), net.decode(latent))
    torch.testing.assert_close(net(image, quantise=True), net.decode(codes))
    torch.testing.assert_close(net.decode(latent, quantise=True), net.decode(codes))
    assert torch.unique(codes.movedim(1, -1).reshape(-1, 4), dim=0).shape[0] <= 32
    mixed = net(image, quantise=torch.tensor([True, False]), with_codes=True)
    assert isinstance(mixed, CodedVolume)
    torch.testing.assert_close(mixed.pred[0], net.decode(codes)[0])
    torch.testing.assert_close(mixed.pred[1], net.decode(latent)[1])
    torch.testing.assert_close(mixed.latent, latent)
    torch.testing.assert_close(mixed.commitment, (latent - codes).square().mean())
    with pytest.raises(ValueError, match="with_codes"):
        net(image, quantise=torch.tensor([True, False]))


def test_a_patch_is_coded_like_the_whole_away_from_its_border() -> None:
    """Not so with group normalisation, which sees another mean in every patch."""
    found = {}
    for normalisation in ("channel", "group"):
        net = network(normalisation=normalisation, encoder_blocks=(0, 1)).eval()
        with torch.no_grad():
            image = torch.rand(1, 1, 48, 16, 16) * torch.linspace(-1, 1, 48)[:, None, None]
            whole, part = net.encode(image), net.encode(image[:, :, :32])
        found[normalisation] = float((whole[:, :, :4] - part[:, :, :4]).abs().max())
    assert found["channel"] < 1e-5 < found["group"]


def test_a_checkpoint_builds_it(tmp_path: Path) -> None:
    net = network(hu_window=(-900.0, 900.0)).train()
    net(torch.rand(1, 1, 16, 16, 16), with_codes=True)
    loaded = load_checkpoint(save_checkpoint(tmp_path / "model.pt", net)).network(precision="fp32")
    assert isinstance(loaded, VQGAN)
    assert loaded.grid == GRID and loaded.hu_window == (-900.0, 900.0)
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image, quantise=True), net.eval()(image, quantise=True))


def test_averaged_weights_bring_their_codebook() -> None:
    """The average starts before the codebook does, and must follow it."""
    net = network().train()
    average = EMAHandler(net, momentum=0.5)
    image = torch.rand(4, 1, 16, 16, 16) * 2 - 1
    engine = type("Engine", (), {"state": type("State", (), {"ema_momentum": 0.5})})()
    for _ in range(30):
        net(image, with_codes=True)
        average._update_ema_model(engine, "ema_momentum")  # type: ignore[arg-type]
    latent = net.eval().encode(image)
    torch.testing.assert_close(average.ema_model.quantise(latent), net.quantise(latent), atol=0.05, rtol=0.05)


def test_bf16_is_close_to_fp32_and_latents_are_float32() -> None:
    image = torch.rand(1, 1, 8, 8, 8) * 2 - 1
    low, full = network(precision="bf16").eval(), network().eval()
    with torch.no_grad():
        assert low.encode(image).dtype == low(image).dtype == torch.float32
        torch.testing.assert_close(low(image), full(image), atol=0.1, rtol=0.1)
        assert not torch.equal(low(image), full(image))


def test_it_learns() -> None:
    torch.manual_seed(0)
    net = network(codes=64)
    axis = torch.linspace(0, 6.28, 16)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    images = torch.stack([(a * x).sin() * (b * y + z).cos() for a in (1, 2) for b in (1, 2)])[:, None]
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    share = torch.tensor([True, False, True, False])
    for _ in range(40):
        coded = net(images, quantise=share, with_codes=True)
        loss = (coded.pred - images).square().mean() + 0.25 * coded.commitment
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        for quantise in (False, True):
            assert float((net(images, quantise) - images).square().mean()) < 0.1 * float(images.square().mean())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder_blocks": (1,)}, "same number of levels"),
        ({"space_to_depth": 0}, "space_to_depth must be at least 1"),
        ({"resample_kernel": 3}, "resample_kernel 2 or 4"),
        ({"space_to_depth": 5}, "multiple of 10"),
        ({"normalisation": "batch"}, "'batch'"),
        ({"padding_mode": "reflect"}, "'reflect'"),
        ({"codes": 1}, "at least 2 codes"),
        ({"code_decay": 1.0}, r"decay must lie in \(0, 1\)"),
        ({"precision": "fp16"}, "fp16"),
    ],
)
def test_bad_arguments(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**changes)


def test_bad_volumes() -> None:
    net = network().eval()
    with pytest.raises(ValueError, match=r"multiple of 4, got \(16, 16, 18\)"):
        net(torch.zeros(1, 1, 16, 16, 18))
    with pytest.raises(ValueError, match=r"\(1, 2, 16, 16, 16\)"):
        net(torch.zeros(1, 2, 16, 16, 16))
    with pytest.raises(ValueError, match="NaN"):
        net(torch.full((1, 1, 16, 16, 16), float("nan")))


# --- the discriminators ---


def test_discriminators_judge_volumes_and_slices() -> None:
    options = {"channels": 4, "num_layers_d": 2, "norm": ("GROUP", {"num_groups": 2})}
    both = VolumeSliceDiscriminator(options, options)
    volume, slices = both(torch.zeros(2, 1, 16, 16, 16), torch.zeros(6, 1, 16, 16))
    assert len(volume) == len(slices) == 4
    assert volume[-1].shape[:2] == (2, 1) and slices[-1].shape[:2] == (6, 1)
    only = VolumeSliceDiscriminator(None, options)(torch.zeros(2, 1, 16, 16, 16), torch.zeros(6, 1, 16, 16))
    assert only.volume == [] and len(only.slices) == 4


def test_discriminators_say_what_is_too_small() -> None:
    with pytest.raises(ValueError, match="volumes or of slices"):
        VolumeSliceDiscriminator(None, None)
    judge = VolumeSliceDiscriminator({"channels": 4, "num_layers_d": 3}, None)
    with pytest.raises(ValueError, match=r"3 layers cannot take \(8, 8, 8\).*num_layers_d"):
        judge(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8))
