"""Augmentation: where tissue goes, what happens to HU, and that a seed means one result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from custom.data.augmentation import RandThoraxAugment, RandThoraxAugmentd
from custom.data.diffeomorphism import largest_gradient

STILL = {
    "scale": 0.0,
    "rotation_deg": 0.0,
    "shift_mm": 0.0,
    "shear": 0.0,
    "warp_mm": 0.0,
    "lung_hu": 0.0,
    "soft_hu": 0.0,
    "bone_gain": 0.0,
    "noise_hu": 0.0,
}
SIDE = 40


def _body(side: int = SIDE) -> torch.Tensor:
    """A soft-tissue ball with a bright off-centre insert (its side tells left from right), int16 HU."""
    axis = torch.arange(side) - (side - 1) / 2
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    volume = torch.full((side, side, side), -1000, dtype=torch.int16)
    volume[x**2 + y**2 + z**2 < (0.4 * side) ** 2] = 40
    volume[(x + 0.2 * side) ** 2 + y**2 + z**2 < (0.12 * side) ** 2] = 700
    return volume[None]


def test_zero_amplitudes_return_the_input() -> None:
    volume = _body()
    result = RandThoraxAugment(SIDE, 2.5, 2.5, **STILL)(volume)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, volume.float(), atol=0.02, rtol=0)


def test_zero_probability_averages_crops_and_pads() -> None:
    volume = torch.randint(-1000, 1000, (1, 12, 16, 20), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    result = RandThoraxAugment((6, 4, 14), 5.0, 2.5, prob=0.0)(volume)
    mean = torch.nn.functional.avg_pool3d(volume[None].float(), 2)[0]
    torch.testing.assert_close(result[..., 2:12], mean[:, :, 2:6], atol=0.02, rtol=0)
    torch.testing.assert_close(result[..., :2], torch.full((1, 6, 4, 2), -1000.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("change", "start", "end"),
    [({"shift_mm": 10.0}, None, None), ({"flip_prob": 1.0}, (-8.0, 0.0, 0.0), (8.0, 0.0, 0.0))],
)
def test_the_affine_moves_tissue_where_it_says(change, start, end) -> None:
    transform = RandThoraxAugment(SIDE, 1.0, 1.0, **{**STILL, **change}).set_random_state(4)
    result = transform(_body())[0]
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    weight = (result - 200).clamp(min=0)
    found = [float((weight.sum(dim=[d for d in range(3) if d != k]) * axis).sum() / weight.sum()) for k in range(3)]
    if end is None:
        # output position p shows input position p + shift: the insert at -8 mm appears at -8 - shift
        end = np.array([-8.0, 0.0, 0.0]) - transform.warp.affine[:, 3]
        assert np.abs(transform.warp.affine[:, 3]).max() > 2
    np.testing.assert_allclose(found, end, atol=0.15)


def test_larger_scale_means_a_larger_person() -> None:
    transform = RandThoraxAugment(SIDE, 2.5, 2.5, **{**STILL, "scale": 0.3})
    for seed in range(4):
        result = transform.set_random_state(seed)(_body())
        growth = float((result > -480).sum()) / float((_body() > -480).sum())
        expected = 1 / np.linalg.det(transform.warp.affine[:, :3])
        assert growth == pytest.approx(expected, rel=0.03)
        assert 0.7**3 <= expected <= 1.3**3


@pytest.mark.parametrize("seed", range(6))
def test_warp_is_invertible_and_bounded(seed: int) -> None:
    transform = RandThoraxAugment(48, 5.0, 5.0, warp_mm=40.0).set_random_state(seed)
    transform.randomize()
    span = [47 * 5.0] * 3
    u = transform.warp.displacement_mm
    assert float(u.abs().max()) > 1.0, "the warp does nothing"
    assert largest_gradient(u, span) <= 0.6
    nodes = u.shape[1:]
    step = [length / (n - 1) for length, n in zip(span, nodes, strict=True)]
    gradient = np.stack(np.gradient(transform.warp.positions_mm.numpy(), *step, axis=(1, 2, 3)), axis=-1)
    jacobian = np.linalg.det(np.moveaxis(gradient, 0, -2))
    assert jacobian.min() > 0.1


def test_warp_is_smooth_between_lattice_nodes() -> None:
    """A linear ramp warped twice as finely changes nowhere by more than the bound on the gradient allows."""
    ramp = torch.linspace(-500, 500, 64)[:, None, None].expand(64, 64, 64)[None]
    transform = RandThoraxAugment(32, 2.5, 2.5, **{**STILL, "warp_mm": 20.0}).set_random_state(0)
    result = transform(ramp)[0]
    per_voxel = 1000 / 63
    differences = torch.diff(result, dim=0)
    assert float(differences.min()) > 0
    assert float(differences.max()) < 1.6 * per_voxel


def test_air_outside_stays_air_and_curve_is_monotone() -> None:
    volume = torch.full((1, 24, 24, 24), -1000, dtype=torch.int16)
    volume[:, 6:18, 6:18, 6:18] = -850
    for seed in range(5):
        transform = RandThoraxAugment(24, 2.5, 2.5, noise_hu=20.0, soft_hu=50.0, lung_hu=100.0, bone_gain=0.3)
        result = transform.set_random_state(seed)(volume)
        outside = transform.resample(volume) <= -990
        assert float(result[outside].max()) <= -990
        assert float(result[..., 0, 0, 0]) == pytest.approx(-1000, abs=1e-3)
        assert bool((torch.diff(transform.warp.hu_curve) > 0).all())


def test_hu_curve_moves_tissues_by_at_most_what_was_asked() -> None:
    transform = RandThoraxAugment(24, 2.5, 2.5, lung_hu=30.0, soft_hu=12.0, bone_gain=0.1)
    moved = {-1000: 0.0, -990: 0.0, -850: 30.0, -110: 9.0, 0: 12.0, 110: 12.0, 300: 30.0, 3071: 307.1}
    seen = dict.fromkeys(moved, 0.0)
    for seed in range(20):
        transform.set_random_state(seed).randomize()
        for hu, limit in moved.items():
            change = abs(float(transform.warp.hu_curve[hu + 1000]) - hu)
            assert change <= limit + 1e-3
            seen[hu] = max(seen[hu], change)
    assert all(seen[hu] > 0.4 * limit for hu, limit in moved.items() if limit)


def test_same_seed_same_result_other_seed_another() -> None:
    volume = _body()
    first = RandThoraxAugment(32, 2.5, 2.5).set_random_state(5)
    second = RandThoraxAugment(32, 2.5, 2.5).set_random_state(5)
    torch.manual_seed(1)
    a = first(volume)
    torch.manual_seed(2)
    assert torch.equal(a, second(volume))
    assert not torch.equal(a, first(volume))
    assert torch.equal(first(volume, randomize=False), first(volume, randomize=False))


def test_integer_output_is_rounded() -> None:
    volume = _body()
    real = RandThoraxAugment(32, 2.5, 2.5).set_random_state(1)(volume)
    whole = RandThoraxAugment(32, 2.5, 2.5, dtype=torch.int16).set_random_state(1)(volume)
    assert whole.dtype == torch.int16
    assert float((real - whole).abs().max()) <= 0.5


def test_dictionary_moves_labels_with_the_image() -> None:
    volume = _body()
    labels = (volume > 300).to(torch.uint8) * 3
    pipeline = Compose(
        [RandThoraxAugmentd(["label", "segmentation"], ["bilinear", "nearest"], output_shape=48, soft_hu=0.0)]
    )
    pipeline.set_random_state(7)
    result = pipeline({"label": volume, "segmentation": labels, "case": "a"})
    again = pipeline.set_random_state(7)({"label": volume, "segmentation": labels})
    assert result["case"] == "a"
    assert result["segmentation"].dtype == torch.uint8
    assert set(result["segmentation"].unique().tolist()) == {0, 3}
    assert torch.equal(result["label"], again["label"])
    bright, marked = result["label"] > 350, result["segmentation"] == 3
    dice = 2 * float((bright & marked).sum()) / float(bright.sum() + marked.sum())
    assert dice > 0.9
    mean = RandThoraxAugmentd("label", output_shape=48).set_random_state(8)
    assert not torch.equal(mean({"label": volume})["label"], mean({"label": volume})["label"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_shape": 1}, "output_shape"),
        ({"spacing_mm": 0.0}, "spacing_mm"),
        ({"warp_mm": -1.0}, "warp_mm"),
        ({"scale": 0.9}, "scale"),
        ({"flip_prob": 2.0}, "flip_prob"),
        ({"max_gradient": 1.0}, "max_gradient"),
        ({"control_spacing_mm": 5.0}, "control_spacing_mm"),
        ({"noise_hu": float("nan")}, "noise_hu"),
    ],
)
def test_bad_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        RandThoraxAugment(**arguments)


def test_bad_volumes_and_modes_are_named() -> None:
    transform = RandThoraxAugment(16)
    with pytest.raises(ValueError, match="1, X, Y, Z"):
        transform(torch.zeros(16, 16, 16))
    with pytest.raises(RuntimeError, match="randomize"):
        RandThoraxAugment(16).resample(torch.zeros(1, 16, 16, 16))
    with pytest.raises(ValueError, match="cubic"):
        RandThoraxAugmentd("label", "cubic")
