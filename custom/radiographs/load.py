"""`read_radiographs`: files of any kind in, radiographs with view, line integrals and metadata out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import torch
from torch import Tensor

from custom.core.files import sha256_file
from custom.dicom import header as dicom_header
from custom.dicom import pixels as dicom_pixels
from custom.radiographs import dicom_intensity, dicom_pose, rt_image_pose
from custom.radiographs.accepted_assumptions import check_accept
from custom.radiographs.acquisition_metadata import (
    AcquisitionMetadata,
    Contradiction,
    MissingField,
    MissingMetadata,
    Origin,
    value_of,
)
from custom.radiographs.described_file import DescribedFile, check_count, check_entries, describe, describe_stack
from custom.radiographs.discovery import find_radiographs
from custom.radiographs.given_view import place_given_view, reading_of_view
from custom.radiographs.intensity_meaning import PictureValues
from custom.radiographs.line_integrals import implausible, to_line_integrals
from custom.radiographs.picture_files import read_picture
from custom.radiographs.radiograph import Radiograph
from custom.radiographs.readings import Reading, found, merge, note
from custom.radiographs.same_exposure import check_exposures
from custom.radiographs.same_patient import check_patient
from custom.radiographs.sidecar import find_sidecar, load_geometry_file
from custom.radiographs.view_from_metadata import Placement, StoredPose, check_sizes, view_from_metadata

__all__ = ["read_radiographs"]

_DISTANCES = ("source_to_detector_mm", "source_to_isocenter_mm")


@dataclass(frozen=True)
class _Unfinished:
    """A radiograph of which something has to be asked first."""

    name: str
    path: Path
    header: pydicom.Dataset | None
    metadata: AcquisitionMetadata
    questions: tuple[MissingField | Contradiction, ...]

    def with_warnings(self, *_: str) -> _Unfinished:
        """The same: what is asked stands before all warnings."""
        return self

    def with_allowed(self, *_: str) -> _Unfinished:
        """The same, likewise."""
        return self


@dataclass(frozen=True)
class _Request:
    """What all files of one call share."""

    accept: frozenset[str]
    headers: Mapping[Path, dicom_header.Header]
    names: Mapping[Path, str]


def read_radiographs(
    paths: Sequence[str | os.PathLike[str]],
    geometry: str | os.PathLike[str] | None = None,
    accept: Sequence[str] | str = (),
) -> list[Radiograph]:
    """Read radiographs of one patient.

    Args:
        paths: files and folders: DICOM DX, CR, XA, RF, RTIMAGE single frames; PNG and TIFF with a JSON sidecar; NIfTI
            stacks of line integrals with a `custom.geometry.Geometry` JSON. Named files keep their order, those of a
            folder are sorted.
        geometry: one JSON for all (docs/reference/radiographs.md): values by file name, or a Geometry with the views in
            the files' order. It goes before sidecars, which go before DICOM.
        accept: names of `ACCEPT`, assumptions that may be made where nothing else says.

    Returns:
        One radiograph a view.

    Raises:
        FileNotFoundError: for a file that is not there.
        MissingMetadata: once for all files, naming each missing or contradictory thing and its remedy.
        ValueError: one line that names the file: damaged, no radiograph, colour, several frames, different patients.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    described = None if geometry is None else load_geometry_file(Path(geometry))
    assumptions = check_accept(accept)
    chosen, headers, skipped = _select(find_radiographs(paths), described is not None)
    request = _Request(assumptions, headers, _names([path for path, _ in chosen]))
    check_count(described, [kind for _, kind in chosen])
    hashes: dict[str, Path] = {}
    sidecars: dict[Path, Path] = {}
    outcomes: list[Radiograph | _Unfinished] = []
    usable_names = [name for path, _ in chosen for name in (str(path), request.names[path])]
    for position, (path, kind) in enumerate(chosen):
        digest = sha256_file(path)
        if digest in hashes:
            raise ValueError(f"{path} and {hashes[digest]} are the same radiograph; give it once")
        hashes[digest] = path
        beside = find_sidecar(path)
        if beside is not None and (other := sidecars.setdefault(beside, path)) is not path:
            raise ValueError(
                f"{beside}: stands beside {other.name} and {path.name}; call them {other.name}.json and "
                f"{path.name}.json"
            )
        if kind == "NIfTI":
            stack = describe_stack(path, request.names[path], described)
            views = [_read_line_integrals(*one, digest, request) for one in stack]
            usable_names += [f"{name}[{k}]" for name in (str(path), request.names[path]) for k in range(len(views))]
            outcomes += views
        else:
            file = describe(path, request.names[path], described, position)
            outcomes.append((_read_dicom if kind == "DICOM" else _read_picture)(file, kind, digest, request))
    check_entries(described, usable_names)
    outcomes, others = check_patient(outcomes, assumptions)
    radiographs = [one for one in outcomes if isinstance(one, Radiograph)]
    radiographs, copies = check_exposures(radiographs, assumptions)
    asked = (q for one in outcomes if isinstance(one, _Unfinished) for q in one.questions)
    questions = (*others, *asked, *copies)
    if questions:
        raise MissingMetadata(questions, {one.name: one.metadata for one in outcomes})
    called = {} if described is None else described.called
    radiographs = [replace(one, called=called.get(one.path.name, "")) for one in radiographs]
    return [radiographs[0].with_warnings(*skipped), *radiographs[1:]]


def _names(paths: list[Path]) -> dict[Path, str]:
    """What each file is called in messages: its name, with as many folders as tell it from others of that name."""
    names = {path: path.name for path in paths}
    for path, other in ((p, o) for p in paths for o in paths if p is not o and p.name == o.name):
        mine, others = path.absolute().parts, other.absolute().parts
        count = next((n for n in range(1, len(mine) + 1) if mine[-n:] != others[-n:]), len(mine))
        names[path] = max(names[path], "/".join(mine[-count:]), key=len)
    return names


def _select(
    files: Sequence[tuple[Path, str, bool]], has_geometry: bool
) -> tuple[list[tuple[Path, str]], dict[Path, dicom_header.Header], list[str]]:
    """Leave out what folders hold besides radiographs, and pictures for viewing whose raw picture is there too.

    Returns:
        Files with their kinds, the headers of the DICOM files, and what is to be said of those left out.
    """
    kept: list[tuple[Path, str]] = []
    skipped: list[str] = []
    headers: dict[Path, dicom_header.Header] = {}
    for path, kind, named in files:
        if kind == "DICOM":
            try:
                headers[path] = dicom_header.read_header(path)
            except dicom_header.NotARadiograph:
                if named:
                    raise
                skipped.append(f"{path.name} in the folder was left out: no radiograph")
                continue
        elif kind in ("PNG", "TIFF") and not named and find_sidecar(path) is None and not has_geometry:
            skipped.append(f"{path.name} in the folder was left out: a picture without a sidecar")
            continue
        kept.append((path, kind))
    uids = {dicom_header.text(h.dataset, "SOPInstanceUID"): p for p, h in headers.items()}
    for path, header in headers.items():
        raw = uids.get(_raw_picture_uid(header.dataset))
        intent = dicom_header.text(header.dataset, "PresentationIntentType")
        if intent.removeprefix("FOR ") == "PRESENTATION" and raw is not None and raw != path:
            kept.remove((path, "DICOM"))
            skipped.append(f"{path.name} was left out: {raw.name} is the same exposure, for processing")
    if not kept:
        raise ValueError(f"no radiographs among {len(files)} files: {skipped[0] if skipped else 'nothing to read'}")
    return kept, headers, skipped


def _raw_picture_uid(dataset: pydicom.Dataset) -> str:
    try:
        return str(dataset.SourceImageSequence[0].ReferencedSOPInstanceUID).strip()
    except Exception:  # absent, empty or damaged
        return ""


def _place(
    file: DescribedFile, others: Reading, pose: StoredPose, shape: tuple[int, int], accept: frozenset[str]
) -> tuple[Placement | None, Reading]:
    """Where a radiograph stands, and all readings of it; `others` are those of sidecar and tags."""
    if file.view is None:
        placement, own = view_from_metadata(others, pose, accept)
        return placement, others + own + check_sizes(others + own, shape)
    if not file.is_overruled:
        return place_given_view(file.name, file.view, others, pose, shape)
    # The geometry file goes before a sidecar, also where that gives the whole view.
    both = others.without_questions() + reading_of_view(file.view)
    placement, own = view_from_metadata(both, replace(pose, seen_from_source=True), accept)
    return placement, both + own


def _finish(
    file: DescribedFile,
    digest: str,
    placement: Placement | None,
    pictures: tuple[Tensor, Tensor] | None,
    metadata: AcquisitionMetadata,
    modality: str,
    header: pydicom.Dataset | None = None,
) -> Radiograph | _Unfinished:
    """The radiograph of (V, U) line integrals and field as stored, or what has to be asked first."""
    if metadata.questions or placement is None or pictures is None:
        questions = (
            replace(one, file=one.file or file.name, sidecar=one.sidecar or file.sidecar) for one in metadata.questions
        )
        return _Unfinished(file.name, file.path, header, metadata, tuple(questions))
    pixels, field_mask = (placement.flips.picture(picture) for picture in pictures)
    warnings = tuple(f"{file.name}: {sentence}" for sentence in metadata.warnings())
    return Radiograph(
        file.name, file.path, digest, pixels, field_mask, placement.view, metadata, warnings, header, modality
    )


def _read_dicom(file: DescribedFile, kind: str, digest: str, request: _Request) -> Radiograph | _Unfinished:
    header, frame = request.headers[file.path], value_of(merge(file.reading).frame)
    stored, said = dicom_pixels.read_pixels(header, None if frame is None else int(frame))
    shape = (stored.shape[0], stored.shape[1])
    notes = list(said)
    if header.damaged:
        values = [f"{name} {value!r}" if value else name for name, value in list(header.damaged.items())[:5]]
        notes.insert(0, f"the header is damaged; not read: {', '.join(values)}")
    given = Reading() if file.view is None else reading_of_view(file.view)
    # Distances of a whole view help to read the tags; its angle and pixels are compared with theirs.
    helpful = replace(given, values=tuple(v for v in given.values if v.key in ("beam", *_DISTANCES)))
    locate = rt_image_pose.read_rt_pose if header.modality == "RTIMAGE" else dicom_pose.read_pose
    tags, pose = locate(header, helpful + file.reading, shape, int(frame or 1), request.accept)
    placement, reading = _place(file, file.reading + tags, pose, shape, request.accept)
    reading += note(*notes) + dicom_intensity.read_intensity(header, file.reading)
    picture = dicom_intensity.picture_values(header, stored, pose.active)
    pictures, reading = to_line_integrals(picture, reading, request.accept, file.name)
    return _finish(file, digest, placement, pictures, merge(reading), header.modality, header.dataset)


def _of_picture(kind: str, path: Path) -> Reading:
    """What holds for pictures without tags."""
    own = found("modality", kind, Origin.FILE, f"file {path.name}")
    return own + found("beam", "cone", Origin.USUAL_VALUE, "a point source")


def _read_picture(file: DescribedFile, kind: str, digest: str, request: _Request) -> Radiograph | _Unfinished:
    frame = value_of(merge(file.reading).frame)
    if frame is not None and frame != 1:
        raise ValueError(f"{file.path}: frame {frame:g} is asked for, there is 1")
    pixels, highest, photometric = read_picture(file.path)
    shape = (pixels.shape[0], pixels.shape[1])
    own = _of_picture(kind, file.path)
    shown = {"MONOCHROME1": "WhiteIsZero, lower values are brighter", "MONOCHROME2": "higher values are brighter"}
    own += found("photometric", photometric, Origin.FILE, f"{kind}: {shown[photometric]}")
    if highest == 255:
        own += note("only 8 bits of grey: 256 steps for all line integrals")
    placement, reading = _place(file, file.reading + own, StoredPose(), shape, request.accept)
    picture = PictureValues(pixels, np.ones(shape, dtype=bool), (0.0, float(highest)))
    pictures, reading = to_line_integrals(picture, reading, request.accept, file.name)
    return _finish(file, digest, placement, pictures, merge(reading), kind)


def _read_line_integrals(
    file: DescribedFile, image: Tensor, digest: str, request: _Request
) -> Radiograph | _Unfinished:
    """One view of a stack, which is stored as seen from the source unless something says otherwise."""
    own = _of_picture("NIfTI", file.path)
    own += found("intensity_relationship", "line integrals", Origin.FILE, f"file {file.path.name}")
    pose, shape = StoredPose(seen_from_source=True), (image.shape[0], image.shape[1])
    placement, reading = _place(file, own + file.reading, pose, shape, request.accept)
    pictures = image, torch.ones_like(image, dtype=torch.bool)
    reading += implausible(*(one.numpy() for one in pictures))
    return _finish(file, digest, placement, pictures, merge(reading), "NIfTI")
