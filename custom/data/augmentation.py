"""Random, realistic deformation of chest CT volumes, fast enough for the training loop on a CPU.

One resampling pass composes everything that moves tissue: a random affine map, a random diffeomorphism (a stationary
velocity field on a coarse control grid, integrated by scaling and squaring, Arsigny et al., MICCAI 2006), an optional
left-right mirror, the shape of other chests (`custom.data.shapes`), and the step to the output grid, which may be
coarser than the input (a box filter stands before the sampling then, so that a 5 mm output voxel is the mean of its
2.5 mm voxels). A random monotone curve moves HU.

All volumes are (1, X, Y, Z) in RAS+ order; positions are millimetres from the volume's centre.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import ensure_tuple_rep
from scipy.interpolate import PchipInterpolator

from custom.data.diffeomorphism import lattice, random_diffeomorphism, rotation_matrix
from custom.data.shapes import ShapeModel

__all__ = [
    "RandThoraxAugment",
    "RandThoraxAugmentd",
    "ThoraxWarp",
]

AIR_HU = -1000.0
# HU at and below which a voxel counts as air outside the body: neither curve nor noise touches it.
AIR_MARGIN_HU = -990.0
# Spacing of the lattice on which the map is integrated; it is interpolated trilinearly in between.
LATTICE_SPACING_MM = 10.0
# Registered shapes have more detail.
SHAPE_LATTICE_SPACING_MM = 5.0
LARGEST_HU = 3071


@dataclass(frozen=True)
class ThoraxWarp:
    """One draw of the augmentation: a map from output to input positions, a HU curve and a noise level.

    Attributes:
        positions_mm: float32 (3, a, b, c), input positions (x, y, z in mm from the input's centre) at the nodes of a
            lattice that spans the output's voxel centres from first to last; trilinear in between.
        displacement_mm: float32 (3, a, b, c), the part of the map that the diffeomorphism makes (before the affine).
        affine: float64 (3, 4), input position = affine @ [output position + displacement, 1].
        hu_curve: float32 (4072,), HU to which each of -1000..3071 HU is mapped, or None to leave HU alone.
        noise_hu: standard deviation of the white noise in HU.
        noise_seed: seed of that noise.
    """

    positions_mm: torch.Tensor
    displacement_mm: torch.Tensor
    affine: np.ndarray
    hu_curve: torch.Tensor | None
    noise_hu: float
    noise_seed: int


class RandThoraxAugment(Randomizable, Transform):
    """Deform a chest CT at random and sample it on a given grid.

    With all amplitudes at zero (or when ``prob`` says no) the volume is only centred on the output grid, averaged
    where that is coarser, cropped and padded with air.

    Args:
        output_shape: voxels (X, Y, Z) of the result, or one number for a cube.
        output_spacing_mm: voxel size of the result in mm, a number or (x, y, z).
        spacing_mm: voxel size of the input in mm, a number or (x, y, z).
        prob: probability of augmenting at all.
        scale: largest relative change of size, per axis; half of it is drawn for all axes together, so that large and
            small people are more frequent than distorted ones.
        oversize_prob: probability of a body that is larger still, as few CTs and many patients have.
        oversize: largest factor of its size across and in depth; height follows by half.
        rotation_deg: largest rotation about each axis, degrees.
        shift_mm: largest displacement along each axis, mm.
        shear: largest off-diagonal element of the shear, dimensionless.
        warp_mm: largest displacement of the diffeomorphism, mm; the peak of one draw is uniform in [0, warp_mm].
        control_spacing_mm: distance of the control points of the velocity field, mm.
        max_gradient: bound on the Frobenius norm of the displacement's gradient, in (0, 1); below 1 the map is
            injective, because the identity plus a map of Lipschitz constant below 1 is.
        flip_prob: probability of mirroring left and right. 0 by default: the heart is on the left. Set 0.5 only where
            the anatomy has no side.
        lung_hu: largest change at -850 HU.
        soft_hu: largest change of soft tissue (0 to 110 HU), and three quarters of it for fat.
        bone_gain: largest relative change of HU of dense bone.
        noise_hu: largest standard deviation of white noise, HU at the output's voxel size.
        shapes: shape model that gives each volume the shape of a random mixture of patients before it is warped; the
            volume must be around the isocentre, and `randomize` must be told whose it is. None: its own shape.
        dtype: type of the result, ``torch.float32`` or an integer type (rounded).

    Raises:
        ValueError: when a shape, a spacing or an amplitude is out of range.
    """

    def __init__(
        self,
        output_shape: Sequence[int] | int = 128,
        output_spacing_mm: Sequence[float] | float = 2.5,
        spacing_mm: Sequence[float] | float = 2.5,
        prob: float = 1.0,
        scale: float = 0.15,
        oversize_prob: float = 0.0,
        oversize: float = 1.3,
        rotation_deg: float = 6.0,
        shift_mm: float = 15.0,
        shear: float = 0.05,
        warp_mm: float = 15.0,
        control_spacing_mm: float = 60.0,
        max_gradient: float = 0.6,
        flip_prob: float = 0.0,
        lung_hu: float = 40.0,
        soft_hu: float = 20.0,
        bone_gain: float = 0.15,
        noise_hu: float = 8.0,
        shapes: ShapeModel | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.output_shape = tuple(int(n) for n in ensure_tuple_rep(output_shape, 3))
        self.output_spacing_mm = tuple(float(s) for s in ensure_tuple_rep(output_spacing_mm, 3))
        self.spacing_mm = tuple(float(s) for s in ensure_tuple_rep(spacing_mm, 3))
        if min(self.output_shape) < 2:
            raise ValueError(f"output_shape needs at least 2 voxels along each axis, got {self.output_shape}")
        for name in ("output_spacing_mm", "spacing_mm"):
            if not all(s > 0 and math.isfinite(s) for s in getattr(self, name)):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        amplitudes = {
            "rotation_deg": rotation_deg,
            "shift_mm": shift_mm,
            "shear": shear,
            "warp_mm": warp_mm,
            "lung_hu": lung_hu,
            "soft_hu": soft_hu,
            "noise_hu": noise_hu,
        }
        for name, value in amplitudes.items():
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be zero or positive, got {value}")
        limits = {"scale": (scale, 0.5), "bone_gain": (bone_gain, 0.5), "lung_hu": (lung_hu, 100.0)}
        limits["soft_hu"] = (soft_hu, 50.0)
        for name, (value, limit) in limits.items():
            if not 0 <= value <= limit:
                raise ValueError(f"{name} must lie in [0, {limit}], got {value}")
        if not 1 <= oversize <= 2:
            raise ValueError(f"oversize must lie in [1, 2], got {oversize}")
        for name, value in {"prob": prob, "flip_prob": flip_prob, "oversize_prob": oversize_prob}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability, got {value}")
        if not 0 < max_gradient < 1:
            raise ValueError(f"max_gradient must lie in (0, 1) for the warp to be invertible, got {max_gradient}")
        if not control_spacing_mm >= 2 * LATTICE_SPACING_MM:
            raise ValueError(f"control_spacing_mm must be at least {2 * LATTICE_SPACING_MM}, got {control_spacing_mm}")
        self.oversize_prob, self.oversize = oversize_prob, oversize
        self.prob, self.scale, self.rotation_deg, self.shift_mm = prob, scale, rotation_deg, shift_mm
        self.shear, self.warp_mm, self.control_spacing_mm = shear, warp_mm, control_spacing_mm
        self.max_gradient, self.flip_prob = max_gradient, flip_prob
        self.lung_hu, self.soft_hu, self.bone_gain, self.noise_hu = lung_hu, soft_hu, bone_gain, noise_hu
        self.shapes, self.dtype = shapes, dtype
        self.warp: ThoraxWarp | None = None

    def randomize(self, data: Mapping[Any, Any] | None = None) -> None:
        """Draw a new warp into ``self.warp`` from ``self.R``.

        Args:
            data: for a shape model, "case" says whose CT it is, and "shape_folds" (optional) which patients' shapes may
                enter, see `ShapeModel.draw`.
        """
        apply = bool(self.R.random_sample() < self.prob)
        affine = self._draw_affine() if apply else np.eye(3, 4)
        span = [(n - 1) * s for n, s in zip(self.output_shape, self.output_spacing_mm, strict=True)]
        nodes = [max(3, math.ceil(length / LATTICE_SPACING_MM) + 1) for length in span]
        identity = lattice(span, nodes)
        peak = float(self.R.uniform(0.0, self.warp_mm)) if apply and self.warp_mm > 0 else 0.0
        displacement = torch.zeros_like(identity)
        if peak > 0:
            displacement = random_diffeomorphism(self.R, span, nodes, peak, self.control_spacing_mm, self.max_gradient)
        linear = torch.as_tensor(affine[:, :3], dtype=torch.float32)
        offset = torch.as_tensor(affine[:, 3], dtype=torch.float32)
        positions = torch.einsum("ij,jabc->iabc", linear, identity + displacement) + offset[:, None, None, None]
        if apply and self.shapes is not None and data is not None:
            shape = self.shapes.draw(self.R, str(data["case"]), data.get("shape_folds"))
            if shape is not None:
                finer = [max(3, math.ceil(length / SHAPE_LATTICE_SPACING_MM) + 1) for length in span]
                positions = F.interpolate(positions[None], size=finer, mode="trilinear", align_corners=True)[0]
                positions = self.shapes.follow(shape, positions)
        self.warp = ThoraxWarp(
            positions_mm=positions,
            displacement_mm=displacement,
            affine=affine,
            hu_curve=self._draw_hu_curve() if apply else None,
            noise_hu=float(self.R.uniform(0.0, self.noise_hu)) if apply else 0.0,
            noise_seed=int(self.R.randint(2**31)),
        )

    def __call__(self, volume: torch.Tensor | np.ndarray, randomize: bool = True) -> torch.Tensor:
        """Warp a CT.

        Args:
            volume: (1, X, Y, Z) in HU.
            randomize: draw a new warp; False repeats the last one (for example on a second volume of the patient).

        Returns:
            (1, *output_shape) in HU, a plain tensor of ``dtype``.
        """
        if randomize or self.warp is None:
            self.randomize()
        hu = self.resample(volume, mode="bilinear")
        return _cast(self._jitter_hu(hu), self.dtype)

    @torch.no_grad()
    def resample(self, volume: torch.Tensor | np.ndarray, mode: str = "bilinear") -> torch.Tensor:
        """Apply only the last warp's map.

        Args:
            volume: (1, X, Y, Z), HU or labels.
            mode: ``bilinear`` (trilinear, averaged where the output is coarser, padded with -1000 HU) or ``nearest``
                (labels, padded with 0).

        Returns:
            (1, *output_shape), float32 for ``bilinear``, the input's type for ``nearest``.
        """
        if self.warp is None:
            raise RuntimeError("there is no warp yet: call randomize() first")
        if mode not in ("bilinear", "nearest"):
            raise ValueError(f"mode must be 'bilinear' or 'nearest', got {mode!r}")
        tensor = torch.as_tensor(volume.as_tensor() if hasattr(volume, "as_tensor") else volume)
        if tensor.ndim != 4 or tensor.shape[0] != 1:
            raise ValueError(f"expected a volume of shape (1, X, Y, Z), got {tuple(tensor.shape)}")
        fill = AIR_HU if mode == "bilinear" else 0.0
        widths = [
            max(1, round(o / i)) if mode == "bilinear" else 1
            for o, i in zip(self.output_spacing_mm, self.spacing_mm, strict=True)
        ]
        source = _box_filter(tensor[0], widths, fill)
        # Centred grids: the box filter keeps the centre in place, so a position in mm maps to the same fraction.
        half = [(n - 1) * s / 2 for n, s in zip(source.shape, self.spacing_mm, strict=True)]
        scale = torch.tensor([1.0 / h if h > 0 else 0.0 for h in half], dtype=torch.float32)
        normalised = self.warp.positions_mm.flip(0) * scale.flip(0)[:, None, None, None]  # grid_sample wants (z, y, x)
        grid = F.interpolate(normalised[None], size=self.output_shape, mode="trilinear", align_corners=True)
        sampled = F.grid_sample(
            source[None, None], grid.permute(0, 2, 3, 4, 1), mode=mode, padding_mode="zeros", align_corners=True
        )[0]
        if mode == "nearest":
            return _cast(sampled, tensor.dtype)
        return sampled.add_(fill)

    def _draw_affine(self) -> np.ndarray:
        common = self.R.uniform(-0.5, 0.5)
        size = 1.0 + self.scale * (common + self.R.uniform(-0.5, 0.5, size=3))
        if self.oversize_prob and self.R.random_sample() < self.oversize_prob:
            larger = self.R.uniform(1, self.oversize)
            size *= [larger, larger, (1 + larger) / 2]
        rotation = rotation_matrix(self.R.uniform(-self.rotation_deg, self.rotation_deg, size=3))
        shears = self.R.uniform(-self.shear, self.shear, size=3)
        shift = self.R.uniform(-self.shift_mm, self.shift_mm, size=3)
        mirror = -1.0 if self.R.random_sample() < self.flip_prob else 1.0
        shear = np.array([[1, shears[0], shears[1]], [0, 1, shears[2]], [0, 0, 1]])
        # The map goes from output to input: a larger person is a map that shrinks.
        linear = rotation @ shear @ np.diag(1.0 / size) @ np.diag([mirror, 1.0, 1.0])
        return np.concatenate([linear, shift[:, None]], axis=1)

    def _draw_hu_curve(self) -> torch.Tensor | None:
        lung = self.R.uniform(-self.lung_hu, self.lung_hu)
        fat, soft = self.R.uniform(-0.75, 0.75) * self.soft_hu, self.R.uniform(-1, 1) * self.soft_hu
        gain = 1.0 + self.R.uniform(-self.bone_gain, self.bone_gain)
        if self.lung_hu == self.soft_hu == self.bone_gain == 0:
            return None
        knots = np.array(
            [
                (AIR_HU, AIR_HU),
                (AIR_MARGIN_HU, AIR_MARGIN_HU),
                (-850.0, -850.0 + lung),
                (-500.0, -500.0 + lung / 3),
                (-110.0, -110.0 + fat),
                (0.0, soft),
                (110.0, 110.0 + soft),
                (300.0, 300.0 * gain),
                (LARGEST_HU, LARGEST_HU * gain),
            ]
        )
        curve = PchipInterpolator(knots[:, 0], knots[:, 1])(np.arange(AIR_HU, LARGEST_HU + 1))
        return torch.as_tensor(curve, dtype=torch.float32)

    def _jitter_hu(self, hu: torch.Tensor) -> torch.Tensor:
        assert self.warp is not None
        curve = self.warp.hu_curve
        if curve is not None:
            inside = hu.clamp(AIR_HU, LARGEST_HU)
            position = inside - AIR_HU
            index = position.to(torch.int32).clamp_(max=len(curve) - 2)
            slope = torch.diff(curve)
            flat = index.reshape(-1)
            mapped = curve.index_select(0, flat) + (position.reshape(-1) - flat) * slope.index_select(0, flat)
            hu = mapped.reshape(hu.shape) + (hu - inside)
        if self.warp.noise_hu > 0:
            generator = torch.Generator().manual_seed(self.warp.noise_seed)
            noise = torch.randn(hu.shape, generator=generator) * self.warp.noise_hu
            hu = torch.where(hu > AIR_MARGIN_HU, (hu + noise).clamp_(min=AIR_MARGIN_HU), hu)
        return hu


class RandThoraxAugmentd(Randomizable, MapTransform):
    """Dictionary version of :class:`RandThoraxAugment`: one warp for all keys of a case.

    Args:
        keys: entries to warp, each (1, X, Y, Z) on grids with the same centre and spacing.
        mode: ``bilinear`` for CT in HU, ``nearest`` for labels; one for all keys or one a key. HU curve and noise
            are applied to ``bilinear`` keys only.
        allow_missing_keys: do not raise when a key is missing.
        kwargs: arguments of :class:`RandThoraxAugment`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mode: Sequence[str] | str = "bilinear",
        allow_missing_keys: bool = False,
        **kwargs: object,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        unknown = set(self.mode) - {"bilinear", "nearest"}
        if unknown:
            raise ValueError(f"mode must be 'bilinear' or 'nearest', got {sorted(unknown)}")
        self.augment = RandThoraxAugment(**kwargs)  # type: ignore[arg-type]

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandThoraxAugmentd:
        super().set_random_state(seed, state)
        self.augment.set_random_state(seed, state)
        return self

    def randomize(self, data: Mapping[Hashable, Any] | None = None) -> None:
        """Draw a new warp for the next case."""
        self.augment.randomize(data)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        result = dict(data)
        self.randomize(data)
        for key, mode in self.key_iterator(result, self.mode):
            if mode == "bilinear":
                result[key] = self.augment(result[key], randomize=False)
            else:
                result[key] = self.augment.resample(result[key], mode="nearest")
        return result


def _box_filter(volume: torch.Tensor, widths: Sequence[int], fill: float) -> torch.Tensor:
    """Float32 (X + wx - 1, ...): ``volume - fill``, padded with zeros and averaged over ``widths`` voxels."""
    padded = torch.zeros([n + 2 * (w - 1) for n, w in zip(volume.shape, widths, strict=True)])
    inner = tuple(slice(w - 1, w - 1 + n) for n, w in zip(volume.shape, widths, strict=True))
    padded[inner] = volume.to(torch.float32) - fill
    for axis, width in enumerate(widths):
        if width == 1:
            continue
        count = padded.shape[axis] - width + 1
        total = padded.narrow(axis, 0, count).clone()
        for offset in range(1, width):
            total += padded.narrow(axis, offset, count)
        padded = total.mul_(1.0 / width)
    return padded


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_floating_point:
        return tensor.to(dtype)
    info = torch.iinfo(dtype)
    return tensor.round().clamp_(info.min, info.max).to(dtype)
