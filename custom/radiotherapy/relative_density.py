"""Relative density from CT values by a table that is named in the plan."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from custom.radiotherapy.planning_numbers import NUMBERS

__all__ = ["relative_density"]


def relative_density(
    hu: npt.NDArray[np.floating], external: npt.NDArray[np.bool_], table: str = NUMBERS.density_table
) -> npt.NDArray[np.float32]:
    """Density relative to water, piecewise linear between the table's points and constant beyond them.

    What lies outside the external contour is air, on every CT: couch, clothing and the blurred rim of a reconstruction
    would otherwise change the dose by as much as the errors that are to be measured.

    Args:
        hu: (X, Y, Z) HU.
        external: bool (X, Y, Z), see `external_contour`.
        table: its name in planning.json.

    Returns:
        (X, Y, Z) float32, 0.001 and more.

    Raises:
        ValueError: an unknown table, or shapes that differ.
    """
    if table not in NUMBERS.density_tables:
        raise ValueError(f"density table {table!r} is not known: there are {', '.join(NUMBERS.density_tables)}")
    if hu.shape != external.shape:
        raise ValueError(f"CT and external contour differ in shape: {hu.shape} and {external.shape}")
    points = NUMBERS.density_tables[table]
    density = np.interp(hu, points.hu, points.relative_density).astype(np.float32)
    return np.where(external, density, np.float32(points.relative_density[0]))
