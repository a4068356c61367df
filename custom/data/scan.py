"""Scans in a folder tree that may become cases, and what is left out at first sight."""

import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from custom.core.names import safe_name, short_hash
from custom.core.rejection import Rejected, Rejection
from custom.data.volume_files import OTHER_FORMATS, metaimage_files, volume_kind, volume_suffix
from custom.dicom import ct_series
from custom.dicom.ct_series import Header, Slice
from custom.dicom.ct_stacks import Stack, judge_stacks
from custom.dicom.header import tag
from custom.dicom.opener import looks_like_dicom

logger = logging.getLogger(__name__)

_NO_IMAGE = frozenset(
    {".json", ".csv", ".tsv", ".txt", ".md", ".xml", ".pdf", ".png", ".jpg", ".jpeg", ".html", ".xls", ".xlsx"}
    | {".raw", ".zraw", ".py", ".sh", ".log", ".npy", ".npz", ".part", ".yaml", ".yml", ".toml"}
)
#: What the files of one scan share.
_ONE_A_SCAN = ("ConvolutionKernel", "KVP", "FrameOfReferenceUID")
_PREFERENCE = ("dicom", "metaimage", "nifti")


@dataclass(frozen=True)
class Candidate:
    """One scan that may become a case.

    Attributes:
        case: name of the output files.
        patient: patient identifier.
        group: what a split keeps together; the PatientID even where two persons carry the same.
        kind: "dicom", "nifti" or "metaimage".
        source: folder or file, relative to the input.
        files: absolute paths of the input files.
        slices: the sorted stack of a DICOM series.
        series_uid: SeriesInstanceUID, where known.
        study_uid: StudyInstanceUID, where known.
        structures: RTSTRUCT files that refer to the series.
        facts: header attributes and provenance for the manifest.
        alternates: other scans of the same case, tried in this order when this one fails.
    """

    case: str
    patient: str
    group: str
    kind: str
    source: str
    files: tuple[Path, ...]
    slices: tuple[Slice, ...] = ()
    series_uid: str = ""
    study_uid: str = ""
    structures: tuple[Path, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    alternates: tuple["Candidate", ...] = ()

    def names(self) -> list[str]:
        """What a split file may call it, the most specific first."""
        return [self.case, self.series_uid or self.case, Path(self.source).name, self.patient]

    def rejection(self, reason: str) -> Rejection:
        """The line for the table of what was left out."""
        return Rejection(self.source, "scan", reason, self.case, self.patient, self.series_uid, len(self.files))


MapHeaders = Callable[[Callable[[Path], Header | str], Sequence[Path]], Iterable[Header | str]]


def walk(root: Path, skip: Iterable[Path] = ()) -> Iterator[Path]:
    """All files under ``root`` in a fixed order, without hidden ones and without the folders in ``skip``."""
    skipped = {p.resolve() for p in skip}
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (here / f).resolve() not in skipped)
        for name in sorted(files):
            if not name.startswith("."):
                yield here / name


def scan(
    root: Path,
    skip: Iterable[Path] = (),
    provenance: Mapping[str, Mapping[str, Any]] | None = None,
    series_per_study: str = "best",
    map_headers: MapHeaders = lambda function, paths: map(function, paths),
) -> tuple[list[Candidate], list[Rejection]]:
    """Find the CT scans under ``root``.

    Args:
        root: folder of DICOM, NIfTI and MetaImage files in any order, or one such file.
        skip: folders that are not looked at (outputs, labels).
        provenance: facts by case name: patient_id, series_instance_uid, licence, ...
        series_per_study: "best" takes one series of a study (original, thinnest slices, longest); "all" takes each.
        map_headers: how to read headers: like ``map``, for progress bars and workers.

    Returns:
        Candidates sorted by case name, each with its alternates, and the rejections.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        ValueError: an unknown ``series_per_study``.
    """
    if series_per_study not in ("best", "all"):
        raise ValueError(f"series_per_study is {series_per_study!r}; choose 'best' or 'all'")
    if not root.exists():
        raise FileNotFoundError(f"input {root} does not exist")
    provenance = dict(provenance or {})
    files = [root] if root.is_file() else list(walk(root, skip))
    base = root.parent if root.is_file() else root
    rejected: list[Rejection] = []
    dicom: list[Path] = []
    volumes: list[Path] = []
    for path in files:
        if not path.is_file():  # opening a pipe would wait for ever
            rejected.append(Rejection(_relative(path, base), "file", "a broken link, or no file but a pipe or device"))
        elif volume_suffix(path):
            volumes.append(path)
        elif path.suffix.lower() in OTHER_FORMATS:
            advice = "not read: DICOM, NIfTI and MetaImage are; unpack or convert it"
            rejected.append(Rejection(_relative(path, base), "file", advice))
        elif path.suffix.lower() not in _NO_IMAGE and looks_like_dicom(path):
            dicom.append(path)
    headers: list[Header] = []
    unread: dict[tuple[Path, str], list[Path]] = {}
    for path, header in zip(dicom, map_headers(ct_series.read_header, dicom), strict=True):
        if isinstance(header, str):
            unread.setdefault((path.parent, header), []).append(path)
        else:
            headers.append(header)
    for (folder, reason), paths in unread.items():  # one line for a folder whose files share a fault
        source = paths[0] if len(paths) == 1 else folder
        rejected.append(Rejection(_relative(source, base), "file", reason, files=len(paths)))
    by_uid = {str(entry["series_instance_uid"]): name for name, entry in provenance.items() if _uid(entry)}
    candidates, dropped = _dicom_candidates(headers, base, by_uid, series_per_study)
    candidates += _volume_candidates(volumes, base, provenance)
    candidates = [_with_provenance(c, provenance.get(c.case)) for c in candidates]
    return _one_per_scan(candidates), rejected + dropped


def _uid(entry: Mapping[str, Any]) -> str:
    return str(entry.get("series_instance_uid") or "")


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix()


def _folder(paths: Sequence[Path], base: Path) -> str:
    """The common folder of the files, or the file itself where there is one only."""
    if len(paths) == 1:
        return _relative(paths[0], base)
    return _relative(Path(os.path.commonpath([p.parent for p in paths])), base)


def _dicom_candidates(
    headers: Sequence[Header], base: Path, names: Mapping[str, str], series_per_study: str
) -> tuple[list[Candidate], list[Rejection]]:
    if any(h.compressed and h.slices for h in headers):
        ct_series.require_decoders()
    alike: dict[tuple[str, str], str] = {}
    identities: dict[str, set[str]] = {}
    series: dict[tuple[str, str, str], list[Header]] = {}
    structures: dict[str, list[Path]] = {}
    for header in headers:
        if header.sop_class == ct_series.DIRECTORY_CLASS:
            continue
        if header.sop_class == ct_series.RTSTRUCT_CLASS:
            structures.setdefault(header.patient_id, []).append(header.path)
            continue
        identity = alike.setdefault((header.patient_id, header.person), header.identity)
        identities.setdefault(header.patient_id, set()).add(identity)
        series.setdefault((header.patient_id, identity, header.series_uid), []).append(header)

    for patient_id, persons in sorted(identities.items()):
        if patient_id and len(persons) > 1:
            logger.warning("%s", _several_persons(patient_id, persons))
    found: list[Candidate] = []
    rejected: list[Rejection] = []
    for (patient_id, identity, series_uid), members in sorted(series.items()):
        paths = [h.path for h in members]
        patient, facts = _patient(patient_id, identity, identities[patient_id], members[0].study_uid)
        blank = Candidate(
            case=names.get(series_uid, ""), patient=patient, group=patient_id or patient, kind="dicom",
            source=_folder(paths, base), files=(), series_uid=series_uid, study_uid=members[0].study_uid,
            facts={**{k: v for k, v in members[0].facts.items() if v}, **facts},
        )  # fmt: skip
        try:
            stacks = _stacks(members)
        except Rejected as error:
            rejected.append(replace(blank, files=tuple(paths)).rejection(str(error)))
            continue
        for stack in stacks:
            originals = tuple(sorted({s.path for s in stack.slices}))
            own = replace(blank, files=originals, source=_folder(originals, base) if len(stacks) > 1 else blank.source)
            if stack.refused:
                rejected.append(own.rejection(stack.refused))
                continue
            mixed = _mixed([h for h in members if h.path in originals])
            for note in (*stack.notes, *mixed):
                logger.warning("%s: %s", own.source, note)
            noted = "; ".join([*([facts["note"]] if facts else []), *stack.notes, *mixed])
            found.append(
                replace(
                    own,
                    slices=stack.slices,
                    structures=tuple(structures.get(patient_id, ())),
                    facts={
                        **blank.facts,
                        **stack.facts,
                        **({"note": noted} if noted else {}),
                        "ImageType": "\\".join(members[0].image_type),
                    },
                )
            )
    beside = {path for paths in structures.values() for path in paths} - {p for c in found for p in c.structures}
    reason = "an RTSTRUCT of a patient without a usable DICOM CT here: do their Patient IDs differ?"
    rejected += [Rejection(_relative(path, base), "label", reason) for path in beside]
    return _name_dicom(_pick_series(found, series_per_study)), rejected


def _patient(patient_id: str, identity: str, identities: set[str], study_uid: str) -> tuple[str, dict[str, str]]:
    """Patient identifier, told apart where two persons share a PatientID, or where there is none."""
    if not patient_id:
        return f"study-{short_hash(study_uid)}", {"note": "no PatientID in the headers"}
    if len(identities) == 1:
        return patient_id, {}
    own = f"{patient_id}~{short_hash(identity)[:6]}"
    return own, {"note": _several_persons(patient_id, identities)}


def _several_persons(patient_id: str, identities: set[str]) -> str:
    return (
        f"PatientID {patient_id!r} is carried by {len(identities)} persons (name, birth date or sex differ): kept "
        "apart as cases, kept together by the split"
    )


def _mixed(members: Sequence[Header]) -> list[str]:
    """What differs between the files of one scan and changes how they look, or changed all of them."""
    found = {key: sorted({h.facts[key] for h in members} - {""}) for key in _ONE_A_SCAN}
    lossy = any(h.facts["LossyImageCompression"] == "01" for h in members)
    return [
        *(f"{key} {tag(key)} differs within the scan: {', '.join(v[:3])}" for key, v in found.items() if len(v) > 1),
        *(["compressed with losses before it came here"] if lossy else []),
    ]


def _stacks(members: Sequence[Header]) -> list[Stack]:
    """The stacks of one series, or `Rejected` with the reason why there is none."""
    kinds = {h.modality or "unknown" for h in members}
    if not any(h.sop_class in ct_series.CT_CLASSES for h in members):
        reason = "a CT object that is no axial image" if kinds == {"CT"} else "not CT"
        raise Rejected(f"{reason}: modality {', '.join(sorted(kinds))}, SOP class {members[0].sop_class}")
    if kinds != {"CT"}:
        raise Rejected(f"not CT: modality {', '.join(sorted(kinds))}")
    broken = [h for h in members if h.problem]
    if broken:
        raise Rejected(f"{broken[0].path.name}: {broken[0].problem}; {len(broken)} such file(s) in the series")
    images = [s for h in members for s in h.slices]
    if not images:
        raise Rejected(f"localizer or projection, not a stack (Image Type {'/'.join(members[0].image_type)})")
    return judge_stacks(images)


def _pick_series(found: Sequence[Candidate], series_per_study: str) -> list[Candidate]:
    """With "best": the best series of each study, the others as its alternates."""
    if series_per_study == "all":
        return list(found)

    def rank(candidate: Candidate) -> tuple[Any, ...]:
        spacing, count = candidate.facts["native_spacing_mm"][2], candidate.facts["native_shape"][2]
        derived = "ORIGINAL" not in candidate.facts["ImageType"]
        return (not candidate.case, derived, spacing, -spacing * count, candidate.series_uid)

    studies: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in found:
        studies.setdefault((candidate.patient, candidate.study_uid), []).append(candidate)
    picked = []
    for members in studies.values():
        first, *others = sorted(members, key=rank)
        # A scan that the provenance names is a case of its own, whatever else its study holds.
        named = [c for c in others if c.case and c.case != first.case]
        picked.append(replace(first, alternates=tuple(c for c in others if c not in named)))
        picked += named
    return picked


def _name_dicom(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Names: by provenance, else the patient, with a piece of the series' hash where a patient has several scans."""

    def stem(candidate: Candidate) -> str:
        return safe_name(candidate.patient) or "case"

    count: dict[str, int] = {}
    for candidate in candidates:
        if not candidate.case:
            count[stem(candidate)] = count.get(stem(candidate), 0) + 1
    result: list[Candidate] = []
    taken: set[str] = set()
    for candidate in candidates:
        if not candidate.case:
            key = candidate.series_uid + "|".join(s.sop_uid for s in candidate.slices[:1])
            name = stem(candidate)
            while name in taken or (name == stem(candidate) and count[name] > 1):
                name = f"{stem(candidate)}_{short_hash(key)}"
                key += "|".join(candidate.slices[0].acquisition)  # scans that share even the UIDs of their slices
            taken.add(name)
            candidate = replace(candidate, case=name)
        result.append(candidate)
    return result


def _volume_candidates(
    paths: Sequence[Path], base: Path, provenance: Mapping[str, Mapping[str, Any]]
) -> list[Candidate]:
    stems = {path: path.name[: -len(volume_suffix(path))] for path in paths}
    shared = {
        stem
        for stem, group in itertools.groupby(sorted(stems.items(), key=lambda kv: kv[1]), key=lambda kv: kv[1])
        if len({(p.parent, volume_suffix(p)) for p, _ in group}) > 1
    }
    called = {
        path: _relative(path, base)[: -len(volume_suffix(path))] if stem in shared else stem
        for path, stem in stems.items()
    }
    count = Counter(safe_name(name) for name in set(called.values()))
    result = []
    for path, stem in stems.items():
        relative, name = _relative(path, base), called[path]
        entry = provenance.get(stem, {})
        # Names of other letters, or with other separators, must not become one scan.
        case = (safe_name(name) or "case") + (f"_{short_hash(name)}" if count[safe_name(name)] > 1 else "")
        result.append(
            Candidate(
                case=stem if entry else case,
                patient=str(entry.get("patient_id") or case),
                group=str(entry.get("patient_id") or case),
                kind=volume_kind(path),
                source=relative,
                files=metaimage_files(path),
                series_uid=_uid(entry),
            )
        )
    return result


def _with_provenance(candidate: Candidate, entry: Mapping[str, Any] | None) -> Candidate:
    if not entry:
        return candidate
    return replace(
        candidate,
        facts={**candidate.facts, "provenance": dict(entry)},
        alternates=tuple(_with_provenance(c, entry) for c in candidate.alternates),
    )


def _one_per_scan(candidates: Sequence[Candidate]) -> list[Candidate]:
    """One candidate for a scan that is there several times (DICOM and NIfTI): DICOM first, the others as alternates.

    Two are one scan when their SeriesInstanceUID is the same (for NIfTI out of the provenance), or their case name,
    or when the DICOM folder is called as the file is.
    """
    merged: dict[str, list[Candidate]] = {}
    scan_of: dict[str, str] = {}
    for candidate in sorted(candidates, key=lambda c: (_PREFERENCE.index(c.kind), c.case, c.source)):
        key = candidate.case
        if candidate.kind != "dicom":
            key = scan_of.get(candidate.series_uid) or scan_of.get(f"folder {candidate.case}") or key
        elif candidate.series_uid:
            scan_of.setdefault(candidate.series_uid, key)
            scan_of.setdefault(f"folder {Path(candidate.source).name}", key)
        merged.setdefault(key, []).append(candidate)
    result = []
    for first, *others in merged.values():
        # The file's name is the shorter one and what labels and split files use.
        case = others[0].case if others else first.case
        extra = tuple(replace(c, alternates=()) for o in others for c in (o, *o.alternates))
        alternates = tuple(replace(c, case=case) for c in first.alternates + extra)
        result.append(replace(first, case=case, alternates=alternates))
    return sorted(result, key=lambda c: c.case)
