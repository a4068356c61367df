"""Geometry: properties that hold for any pose, files, and every way in which an acquisition can be impossible."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from custom.core.angles import angle_difference_deg
from custom.geometry import (
    Geometry,
    ViewRow,
    VolumeGrid,
    is_cone,
    is_vertical_parallel,
    pixel_coordinates,
    projection_matrices,
    rays,
    views_from_angles,
)
from tests.analytic import turned

few = settings(max_examples=40, deadline=None)
angles = st.lists(st.floats(-720, 720), min_size=1, max_size=5)
beams = st.sampled_from(["parallel", "cone"])


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any acquisition: angles, distances and offsets, then the whole gantry turned by a random rotation."""
    beam = draw(beams)
    to_isocenter = draw(st.floats(600, 2000))
    views = views_from_angles(
        draw(angles),
        beam,
        to_isocenter,
        to_isocenter + draw(st.floats(150, 900)),
        (draw(st.floats(0.5, 6)), draw(st.floats(0.5, 6))),
        (draw(st.floats(-40, 40)), draw(st.floats(-40, 40))),
    )
    views = turned(views, draw(st.integers(0, 2**16)))
    shape = (draw(st.integers(40, 200)), draw(st.integers(40, 200)))
    return Geometry(views, shape, isocenter_mm=draw(st.sampled_from([None, (1, 2, 3)])))


@few
@given(geometries(), st.integers(0, 2**16))
def test_a_point_on_a_pixels_ray_is_seen_at_that_pixel(geometry: Geometry, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    row, column = (int(torch.randint(n, (1,), generator=generator)) for n in geometry.detector_shape)
    origin, direction = rays(geometry.views, geometry.detector_shape)
    distance = 100 + 900 * torch.rand(1, generator=generator).double()
    for k in range(len(geometry)):
        sign = 1 if is_cone(geometry.views)[k] else -1
        point = origin[k, row, column] + sign * distance * direction[k, row, column]
        found, seen = pixel_coordinates(point[None], geometry.views, geometry.detector_shape)
        assert found[k, 0].tolist() == pytest.approx([column, row], abs=1e-6)
        assert bool(seen[k, 0])


@few
@given(geometries())
def test_ray_ends_in_its_pixel_and_has_unit_length(geometry: Geometry) -> None:
    _, direction = rays(geometry.views, geometry.detector_shape)
    torch.testing.assert_close(direction.norm(dim=-1), torch.ones_like(direction[..., 0]))
    matrices = projection_matrices(geometry.views, geometry.detector_shape)
    centers = torch.cat([geometry.views[:, 3:6], torch.ones(len(geometry), 1, dtype=torch.float64)], -1)
    a, b, w = (matrices @ centers[..., None]).squeeze(-1).unbind(-1)
    middle = [(n - 1) / 2 for n in geometry.detector_shape]
    assert (b / w).tolist() == pytest.approx([middle[0]] * len(geometry), abs=1e-6)
    assert (a / w).tolist() == pytest.approx([middle[1]] * len(geometry), abs=1e-6)
    assert (w > 0).all()


@few
@given(geometries())
def test_json_gives_the_same_geometry_back(geometry: Geometry) -> None:
    again = Geometry.from_dict(json.loads(json.dumps(geometry.to_dict())))
    assert again == geometry and hash(again) == hash(geometry)
    assert torch.equal(again.views, geometry.views)


@few
@given(geometries(), st.data())
def test_select_keeps_order_and_everything_else(geometry: Geometry, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, len(geometry) - 1), min_size=1, max_size=4))
    chosen = geometry.select(indices)
    assert torch.equal(chosen.views, geometry.views[indices])
    assert replace(chosen, views=geometry.views) == geometry


@few
@given(angles, beams)
def test_angles_round_trip(values: list[float], beam: str) -> None:
    found = Geometry.from_angles(values, beam).angles_deg
    for value, angle in zip(values, found, strict=True):
        assert 0 <= angle < 360
        assert abs(angle_difference_deg(value, angle)) < 1e-6


@few
@given(angles, beams)
def test_float32_views_agree_with_float64_to_a_thousandth_of_a_pixel(values: list[float], beam: str) -> None:
    geometry = Geometry.from_angles(values, beam)
    points = VolumeGrid((5, 5, 5), (64.0, 64.0, 64.0)).points(dtype=torch.float64).reshape(-1, 3)
    exact, _ = pixel_coordinates(points, geometry.views, geometry.detector_shape)
    single, _ = pixel_coordinates(points.float(), geometry.tensor(), geometry.detector_shape)
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=2e-3)


def test_points_behind_the_source_or_off_the_detector_are_not_seen() -> None:
    views = views_from_angles([0.0], "cone", pixel_mm=2.0)
    points = torch.tensor([[0.0, 0, 0], [1000, 0, 0], [1500, 0, 0], [0, 100, 0], [0, 0, 90]], dtype=torch.float64)
    _, seen = pixel_coordinates(points, views, (128, 128))
    assert seen[0].tolist() == [True, False, False, False, False]
    _, seen = pixel_coordinates(points, views, (128, 256))
    assert seen[0].tolist() == [True, False, False, True, False]


def test_batches_of_views_and_points_broadcast() -> None:
    views = torch.stack([views_from_angles([0.0, 90.0]), views_from_angles([10.0, 50.0])])
    points = torch.randn(2, 7, 3, dtype=torch.float64) * 50
    found, seen = pixel_coordinates(points, views, (128, 192))
    assert found.shape == (2, 2, 7, 2) and seen.shape == (2, 2, 7)
    for b in range(2):
        torch.testing.assert_close(found[b], pixel_coordinates(points[b], views[b], (128, 192))[0])


def test_views_are_differentiable_in_angle_and_distance() -> None:
    angle = torch.tensor([0.3, 1.2], dtype=torch.float64, requires_grad=True)
    distance = torch.tensor(1000.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, d: views_from_angles(a, "cone", d, 1500.0), (angle, distance))


def test_upright_parallel_views_are_recognised() -> None:
    views = torch.cat([views_from_angles([0.0, 33.0], "parallel"), views_from_angles([0.0])])
    assert is_vertical_parallel(views).tolist() == [True, True, False]
    tilted = views[:1].clone()
    tilted[0, 0:3] = torch.tensor([-0.99, 0, -math.sqrt(1 - 0.99**2)])
    assert not is_vertical_parallel(tilted).any()


def test_default_detector_sees_the_diagonal_of_the_grid() -> None:
    for beam in ("parallel", "cone"):
        geometry = Geometry.from_angles([0.0, 45.0, 80.0], beam)
        assert geometry.detector_shape == (128, 192)
        points = geometry.grid.resized((16, 16, 16)).points(dtype=torch.float64)[..., 8, :].reshape(-1, 3)
        assert pixel_coordinates(points, geometry.views, geometry.detector_shape)[1].all()


def test_grid_and_affine() -> None:
    grid = VolumeGrid((4, 5, 6), (1.0, 2.0, 3.0), (10.0, 0.0, -5.0))
    points = grid.points(dtype=torch.float64)
    for isocenter in (None, (100.0, -50.0, 7.0)):
        affine = grid.affine(isocenter)
        world = affine[:3, :3] @ np.array([3, 1, 2]) + affine[:3, 3] - (0 if isocenter is None else np.array(isocenter))
        np.testing.assert_allclose(world, points[3, 1, 2])
    half = grid.resized((8, 10, 12))
    assert half.half_extent_mm == grid.half_extent_mm and half.spacing_mm == (0.5, 1.0, 1.5)
    assert grid.padded((1, 0, 2)).shape == (6, 5, 10) and grid.padded((1, 0, 2)).center_mm == grid.center_mm
    assert VolumeGrid.cube(64, 320.0) == VolumeGrid((64,) * 3, (5.0,) * 3)


def test_grids_that_follow_from_a_grid() -> None:
    grid = VolumeGrid((8, 6, 4), (2.5, 2.5, 5.0), (1.0, 0.0, -2.0))
    wide = grid.with_margin([5.0, 2.5, 10.0])
    assert wide == VolumeGrid((12, 8, 8), grid.spacing_mm, grid.center_mm)
    assert grid.middle_of(wide) == (slice(2, 10), slice(1, 7), slice(2, 6))
    assert grid.with_margin([0.0, 2.5, 0.0], 5.0) == VolumeGrid((4, 4, 4), (5.0,) * 3, grid.center_mm)
    assert grid.coarser(2) == VolumeGrid((4, 3, 2), (5.0, 5.0, 10.0), grid.center_mm)
    with pytest.raises(ValueError, match="choose another margin"):
        grid.with_margin([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="must divide the grid's shape"):
        grid.coarser(4)


def test_poses_of_any_length_of_direction() -> None:
    geometry = Geometry.from_poses([[-3.0, 0, 0]], [[-500.0, 0, 0]], [[0, 2.5, 0]], [[0, 0, -2.5]], beam="parallel")
    assert torch.equal(geometry.views[0, :3], torch.tensor([-1.0, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(geometry.views, Geometry.from_angles([0.0], "parallel").views)


def test_oversampled_detector_covers_the_same_area() -> None:
    geometry = Geometry.from_angles([12.0], "cone", detector_shape=(10, 12), pixel_mm=8.0)
    fine = geometry.oversampled(3)
    assert fine.detector_shape == (30, 36) and fine.pixel_mm[0] == pytest.approx((8 / 3, 8 / 3))
    corner = rays(geometry.views, geometry.detector_shape)[1][0, 0, 0]
    torch.testing.assert_close(rays(fine.views, fine.detector_shape)[1][0, 1, 1], corner)


def _bad_views(index: slice | int, value: Any, beam: str = "cone") -> torch.Tensor:
    views = views_from_angles([0.0, 90.0], beam)
    views[1, index] = torch.as_tensor(value, dtype=torch.float64)
    return views


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (_bad_views(3, float("nan")), "finite numbers; view 1"),
        (_bad_views(6, float("inf")), "finite numbers; view 1"),
        (_bad_views(12, 0.5), "beam flags"),
        (_bad_views(slice(0, 3), [0, 100.0, 0]), "view 1: the source .* is inside the volume"),
        (_bad_views(slice(6, 9), [0.0, 0, 0]), "view 1: u and v steps"),
        (_bad_views(slice(6, 9), [0.0, 0, 2.5]), "view 1: u and v steps"),
        (_bad_views(slice(6, 9), [2.5, 0, 0]), "view 1: .*right-handed"),
        (_bad_views(slice(9, 12), [0, 0, 2.5]), "view 1: .*right-handed"),
        (_bad_views(slice(6, 9), [0, 2.5, 0]), "view 1: the rays run along the detector"),
        (_bad_views(slice(0, 3), [0, 0, 0], "parallel"), "view 1: the rays run along .*no direction"),
        (_bad_views(3, 2000.0), "view 1: the detector misses the volume"),
        (_bad_views(5, -900.0, "parallel"), "view 1: the detector misses the volume"),
        (torch.zeros(2, 12), r"views must have shape \(K, 13\)"),
        (torch.zeros(0, 13), "at least one view"),
    ],
)
def test_impossible_views_are_refused(views: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry(views)


def test_small_detectors_that_look_between_coarse_probes_are_accepted() -> None:
    Geometry.from_angles([10.0], "parallel", detector_shape=(2, 2), pixel_mm=0.2, detector_offset_mm=(7.3, 11.1))
    Geometry.from_angles([10.0], detector_shape=(1, 1), pixel_mm=0.1, grid=VolumeGrid((2, 2, 2), (0.5,) * 3))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"beam": "fan"}, "beam must be one of .*'fan'"),
        ({"angles_deg": [0.0, float("nan")]}, "angles_deg must be finite"),
        ({"source_to_isocenter_mm": -1.0}, "source_to_isocenter_mm must be finite and greater than zero"),
        ({"source_to_detector_mm": 900.0}, r"source_to_detector_mm \(900.0\) must be greater"),
        ({"pixel_mm": 0.0}, "pixel_mm must be finite and greater than zero"),
        ({"detector_offset_mm": (0.0, float("nan"))}, "detector_offset_mm"),
        ({"detector_shape": (0, 5)}, "detector_shape must be finite and greater than zero"),
        ({"isocenter_mm": (0.0, float("inf"), 0.0)}, "isocenter_mm must be three finite numbers"),
    ],
)
def test_impossible_arguments_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry.from_angles(**{"angles_deg": [0.0, 90.0], **keywords})


@pytest.mark.parametrize(
    "arguments",
    [((0, 4, 4),), ((4, 4, 4), (0.0, 1, 1)), ((4, 4, 4), (1, float("nan"), 1)), ((4, 4),), ((4, -4, 4),)],
)
def test_impossible_grids_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape|spacing_mm"):
        VolumeGrid(*arguments)


def test_poses_must_agree_in_number() -> None:
    with pytest.raises(ValueError, match=r"same number of views, got \[2, 1, 1, 1\]"):
        Geometry.from_poses([[1000.0, 0, 0]] * 2, [[-500.0, 0, 0]], [[0, 1.0, 0]], [[0, 0, -1.0]])


def test_select_refuses_views_that_are_not_there() -> None:
    geometry = Geometry.from_angles([0.0, 90.0])
    for indices in ([2], [], [-3]):
        with pytest.raises(ValueError, match="indices must be within the 2 views"):
            geometry.select(indices)


def _edited(**changes: Any) -> str:
    return json.dumps({**Geometry.from_angles([0.0]).to_dict(), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "views.json"),
        ("[1, 2]", "must hold a JSON object, not a list"),
        (_edited(format="dicom"), "not a geometry: .*'dicom'"),
        (_edited(views=[{"beam": "cone"}]), "missing or malformed entry: 'source_mm'"),
        (_edited(views=[]), "views must have shape"),
        (_edited(views=[{"beam": "fan"}]), "missing or malformed entry: 'fan'"),
        (_edited(grid={"shape": [4, 4, 4]}), "missing or malformed entry: 'spacing_mm'"),
        (_edited(detector_shape=None), "missing or malformed"),
        (_edited(isocenter_mm=[1.0]), "isocenter_mm must be three finite numbers"),
    ],
)
def test_wrong_files_are_refused_with_their_name(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "views.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Geometry.load(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such geometry file"):
        Geometry.load(tmp_path / "nowhere.json")


def test_saving_leaves_no_partial_file(tmp_path: Path) -> None:
    geometry = Geometry.from_angles([0.0])
    geometry.save(tmp_path / "views.json")
    assert [p.name for p in tmp_path.iterdir()] == ["views.json"]
    assert Geometry.load(tmp_path / "views.json") == geometry


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_a_view_row_names_the_thirteen_numbers(beam: str) -> None:
    views = views_from_angles([30.0, 350.0], beam, 1000.0, 1500.0, (2.0, 3.0), (20.0, -10.0))
    row = ViewRow.from_tensor(views)
    assert torch.equal(row.to_tensor(), views) and row.is_cone.tolist() == [beam == "cone"] * 2
    torch.testing.assert_close(row.angle_deg, torch.tensor([30.0, 350.0], dtype=torch.float64))
    torch.testing.assert_close(row.pixel_mm, torch.tensor([[2.0, 3.0]], dtype=torch.float64).expand(2, 2))
    # The normal is the direction of the central ray, which meets the detector 500 mm behind the isocentre.
    away = -torch.nn.functional.normalize(row.toward_source, dim=-1)
    torch.testing.assert_close(row.normal, away)
    torch.testing.assert_close(row.foot, 500 * away)
    beside = row.detector_center - row.foot
    torch.testing.assert_close(beside, row.u_step * 20 / 3 + row.v_step * 10 / 2)
    if beam == "cone":
        assert row.source_to_isocenter_mm.tolist() == pytest.approx([1000.0] * 2)
        assert row.source_to_detector_mm.tolist() == pytest.approx([1500.0] * 2)


@pytest.mark.parametrize(
    ("one", "other", "expected"), [(0.1, 359.9, 0.2), (359.9, 0.1, -0.2), (90, 270, -180), (5, 3, 2)]
)
def test_angles_differ_the_short_way_round(one: float, other: float, expected: float) -> None:
    assert angle_difference_deg(one, other) == pytest.approx(expected)
