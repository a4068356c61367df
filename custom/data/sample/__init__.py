"""The embedded sample case; README.md beside this file holds its licence and attribution."""

from __future__ import annotations

from pathlib import Path

__all__ = ["sample_ct"]


def sample_ct() -> Path:
    """NIfTI file of the sample CT (LIDC-IDRI-0001, CC BY 3.0): 128^3 voxels of 2.5 mm, int16 HU."""
    return Path(__file__).parent / "lidc0001.nii.gz"
