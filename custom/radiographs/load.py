"""`read_radiographs`: files of any kind in, radiographs with geometry, line integrals and provenance out."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
import torch
from torch import Tensor

from custom.core.files import sha256_file
from custom.dicom import header as dicom_header
from custom.dicom import pixels as dicom_pixels
from custom.geometry import Geometry
from custom.radiographs import dicom_intensity, dicom_pose, rt_image_pose
from custom.radiographs.acquisition_metadata import FactSheet, check_accept
from custom.radiographs.discovery import find_radiographs
from custom.radiographs.known_view import known_view
from custom.radiographs.line_integrals import relate
from custom.radiographs.picture_files import read_picture, read_stack
from custom.radiographs.radiograph import Gap, MissingFacts, Radiograph, Sourced
from custom.radiographs.sidecar import GeometryFile, Sidecar, find_sidecar, load_geometry_file, load_sidecar
from custom.radiographs.view_from_metadata import Turn

__all__ = ["read_radiographs"]

logger = logging.getLogger(__name__)


@dataclass
class _Run:
    """What all files of one call share."""

    geometry: GeometryFile | None
    accept: frozenset[str]
    gaps: list[Gap] = field(default_factory=list)
    used_entries: set[str] = field(default_factory=set)
    used_views: int = 0
    headers: dict[Path, dicom_header.Header] = field(default_factory=dict)
    names: dict[Path, str] = field(default_factory=dict)

    def describe(self, path: Path) -> tuple[FactSheet, Sidecar | None]:
        """A sheet for one file with what `--geometry` and its sidecar say, and the view if they give one whole."""
        beside = find_sidecar(path)
        sheet = FactSheet(self.names[path], (beside or path.with_name(f"{path.stem}.json")).name, self.accept)
        found: Sidecar | None = None
        sidecars = []
        if self.geometry is not None and self.geometry.geometry is not None:
            geometry = self.geometry.geometry
            if self.used_views < len(geometry):
                view, source = geometry.views[self.used_views], f"--geometry {self.geometry.path.name}"
                angles = tuple(geometry.angles_deg)
                found = Sidecar(source, view=view, shape=geometry.detector_shape, angles_deg=angles)
            self.used_views += 1
        elif self.geometry is not None:
            for key in (str(path), self.names[path]):
                if key in self.geometry.entries:
                    self.used_entries.add(key)
                    sidecars.append(self.geometry.entries[key])
                    break
        if beside is not None and found is None:
            sidecars.append(load_sidecar(beside))
        for sidecar in sidecars:
            if sidecar.view is not None:
                found = sidecar
            for key, value in sidecar.values.items():
                sheet.offer(key, value, sidecar.source)
        return sheet, found


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
        geometry: one JSON for all (docs/reference/radiographs.md): facts by file name, or a Geometry with the views in
            the files' order. It goes before sidecars, which go before DICOM.
        accept: names of `ACCEPT`, assumptions that may be made where nothing else says.

    Returns:
        One radiograph a view.

    Raises:
        FileNotFoundError: for a file that is not there.
        MissingFacts: once for all files, naming each missing thing and its remedy.
        ValueError: one line that names the file: damaged, no radiograph, colour, several frames, different patients.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    run = _Run(None if geometry is None else load_geometry_file(Path(geometry)), check_accept(accept))
    files = find_radiographs(paths)
    chosen, skipped = _select(files, run)
    run.names = _names([path for path, _ in chosen])
    hashes: dict[str, Path] = {}
    radiographs: list[Radiograph] = []
    for path, kind in chosen:
        digest = sha256_file(path)
        if digest in hashes:
            raise ValueError(f"{path} and {hashes[digest]} are the same radiograph; give it once")
        hashes[digest] = path
        if kind == "NIfTI":
            radiographs += _read_nifti(path, digest, run)
        else:
            found = _read_dicom(path, digest, run) if kind == "DICOM" else _read_png(path, kind, digest, run)
            radiographs += [found] if found is not None else []
    _check_geometry_file(run)
    _check_patient(radiographs, run)
    if run.gaps:
        raise MissingFacts(run.gaps)
    for sentence in skipped:
        radiographs[0].warnings.append(sentence)
    return radiographs


def _names(paths: list[Path]) -> dict[Path, str]:
    """What each file is called in messages: its name, with as many folders as tell it from others of that name."""
    names = {path: path.name for path in paths}
    for path, other in ((p, o) for p in paths for o in paths if p is not o and p.name == o.name):
        mine, others = path.absolute().parts, other.absolute().parts
        count = next((n for n in range(1, len(mine) + 1) if mine[-n:] != others[-n:]), len(mine))
        names[path] = max(names[path], "/".join(mine[-count:]), key=len)
    return names


def _select(files: list[tuple[Path, str, bool]], run: _Run) -> tuple[list[tuple[Path, str]], list[str]]:
    """Leave out what folders hold besides radiographs, and pictures for viewing whose raw picture is there too."""
    kept: list[tuple[Path, str]] = []
    skipped: list[str] = []
    for path, kind, named in files:
        if kind == "DICOM":
            try:
                run.headers[path] = dicom_header.read_header(path)
            except ValueError as error:
                if named or "not a radiograph" not in str(error):
                    raise
                skipped.append(f"{path.name} in the folder was left out: no radiograph")
                continue
        elif kind in ("PNG", "TIFF") and not named and find_sidecar(path) is None and run.geometry is None:
            skipped.append(f"{path.name} in the folder was left out: a picture without a sidecar")
            continue
        kept.append((path, kind))
    uids = {dicom_header.text(h.dataset, "SOPInstanceUID"): p for p, h in run.headers.items()}
    for path, header in run.headers.items():
        source = _source_uid(header.dataset)
        if _intent(header) == "presentation" and source in uids and uids[source] != path:
            kept.remove((path, "DICOM"))
            skipped.append(f"{path.name} was left out: {uids[source].name} is the same exposure, for processing")
    if not kept:
        raise ValueError(f"no radiographs among {len(files)} files: {skipped[0] if skipped else 'nothing to read'}")
    return kept, skipped


def _intent(header: dicom_header.Header) -> str:
    return dicom_header.text(header.dataset, "PresentationIntentType").removeprefix("FOR ").lower()


def _source_uid(dataset: pydicom.Dataset) -> str:
    try:
        return str(dataset.SourceImageSequence[0].ReferencedSOPInstanceUID).strip()
    except Exception:  # absent, empty or damaged
        return ""


def _finish(
    path: Path,
    digest: str,
    sheet: FactSheet,
    run: _Run,
    placed: tuple[Tensor, Turn] | None,
    values: tuple[np.ndarray, np.ndarray] | None,
    header: pydicom.Dataset | None,
    modality: str,
) -> Radiograph | None:
    run.gaps += sheet.gaps
    if sheet.gaps or placed is None or values is None:
        return None
    view, turn = placed
    pixels, exposed = (turn.picture(torch.from_numpy(array)) for array in values)
    return Radiograph(
        sheet.name, path, digest, pixels, exposed, view, sheet.ordered(), list(sheet.warnings), header, modality
    )


def _read_dicom(path: Path, digest: str, run: _Run) -> Radiograph | None:
    header = run.headers[path]
    sheet, given = run.describe(path)
    frame = None if sheet.get("frame") is None else int(sheet.get("frame"))
    stored = dicom_pixels.read_pixels(header, frame)
    shape = (stored.shape[0], stored.shape[1])
    if header.damaged:
        sheet.warn(f"the header is damaged; not read: {', '.join(header.damaged[:5])}")
    for sentence in header.warnings:
        sheet.warn(sentence)
    locate = rt_image_pose.locate_rt if header.modality == "RTIMAGE" else dicom_pose.locate
    if given is not None:
        view, turn, found = known_view(sheet, given, shape, header, frame or 1)
        placed: tuple[Tensor, Turn] | None = (view, turn)
    else:
        found = locate(header, sheet, shape, frame or 1)
        before = len(sheet.gaps)
        placed = found.place(sheet)
        # What a tag's gap explains is not asked for a second time in general words.
        sheet.gaps = sheet.gaps[:before] + [g for g in sheet.gaps[before:] if not _covered(g, sheet.gaps[:before])]
    dicom_intensity.offer_intensity(header, sheet)
    values = dicom_intensity.line_integrals(header, stored, found, sheet)
    return _finish(path, digest, sheet, run, placed, values, header.dataset, header.modality)


def _covered(general: Gap, special: list[Gap]) -> bool:
    keys = ("pixel_mm", "angle_deg", "orientation", "detector_angles_deg")
    asked = [key for key in keys if f'"{key}"' in general.remedy]
    return any(f'"{key}"' in gap.remedy or '"patient_position"' in gap.remedy for gap in special for key in asked)


def _read_png(path: Path, kind: str, digest: str, run: _Run) -> Radiograph | None:
    sheet, given = run.describe(path)
    sheet.offer("modality", kind, f"file {path.name}")
    pixels, highest = read_picture(path)
    shape = (pixels.shape[0], pixels.shape[1])
    if given is not None:
        placed: tuple[Tensor, Turn] | None = known_view(sheet, given, shape)[:2]
    else:
        sheet.default("beam", "cone", "default: a point source")
        placed = dicom_pose.Pose().place(sheet)
    sheet.offer("photometric", "MONOCHROME2", f"{kind}: higher values are brighter")
    if highest == 255:
        sheet.warn("only 8 bits of grey: 256 steps for all line integrals")
    values = relate(pixels, np.ones(shape, dtype=bool), sheet, (0.0, float(highest)))
    return _finish(path, digest, sheet, run, placed, values, None, kind)


def _read_nifti(path: Path, digest: str, run: _Run) -> list[Radiograph]:
    if run.geometry is not None and run.geometry.geometry is not None:
        geometry, source = run.geometry.geometry, f"--geometry {run.geometry.path.name}"
        first, run.used_views = run.used_views, run.used_views + len(geometry)
        if first:
            raise ValueError(f"{path}: {source} describes one stack; give the stack alone")
    else:
        beside = find_sidecar(path)
        if beside is None:
            stem = path.name.removesuffix(".gz").removesuffix(".nii")
            raise FileNotFoundError(f"{path}: no geometry: {stem}.json beside it (Geometry.save), or --geometry FILE")
        geometry, source = Geometry.load(beside), f"sidecar {beside.name}"
    stack = read_stack(path, geometry, source)
    radiographs = []
    for k, image in enumerate(stack):
        sheet = FactSheet(f"{run.names[path]}[{k}]", source, run.accept)
        sheet.offer("modality", "NIfTI", f"file {path.name}")
        given = Sidecar(source, view=geometry.views[k], shape=geometry.detector_shape)
        view = known_view(sheet, given, (image.shape[0], image.shape[1]))[0]
        if geometry.isocenter_mm is not None:
            sheet.offer("isocenter_mm", geometry.isocenter_mm, source)
        sheet.facts["intensity_relationship"] = Sourced("line integrals", f"file {path.name}")
        exposed = torch.ones_like(image, dtype=torch.bool)
        radiographs.append(
            Radiograph(sheet.name, path, digest, image, exposed, view, sheet.ordered(), modality="NIfTI")
        )
    return radiographs


def _check_geometry_file(run: _Run) -> None:
    if run.geometry is None:
        return
    if run.geometry.geometry is not None and run.used_views != len(run.geometry.geometry):
        raise ValueError(
            f"{run.geometry.path}: describes {len(run.geometry.geometry)} views, there are {run.used_views} radiographs"
        )
    unused = sorted(set(run.geometry.entries) - run.used_entries)
    if unused:
        raise ValueError(f"{run.geometry.path}: describes {unused[0]!r}, which is not among the radiographs")


def _check_patient(radiographs: list[Radiograph], run: _Run) -> None:
    """Different patients are a gap; different study dates, and files that do not say whose they are, a warning."""
    first: dict[str, tuple[str, str]] = {}
    for radiograph in radiographs:
        if radiograph.header is None:
            continue
        for keyword in ("PatientID", "PatientBirthDate", "PatientSex", "StudyDate"):
            value = dicom_header.text(radiograph.header, keyword)
            if not value:
                continue
            name, other = first.setdefault(keyword, (radiograph.name, value))
            if other == value:
                continue
            what = f"{keyword} {dicom_header.tag(keyword)}"
            if keyword == "StudyDate":
                radiograph.warnings.append(f"{radiograph.name}: taken on another day than {name} by {what}")
            elif "several-patients" in run.accept:
                radiograph.warnings.append(f"{radiograph.name}: another patient than in {name} by {what}")
            else:
                remedy = "leave one out, or give --accept several-patients if they are one person"
                run.gaps.append(Gap(radiograph.name, f"whose it is: {what} differs from {name}", remedy))
                break
    _check_identity(radiographs)


def _check_identity(radiographs: list[Radiograph]) -> None:
    """Say so once where nothing in the files says that they are of one patient."""
    dicom = [r for r in radiographs if r.header is not None]
    pictures = list(dict.fromkeys(r.path for r in radiographs if r.header is None))
    nameless = [
        r.name
        for r in dicom
        if r.header is not None
        and not any(dicom_header.text(r.header, k).strip("^ ") for k in ("PatientName", "PatientID"))
    ]
    if nameless and len(dicom) > 1:
        dicom[0].warnings.append(
            f"{', '.join(nameless)}: neither Patient's Name (0010,0010) nor Patient ID (0010,0020); nothing says that "
            "the radiographs are of one patient"
        )
    if dicom and pictures:
        first = next(r for r in radiographs if r.header is None)
        names = ", ".join(path.name for path in pictures)
        first.warnings.append(
            f"{names}: nothing says that this is of the same patient as {dicom[0].name}, whose name and study the "
            "result gets"
        )
