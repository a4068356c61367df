"""MONAI transforms for volumes on a geometry's grid and for stored radiographs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImaged, MapTransform, Randomizable, RandomizableTransform, Transform

from custom.core.angles import angle_difference_deg
from custom.core.hu_window import unit_to_hu
from custom.core.nifti_files import open_nifti
from custom.geometry import VolumeGrid
from custom.geometry.detector import match_detector
from custom.projection.radiograph_stack import load_stack

__all__ = ["LoadNiftid", "LoadRadiographsd", "PlaceOnGridd", "PlaceVolumed", "RepeatRandom", "SampleOnGridd"]

AIR_HU = -1000.0


class LoadNiftid(LoadImaged):
    """MONAI's LoadImaged for NIfTI files, whose headers are held to the files' sizes before memory is taken.

    Args:
        keys: names of files; MetaTensors (1, X, Y, Z) afterwards.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        # MONAI sets up a reader for every format, one of which warns that a decoder is missing; NIfTI needs none.
        logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
            super().__init__(keys, ensure_channel_first=True, allow_missing_keys=allow_missing_keys)

    def __call__(self, data: Any, reader: Any = None) -> dict[Hashable, Any]:
        """The data with volumes instead of names.

        Raises:
            FileNotFoundError, ValueError: of `custom.core.nifti_files.open_nifti`, naming the file.
        """
        for key in self.key_iterator(data):
            open_nifti(Path(data[key]))
        return super().__call__(data, reader)


class SampleOnGridd(MapTransform):
    """CT volumes sampled on a grid around another volume's centre, averaged where the grid is coarser.

    Args:
        keys: MetaTensors (1, X, Y, Z) in HU with axis-aligned RAS+ affines.
        reference_key: the MetaTensor whose centre is the isocentre, the prepared cube.
        grid: voxels around the isocentre. What lies outside the CT is air.
        dtype: of the result; int16 keeps a cache small.
    """

    def __init__(
        self,
        keys: KeysCollection,
        reference_key: str,
        grid: VolumeGrid,
        dtype: torch.dtype = torch.int16,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key, self.grid, self.dtype = reference_key, grid, dtype

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Plain tensors (1, *grid.shape) instead of the MetaTensors."""
        out = dict(data)
        reference = data[self.reference_key]
        middle = torch.tensor([(n - 1) / 2 for n in reference.shape[1:]] + [1.0], dtype=torch.float64)
        isocenter = (torch.as_tensor(reference.affine).double() @ middle)[:3]
        for key in self.key_iterator(out):
            volume = out[key]
            try:
                sampled = sample_on_grid(
                    np.asarray(volume)[0], np.asarray(volume.affine), isocenter.tolist(), self.grid
                )
            except ValueError as error:
                raise ValueError(f"{volume.meta.get('filename_or_obj', 'volume')}: {error}") from error
            out[key] = (sampled if self.dtype.is_floating_point else sampled.round())[None].to(self.dtype)
        return out


def sample_on_grid(hu: np.ndarray, affine: np.ndarray, isocenter_mm: Sequence[float], grid: VolumeGrid) -> torch.Tensor:
    """HU at the voxels of a grid around the isocentre, (X, Y, Z) float32, averaged where the grid is coarser.

    Args:
        hu: (X', Y', Z'); what lies outside is air.
        affine: (4, 4), axis-aligned RAS+.
        isocenter_mm: in the CT's world.
        grid: voxels around the isocentre.

    Raises:
        ValueError: for another affine.
    """
    matrix = torch.as_tensor(np.array(affine)).double()
    spacing = matrix[:3, :3].diagonal()
    if (matrix[:3, :3] - torch.diag(spacing)).abs().max() > 1e-4 or (spacing <= 0).any():
        raise ValueError("the affine must be axis-aligned RAS+ (fewview-ct prepare writes such files)")
    values = torch.as_tensor(hu, dtype=torch.float32)[None, None]
    widths = [max(1, round(g / float(s))) for g, s in zip(grid.spacing_mm, spacing, strict=True)]
    first = matrix[:3, 3].clone()
    if max(widths) > 1:
        for width, axis in zip(widths, range(3), strict=True):  # one axis after the other is several times faster
            values = F.avg_pool3d(values, [width if i == axis else 1 for i in range(3)], stride=1)
        first = first + spacing * (torch.tensor(widths, dtype=torch.float64) - 1) / 2
    positions = []
    for axis in range(3):
        n = values.shape[2 + axis]
        index = (grid.axis_mm(axis, dtype=torch.float64) + isocenter_mm[axis] - first[axis]) / spacing[axis]
        positions.append(((index + 0.5) / n * 2 - 1).float())
    points = torch.stack(torch.meshgrid(*positions, indexing="ij")[::-1], -1)[None]
    return F.grid_sample(values - AIR_HU, points, padding_mode="zeros", align_corners=False)[0, 0] + AIR_HU


class RepeatRandom(RandomizableTransform):
    """Serves each result of a costly random transform several times in a row.

    Radiographs are drawn anew at every training step, so one warped volume teaches more than once.

    Args:
        transform: the random transform.
        repeats: how often each of its results is served; the items asked for in between are skipped.
    """

    def __init__(self, transform: Callable[[Any], Any], repeats: int = 1) -> None:
        super().__init__()
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        self.transform, self.repeats = transform, repeats
        self._served, self._result = 0, None

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RepeatRandom:
        """Seeds the transform: MONAI's `Compose` hands its seed to what is `Randomizable` alone."""
        super().set_random_state(seed, state)
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Any) -> Any:
        if self._served % self.repeats == 0:
            self._result = self.transform(data)
        self._served += 1
        return self._result


class LoadRadiographsd(Transform):
    """Loads a stack of radiographs with its geometry and, if asked, keeps some of the views.

    The geometry is that of the file (`Geometry.save`) named "geometry"; it becomes "views" (K, 13), "view_mask" (K,).

    Args:
        image_key: NIfTI file (U, V, K) of line integrals; becomes a float32 tensor (K, V, U).
        angles_deg: views to keep, by angle; None for all, in the file's order.
        pixel_at_isocenter_mm: resample to this pixel size, demagnified to the isocentre (`match_detector`); None
            leaves the pixels alone.

    Raises:
        FileNotFoundError, ValueError: naming the file: counts differ, an angle is missing, NaN, values that are no line
            integrals.
    """

    def __init__(
        self,
        image_key: str = "image",
        angles_deg: Sequence[float] | None = None,
        pixel_at_isocenter_mm: float | None = None,
    ) -> None:
        self.image_key, self.pixel_mm = image_key, pixel_at_isocenter_mm
        self.angles_deg = None if angles_deg is None else [float(a) for a in angles_deg]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        path = out[self.image_key]
        stack, geometry = load_stack(path, out["geometry"])
        if self.angles_deg is not None:
            chosen = [_index_of(angle, geometry.angles_deg, out["geometry"]) for angle in self.angles_deg]
            stack, geometry = stack[chosen], geometry.select(chosen)
        views = geometry.tensor()
        if self.pixel_mm is not None:
            stack, views = match_detector(stack, views, self.pixel_mm)
        out[self.image_key] = stack
        out["views"] = views
        out["view_mask"] = torch.ones(len(geometry), dtype=torch.bool)
        out["isocenter_mm"] = torch.tensor(geometry.isocenter_mm or (0.0, 0.0, 0.0), dtype=torch.float64)
        out["name"] = Path(path).name.split(".")[0]
        return out


class PlaceOnGridd(MapTransform):
    """What a network gives, as float32 in the CT's frame.

    The affine is the grid's, moved by the isocentre of the acquisition ("isocenter_mm", as `LoadRadiographsd` reads
    it); it is never inherited from the radiographs.

    Args:
        keys: tensors (C, X, Y, Z), which become MetaTensors.
        grid: theirs.
        name_key: entry that names the output file.
    """

    def __init__(
        self, keys: KeysCollection, grid: VolumeGrid, name_key: str = "name", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.grid, self.name_key = grid, name_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        affine = torch.as_tensor(self.grid.affine(torch.as_tensor(out["isocenter_mm"]).tolist()))
        meta = {"filename_or_obj": f"{out.get(self.name_key, 'reconstruction')}.nii.gz"}
        for key in self.key_iterator(out):
            out[key] = MetaTensor(self.shown(torch.as_tensor(out[key])), affine=affine, meta=dict(meta))
        return out

    def shown(self, value: torch.Tensor) -> torch.Tensor:
        """What is written of a tensor."""
        return value.float()


class PlaceVolumed(PlaceOnGridd):
    """A network's volume (1, X, Y, Z), `hu_window` as [-1, 1], as rounded HU in the CT's frame.

    Args:
        keys, grid: as in `PlaceOnGridd`.
        hu_window: CT values of -1 and 1.
        **options: as in `PlaceOnGridd`.
    """

    def __init__(
        self, keys: KeysCollection, grid: VolumeGrid, hu_window: Sequence[float] = (-1000.0, 1000.0), **options: Any
    ) -> None:
        super().__init__(keys, grid, **options)
        self.hu_window = tuple(hu_window)

    def shown(self, value: torch.Tensor) -> torch.Tensor:
        return unit_to_hu(value, self.hu_window).round()


def _index_of(angle: float, angles: Sequence[float], path: Any) -> int:
    for index, candidate in enumerate(angles):
        if abs(angle_difference_deg(candidate, angle)) < 0.01:
            return index
    raise ValueError(f"{path}: no view at {angle:g} degrees; it has {[round(a, 2) for a in angles]}")
