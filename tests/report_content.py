"""A small reconstruction as a report gets it, for the tests of the page and of the page in a browser."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import torch
from torch import Tensor

from custom.core.attenuation import hu_to_attenuation
from custom.geometry import VolumeGrid, views_from_angles
from custom.projection import Projector
from custom.radiographs import AcquisitionMetadata, MetadataValue, Origin, Radiograph
from custom.report.reconstruction_page import ReportContent
from custom.trust import CheckResult, Verdict

GRID = VolumeGrid((32, 32, 32), (10.0, 10.0, 10.0))
SHAPE = (32, 48)
#: Centre of the densest part.
MARK_MM = (60.0, 50.0, 100.0)


def chest() -> Tensor:
    """HU (32, 32, 32): an elliptic cylinder of water with two lungs, a spine, and a mark (`MARK_MM`)."""
    x, y, z = GRID.points().unbind(-1)
    hu = torch.where((x / 140) ** 2 + (y / 100) ** 2 < 1, 20.0, -1000.0)
    hu = torch.where(((x.abs() - 65) / 45) ** 2 + (y / 65) ** 2 < 1, -800.0, hu)
    hu = torch.where((x / 18) ** 2 + ((y + 70) / 18) ** 2 < 1, 400.0, hu)
    mark = torch.stack([x, y, z], -1) - torch.tensor(MARK_MM)
    return torch.where(mark.abs().amax(-1) < 16, 1000.0, hu)


def radiograph(name: str, angle_deg: float) -> Radiograph:
    """A DX of the chest from one angle."""
    header = pydicom.Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientName, header.PatientID, header.StudyDate = "Müller^Jürgen", "PAT-7", "20260131"
    view = views_from_angles([angle_deg], pixel_mm=15.0)
    said = (
        MetadataValue("beam", "cone", Origin.FILE, "DICOM Modality (0008,0060) DX"),
        MetadataValue("angle_deg", angle_deg, Origin.FILE, "DICOM (0018,5101)"),
        MetadataValue("source_to_detector_mm", 1500.0, Origin.FILE, "DICOM (0018,1110)"),
        MetadataValue("detector_offset_mm", (0.0, 0.0), Origin.USUAL_VALUE, "the detector is centred"),
        MetadataValue("kvp", None, Origin.FILE, "DICOM (0018,0060), empty"),
    )
    return Radiograph(
        name=name,
        path=Path(name),
        sha256="a" * 64,
        line_integrals=torch.zeros(SHAPE),
        field_mask=torch.ones(SHAPE, dtype=torch.bool),
        view=view[0],
        metadata=AcquisitionMetadata(**{one.key: one for one in said}),
        warnings=("a warning of this file",),
        header=header,
        modality="DX",
    )


def content(**changes: Any) -> ReportContent:
    """Two views, two coarser samples; `changes` replace fields."""
    views = views_from_angles([90.0, 0.0], pixel_mm=15.0)
    hu = chest()
    image = Projector(GRID, SHAPE)(hu_to_attenuation(hu[None, None], 70.0), views.float())[0]
    field_mask = torch.ones(2, *SHAPE, dtype=torch.bool)
    field_mask[0, :4] = False
    coarse = torch.nn.functional.avg_pool3d(hu[None, None], 2)[0, 0]
    fields: dict[str, Any] = {
        "radiographs": [radiograph("frontal.dcm", 90.0), radiograph("lateral.dcm", 0.0)],
        "image": image,
        "views": views,
        "field_mask": field_mask,
        "reprojections": 0.98 * image,
        "energy_kev": 70.0,
        "hu": hu,
        "grid": GRID,
        "checks": [
            CheckResult("reprojection", Verdict.PASS, 6.1234, 9.3, 14.8, "As usual."),
            CheckResult("geometry", Verdict.REVIEW, 1.0, 0.0, None, "The distance is unusual."),
            CheckResult("samples", Verdict.NOT_CHECKED, None, None, None, "Not checked: one view."),
        ],
        "verdict": Verdict.REVIEW,
        "model": {"name": "tiny", "sha256": "d" * 64},
        "warnings": ["a warning of the reconstruction"],
        "std": torch.where(hu > -900, 150.0, 0.0),
        "samples": [coarse + 30, coarse - 30],
        "files": {"ct.nii.gz": "e" * 64},
        "created": datetime(2026, 2, 1, 12, tzinfo=UTC),
    }
    return ReportContent(**{**fields, **changes})
