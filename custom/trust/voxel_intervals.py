"""Intervals around every voxel of a reconstruction, from residuals of CTs that are known.

The base is a table: by what the reconstruction shows at a voxel (its CT value, and how much values differ around it)
the quantiles of truth - reconstruction among calibrated patients. It is skewed where errors are, such as towards
vessels in a lung. One factor a tissue stretches it so that it holds for new patients (`patientwise_limit`); the score
of a voxel is the factor that it needs (conformalised quantiles as ratios, after Romano, Patterson, Candes, 2019, and
Sesia, Candes, 2020). A patient's score comes from a table that does not know the patient (cross-conformal, Vovk 2015).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor

from custom.metrics import body_mask
from custom.metrics.conformal import fewest_patients, patientwise_limit

__all__ = ["FOLDS", "TISSUES", "VoxelIntervals", "fit_voxel_intervals", "residual_table", "tissue_of"]

#: Tissue as it is predicted: CT values from which each begins, within the predicted body [HU].
TISSUES = {"lung": -math.inf, "between": -400.0, "soft": -150.0, "bone": 150.0}
#: Outside of the predicted body.
OUTSIDE = "outside"
#: Rows of the table: CT values that part them; those of `TISSUES` are among them [HU].
HU_EDGES = (-900.0, -800.0, -700.0, -550.0, -400.0, -250.0, -150.0, -60.0, 0.0, 50.0, 100.0, 150.0, 250.0)
#: Columns: standard deviation of the values in 3 x 3 x 3 voxels [HU].
CONTRAST_EDGES = (15.0, 40.0, 90.0, 180.0)
#: Residuals of a case and cell are kept as so many quantiles, each in the middle of its share.
_LEVELS = (np.arange(40) + 0.5) / 40
#: Fewest voxels of a cell with limits of its own; else it has those of its row.
_FEWEST_VOXELS = 500
#: No limit is nearer to the reconstruction [HU]: a CT's values are rounded and have noise.
_NEAREST_HU = 5.0
#: No table is made narrower than to this share: where nearly all residuals are 0, as in air, nothing would be left.
_SMALLEST_FACTOR = 0.2
#: A patient of whom more than so many times the promised share of places is missed (half of them, of 10 %) counts as
#: one of whom that many are: such a reconstruction is broken, which checks are for, and slack for it would make the
#: intervals of all others wider.
_WORST_TIMES = 5
#: Patients are parted into so many parts for tables that do not know them.
FOLDS = 5


@dataclass(frozen=True)
class VoxelIntervals:
    """Of one beam and number of views.

    Attributes:
        hu_edges, contrast_edges: that part the rows (within the body) and columns of the table [HU].
        lower, upper: of truth - reconstruction [HU], by row and column; the first row is outside of the body.
        factor: by tissue, what the table is multiplied with; None: the tissue was too rare, nothing is known.
        lowest: the smallest share of the body's voxels that held in a calibrated patient, by tables without them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    hu_edges: tuple[float, ...]
    contrast_edges: tuple[float, ...]
    lower: tuple[tuple[float, ...], ...]
    upper: tuple[tuple[float, ...], ...]
    factor: Mapping[str, float | None]
    lowest: float

    def __post_init__(self) -> None:
        for table in (self.lower, self.upper):
            if len(table) != len(self.hu_edges) + 2 or {len(row) for row in table} != {len(self.contrast_edges) + 1}:
                raise ValueError("lower and upper must have a row for every class of HU, and one for outside")
        if max(map(max, self.lower)) >= 0 or min(map(min, self.upper)) <= 0:
            raise ValueError("lower limits must be negative and upper ones positive")
        if set(self.factor) != {OUTSIDE, *TISSUES} or any(f is not None and f <= 0 for f in self.factor.values()):
            raise ValueError(f"factor must hold a positive number, or null, for {', '.join([OUTSIDE, *TISSUES])}")

    def around(self, hu: Tensor, hu_window: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Lower and upper limits (X, Y, Z) [HU], within the window; where nothing is known, the window.

        Args:
            hu: (X, Y, Z) HU, of voxels as they were calibrated.
            hu_window: of the model.
        """
        row, column = _cells(hu, self.hu_edges, self.contrast_edges)
        tissue = tissue_of(hu)
        names = (OUTSIDE, *TISSUES)
        factor = torch.tensor([math.inf if (f := self.factor[name]) is None else f for name in names])[tissue]
        low, high = (factor * torch.tensor(table)[row, column] for table in (self.lower, self.upper))
        return (hu + low).clamp(*hu_window), (hu + high).clamp(*hu_window)


def tissue_of(hu: Tensor) -> Tensor:
    """0 outside of the predicted body, else 1 and more in the order of `TISSUES`; (X, Y, Z) int64."""
    body = torch.from_numpy(body_mask(hu))
    starts = torch.tensor(list(TISSUES.values())[1:])
    return torch.where(body, 1 + torch.bucketize(hu.float().contiguous(), starts, right=True), 0)


def _cells(hu: Tensor, hu_edges: Sequence[float], contrast_edges: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Row and column of every voxel."""
    hu = hu.float().contiguous()
    body = torch.from_numpy(body_mask(hu))
    row = torch.where(body, 1 + torch.bucketize(hu, torch.tensor(hu_edges), right=True), 0)
    mean, square = (_around(volume) for volume in (hu.double(), hu.double().square()))
    contrast = (square - mean.square()).clamp(min=0).sqrt().float()
    return row, torch.bucketize(contrast, torch.tensor(contrast_edges), right=True)


def _around(volume: Tensor) -> Tensor:
    return F.avg_pool3d(volume[None, None], 3, 1, 1, count_include_pad=False)[0, 0]


def residual_table(hu: Tensor, truth: Tensor) -> list[list[Any]]:
    """What calibration keeps of a case: for each cell that occurs row, column, voxels, and the residuals' quantiles.

    Args:
        hu, truth: (X, Y, Z) HU, within the window.
    """
    row, column = (where.numpy().ravel() for where in _cells(hu, HU_EDGES, CONTRAST_EDGES))
    cell, residual = row * (len(CONTRAST_EDGES) + 1) + column, (truth - hu).numpy().ravel()
    found = []
    for one in np.unique(cell):
        values = residual[cell == one]
        place = divmod(int(one), len(CONTRAST_EDGES) + 1)
        found.append([*place, len(values), np.quantile(values, _LEVELS).round().tolist()])
    return found


def fit_voxel_intervals(
    cases: Sequence[Sequence[Sequence[Any]]], patients: Sequence[str], coverage: float = 0.9
) -> VoxelIntervals:
    """The intervals of one group of cases.

    Args:
        cases: of `residual_table`.
        patients: whose each case is; cases of one patient count as one.
        coverage: share of a new patient's voxels that hold, in the mean over patients.

    Raises:
        ValueError: for too few patients.
    """
    names = sorted(set(patients))
    if len(names) < fewest_patients(coverage):
        raise ValueError(f"intervals for {coverage:.0%} need {fewest_patients(coverage)} patients, got {len(names)}")
    own = {name: [row for case, p in zip(cases, patients, strict=True) if p == name for row in case] for name in names}
    folds = min(FOLDS, len(names))
    scored: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for fold in range(folds):
        low, high = _table([own[n] for i, n in enumerate(names) if i % folds != fold], coverage)
        for name in names[fold::folds]:
            scored[name] = [_scores(row, low, high) for row in own[name]]
    worst = min(1.0, _WORST_TIMES * (1 - coverage))
    factor: dict[str, float | None] = {}
    for index, tissue in enumerate((OUTSIDE, *TISSUES)):
        found = [_joined([s for s in scored[name] if s[2][0] == index]) for name in names]
        found = [one for one in found if len(one[0])]
        scores, weights = [one[0] for one in found], [one[1] for one in found]
        enough = len(found) >= fewest_patients(coverage)
        if enough:
            factor[tissue] = max(_SMALLEST_FACTOR, patientwise_limit(scores, coverage, weights, worst))
        else:
            factor[tissue] = None
    limits = np.array([math.inf if f is None else f for f in factor.values()])
    held = []
    for name in names:
        inside = [s for s in scored[name] if s[2][0] > 0]
        score, weight = _joined(inside)
        kept = score <= limits[np.concatenate([s[2] for s in inside])] if inside else np.ones(0)
        held.append(float((kept * weight).sum() / weight.sum()) if inside else 1.0)
    low, high = _table(list(own.values()), coverage)
    return VoxelIntervals(
        HU_EDGES, CONTRAST_EDGES, tuple(map(tuple, low.tolist())), tuple(map(tuple, high.tolist())), factor, min(held)
    )


def _scores(row: Sequence[Any], low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one cell: scores, how many voxels each stands for, and the tissue's index."""
    r, c, count, quantiles = row
    values = np.asarray(quantiles, float)
    score = np.maximum(values / high[r, c], values / low[r, c])
    starts = list(TISSUES.values())[1:]
    tissue = 0 if r == 0 else 1 + int(np.searchsorted(starts, (-math.inf, *HU_EDGES)[r - 1], side="right"))
    return score, np.full(len(values), count / len(values)), np.full(len(values), tissue)


def _joined(found: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray]:
    if not found:
        return np.zeros(0), np.zeros(0)
    return np.concatenate([s[0] for s in found]), np.concatenate([s[1] for s in found])


def _table(patients: Sequence[Sequence[Sequence[Any]]], coverage: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper quantile of the residuals in every cell (rows, columns)."""
    shape = len(HU_EDGES) + 2, len(CONTRAST_EDGES) + 1
    low, high = np.full(shape, -_NEAREST_HU), np.full(shape, _NEAREST_HU)
    levels = np.array([(1 - coverage) / 2, (1 + coverage) / 2])
    every = [row for patient in patients for row in patient]
    for r in range(shape[0]):
        in_row = [row for row in every if row[0] == r]
        for c in range(shape[1]):
            in_cell = [row for row in in_row if row[1] == c]
            used = in_cell if sum(row[2] for row in in_cell) >= _FEWEST_VOXELS else in_row
            if not used:
                continue
            values = np.concatenate([row[3] for row in used])
            weight = np.concatenate([np.full(len(row[3]), row[2] / len(row[3])) for row in used])
            order = np.argsort(values, kind="stable")
            share = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
            found = np.interp(levels, share, values[order])
            low[r, c], high[r, c] = min(found[0], -_NEAREST_HU), max(found[1], _NEAREST_HU)
    return low.round(1), high.round(1)
