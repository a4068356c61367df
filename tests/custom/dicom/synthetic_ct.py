"""A small volume to write as a CT series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from custom.dicom.write_ct import SyntheticCT, write_ct_series
from tests.custom.dicom.stored_radiographs import MODEL

SHAPE = (12, 10, 6)
AFFINE = np.array([[2.0, 0, 0, -11.0], [0, 3.0, 0, -14.5], [0, 0, 4.0, -1 / 3], [0, 0, 0, 1]])
DERIVATION = "Two radiographs turned into a volume by a neural network."


def volume(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)


def synthetic(sources: list[Dataset], hu: Any = None, affine: Any = None, **extra: Any) -> SyntheticCT:
    return SyntheticCT(
        volume() if hu is None else hu, AFFINE if affine is None else affine, sources, MODEL, DERIVATION, **extra
    )


def first_slice(sources: list[Dataset], folder: Path, **extra: Any) -> Dataset:
    return pydicom.dcmread(write_ct_series(synthetic(sources, **extra), folder)[0])
