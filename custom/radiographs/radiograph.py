"""`Radiograph`: line integrals, mask of the field, view, and metadata of a radiograph that was read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydicom
from torch import Tensor

from custom.radiographs.acquisition_metadata import AcquisitionMetadata, MetadataValue, Origin

__all__ = ["Radiograph"]


@dataclass(frozen=True, eq=False)
class Radiograph:
    """One projection of a patient.

    Args:
        name: file name, with its folder where two files have that name, with the view's index for stacks.
        path: the file.
        sha256: of the file, hexadecimal.
        line_integrals: (V, U) float32, dimensionless -log(I / I0); row 0 superior, columns along u, as seen from the
            source. 0 outside the field.
        field_mask: bool (V, U), the exposed field: False behind collimator blades and shutters, on padding, outside the
            active detector.
        view: (13,) float64, millimetres in the isocentre frame, see `custom.geometry`; u and v steps of these pixels.
        metadata: how it was taken, each value with its unit and origin.
        warnings: plain language, one sentence each.
        header: the DICOM header without pixel data; None for PNG, TIFF and NIfTI.
        modality: "DX", "CR", "XA", "RF", "RTIMAGE", "PNG", "TIFF" or "NIfTI".
        called: its user's own name of the file, where the file has another one; "" otherwise.
    """

    name: str
    path: Path
    sha256: str
    line_integrals: Tensor
    field_mask: Tensor
    view: Tensor
    metadata: AcquisitionMetadata = field(default_factory=AcquisitionMetadata)
    warnings: tuple[str, ...] = ()
    header: pydicom.Dataset | None = None
    modality: str = ""
    called: str = ""

    @property
    def label(self) -> str:
        """The name, and beside it what its user calls the file."""
        return f"{self.name} ({self.called})" if self.called else self.name

    def with_warnings(self, *sentences: str) -> Radiograph:
        """The same radiograph with more warnings."""
        return replace(self, warnings=(*self.warnings, *sentences))

    def with_allowed(self, name: str, value: str, option: str, warning: str) -> Radiograph:
        """The same radiograph with what the option took for granted among its metadata, and a warning."""
        allowed: dict[str, Any] = {name: MetadataValue(name, value, Origin.OPTION, option)}
        return replace(self, metadata=replace(self.metadata, **allowed)).with_warnings(f"{self.name}: {warning}")
