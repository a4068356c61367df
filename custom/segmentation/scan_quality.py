"""Augmentation of scan quality: contrast medium, shading, sharpness, noise, and where the scan ends."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.transforms import Randomizable, Transform
from torch import Tensor

__all__ = ["RandScanQualityd"]

AIR_HU, _AIR_MARGIN_HU = -1000.0, -990.0
#: Denser than fat: what takes up contrast medium.
_SOFT_HU = (-30.0, 300.0)
#: Control points of the shading along each side of the volume, and of the contrast in the heart's chambers.
_SHADING_NODES, _CHAMBER_NODES = 5, 12


class RandScanQualityd(Randomizable, Transform):
    """Make another scan of the same patient at random; what phantoms and a few CTs would not show otherwise.

    In this order: contrast medium in the given classes, smooth shading, Gaussian blur, noise of random grain, and air
    beyond a random upper and lower end of the scan. Reconstructions from few radiographs are blurred and shaded too.

    Args:
        image_key: CT (1, X, Y, Z) in HU.
        classes: names of the packed classes, entry "classes" (1, X, Y, Z), see `custom.segmentation.classes.pack`;
            where the scan is cut they become empty.
        contrast_classes: those of them that take up contrast medium; others are ignored.
        spacing_mm: voxel size.
        contrast_hu: largest mean enhancement; half of the scans have none.
        shading_hu: largest amplitude of the shading.
        blur_mm: largest standard deviation of the blur; half of the scans have none.
        noise_hu: largest standard deviation of the noise.
        cut_mm: largest part cut off at the top, and at the bottom, each in a third of the scans.

    Raises:
        ValueError: for a negative number.
    """

    def __init__(
        self,
        image_key: str = "source",
        classes: Sequence[str] = (),
        contrast_classes: Sequence[str] = (),
        spacing_mm: Sequence[float] = (5.0, 5.0, 5.0),
        contrast_hu: float = 250.0,
        shading_hu: float = 40.0,
        blur_mm: float = 8.0,
        noise_hu: float = 40.0,
        cut_mm: float = 80.0,
    ) -> None:
        amplitudes = {
            "contrast_hu": contrast_hu,
            "shading_hu": shading_hu,
            "blur_mm": blur_mm,
            "noise_hu": noise_hu,
            "cut_mm": cut_mm,
        }
        for name, value in amplitudes.items():
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be zero or positive, got {value}")
        self.image_key = image_key
        self.contrast_classes = [n for n, name in enumerate(classes) if name in contrast_classes]
        self.spacing_mm, self.contrast_hu, self.shading_hu = tuple(spacing_mm), contrast_hu, shading_hu
        self.blur_mm, self.noise_hu, self.cut_mm = blur_mm, noise_hu, cut_mm

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        out = dict(data)
        hu, classes = out[self.image_key].float(), out["classes"]
        air = hu <= _AIR_MARGIN_HU
        if self.contrast_classes and self.R.random_sample() < 0.5:
            hu = self._enhanced(hu, classes)
        hu = hu + self.R.uniform(0, self.shading_hu) * self._smooth(_SHADING_NODES, hu)
        hu = torch.where(air, AIR_HU, hu)  # before the blur: the skin's edge is blurred into air
        if self.R.random_sample() < 0.5:
            hu = self._blurred(hu, self.R.uniform(0, self.blur_mm))
        noise = self._blurred(self._normal(hu.shape), float(self.R.choice([0.0, 0.0, 3.0, 5.0])))
        noise *= self.R.uniform(0, self.noise_hu) / noise.std().clamp(min=1e-6)
        hu = torch.where(air, hu, hu + noise).clamp_(min=AIR_HU)
        out[self.image_key], out["classes"] = self._cut(hu, classes)
        return out

    def _normal(self, shape: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31)))
        return torch.randn(tuple(shape), generator=generator)

    def _smooth(self, nodes: int, like: Tensor) -> Tensor:
        """A smooth random field of mean 0 and standard deviation below 1, (1, X, Y, Z)."""
        coarse = self._normal((1, 1, nodes, nodes, nodes))
        return F.interpolate(coarse, size=tuple(like.shape[1:]), mode="trilinear", align_corners=True)[0]

    def _enhanced(self, hu: Tensor, classes: Tensor) -> Tensor:
        chambers = 1 + 0.6 * self._smooth(_CHAMBER_NODES, hu)
        soft = (hu > _SOFT_HU[0]) & (hu < _SOFT_HU[1])
        for number in self.contrast_classes:
            inside = ((classes.to(torch.int32) >> number) & 1).bool() & soft
            hu = torch.where(inside, hu + self.R.uniform(0, self.contrast_hu) * chambers, hu)
        return hu

    def _blurred(self, hu: Tensor, sigma_mm: float) -> Tensor:
        for axis, spacing in enumerate(self.spacing_mm):
            sigma = sigma_mm / spacing
            if sigma < 0.2:
                continue
            reach = math.ceil(2.5 * sigma)
            kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
            shape = [1, 1, 1, 1, 1]
            shape[2 + axis] = len(kernel)
            pads = [0] * 6
            pads[2 * (2 - axis)] = pads[2 * (2 - axis) + 1] = reach
            hu = F.conv3d(F.pad(hu[None], pads, mode="replicate"), (kernel / kernel.sum()).reshape(shape))[0]
        return hu

    def _cut(self, hu: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        low, high = 0, hu.shape[-1]
        if self.R.random_sample() < 1 / 3:
            low = int(self.R.uniform(0, self.cut_mm) / self.spacing_mm[2])
        if self.R.random_sample() < 1 / 3:
            high -= int(self.R.uniform(0, self.cut_mm) / self.spacing_mm[2])
        if low == 0 and high == hu.shape[-1]:
            return hu, classes
        outside = torch.ones(hu.shape[-1], dtype=torch.bool)
        outside[low:high] = False
        return torch.where(outside, AIR_HU, hu), torch.where(outside, 0, classes)
