"""Feature fusion written as loops over points in float64: slow, and plain enough to be right."""

import math

import numpy as np
import torch

from custom.geometry import VolumeGrid, views_from_angles

GRID = VolumeGrid((6, 5, 7), (30.0, 36.0, 28.0), (4.0, -7.0, 11.0))
DETECTOR = (9, 12)
ANGLES = (0.0, 31.0, 90.0, 135.0, 200.0, 260.0, 301.0, 359.0)


def make_views(kind: str, count: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(count, 13): "parallel", "cone", "shifted" (parallel, offset from view to view), "tilted" and "mixed"."""
    pixel = (20.0, 18.0)
    parallel = views_from_angles(ANGLES[:count], "parallel", pixel_mm=pixel)
    cone = views_from_angles(ANGLES[:count], "cone", 700.0, 1000.0, pixel)
    if kind == "parallel":
        views = parallel
    elif kind == "cone":
        views = cone
    elif kind == "shifted":
        views = parallel.clone()
        views[:, 5] += 40 * (torch.arange(count) % 3)
        views[:, 3:5] += 11.0
    elif kind == "tilted":
        angle = math.radians(17)
        tilt = torch.tensor(
            [[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]],
            dtype=torch.float64,
        )
        views = cone.clone()
        for start in (0, 3, 6, 9):
            views[:, start : start + 3] = views[:, start : start + 3] @ tilt.T
    else:
        views = torch.where((torch.arange(count) % 2 == 0)[:, None], parallel, cone)
    return views.to(dtype)


def look(point: np.ndarray, view: np.ndarray) -> tuple[float, float, bool]:
    """Where the ray through a point meets the detector, by solving for it: steps along u and v from its centre."""
    direction = point - view[0:3] if view[12] > 0.5 else view[0:3]
    u, v, t = np.linalg.solve(np.stack([view[6:9], view[9:12], -direction], 1), point - view[3:6])
    in_front = t > -1 if view[12] > 0.5 else True
    return u, v, in_front


def slow_sample(feature: np.ndarray, view: np.ndarray, point: np.ndarray, detector: tuple[int, int]):
    """One feature map (C, V', U') at one point: values (C,) and seen."""
    u, v, in_front = look(point, view)
    rows, columns = feature.shape[1:]
    seen = in_front and abs(u) <= detector[1] / 2 and abs(v) <= detector[0] / 2
    if not seen:
        return np.zeros(len(feature)), False
    column = min(max((u / detector[1] + 0.5) * columns - 0.5, 0), columns - 1)
    row = min(max((v / detector[0] + 0.5) * rows - 0.5, 0), rows - 1)
    value = np.zeros(len(feature))
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            weight = max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j))
            if weight > 0:
                value += weight * feature[:, i, j]
    return value, True


def slow_fuse(features, views, points, detector, mask=None, reduction="seen", with_count=False) -> torch.Tensor:
    """(B, C(+1), N) by loops; views (B, K, 13), points (N, 3)."""
    features, views, points = (t.detach().double().numpy() for t in (features, views, points))
    batch, count, channels = features.shape[:3]
    mask = np.ones((batch, count), bool) if mask is None else mask.numpy()
    out = np.zeros((batch, channels + 1, len(points)))
    for b in range(batch):
        for n, point in enumerate(points):
            number = 0
            for k in range(count):
                if mask[b, k]:
                    value, seen = slow_sample(features[b, k], views[b, k], point, detector)
                    out[b, :-1, n] += value
                    number += seen
            present = max(mask[b].sum(), 1)
            out[b, :-1, n] /= max(number, 1) if reduction == "seen" else present
            out[b, -1, n] = number / present
    return torch.from_numpy(out if with_count else out[:, :-1])


def random_features(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
