"""Reading radiographs as hospitals have them: DICOM, PNG and TIFF with a sidecar, NIfTI stacks.

`read_radiographs` gives line integrals as seen from the source, the view that each was taken from, and its metadata,
each value with its origin; `assemble` brings them onto one detector. What files do not say is asked for, never assumed
in silence.
"""

from custom.radiographs.accepted_assumptions import ACCEPT
from custom.radiographs.acquisition_metadata import (
    AcquisitionMetadata,
    Contradiction,
    MetadataValue,
    MissingField,
    MissingMetadata,
    Origin,
)
from custom.radiographs.common_detector import Assembled, assemble
from custom.radiographs.load import read_radiographs
from custom.radiographs.radiograph import Radiograph
from custom.radiographs.sidecar import ANSWERS_FORMAT, SIDECAR_FORMAT

__all__ = [
    "ACCEPT",
    "ANSWERS_FORMAT",
    "SIDECAR_FORMAT",
    "AcquisitionMetadata",
    "Assembled",
    "Contradiction",
    "MetadataValue",
    "MissingField",
    "MissingMetadata",
    "Origin",
    "Radiograph",
    "assemble",
    "read_radiographs",
]
