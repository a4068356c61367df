"""Pictures of radiographs and their numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from custom.core.attenuation import water_attenuation_per_mm
from custom.geometry import views_from_angles
from custom.report.radiograph_pictures import difference_picture, grey_picture, residual, side_letters
from custom.report.volume_pictures import tissue_shares


@pytest.mark.parametrize(
    ("angle", "letters"),
    [(90, ("R", "L")), (270, ("L", "R")), (0, ("P", "A")), (180, ("A", "P")), (45, ("RP", "LA")), (80, ("R", "L"))],
)
def test_sides_of_the_patient(angle: float, letters: tuple[str, str]) -> None:
    """By hand: u = (-sin a, cos a, 0), x to the right, y anterior; seen from in front the right is on the left."""
    assert side_letters(views_from_angles([float(angle)])[0]) == letters


def test_the_residual_is_the_mean_over_exposed_pixels_in_mm_of_water() -> None:
    per_mm = water_attenuation_per_mm(70.0)
    one = torch.full((4, 6), 100 * per_mm)
    other, field_mask = one.clone(), torch.ones(4, 6, dtype=torch.bool)
    other[:, :3] -= 10 * per_mm
    other[0, 3:] = 99.0
    field_mask[0, 3:] = False
    found = residual(one, other, field_mask, 70.0)
    assert found.mean_mm == pytest.approx(-10 * 12 / 21)
    assert found.rms_mm == pytest.approx(10 * (12 / 21) ** 0.5)
    assert found.share == pytest.approx(found.rms_mm / 100)
    with pytest.raises(ValueError, match="no pixel"):
        residual(one, other, torch.zeros(4, 6, dtype=torch.bool), 70.0)


def test_pictures_have_the_detectors_proportions_and_hatch_what_was_not_exposed() -> None:
    image, field_mask = torch.linspace(0, 1, 200).reshape(10, 20), torch.ones(10, 20, dtype=torch.bool)
    field_mask[:, :5] = False
    picture = grey_picture(image, field_mask, (0.0, 1.0), (2.0, 1.0))
    assert picture.size == (480, 480)
    assert set(np.unique(np.asarray(picture)[:, :110])) == {38, 105}
    assert np.asarray(picture)[470, 470] > 240
    thin = difference_picture(image, image - 5, field_mask, 70.0, 30.0, (1.0, 1.0))
    thick = difference_picture(image, image + 5, field_mask, 70.0, 30.0, (1.0, 1.0))
    assert thin.size == (480, 240)
    red, _, blue = np.asarray(thin)[200, 400].astype(int)
    assert blue > red, "too thin is blue"
    red, _, blue = np.asarray(thick)[200, 400].astype(int)
    assert red > blue, "too dense is orange"


def test_tissues_cover_every_value_once() -> None:
    values = np.array([-1000.0, -500.0, -150.0, -30.0, 150.0, 3000.0, -30.001])
    shares = tissue_shares(values)
    assert sum(shares.values()) == pytest.approx(1)
    assert [round(share * 7) for share in shares.values()] == [1, 1, 2, 1, 2]
