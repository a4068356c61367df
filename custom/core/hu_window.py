"""Conversion between Hounsfield units and [-1, 1], the range that networks work in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "NotFinite",
    "hu_to_unit",
    "require_finite",
    "unit_to_hu",
]


def hu_to_unit(hu: Tensor, hu_window: Sequence[float]) -> Tensor:
    """HU to [-1, 1], clipped to the window."""
    low, high = hu_window
    return (hu.float().clamp(low, high) - low) / (high - low) * 2 - 1


class NotFinite(ValueError):
    """A network gave what is no number."""


def require_finite(volume: Tensor, who: str) -> Tensor:
    """The volume itself, if it holds numbers alone: as whole HU a NaN would be 0, which is water.

    Args:
        volume: of a network.
        who: made it; the error begins with it.

    Raises:
        NotFinite: it holds NaN or infinity.
    """
    bad = volume.numel() - int(torch.isfinite(volume).sum())
    if bad:
        raise NotFinite(f"{who} gave {bad} of {volume.numel()} values that are NaN or infinite: there is no volume")
    return volume


def unit_to_hu(unit: Tensor, hu_window: Sequence[float], who: str = "the network") -> Tensor:
    """[-1, 1] to HU, clipped to the window.

    Raises:
        NotFinite: `who` gave NaN or infinity.
    """
    low, high = hu_window
    require_finite(unit, who)
    return (unit.float().clamp(-1, 1) + 1) / 2 * (high - low) + low
