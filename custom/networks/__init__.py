"""Networks: from radiographs to volumes, autoencoder, denoiser, discriminators, segmenter, and priors."""

from custom.networks.attenuation_field import AttenuationField, HashEncoding
from custom.networks.coarse_to_fine import CoarseToFineReconstructor
from custom.networks.codebook_quantiser import CodebookQuantiser
from custom.networks.denoiser import LatentDenoiser
from custom.networks.discriminators import VolumeSliceDiscriminator
from custom.networks.feature_unet import FeatureUNet
from custom.networks.fourier_mlp import FourierFeatures, PointMLP
from custom.networks.implicit_reconstructor import ImplicitReconstructor
from custom.networks.perceptual import GradientPyramid, VGG16Features
from custom.networks.population_prior import OutOfFoldPriors, PopulationPrior
from custom.networks.segmentation_unet import SegmentationUNet
from custom.networks.volume_unet import VolumeUNet
from custom.networks.voxel_identity import VoxelIdentity
from custom.networks.vqgan import VQGAN
from custom.networks.x2ct import X2CT, X2CTDiscriminator

__all__ = [
    "VQGAN",
    "X2CT",
    "AttenuationField",
    "CoarseToFineReconstructor",
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
