"""Two DX files of one patient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from custom.dicom.write_dx import write_dx
from custom.geometry import rays, views_from_angles
from tests.hand_written_dicom import integrals


def write_pair(folder: Path, columns: Sequence[int] = (140, 110), **options: Any) -> list[Path]:
    """A frontal and a lateral DX of one patient, with another plate each."""
    paths = []
    for angle, count in zip((270.0, 0.0), columns, strict=True):
        view = views_from_angles([angle], "cone", 1650.0, 1800.0, (3.5, 3.5))[0]
        origin, direction = rays(view[None], (120, count))
        image = integrals(view[:3].numpy(), (origin + direction * 100)[0].numpy())
        paths.append(write_dx(folder / f"view{angle:g}.dcm", image, view, photons=None, **options))
    return paths
