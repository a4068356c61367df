"""Degradation of line integrals to what is measured: scatter, blur and quantum noise.

Each transform takes and returns line integrals p, batches (B, K, V, U) or single acquisitions (K, V, U), and works on
what a detector counts, the transmission exp(-p). In nature they follow each other in the order scatter, blur, noise.
Randomness comes from MONAI's `Randomizable`: `set_random_state(seed)` repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from monai.transforms.transform import Randomizable, Transform
from torch import Tensor

from custom.geometry import is_cone

__all__ = [
    "DetectorBlur",
    "QuantumNoise",
    "RandRadiograph",
    "Scatter",
    "blur_on_detector",
    "focal_spot_blur_mm",
    "without_scatter",
]

_FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
# Pixels with a line integral above this belong to the patient's shadow.
_SHADOW = 0.05
# After so many a chest's line integrals under scatter of 0.4 times the primary are right to 1% of the largest.
_SUBSTITUTIONS = 6


class QuantumNoise(Randomizable, Transform):
    """Poisson noise of the counted photons.

    Args:
        photons: photons that each pixel counts without a patient, e.g. 1e5; a radiograph has about 1e4 to 1e6.

    A pixel that counts nothing is taken to have counted half a photon, so line integrals stay finite.

    Raises:
        ValueError: for a number of photons that is not positive and finite.
    """

    def __init__(self, photons: float) -> None:
        if not (math.isfinite(photons) and photons > 0):
            raise ValueError(f"photons must be finite and greater than zero, got {photons}")
        self.photons = float(photons)

    def __call__(self, image: Tensor) -> Tensor:
        generator = torch.Generator(image.device)
        generator.manual_seed(int(self.R.randint(2**31)))
        expected = self.photons * (-image.double()).exp()
        counted = torch.poisson(expected, generator=generator).clamp(min=0.5)
        return -(counted / self.photons).log().to(image.dtype)


class DetectorBlur(Transform):
    """Gaussian point spread of the detector, or of the focal spot (`focal_spot_blur_mm`).

    Args:
        fwhm_mm: full width at half maximum on the detector [mm].

    Raises:
        ValueError: for a negative width.
    """

    def __init__(self, fwhm_mm: float) -> None:
        if not (math.isfinite(fwhm_mm) and fwhm_mm >= 0):
            raise ValueError(f"fwhm_mm must be finite and not negative, got {fwhm_mm}")
        self.fwhm_mm = float(fwhm_mm)

    def __call__(self, image: Tensor, views: Tensor) -> Tensor:  # type: ignore[override]
        """`views` (K, 13) or (B, K, 13) tell the size of a pixel."""
        if self.fwhm_mm == 0:
            return image
        transmission = blur_on_detector((-image.double()).exp(), views, self.fwhm_mm / _FWHM_PER_SIGMA)
        return -transmission.log().to(image.dtype)


class Scatter(Transform):
    """Scattered radiation as a smooth addition to the primary.

    Its shape is the forward-scatter potential p exp(-p), widely blurred (Ohnesorge et al., Eur Radiol 9:563, 1999), so
    the open beam beside the patient scatters nothing.

    Args:
        scatter_to_primary: scatter over primary, both summed over the patient's shadow, view by view. About 0.2 to 0.5
            behind a grid, 1 and more without one.
        sigma_mm: standard deviation of the blur on the detector [mm].

    Raises:
        ValueError: for a negative ratio or a width that is not positive.
    """

    def __init__(self, scatter_to_primary: float = 0.3, sigma_mm: float = 60.0) -> None:
        if not (math.isfinite(scatter_to_primary) and scatter_to_primary >= 0):
            raise ValueError(f"scatter_to_primary must be finite and not negative, got {scatter_to_primary}")
        if not (math.isfinite(sigma_mm) and sigma_mm > 0):
            raise ValueError(f"sigma_mm must be finite and greater than zero, got {sigma_mm}")
        self.scatter_to_primary, self.sigma_mm = float(scatter_to_primary), float(sigma_mm)

    def __call__(self, image: Tensor, views: Tensor) -> Tensor:  # type: ignore[override]
        """`views` (K, 13) or (B, K, 13) tell the size of a pixel."""
        primary = (-image.double()).exp()
        shape = _scatter_shape(primary, views, self.sigma_mm)
        return -(primary + self.scatter_to_primary * _in_shadow(primary, primary) * shape).log().to(image.dtype)


def _scatter_shape(primary: Tensor, views: Tensor, sigma_mm: float) -> Tensor:
    """Where scatter falls, of one in sum over the patient's shadow, view by view."""
    scatter = blur_on_detector(-(primary.log() * primary).clamp(max=0), views, sigma_mm)
    return scatter / _in_shadow(scatter, primary).clamp(min=1e-12)


def _in_shadow(values: Tensor, primary: Tensor) -> Tensor:
    return (values * (-primary.log() > _SHADOW)).sum((-2, -1), keepdim=True)


def without_scatter(image: Tensor, views: Tensor, scatter_to_primary: float, sigma_mm: float = 60.0) -> Tensor:
    """Line integrals of the primary alone: the inverse of `Scatter`, by repeated substitution.

    Args:
        image, views: as for `Scatter`.
        scatter_to_primary: that the picture is taken to hold. At most 95% of what a pixel counted is scatter.
        sigma_mm: as for `Scatter`.
    """
    counted = (-image.double()).exp()
    primary, share = counted, scatter_to_primary / (1 + scatter_to_primary)
    for _ in range(_SUBSTITUTIONS if scatter_to_primary else 0):
        scatter = share * _in_shadow(counted, primary) * _scatter_shape(primary, views, sigma_mm)
        primary = torch.maximum(counted - scatter, 0.05 * counted)
    return -primary.log().to(image.dtype)


class RandRadiograph(Randomizable, Transform):
    """Radiographs as units of all kinds make them: scatter, blur, noise and an error of the open beam, at random.

    Args:
        prob: probability that anything is done; otherwise the line integrals stay as they are.
        photons_per_mm2: fewest and most, on the detector without a patient; drawn on a logarithmic scale.
        scatter_to_primary: least and most, see `Scatter`.
        blur_fwhm_mm: least and most on the detector, see `DetectorBlur`.
        intensity_error: the open beam's intensity is wrong by up to this share, each view for itself.

    Raises:
        ValueError: for a probability or a range that is none.
    """

    def __init__(
        self,
        prob: float = 0.7,
        photons_per_mm2: Sequence[float] = (1e3, 1e7),
        scatter_to_primary: Sequence[float] = (0.0, 0.4),
        blur_fwhm_mm: Sequence[float] = (0.0, 4.0),
        intensity_error: float = 0.05,
    ) -> None:
        if not 0 <= prob <= 1 or not 0 <= intensity_error < 1:
            raise ValueError(f"prob and intensity_error must lie in [0, 1], got {prob} and {intensity_error}")
        ranges = {"scatter_to_primary": scatter_to_primary, "blur_fwhm_mm": blur_fwhm_mm}
        for name, (low, high) in {"photons_per_mm2": photons_per_mm2, **ranges}.items():
            if not 0 <= low <= high < math.inf or (name == "photons_per_mm2" and low == 0):
                raise ValueError(
                    f"{name} must be a range of numbers that are not negative (photons: above zero), got {(low, high)}"
                )
        self.prob, self.intensity_error = prob, intensity_error
        self.log_photons_per_mm2 = math.log(photons_per_mm2[0]), math.log(photons_per_mm2[1])
        self.scatter_to_primary = float(scatter_to_primary[0]), float(scatter_to_primary[1])
        self.blur_fwhm_mm = float(blur_fwhm_mm[0]), float(blur_fwhm_mm[1])

    def __call__(self, image: Tensor, views: Tensor) -> Tensor:  # type: ignore[override]
        """Line integrals (B, K, V, U), `views` (K, 13) or (B, K, 13)."""
        if self.R.random_sample() >= self.prob:
            return image
        image = Scatter(self.R.uniform(*self.scatter_to_primary))(image, views)
        image = DetectorBlur(self.R.uniform(*self.blur_fwhm_mm))(image, views)
        pixel_mm2 = float((views[..., 6:9].norm(dim=-1) * views[..., 9:12].norm(dim=-1)).mean())
        photons = math.exp(self.R.uniform(*self.log_photons_per_mm2)) * pixel_mm2
        noise = QuantumNoise(max(1.0, photons))
        noise.set_random_state(int(self.R.randint(2**31)))
        error = self.R.uniform(-self.intensity_error, self.intensity_error, size=(*image.shape[:2], 1, 1))
        return noise(image) + torch.as_tensor(error).log1p().to(image)


def focal_spot_blur_mm(focal_spot_mm: float, views: Float[Tensor, "*batch 13"]) -> Float[Tensor, "*batch"]:
    """Width of a focal spot's shadow on the detector [mm], (..., K): its size times (magnification - 1), magnification
    of the isocentre; zero for parallel beams."""
    source, center = views[..., 0:3], views[..., 3:6]
    axis = torch.nn.functional.normalize(center - source, dim=-1)
    to_isocenter = -(source * axis).sum(-1)
    to_detector = (center - source).norm(dim=-1)
    blur = focal_spot_mm * (to_detector / to_isocenter - 1)
    return torch.where(is_cone(views), blur, torch.zeros_like(blur))


def blur_on_detector(image: Tensor, views: Tensor, sigma_mm: float) -> Tensor:
    """Gaussian blur of (..., K, V, U) by a width in mm on the detector; weights are renormalised at the borders."""
    if views.shape[-2] != image.shape[-3]:
        raise ValueError(f"there are {views.shape[-2]} views, but image {tuple(image.shape)} has {image.shape[-3]}")
    views = views.to(image)

    def weights(count: int, step: Tensor) -> Tensor:
        distance = torch.arange(count, device=image.device, dtype=image.dtype)
        distance = (distance[:, None] - distance) * step.norm(dim=-1)[..., None, None]
        return torch.softmax(-0.5 * (distance / sigma_mm) ** 2, -1)

    rows, columns = image.shape[-2:]
    return weights(rows, views[..., 9:12]) @ image @ weights(columns, views[..., 6:9]).mT
