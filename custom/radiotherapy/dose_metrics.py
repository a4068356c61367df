"""Numbers of doses: at a point, in structures, and of one dose against another."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from custom.core.optional_packages import required
from custom.radiotherapy.dose_engine import kept_threads
from custom.radiotherapy.planning_ct import PlanningCT

__all__ = [
    "dose_at",
    "dose_error_percent",
    "dvh",
    "gamma_pass_percent",
    "require_gamma",
    "structure_numbers",
    "volume_at_dose",
]

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

#: Below this share of the prescription doses are not compared.
CUTOFF_PERCENT = 10.0
#: What V20 Gy of the lung asks for.
LUNG_GY = 20.0
#: So many points of the reference are given a gamma, evenly spread.
GAMMA_POINTS = 4000
#: Where doses are compared beyond 3 mm, plus what gamma searches.
_MARGIN_VOXELS = 4


def dose_at(ct: PlanningCT, dose: FloatArray, point_mm: Sequence[float]) -> float:
    """Dose at a point, trilinear, in the unit of `dose` (X, Y, Z)."""
    index = ct.index(point_mm)[:, None]
    return float(ndimage.map_coordinates(dose, index, np.float32, order=1, mode="nearest")[0])


def volume_at_dose(dose: FloatArray, mask: BoolArray, dose_gy: float) -> float:
    """V_D: the share of a structure that receives at least a dose, in percent; NaN for an empty structure."""
    values = dose[mask]
    return float(100 * (values >= dose_gy).mean()) if values.size else float("nan")


def dvh(dose: FloatArray, mask: BoolArray, doses_gy: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Cumulative dose-volume histogram: percent of the structure that receives at least each dose."""
    values = np.sort(dose[mask])
    return 100 * (1 - np.searchsorted(values, doses_gy, side="left") / max(values.size, 1))


def structure_numbers(
    dose: FloatArray, mask: BoolArray, prescription_gy: float, name: str, target: bool
) -> dict[str, float]:
    """What is usually asked of a structure's DVH.

    Args:
        dose: (X, Y, Z) Gy of all fractions.
        mask: bool (X, Y, Z).
        prescription_gy: of all fractions.
        name: of the structure.
        target: whether it is one.

    Returns:
        Mean and D2 (near maximum) in Gy; of a target V90, V95 and V107 of the prescription, of a lung V20 Gy where more
        than that is prescribed, percent.
    """
    values = dose[mask]
    if values.size == 0:
        return {}
    key = name.lower()
    found = {f"{key}_mean_gy": float(values.mean()), f"{key}_d2_gy": float(np.percentile(values, 98))}
    if target:
        for percent in (90, 95, 107):
            found[f"{key}_v{percent}_percent"] = volume_at_dose(dose, mask, prescription_gy * percent / 100)
    if name.startswith("Lung") and prescription_gy > LUNG_GY:
        found[f"{key}_v20gy_percent"] = volume_at_dose(dose, mask, LUNG_GY)
    return found


def dose_error_percent(dose: FloatArray, reference: FloatArray, external: BoolArray, prescription_gy: float) -> float:
    """Mean absolute dose difference, in percent of the prescription, where the reference has 10 % of it in the body."""
    compared = external & (reference >= prescription_gy * CUTOFF_PERCENT / 100)
    return float(100 * np.abs(dose - reference)[compared].mean() / prescription_gy) if compared.any() else float("nan")


def require_gamma() -> Any:
    """The package that computes gamma.

    Raises:
        ModuleNotFoundError: it is missing, naming the extra.
    """
    return required("pymedphys", "radiotherapy", "gamma needs Python 3.11 or 3.12 and")


@contextmanager
def _no_root_info() -> Iterator[None]:
    """pymedphys says its progress through the root logger, and two criteria at once do not fit its format."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        root.setLevel(level)


def gamma_pass_percent(
    ct: PlanningCT,
    reference: FloatArray,
    dose: FloatArray,
    external: BoolArray,
    prescription_gy: float,
    points: int = GAMMA_POINTS,
) -> dict[str, float]:
    """Share of points with gamma <= 1, global to the prescription, where the reference has 10 % of it in the body.

    Low DA et al., A technique for the quantitative evaluation of dose distributions, Med Phys 25, 1998; by pymedphys.

    Args:
        ct: whose grid it is.
        reference: (X, Y, Z) Gy.
        dose: (X, Y, Z) Gy, that is judged.
        external: bool (X, Y, Z), the body.
        prescription_gy: what percents are of.
        points: of the reference that are looked at; always the same ones.

    Returns:
        "gamma_2_2_percent" (2 %, 2 mm) and "gamma_3_3_percent".

    Raises:
        ModuleNotFoundError: pymedphys is missing, naming the extra.
    """
    pymedphys = require_gamma()
    names = {(2, 2): "gamma_2_2_percent", (3, 3): "gamma_3_3_percent"}
    looked_at = np.flatnonzero(external & (reference >= prescription_gy * CUTOFF_PERCENT / 100))
    if looked_at.size == 0:
        return dict.fromkeys(names.values(), float("nan"))
    chosen = looked_at[np.unique(np.linspace(0, looked_at.size - 1, min(points, looked_at.size)).round().astype(int))]
    sparse = np.zeros_like(reference)
    sparse.flat[chosen] = reference.flat[chosen]
    box: Any = ndimage.find_objects((sparse > 0).astype(np.int8))[0]
    box = tuple(slice(max(0, s.start - _MARGIN_VOXELS), s.stop + _MARGIN_VOXELS) for s in box)
    axes = tuple(ct.grid.axis_mm(axis).double().numpy()[box[axis]] for axis in range(3))
    with kept_threads(), _no_root_info():
        found = pymedphys.gamma(
            axes, sparse[box], axes, dose[box], (2, 3), (2, 3), lower_percent_dose_cutoff=CUTOFF_PERCENT,
            interp_fraction=5, max_gamma=1.1, global_normalisation=prescription_gy,
        )  # fmt: skip
    passed = {}
    for criteria, name in names.items():
        values = found[criteria][sparse[box] > 0]
        passed[name] = float(100 * (np.nan_to_num(values, nan=2.0) <= 1).mean())
    return passed
