"""Radiographs of ellipsoids, exact at any pose: they agree, and nothing that is wrong with them does."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from custom.geometry import views_from_angles
from custom.trust.pose_consistency import best_rotation, rotated
from custom.trust.view_agreement import detail_disagreement, disagreement, pair_profiles
from tests.analytic import ellipsoid_integrals

SHAPE = (60, 72)


def acquired(angles: list[float], beam: str = "parallel", **options: float) -> tuple[Tensor, Tensor, Tensor]:
    """Line integrals, views and exposed pixels of the ellipsoids, at 5 mm."""
    pixel = 5.0 * (1.5 if beam == "cone" else 1.0)
    views = views_from_angles(angles, beam, pixel_mm=pixel, **options)
    image = ellipsoid_integrals(views, SHAPE)
    return image, views, torch.ones_like(image, dtype=torch.bool)


def worst(image: Tensor, views: Tensor, field_mask: Tensor) -> float:
    return max(disagreement(image, views, field_mask).values())


@pytest.mark.parametrize("angles", [[0.0, 90.0], [0.0, 180.0], [30.0, 75.0, 200.0]])
def test_parallel_views_of_one_body_have_equal_row_sums(angles: list[float]) -> None:
    image, views, field_mask = acquired(angles)
    first, second, whole = pair_profiles(image[:2], views[:2], field_mask[:2])
    assert bool(whole.all())
    body = torch.where(image[0] > 0.03 * image[0].max(), image[0], 0.0)
    rows = body.sum(1).flip(0) * 5.0  # heights run upwards, rows downwards
    torch.testing.assert_close(first, rows, rtol=2e-3, atol=0.5)
    torch.testing.assert_close(first, second, rtol=5e-3, atol=4.0)
    assert len(disagreement(image, views, field_mask)) == math.comb(len(angles), 2)
    assert worst(image, views, field_mask) < 0.01


@pytest.mark.parametrize("angles", [[0.0, 90.0], [10.0, 130.0], [0.0, 45.0, 90.0]])
def test_cone_views_of_one_body_agree(angles: list[float]) -> None:
    assert worst(*acquired(angles, "cone")) < 0.03


def test_a_cone_view_knows_the_derivative_of_plane_integrals() -> None:
    """Grangeat's relation against the parallel view, whose plane integrals are sums along rows."""
    parallel, cone = acquired([0.0]), acquired([90.0], "cone")
    image, views, field_mask = (torch.cat(parts) for parts in zip(parallel, cone, strict=True))
    first, second, whole = pair_profiles(image, views, field_mask)
    assert int(whole.sum()) > 40
    assert float((first - second)[whole].norm() / first[whole].norm()) < 0.05


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_another_body_is_found(beam: str) -> None:
    image, views, field_mask = acquired([0.0, 90.0], beam)
    good = worst(image, views, field_mask)
    higher = torch.cat([image[:1].roll(-2, 1), image[1:]])  # the same patient, 10 mm further up
    assert worst(higher, views, field_mask) > max(5 * good, 0.05)


def test_a_mirrored_view_is_found_where_planes_are_oblique() -> None:
    image, views, field_mask = acquired([0.0, 90.0], "cone")
    mirrored = torch.stack([image[0], image[1].flip(-1)])
    assert worst(mirrored, views, field_mask) > 3 * worst(image, views, field_mask)


def test_a_wrong_intensity_hardly_matters() -> None:
    """The air beside the patient is left out, so 2% of the intensity are not multiplied by the detector's width."""
    image, views, field_mask = acquired([0.0, 90.0])
    image = image + torch.tensor([0.02, -0.02]).double()[:, None, None]
    rows = image.sum(2)
    plain = float((rows[0] - rows[1]).norm() / rows.mean(0).norm())
    assert worst(image, views, field_mask) < 0.7 * plain


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_a_body_that_is_cut_off_is_not_compared(beam: str) -> None:
    image, views, field_mask = acquired([0.0, 90.0], beam)
    field_mask[0, :, :28] = False
    assert not disagreement(image, views, field_mask)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_detail_of_a_body_that_is_cut_off_is_still_compared(beam: str) -> None:
    """Details of one body lie at the same heights, also where a side of it is outside the picture."""
    image, views, field_mask = acquired([0.0, 90.0], beam)
    field_mask[0, :, :20] = False
    higher = torch.cat([image[:1].roll(-4, 1), image[1:]])  # the same patient, 20 mm further up
    good, shifted = (detail_disagreement(shown, views, field_mask)[0, 1] for shown in (image, higher))
    assert good < 0.25 < 0.45 < shifted


def test_heights_behind_a_marker_are_no_edges_of_the_body() -> None:
    image, views, field_mask = acquired([0.0, 180.0])
    whole = detail_disagreement(image, views, field_mask)[0, 1]
    field_mask[0, 20:26] = False
    assert detail_disagreement(image, views, field_mask)[0, 1] == pytest.approx(whole, abs=0.01)


def test_opposite_views_have_the_same_detail() -> None:
    image, views, field_mask = acquired([0.0, 180.0])
    assert detail_disagreement(image, views, field_mask)[0, 1] < 0.02
    assert not detail_disagreement(image, views, field_mask & False)


@pytest.mark.parametrize("angles", [[0.0, 45.0], [0.0, 90.0], [0.0, 45.0, 90.0, 135.0]])
def test_a_body_that_goes_on_above_and_below_agrees(angles: list[float]) -> None:
    """As every chest does: where the exposed area ends is no edge of the body."""
    image, views, field_mask = acquired(angles, "cone")
    field_mask[:, :10] = field_mask[:, -10:] = False
    assert worst(image, views, field_mask) < 0.01


def test_opposite_cone_views_share_no_planes_that_move() -> None:
    assert not disagreement(*acquired([90.0, 270.0], "cone"))


def test_unexposed_borders_in_air_change_nothing() -> None:
    image, views, field_mask = acquired([0.0, 90.0])
    before = worst(image, views, field_mask)
    field_mask[:, :, :3] = False
    image[:, :, :3] = 7.0  # what a blade leaves in the file
    assert worst(image, views, field_mask) == pytest.approx(before, abs=2e-3)


@pytest.mark.parametrize(
    ("angles", "beam"), [([0.0, 90.0], "cone"), ([0.0, 60.0, 120.0], "cone"), ([0.0, 45.0, 90.0], "parallel")]
)
@pytest.mark.parametrize("wrong", [0, 1])
def test_an_angle_wrong_by_five_degrees_is_found(angles: list[float], beam: str, wrong: int) -> None:
    image, views, field_mask = acquired(angles, beam)
    right = best_rotation(image, views, field_mask)
    assert right is not None
    assert right.gain < 0
    views[wrong] = rotated(views[wrong], -5.0)
    found = best_rotation(image, views, field_mask)
    assert found is not None
    assert found.gain > max(0.05, right.gain + 0.05)
    # Which of two views is the wrong one, two views cannot tell.
    assert abs(found.degrees) == 5.0
    if len(angles) == 3:
        assert (found.view, found.degrees) == (wrong, 5.0)


@pytest.mark.parametrize(("angles", "beam"), [([0.0, 90.0], "parallel"), ([90.0], "cone"), ([90.0, 270.0], "cone")])
def test_angles_that_cannot_be_seen(angles: list[float], beam: str) -> None:
    assert best_rotation(*acquired(angles, beam)) is None


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 360), st.floats(-180, 180), st.sampled_from(["parallel", "cone"]))
def test_turning_is_what_another_angle_gives(angle: float, degrees: float, beam: str) -> None:
    expected = views_from_angles([angle + degrees], beam)
    torch.testing.assert_close(rotated(views_from_angles([angle], beam), degrees), expected, atol=1e-6, rtol=1e-9)
