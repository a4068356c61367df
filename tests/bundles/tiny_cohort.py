"""A cohort of a few small chests as `prepare` and `simulate` leave it, and the overrides that fit a bundle to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from custom.data.simulate import simulate
from tests.ct_samples import SPACING, chest

#: Cube of 16^3 voxels of 15 mm; the CTs lie off the world's origin, as real ones do.
CUBE, VOXEL_MM, CENTRE_MM = 16, 15.0, np.array([12.0, -30.0, 700.0])
PARTS = {"training": ("t1", "t2"), "validation": ("v1",), "test": ("e1", "e2")}

#: What the cohort needs changed in every bundle. Keys of nested objects, as on the command line.
GRID_OVERRIDES: dict[str, Any] = {
    "precision": "fp32",
    "grid#shape": [CUBE] * 3,
    "grid#spacing_mm": [VOXEL_MM] * 3,
}
LOADING_OVERRIDES: dict[str, Any] = {
    "loading_margin_mm": [8 * VOXEL_MM, 4 * VOXEL_MM, 4 * VOXEL_MM],
    "loading_spacing_mm": VOXEL_MM,
}
BODY_OVERRIDES: dict[str, Any] = {
    "pixel_at_isocenter_mm": VOXEL_MM,
    "body_margin_mm": [4 * VOXEL_MM, 2 * VOXEL_MM, 0],
}
#: A training of two steps.
STEPS: dict[str, Any] = {"epochs": 1, "iterations_per_epoch": 2, "val_interval": 1}

#: Every number of inr_recon's train.json that a 16^3 cube needs changed.
TRAIN_OVERRIDES: dict[str, Any] = {
    **STEPS,
    **GRID_OVERRIDES,
    **LOADING_OVERRIDES,
    **BODY_OVERRIDES,
    "points": 64,
    "patch": 8,
    "detector_shape": [16, 24],
    "coarse_margin_mm": [8 * VOXEL_MM, 0, 0],
    "coarse_spacing_mm": 2 * VOXEL_MM,
    "prior_spacing_mm": 4 * VOXEL_MM,
    "prior_members": 16,
    "smallest_detector_shape": [16, 16],
}
#: The same for network_def, of training and inference alike.
NETWORK_OVERRIDES: dict[str, Any] = {
    "network_def#encoder#widths": [4, 4, 4],
    "network_def#encoder#out_channels": 4,
    "network_def#volume_network#widths": [4, 4, 4],
    "network_def#feature_spacing_mm": 2 * VOXEL_MM,
    "network_def#prior#components": 3,
    "network_def#rough_iterations": 2,
    "network_def#fine_encoder#widths": [4, 4],
    "network_def#fine_encoder#out_channels": 2,
    "network_def#fine_network#widths": [4, 4],
}
#: What coarse_stage.json changes, in voxels of the coarse grid.
COARSE_OVERRIDES: dict[str, Any] = {
    "pixel_at_isocenter_mm": 2 * VOXEL_MM,
    "detector_shape": [8, 12],
    "grid#shape": [CUBE // 2] * 3,
    "grid#spacing_mm": [2 * VOXEL_MM] * 3,
    "body_margin_mm": [12 * VOXEL_MM, 4 * VOXEL_MM, 0],
    "loading_margin_mm": [16 * VOXEL_MM, 8 * VOXEL_MM, 4 * VOXEL_MM],
    "loading_spacing_mm": 2 * VOXEL_MM,
}
INFERENCE_OVERRIDES: dict[str, Any] = {
    key: value
    for key, value in TRAIN_OVERRIDES.items()
    if key.split("#")[0]
    in ("precision", "pixel_at_isocenter_mm", "grid", "coarse_margin_mm", "coarse_spacing_mm", "prior_spacing_mm")
}


def make_cohort(folder: Path) -> Path:
    """Write the cohort with radiographs at 0, 45, 90 and 135 degrees.

    Returns:
        datalist_fine.json.
    """
    content: dict[str, Any] = {"name": "tiny", "description": "chests for tests"}
    for number, (part, cases) in enumerate(PARTS.items()):
        content[part] = [_write_case(folder, case, 10 * number + i) for i, case in enumerate(cases)]
    (folder / "datalist.json").write_text(json.dumps(content))
    return simulate(folder / "datalist.json", angles_deg=[0.0, 45.0, 90.0, 135.0])


def _write_case(folder: Path, case: str, seed: int) -> dict[str, str]:
    """The source at 5 mm, the cube at 15 mm; every patient of another width."""
    source = chest(couch=False, seed=seed, width_mm=130.0 + 5.0 * (seed % 10) + seed)
    middle = source[16:64, 8:56]
    cube = middle.reshape(CUBE, 3, CUBE, 3, CUBE, 3).mean((1, 3, 5)).round().astype(np.int16)
    entry = {"case": case, "patient": f"P-{case}", "label": f"ct/{case}.nii.gz", "source": f"source/{case}.nii.gz"}
    for key, volume, spacing in (("label", cube, VOXEL_MM), ("source", source, SPACING)):
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = CENTRE_MM - (np.array(volume.shape) - 1) / 2 * spacing
        (folder / entry[key]).parent.mkdir(parents=True, exist_ok=True)
        nib.nifti1.save(nib.nifti1.Nifti1Image(volume, affine), folder / entry[key])
    return entry
