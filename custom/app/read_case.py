"""The step that reads a case's radiographs: pictures, values with their origins, and what is missing.

It runs in a process of its own in the case's folder, since the files come from outside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom.app.case_folder import ANSWERS, UNREADABLE, Case
from custom.core.files import write_json
from custom.dicom.header import read_header
from custom.dicom.pixels import read_pixels
from custom.geometry import ViewRow
from custom.projection.radiograph_stack import read_stack
from custom.radiographs import AcquisitionMetadata, MissingMetadata, Origin, read_radiographs
from custom.radiographs.discovery import kind_of
from custom.radiographs.picture_files import read_picture
from custom.radiographs.sidecar import find_sidecar, load_sidecar
from custom.report.patient_head import patient_facts
from custom.report.radiograph_pictures import grey_limits, grey_picture, side_letters
from custom.report.radiograph_section import value_words

__all__ = ["main", "read_case"]

READING = "reading.json"
#: Where values come from, in the page's words; others in those of the report.
_BY = {Origin.ANSWER: "your answer", Origin.OPTION: "you allowed it"}


def read_case(folder: Path, accept: Sequence[str]) -> None:
    """Write reading.json and the pictures of the radiographs that the case's record names.

    Raises:
        ValueError: files that cannot be used.
    """
    record = Case(folder).record
    files = sorted(
        (folder / "files" / own for own in record["files"] if not own.endswith(".json")),
        key=lambda path: (len(path.name), path.name),
    )
    answers = folder / ANSWERS
    shown: list[dict[str, Any]] = []
    questions: list[dict[str, Any]] = []
    patient: dict[str, str] = {}
    try:
        radiographs = read_radiographs(files, answers if answers.is_file() else None, accept)
        patient = patient_facts([radiograph.header for radiograph in radiographs])
        for one in radiographs:
            view = ViewRow.from_tensor(one.view)
            limits = grey_limits(one.line_integrals, one.field_mask)
            height, width = view.pixel_mm.tolist()
            picture = grey_picture(one.line_integrals, one.field_mask, limits, (height, width))
            shown.append({**_described(one.name, one.metadata), "sides": side_letters(one.view)})
            shown[-1]["warnings"] = [sentence.removeprefix(f"{one.name}: ") for sentence in one.warnings]
            picture.save(folder / f"picture_{len(shown)}.png")
    except MissingMetadata as missing:
        for name, metadata in missing.known.items():
            linear = metadata.intensity_relationship is not None and metadata.intensity_relationship.value == "LIN"
            pixels = _stored(folder / "files" / name, linear)
            shown.append({**_described(name, metadata), "patient": _whose(folder / "files" / name)})
            everywhere = torch.ones_like(pixels, dtype=torch.bool)
            limits = grey_limits(pixels, everywhere)
            grey_picture(pixels, everywhere, limits, (1.0, 1.0)).save(folder / f"picture_{len(shown)}.png")
        questions = [
            {"file": one.file, "problem": one.problem, "keys": one.keys, "accept": one.accept, "advice": one.advice}
            for one in missing.questions
        ]
    except (ValueError, OSError):
        if not (reasons := dict(_unreadable(files))):
            raise
        write_json(folder / UNREADABLE, reasons)
        raise ValueError(
            f"{len(reasons)} of {len(files)} files cannot be read: leave out what the list names"
        ) from None
    given = {key: record[key] for key in ("answers", "accept")}
    write_json(folder / READING, {"patient": patient, "radiographs": shown, "questions": questions, "given": given})


def _described(name: str, metadata: AcquisitionMetadata) -> dict[str, Any]:
    values = []
    for key, value in metadata.known().items():
        *words, by = value_words(value)
        values.append((key, *words, _BY.get(value.origin, by)))
    return {"file": name, "values": values, "warnings": list(metadata.warnings()), "sides": None}


def _unreadable(files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """The files that cannot be read even for themselves, each with what is wrong: all of them, not only the first."""
    for path in files:
        wrong = find_sidecar(path)
        try:
            load_sidecar(path)
            wrong = path
            read_radiographs([path])
        except MissingMetadata:
            continue
        except (ValueError, OSError) as error:
            yield (wrong or path).name, " ".join(str(error).split())


def _whose(path: Path) -> dict[str, str]:
    """The patient that a DICOM file names."""
    return patient_facts([read_header(path).dataset]) if path.is_file() and kind_of(path) == "DICOM" else {}


def _stored(path: Path, linear: bool) -> Tensor:
    """A picture (V, U) as it is stored, in a scale that shows anatomy, turned round where its rim is bright as air is.

    Args:
        path: the file, with the index of the view in a stack.
        linear: whether the values are known to be proportional to the intensity.
    """
    name, _, index = path.name.partition("[")
    path = path.with_name(name)
    kind = kind_of(path)
    if kind == "NIfTI":
        values = read_stack(path, None)[int(index.rstrip("]") or 0)]
    elif kind == "DICOM":
        values = torch.from_numpy(read_pixels(read_header(path), 1)[0]).float()
    else:
        values = torch.from_numpy(read_picture(path)[0])
    if linear:
        values = torch.log1p(values - values.min())
    rim = torch.cat([values[0], values[-1], values[:, 0], values[:, -1]])
    return -values if rim.median() > values.median() else values


def main() -> None:
    """Read the case in the working directory; the arguments are names of assumptions."""
    os.umask(0o077)
    try:
        read_case(Path(), sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)
