"""What the detector did not see: blades, smaller plates, and where the frame lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from custom.core.checkpoints import save_checkpoint
from custom.geometry import ViewRow
from custom.models import load_model
from custom.radiographs import Radiograph, read_radiographs
from custom.reconstruct import reconstruct
from custom.reconstruct.model_detector import resample_for_model
from tests.custom.benchmark.tiny_benchmark import tiny_network
from tests.custom.reconstruct.dx_pair import write_pair


def masked(radiograph: Radiograph, columns: slice) -> Radiograph:
    radiograph.field_mask[:, columns] = False
    radiograph.line_integrals[~radiograph.field_mask] = 0.0
    return radiograph


def test_beside_a_blade_the_body_goes_on_and_ends_soon(folder: Path, case: dict[str, str]) -> None:
    read = read_radiographs([case["image"]], case["geometry"])
    width = read[0].line_integrals.shape[1]
    whole = reconstruct(read, model=folder / "inr.pt")
    assert not any("exposed" in warning for warning in whole.warnings)
    middle = width // 2
    masked(read[0], slice(middle, None))
    found = reconstruct(read, model=folder / "inr.pt")
    assert not found.field_mask[0, :, middle:].any() and found.field_mask[1].all()
    # Pixels of 20 mm: 20 and 40 mm beside the edge of the exposed area, where 50 mm are the end.
    fade = torch.tensor([0.6, 0.2]), torch.zeros(width - middle - 2)
    expected = whole.image[0, :, middle - 1 : middle] * torch.cat(fade)
    np.testing.assert_allclose(found.image[0, :, middle:], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.image[0, :, :middle], whole.image[0, :, :middle], rtol=1e-5)
    (warning,) = [w for w in found.warnings if "exposed" in w]
    assert warning.startswith(f"{read[0].name}: the body reaches the edge of the exposed area")


def test_below_the_plate_the_body_goes_on_as_it_is(folder: Path, case: dict[str, str]) -> None:
    read = read_radiographs([case["image"]], case["geometry"])
    middle = read[0].line_integrals.shape[0] // 2
    whole = reconstruct(read, model=folder / "inr.pt")
    read[0].field_mask[middle:] = False
    read[0].line_integrals[middle:] = 0
    found = reconstruct(read, model=folder / "inr.pt")
    for row in range(middle, found.image.shape[1]):
        np.testing.assert_allclose(found.image[0, row], whole.image[0, middle - 1], rtol=1e-5)


def test_a_blade_in_the_air_is_no_reason_to_warn(folder: Path, case: dict[str, str]) -> None:
    read = read_radiographs([case["image"]], case["geometry"])
    air = int((read[0].line_integrals.amax(0) > 0.01).nonzero()[0]) - 1
    assert air > 0
    masked(read[0], slice(0, air))
    found = reconstruct(read, model=folder / "inr.pt")
    assert not any("exposed" in warning for warning in found.warnings)


@pytest.mark.parametrize("trained", [None, (8, 16), (16, 24), (64, 64)])
def test_a_detector_is_not_larger_than_the_models(
    folder: Path, case: dict[str, str], tmp_path: Path, trained: tuple[int, int] | None
) -> None:
    meta = {} if trained is None else {"detector_shape": list(trained)}
    model = load_model(save_checkpoint(tmp_path / "model.pt", tiny_network(), meta))
    read = read_radiographs([case["image"]], case["geometry"])
    rows, columns = read[0].line_integrals.shape
    for k, radiograph in enumerate(read):
        wide = torch.zeros(rows, columns + 400)
        wide[:, 200:-200] = radiograph.line_integrals
        read[k] = replace(radiograph, line_integrals=wide, field_mask=torch.ones_like(wide, dtype=torch.bool))
    found = reconstruct(read, model=model)
    # Untrained shapes are unknown: as wide as the cube's diagonal, 554 mm at 20 mm, in steps of 8.
    wanted = trained or (32, 32)
    assert found.image.shape[1:] == (min(wanted[0], rows), min(wanted[1], columns + 400))
    middle = (columns + 400 - found.image.shape[2]) // 2
    top = (rows - found.image.shape[1]) // 2
    for image, radiograph in zip(found.image, read, strict=True):
        expected = radiograph.line_integrals[top : rows - top, middle : columns + 400 - middle]
        np.testing.assert_allclose(image, expected, rtol=1e-6)


def test_a_smaller_plate_is_padded_to_the_larger_one_and_no_further(folder: Path, tmp_path: Path) -> None:
    model = load_model(save_checkpoint(tmp_path / "model.pt", tiny_network(), {"detector_shape": [40, 48]}))
    found = reconstruct(write_pair(tmp_path, columns=(140, 60)), model=model)
    # 120 x 140 and 120 x 60 pixels of 3.5 mm, magnified by 1800 / 1650: 19.3 x 22.5 and 9.6 columns of 20 mm.
    seen = [(int(one.any(1).sum()), int(one.any(0).sum())) for one in found.field_mask]
    assert found.image.shape[1:] == (24, 24) and seen == [(20, 22), (20, 10)]


def test_no_measured_pixel_is_cut_off_for_a_multiple_of_eight(folder: Path, tmp_path: Path) -> None:
    """Plates of one size: the same detector, padded to the next multiple of 8, with all that was measured."""
    model = load_model(save_checkpoint(tmp_path / "model.pt", tiny_network(), {"detector_shape": [40, 48]}))
    read = read_radiographs(write_pair(tmp_path, columns=(140, 140)))
    image, views, field_mask = resample_for_model(read, model)
    assert image.shape == (2, 24, 24)
    size = field_mask.sum((1, 2)) * ViewRow.from_tensor(views).pixel_mm.prod(-1)
    measured = 120 * 140 * 3.5**2
    assert bool(((size - measured).abs() < 0.06 * measured).all())


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([None, None], (0.0, 0.0, 0.0)),
        ([(1.0, 2.0, 3.0)] * 2, (1.0, 2.0, 3.0)),
        ([(1.0, 2.0, 3.0), None], None),
        ([(1.0, 2.0, 3.0), (1.0, 2.0, 4.0)], None),
    ],
)
def test_the_frame_is_the_cts_where_all_radiographs_agree(
    folder: Path, case: dict[str, str], places: Sequence[Any], expected: Any
) -> None:
    read = read_radiographs([case["image"]], case["geometry"])
    for k, place in enumerate(places):
        known = read[k].metadata.isocenter_mm
        assert known is not None
        changed = None if place is None else replace(known, value=place)
        read[k] = replace(read[k], metadata=replace(read[k].metadata, isocenter_mm=changed))
    found = reconstruct(read, model=folder / "inr.pt")
    assert found.isocenter_mm == (expected or (0.0, 0.0, 0.0))
    assert any("do not agree where their isocentre lies" in w for w in found.warnings) == (expected is None)
