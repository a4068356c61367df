"""The verb `fewview-ct prepare`: a folder of CTs becomes a cohort for simulation, training and evaluation."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from custom.core import rejection
from custom.core.files import read_json, remove_parts, sha256_file, write_bytes, write_json
from custom.core.names import no_link, plain_name
from custom.core.rejection import Rejected, Rejection
from custom.core.workers import Workers
from custom.data.case import CaseOptions, prepare_case
from custom.data.label_maps import label_files
from custom.data.manifest import datalist, manifest, notice
from custom.data.preprocess import ANCHORS
from custom.data.scan import Candidate, safe_name, scan
from custom.data.split import FLAG, PARTS, check_leaks, match_names, read_split, seeded_split

logger = logging.getLogger(__name__)


def prepare(
    input_dir: str,
    output_dir: str,
    split: str | None = None,
    fractions: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
    seed: int = 0,
    size: int = 128,
    cube_mm: float = 320.0,
    anchor: str = "center",
    spacing_mm: float = 1.0,
    max_slice_mm: float = 5.0,
    min_coverage_mm: float = 200.0,
    remove_couch: bool = True,
    labels: str | None = None,
    provenance: str | None = None,
    licence: str = "",
    series_per_study: str = "best",
    workers: int = 0,
    scheduler: str | None = None,
    name: str = "fewview-ct",
) -> str:
    """Turn a tree of CTs (DICOM, NIfTI, MetaImage) into cubes, sources, a datalist with a split, and a manifest.

    Safe to stop and start again: finished cases are kept, and the result is the same to the byte.

    Args:
        input_dir: folder tree, or one file.
        output_dir: where ct/, source/, labels/, cases/, datalist.json, manifest.json, NOTICE.md, rejected.csv go.
        split: split file (JSON); default ``input_dir/split.json`` where that exists and neither fractions nor counts
            are given, which the first line says; "none": not that one. Scans that it does not name are left out.
        fractions: shares of training, validation and test scans, drawn by patient; default 0.8,0.1,0.1.
        counts: numbers of scans instead, such as 868,50,100.
        seed: of the draw.
        size: voxels along each side of the cube.
        cube_mm: side of the cube in mm.
        anchor: where the cube sits: center, superior, inferior (of the body) or scan (middle of the scanned volume).
        spacing_mm: spacing of the uncropped source in mm.
        max_slice_mm: scans with a larger slice spacing are left out.
        min_coverage_mm: scans shorter than this from head to feet are left out.
        remove_couch: set everything outside the body to -1000 HU.
        labels: folder of NIfTI label maps named as the cases; default ``input_dir/labels`` where that exists, which
            the first line says; "none": not that one.
        provenance: JSON list of facts by case name (name, patient_id, series_instance_uid, licence, doi, ...), or the
            cohort.json of fetch-cohort. It names cases and patients, so that one which lies in the input is not read
            unless it is named here.
        licence: of the scans for which the provenance gives none.
        series_per_study: "best" (original, thinnest slices) or "all".
        workers: processes; 0 means one for each core, at most 4. Each takes 2 to 4 GB.
        scheduler: address of a Dask scheduler, such as tcp://host:8786, whose workers compute instead; it must be one
            that you trust (docs/how-to/cluster.md).
        name: of the cohort.

    Returns:
        Path of the datalist.

    Raises:
        FileNotFoundError: an input, split, label or provenance path that does not exist.
        ValueError: an option out of range, a split that would put one patient in two parts, or no usable scan at all.
        OSError: the disk is full; complete files are kept, no partial one is left.
    """
    root, output = Path(input_dir), no_link(Path(output_dir))
    if output.exists() and root.exists() and output.samefile(root):
        raise ValueError(
            f"{output}: is the input, too: the next run would take its own files for CTs; name another folder"
        )
    if anchor not in ANCHORS:
        raise ValueError(f"anchor is {anchor!r}; choose one of {', '.join(ANCHORS)}")
    options = CaseOptions(
        int(size), float(cube_mm), anchor, float(spacing_mm), float(max_slice_mm), float(min_coverage_mm), remove_couch
    )
    seeded = fractions is not None or counts is not None
    if split is not None and seeded:
        raise ValueError("give a split file, or fractions, or counts: one of them")
    split_path = None if seeded else _beside(root, split, "split.json")
    label_folder = _beside(root, labels, "labels")
    found = [
        (one, option)
        for one, given, option in ((split_path, split, "split"), (label_folder, labels, "labels"))
        if one is not None and given is None
    ]
    if found:
        taken = ", ".join(f"{path} (--{option} none leaves it out)" for path, option in found)
        logger.info("found in the input and used: %s", taken)
    spec = read_split(split_path) if split_path else None
    facts, chosen = _read_provenance(provenance, root)
    shares, numbers = _triple(fractions, float), _triple(counts, int)

    remove_parts(output)
    skip = [output, *([label_folder] if label_folder else [])]
    wanted: dict[str, str] = {}
    with Workers(workers or min(os.cpu_count() or 1, 4), scheduler) as pool:
        candidates, rejected = scan(root, skip, facts, series_per_study, map_headers=partial(pool.map, label="headers"))
        if spec is not None:
            candidates, wanted, unnamed = _choose(candidates, spec)
            rejected += unnamed
            # Hours of work must not end in a split that cannot be.
            check_leaks(wanted, {c.case: c.group for c in candidates})
        maps, strays = label_files(label_folder, [c.case for c in candidates]) if label_folder else ({}, [])
        records = _run(pool, candidates, output, options, maps, rejected)

    groups = {c.case: c.group for c in candidates}
    usable = {str(r["case"]): groups[str(r["case"])] for r in records}
    part_of = {case: part for case, part in wanted.items() if case in usable}
    if spec is None and usable:
        part_of = seeded_split(usable, shares, numbers, int(seed))
    rejected += [Rejection(p.name, "label", "label map of no prepared case") for p in strays]
    rejected += _unused_structures(candidates, records)
    for record in records:
        rejected += [Rejection(record["input"], "label", p, record["case"]) for p in record["problems"]]
        if record["case"] not in part_of:
            rejected.append(Rejection(record["input"], "split", "beyond the counts: not drawn", record["case"]))
    write_bytes(output / "rejected.csv", rejection.to_csv(rejected))
    write_json(output / "rejected.json", [asdict(r) for r in sorted(rejected)])
    rejection.show(rejected)
    if not part_of:
        worst = min(rejected, default=None)
        why = f"{len(rejected)} left out, the first: {worst.source}: {worst.reason}" if worst else "no CT file in it"
        raise ValueError(f"no usable CT in {root} ({why}); see {output / 'rejected.csv'}")

    samples = [c for hits in match_names((spec or {}).get(FLAG, []), _aliases(candidates)).values() for c in hits]
    target = output / "datalist.json"
    write_json(target, datalist(name, records, part_of, samples))
    settings = {
        **asdict(options),
        "series_per_study": series_per_study,
        "split": {"file_sha256": sha256_file(split_path)}
        if split_path
        else {"fractions": shares, "counts": numbers, "seed": int(seed)},
    }
    summary = manifest(name, settings, records, part_of, sha256_file(target), len(rejected), licence, chosen)
    write_json(output / "manifest.json", summary)
    sources = [
        {**case.get("provenance", {}), "patient_id": case["patient"], "licence": case["licence"]}
        for case in summary["cases"].values()
    ]
    write_bytes(output / "NOTICE.md", notice(sources).encode(errors="backslashreplace"))
    sizes = ", ".join(f"{list(part_of.values()).count(part)} {part}" for part in PARTS)
    logger.info("%s: %d cases (%s), %d left out", target, len(part_of), sizes, len(rejected))
    if "training" in part_of.values() and "validation" not in part_of.values():
        such = f", such as --counts {len(part_of) - 1},1,0" if len(part_of) > 1 else ""
        logger.warning(
            "a training needs validation cases too, and there are none: give the numbers of scans%s, or --fractions",
            such,
        )
    return str(target)


def _beside(root: Path, given: str | None, default: str) -> Path | None:
    """The given path, which must exist; else that of the default name in the input, if any; None for "none"."""
    if given is not None:
        if str(given).lower() in ("none", "false", ""):
            return None
        if not Path(given).exists():
            raise FileNotFoundError(f"{given} does not exist")
        return Path(given)
    path = root / default
    return path if path.exists() else None


def _triple(value: Any, kind: type) -> tuple[Any, ...] | None:
    """Three numbers out of a sequence or out of text such as "0.8,0.1,0.1"."""
    if value is None:
        return None
    parts = str(value).split(",") if isinstance(value, str | int | float) else list(value)
    try:
        return tuple(kind(p) for p in parts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{value!r} is not three numbers such as 0.8,0.1,0.1") from error


def _read_provenance(given: str | None, root: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Facts by case name, out of a list of objects with "name" or fetch-cohort's manifest, and its query and index."""
    if given is None or given.lower() in ("none", "false", ""):
        for name in ("provenance.json", "cohort.json"):
            if given is None and (root / name).is_file():
                logger.warning("%s is not read unless you name it with --provenance", root / name)
        return {}, {}
    path = Path(given)
    content = read_json(path)
    entries = content.get("cases") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "name" in entry for entry in entries):
        raise ValueError(f"{path}: provenance is a JSON list of objects, each with a 'name', or a file of fetch-cohort")
    facts: dict[str, dict[str, Any]] = {}
    for entry in entries:
        known = {k: v for k, v in entry.items() if v not in (None, "")}
        name = plain_name(entry["name"], f"{path}: the name")
        if facts.setdefault(name, known) != known:
            raise ValueError(f"{path}: {name!r} is there twice, with other facts: which ones hold?")
    return facts, {key: content[key] for key in ("query", "index") if isinstance(content, dict) and key in content}


def _aliases(candidates: Sequence[Candidate]) -> dict[str, list[str]]:
    return {c.case: c.names() for c in candidates}


def _choose(
    candidates: Sequence[Candidate], spec: Mapping[str, Sequence[str]]
) -> tuple[list[Candidate], dict[str, str], list[Rejection]]:
    """The scans that a split file names, under the names it uses; their parts; and what does not match."""
    aliases = _aliases(candidates)
    by_case = {c.case: c for c in candidates}
    chosen: dict[str, Candidate] = {}
    part_of: dict[str, str] = {}
    called: dict[str, str] = {}
    rejected = []
    for part in PARTS:
        for name, cases in match_names(spec.get(part, []), aliases).items():
            if not cases:
                reason = f"the split file names it for {part!r}, the input has no such scan"
                rejected.append(Rejection(name, "split", reason))
            for case in cases:
                if case in called:
                    raise ValueError(f"the split file names scan {case!r} twice: as {called[case]!r} and as {name!r}")
                called[case] = name
                rename = len(cases) == 1 and name != by_case[case].series_uid and safe_name(name) not in aliases
                new = safe_name(name) or case if rename else case
                old = by_case[case]
                chosen[new] = replace(old, case=new, alternates=tuple(replace(a, case=new) for a in old.alternates))
                part_of[new] = part
    rejected += [c.rejection("the split file does not name it") for c in candidates if c.case not in called]
    return [chosen[case] for case in sorted(chosen)], part_of, rejected


def _unused_structures(candidates: Sequence[Candidate], records: Sequence[Mapping[str, Any]]) -> list[Rejection]:
    """RTSTRUCT files that no prepared case used, nor speaks of."""
    said = {r["case"]: " ".join([*r.get("labels", {}).get("files", ()), *r["problems"]]) for r in records}
    owners: dict[Path, list[str]] = {}
    for candidate in candidates:
        for path in candidate.structures:
            owners.setdefault(path, []).append(candidate.case)
    reason = "an RTSTRUCT that refers to no series which was prepared"
    unused = [path for path, cases in owners.items() if not any(path.name in said.get(case, "") for case in cases)]
    return [Rejection(path.name, "label", reason, owners[path][0]) for path in unused]


def _run(
    pool: Workers,
    candidates: Sequence[Candidate],
    output: Path,
    options: CaseOptions,
    label_paths: Mapping[str, Sequence[Path]],
    rejected: list[Rejection],
) -> list[dict[str, Any]]:
    """Prepare all candidates; append what fails, and what is not needed, to ``rejected``."""
    left: dict[str, Candidate] = {c.case: c for c in candidates}

    def next_one(candidate: Candidate, error: Exception) -> Candidate | None:
        rejected.append(candidate.rejection(str(error)))
        if not candidate.alternates:
            del left[candidate.case]
            return None
        first, *others = candidate.alternates
        left[candidate.case] = replace(first, alternates=tuple(others))
        return left[candidate.case]

    work = partial(_work, output=output, options=options, label_paths=label_paths)
    records = pool.run(work, candidates, Rejected, next_one, label="cases")
    for used in left.values():
        for other in used.alternates:
            same = other.series_uid == used.series_uid or other.kind != used.kind
            reason = f"the same scan as {used.source}" if same else f"another series of the study of {used.source}"
            rejected.append(other.rejection(f"{reason}, which is used"))
    return sorted(records, key=lambda r: str(r["case"]))


def _work(
    candidate: Candidate, output: Path, options: CaseOptions, label_paths: Mapping[str, Sequence[Path]]
) -> dict[str, Any]:
    return prepare_case(candidate, output, options, label_paths.get(candidate.case, ()))
