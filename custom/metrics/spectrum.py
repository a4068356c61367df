"""Power spectra of volumes by wavelength: are samples as rough as the truth?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["SPECTRUM_BANDS_MM", "band_power", "spectrum_ratio"]

#: Wavelengths [mm] in which samples are held against the truth.
SPECTRUM_BANDS_MM = ((8.0, 10.0), (10.0, 14.0), (14.0, 20.0), (20.0, 28.0), (28.0, 40.0))


def band_power(
    volume: Tensor, spacing_mm: Sequence[float], bands_mm: Sequence[Sequence[float]] = SPECTRUM_BANDS_MM
) -> list[float]:
    """Power of a volume in bands of wavelengths.

    The volume's mean is taken off and its borders are faded out (Hann), so that what one border differs from the
    opposite one by is no roughness.

    Args:
        volume: (X, Y, Z).
        spacing_mm: of its voxels.
        bands_mm: (shortest, longest) wavelength of each band; the shortest is excluded.

    Returns:
        Sum of the squared Fourier coefficients of each band.

    Raises:
        ValueError: for a band whose shortest wavelength the voxels do not show (twice their largest side).
    """
    if any(not 2 * max(spacing_mm) <= low < high for low, high in bands_mm):
        raise ValueError(f"bands must lie above {2 * max(spacing_mm):g} mm, two voxels, got {list(bands_mm)}")
    values = volume.double()
    values = values - values.mean()
    for axis, size in enumerate(values.shape):
        window = torch.hann_window(size, periodic=False, dtype=torch.float64)
        values = values * window.reshape([-1 if a == axis else 1 for a in range(3)])
    power = torch.fft.rfftn(values).abs().square()
    power[..., 1 : (values.shape[2] + 1) // 2] *= 2  # the half that rfftn leaves out
    frequencies = [torch.fft.fftfreq(n, s) for n, s in zip(values.shape, spacing_mm, strict=True)]
    frequencies[2] = frequencies[2][: power.shape[2]].abs()
    squares = [f.double().square() for f in frequencies]
    length = 1 / (squares[0][:, None, None] + squares[1][:, None] + squares[2]).sqrt().clamp(min=1e-12)
    return [float(power[(length > low) & (length <= high)].sum()) for low, high in bands_mm]


def spectrum_ratio(volume: Tensor, truth: Tensor, spacing_mm: Sequence[float]) -> dict[str, float]:
    """A volume's power over the truth's, as "spectrum_8_10_mm" and so on: 1 where it is as rough as the truth.

    Args:
        volume, truth: (X, Y, Z), same unit.
        spacing_mm: of their voxels; those of `SPECTRUM_BANDS_MM` that they do not show are left out.
    """
    shown = [band for band in SPECTRUM_BANDS_MM if band[0] >= 2 * max(spacing_mm)]
    pairs = zip(band_power(volume, spacing_mm, shown), band_power(truth, spacing_mm, shown), strict=True)
    return {f"spectrum_{low:g}_{high:g}_mm": a / b for (low, high), (a, b) in zip(shown, pairs, strict=True)}
