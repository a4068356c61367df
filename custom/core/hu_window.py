"""Between Hounsfield units and [-1, 1], the range that networks work in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = [
    "hu_to_unit",
    "unit_to_hu",
]


def hu_to_unit(hu: Tensor, hu_window: Sequence[float]) -> Tensor:
    """HU to [-1, 1], clipped to the window."""
    low, high = hu_window
    return (hu.float().clamp(low, high) - low) / (high - low) * 2 - 1


def unit_to_hu(unit: Tensor, hu_window: Sequence[float]) -> Tensor:
    """[-1, 1] to HU, clipped to the window."""
    low, high = hu_window
    return (unit.float().clamp(-1, 1) + 1) / 2 * (high - low) + low
