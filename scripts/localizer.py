"""A CT scanner's frontal localizer: reading it, its curve to line integrals, and how like it is to a projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from scipy.ndimage import shift
from scipy.optimize import isotonic_regression, minimize

Array = npt.NDArray[np.floating[Any]]

_CURVE_POINTS = 200
#: Left out at the borders where pictures are shifted against each other.
_EDGE_MM = 10.0


@dataclass(frozen=True)
class Localizer:
    """A frontal localizer, with the scanner's axis at x = y = 0 of the patient's coordinates.

    Attributes:
        values: (rows, columns) stored values after rescaling; row 0 superior, column 0 at the patient's right.
        pixel_mm: row and column distance at the axis.
        middle_mm: the picture's middle: towards the patient's left from the axis, and z.
        source_to_isocenter_mm, source_to_detector_mm: in the axial plane.
    """

    values: Array
    pixel_mm: tuple[float, float]
    middle_mm: tuple[float, float]
    source_to_isocenter_mm: float
    source_to_detector_mm: float


def read_localizer(path: str) -> Localizer:
    """Read a frontal localizer.

    Raises:
        ValueError: for another kind of picture, or without a tag that is needed.
    """
    data = pydicom.dcmread(path)
    if "LOCALIZER" not in data.get("ImageType", ()):
        raise ValueError(f"{path}: Image Type {data.get('ImageType')} is not that of a localizer")
    needed = (
        "PixelSpacing",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "DistanceSourceToPatient",
        "DistanceSourceToDetector",
    )
    missing = [name for name in needed if not data.get(name)]
    if missing:
        raise ValueError(f"{path}: has no {', '.join(missing)}")
    if not np.allclose(np.array(data.ImageOrientationPatient, float), (1, 0, 0, 0, 0, -1), atol=1e-3):
        raise ValueError(f"{path}: not a frontal picture, Image Orientation (Patient) {data.ImageOrientationPatient}")
    values = data.pixel_array * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
    row_mm, column_mm = (float(s) for s in data.PixelSpacing)
    left, _, top = (float(c) for c in data.ImagePositionPatient)
    middle = left + (values.shape[1] - 1) / 2 * column_mm, top - (values.shape[0] - 1) / 2 * row_mm
    distances = float(data.DistanceSourceToPatient), float(data.DistanceSourceToDetector)
    return Localizer(values.astype(np.float64), (row_mm, column_mm), middle, *distances)


def fit_curve(values: Array, integrals: Array) -> tuple[Array, Array]:
    """Knots of the monotone curve from values to line integrals with the least squares, by means of equal counts."""
    order = np.argsort(values, axis=None)
    parts = [part for part in np.array_split(order, _CURVE_POINTS) if len(part)]
    x = np.array([values.ravel()[part].mean() for part in parts])
    y = isotonic_regression(np.array([integrals.ravel()[part].mean() for part in parts])).x
    return x, y


def through_points(points: Sequence[Sequence[float]], air: float) -> tuple[Array, Array]:
    """Knots of a curve through points and through air (0); beyond the last point it goes on."""
    x, y = (np.array(part, float) for part in zip((air, 0.0), *points, strict=True))
    slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return np.append(x, x[-1] + 1000), np.append(y, y[-1] + 1000 * slope)


def agreement(picture: Array, simulated: Array, pixel_mm: Sequence[float]) -> dict[str, float]:
    """Correlation, RMS and mean difference of two pictures of line integrals, and the shift [mm] that fits best.

    A positive shift along u means that the picture lies further towards the patient's left than the simulation; along
    z, further down.
    """

    rows, columns = (slice(n, -n) for n in (round(_EDGE_MM / mm) for mm in pixel_mm))

    def unlike(offset: Array) -> float:
        moved = shift(simulated, offset, order=1, mode="nearest")[rows, columns]
        return -float(np.corrcoef(moved.ravel(), picture[rows, columns].ravel())[0, 1])

    options = {"initial_simplex": np.array([(0.0, 0.0), (4.0, 0.0), (0.0, 4.0)]), "xatol": 0.05, "fatol": 1e-6}
    best = minimize(unlike, np.zeros(2), method="Nelder-Mead", options=options)
    return {
        "correlation": float(np.corrcoef(picture.ravel(), simulated.ravel())[0, 1]),
        "rms": float(np.sqrt(np.mean((picture - simulated) ** 2))),
        "mean_difference": float(np.mean(picture - simulated)),
        "shift_down_mm": float(best.x[0] * pixel_mm[0]),
        "shift_left_mm": float(best.x[1] * pixel_mm[1]),
        "correlation_gained_by_shift": unlike(np.zeros(2)) - float(best.fun),
    }
