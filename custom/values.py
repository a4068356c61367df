"""Between Hounsfield units and the range that networks work in, and the precision that they compute in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["check_precision", "hu_to_unit", "unit_to_hu", "uses_bf16"]

PRECISIONS = ("auto", "bf16", "fp32")


def hu_to_unit(hu: Tensor, hu_window: Sequence[float]) -> Tensor:
    """HU to [-1, 1], clipped to the window."""
    low, high = hu_window
    return (hu.float().clamp(low, high) - low) / (high - low) * 2 - 1


def unit_to_hu(unit: Tensor, hu_window: Sequence[float]) -> Tensor:
    """[-1, 1] to HU, clipped to the window."""
    low, high = hu_window
    return (unit.float().clamp(-1, 1) + 1) / 2 * (high - low) + low


def check_precision(precision: str) -> str:
    """`precision`, if it is "auto", "bf16" or "fp32"; else ValueError."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    return precision


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether convolutions and linear layers run in bfloat16 on this device.

    "auto" chooses it on GPUs that have it, and on processors for which oneDNN has bfloat16 kernels (x86 with AVX-512).
    On others a bfloat16 convolution falls back to reference code that is some hundred times slower than float32.
    """
    if check_precision(precision) != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
