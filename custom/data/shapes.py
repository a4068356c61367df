"""A shape model of chests: the tissue of one patient in a mixture of the shapes of several.

Every training CT is registered to one reference, and the reference to it (`register_cohort`). A new chest y is sampled
as y -> y + sum_j w_j b_j(y) = r in the reference -> r + f_i(r) in CT i: b_j leads from patient j to the reference, f_i
from the reference to patient i, whose tissue is shown. The weights w sum to one, so a patient alone keeps its shape.
This is the statistical deformation model of Rueckert, Frangi and Schnabel (IEEE Trans Med Imaging 22:1014, 2003), with
registered fields instead of control points, and with mixtures instead of principal components: a cohort has few
members.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import Compose
from torch import Tensor
from tqdm import tqdm

from custom.core.files import sha256_file, sha256_files, write_tensors
from custom.core.tensor_files import load_tensors
from custom.data.datalist import load_cases
from custom.data.transforms import LoadNiftid, SampleOnGridd
from custom.geometry import VolumeGrid
from custom.metrics.tables import write_csv

__all__ = ["DrawnShape", "ShapeModel", "ct_on_grid", "register", "register_cohort", "shape_model", "smallest_jacobian"]

logger = logging.getLogger(__name__)

AIR_HU = -1000.0
#: Bone and metal would dominate the registration of everything else.
LARGEST_REGISTERED_HU = 300.0
#: Coarse to fine: shrink factor, iterations.
LEVELS = ((4, 120), (2, 80), (1, 40))
#: Standard deviation that smooths the deformation after each iteration [voxels].
SMOOTHING_VOXELS = 1.5
#: A registration that leaves more than this share of the difference between the two CTs has failed.
LARGEST_RESIDUAL_SHARE = 0.7
#: Smallest determinant of the Jacobian of a map; at 0 it would fold.
SMALLEST_JACOBIAN = 0.05
#: Weights below this change nothing that can be seen, and cost time.
SMALLEST_WEIGHT = 0.02


def register(
    fixed: Tensor, moving: Tensor, spacing_mm: Sequence[float], levels: Sequence[tuple[int, int]] = LEVELS
) -> Tensor:
    """A smooth invertible map from one CT to another: diffeomorphic demons with symmetric forces, coarse to fine.

    Vercauteren, Pennec, Perchant and Ayache, NeuroImage 45:S61, 2009, as SimpleITK has it.

    Args:
        fixed: (X, Y, Z) in HU.
        moving: (X, Y, Z) in HU, on the same grid.
        spacing_mm: of the grid.
        levels: coarse to fine: shrink factor, iterations. A side must have as many voxels as the largest factor.

    Returns:
        Displacement, mm: position p of `fixed` corresponds to p + displacement of `moving`. (3, X, Y, Z) divided by the
        last shrink factor, of voxels that many times as long.

    Raises:
        ValueError: if the shapes differ.
    """
    import SimpleITK as sitk  # heavy, and for few commands

    if fixed.shape != moving.shape:
        raise ValueError(f"both CTs must be on one grid, got {tuple(fixed.shape)} and {tuple(moving.shape)}")

    def image(volume: Tensor) -> Any:
        hu = volume.float().clamp(AIR_HU, LARGEST_REGISTERED_HU).numpy()
        result = sitk.GetImageFromArray(np.ascontiguousarray(hu.transpose(2, 1, 0)))
        result.SetSpacing([float(s) for s in spacing_mm])
        return result

    images = image(fixed), image(moving)
    field = None
    for shrink, iterations in levels:
        level = [sitk.BinShrink(each, [shrink] * 3) if shrink > 1 else each for each in images]
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfThreads(torch.get_num_threads())
        demons.SetNumberOfIterations(iterations)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(SMOOTHING_VOXELS)
        if field is not None:
            field = sitk.Resample(field, level[0], sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64)
            field = demons.Execute(*level, field)
        else:
            field = demons.Execute(*level)
    assert field is not None

    array = sitk.GetArrayFromImage(field)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(3, 2, 1, 0), dtype=np.float32))


@dataclass(frozen=True)
class DrawnShape:
    """One new chest: whose tissue, and the weights of whose shapes.

    Attributes:
        case: the CT that is shown.
        weights: by case; they sum to one.
    """

    case: str
    weights: Mapping[str, float]


class ShapeModel:
    """Registered shapes of a cohort, and random mixtures of them.

    Args:
        path: file that `register_cohort` wrote.
        cases: cases with their "fold", as `load_cases` gives them; a mixture then keeps within the fold of its tissue
            unless told otherwise, so that a network can be shown chests of which a prior out of fold knows nothing.
        concentration: of the Dirichlet distribution of the weights; small values give few patients most of the weight.
        extrapolation: weights are drawn away from equal ones by up to this share more, so that a mixture may be more
            unlike the others than any patient is; taken back where the map would fold.

    Attributes:
        grid: of the fields.
        cases: names of the registered cases.
        sha256: of the file.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it is none of shapes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        cases: Sequence[Mapping[str, Any]] = (),
        concentration: float = 0.3,
        extrapolation: float = 0.3,
    ) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file of shapes; 'fewview-ct shapes DATALIST' writes one")
        if not concentration > 0 or not 0 <= extrapolation <= 1:
            raise ValueError(
                f"concentration must be positive and extrapolation in [0, 1], got {concentration} and {extrapolation}"
            )
        try:
            content = load_tensors(Path(path))
            grid = content["grid"]
            self.grid = VolumeGrid(tuple(grid["shape"]), tuple(grid["spacing_mm"]))
            fields: dict[str, dict[str, Tensor]] = content["fields"]
            self._to_reference = {name: each["to_reference"].float() for name, each in fields.items()}
            self._from_reference = {name: each["from_reference"].float() for name, each in fields.items()}
        except (KeyError, TypeError, RuntimeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is not a file of shapes as 'fewview-ct shapes' writes them: {error}") from error
        self.concentration, self.extrapolation, self.sha256 = concentration, extrapolation, sha256_file(path)
        self.cases = sorted(fields)
        self._fold = {str(case["case"]): int(case["fold"]) for case in cases if "fold" in case}

    def draw(self, rng: np.random.RandomState, case: str, folds: Collection[int] | None = None) -> DrawnShape | None:
        """A random mixture of shapes for the tissue of a case.

        Args:
            rng: source of randomness.
            case: whose tissue is shown.
            folds: of the patients whose shapes may enter; None: that of the case, or all where folds are not known.

        Returns:
            None for a case that is not registered, such as a phantom: it keeps its own shape.
        """
        if case not in self._from_reference:
            return None
        if folds is None and case in self._fold:
            folds = [self._fold[case]]
        names = [name for name in self.cases if not self._fold or self._fold.get(name) in (folds or ())] or [case]
        weights = rng.dirichlet([self.concentration] * len(names))
        more = 1 + rng.uniform(0, self.extrapolation)
        stretched = 1 / len(names) + more * (weights - 1 / len(names))
        for candidate in (stretched, weights):
            shape = DrawnShape(case, {n: float(w) for n, w in zip(names, candidate, strict=True)})
            if smallest_jacobian(self._mixed(shape.weights, step=2), [2 * s for s in self.grid.spacing_mm]) > 0.1:
                return shape
        return DrawnShape(case, {case: 1.0})

    def follow(self, shape: DrawnShape, positions_mm: Tensor) -> Tensor:
        """Positions (3, a, b, c) [mm from the isocentre] of the new chest as positions of the CT that is shown."""
        positions = positions_mm + self._sample(self._mixed(shape.weights), positions_mm)
        return positions + self._sample(self._from_reference[shape.case], positions)

    def _mixed(self, weights: Mapping[str, float], step: int = 1) -> Tensor:
        total = torch.zeros(3, *(len(range(0, n, step)) for n in self.grid.shape))
        kept = {name: weight for name, weight in weights.items() if abs(weight) >= SMALLEST_WEIGHT}
        for name, weight in kept.items():
            total.add_(self._to_reference[name][:, ::step, ::step, ::step], alpha=weight / sum(kept.values()))
        return total

    def _sample(self, field: Tensor, positions_mm: Tensor) -> Tensor:
        half = torch.tensor(self.grid.half_extent_mm)[:, None, None, None]
        where = (positions_mm / half).flip(0).permute(1, 2, 3, 0)[None]
        return F.grid_sample(field[None], where, padding_mode="border", align_corners=False)[0]


def shape_model(
    path: str | os.PathLike[str] | None, cases: Sequence[Mapping[str, Any]] = (), **options: float
) -> ShapeModel | None:
    """A `ShapeModel`, or None where there is no path: every chest then keeps its own shape."""
    return None if path is None else ShapeModel(path, cases, **options)


def smallest_jacobian(displacement_mm: Tensor, spacing_mm: Sequence[float]) -> float:
    """The smallest determinant of the Jacobian of the map p -> p + displacement (3, X, Y, Z) on a grid."""
    rows = torch.gradient(displacement_mm, spacing=[float(s) for s in spacing_mm], dim=(1, 2, 3))
    jacobian = torch.stack(rows, 1)  # (3 components, 3 axes, X, Y, Z)
    for axis in range(3):
        jacobian[axis, axis] += 1
    (a, b, c), (d, e, f), (g, h, i) = jacobian
    return float((a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)).min())


def register_cohort(
    data_list_file: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    spacing_mm: float = 5.0,
    size_mm: Sequence[float] = (500.0, 440.0, 460.0),
    part: str = "training",
) -> Path:
    """Register the CTs of a cohort to one of them, and it to them. What is done already is not done again.

    The reference is the CT that differs least from the others. It is only where the maps meet: its own shape enters no
    mixture more than another's.

    Args:
        data_list_file: datalist.json of `prepare`.
        output: folder; by default `shapes` beside the datalist.
        spacing_mm: voxels of the registration.
        size_mm: box around the isocentre that is registered.
        part: of the datalist. Never the test patients.

    Returns:
        `shapes.pt` in that folder; `report.csv` beside it has the residual of every pair.

    Raises:
        FileNotFoundError, ValueError: as `load_cases`, or if fewer than two cases could be registered.
    """
    if part == "test":
        raise ValueError("shapes of test patients must not enter a training: choose another part")
    folder = Path(output) if output is not None else Path(data_list_file).parent / "shapes"
    grid = VolumeGrid(tuple(round(s / spacing_mm) for s in size_mm), (spacing_mm,) * 3)  # type: ignore[arg-type]
    cases = load_cases(data_list_file, part)
    if len(cases) < 2:
        raise ValueError(f"{data_list_file}: a shape model needs two cases or more under {part!r}, got {len(cases)}")
    # The label places the CT: its centre is the isocentre.
    hashes = {case["case"]: sha256_files([Path(case["source"]), Path(case["label"])]) for case in cases}
    volumes = {case["case"]: ct_on_grid(case, grid) for case in tqdm(cases, desc="CTs", disable=None)}
    reference = _most_typical(volumes)
    still = {key: torch.zeros(3, *grid.shape, dtype=torch.half) for key in ("to_reference", "from_reference")}
    pairs, fields = [], {reference: still}
    for name in tqdm([n for n in volumes if n != reference], desc="registrations", disable=None):
        found, record = {}, {"case": name, "reference": reference}
        for key, fixed, moving in (("to_reference", name, reference), ("from_reference", reference, name)):
            field = _registered(folder, key, fixed, moving, volumes, hashes, grid)
            before = _difference(volumes[fixed], volumes[moving])
            after = _difference(volumes[fixed], _warped(volumes[moving], field, grid))
            jacobian = smallest_jacobian(field, grid.spacing_mm)
            record |= {f"{key}_before_hu": round(before, 1), f"{key}_after_hu": round(after, 1)}
            record |= {f"{key}_jacobian": round(jacobian, 3)}
            if after > LARGEST_RESIDUAL_SHARE * before or jacobian < SMALLEST_JACOBIAN:
                record["left_out"] = f"{key}: {after:.0f} of {before:.0f} HU are left, smallest Jacobian {jacobian:.2f}"
            found[key] = field.half()
        if "left_out" in record:
            logger.warning("%s does not register, so its shape is left out: %s", name, record["left_out"])
        else:
            fields[name] = found
        pairs.append(record)
    if len(fields) < 2:
        raise ValueError(f"none of the {len(cases)} cases of {data_list_file} could be registered to {reference}")
    write_csv(pairs, folder / "report.csv")
    content = {"grid": {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm)}, "fields": fields}
    write_tensors(folder / "shapes.pt", {**content, "reference": reference, "case_sha256": hashes})
    return folder / "shapes.pt"


def ct_on_grid(case: Mapping[str, Any], grid: VolumeGrid) -> Tensor:
    """The CT of a case in HU (X, Y, Z) around its isocentre, air beside it, its first and last slice going on.

    Args:
        case: its "source" is sampled; its "label" says where the isocentre is.
        grid: may reach beyond the label.

    Raises:
        ValueError: no body within the grid.
    """
    load = Compose(
        [
            LoadNiftid(keys=["source", "label"]),
            SampleOnGridd(keys=["source"], reference_key="label", grid=grid, dtype=torch.float32),
        ]
    )
    volume: Tensor = load({key: case[key] for key in ("source", "label")})["source"][0]  # type: ignore[index,call-overload]
    scanned = (volume > AIR_HU / 2).flatten(0, 1).any(0).nonzero().flatten()
    if len(scanned) == 0:
        box = " x ".join(f"{2 * half:g}" for half in grid.half_extent_mm)
        raise ValueError(f"{case['source']}: no body within {box} mm around the isocentre")
    # Demons would pull the body to where air begins.
    inside = torch.arange(volume.shape[2]).clamp(int(scanned[0]), int(scanned[-1]))
    return volume[:, :, inside]


def _most_typical(volumes: Mapping[str, Tensor]) -> str:
    names = list(volumes)
    apart = torch.tensor([[_difference(volumes[a], volumes[b]) for b in names] for a in names])
    return names[int(apart.sum(0).argmin())]


def _difference(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference [HU], bone clipped, where either of them is body."""
    body = (a > AIR_HU / 2) | (b > AIR_HU / 2)
    return float((a - b).clamp(-1300, 1300).abs()[body].mean())


def _warped(moving: Tensor, displacement_mm: Tensor, grid: VolumeGrid) -> Tensor:
    positions = grid.points().movedim(-1, 0) + displacement_mm
    half = torch.tensor(grid.half_extent_mm)[:, None, None, None]
    where = (positions / half).flip(0).permute(1, 2, 3, 0)[None]
    return F.grid_sample((moving - AIR_HU)[None, None], where, align_corners=False)[0, 0] + AIR_HU


def _registered(
    folder: Path,
    key: str,
    fixed: str,
    moving: str,
    volumes: Mapping[str, Tensor],
    hashes: Mapping[str, str],
    grid: VolumeGrid,
) -> Tensor:
    """A registration, from its file where the same two CTs and settings have been registered before."""
    settings = (hashes[fixed], hashes[moving], grid, LEVELS, SMOOTHING_VOXELS, LARGEST_REGISTERED_HU)
    identity = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    path = folder / "pairs" / f"{identity}.pt"
    if path.is_file():
        return load_tensors(path)["displacement_mm"].float()
    field = register(volumes[fixed], volumes[moving], grid.spacing_mm)
    write_tensors(path, {"displacement_mm": field.half(), "fixed": fixed, "moving": moving, "direction": key})
    return field
