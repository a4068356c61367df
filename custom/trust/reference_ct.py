"""Reference CTs and their simulated radiographs, with errors of real acquisitions, to calibrate and test checks."""

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
from custom.data.simulate import Acquisition, simulate_case
from custom.metrics import SampleStatistics
from custom.models import Model, find_model, load_model
from custom.trust.evidence import Evidence, find_prior

__all__ = ["ReferenceCT", "SimulationSettings", "detector_of", "load_ct", "model_on", "reconstructed"]


@dataclass(frozen=True)
class SimulationSettings:
    """How known CTs are radiographed.

    Args:
        energy_kev: photon energy.
        photons: counted by a pixel without a patient; 0 for no noise.
        intensity_error: the unattenuated intensity is wrong by up to this share, each view for itself.
        scatter_to_primary: see `fewview-ct simulate`.
        scale, shift_mm, warp_mm: of random deformations, see `RandThoraxAugment`.
        seed: of deformations, noise and errors.
    """

    energy_kev: float = 70.0
    photons: float = 4e6
    intensity_error: float = 0.02
    scatter_to_primary: float = 0.0
    scale: float = 0.2
    shift_mm: float = 15.0
    warp_mm: float = 18.0
    seed: int = 0

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
        cube_shape, cube_affine: of the prepared cube, whose centre is the isocentre.
    """

    name: str
    hu: np.ndarray
    affine: np.ndarray
    cube_shape: tuple[int, int, int]
    cube_affine: np.ndarray

    def radiographs(
        self,
        angles_deg: Sequence[float],
        beam: str,
        shape: Sequence[int],
        pixel_mm: float,
        simulation: SimulationSettings,
    ) -> tuple[Tensor, Tensor]:
        """Line integrals (K, V, U) and views (K, 13).

        Args:
            angles_deg: of the source; see `Geometry.from_angles`.
            beam: "parallel" or "cone".
            shape: rows and columns.
            pixel_mm: at the isocentre.
            simulation: what is wrong with them.
        """
        acquisition = Acquisition(angles_deg=tuple(angles_deg), beam=beam)
        magnification = (
            acquisition.source_to_detector_mm / acquisition.source_to_isocenter_mm if beam == "cone" else 1.0
        )
        acquisition = replace(
            acquisition,
            detector_shape=(int(shape[0]), int(shape[1])),
            pixel_mm=pixel_mm * magnification,
            energy_kev=simulation.energy_kev,
            photons=simulation.photons,
            scatter_to_primary=simulation.scatter_to_primary,
            seed=simulation.seed,
        )
        cube = np.broadcast_to(np.int16(0), self.cube_shape)
        image, geometry = simulate_case(cube, self.cube_affine, acquisition, self.hu, self.affine, self.name)
        draw = simulation.generator(self.name, beam, *map(float, angles_deg))
        error = draw.uniform(-simulation.intensity_error, simulation.intensity_error, size=(len(image), 1, 1))
        return image + torch.as_tensor(np.log1p(error)).float(), geometry.tensor()


def load_ct(
    case: Mapping[str, Any], pixel_mm: float, warp: int = 0, simulation: SimulationSettings | None = None
) -> ReferenceCT:
    """A case of a datalist, averaged to voxels of at most half a pixel, and deformed.

    Args:
        case: with "case", "label" and "source" (see `custom.data.datalist.load_cases`).
        pixel_mm: of the radiographs that are wanted, at the isocentre.
        warp: number of the deformation; 0: as it is.
        simulation: amplitudes and seed of the deformation.

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
        simulation = simulation or SimulationSettings()
        spacing = affine[:3, :3].diagonal().tolist()
        augment = RandThoraxAugment(
            tuple(volume.shape[1:]),
            spacing,
            spacing,
            scale=simulation.scale,
            shift_mm=simulation.shift_mm,
            warp_mm=simulation.warp_mm,
        )
        augment.R = simulation.generator(case["case"], warp)
        volume = augment(volume)
    name = f"{case['case']} warped {warp}" if warp else str(case["case"])
    return ReferenceCT(
        name,
        volume[0].numpy(),
        affine,
        (cube.shape[0], cube.shape[1], cube.shape[2]),
        np.asarray(cube.affine, dtype=float),
    )


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


def reconstructed(
    model: Model, image: Tensor, views: Tensor, field_mask: Tensor | None = None, samples: int = 0, seed: int = 0
) -> Evidence:
    """What checks look at, of radiographs (K, V, U) that the model reconstructs.

    Args:
        model: that reconstructs.
        image: line integrals on the model's detector.
        views: (K, 13).
        field_mask: bool (K, V, U); None: everything.
        samples: drawn for their spread, 0 or at least 2.
        seed: of the samples.

    Raises:
        ValueError: for a single sample.
    """
    if samples == 1:
        raise ValueError("a spread needs at least 2 samples, got 1")
    spread = None
    if samples:
        statistics = SampleStatistics(hu_window=model.hu_window)
        for sample in model.samples(image, views, samples, seed):
            statistics.update(sample)
        hu, spread = statistics.mean().float(), statistics.std().float()
    else:
        hu = model.mean(image, views)
    shown = torch.ones_like(image, dtype=torch.bool) if field_mask is None else field_mask
    return Evidence(image, views, shown, hu, model.grid, spread, training=model.meta, prior=find_prior(model.network))
