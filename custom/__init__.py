"""fewview-ct: a 3D CT volume from one to eight planar radiographs."""

__version__ = "0.1.0"
