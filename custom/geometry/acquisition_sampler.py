"""Random acquisitions for training: how many radiographs, from where, with which beam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from custom.geometry import is_cone, views_from_angles

__all__ = ["AcquisitionSampler", "PoseError"]

#: The papers' view sets (lateral 0, frontal 90 degrees).
PAPER_ANGLES_DEG: dict[int, tuple[tuple[float, ...], ...]] = {
    1: ((0.0,), (90.0,)),
    2: ((0.0, 90.0),),
    4: ((0.0, 45.0, 90.0, 135.0),),
    8: (tuple(22.5 * i for i in range(8)),),
}


class AcquisitionSampler:
    """Draws the views of one training step.

    Args:
        view_weights: relative frequency of every number of views, {"1": 0.3, "2": 0.3, ...} (JSON keys are strings).
        paper_prob: probability that the angles are the papers' for that number of views (if they have some);
            otherwise the first angle is uniform in [0, 360) and the others are spread over the half circle at random.
        cone_prob: probability of cone beam; otherwise parallel.
        angle_jitter_deg: standard deviation that is added to every angle of cone-beam and of random acquisitions:
            nobody positions a patient exactly.
        source_to_isocenter_mm: smallest and largest, cone beam.
        source_to_detector_mm: smallest and largest; at least 100 mm more than source_to_isocenter_mm.
        pixel_at_isocenter_mm: pixel size, demagnified to the isocentre.
        seed: of the generator; None draws one from torch.
    """

    def __init__(
        self,
        view_weights: Mapping[str, float],
        paper_prob: float = 0.6,
        cone_prob: float = 0.25,
        angle_jitter_deg: float = 2.0,
        source_to_isocenter_mm: Sequence[float] = (700.0, 1700.0),
        source_to_detector_mm: Sequence[float] = (1000.0, 1900.0),
        pixel_at_isocenter_mm: float = 2.5,
        seed: int | None = None,
    ) -> None:
        if not view_weights or min(view_weights.values()) < 0 or sum(view_weights.values()) <= 0:
            raise ValueError(f"view_weights must hold at least one positive weight, got {dict(view_weights)}")
        self.counts = [int(count) for count in view_weights]
        if min(self.counts) < 1:
            raise ValueError(f"view_weights must name one view or more, got {self.counts}")
        if source_to_detector_mm[1] < source_to_isocenter_mm[0] + 100:
            raise ValueError(
                f"source_to_detector_mm {source_to_detector_mm} leaves no room behind {source_to_isocenter_mm}"
            )
        self.weights = torch.tensor(list(view_weights.values()), dtype=torch.float64)
        self.paper_prob, self.cone_prob, self.angle_jitter_deg = paper_prob, cone_prob, angle_jitter_deg
        self.to_isocenter, self.to_detector = tuple(source_to_isocenter_mm), tuple(source_to_detector_mm)
        self.pixel_mm = pixel_at_isocenter_mm
        self.generator = torch.Generator()
        self.generator.manual_seed(int(torch.randint(2**31, (1,))) if seed is None else seed)

    def _uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand(1, generator=self.generator))

    def __call__(self) -> Tensor:
        """Views (K, 13), float32."""
        count = self.counts[int(torch.multinomial(self.weights, 1, generator=self.generator))]
        cone = self._uniform() < self.cone_prob
        sets = PAPER_ANGLES_DEG.get(count)
        papers = sets is not None and self._uniform() < self.paper_prob
        if papers:
            assert sets is not None
            angles = torch.tensor(sets[int(self._uniform(0, len(sets) - 1e-9))])
        else:
            gaps = 0.5 + torch.rand(count, generator=self.generator)
            angles = self._uniform(0, 360) + (gaps.cumsum(0) - gaps[0]) / gaps.sum() * 180
        if cone or not papers:
            angles = angles + torch.randn(count, generator=self.generator) * self.angle_jitter_deg
        if not cone:
            return views_from_angles(angles, "parallel", pixel_mm=self.pixel_mm).float()
        to_isocenter = self._uniform(*self.to_isocenter)
        to_detector = self._uniform(
            max(self.to_detector[0], to_isocenter + 100), max(self.to_detector[1], to_isocenter + 100)
        )
        pixel = self.pixel_mm * to_detector / to_isocenter
        return views_from_angles(angles, "cone", to_isocenter, to_detector, pixel).float()


class PoseError:
    """What separates the views that a network is told from those that the radiographs were taken from.

    Args:
        angle_deg: standard deviation of the angle about the superior axis, each view for itself.
        distance: standard deviation of the distances of source and detector from the isocentre, as a share.
        largest: errors are cut off at so many standard deviations.
        seed: of the generator; None draws one from torch.
    """

    def __init__(
        self, angle_deg: float = 1.0, distance: float = 0.01, largest: float = 2.0, seed: int | None = None
    ) -> None:
        if min(angle_deg, distance, largest) < 0:
            raise ValueError(f"errors must not be negative, got {angle_deg}, {distance} and {largest}")
        self.angle_deg, self.distance, self.largest = angle_deg, distance, largest
        self.generator = torch.Generator()
        self.generator.manual_seed(int(torch.randint(2**31, (1,))) if seed is None else seed)

    def __call__(self, views: Tensor) -> Tensor:
        """True views (K, 13) of those that are told."""

        def error(deviation: float) -> Tensor:
            drawn = torch.randn(len(views), generator=self.generator).clamp(-self.largest, self.largest)
            return drawn.to(views) * deviation

        angle = torch.deg2rad(error(self.angle_deg))
        cosine, sine, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        rows = [cosine, -sine, zero, sine, cosine, zero, zero, zero, one]
        vectors = views[:, :12].reshape(-1, 4, 3) @ torch.stack(rows, -1).reshape(-1, 3, 3).mT
        scale = torch.ones_like(views[:, :4])
        scale[:, 0] += error(self.distance) * is_cone(views)  # of a parallel beam it is a direction
        scale[:, 1] += error(self.distance)
        return torch.cat([(vectors * scale[..., None]).flatten(1), views[:, 12:]], 1)
