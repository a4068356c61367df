"""Schedules of the learning rate."""

from __future__ import annotations

import math

import torch

__all__ = ["constant_then_linear", "warmup_cosine"]


def warmup_cosine(optimizer: torch.optim.Optimizer, warmup: int, total: int, final: float = 0.02) -> object:
    """Learning rate factor: linear over `warmup` steps, then a half cosine to `final` at step `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, total - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def constant_then_linear(optimizer: torch.optim.Optimizer, constant: int, total: int) -> object:
    """Learning rate factor: 1 for `constant` steps, then down to 0 at step `total`.

    Raises:
        ValueError: if there is nothing of both, or a negative part.
    """
    if not 0 <= constant <= total or total < 1:
        raise ValueError(f"a training of {total} steps cannot keep its learning rate for {constant} of them")
    falling = max(1, total - constant)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, max(0.0, (total - step) / falling)))
