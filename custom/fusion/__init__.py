"""Fusion of the image features of any number of views, at every voxel of a grid or at points."""

from custom.fusion.feature_fusion import FeatureFusion, antialiasing_factors, fuse_features, fuse_points
from custom.fusion.feature_sampling import sample_features

__all__ = ["FeatureFusion", "antialiasing_factors", "fuse_features", "fuse_points", "sample_features"]
