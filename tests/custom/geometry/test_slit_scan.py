"""Slit scans: a point lands on the pixel that the formula gives, magnified along x and not along z."""

from __future__ import annotations

import pytest
import torch

from custom.geometry import VolumeGrid, pixel_coordinates, slit_scan_views
from custom.projection import Projector

SOD, SDD = 500.0, 900.0
ROW_MM, COLUMN_MM = 0.5, 0.6
ROWS, COLUMNS = 400, 300


def _scan(**options: object) -> torch.Tensor:
    return slit_scan_views(ROWS, (ROW_MM, COLUMN_MM), SOD, SDD, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("y", [-120.0, 0.0, 80.0])
def test_a_point_is_magnified_along_x_and_not_along_z(y: float) -> None:
    row = 37
    z = ((ROWS - 1) / 2 - row) * ROW_MM
    point = torch.tensor([[30.0, y, z]], dtype=torch.float64)
    where, _ = pixel_coordinates(point, _scan(), (1, COLUMNS))
    # The source is in front (+y) and u runs towards the patient's left (-x).
    assert where[row, 0, 0] == pytest.approx((COLUMNS - 1) / 2 - 30 * SOD / (SOD - y) / COLUMN_MM)
    assert where[:, 0, 1].abs().argmin() == row
    assert where[row, 0, 1] == pytest.approx(0, abs=1e-9)


def test_a_scan_from_behind_is_seen_from_the_source() -> None:
    point = torch.tensor([[30.0, 80.0, ((ROWS - 1) / 2 - 5) * ROW_MM]], dtype=torch.float64)
    where, _ = pixel_coordinates(point, _scan(angle_deg=270), (1, COLUMNS))
    assert where[5, 0, 0] == pytest.approx((COLUMNS - 1) / 2 + 30 * SOD / (SOD + 80) / COLUMN_MM)


def test_axis_and_middle_move_the_picture() -> None:
    axis, middle = (12.0, -40.0), (6.0, 25.0)
    point = torch.tensor([[20.0, 10.0, 25 + (ROWS - 1) / 2 * ROW_MM]], dtype=torch.float64)
    where, _ = pixel_coordinates(point, _scan(axis_mm=axis, middle_mm=middle), (1, COLUMNS))
    along_u = -(20 - 12) * SOD / (SOD - (10 + 40)) - 6
    assert where[0, 0].tolist() == pytest.approx([(COLUMNS - 1) / 2 + along_u / COLUMN_MM, 0])


def test_strips_are_exact_in_the_plane_of_the_axis_and_off_by_the_stated_distance_elsewhere() -> None:
    strip, inside = 40, 3
    row = 2 * strip + inside
    z = ((ROWS - 1) / 2 - row) * ROW_MM
    points = torch.tensor([[10.0, 0.0, z], [10.0, 100.0, z]], dtype=torch.float64)
    views = _scan(rows_per_view=strip)
    where, _ = pixel_coordinates(points, views, (strip, COLUMNS))
    assert len(views) == ROWS // strip
    assert where[2, 0, 1] == pytest.approx(inside)
    from_middle_mm = ((strip - 1) / 2 - inside) * ROW_MM
    assert (inside - where[2, 1, 1]) * ROW_MM == pytest.approx(from_middle_mm * 100 / (SOD - 100))


def test_the_projector_puts_a_bright_voxel_there() -> None:
    grid = VolumeGrid((40, 40, 40), (2.0, 2.0, 2.0), (0.0, 60.0, 0.0))
    volume = torch.zeros(1, 1, *grid.shape)
    volume[0, 0, 25, 30, 32] = 1
    x, y, z = (float(grid.axis_mm(axis)[index]) for axis, index in enumerate((25, 30, 32)))
    views = slit_scan_views(100, 1.0, SOD, SDD).float()
    picture = Projector(grid, (1, 160), views)(volume)[0, :, 0]
    weight = picture / picture.sum()
    row = float((weight.sum(1) * torch.arange(100)).sum())
    column = float((weight.sum(0) * torch.arange(160)).sum())
    assert row == pytest.approx(99 / 2 - z, abs=0.05)
    assert column == pytest.approx(159 / 2 - x * SOD / (SOD - y), abs=0.05)


@pytest.mark.parametrize(
    "options", [{"rows_per_view": 3}, {"rows_per_view": 0}, {"axis_mm": (0.0,)}, {"middle_mm": (0.0, float("nan"))}]
)
def test_what_cannot_be_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"rows|axis_mm"):
        _scan(**options)
