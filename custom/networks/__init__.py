"""Networks that reconstruct volumes from radiographs."""

from custom.networks.attenuation_field import AttenuationField, HashEncoding
from custom.networks.codebook import CodebookQuantiser
from custom.networks.denoiser import LatentDenoiser
from custom.networks.discriminators import VolumeSliceDiscriminator
from custom.networks.features import FeatureUNet
from custom.networks.implicit import FourierFeatures, PointMLP
from custom.networks.perceptual import GradientPyramid, VGG16Features
from custom.networks.prior import OutOfFoldPriors, PopulationPrior
from custom.networks.reconstructor import ImplicitReconstructor
from custom.networks.segmenter import SegmentationUNet
from custom.networks.volume import VolumeUNet
from custom.networks.voxels import VoxelIdentity
from custom.networks.vqgan import VQGAN
from custom.networks.x2ct import X2CT, X2CTDiscriminator

__all__ = [
    "VQGAN",
    "X2CT",
    "AttenuationField",
    "CodebookQuantiser",
    "FeatureUNet",
    "FourierFeatures",
    "GradientPyramid",
    "HashEncoding",
    "ImplicitReconstructor",
    "LatentDenoiser",
    "OutOfFoldPriors",
    "PointMLP",
    "PopulationPrior",
    "SegmentationUNet",
    "VGG16Features",
    "VolumeSliceDiscriminator",
    "VolumeUNet",
    "VoxelIdentity",
    "X2CTDiscriminator",
]
