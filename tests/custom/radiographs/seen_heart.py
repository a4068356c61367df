"""Whether a read radiograph shows the heart of the hand-written files where its view says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hand_written_dicom import HEART, integrals

from custom.geometry import pixel_coordinates, rays
from custom.radiographs import Radiograph, read_radiographs


def check(radiograph: Radiograph, tolerance: float = 0.02) -> None:
    """The whole picture is what the read view sees, and its densest point is the heart."""
    view = radiograph.view
    shape = tuple(radiograph.line_integrals.shape)
    origin, direction = rays(view[None], shape)
    expected = integrals(view[:3].numpy(), (origin + direction * 100)[0].numpy())
    found = radiograph.line_integrals.numpy()
    assert np.abs(found - expected).max() < tolerance
    (u, v), seen = (t[0, 0] for t in pixel_coordinates(torch.from_numpy(HEART)[None], view[None], shape))
    row, column = np.unravel_index(found.argmax(), shape)
    assert bool(seen)
    assert abs(row - float(v)) < 1.5
    assert abs(column - float(u)) < 1.5
    # Row 0 is superior: the heart lies above the middle.
    assert row < shape[0] / 2 + 20
    assert float(view[11]) < 0


def read(path: Path, **keywords: object) -> Radiograph:
    (radiograph,) = read_radiographs([path], **keywords)  # type: ignore[arg-type]
    return radiograph
