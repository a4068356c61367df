"""One detector for radiographs of different sizes, pixels and offsets."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_written_dicom import integrals
from hypothesis import given, settings
from hypothesis import strategies as st

from custom.geometry import rays, views_from_angles
from custom.geometry.detector import isocenter_pixel_mm, match_detector
from custom.radiographs import Radiograph, assemble


def radiograph(view: torch.Tensor, shape: tuple[int, int], name: str = "a") -> Radiograph:
    """The phantom as a view sees it."""
    image = torch.from_numpy(expected(view, shape)).float()
    return Radiograph(name, Path(name), "", image, torch.ones(shape, dtype=torch.bool), view.double(), {})


def expected(view: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    origin, direction = rays(view.double()[None], shape)
    if view[12] > 0.5:
        return integrals(view[:3].double().numpy(), (origin + direction)[0].numpy())
    # A source far away stands for parallel rays.
    far = -view[:3].double().numpy() * 1e7
    return integrals(far, origin[0].numpy())


def view_of(
    angle: float,
    pixel: float | list[float],
    offset: tuple[float, float] = (0, 0),
    source_to_isocenter_mm: float = 1000.0,
    source_to_detector_mm: float = 1500.0,
) -> torch.Tensor:
    return views_from_angles([angle], "cone", source_to_isocenter_mm, source_to_detector_mm, pixel, offset)[0]


def test_alike_radiographs_go_as_before() -> None:
    """Bit for bit what the reader of stored stacks gives."""
    items = [radiograph(view_of(angle, 3.75), (128, 192)) for angle in (0.0, 90.0)]
    done = assemble(items, 2.5)
    image, views = match_detector(
        torch.stack([r.line_integrals for r in items]), torch.stack([r.view for r in items]).float(), 2.5
    )
    assert torch.equal(done.image, image)
    assert torch.equal(done.views, views)
    assert done.image.shape == (2, 128, 192)
    assert bool(done.field_mask.all())


def test_different_radiographs_on_one_detector() -> None:
    """Each resampled picture is what its new view sees, up to the size of a pixel."""
    items = [
        radiograph(view_of(90.0, [1.0, 1.2], (20.0, -15.0)), (400, 380), "a"),
        radiograph(view_of(0.0, 2.0, source_to_isocenter_mm=1600.0, source_to_detector_mm=1800.0), (230, 260), "b"),
        radiograph(views_from_angles([45.0], "parallel", pixel_mm=1.1)[0], (330, 350), "c"),
    ]
    done = assemble(items, 2.5)
    assert done.image.dtype == done.views.dtype == torch.float32
    assert done.image.shape == done.field_mask.shape
    assert all(n % 8 == 0 for n in done.image.shape[1:])
    assert torch.allclose(isocenter_pixel_mm(done.views), torch.full((3, 2), 2.5), rtol=1e-4)
    for image, view, field_mask in zip(done.image, done.views, done.field_mask, strict=True):
        truth = expected(view, tuple(image.shape))
        # Borders of the heart are blurred by a pixel: the mean tells.
        assert float(np.abs(image.numpy() - truth)[field_mask.numpy()].mean()) < 0.02
        assert float(image[~field_mask].abs().sum()) == 0
        assert 0.3 < float(field_mask.float().mean()) <= 1
    # Offsets vanish: the middle of every detector is where the ray through the isocentre meets it.
    assert torch.allclose(done.views[0, 3:6], torch.tensor([0.0, -500.0, 0.0]), atol=1e-3)


def test_a_given_detector() -> None:
    item = radiograph(view_of(90.0, 3.0, (60.0, 0.0)), (100, 100))
    done = assemble([item], 2.5, (128, 192))
    assert done.image.shape == (1, 128, 192)
    columns = done.field_mask[0].any(0).nonzero().flatten()
    # 300 mm wide and 60 mm aside, in pixels of 3.75 mm around the middle, 96.
    assert int(columns[0]) == pytest.approx(96 + (60 - 150) / 3.75, abs=1)
    assert int(columns[-1]) == pytest.approx(96 + (60 + 150) / 3.75, abs=1)
    with pytest.raises(ValueError, match="a: nothing of it falls on the detector"):
        assemble([radiograph(view_of(90.0, 3.0, (2000.0, 0.0)), (100, 100))], 2.5, (128, 192))
    with pytest.raises(ValueError, match="no radiographs to assemble"):
        assemble([], 2.5)
    with pytest.raises(ValueError, match="must be positive"):
        assemble([item], 0.0)


def test_blades_do_not_bleed() -> None:
    """Values behind blades have no weight."""
    item = radiograph(view_of(90.0, 1.0), (400, 400))
    truth = item.line_integrals.clone()
    item.field_mask[:, :107] = False
    item.line_integrals[:, :107] = 40.0
    done = assemble([item], 2.5, (104, 112))
    assert float(done.image.max()) <= float(truth.max()) + 1e-4
    assert not bool(done.field_mask[0, :, :30].any())


@settings(max_examples=15)
@given(
    angle=st.floats(0, 359), pixel=st.floats(0.8, 4), side=st.integers(60, 220), across=st.floats(-40, 40),
    up=st.floats(-40, 40),
)  # fmt: skip
def test_every_picture_keeps_its_geometry(angle: float, pixel: float, side: int, across: float, up: float) -> None:
    item = radiograph(view_of(angle, pixel, (across, up)), (side, side + 20))
    odd = radiograph(view_of(angle, pixel), (side + 8, side), "b")
    done = assemble([item, odd], 2.5)
    for image, view, field_mask in zip(done.image, done.views, done.field_mask, strict=True):
        truth = expected(view, tuple(image.shape))
        assert float(np.median(np.abs(image.numpy() - truth)[field_mask.numpy()])) < 0.02


@pytest.mark.parametrize(
    ("pixel", "shape", "message"),
    [
        (0.001, (32, 40), "broken: a picture of 0.04 x 0.032 mm on the detector is smaller than a pixel of 2.5 mm"),
        ([0.001, 5.0], (32, 40), "smaller than a pixel of 2.5 mm"),
        (50.0, (32, 320), "broken: a picture of 1.6e\\+04 x 1600 mm on the detector is larger than 4096 pixels of 2.5"),
    ],
)
@pytest.mark.parametrize("alike", [True, False])
def test_sizes_that_would_take_memory_without_end(
    pixel: float | list[float], shape: tuple[int, int], message: str, alike: bool
) -> None:
    """Sub-pixels are counted in this picture's pixels: thousands for each of the model's."""
    good = radiograph(view_of(0.0, 4.0), shape if alike else (90, 80))
    with pytest.raises(ValueError, match=message):
        assemble([good, radiograph(view_of(90.0, pixel), shape, "broken")], 2.5)


def test_fine_pixels_on_a_wide_detector_take_no_memory() -> None:
    """Only the model's pixels that see something of the picture are computed."""
    wide = radiograph(view_of(0.0, 40.0), (64, 64), "wide")
    fine = radiograph(view_of(90.0, 0.08), (100, 100), "fine")
    start = time.process_time()
    done = assemble([wide, fine], 2.5)
    # Of the wide one's size, with the fine one's pixels: 32000 a side.
    assert time.process_time() - start < 5
    assert done.image.shape == (2, 688, 688)
    assert done.field_mask[1].sum() == 4 and done.field_mask[1, 343:345, 343:345].all()
    assert float(done.image[1].max()) == pytest.approx(float(fine.line_integrals.mean()), rel=0.05)
