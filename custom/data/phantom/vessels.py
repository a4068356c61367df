"""Phantom vessels of the lungs, grown towards random targets as space filling trees do."""

from __future__ import annotations

import numpy as np

Array = np.ndarray

PIECE_MM = 9.0
# Murray's law: the cube of a vessel's radius is the sum of its branches' cubes.
MURRAY = 3.0
# Weight of the way to the root: 0 gives a minimal spanning tree, large values a star.
_DETOUR = 0.35


def grow_tree(
    root: Array, targets: Array, rng: np.random.RandomState, tip_mm: float = 0.6
) -> tuple[Array, Array, Array]:
    """Connect all targets to a root, each where the new piece plus its way to the root is shortest.

    Args:
        root: (N, 3) positions in mm along the trunk, hilum first.
        targets: (M, 3) ends to reach, mm.
        rng: source of the pieces' bends.
        tip_mm: radius of an end, mm.

    Returns:
        Starts (P, 3), ends (P, 3) and radii (P,) of straight pieces in mm.
    """
    capacity = len(root) + 12 * len(targets) + 16
    nodes = np.empty((capacity, 3))
    way = np.empty(capacity)
    parent = np.full(capacity, -1)
    count = len(root)
    nodes[:count] = root
    way[:count] = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(root, axis=0), axis=1))])
    parent[1:count] = np.arange(count - 1)
    order = np.argsort(np.linalg.norm(targets - root[len(root) // 2], axis=1))
    leaves = []
    for target in targets[order]:
        distance = np.linalg.norm(nodes[:count] - target, axis=1)
        best = int(np.argmin(distance + _DETOUR * way[:count]))
        pieces = max(1, int(distance[best] / PIECE_MM))
        if count + pieces > capacity:
            break
        start, last = nodes[best].copy(), best
        bend = rng.normal(0, 0.07 * distance[best], size=3)
        for k in range(1, pieces + 1):
            t = k / pieces
            nodes[count] = start + (target - start) * t + bend * np.sin(np.pi * t)
            way[count] = way[last] + np.linalg.norm(nodes[count] - nodes[last])
            parent[count] = last
            last = count
            count += 1
        leaves.append(last)
    flow = np.zeros(count)
    flow[leaves] += 1.0
    for node in range(count - 1, 0, -1):
        flow[parent[node]] += flow[node]
    child = np.arange(1, count)
    radius = tip_mm * np.maximum(flow[child], 1.0) ** (1 / MURRAY)
    return nodes[parent[child]], nodes[child], radius


def sample_pieces(starts: Array, ends: Array, radii: Array, step_mm: float = 1.6) -> tuple[Array, Array]:
    """Points (N, 3) along straight pieces at most ``step_mm`` apart, and their radii (N,)."""
    counts = np.maximum(1, np.ceil(np.linalg.norm(ends - starts, axis=1) / step_mm)).astype(int)
    which = np.repeat(np.arange(len(starts)), counts)
    first = np.cumsum(counts) - counts
    t = ((np.arange(len(which)) - first[which] + 0.5) / counts[which])[:, None]
    return starts[which] * (1 - t) + ends[which] * t, radii[which]
