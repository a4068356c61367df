"""What a CT series and a Parametric Map hold, read by SimpleITK and highdicom and not by the package."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_ct_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """HU (X, Y, Z) and the affine to RAS+ mm of the one CT series below ``folder``."""
    headers = [(path, pydicom.dcmread(path, stop_before_pixels=True)) for path in folder.rglob("*.dcm")]
    [(parent, series)] = {(path.parent, head.SeriesInstanceUID) for path, head in headers if head.Modality == "CT"}
    stack = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(parent), series))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(stack.GetDirection(), (3, 3)) * stack.GetSpacing()
    affine[:3, 3] = stack.GetOrigin()
    values = np.rint(sitk.GetArrayFromImage(stack).T).astype(np.int16)
    image = nib.as_closest_canonical(nib.Nifti1Image(values, RAS_FROM_LPS @ affine))
    return np.asarray(image.dataobj), image.affine


def read_uncertainty_map(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """HU (X, Y, Z) and the affine to RAS+ mm of a Parametric Map."""
    import highdicom  # it needs pydicom 3, and CT series are read with pydicom 2 as well

    volume = highdicom.imread(path).get_volume(apply_real_world_transform=True).to_patient_orientation("RAS")
    return volume.array.astype(np.float32), RAS_FROM_LPS @ volume.affine
