"""Networks that reconstruct volumes from radiographs."""

from custom.networks.features import FeatureUNet
from custom.networks.implicit import FourierFeatures, PointMLP
from custom.networks.prior import OutOfFoldPriors, PopulationPrior
from custom.networks.reconstructor import ImplicitReconstructor
from custom.networks.volume import VolumeUNet

__all__ = [
    "FeatureUNet",
    "FourierFeatures",
    "ImplicitReconstructor",
    "OutOfFoldPriors",
    "PointMLP",
    "PopulationPrior",
    "VolumeUNet",
]
