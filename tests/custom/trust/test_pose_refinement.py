"""Radiographs of a body with dense balls, exact at any pose: a view that stands elsewhere is found, others stay."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor

from custom.geometry import views_from_angles
from custom.trust import PoseTolerance, refine_poses
from custom.trust.pose_refinement import ViewMove, _simplest, moved_view
from custom.trust.pose_words import pose_sentences, pose_warnings
from tests import analytic

SHAPE = (56, 64)
CONE, PARALLEL = ([90.0, 0.0], "cone"), ([90.0, 0.0, 45.0], "parallel")
FOUR = ([90.0, 0.0, 45.0, 135.0], "parallel")
NAMES = ["frontal.dcm", "lateral.dcm", "oblique.dcm", "other oblique.dcm"]
#: Nothing in it is symmetric about the axis, so that angles show.
BODY = (
    ((0, 0, 0), (130, 95, 125), 0.0, 0.01),
    ((80, 20, 60), (25, 25, 25), 0.0, 0.15),
    ((-60, 45, -50), (25, 20, 25), 0.0, 0.15),
    ((20, -60, 10), (20, 25, 30), 0.0, 0.15),
    ((-30, -30, 80), (25, 25, 20), 0.0, 0.15),
)


@pytest.fixture(autouse=True)
def body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analytic, "ELLIPSOIDS", BODY)


def acquired(views: tuple[list[float], str], wrong: ViewMove) -> tuple[Tensor, Tensor, Tensor]:
    """Line integrals, stated views, and exposed pixels; the second view is stated wrongly by so much."""
    angles, beam = views
    true = views_from_angles(angles, beam, pixel_mm=7.5 if beam == "cone" else 5.0).double()
    image = analytic.ellipsoid_integrals(true, SHAPE)
    stated = true.clone()
    stated[1] = moved_view(true[1], wrong)
    return image, stated, torch.ones_like(image, dtype=torch.bool)


@pytest.mark.parametrize(
    ("views", "wrong"),
    [
        (CONE, ViewMove(angle_deg=6.0)),
        (CONE, ViewMove(along_rows_mm=10.0)),
        (CONE, ViewMove(along_columns_mm=-10.0)),
        (PARALLEL, ViewMove(along_columns_mm=-10.0)),
        (FOUR, ViewMove(along_rows_mm=10.0)),  # two obliques that are shifted by 7 mm would look the same
    ],
)
def test_a_view_that_stands_elsewhere_is_moved_back(views: tuple[list[float], str], wrong: ViewMove) -> None:
    image, stated, field_mask = acquired(views, wrong)
    found = refine_poses(image, stated, field_mask)
    left = found.moves[1]
    assert abs(left.angle_deg + wrong.angle_deg) < 2.0
    assert abs(left.along_rows_mm + wrong.along_rows_mm) < 2.0
    assert abs(left.along_columns_mm + wrong.along_columns_mm) < 0.5
    assert {name for name, value in asdict(left).items() if value} == {k for k, v in asdict(wrong).items() if v}
    assert all(move == ViewMove() for k, move in enumerate(found.moves) if k != 1)
    assert torch.equal(found.views[0], stated[0]) and torch.equal(found.stated, stated)
    torch.testing.assert_close(found.views[1], moved_view(stated[1], left))
    assert found.disagreement is not None and found.disagreement[1] < 0.7 * found.disagreement[0]
    (warning,) = pose_warnings(found, NAMES[: len(stated)])
    assert warning.startswith("lateral.dcm was taken as if from ")


def test_shifts_along_rows_of_three_parallel_views_are_known_but_for_a_shift_of_the_body() -> None:
    """A body that moves along the first view's rays moves in the other pictures, by the sine of their angles."""
    image, stated, field_mask = acquired(PARALLEL, ViewMove(along_rows_mm=10.0))
    found = refine_poses(image, stated, field_mask)
    lateral, oblique = found.moves[1].along_rows_mm + 10.0, found.moves[2].along_rows_mm
    assert abs(oblique - lateral * math.sin(math.radians(45))) < 1.0
    assert found.disagreement is not None and found.disagreement[1] < 0.3 * found.disagreement[0]
    assert all(abs(move.angle_deg) < 3.0 for move in found.moves)


def test_of_numbers_that_fit_as_well_the_fewest_remain() -> None:
    """A line of measurements by a turn, with a shift that looks nearly the same and is not in them."""
    rng = np.random.default_rng(0)
    turn = rng.normal(size=200)
    slopes = np.stack([turn, turn + 0.2 * rng.normal(size=200), rng.normal(size=200)], 1)
    for truth in ([1.0, 0.0, 0.0], [0.0, -1.0, 0.5], [0.0, 0.0, 0.0]):
        seen = slopes @ truth + 0.5 * rng.normal(size=200)
        best = np.linalg.lstsq(slopes, seen, rcond=None)[0]
        found = _simplest(lambda z, seen=seen: (slopes @ z - seen) / 0.5, lambda z: slopes / 0.5, best)
        assert (found != 0).tolist() == [value != 0 for value in truth]
        np.testing.assert_allclose(found, truth, atol=0.1)


@pytest.mark.parametrize("views", [CONE, PARALLEL])
def test_correct_poses_are_left_alone(views: tuple[list[float], str]) -> None:
    image, stated, field_mask = acquired(views, ViewMove())
    found = refine_poses(image, stated.float(), field_mask)
    assert found.why_not is None and found.views.dtype == torch.float32
    assert torch.equal(found.views, stated.float())
    assert set(found.moves) == {ViewMove()} and not any(found.at_limit)
    assert not pose_warnings(found, NAMES[: len(stated)])
    assert all("stands as stated" in sentence for sentence in pose_sentences(found, NAMES[: len(stated)]))


def test_a_fit_that_ends_at_its_tolerance_is_not_believed() -> None:
    image, stated, field_mask = acquired(CONE, ViewMove(along_columns_mm=15.0))
    found = refine_poses(image, stated, field_mask, PoseTolerance(shift_mm=12.0))
    assert found.at_limit == (False, True) and found.gains[1] > 100
    assert torch.equal(found.views, stated)
    (warning,) = pose_warnings(found, NAMES[:2])
    assert warning.startswith("lateral.dcm stands as stated, although the radiographs disagree")


def test_what_cannot_be_known_is_said() -> None:
    def why(angles: list[float], beam: str = "parallel", **columns: int) -> str:
        image, stated, field_mask = acquired((angles, beam), ViewMove()) if len(angles) > 1 else single(angles, beam)
        field_mask[:, :, : columns.get("hidden", 0)] = False
        found = refine_poses(image, stated, field_mask)
        assert found.why_not is not None and found.views is stated and set(found.moves) == {ViewMove()}
        assert pose_warnings(found, NAMES) == pose_sentences(found, NAMES)
        return pose_sentences(found, NAMES)[0]

    def single(angles: list[float], beam: str) -> tuple[Tensor, Tensor, Tensor]:
        image, stated, field_mask = acquired(([*angles, 0.0], beam), ViewMove())
        return image[:1], stated[:1], field_mask[:1]

    assert "two radiographs of parallel beam agree at any angle" in why([90.0, 0.0])
    assert "a single radiograph" in why([90.0], "cone")
    assert "or opposite" in why([90.0, 270.0], "cone")
    assert "cut off" in why([90.0, 0.0], "cone", hidden=26)


def test_too_few_rows_for_the_moves_that_are_allowed_say_nothing() -> None:
    """None must agree better because rows in which it disagrees have left the picture."""
    image, stated, field_mask = acquired(PARALLEL, ViewMove())
    field_mask[:, :12] = False
    found = refine_poses(image, stated, field_mask, PoseTolerance(shift_mm=100.0))
    assert "too few rows" in (found.why_not or "") and found.views is stated


def test_views_of_both_beams_are_not_moved() -> None:
    (image, cone, mask), (other, parallel, _) = (acquired(views, ViewMove()) for views in (CONE, PARALLEL))
    both = torch.stack([image[0], other[1]]), torch.stack([cone[0], parallel[1]]), mask
    assert "both beams" in (refine_poses(*both).why_not or "")


@pytest.mark.parametrize("wrong", [{"angle_deg": 0.0}, {"shift_mm": float("nan")}, {"distance": 0.5}])
def test_tolerances_have_to_make_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"tolerance {next(iter(wrong))} must be above 0"):
        PoseTolerance(**wrong)


def test_a_cone_moves_with_its_source_and_a_parallel_beam_turns_with_its_rays() -> None:
    cone, parallel = (views_from_angles([90.0], beam)[0].double() for beam in ("cone", "parallel"))
    for view in (cone, parallel):
        turned = views_from_angles([97.0], "cone" if view is cone else "parallel")[0].double()
        torch.testing.assert_close(moved_view(view, ViewMove(angle_deg=7.0)), turned, atol=1e-4, rtol=1e-6)
    far = views_from_angles([90.0], "cone", 1100.0, 1650.0)[0].double()
    torch.testing.assert_close(moved_view(cone, ViewMove(distance=0.1))[:6], far[:6])
    shifted = moved_view(cone, ViewMove(along_columns_mm=4.0)) - cone
    assert shifted[:6].tolist() == pytest.approx([0, 0, -4, 0, 0, -4]) and not shifted[6:].any()


def test_words_name_angle_shift_and_distance() -> None:
    image, stated, field_mask = acquired(CONE, ViewMove())
    found = refine_poses(image[:1], stated[:1], field_mask[:1])
    move = ViewMove(-5.4, 3.2, -8.0, -0.012)
    moved = torch.stack([stated[0], moved_view(stated[1], move)])
    told = type(found)(stated, moved, (ViewMove(), move), (0.0, 20.0), (False, False), why_not=None)
    first, second = pose_sentences(told, NAMES[:2])
    assert first.startswith("frontal.dcm stands as stated")
    assert second.startswith(
        "lateral.dcm was taken as if from 354.8 instead of 0.0 degrees, with source and detector 3 mm towards the "
        "picture's right edge, 8 mm towards the picture's upper edge, 1.2% closer:"
    )
    assert pose_warnings(told, NAMES[:2]) == [second]
