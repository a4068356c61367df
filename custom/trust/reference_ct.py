"""Reference CTs and radiographs of them as X-ray units take them, to calibrate and test the checks."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from custom.core.checkpoints import definition, load_checkpoint
from custom.core.nifti_files import open_nifti
from custom.data.augmentation import RandThoraxAugment
from custom.data.transforms import sample_on_grid
from custom.geometry import Geometry, VolumeGrid
from custom.geometry.acquisition_sampler import PoseError
from custom.metrics import NOISE_GROUP, SampleStatistics
from custom.models import Model, find_model, load_model
from custom.projection import simulate_fine
from custom.projection.degradation import RandRadiograph
from custom.radiographs.common_detector import Assembled
from custom.radiographs.truncation import extrapolate_truncation
from custom.trust.evidence import Evidence, find_prior
from custom.trust.pose_consistency import rotated

__all__ = [
    "ReferenceCT",
    "SimulationSettings",
    "detector_of",
    "error_hu",
    "load_ct",
    "model_on",
    "reconstructed",
]


@dataclass(frozen=True)
class SimulationSettings:
    """How known CTs are radiographed: each on another unit, by someone who positions patients as well as people do.

    A pair of numbers is a range that every acquisition draws from.

    Args:
        energy_kev: photon energy.
        photons_per_mm2: on the detector without a patient, drawn on a logarithmic scale.
        scatter_to_primary, blur_fwhm_mm: see `RandRadiograph`.
        intensity_error: the unattenuated intensity is wrong by up to this share, each view for itself.
        pose_error_deg: largest error of an angle that is stated.
        pose_error_distance: largest error of the distances that are stated, as a share.
        source_to_detector_mm: cone beam.
        isocenter_to_detector_mm: cone beam.
        field_mm: width, and height, of the exposed field at the isocentre.
        scale, shift_mm, warp_mm: of random deformations, see `RandThoraxAugment`.
        seed: of deformations, noise and errors.

    Raises:
        ValueError: a range that is none, or a number that cannot be.
    """

    energy_kev: float = 70.0
    photons_per_mm2: tuple[float, float] = (1e3, 1e7)
    scatter_to_primary: tuple[float, float] = (0.0, 0.4)
    blur_fwhm_mm: tuple[float, float] = (0.0, 4.0)
    intensity_error: float = 0.05
    pose_error_deg: float = 2.0
    pose_error_distance: float = 0.01
    source_to_detector_mm: tuple[float, float] = (1100.0, 1800.0)
    isocenter_to_detector_mm: tuple[float, float] = (200.0, 400.0)
    field_mm: tuple[float, float] = (350.0, 480.0)
    scale: float = 0.2
    shift_mm: float = 15.0
    warp_mm: float = 18.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("photons_per_mm2", "field_mm", "scatter_to_primary", "blur_fwhm_mm"):
            low, high = getattr(self, name)
            if not (0 <= low <= high < math.inf) or (low == 0 and name in ("photons_per_mm2", "field_mm")):
                raise ValueError(f"{name} must be a least and a most, finite and positive, got {low:g}, {high:g}")
        for name, most in (("intensity_error", 1), ("pose_error_deg", 90), ("pose_error_distance", 0.5)):
            value = getattr(self, name)
            if not 0 <= value < most:
                raise ValueError(f"{name} must be at least 0 and below {most:g}, got {value:g}")

    @classmethod
    def perfect(cls, **changes: Any) -> SimulationSettings:
        """Without scatter, blur, any error or a border of the field, next to no noise; 1000 mm to the isocentre."""
        nothing = (0.0, 0.0)
        found: dict[str, Any] = {
            "photons_per_mm2": (1e12, 1e12),
            "scatter_to_primary": nothing,
            "blur_fwhm_mm": nothing,
            "intensity_error": 0.0,
            "pose_error_deg": 0.0,
            "pose_error_distance": 0.0,
            "source_to_detector_mm": (1500.0, 1500.0),
            "isocenter_to_detector_mm": (500.0, 500.0),
            "field_mm": (1e6, 1e6),
        }
        return cls(**{**found, **changes})

    def generator(self, *key: Any) -> np.random.RandomState:
        """Random numbers that depend on seed and key alone."""
        return np.random.RandomState(zlib.crc32(repr((self.seed, *key)).encode()))


@dataclass(frozen=True)
class ReferenceCT:
    """A CT to make radiographs from.

    Attributes:
        name: of the case and its deformation.
        hu: (X, Y, Z) HU, beyond the cube where there is tissue.
        affine: (4, 4), RAS+.
        isocenter_mm: centre of the prepared cube, in the CT's world.
    """

    name: str
    hu: np.ndarray
    affine: np.ndarray
    isocenter_mm: tuple[float, float, float]

    def radiographs(
        self,
        angles_deg: Sequence[float],
        beam: str,
        shape: Sequence[int],
        pixel_mm: float,
        settings: SimulationSettings,
        turned_deg: Sequence[float] | None = None,
    ) -> Assembled:
        """Radiographs of it.

        Args:
            angles_deg: of the source, as they are stated; see `Geometry.from_angles`.
            beam: "parallel" or "cone".
            shape: rows and columns.
            pixel_mm: at the isocentre.
            settings: what the acquisition is drawn from, by the name of the case, the beam and the angles.
            turned_deg: what is wrong with each angle beyond what the settings allow: the source stands so much further.

        Returns:
            Line integrals, views as they are stated, and the exposed field.
        """
        draw = settings.generator(self.name, beam, *map(float, angles_deg))
        to_detector = draw.uniform(*settings.source_to_detector_mm)
        to_isocenter = to_detector - draw.uniform(*settings.isocenter_to_detector_mm)
        stated = Geometry.from_angles(
            angles_deg,
            beam,
            to_isocenter,
            to_detector,
            shape,
            pixel_mm * (to_detector / to_isocenter if beam == "cone" else 1.0),
            isocenter_mm=self.isocenter_mm,
        )
        # Half of the largest error is the standard deviation that is cut off at two.
        wrong = PoseError(settings.pose_error_deg / 2, settings.pose_error_distance / 2, seed=int(draw.randint(2**31)))
        views = wrong(stated.views)
        if turned_deg is not None:
            views = torch.cat([rotated(v[None], d) for v, d in zip(views, turned_deg, strict=True)])
        image = simulate_fine(self.hu, self.affine, replace(stated, views=views), settings.energy_kev)
        unit = RandRadiograph(
            1.0, settings.photons_per_mm2, settings.scatter_to_primary, settings.blur_fwhm_mm, settings.intensity_error
        )
        unit.R = draw
        image = unit(image[None], stated.tensor())[0]
        rows, columns = (
            (torch.arange(n) - (n - 1) / 2).abs() * pixel_mm <= draw.uniform(*settings.field_mm) / 2 for n in shape
        )
        field_mask = (rows[:, None] & columns).expand(image.shape)
        return Assembled(torch.where(field_mask, image, 0.0), stated.tensor(), field_mask)

    def on_grid(self, grid: VolumeGrid) -> Tensor:
        """HU (X, Y, Z) at the voxels of a grid around the isocentre, air where the CT ends."""
        return sample_on_grid(self.hu, self.affine, self.isocenter_mm, grid)


def load_ct(
    case: Mapping[str, Any], pixel_mm: float, warp: int = 0, settings: SimulationSettings | None = None
) -> ReferenceCT:
    """A case of a datalist, averaged to voxels of at most half a pixel, and deformed.

    Args:
        case: with "case", "label" and "source" (see `custom.data.datalist.load_cases`).
        pixel_mm: of the radiographs that are wanted, at the isocentre.
        warp: number of the deformation; 0: as it is.
        settings: amplitudes and seed of the deformation.

    Raises:
        ValueError: for a case without a source.
    """
    if "source" not in case:
        raise ValueError(
            f"{case.get('case')}: the datalist has no 'source' (the uncropped CT); 'fewview-ct prepare' writes it"
        )
    cube, source = open_nifti(Path(case["label"])), open_nifti(Path(case["source"]))
    hu, affine = np.asarray(source.dataobj), np.array(source.affine, dtype=float)
    blocks = [max(1, int(0.5 * pixel_mm / spacing + 1e-6)) for spacing in affine[:3, :3].diagonal()]
    volume = F.avg_pool3d(torch.from_numpy(np.ascontiguousarray(hu)).float()[None], blocks)
    for axis, block in enumerate(blocks):
        affine[axis, 3] += affine[axis, axis] * (block - 1) / 2
        affine[axis, axis] *= block
    if warp:
        drawn = settings or SimulationSettings()
        spacing = affine[:3, :3].diagonal().tolist()
        augment = RandThoraxAugment(
            tuple(volume.shape[1:]), spacing, spacing, scale=drawn.scale, shift_mm=drawn.shift_mm, warp_mm=drawn.warp_mm
        )
        augment.R = drawn.generator(case["case"], warp)
        volume = augment(volume)
    name = f"{case['case']} warped {warp}" if warp else str(case["case"])
    middle = np.array([*((np.array(cube.shape) - 1) / 2), 1.0])
    isocenter = (np.asarray(cube.affine, dtype=float) @ middle)[:3]
    return ReferenceCT(name, volume[0].numpy(), affine, tuple(isocenter.tolist()))


def model_on(model: str | os.PathLike[str], size: int | None, device: str | None = None) -> Model:
    """A model, with a coarser cube if one is asked for.

    Args:
        model: as for `custom.models.load_model`.
        size: voxels along each side; None: its own grid.
        device: torch device.

    Raises:
        ValueError: for a model whose grid is fixed.
    """
    loaded = load_model(model, device)
    if size is None or (size,) * 3 == loaded.grid.shape:
        return loaded
    if loaded.can_sample or loaded.grid.shape[0] % size:
        raise ValueError(f"{model}: its grid of {loaded.grid.shape} voxels cannot become {size}^3; leave size out")
    factor = loaded.grid.shape[0] // size
    grid = loaded.grid.resized((size,) * 3)
    checkpoint = load_checkpoint(find_model(model).model)
    loaded.network = checkpoint.network(grid=definition(grid)).to(loaded.device)
    loaded.grid, loaded.pixel_at_isocenter_mm = grid, loaded.pixel_at_isocenter_mm * factor
    if loaded.detector_shape is not None:
        rows, columns = loaded.detector_shape
        loaded.detector_shape = (rows // factor, columns // factor)
    return loaded


def detector_of(model: Model) -> tuple[int, int]:
    """Rows and columns of the radiographs that a model gets."""
    if model.detector_shape is not None:
        return model.detector_shape
    return model.grid.shape[2], math.ceil(1.5 * max(model.grid.shape[:2]))


def reconstructed(model: Model, radiographs: Assembled, samples: int = 0, seed: int = 0) -> Evidence:
    """What checks look at, of radiographs that the model reconstructs.

    Args:
        model: that reconstructs.
        radiographs: on the model's detector.
        samples: drawn for their spread, 0 or at least 2.
        seed: of the samples.

    Raises:
        ValueError: for a single sample.
    """
    if samples == 1:
        raise ValueError("a spread needs at least 2 samples, got 1")
    image, views, field_mask = radiographs.image, radiographs.views, radiographs.field_mask
    shown, _ = extrapolate_truncation(image, field_mask, [""] * len(image), model.pixel_at_isocenter_mm)
    spread = None
    if samples:
        statistics = SampleStatistics(hu_window=model.hu_window, noise_group=NOISE_GROUP)
        for sample in model.samples(shown, views, samples, seed):
            statistics.update(sample)
        hu, spread = statistics.mean().float(), statistics.std().float()
    else:
        hu = model.mean(shown, views)
    return Evidence(
        image, views, field_mask, hu, model.grid, spread, training=model.meta, prior=find_prior(model.network)
    )


def error_hu(model: Model, hu: Tensor, ct: ReferenceCT) -> float:
    """Root mean square difference of a reconstruction (X, Y, Z) and the CT over the model's cube, within its window."""
    low, high = model.hu_window
    return float((hu.clamp(low, high) - ct.on_grid(model.grid).clamp(low, high)).square().mean().sqrt())
