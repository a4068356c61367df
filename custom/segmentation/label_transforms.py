"""MONAI transforms from a CT and its label map to what a segmenter learns, and back to a label map."""

from __future__ import annotations

import os
import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.engines import PrepareBatch
from monai.transforms import MapTransform, Transform
from torch import Tensor

from custom.core.files import write_json
from custom.core.hu_window import hu_to_unit
from custom.data.augmentation import RandThoraxAugment
from custom.data.transforms import PlaceOnGridd
from custom.geometry import VolumeGrid
from custom.segmentation.classes import class_masks, class_rules, pack, unpack
from custom.segmentation.weak_labels import weak_masks

__all__ = ["ClassMasksd", "JitterHUd", "LabelledVolumes", "PlaceClassesd", "UnpackClassesd", "WriteClassNamesd"]

#: Outside the labelled cube, air is known to be nothing: no organ goes on there.
_AIR_HU = -950.0


class ClassMasksd(Transform):
    """A case's label map, or what its HU tell, as classes on a grid around the isocentre.

    A voxel of the grid belongs to a class where more than half of it does. What the label map does not know, and what
    lies outside its cube, is open.

    Args:
        classes: names, in the order of the network's channels.
        grid: voxels around the isocentre, the cube's centre.
        label_names: further names by class, see `custom.segmentation.classes.class_rules`.
        air_key: CT (1, *grid.shape) in HU, where the grid reaches beyond the cube: the air in it is no organ.

    Raises:
        ValueError: while running: a label map on another grid than its CT, or that is no label map.
    """

    def __init__(
        self,
        classes: Sequence[str],
        grid: VolumeGrid,
        label_names: Mapping[str, Sequence[str]] | None = None,
        air_key: str | None = None,
    ) -> None:
        self.classes, self.grid, self.rules = list(classes), grid, class_rules(classes, label_names)
        self.air_key = air_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds the packed "classes" of an "image" and, where there is one, its "segmentation".

        "names", "known" and "weak" of `load_labelled_cases` say what they are made of.
        """
        out = dict(data)
        ct = data["image"]
        hu = np.asarray(ct, dtype=np.float32)[0]
        affine = np.asarray(ct.affine, dtype=np.float64)
        masks: dict[str, np.ndarray] = {}
        doubt: dict[str, np.ndarray] = {}
        strange = np.zeros(hu.shape, dtype=bool)
        if "segmentation" in data:
            labels = self._labels(data["segmentation"], hu.shape, affine)
            masks, strange = class_masks(labels, data["names"], self.rules)
        if data.get("weak"):
            weak, weak_doubt = weak_masks(hu, affine[:3, :3].diagonal().tolist())
            masks |= {name: weak[name] for name in data["weak"] if name in weak}
            doubt = {name: mask for name, mask in weak_doubt.items() if name in data["weak"]}
        shares = {name: self._on_grid(mask, affine) for name, mask in masks.items()}
        cube = self._on_grid(np.ones(hu.shape, dtype=bool), affine)
        sure = self._on_grid(~strange, affine) if strange.any() else cube
        none = torch.zeros_like(cube)
        member, unknown = [], []
        for name in self.classes:
            closed = none if name not in masks else sure
            share = shares.get(name, none)
            if name in doubt or (name in masks and strange.any()):
                open_mask = doubt.get(name, False) | strange
                closed, share = self._on_grid(~open_mask, affine), self._on_grid(masks[name] & ~open_mask, affine)
            # More than half of what is known of the voxel; open where less than half of it is.
            member.append(share > 0.5 * closed)
            unknown.append(closed < 0.5)
        packed_member, unknown_mask = torch.cat(member), torch.cat(unknown)
        if self.air_key is not None:
            air = torch.as_tensor(np.asarray(data[self.air_key])) < _AIR_HU
            unknown_mask &= ~(air & (cube < 0.5))
        out["classes"] = pack(packed_member, unknown_mask)
        return out

    def _labels(self, segmentation: Any, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
        values = np.asarray(segmentation)[0]
        name = getattr(segmentation, "meta", {}).get("filename_or_obj", "the label map")
        other = np.asarray(segmentation.affine, dtype=np.float64)
        corner = np.array([*(np.array(shape) - 1), 1.0])
        apart = max(np.abs((other - affine)[:3, 3]).max(), np.abs((other - affine) @ corner).max())
        if values.shape != shape or apart > 0.1 * np.abs(affine[:3, :3]).max():
            raise ValueError(
                f"{name} lies on another grid than its CT: {values.shape} voxels instead of {shape}, up to "
                f"{apart:.1f} mm apart; 'fewview-ct prepare' with --labels brings label maps onto the CT's grid"
            )
        if not np.array_equal(values, np.rint(values)) or values.min() < 0:
            raise ValueError(f"{name} is no label map: values from {values.min():g} to {values.max():g}")
        return values.astype(np.int32)

    def _on_grid(self, mask: np.ndarray, affine: np.ndarray) -> Tensor:
        """Share (1, *grid.shape) of each voxel of the grid that a mask (X, Y, Z) around the isocentre fills."""
        filled = torch.from_numpy(mask).float()
        for axis in range(3):  # the axis in front is used up, its result goes to the end
            weights = _overlaps(self.grid, axis, mask.shape[axis], float(affine[axis, axis]))
            filled = torch.tensordot(filled, weights, dims=([0], [1]))
        return filled[None]


def _overlaps(grid: VolumeGrid, axis: int, count: int, spacing: float) -> Tensor:
    """Share (n, count) of each of the grid's n intervals along an axis that lies in each of `count` centred ones."""
    centres = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * spacing
    ours = grid.axis_mm(axis, dtype=torch.float64)[:, None]
    width = grid.spacing_mm[axis]
    top = torch.minimum(ours + width / 2, centres + spacing / 2)
    bottom = torch.maximum(ours - width / 2, centres - spacing / 2)
    return ((top - bottom).clamp(min=0) / width).float()


class UnpackClassesd(MapTransform):
    """Packed classes (1, X, Y, Z) as "label", uint8 (C, X, Y, Z): 0, 1, and 255 where the truth is not known.

    Args:
        keys: one entry, which is dropped.
        count: C.
    """

    def __init__(self, keys: KeysCollection, count: int) -> None:
        super().__init__(keys)
        self.count = count

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(data):
            out["label"] = unpack(torch.as_tensor(out.pop(key)), self.count)
        return out


class JitterHUd(MapTransform):
    """Another HU calibration and noise for the cases whose entry "jitter" says so, always the same for a case.

    Args:
        keys: CTs (1, *grid.shape) in HU.
        grid: theirs.
        lung_hu, soft_hu, bone_gain, noise_hu: largest changes, see `custom.data.augmentation.RandThoraxAugment`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        grid: VolumeGrid,
        lung_hu: float = 40.0,
        soft_hu: float = 20.0,
        bone_gain: float = 0.15,
        noise_hu: float = 30.0,
    ) -> None:
        super().__init__(keys)
        still = {"scale": 0.0, "rotation_deg": 0.0, "shift_mm": 0.0, "shear": 0.0, "warp_mm": 0.0}
        spacing = {"output_spacing_mm": grid.spacing_mm, "spacing_mm": grid.spacing_mm}
        change = {"lung_hu": lung_hu, "soft_hu": soft_hu, "bone_gain": bone_gain, "noise_hu": noise_hu}
        self.augment = RandThoraxAugment(grid.shape, **spacing, **still, **change)  # type: ignore[arg-type]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        if out.get("jitter"):
            self.augment.set_random_state(zlib.crc32(str(out.get("case", "")).encode()))
            for key in self.key_iterator(out):
                out[key] = self.augment(torch.as_tensor(out[key]))
        return out


class LabelledVolumes(PrepareBatch):
    """CTs as a segmenter sees them, with their classes.

    Args:
        hu_window: CT values that become -1 and 1.
        image_key: batch entry (B, 1, X, Y, Z) in HU.
    """

    def __init__(self, hu_window: Sequence[float], image_key: str = "image") -> None:
        self.hu_window, self.image_key = tuple(hu_window), image_key

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Images (B, 1, X, Y, Z) in [-1, 1], and the entry "label", (B, C, X, Y, Z), where there is one."""
        volume = torch.as_tensor(batchdata[self.image_key]).to(device, torch.float32, non_blocking=non_blocking)
        label = None
        if "label" in batchdata:
            label = torch.as_tensor(batchdata["label"]).to(device, non_blocking=non_blocking)
            label = label.as_subclass(Tensor)
        return hu_to_unit(volume.as_subclass(Tensor), self.hu_window), label


class PlaceClassesd(PlaceOnGridd):
    """A segmenter's logits (C, X, Y, Z) as one label map (1, X, Y, Z) in the CT's frame: 0 for nothing, n for the n-th
    class; where classes overlap, the later one stands."""

    def shown(self, value: Tensor) -> Tensor:
        numbers = torch.arange(1, len(value) + 1, device=value.device).reshape(-1, 1, 1, 1)
        return ((value > 0) * numbers).amax(0, keepdim=True).to(torch.uint8)


class WriteClassNamesd(Transform):
    """Writes the names of a label map's numbers beside it, as `fewview-ct prepare` reads them.

    Args:
        classes: names of 1, 2, ...
        output_dir: folder of the label maps.
        postfix: of their file names.
        name_key: entry that names the file.
    """

    def __init__(
        self, classes: Sequence[str], output_dir: str | os.PathLike[str], postfix: str = "seg", name_key: str = "name"
    ) -> None:
        self.classes, self.output_dir, self.postfix, self.name_key = list(classes), Path(output_dir), postfix, name_key

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        names = {str(number): name for number, name in enumerate(self.classes, 1)}
        write_json(self.output_dir / f"{data.get(self.name_key, 'case')}_{self.postfix}.json", names)
        return data
