"""What a radiograph is once it is read: line integrals, where it stands, and where each fact about it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from torch import Tensor

__all__ = ["Gap", "MissingFacts", "Radiograph", "Sourced"]


@dataclass(frozen=True)
class Sourced:
    """A value and its provenance.

    Args:
        value: number, string, tuple of numbers or None.
        source: such as "DICOM (0018,1110)", "sidecar frontal.json", "option --accept default-distances", "default ...".
    """

    value: Any
    source: str


@dataclass
class Radiograph:
    """One projection of a patient.

    Args:
        name: file name, with its folder where two files have that name, with the view's index for stacks.
        path: the file.
        sha256: of the file, hexadecimal.
        line_integrals: (V, U) float32, dimensionless -log(I / I0); row 0 superior, columns along u, as seen from the
            source. 0 where not exposed.
        exposed: bool (V, U): False behind collimator blades and shutters, on padding, outside the active detector.
        view: (13,) float64, millimetres in the isocentre frame, see `custom.geometry`; u and v steps of these pixels.
        facts: what was used, in the order of a report, each with its source.
        warnings: plain language, one sentence each.
        header: the DICOM header without pixel data; None for PNG, TIFF and NIfTI.
        modality: "DX", "CR", "XA", "RF", "RTIMAGE", "PNG", "TIFF" or "NIfTI".
    """

    name: str
    path: Path
    sha256: str
    line_integrals: Tensor
    exposed: Tensor
    view: Tensor
    facts: dict[str, Sourced]
    warnings: list[str] = field(default_factory=list)
    header: pydicom.Dataset | None = None
    modality: str = ""


@dataclass(frozen=True)
class Gap:
    """Something that a file does not say, or says twice differently, and that must not be assumed in silence.

    Args:
        file: the radiograph's name.
        problem: what is missing, with the attribute and its tag.
        remedy: what to write into the sidecar, or which --accept name says it.
    """

    file: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}; {self.remedy}"


class MissingFacts(ValueError):
    """Everything that is missing, in every file, in one message of one line; `gaps` has them one by one."""

    def __init__(self, gaps: Sequence[Gap]) -> None:
        self.gaps = list(gaps)
        things = "1 thing is" if len(self.gaps) == 1 else f"{len(self.gaps)} things are"
        listed = " | ".join(f"({i}) {gap}" for i, gap in enumerate(self.gaps, 1))
        super().__init__(f"{things} not known about the radiographs and will not be assumed in silence: {listed}")
