"""An acquisition as one validated object that can be written to a file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from custom.core.files import read_json_object, write_json
from custom.core.limits import check_count
from custom.geometry.grid import VolumeGrid
from custom.geometry.validation import validate
from custom.geometry.view_row import ViewRow
from custom.geometry.views import BEAMS, CONE, is_cone, views_from_angles

__all__ = ["JSON_FORMAT", "Geometry"]

JSON_FORMAT = "fewview-ct geometry 1"

#: Pixels of one radiograph.
LARGEST_DETECTOR = 50_000_000


@dataclass(frozen=True, eq=False)
class Geometry:
    """An acquisition: views, detector and volume grid.

    Args:
        views: (K, 13), see the package's table. Kept in float64 on the CPU, directions of parallel rays at unit length;
            `tensor()` gives what networks take.
        detector_shape: rows and columns (V, U) of every radiograph.
        grid: the volume that is projected or reconstructed.
        isocenter_mm: the isocentre in the CT's own frame (RAS+), None where there is no CT.

    Raises:
        ValueError: for NaN, a degenerate or back-to-front detector, a source inside the volume, or a detector that
            misses the volume.
    """

    views: Tensor
    detector_shape: tuple[int, int] = (128, 192)
    grid: VolumeGrid = field(default_factory=VolumeGrid)
    isocenter_mm: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", torch.as_tensor(self.views).detach().to("cpu", torch.float64).clone())
        object.__setattr__(self, "detector_shape", tuple(int(n) for n in self.detector_shape))
        if self.isocenter_mm is not None:
            object.__setattr__(self, "isocenter_mm", tuple(float(c) for c in self.isocenter_mm))
            if len(self.isocenter_mm) != 3 or not all(map(math.isfinite, self.isocenter_mm)):
                raise ValueError(f"isocenter_mm must be three finite numbers, got {self.isocenter_mm}")
        if len(self.detector_shape) == 2:
            check_count("detector", "pixels", math.prod(self.detector_shape), LARGEST_DETECTOR)
        validate(self.views, self.detector_shape, self.grid)
        heads = self.views[:, 0:3]
        length = heads.norm(dim=-1, keepdim=True)
        # A length that is one to rounding stays as it is, so that a file is read back bit for bit.
        to_unit = ~is_cone(self.views)[:, None] & ((length - 1).abs() > 1e-12)
        self.views[:, 0:3] = torch.where(to_unit, heads / length, heads)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Geometry):
            return NotImplemented
        mine, others = ((g.detector_shape, g.grid, g.isocenter_mm) for g in (self, other))
        return mine == others and torch.equal(self.views, other.views)

    def __hash__(self) -> int:
        return hash((self.detector_shape, self.grid, self.isocenter_mm, tuple(self.views.flatten().tolist())))

    @classmethod
    def from_angles(
        cls,
        angles_deg: Sequence[float],
        beam: str = "cone",
        source_to_isocenter_mm: float = 1000.0,
        source_to_detector_mm: float = 1500.0,
        detector_shape: Sequence[int] | None = None,
        pixel_mm: float | Sequence[float] | None = None,
        detector_offset_mm: Sequence[float] = (0.0, 0.0),
        grid: VolumeGrid | None = None,
        isocenter_mm: Sequence[float] | None = None,
    ) -> Geometry:
        """Views around the superior axis (`views_from_angles`).

        The detector defaults to one that sees the cube's diagonal: half as many columns again as the grid is wide,
        pixels of the voxel's size, magnified for cone beam.
        """
        grid = grid or VolumeGrid()
        if pixel_mm is None:
            magnification = source_to_detector_mm / source_to_isocenter_mm if beam == "cone" else 1.0
            pixel_mm = grid.spacing_mm[0] * magnification
        if detector_shape is None:
            detector_shape = (grid.shape[2], math.ceil(max(grid.shape[:2]) * 1.5))
        views = views_from_angles(
            list(angles_deg), beam, source_to_isocenter_mm, source_to_detector_mm, pixel_mm, detector_offset_mm
        )
        return cls(views, tuple(detector_shape), grid, None if isocenter_mm is None else tuple(isocenter_mm))  # type: ignore[arg-type]

    @classmethod
    def from_poses(
        cls,
        source_mm: Any,
        detector_center_mm: Any,
        u_step_mm: Any,
        v_step_mm: Any,
        beam: str = "cone",
        **keywords: Any,
    ) -> Geometry:
        """Explicit poses: four arrays (K, 3) in the isocentre frame; with beam="parallel" the first is the direction
        of the rays, of any length. `keywords` go to the constructor."""
        if beam not in BEAMS:
            raise ValueError(f"beam must be one of {sorted(BEAMS)}, got {beam!r}")
        parts = [
            torch.as_tensor(np.asarray(p), dtype=torch.float64).reshape(-1, 3)
            for p in (source_mm, detector_center_mm, u_step_mm, v_step_mm)
        ]
        if len({len(p) for p in parts}) != 1:
            raise ValueError(
                f"the four arrays of a pose must name the same number of views, got {[len(p) for p in parts]}"
            )
        flag = torch.full((len(parts[0]), 1), BEAMS[beam], dtype=torch.float64)
        return cls(torch.cat([*parts, flag], -1), **keywords)

    def __len__(self) -> int:
        return len(self.views)

    @property
    def angles_deg(self) -> list[float]:
        """Angle of every source about the superior axis, in [0, 360)."""
        return [round(a, 9) % 360 for a in ViewRow.from_tensor(self.views).angle_deg.tolist()]

    def tensor(
        self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "K 13"]:
        """The views as networks take them, (K, 13)."""
        return self.views.to(device=device, dtype=dtype)

    def select(self, indices: Sequence[int]) -> Geometry:
        """Some of the views, in the order given.

        Raises:
            ValueError: for an index that no view has.
        """
        indices = list(indices)
        if not indices or not all(-len(self) <= i < len(self) for i in indices):
            raise ValueError(f"indices must be within the {len(self)} views, and at least one, got {indices}")
        return replace(self, views=self.views[indices])

    def oversampled(self, factor: int) -> Geometry:
        """The same detector with pixels split into `factor` x `factor`; a mean over them gives the pixel back."""
        if factor != int(factor) or factor < 1:
            raise ValueError(f"factor must be a whole number of at least 1, got {factor}")
        views = self.views.clone()
        views[:, 6:12] /= factor
        rows, columns = self.detector_shape
        return replace(self, views=views, detector_shape=(rows * int(factor), columns * int(factor)))

    @property
    def pixel_mm(self) -> list[tuple[float, float]]:
        """Size of a pixel along v and u, for each view."""
        return [(float(v[9:12].norm()), float(v[6:9].norm())) for v in self.views]

    def affine(self) -> np.ndarray:
        """Affine (4, 4) of a volume on the grid, in the CT's frame where `isocenter_mm` is known."""
        return self.grid.affine(self.isocenter_mm)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; `from_dict` gives the same geometry back."""
        return {
            "format": JSON_FORMAT,
            "frame": "RAS+ mm, origin at the isocentre",
            "isocenter_mm": None if self.isocenter_mm is None else list(self.isocenter_mm),
            "detector_shape": list(self.detector_shape),
            "grid": {
                "shape": list(self.grid.shape),
                "spacing_mm": list(self.grid.spacing_mm),
                "center_mm": list(self.grid.center_mm),
            },
            "views": [
                {
                    "beam": "cone" if view[12] > 0.5 else "parallel",
                    "source_mm" if view[12] > 0.5 else "ray_direction": view[0:3],
                    "detector_center_mm": view[3:6],
                    "u_step_mm": view[6:9],
                    "v_step_mm": view[9:12],
                }
                for view in self.views.tolist()
            ],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Geometry:
        """The inverse of `to_dict`.

        Raises:
            ValueError: naming the missing or malformed entry.
        """
        if not isinstance(data, dict) or data.get("format") != JSON_FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"not a geometry: 'format' must be {JSON_FORMAT!r}, got {found!r}")
        try:
            views = []
            for view in data["views"]:
                flag = BEAMS[view["beam"]]
                head = view["source_mm"] if flag == CONE else view["ray_direction"]
                views.append([*head, *view["detector_center_mm"], *view["u_step_mm"], *view["v_step_mm"], flag])
            grid = VolumeGrid(**{key: tuple(data["grid"][key]) for key in ("shape", "spacing_mm", "center_mm")})
            isocenter = data["isocenter_mm"]
            tensor = torch.tensor(views, dtype=torch.float64)
            return cls(tensor, tuple(data["detector_shape"]), grid, None if isocenter is None else tuple(isocenter))
        except (KeyError, TypeError) as error:
            raise ValueError(f"geometry has a missing or malformed entry: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON."""
        write_json(path, self.to_dict(), sort_keys=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Geometry:
        """Read what `save` wrote; errors name the file."""
        path = Path(path)
        content = read_json_object(path, "no such geometry file")
        try:
            return cls.from_dict(content)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}: {error}") from error
