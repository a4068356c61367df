"""A stand-in for CERN/TIGRE with its documented conventions, in plain numpy; written into a package by the tests.

Arrays (z, y, x) and (view, v, u), row 0 at the lowest z; angles in radians; source at DSO (cos a, sin a, 0); detector
centre at -(DSD - DSO) (cos a, sin a, 0) + offDetector; u along (-sin a, cos a, 0), v along +z; three angles turn it all
by Rz Ry Rz. Volumes are sampled trilinearly ("interpolated" with a small step), which needs no GPU.
"""

SOURCE = """
import numpy as np
from scipy.ndimage import map_coordinates

__version__ = "3.1.3"


class Geometry:
    def __init__(self):
        self.mode = None


def geometry(mode="cone", nVoxel=None, default=False):
    result = Geometry()
    if mode == "parallel":
        result.mode = "parallel"
        result.nVoxel, result.dVoxel = nVoxel, np.array([1, 1, 1])
        result.DSO, result.DSD = np.float32(nVoxel[0]), np.float32(2 * nVoxel[0])
    return result


def _turn(axis, angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]] if axis == "z" else [[c, 0, s], [0, 1, 0], [-s, 0, c]])


def Ax(img, geo, angles, projection_type="Siddon"):
    if img.dtype != np.float32:
        raise TypeError("Input data should be float32, not " + str(img.dtype))
    if any(img.shape != geo.nVoxel):
        raise ValueError("Input data should be of shape geo.nVoxel")
    if not isinstance(angles, np.ndarray):
        raise AttributeError("'list' object has no attribute 'shape'")
    assert sum(abs(geo.dDetector * geo.nDetector - geo.sDetector)) < 1e-6
    assert sum(abs(geo.dVoxel * geo.nVoxel - geo.sVoxel)) < 1e-6
    assert type(geo.DSO) in (float, np.ndarray) and type(geo.DSD) in (float, np.ndarray)
    if angles.ndim == 1:
        angles = np.stack([angles, 0 * angles, 0 * angles], -1)
    count = len(angles)
    dso, dsd = (np.broadcast_to(x, (count,)) for x in (geo.DSO, geo.DSD))
    off = np.broadcast_to(geo.offDetector, (count, 2))
    (nv, nu), (dv, du) = geo.nDetector, geo.dDetector
    v = (np.arange(nv) - nv / 2 + 0.5) * dv
    u = (np.arange(nu) - nu / 2 + 0.5) * du
    out = np.zeros((count, nv, nu), np.float32)
    for k, (a, b, c) in enumerate(angles):
        turn = _turn("z", a) @ _turn("y", b) @ _turn("z", c)
        local = np.zeros((nv, nu, 3))
        local[..., 0] = -(dsd[k] - dso[k])
        local[..., 1], local[..., 2] = u[None] + off[k, 1], v[:, None] + off[k, 0]
        start = np.zeros((nv, nu, 3))
        start[..., 0] = dso[k]
        if geo.mode == "parallel":
            start[..., 1:] = local[..., 1:]
        start, end = start @ turn.T, local @ turn.T
        length = np.linalg.norm(end - start, axis=-1)
        steps = int(np.ceil(length.max() / (0.25 * min(geo.dVoxel))))
        for i in range(steps):
            point = start + (end - start) * (i + 0.5) / steps
            zyx = (point[..., ::-1] - geo.offOrigin) / geo.dVoxel + np.array(geo.nVoxel) / 2 - 0.5
            sample = map_coordinates(img, zyx.reshape(-1, 3).T, order=1, mode="grid-constant")
            out[k] += sample.reshape(nv, nu) * length / steps
    return out
"""

GPU = """
def getGpuNames():
    return {names!r}
"""
