"""Writer of a reconstruction as a DICOM CT series that a PACS accepts, marked as synthetic."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat
from torch import Tensor

from custom import __version__
from custom.core.atomic_directory import atomic_directory, check_free
from custom.core.files import write_bytes
from custom.dicom.strict import encode, new_uid, set_value
from custom.dicom.subject import code, common_text, references, subject

__all__ = [
    "CT_IMAGE_STORAGE",
    "MANUFACTURER",
    "SERIES_DESCRIPTION",
    "SyntheticCT",
    "equipment_item",
    "write_ct_series",
]

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
SERIES_DESCRIPTION = "SYNTHETIC CT, NOT FOR DIAGNOSTIC USE"
MANUFACTURER = "fewview-ct"
SERIES_NUMBER = 9001
LOWEST_HU, HIGHEST_HU = -1024, 32767
"""What the stored 16-bit values (Rescale Intercept -1024) and an int16 copy can both hold."""

_WINDOWS = (("MEDIASTINUM", 40, 400), ("LUNG", -600, 1500))
_POSITIONS = ("HFS", "HFP", "FFS", "FFP", "HFDR", "HFDL", "FFDR", "FFDL")
#: Body parts of PS3.16 annex L that are no pair: with any other, Laterality (0020,0060) would have to be known.
BODY_PARTS = (
    "ABDOMEN", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "CSPINE", "HEAD", "HEADNECK", "HEART", "LSPINE", "NECK",
    "NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV", "PELVIS", "SPINE", "TSPINE", "WHOLEBODY",
)  # fmt: skip
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class SyntheticCT:
    """A reconstruction and what it was made from.

    Attributes:
        hu: (X, Y, Z) HU on an RAS+ grid, float or integer; rounded to whole HU, from -1024 to 32767.
        affine: (4, 4) voxel to RAS+ mm. The array's axes are at right angles and run closest to the patient's right,
            anterior and superior.
        sources: headers of the radiographs, all of one patient and one study; empty for pictures that are not DICOM.
        model: "name", "sha256" (64 hexadecimal digits of the weights file) and "version" of the model.
        derivation: what was done, in a sentence or two, at most 1024 characters; Derivation Description (0008,2111).
        patient: PatientName, PatientID, PatientBirthDate (YYYYMMDD), PatientSex (M, F, O), only where ``sources`` is
            empty; what is not given stays empty.
        body_part: Body Part Examined (0018,0015), one of `BODY_PARTS`, where the radiographs do not agree on one of
            them: what the model reconstructs.
    """

    hu: Tensor | npt.NDArray[Any]
    affine: npt.NDArray[np.floating]
    sources: list[Dataset]
    model: Mapping[str, str]
    derivation: str
    patient: Mapping[str, str] = field(default_factory=dict)
    body_part: str = "CHEST"


@dataclass(frozen=True)
class _Frame:
    """Where the slices lie, in DICOM's LPS mm: column index grows to the left, row index to posterior."""

    corner: npt.NDArray[np.float64]  # (4, 4) from (column, row, slice)
    spacing: npt.NDArray[np.float64]  # (3,) between columns, rows, slices

    @classmethod
    def of(cls, affine: npt.NDArray[np.floating], shape: tuple[int, int, int]) -> _Frame:
        affine = np.asarray(affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise ValueError(f"the affine must be a finite, invertible 4 x 4 matrix, got {affine.tolist()}")
        axes = nib.orientations.aff2axcodes(affine)
        if axes != ("R", "A", "S"):
            raise ValueError(f"the volume's axes run to {''.join(axes)}, they must run to RAS: reorient it first")
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        directions = affine[:3, :3] / spacing
        if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
            raise ValueError("the volume's axes are not at right angles: a CT series cannot hold a sheared grid")
        flip = np.eye(4)
        flip[0, 0] = flip[1, 1] = -1.0
        flip[:2, 3] = shape[0] - 1, shape[1] - 1
        return cls(_RAS_TO_LPS @ affine @ flip, spacing)

    @property
    def orientation(self) -> list[float]:
        """Image Orientation (Patient) (0020,0037): direction cosines along a row, then along a column."""
        directions = self.corner[:3, :2] / self.spacing[:2]
        return [float(v) + 0.0 for v in directions.T.ravel()]

    def position(self, index: int) -> list[float]:
        """Image Position (Patient) (0020,0032) of a slice, mm."""
        return [float(v) + 0.0 for v in self.corner[:3] @ (0.0, 0.0, index, 1.0)]


def _decimal(value: float) -> DSfloat:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    return DSfloat(value, auto_format=True)


def _stored(hu: Tensor | npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Stored values (Z, rows, columns) of an RAS+ volume (X, Y, Z)."""
    values = hu.detach().cpu().numpy() if isinstance(hu, Tensor) else np.asarray(hu)
    if values.ndim != 3 or min(values.shape) < 2 or max(values.shape) > 65535:
        raise ValueError(f"a CT series needs a volume (X, Y, Z) of at least 2 voxels a side, got {values.shape}")
    if not np.issubdtype(values.dtype, np.integer):
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise ValueError(f"{bad} voxels of the CT are NaN or infinite")
        values = np.rint(values)
    low, high = float(values.min()), float(values.max())
    if low < LOWEST_HU or high > HIGHEST_HU:
        raise ValueError(f"HU run from {low:g} to {high:g}, a CT series holds {LOWEST_HU} to {HIGHEST_HU}: clip them")
    return (values.astype(np.int32) - LOWEST_HU).astype(np.uint16)[::-1, ::-1].transpose(2, 1, 0)


def equipment_item(model: Mapping[str, str], derivation: str, now: datetime.datetime) -> Dataset:
    """Item of Contributing Equipment Sequence (0018,A001): this software and the weights, by their hash.

    Args:
        model: "name", "sha256", "version".
        derivation: what was done, for Contribution Description (0018,A003).
        now: Contribution DateTime (0018,A002).

    Raises:
        ValueError: a key of ``model`` is missing or breaks the standard.
    """
    missing = [key for key in ("name", "sha256", "version") if not model.get(key)]
    if missing:
        raise ValueError(f"the model lacks {', '.join(missing)}: a synthetic CT must say what made it")
    if not re.fullmatch(r"[0-9a-f]{64}", model["sha256"]):
        raise ValueError(f"the model's sha256 is {model['sha256']!r}, not 64 hexadecimal digits")
    item = Dataset()
    values = {
        "Manufacturer": MANUFACTURER,
        "ManufacturerModelName": model["name"],
        "DeviceSerialNumber": model["sha256"],
        "SoftwareVersions": [f"{MANUFACTURER} {__version__}", f"model {model['version']}"],
        "DeviceUID": f"2.25.{int(model['sha256'][:32], 16)}",
        "ContributionDateTime": now.strftime("%Y%m%d%H%M%S.%f"),
        "ContributionDescription": f"{derivation} SHA-256 of the weights: {model['sha256']}"[-1024:],
        "PurposeOfReferenceCodeSequence": [code("109102", "DCM", "Processing Equipment")],
    }
    for keyword, value in values.items():
        set_value(item, keyword, value, "model")
    return item


def _series(ct: SyntheticCT, frame: _Frame, shape: tuple[int, ...], seed: str | None) -> Dataset:
    """What all slices have in common."""
    now = datetime.datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    series = subject(ct.sources, ct.patient, seed, now)
    said = common_text(ct.sources, "PatientPosition")
    position = said if said in _POSITIONS else "HFS"
    if ct.body_part not in BODY_PARTS:
        raise ValueError(f"body_part is {ct.body_part!r}; give one of {', '.join(BODY_PARTS)}")
    part = common_text(ct.sources, "BodyPartExamined")
    comment = (
        f"Computed from {len(ct.sources) or 'a few'} radiographs by a network; not a measurement. Not for diagnosis, "
        "not for primary planning. Axes are the patient's own; patient position "
        f"{position} {'as in the radiographs' if said == position else 'by convention'}."
    )
    images, series_items = references(ct.sources)
    values: dict[str, Any] = {
        "SOPClassUID": CT_IMAGE_STORAGE,
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
        "InstanceCreationDate": date,
        "InstanceCreationTime": time,
        "Modality": "CT",
        "SeriesInstanceUID": new_uid("series", seed),
        "SeriesNumber": SERIES_NUMBER,
        "SeriesDate": date,
        "SeriesTime": time,
        "SeriesDescription": SERIES_DESCRIPTION,
        "BodyPartExamined": part if part in BODY_PARTS else ct.body_part,
        "PatientPosition": position,
        "FrameOfReferenceUID": new_uid("frame of reference", seed),
        "PositionReferenceIndicator": "",
        "Manufacturer": MANUFACTURER,
        "ManufacturerModelName": ct.model.get("name", ""),
        "SoftwareVersions": f"{MANUFACTURER} {__version__}",
        "AcquisitionNumber": None,
        "ContentDate": date,
        "ContentTime": time,
        "ImageComments": comment,
        "BurnedInAnnotation": "NO",
        "DerivationDescription": ct.derivation,
        "DerivationCodeSequence": [code("RECON2D3D", "99FEWVIEW", "Volume reconstruction from radiographs")],
        "ContributingEquipmentSequence": [equipment_item(ct.model, ct.derivation, now)],
        "KVP": None,
        "PixelSpacing": [_decimal(frame.spacing[1]), _decimal(frame.spacing[0])],
        "ImageOrientationPatient": [_decimal(v) for v in frame.orientation],
        "SliceThickness": _decimal(frame.spacing[2]),
        "SpacingBetweenSlices": _decimal(frame.spacing[2]),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": shape[1],
        "Columns": shape[2],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleIntercept": LOWEST_HU,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "WindowCenter": [w[1] for w in _WINDOWS],
        "WindowWidth": [w[2] for w in _WINDOWS],
        "WindowCenterWidthExplanation": [w[0] for w in _WINDOWS],
    }
    if images:
        values |= {"SourceImageSequence": images, "ReferencedSeriesSequence": series_items}
    for keyword, value in values.items():
        set_value(series, keyword, value, "CT series")
    return series


def write_ct_series(ct: SyntheticCT, folder: str | os.PathLike[str], *, uid_seed: str | None = None) -> list[Path]:
    """Write a CT Image Storage series (PS3.3 A.3), one file a slice from feet to head; the folder appears whole.

    The series has new Series Instance and Frame of Reference UIDs in the radiographs' own study and says in Image
    Type, Series Description, Derivation, Contributing Equipment and Image Comments what it is. Patient Position
    (0018,5100) is that of the radiographs where they say one, else HFS by convention.

    Args:
        ct: volume, affine, sources, model.
        folder: must not exist, or be empty.
        uid_seed: makes all new UIDs a function of it; None gives random ones.

    Returns:
        The files, ``CT_0001.dcm`` the lowest slice.

    Raises:
        ValueError: values that are not HU, a grid that is not RAS+ or not right-angled, radiographs of several
            patients or studies, text that breaks the standard.
        FileExistsError: ``folder`` holds something.
        OSError: it cannot be written, naming the file; nothing is left of the series.
    """
    folder = check_free(folder, "CT_0001.dcm")
    stored = _stored(ct.hu)
    depth, rows, columns = stored.shape
    frame = _Frame.of(ct.affine, (columns, rows, depth))
    series = _series(ct, frame, stored.shape, uid_seed)
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    names = [f"CT_{index + 1:04d}.dcm" for index in range(depth)]
    with atomic_directory(folder, names[0]) as part:
        for index, name in enumerate(names):
            image = Dataset()
            image.update(series)
            position = frame.position(index)
            set_value(image, "SOPInstanceUID", new_uid(f"slice {index}", uid_seed), "CT series")
            set_value(image, "InstanceNumber", index + 1, "CT series")
            set_value(image, "ImagePositionPatient", [_decimal(v) for v in position], "CT series")
            set_value(image, "SliceLocation", _decimal(float(normal @ position)), "CT series")
            image.add_new("PixelData", "OW", np.ascontiguousarray(stored[index]).astype("<u2").tobytes())
            write_bytes(part / name, encode(image))
    return [folder / name for name in names]
