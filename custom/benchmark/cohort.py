"""Test patients of a comparison, checked before the first reconstruction: one grid, all views that are asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel import nifti1
from nibabel.filebasedimages import ImageFileError
from torch import Tensor

from custom.benchmark.methods import VIEW_SETS, read_volume
from custom.core.angles import angle_difference_deg
from custom.core.nifti_files import open_nifti
from custom.data.datalist import load_cases
from custom.data.transforms import LoadRadiographsd, SampleOnGridd
from custom.geometry import Geometry, VolumeGrid, is_cone
from custom.metrics import SSIM_WINDOW

__all__ = ["Case", "Cohort", "ViewSet", "comparison_grid", "load_cohort", "on_grid"]

logger = logging.getLogger(__name__)

#: Share of a voxel by which isocentre and centre of the cube may differ: affines are stored in float32.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class ViewSet:
    """A column of the table.

    Attributes:
        name: as printed.
        beam: "parallel" or "cone": the set of radiographs it is taken from.
        angles_deg: its views.
    """

    name: str
    beam: str
    angles_deg: tuple[float, ...]


@dataclass(frozen=True)
class Case:
    """A CT with its radiographs.

    Attributes:
        name: of the case.
        patient: who it is of; several cases of a patient count as one.
        label: file of the prepared cube, the truth.
        files: beam to the files of its radiographs and their geometry.
    """

    name: str
    patient: str
    label: str
    files: Mapping[str, tuple[str, str]]

    def radiographs(self, views: ViewSet) -> tuple[Tensor, Tensor]:
        """Line integrals (K, V, U) and views (K, 13) of a view set."""
        image, geometry = self.files[views.beam]
        loaded = LoadRadiographsd(angles_deg=views.angles_deg)({"image": image, "geometry": geometry})
        return loaded["image"], loaded["views"]


@dataclass(frozen=True)
class Cohort:
    """What is compared.

    Attributes:
        cases: of the datalist's part.
        views: columns.
        cube: grid that all prepared cubes have.
    """

    cases: tuple[Case, ...]
    views: tuple[ViewSet, ...]
    cube: VolumeGrid


def load_cohort(
    datalists: Sequence[str | os.PathLike[str]],
    part: str = "test",
    names: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    known_views: Mapping[str, tuple[str, Sequence[float]]] | None = None,
) -> Cohort:
    """Read and check what a comparison needs; volumes are not loaded.

    Args:
        datalists: that `fewview-ct simulate` wrote, one for each beam, of the same cases.
        part: of them.
        names: cases, all by default.
        views: names of view sets; all that the radiographs allow by default.
        known_views: those that there are, name to (beam, angles); `VIEW_SETS` by default.

    Raises:
        FileNotFoundError: a datalist or a file that it names is missing.
        ValueError: no case, a case or a view set that there is none of, cubes of different grids, radiographs that do
            not belong to the cube or lack a view.
    """
    sets: dict[str, list[dict[str, Any]]] = {}
    geometries: dict[str, dict[str, Geometry]] = {}
    for path in datalists:
        cases = _chosen(load_cases(path, part), names, path)
        found = {str(case["case"]): _geometry(case) for case in cases}
        beams = {"cone" if bool(is_cone(g.views).any()) else "parallel" for g in found.values()}
        if len(beams) > 1 or beams & set(sets):
            raise ValueError(f"{path}: radiographs of {' and '.join(sorted(beams))} beam; give one datalist for each")
        beam = beams.pop()
        sets[beam], geometries[beam] = cases, found
    first = next(iter(sets.values()))
    for cases in sets.values():
        if [case["case"] for case in cases] != [case["case"] for case in first]:
            raise ValueError(f"{datalists}: the cases under {part!r} differ between the datalists")
    cube = common_grid(first)
    for beam, cases in sets.items():
        for case in cases:
            _check_radiographs(case, geometries[beam][case["case"]], cube)
    columns = _columns(views, known_views or VIEW_SETS, geometries)
    tests = [
        Case(
            case["case"],
            str(case.get("patient") or case["case"]),
            case["label"],
            {beam: (cases[index]["image"], cases[index]["geometry"]) for beam, cases in sets.items()},
        )
        for index, case in enumerate(first)
    ]
    return Cohort(tuple(tests), tuple(columns), cube)


def _chosen(
    cases: list[dict[str, Any]], names: Sequence[str] | None, path: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    found = {str(case.get("case")): {**case, "case": str(case.get("case"))} for case in cases}
    if len(found) < len(cases) or "None" in found:
        raise ValueError(f'{path}: every case needs a name of its own under "case"')
    missing = [name for name in names or [] if name not in found]
    if missing:
        raise ValueError(f"{path}: no case {missing[0]!r}; it has {', '.join(found)}")
    chosen = [found[name] for name in names] if names else list(found.values())
    for case in chosen:
        for key, remedy in (("label", "prepare"), ("image", "simulate"), ("geometry", "simulate")):
            if key not in case:
                raise ValueError(f"{path}: case {case['case']} has no {key!r}; run fewview-ct {remedy} first")
    return chosen


def _geometry(case: Mapping[str, Any]) -> Geometry:
    geometry = Geometry.load(case["geometry"])
    shape = tuple(_header(case["image"]).get_data_shape())
    expected = (*reversed(geometry.detector_shape), len(geometry))
    if expected not in (shape, (*shape, 1)):
        raise ValueError(f"{case['image']}: radiographs (U, V, K) {shape}, but {case['geometry']} says {expected}")
    return geometry


def _header(path: str) -> nifti1.Nifti1Header:
    try:
        return open_nifti(Path(path)).header  # type: ignore[return-value]
    except (ImageFileError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable NIfTI file: {error}") from error


def common_grid(cases: Sequence[Mapping[str, Any]]) -> VolumeGrid:
    """The grid of all labels."""
    grids = {}
    for case in cases:
        header = _header(case["label"])
        affine, shape = header.get_best_affine(), header.get_data_shape()
        spacing = np.diag(affine)[:3]
        if len(shape) != 3 or np.abs(affine[:3, :3] - np.diag(spacing)).max() > 1e-4 or (spacing <= 0).any():
            raise ValueError(f"{case['label']}: not a cube of fewview-ct prepare: axes must be x, y, z of RAS+")
        grids[case["label"]] = VolumeGrid(tuple(shape), tuple(round(float(s), 6) for s in spacing))  # type: ignore[arg-type]
    (label, grid), *others = grids.items()
    for other, found in others:
        if found != grid:
            raise ValueError(
                f"{other}: a label of {found.shape} voxels of {found.spacing_mm} mm, but {label} has {grid.shape} of "
                f"{grid.spacing_mm} mm: all cases must lie on one grid; prepare them together"
            )
    return grid


def _check_radiographs(case: Mapping[str, Any], geometry: Geometry, cube: VolumeGrid) -> None:
    if geometry.isocenter_mm is None:
        return
    affine = _header(case["label"]).get_best_affine()
    center = affine[:3, :3] @ ((np.array(cube.shape) - 1) / 2) + affine[:3, 3]
    apart = float(np.abs(center - np.array(geometry.isocenter_mm)).max())
    if apart > _TOLERANCE * min(cube.spacing_mm) + 1e-3:
        raise ValueError(
            f"{case['geometry']}: the isocentre is {apart:.3g} mm from the centre of {case['label']}: radiographs and "
            "label are not of the same cube; run fewview-ct simulate on this datalist"
        )


def _columns(
    wanted: Sequence[str] | None,
    known: Mapping[str, tuple[str, Sequence[float]]],
    geometries: Mapping[str, Mapping[str, Geometry]],
) -> list[ViewSet]:
    for name in wanted or []:
        if name not in known:
            raise ValueError(f"unknown view set {name!r}; known are {', '.join(map(repr, known))}")
    columns = []
    for name in wanted or known:
        beam, angles = known[name]
        reason = _lacks(beam, angles, geometries)
        if reason and wanted:
            raise ValueError(f"view set {name!r}: {reason}")
        if reason:
            logger.warning("view set %r is left out: %s", name, reason)
        else:
            columns.append(ViewSet(name, beam, tuple(float(a) for a in angles)))
    if not columns:
        raise ValueError("no view set can be taken from these radiographs; see the warnings above")
    return columns


def _lacks(beam: str, angles: Sequence[float], geometries: Mapping[str, Mapping[str, Geometry]]) -> str:
    if beam not in geometries:
        return f"no datalist has radiographs of {beam} beam"
    for case, geometry in geometries[beam].items():
        stored = geometry.angles_deg
        gone = [a for a in angles if not any(abs(angle_difference_deg(s, a)) < 0.01 for s in stored)]
        if gone:
            return f"case {case} has no radiograph at {gone[0]:g} degrees, it has {[round(a, 2) for a in stored]}"
    return ""


def comparison_grid(cube: VolumeGrid, size: int | None) -> VolumeGrid:
    """The cube in `size` voxels a side; None: as prepared.

    Raises:
        ValueError: for a size that SSIM's window does not fit in, or finer than the truth.
    """
    if size is None:
        return cube
    if not SSIM_WINDOW <= size <= min(cube.shape):
        raise ValueError(f"size must lie between {SSIM_WINDOW} (SSIM's window) and {min(cube.shape)}, got {size}")
    return cube.resized((size,) * 3)


def on_grid(hu: Tensor, own: VolumeGrid, grid: VolumeGrid) -> Tensor:
    """A volume (X, Y, Z) on its own grid, brought to another: averaged where that is coarser, linear where finer."""
    if own == grid:
        return hu
    volume = MetaTensor(hu[None], affine=torch.as_tensor(own.affine()))
    origin = MetaTensor(torch.zeros(1, 1, 1, 1), affine=torch.eye(4, dtype=torch.float64))
    sampled = SampleOnGridd("volume", "origin", grid, torch.float32)({"volume": volume, "origin": origin})
    return sampled["volume"][0]


def truth_of(case: Case, cube: VolumeGrid, grid: VolumeGrid) -> Tensor:
    """The CT of a case on the grid of the comparison, (X, Y, Z) HU."""
    if not Path(case.label).is_file():
        raise FileNotFoundError(f"{case.label}: the truth of case {case.name} has gone")
    return on_grid(read_volume(case.label), cube, grid)
