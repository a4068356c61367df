"""Posterior sampling: from noise to volumes that the radiographs allow."""

from custom.sampling.atlas import Atlas
from custom.sampling.encoded_mean import EncodedMean
from custom.sampling.posterior_sampler import PosteriorSampler
from custom.sampling.sample_collection import collect_samples
from custom.sampling.sampler_loading import load_sampler

__all__ = [
    "Atlas",
    "EncodedMean",
    "PosteriorSampler",
    "collect_samples",
    "load_sampler",
]
