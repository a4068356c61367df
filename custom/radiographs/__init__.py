"""Radiographs as hospitals have them: DICOM, PNG and TIFF with a sidecar, NIfTI stacks.

`read_radiographs` gives line integrals as seen from the source, the view that each was taken from, and where every fact
comes from; `assemble` brings them onto one detector. What files do not say is asked for, never assumed in silence.
"""

from custom.radiographs.assemble import Assembled, assemble
from custom.radiographs.facts import ACCEPT
from custom.radiographs.load import read_radiographs
from custom.radiographs.record import Gap, MissingFacts, Radiograph, Sourced
from custom.radiographs.sidecar import SIDECAR_FORMAT

__all__ = [
    "ACCEPT",
    "SIDECAR_FORMAT",
    "Assembled",
    "Gap",
    "MissingFacts",
    "Radiograph",
    "Sourced",
    "assemble",
    "read_radiographs",
]
