"""`Evidence`: all data that the trust checks look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from custom.geometry import VIEW_SIZE, ViewRow, VolumeGrid, is_cone
from custom.networks.population_prior import PopulationPrior
from custom.radiographs import AcquisitionMetadata

__all__ = ["Evidence", "find_prior", "modules_of"]

#: Nobody stands exactly frontal or lateral.
_NEARLY_DEG = 15


@dataclass(frozen=True)
class Evidence:
    """Radiographs as the model saw them, and what it made of them.

    Attributes:
        image: line integrals (K, V, U), float32, at the energy that the model was trained for; 0 where not exposed.
        views: (K, 13), isocentre frame.
        field_mask: bool (K, V, U).
        hu: the reconstruction (X, Y, Z), HU; None: the radiographs alone are checked.
        grid: its grid.
        samples_std: standard deviation of the samples (X, Y, Z), HU; None: there are none.
        training: meta of the model's checkpoint.
        radiograph_metadata: how each radiograph was taken; may be empty.
        prior: the model's Gaussian population (`find_prior`); None: it has none, so that the checks which need it are
            not made.

    Raises:
        ValueError: for shapes that do not fit each other.
    """

    image: Tensor
    views: Tensor
    field_mask: Tensor
    hu: Tensor | None
    grid: VolumeGrid
    samples_std: Tensor | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    radiograph_metadata: Sequence[AcquisitionMetadata] = ()
    prior: PopulationPrior | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or not len(self.image):
            raise ValueError(f"image must be (K, V, U) with at least one radiograph, got {tuple(self.image.shape)}")
        expected: dict[str, tuple[int, ...]] = {
            "views": (len(self.image), VIEW_SIZE),
            "field_mask": tuple(self.image.shape),
        }
        for name in ("hu", "samples_std"):
            if getattr(self, name) is not None:
                expected[name] = self.grid.shape
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"{name} must be {shape}, got {found}")

    @property
    def energy_kev(self) -> float:
        """Photon energy of the line integrals, from the model's meta.

        Raises:
            ValueError: if that does not say.
        """
        for holder in (self.training, self.training.get("network_def", {})):
            if "energy_kev" in holder:
                return float(holder["energy_kev"])
        raise ValueError("the model's meta does not hold energy_kev, so line integrals cannot be compared with HU")

    @property
    def beam(self) -> str:
        """Either "parallel" or "cone"; the latter where both occur."""
        return "cone" if bool(is_cone(self.views).any()) else "parallel"

    def name(self, index: int) -> str:
        """What a message calls a radiograph: its number, from where it was taken, and its angle."""
        angle = round(float(ViewRow.from_tensor(self.views[index].double()).angle_deg)) % 360
        off = abs((angle + 90) % 180 - 90)  # of the line through both sides of the patient
        side = "lateral" if off <= _NEARLY_DEG else "frontal" if off >= 90 - _NEARLY_DEG else "oblique"
        return f"radiograph {index + 1} ({side}, at {angle} degrees)"


def modules_of(network: Any) -> list[nn.Module]:
    """All modules of a network and, of a sampler, of its mean network, which the sampler holds as no module."""
    parts = (network, getattr(getattr(network, "mean", None), "network", None))
    return [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]


def find_prior(network: Any) -> PopulationPrior | None:
    """The fitted population that a network, or the mean network of a sampler, holds; None where there is none."""
    return next((m for m in modules_of(network) if isinstance(m, PopulationPrior) and m.fitted), None)
