"""`usable_device`: the torch device that is asked for, tried before long work starts."""

from __future__ import annotations

import torch

__all__ = ["usable_device"]


def usable_device(device: str | torch.device | None) -> torch.device:
    """The torch device; None: a GPU where there is one, else the CPU.

    Raises:
        ValueError: if it is none, or is not there.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros((), device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error
    return chosen
