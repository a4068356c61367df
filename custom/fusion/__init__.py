"""From the image features of any number of views to features in space: at every voxel of a grid or at points."""

from custom.fusion.feature_fusion import FeatureFusion, antialiasing_factors, fuse_features, fuse_points
from custom.fusion.feature_sampling import sample_features

__all__ = ["FeatureFusion", "antialiasing_factors", "fuse_features", "fuse_points", "sample_features"]
