"""`ViewRow`: the 13 numbers of a view by their names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from custom.geometry.views import is_cone

__all__ = ["ViewRow"]


@dataclass(frozen=True, eq=False)
class ViewRow:
    """One view, or several with any leading dimensions.

    Args:
        head: (..., 3) cone beam: the X-ray source [mm]; parallel beam: direction of the rays.
        detector_center: (..., 3) [mm].
        u_step: (..., 3) from one column to the next [mm].
        v_step: (..., 3) from one row to the next [mm].
        is_cone: bool (...).
    """

    head: Tensor
    detector_center: Tensor
    u_step: Tensor
    v_step: Tensor
    is_cone: Tensor

    @classmethod
    def from_tensor(cls, views: Tensor) -> ViewRow:
        """The names of `views` (..., 13)."""
        head, center, u_step, v_step = views[..., :12].unflatten(-1, (4, 3)).unbind(-2)
        return cls(head, center, u_step, v_step, is_cone(views))

    def to_tensor(self) -> Tensor:
        """The tensor (..., 13) that networks and projector take."""
        flag = self.is_cone.to(self.head.dtype)[..., None]
        return torch.cat([self.head, self.detector_center, self.u_step, self.v_step, flag], -1)

    @property
    def toward_source(self) -> Tensor:
        """From the isocentre to the X-ray source (..., 3), of any length."""
        return torch.where(self.is_cone[..., None], self.head, -self.head)

    @property
    def angle_deg(self) -> Tensor:
        """Angle of the source about the superior axis (...), in [0, 360)."""
        toward = self.toward_source
        return torch.rad2deg(torch.atan2(toward[..., 1], toward[..., 0])) % 360

    @property
    def pixel_mm(self) -> Tensor:
        """Distance of rows and of columns on the detector (..., 2)."""
        return torch.stack([self.v_step.norm(dim=-1), self.u_step.norm(dim=-1)], -1)

    @property
    def normal(self) -> Tensor:
        """Unit normal of the detector (..., 3), away from the source."""
        return torch.nn.functional.normalize(torch.linalg.cross(self.u_step, self.v_step), dim=-1)

    @property
    def source_to_isocenter_mm(self) -> Tensor:
        """Cone beam: along the detector's normal (...)."""
        return (-self.head * self.normal).sum(-1)

    @property
    def source_to_detector_mm(self) -> Tensor:
        """Cone beam: along the detector's normal (...)."""
        return ((self.detector_center - self.head) * self.normal).sum(-1)

    @property
    def foot(self) -> Tensor:
        """Where the ray through the isocentre meets the detector's plane (..., 3) [mm]."""
        normal = torch.linalg.cross(self.u_step, self.v_step)
        from_source = ((self.detector_center - self.head) * normal).sum(-1, keepdim=True)
        cone = self.head - self.head * (from_source / (-self.head * normal).sum(-1, keepdim=True))
        along = (self.detector_center * normal).sum(-1, keepdim=True) / (self.head * normal).sum(-1, keepdim=True)
        return torch.where(self.is_cone[..., None], cone, self.head * along)
