"""`LinearOperator`, the base of all projection operators: a linear map and its exact transpose."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

from custom.geometry import VolumeGrid

__all__ = ["LinearOperator", "csr", "exact_matmul", "transposed_csr"]


class _Apply(torch.autograd.Function):
    """A linear map whose gradient is its transpose; differentiable any number of times."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, apply: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.maps = apply, transpose
        # Autocast may be on where a backward pass runs, even if it was off in the forward pass.
        with torch.autocast(x.device.type, enabled=False):
            return apply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        apply, transpose = ctx.maps
        return _Apply.apply(gradients[0], transpose, apply), None, None


class LinearOperator(ABC):
    """Volume (B, X, Y, Z) to radiographs (B, K, V, U) for one set of views, with the exact transpose.

    Args:
        views: (K, 13), of the dtype and on the device of the volumes.
        grid: the volume's grid.
        detector_shape: rows and columns (V, U).
    """

    def __init__(self, views: Tensor, grid: VolumeGrid, detector_shape: Sequence[int]) -> None:
        self.views, self.grid = views.detach(), grid
        self.detector_shape = (int(detector_shape[0]), int(detector_shape[1]))

    def forward(self, volume: Float[Tensor, "B X Y Z"]) -> Float[Tensor, "B K V U"]:
        """Line integrals, in the volume's unit times mm."""
        return _Apply.apply(volume, self._forward, self._transpose)

    def transpose(self, image: Float[Tensor, "B K V U"]) -> Float[Tensor, "B X Y Z"]:
        """The adjoint: <forward(x), y> = <x, transpose(y)>."""
        return _Apply.apply(image, self._transpose, self._forward)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Within this context an operator may hold more memory to be faster when it is applied many times."""
        yield

    @abstractmethod
    def _forward(self, volume: Tensor) -> Tensor: ...

    @abstractmethod
    def _transpose(self, image: Tensor) -> Tensor: ...


@contextmanager
def exact_matmul() -> Iterator[None]:
    """Matrix products in true float32, whatever precision the user chose for the network's (TF32, bf16)."""
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)


def csr(pointer: Tensor, column: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """A CSR tensor. 32-bit indices let MKL work on the arrays as they are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            pointer.to(torch.int32), column.to(torch.int32), values, size=tuple(shape), check_invariants=False
        )


def transposed_csr(matrix: Tensor) -> Tensor:
    """The transpose, again as CSR without zeros, so that both directions multiply at full speed."""
    arrays = (part.cpu().numpy() for part in (matrix.values(), matrix.col_indices(), matrix.crow_indices()))
    turned = scipy.sparse.csr_matrix(tuple(np.array(a) for a in arrays), shape=tuple(matrix.shape))
    turned.eliminate_zeros()
    turned = turned.tocsc()
    pointer, column, values = (
        torch.from_numpy(a).to(matrix.device) for a in (turned.indptr, turned.indices, turned.data)
    )
    return csr(pointer, column, values, turned.shape[::-1])
