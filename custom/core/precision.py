"""Choice of the precision that networks compute in: bf16 or float32."""

from __future__ import annotations

import torch

__all__ = ["PRECISIONS", "check_precision", "mixed_precision", "uses_bf16"]

PRECISIONS = ("auto", "bf16", "fp32")
#: Asked once: TorchScript cannot trace the question.
_CPU_HAS_BF16 = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
    return device.type == "cpu" and _CPU_HAS_BF16


def mixed_precision(precision: str, device: torch.device) -> torch.autocast:
    """A context in which convolutions and linear layers run in bfloat16 where `uses_bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(precision, device))
