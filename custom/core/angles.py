"""Differences of angles in degrees, modulo 360."""

from __future__ import annotations

__all__ = ["angle_difference_deg"]


def angle_difference_deg(one: float, other: float) -> float:
    """`one` less `other` [degrees], the short way round: in [-180, 180)."""
    return (one - other + 180) % 360 - 180
