"""Networks that reconstruct volumes from radiographs."""

from custom.networks.codebook import CodebookQuantiser
from custom.networks.denoiser import LatentDenoiser
from custom.networks.discriminators import VolumeSliceDiscriminator
from custom.networks.features import FeatureUNet
from custom.networks.implicit import FourierFeatures, PointMLP
from custom.networks.perceptual import GradientPyramid, VGG16Features
from custom.networks.prior import OutOfFoldPriors, PopulationPrior
from custom.networks.reconstructor import ImplicitReconstructor
from custom.networks.volume import VolumeUNet
from custom.networks.vqgan import VQGAN

__all__ = [
    "VQGAN",
    "CodebookQuantiser",
    "FeatureUNet",
    "FourierFeatures",
    "GradientPyramid",
    "ImplicitReconstructor",
    "LatentDenoiser",
    "OutOfFoldPriors",
    "PointMLP",
    "PopulationPrior",
    "VGG16Features",
    "VolumeSliceDiscriminator",
    "VolumeUNet",
]
