"""Sparse linear maps over the rows of a table, which sampling and averaging of feature maps come down to.

Every output row is a weighted sum of a few table rows ("taps"). With the channels innermost each tap moves whole
cache lines, which `torch.nn.functional.embedding_bag` does at memory speed; `grid_sample` gathers single numbers. The
adjoint is the same operation on the transposed taps, so that the gradient needs no scatter, and is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Plan", "SinglePlan", "Taps", "channels_innermost", "gather_rows"]

BLOCK_BYTES = 2**20
COPY_BYTES = 2**26


class Taps:
    """A sparse matrix with T entries in each of its M rows.

    Args:
        indices: (M, T) int32, which rows of the table.
        weights: (M, T) floating point.
        columns: number of rows R of the table.
    """

    def __init__(self, indices: Tensor, weights: Tensor, columns: int) -> None:
        self.indices, self.weights, self.columns = indices, weights, columns

    def apply(self, table: Tensor, rows: slice = slice(None)) -> Tensor:
        """(R, D) to (M, D), or to some of the M rows."""
        weights = self.weights[rows].to(table.dtype)
        return F.embedding_bag(self.indices[rows], table, mode="sum", per_sample_weights=weights)

    def apply_transposed(self, table: Tensor) -> Tensor:
        """(M, D) to (R, D)."""
        indices, offsets, weights = self._transposed
        weights = weights.to(table.dtype)
        return F.embedding_bag(
            indices, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
        )

    @cached_property
    def _transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Indices into the M rows, sorted by table row; where each table row begins; weights."""
        target, order = torch.sort(self.indices.flatten(), stable=True)
        borders = torch.arange(self.columns + 1, device=target.device, dtype=target.dtype)
        offsets = torch.searchsorted(target, borders, out_int32=True)
        rows = torch.div(order, self.indices.shape[1], rounding_mode="floor").to(torch.int32)
        return rows, offsets, self.weights.flatten()[order]


class Plan(Protocol):
    """A sparse matrix (rows, columns) that is made of blocks, built when they are needed."""

    rows: int
    columns: int

    def pieces(self) -> Iterator[tuple[slice, slice, Taps]]:
        """Blocks: the rows and the columns that they span, and their taps. Every row is in exactly one block."""
        ...


class SinglePlan:
    """A plan of one block."""

    def __init__(self, indices: Tensor, weights: Tensor, columns: int) -> None:
        self.taps = Taps(indices, weights, columns)
        self.rows, self.columns = len(indices), columns

    def pieces(self) -> Iterator[tuple[slice, slice, Taps]]:
        yield slice(0, self.rows), slice(0, self.columns), self.taps


def gather_rows(table: Tensor, plan: Plan, dtype: torch.dtype | None = None) -> Tensor:
    """Apply a plan to a table; differentiable in the table, to any order.

    Args:
        table: (R, D), float32 or float64.
        plan: R table rows to M output rows.
        dtype: of the output, default the table's. Sums are in the table's dtype.

    Returns:
        (M, D).
    """
    return _Gather.apply(table, plan, dtype or table.dtype)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
        ctx.plan, ctx.dtype = plan, table.dtype
        if dtype == table.dtype and isinstance(plan, SinglePlan):
            return plan.taps.apply(table)
        out = table.new_empty(plan.rows, table.shape[1], dtype=dtype)
        # On a CPU a block of results must not leave the cache before it is copied to its place.
        step = plan.rows if table.is_cuda else max(1, BLOCK_BYTES // (table.shape[1] * table.element_size()))
        for rows, columns, taps in plan.pieces():
            for start in range(0, rows.stop - rows.start, step):
                out[rows][start : start + step] = taps.apply(table[columns], slice(start, start + step))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Scatter.apply(grads[0], ctx.plan, ctx.dtype), None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
        ctx.plan, ctx.dtype = plan, values.dtype
        values = values.contiguous()
        if isinstance(plan, SinglePlan) and values.dtype == dtype:
            return plan.taps.apply_transposed(values)
        depth = values.shape[1]
        out = values.new_zeros(plan.columns, depth, dtype=dtype)
        for rows, columns, taps in plan.pieces():
            # Part by part, so that low precision is never copied to float32 as a whole.
            step = max(1, COPY_BYTES // ((rows.stop - rows.start) * out.element_size()))
            for start in range(0, depth, step):
                part = slice(start, start + step)
                out[columns, part] += taps.apply_transposed(values[rows, part].to(dtype).contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return gather_rows(grads[0], ctx.plan, ctx.dtype), None, None


def channels_innermost(images: Tensor) -> Tensor:
    """(N, C, V, U) to contiguous (N, V, U, C); free for images in channels_last memory."""
    if images.is_contiguous() and min(images.shape[1], images.shape[2] * images.shape[3]) > 1:
        return _ChannelsInnermost.apply(images)
    return images.permute(0, 2, 3, 1).contiguous()


class _ChannelsInnermost(torch.autograd.Function):
    """Image by image, because torch transposes matrices three times as fast as it permutes higher tensors."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        count, channels, rows, columns = images.shape
        return _transpose_each(images.view(count, channels, -1)).view(count, rows, columns, channels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _ChannelsOutermost.apply(grads[0].contiguous())


class _ChannelsOutermost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        count, rows, columns, channels = maps.shape
        return _transpose_each(maps.view(count, -1, channels)).view(count, channels, rows, columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _ChannelsInnermost.apply(grads[0].contiguous())


def _transpose_each(matrices: Tensor) -> Tensor:
    out = matrices.new_empty(matrices.shape[0], matrices.shape[2], matrices.shape[1])
    for target, matrix in zip(out, matrices, strict=True):
        target.copy_(matrix.t())
    return out
