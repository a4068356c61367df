"""Writer of a synthetic CT's uncertainty as a DICOM Parametric Map in the CT's frame of reference."""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from torch import Tensor

from custom import __version__
from custom.core.files import write_bytes
from custom.dicom.opener import open_dicom
from custom.dicom.strict import dicom_files, encode, new_uid, set_value, strict_validation
from custom.dicom.write_ct import CT_IMAGE_STORAGE, MANUFACTURER, SERIES_NUMBER, equipment_item

__all__ = [
    "LOWER",
    "MAP_DESCRIPTION",
    "PARAMETRIC_MAP_STORAGE",
    "SPREAD",
    "UPPER",
    "MapKind",
    "why_no_map",
    "write_uncertainty_map",
]

PARAMETRIC_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.30"
MAP_DESCRIPTION = "SYNTHETIC CT UNCERTAINTY (SD, HU), NOT FOR DIAGNOSTIC USE"


@dataclass(frozen=True)
class MapKind:
    """What a map holds.

    Attributes:
        name: of the series among those of a CT, for its UIDs.
        number: added to the CT's series number.
        label: LUT Label (0040,9210), and in Content Label.
        explanation: LUT Explanation (0028,3003), at most 64 characters.
        description: Series Description.
        derivation: how it was made, one sentence.
        quantity: value and scheme and meaning of the quantity's code.
        window: center and width that viewers begin with [HU].
        signed: whether values may be negative.
    """

    name: str
    number: int
    label: str
    explanation: str
    description: str
    derivation: str
    quantity: tuple[str, str, str]
    window: tuple[float, float]
    signed: bool


SPREAD = MapKind(
    "map", 1, "SD", "Standard deviation of samples (HU)", MAP_DESCRIPTION,
    "Standard deviation of the samples of a synthetic CT, in HU, voxel by voxel.",
    ("386136009", "SCT", "Standard Deviation"), (100.0, 200.0), False,
)  # fmt: skip
LOWER, UPPER = (
    MapKind(
        f"{end} limit", number, end.upper(), f"{end.capitalize()} limit of a 90 % interval (HU)",
        f"SYNTHETIC CT {end.upper()} LIMIT (90 %, HU), NOT FOR DIAGNOSTIC USE",
        f"{end.capitalize()} limit of calibrated 90 % intervals around a synthetic CT, in HU.",
        ("112031", "DCM", "Attenuation Coefficient"), (40.0, 400.0), True,
    )
    for end, number in (("lower", 2), ("upper", 3))
)  # fmt: skip


def _highdicom() -> Any:
    try:
        import highdicom
    except ModuleNotFoundError as error:
        what = "DICOM parametric maps are written by highdicom"
        if int(pydicom.__version__.split(".")[0]) < 3:
            raise ModuleNotFoundError(
                f"{what}, which needs pydicom 3, and this environment has {pydicom.__version__} (for MONAI Label): "
                "use another environment"
            ) from error
        raise ModuleNotFoundError(f"{what}, which is not installed: pip install 'fewview-ct[dicom]'") from error
    return highdicom


def why_no_map() -> str | None:
    """Why no map can be written in this environment, and what to install; None: it can."""
    try:
        _highdicom()
    except ModuleNotFoundError as error:
        return str(error)
    return None


def _slices(folder: Path) -> list[Dataset]:
    """Headers of the folder's one CT series, from feet to head."""
    headers = [open_dicom(path, pixels=False) for path in dicom_files(folder)]
    headers = [h for h in headers if h.get("SOPClassUID") == CT_IMAGE_STORAGE]
    series = {str(h.get("SeriesInstanceUID")) for h in headers}
    if len(series) != 1:
        raise ValueError(f"{folder} holds {len(series) or 'no'} CT series; the map is written beside one")
    return sorted(headers, key=lambda h: int(h.InstanceNumber))


def write_uncertainty_map(
    std_hu: Tensor | npt.NDArray[Any],
    ct_folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    model: Mapping[str, str],
    *,
    kind: MapKind = SPREAD,
    uid_seed: str | None = None,
) -> Path:
    """Write the standard deviation of the samples, or another map in HU, as a Parametric Map (PS3.3 A.75), one
    multi-frame file.

    Args:
        std_hu: (X, Y, Z), standard deviation (or what `kind` says) in HU, on the RAS+ grid of the CT that
            `write_ct_series` wrote.
        ct_folder: that series. Patient, study, character set and frame of reference are taken from it, and each
            frame names the slice it belongs to.
        path: target file; written whole or not at all.
        model: "name", "sha256" and "version" of the model.
        kind: `SPREAD`, `LOWER` or `UPPER`.
        uid_seed: makes the new UIDs a function of it; None gives random ones.

    Raises:
        ModuleNotFoundError: highdicom is not installed.
        ValueError: another shape than the CT's, values that are not finite, negative ones of a spread, or no CT series
            in the folder.
    """
    highdicom = _highdicom()
    from highdicom.sr import CodedConcept

    ct_folder, path = Path(ct_folder), Path(path)
    slices = _slices(ct_folder)
    values = std_hu.detach().cpu().numpy() if isinstance(std_hu, Tensor) else np.asarray(std_hu)
    shape = (int(slices[0].Columns), int(slices[0].Rows), len(slices))
    if values.shape != shape:
        raise ValueError(f"the map has the shape {values.shape}, the CT series in {ct_folder} {shape}")
    values = values.astype(np.float32)
    if not np.isfinite(values).all() or (values.min() < 0 and not kind.signed):
        raise ValueError("a standard deviation must be finite and not negative: the map holds other values")
    frames = np.ascontiguousarray(values[::-1, ::-1].transpose(2, 1, 0))
    equipment = equipment_item(model, kind.derivation, datetime.datetime.now())
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label=kind.label,
        lut_explanation=kind.explanation,
        unit=CodedConcept("[hnsf'U]", "UCUM", "Hounsfield unit"),
        value_range=(float(values.min()) if kind.signed else 0.0, max(float(values.max()), 1.0)),
        slope=1.0,
        intercept=0.0,
        quantity_definition=CodedConcept(*kind.quantity),
    )
    with strict_validation(), warnings.catch_warnings():
        # highdicom warns of names with one component and of its own deprecations; what is written is checked below.
        warnings.simplefilter("ignore", UserWarning)
        result = highdicom.pm.ParametricMap(
            source_images=slices,
            pixel_array=frames,
            series_instance_uid=new_uid(f"{kind.name} series", uid_seed),
            series_number=SERIES_NUMBER + kind.number,
            sop_instance_uid=new_uid(kind.name, uid_seed),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=model["name"],
            software_versions=f"{MANUFACTURER} {__version__}",
            device_serial_number=model["sha256"],
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[highdicom.VOILUTTransformation(*kind.window)],
            content_label="UNCERTAINTY" if kind is SPREAD else kind.label,
            content_description="Standard deviation of a synthetic CT" if kind is SPREAD else kind.explanation,
            series_description=kind.description,
            # Set below as it is in the CT: highdicom takes no character set it does not know.
            specific_character_set=None,
        )
        for keyword in ("SpecificCharacterSet", "PatientName", "PatientID", "ReferringPhysicianName"):
            if keyword in slices[0]:
                set_value(result, keyword, _plain(slices[0][keyword].value), "CT series")
        # Without a body part that is no pair, Laterality (0020,0060) would be missing.
        set_value(result, "BodyPartExamined", slices[0].BodyPartExamined, "CT series")
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if keyword in slices[0]:
                set_value(result, keyword, slices[0][keyword].value, "CT series")
        # highdicom names the CT's maker as acquisition equipment; a synthetic CT was not acquired.
        kept = [e for e in result.ContributingEquipmentSequence if _purpose(e) != "109101"]
        result.ContributingEquipmentSequence = [*kept, equipment]
    write_bytes(path, encode(result))
    return path


def _purpose(item: Dataset) -> str:
    return str(item.PurposeOfReferenceCodeSequence[0].CodeValue)


def _plain(value: Any) -> Any:
    """Person names as text, so that they are encoded anew in the file's own character set."""
    return str(value) if isinstance(value, pydicom.valuerep.PersonName) else value
