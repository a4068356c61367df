"""Transforms that remember where a CT lies, and place what is computed from it there."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from custom.geometry import VolumeGrid

__all__ = ["PlaceLatentsd", "RememberCentred"]


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


class PlaceLatentsd(MapTransform):
    """Latents with the affine of their grid in the CT's frame.

    Args:
        keys: latents (D, x, y, z), as a `VQGAN` gives them.
        grid: its `latent_grid`.
        name_key: entry that names the output file.
    """

    def __init__(
        self, keys: KeysCollection, grid: VolumeGrid, name_key: str = "name", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.grid, self.name_key = grid, name_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """MetaTensors (D, x, y, z), float32."""
        out = dict(data)
        affine = self.grid.affine(torch.as_tensor(out["isocenter_mm"]).tolist())
        for key in self.key_iterator(out):
            meta = {"filename_or_obj": f"{out.get(self.name_key, 'latent')}.nii.gz"}
            out[key] = MetaTensor(torch.as_tensor(out[key]).float(), affine=torch.as_tensor(affine), meta=meta)
        return out
