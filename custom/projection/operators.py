"""Choice of the projection operator: the fastest one that is exact for a set of views."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from custom.geometry import VolumeGrid, is_vertical_parallel
from custom.projection.joseph_operator import JosephOperator, joseph
from custom.projection.linear_operator import LinearOperator
from custom.projection.parallel_operator import ParallelOperator

__all__ = ["JosephOperator", "LinearOperator", "ParallelOperator", "joseph", "make_operator"]


def make_operator(views: Tensor, grid: VolumeGrid, detector_shape: Sequence[int]) -> LinearOperator:
    """The fastest operator that is exact for these views (K, 13): upright parallel beams factorise."""
    if bool(is_vertical_parallel(views).all()):
        return ParallelOperator(views, grid, detector_shape)
    return JosephOperator(views, grid, detector_shape)
