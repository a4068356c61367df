"""CERN/TIGRE as projection engine, for parity with the papers' simulator, not for training.

TIGRE has no CPU code, calls C's exit() on any CUDA error, copies through the host at every call, and its back-projector
is not the adjoint of its projector. So it runs in another process, and only forwards.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from custom.geometry import Geometry, VolumeGrid
from custom.projection import tigre_worker
from custom.projection.tigre_geometry import TIGRE_INSTALL, image_from_tigre, tigre_parameters, volume_to_tigre

__all__ = ["tigre_forward"]

_TIMEOUT_S = 600


def tigre_forward(volume: Tensor, views: Tensor, grid: VolumeGrid, detector_shape: Sequence[int]) -> Tensor:
    """Line integrals by TIGRE, by Siddon's method.

    Args:
        volume: attenuation [1/mm], (B, X, Y, Z).
        views: (K, 13).
        grid: the volume's grid.
        detector_shape: rows and columns (V, U).

    Returns:
        (B, K, V, U), float32, on the volume's device; no gradient.

    Raises:
        ImportError: without CERN/TIGRE (3.1.3 or newer), with the line that installs it.
        RuntimeError: without a CUDA GPU, or where TIGRE ends its process.
        ValueError: for a geometry that TIGRE cannot hold, see `tigre_parameters`.
    """
    if torch.is_grad_enabled() and (volume.requires_grad or views.requires_grad):
        raise ValueError("TIGRE gives no gradients; use engine='torch'")
    parameters = tigre_parameters(Geometry(views, (int(detector_shape[0]), int(detector_shape[1])), grid))
    volumes = volume_to_tigre(volume.detach().float().cpu().numpy())
    with tempfile.TemporaryDirectory(prefix="fewview-tigre-") as folder:
        source, target = Path(folder) / "input.npz", Path(folder) / "output.npy"
        np.savez(source, volumes=volumes, **parameters)
        # -P: the worker must not find the modules beside it under their short names.
        command = [sys.executable, "-P", str(Path(tigre_worker.__file__)), str(source), str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"TIGRE did not finish within {_TIMEOUT_S} s") from error
        if done.returncode != 0 or not target.is_file():
            said = " ".join((done.stderr or done.stdout).split())[-500:]
            if done.returncode in (tigre_worker.MISSING, tigre_worker.TOO_OLD):
                raise ImportError(f"engine 'tigre': {said}; install: {TIGRE_INSTALL}, or use engine='torch'")
            if done.returncode == tigre_worker.NO_GPU:
                raise RuntimeError(f"engine 'tigre': {said}; use engine='torch', which needs no GPU")
            raise RuntimeError(f"TIGRE ended its process with code {done.returncode}: {said}; use engine='torch'")
        images = np.load(target, allow_pickle=False)
    expected = (len(volume), len(views), *parameters["nDetector"])
    if images.shape != expected:
        raise RuntimeError(f"TIGRE returned radiographs of shape {images.shape} instead of {expected}")
    return torch.from_numpy(image_from_tigre(images)).to(volume.device)
