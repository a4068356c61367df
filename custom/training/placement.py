"""A transform that remembers where a CT lies, so that what is computed from it is placed there."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.transforms import MapTransform

__all__ = ["RememberCentred"]


class RememberCentred(MapTransform):
    """Notes the centre of a CT as the isocentre, and its name, before it is resampled.

    Args:
        keys: one MetaTensor (1, X, Y, Z).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds "isocenter_mm" (3,), float64, in the CT's frame, and "name", the file's name without suffixes."""
        out = dict(data)
        for key in self.key_iterator(out):
            volume = out[key]
            middle = torch.tensor([(n - 1) / 2 for n in volume.shape[1:]] + [1.0], dtype=torch.float64)
            out["isocenter_mm"] = (torch.as_tensor(volume.affine).double() @ middle)[:3]
            out["name"] = Path(os.fspath(volume.meta.get("filename_or_obj", "volume"))).name.split(".")[0]
        return out
