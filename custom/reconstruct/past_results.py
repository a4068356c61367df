"""Results of the past: what result.json says of them, whose they are, and in which order they were taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AwareDatetime, BaseModel, Field, FiniteFloat

from custom.core.files import read_json_object
from custom.core.json_models import validated
from custom.core.limits import check_count
from custom.dicom.header import text
from custom.dicom.identity import patient_of
from custom.dicom.opener import open_dicom
from custom.geometry import is_cone
from custom.reconstruct.outputs import RESULT
from custom.reconstruct.result import FORMAT

__all__ = ["PastResult", "first_of_each_patient", "read_results"]

#: Results that are read at once.
MOST_RESULTS = 10_000
_TAGS = ("PatientID", "PatientName", "PatientBirthDate", "IssuerOfPatientID", "StudyDate", "StudyTime")


class _Check(BaseModel):
    name: str
    statistic: FiniteFloat | None


class _Model(BaseModel):
    name: str
    sha256: str


class _Thresholds(BaseModel):
    sha256: str


class _Settings(BaseModel):
    samples: int
    thresholds: _Thresholds | None = None


class _Radiograph(BaseModel):
    sha256: str
    view: Annotated[list[FiniteFloat], Field(min_length=13, max_length=13)]


class _Volume(BaseModel):
    shape: tuple[int, int, int]


class _Content(BaseModel):
    format: Literal[FORMAT]  # type: ignore[valid-type]
    created: AwareDatetime
    model: _Model
    settings: _Settings
    checks: list[_Check]
    radiographs: Annotated[list[_Radiograph], Field(min_length=1)]
    volume: _Volume


@dataclass(frozen=True)
class PastResult:
    """One result folder.

    Attributes:
        folder: of the result.
        created: when it was reconstructed.
        taken: StudyDate and StudyTime of its DICOM series, YYYYMMDDHHMMSS; "": it has none.
        patient: ID, or name and birth date, of that series; None: it does not say.
        radiographs: their SHA-256.
        beam: "cone" or "parallel".
        views: how many.
        statistics: of the checks, by name.
        model: SHA-256 of the weights.
        thresholds: SHA-256 of the file; None: nothing was checked.
        samples: drawn.
        voxels: of the volume.
    """

    folder: Path
    created: datetime
    taken: str
    patient: tuple[str, str] | None
    radiographs: frozenset[str]
    beam: str
    views: int
    statistics: dict[str, float | None]
    model: str
    thresholds: str | None
    samples: int
    voxels: tuple[int, int, int]


def read_results(folders: Sequence[str | os.PathLike[str]]) -> list[PastResult]:
    """The results, the oldest first: by Study Date and Time where every one has a DICOM series, else by creation.

    Args:
        folders: of `fewview-ct reconstruct`, or folders that hold such.

    Raises:
        FileNotFoundError: a folder that is not there, or holds no result.
        ValueError: naming the file: a result.json that is none, or a damaged DICOM series.
    """
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        own = [folder] if (folder / RESULT).is_file() else sorted(p.parent for p in folder.glob(f"*/{RESULT}"))
        if not own:
            raise FileNotFoundError(f"{folder}: neither it nor a folder in it holds a {RESULT}")
        found.update(dict.fromkeys(one.resolve() for one in own))
    check_count("results", "result folders", len(found), MOST_RESULTS)
    results = [_read(folder) for folder in found]
    dated = all(result.taken for result in results)
    return sorted(results, key=lambda r: (r.taken if dated else "", r.created, r.folder))


def first_of_each_patient(results: Sequence[PastResult]) -> list[PastResult]:
    """Without later results of a patient, or of radiographs, that came before; who is not named counts as new."""
    patients, radiographs, kept = set[tuple[str, str]](), set[str](), []
    for result in results:
        if result.patient not in patients and not result.radiographs & radiographs:
            kept.append(result)
        radiographs |= result.radiographs
        if result.patient is not None:
            patients.add(result.patient)
    return kept


def _read(folder: Path) -> PastResult:
    content = validated(_Content, read_json_object(folder / RESULT), str(folder / RESULT))
    cone = {bool(is_cone(torch.tensor(one.view))) for one in content.radiographs}
    taken, patient = _study(folder)
    return PastResult(
        folder,
        content.created,
        taken,
        patient,
        frozenset(one.sha256 for one in content.radiographs),
        "cone" if True in cone else "parallel",
        len(content.radiographs),
        {check.name: check.statistic for check in content.checks},
        content.model.sha256,
        None if content.settings.thresholds is None else content.settings.thresholds.sha256,
        content.settings.samples,
        content.volume.shape,
    )


def _study(folder: Path) -> tuple[str, tuple[str, str] | None]:
    """When the study of the DICOM series in a result was, and whose it is."""
    files = sorted((folder / "ct").glob("*.dcm"))
    if not files:
        return "", None
    dataset = open_dicom(files[0], pixels=False, tags=_TAGS)
    if "PatientID" not in dataset or "StudyDate" not in dataset:  # which may be empty
        raise ValueError(f"{files[0]}: damaged, or no slice of a CT series: it has no Patient ID or Study Date")
    who = patient_of(dataset)
    identity = who["PatientID"], who["IssuerOfPatientID"]
    if not identity[0]:
        identity = who["PatientName"].casefold(), who["PatientBirthDate"]
    day, time = (text(dataset, key).replace(".", "").replace(":", "") for key in ("StudyDate", "StudyTime"))
    date = day if len(day) == 8 and day.isdigit() else ""
    return date and date + time[:6].ljust(6, "0"), identity if identity[0] else None
