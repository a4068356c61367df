"""`Atlas`: gives samples the fine anatomy of registered training patients."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter
from torch import Tensor
from tqdm import tqdm

from custom.core.attenuation import hu_to_attenuation
from custom.core.files import sha256_file, write_nifti
from custom.core.hu_window import hu_to_unit, unit_to_hu
from custom.core.limits import check_count
from custom.core.nifti_files import open_nifti
from custom.data.datalist import load_cases
from custom.data.shapes import LEVELS, ct_on_grid, register
from custom.geometry import VolumeGrid
from custom.networks.population_prior import sample_on
from custom.projection import ProjectorCache
from custom.sampling.encoded_mean import EncodedMean

__all__ = ["WHOSE_DETAIL", "Atlas", "write_atlas"]

#: What whoever looks at a sample, or at the mean of some, has to know.
WHOSE_DETAIL = (
    "Ribs, vessels and other fine structure are those of training patients, deformed to fit the radiographs: a nodule "
    "or a calcification may be another person's, and what only this patient has may be missing."
)

#: Voxels of the registration; finer ones move nothing that few radiographs show.
REGISTRATION_MM = 5.0
#: How far the stored CTs reach beyond the cube: people are wider than it, and the registration may need what is above.
MARGIN_MM = (60.0, 0.0, 30.0)
#: Steps of the stored values [HU], from air on: one byte each.
STEP_HU, LOWEST_HU = 8, -1000
#: Bytes of all CTs in memory: some 1200 of the published size.
LARGEST_BYTES = 2**32


class Atlas:
    """Training patients' CTs that are registered to a coarse volume and give it what the mean network blurs.

    Matheron's rule, known as conditioning simulations by kriging (Journel and Huijbregts, Mining Geostatistics, 1978;
    Wilson et al., JMLR 22:105, 2021): with x' from the prior and m the mean given radiographs, m(y) + x' - m(A x') is
    a sample of the posterior, exactly so for Gaussians. Here x' is a patient's CT, deformed so that ribs and
    vessels come to lie about where this patient has them. Two registrations, the second of what the first has left,
    compare like with like: what m makes of either, the first one what m's first stage does, which is faster. A projects
    along the same views. What the two patients have in common, m blurs in both, and it cancels out.

    Args:
        path: file that `write_atlas` made.
        mean: the mean network m.
        coarse_mm: standard deviation of a Gaussian [mm]: of what a sample differs by from m(y), only what is coarser
            is kept; the atlas has better to offer than a diffusion model of few patients for what is finer.

    Attributes:
        count: how many CTs it has.
        settings: all that the result depends on beside sample, radiographs and m.

    Raises:
        FileNotFoundError, ValueError: no such file, one that `write_atlas` did not make, coarse_mm of 0 or less or
            above the grid's side, or a grid too small to register anything on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mean: EncodedMean,
        coarse_mm: float = 10.0,
    ) -> None:
        self.grid: VolumeGrid = mean.network.grid
        longest = 2 * max(self.grid.half_extent_mm)
        if not (isinstance(coarse_mm, int | float) and 0 < coarse_mm <= longest):
            raise ValueError(f"coarse_mm must be above 0 and at most {longest:g}, the model's side; got {coarse_mm}")
        stored, self._stored_grid = _read(Path(path))
        self._stored = torch.from_numpy(stored)
        self.count, self.mean = len(self._stored), mean
        finest = [round(2 * half / REGISTRATION_MM) for half in self.grid.half_extent_mm]
        voxels = [min(n, m) for n, m in zip(self.grid.shape, finest, strict=True)]
        if min(voxels) < LEVELS[0][0]:
            raise ValueError(
                f"a model of {self.grid.shape} voxels is too small for an atlas: registration takes {LEVELS[0][0]} of "
                f"{REGISTRATION_MM:g} mm or more along each side"
            )
        self._registration_grid = self.grid.resized(voxels)
        self._smooth = GaussianFilter(3, [coarse_mm / s for s in self.grid.spacing_mm])
        beside = round(MARGIN_MM[0] / self.grid.spacing_mm[0])
        self._wide = self.grid.padded([beside, 0, 0])
        self._projector = ProjectorCache(1)
        self.settings = {"sha256": sha256_file(path), "coarse_mm": coarse_mm}

    @torch.no_grad()
    def detailed(self, sample: Tensor, reconstruction: Tensor, image: Tensor, views: Tensor, index: int) -> Tensor:
        """A sample whose detail is that of a training patient.

        Args:
            sample: (1, 1, X, Y, Z) on the grid of m, its `hu_window` as [-1, 1].
            reconstruction: m(y), likewise.
            image: y, line integrals (1, K, V, U).
            views: (1, K, 13).
            index: of the sample: sample i gets the detail of CT i modulo `count`.

        Returns:
            (1, 1, X, Y, Z), not clipped.
        """
        deviation = self._smooth.to(sample.device)(sample - reconstruction)
        moved_by = self._small(deviation, self.grid)
        stored = self._stored[index % self.count].to(sample.device).float() * STEP_HU + LOWEST_HU
        seen = self._radiographs(self._moved(stored, 0.0), image, views)
        rough = [self._small(*self.mean.first_stage(each, views)) for each in (image, seen)]
        first = self._field(rough[0] + moved_by, rough[1], LEVELS[:2])
        seen = self._radiographs(self._moved(stored, first), image, views)
        made = self._small(self.mean.volume(seen, views), self.grid)
        second = self._field(self._small(reconstruction, self.grid) + moved_by, made, LEVELS[1:])
        patient = self._moved(stored, second + self._displaced(first, second))
        inside = hu_to_unit(patient[(..., *self.grid.middle_of(self._wide))], self.mean.network.hu_window)
        known = self.mean.volume(self._radiographs(patient, image, views), views)
        return reconstruction + deviation + inside - known

    def _radiographs(self, patient: Tensor, image: Tensor, views: Tensor) -> Tensor:
        """A x': a patient's line integrals along these views, (1, K, V, U) as the radiographs `image`."""
        attenuation = hu_to_attenuation(patient, self.mean.network.energy_kev)
        return self._projector(self._wide, image.shape[2:])(attenuation, views[0])

    def _small(self, volume: Tensor, grid: VolumeGrid) -> Tensor:
        """A volume on the grid of the registration."""
        return sample_on(self._registration_grid, volume, grid)

    def _field(self, fixed: Tensor, moving: Tensor, levels: Sequence[tuple[int, int]]) -> Tensor:
        """Displacements (X, Y, Z, 3) [mm] on the wide grid from one small volume to the other."""
        coarse, window = self._registration_grid, self.mean.network.hu_window
        one, other = (unit_to_hu(volume, window)[0, 0].cpu() for volume in (fixed, moving))
        field = register(one, other, coarse.spacing_mm, levels).to(fixed.device)
        return sample_on(self._wide, field[None], coarse)[0].movedim(0, -1)

    def _displaced(self, field: Tensor, displacement: Tensor) -> Tensor:
        """Displacements (X, Y, Z, 3) on the wide grid, read where its points are displaced to."""
        where = self._where(self._wide, displacement, field.device)
        read = F.grid_sample(field.movedim(-1, 0)[None], where, padding_mode="border", align_corners=False)
        return read[0].movedim(0, -1)

    def _moved(self, stored: Tensor, displacement: Tensor | float) -> Tensor:
        """A stored CT in HU on the wide grid, (1, 1, X, Y, Z), read where its points are displaced to.

        Above and below, its last slices go on; beside it there is air.
        """
        where = self._where(self._stored_grid, displacement, stored.device)
        last = 1 - 1 / self._stored_grid.shape[2]
        where[..., 0].clamp_(-last, last)
        return F.grid_sample((stored - LOWEST_HU)[None, None], where, align_corners=False) + LOWEST_HU

    def _where(self, grid: VolumeGrid, displacement: Tensor | float, device: torch.device) -> Tensor:
        """The wide grid's points, displaced, where `grid_sample` finds them on another grid: (1, X, Y, Z, 3)."""
        half = torch.tensor(grid.half_extent_mm, device=device)
        return ((self._wide.points(device) + displacement) / half).flip(-1)[None]


def _read(path: Path) -> tuple[npt.NDArray[np.uint8], VolumeGrid]:
    """The CTs of an atlas (N, X, Y, Z), as they are stored, and their grid around the isocentre."""
    image: Any = open_nifti(path)
    expected = "but an atlas as 'fewview-ct atlas' writes it is"
    if len(image.shape) != 4 or image.get_data_dtype() != np.uint8:
        raise ValueError(f"{path}: shape {image.shape}, {image.get_data_dtype()}, {expected} (X, Y, Z, N), uint8")
    scale = image.dataobj.slope, image.dataobj.inter
    if scale != (1, 0):
        raise ValueError(f"{path}: values are scaled by {scale[0]:g} and {scale[1]:g}, {expected} not scaled")
    _check_size(path, image.shape)
    grid = _grid_of(path, image)
    if not np.allclose(image.affine, grid.affine(), atol=1e-3) or image.header.get_xyzt_units()[0] != "mm":
        raise ValueError(f"{path}: affine {image.affine.tolist()}, {expected} RAS+ in mm around the isocentre")
    try:
        stored = np.asarray(image.dataobj)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: is truncated or damaged ({error})") from error
    return stored.transpose(3, 0, 1, 2).copy(), grid


def _check_size(path: str | os.PathLike[str], shape: Sequence[int]) -> None:
    check_count(path, "bytes of CTs in an atlas", math.prod(shape), LARGEST_BYTES)


def _grid_of(path: str | os.PathLike[str], image: Any) -> VolumeGrid:
    """The grid of a NIfTI image of `prepare`, around its own middle."""
    try:
        return VolumeGrid(image.shape[:3], tuple(np.linalg.norm(image.affine[:3, :3], axis=0)))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_atlas(
    data_list_file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    part: str = "training",
    leave_out: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Put a cohort's CTs into one file, from which `ldm_recon` takes the fine anatomy of its samples.

    The file holds the CTs themselves, in steps of 8 HU: pass it on only where the CTs may be passed on.

    Args:
        data_list_file: datalist.json of `prepare`.
        output: file to write, .nii.gz: all CTs on the cohort's grid, and some tissue around it, as one
            four-dimensional NIfTI.
        part: of the datalist. Never the test patients.
        leave_out: cases not to take, such as CTs that cut the body off at the sides: what is missing there is not
            what the network expects, and ends up beside the patient.
        overwrite: replace a file that is there.

    Raises:
        FileExistsError: the output exists.
        FileNotFoundError, ValueError: as `load_cases`, for test patients, unknown names, or CTs on different grids.
    """
    if part == "test":
        raise ValueError("test patients must not enter what reconstructs them: choose another part")
    if not str(output).endswith(".nii.gz"):
        raise ValueError(f"{output}: the name of an atlas must end in .nii.gz")
    if Path(output).exists() and not overwrite:
        raise FileExistsError(f"{output}: exists: choose another output, or pass --overwrite")
    cases = load_cases(data_list_file, part)
    if unknown := sorted(set(leave_out) - {case["case"] for case in cases}):
        raise ValueError(f"{data_list_file}: has no case {unknown[0]!r} under {part!r}, which leave_out names")
    cases = [case for case in cases if case["case"] not in leave_out]
    stored: list[np.ndarray] = []
    first: VolumeGrid | None = None
    for case in tqdm(cases, desc="CTs", disable=None):
        label = _grid_of(case["label"], open_nifti(Path(case["label"])))
        first = first or label
        if label != first:
            raise ValueError(
                f"{case['label']}: {label.shape} voxels of {label.spacing_mm} mm, others have {first.shape} of "
                f"{first.spacing_mm}: prepare them together"
            )
        grid = label.padded([round(margin / s) for margin, s in zip(MARGIN_MM, label.spacing_mm, strict=True)])
        _check_size(output, (*grid.shape, len(cases)))
        hu = ct_on_grid(case, grid).numpy()
        stored.append(((hu - LOWEST_HU) / STEP_HU).round().clip(0, 255).astype(np.uint8))
    if not stored:
        raise ValueError(f"{data_list_file}: nothing is left of {part!r}")
    write_nifti(Path(output), np.stack(stored, -1), grid.affine())
    return Path(output)
