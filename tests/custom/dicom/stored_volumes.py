"""What a CT series and a Parametric Map hold, read by highdicom and not by the package."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom


def read_ct_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """HU (X, Y, Z) and the affine to RAS+ mm of the one CT series below ``folder``."""
    images = [image for path in folder.rglob("*.dcm") if (image := pydicom.dcmread(path)).Modality == "CT"]
    values, affine = _ras(highdicom.get_volume_from_series(images))
    return np.rint(values).astype(np.int16), affine


def read_uncertainty_map(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """HU (X, Y, Z) and the affine to RAS+ mm of a Parametric Map."""
    values, affine = _ras(highdicom.imread(path).get_volume(apply_real_world_transform=True))
    return values.astype(np.float32), affine


def _ras(volume: highdicom.Volume) -> tuple[np.ndarray, np.ndarray]:
    turned = volume.to_patient_orientation("RAS")
    return turned.array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ turned.affine
