"""The verb `fewview-ct fetch-cohort`: public chest CTs, chosen from the Imaging Data Commons and fetched."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from custom.core.files import read_json_object, write_bytes, write_json
from custom.core.names import inside, no_link
from custom.data.idc_cohort import choose, index_version, preset_query, require
from custom.data.manifest import notice
from custom.data.split import PARTS, seeded_split

__all__ = ["fetch_cohort"]

logger = logging.getLogger(__name__)

MANIFEST, FORMAT = "cohort.json", "fewview-ct cohort 1"
STORE = "https://s3.amazonaws.com"
#: Series of one call of the library: what a break costs at most is some of them.
BATCH = 16


def fetch_cohort(
    output: str,
    preset: str | None = None,
    collections: Sequence[str] | None = None,
    licences: Sequence[str] | None = None,
    manufacturers: Sequence[str] | None = None,
    body_parts: Sequence[str] | None = None,
    exclude_patients: Sequence[str] | None = None,
    min_slices: int | None = None,
    max_slices: int | None = None,
    max_slice_thickness_mm: float | None = None,
    series_per_patient: str | None = None,
    count: int | None = None,
    parts: Sequence[int] | None = None,
    seed: int = 0,
    manifest_only: bool = False,
    dry_run: bool = False,
) -> Path:
    """Choose public chest CTs of the Imaging Data Commons by licence, collection and more, and fetch them as DICOM.

    Choosing needs no network: the index is part of the package idc-index-data (extra 'cohort'). The folder gets
    cohort.json (query, version of the index, and for every series patient, licence, citation, bytes), NOTICE.md,
    split.json, cohort.s5cmd and dicom/. Collections take turns until there are enough patients. Stopped, the same
    command goes on; a series gets its place in dicom/ when number and bytes of its files are those of the index.

    Args:
        output: folder to make, or to go on with.
        preset: lidc (LIDC-IDRI, split 868/50/100) or open-1000 (1,000 patients of several collections, CC BY alone);
            the options below change it.
        collections: identifiers of the index, such as nlst,lidc_idri; "any": all.
        licences: short names; default 'CC BY 3.0,CC BY 4.0', which allow commercial use; "any": all.
        manufacturers: how Manufacturer begins, such as GE,SIEMENS; default "any".
        body_parts: Body Part Examined; default CHEST,LUNG,THORAX; "any": all.
        exclude_patients: Patient IDs to leave out, such as those to test on; default of open-1000:
            those that this project validates and tests on.
        min_slices: images of a series at least; default 100 (lidc: 50).
        max_slices: images of a series at most; default 1000.
        max_slice_thickness_mm: largest Slice Thickness; needs the network, since the index does not hold it.
        series_per_patient: one (default; that with most slices) or all.
        count: patients; by default all that fit.
        parts: scans for training, validation and test, such as 868,50,100; default 0.8, 0.1 and 0.1 of them.
        seed: of the draw of patients, and of the split.
        manifest_only: write everything but dicom/.
        dry_run: tell what would be chosen, write nothing.

    Returns:
        The manifest.

    Raises:
        ModuleNotFoundError: the extra is not installed.
        ValueError: a query that fits too little, a folder with another cohort, no network, too little space, series
            that did not come whole.
    """
    query = preset_query(
        preset,
        {
            "collections": collections, "licences": licences, "manufacturers": manufacturers, "body_parts": body_parts,
            "exclude_patients": exclude_patients, "min_slices": min_slices, "max_slices": max_slices,
            "max_slice_thickness_mm": max_slice_thickness_mm,
            "series_per_patient": series_per_patient, "count": count, "parts": parts, "seed": seed,
        },
    )  # fmt: skip
    folder = no_link(Path(output))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder")
    cases = choose(query, None if query.max_slice_thickness_mm is None else _thickness_table())
    part_of = seeded_split({c["name"]: c["patient_id"] for c in cases}, None, query.parts, query.seed)
    content = {
        "format": FORMAT,
        "query": {"preset": preset, **query.model_dump(mode="json")},
        "index": {"package": "idc-index-data", "version": index_version()},
        "bytes": sum(case["bytes"] for case in cases),
        "cases": cases,
    }
    _show(cases)
    path = folder / MANIFEST
    if dry_run:
        return path
    if path.exists():
        _check_same(path, content)
    folder.mkdir(parents=True, exist_ok=True)
    split = {part: sorted(name for name, own in part_of.items() if own == part) for part in PARTS[:3]}
    write_json(folder / "split.json", split)
    write_bytes(folder / "NOTICE.md", notice(cases).encode())
    write_bytes(folder / "cohort.s5cmd", _copy_commands(cases))
    write_json(path, content)
    if manifest_only:
        logger.info("%s: %d series, nothing fetched", path, len(cases))
    else:
        _fetch(cases, folder)
        logger.info(
            "%s: %d series are there; next: fewview-ct prepare %s COHORT --provenance %s",
            path,
            len(cases),
            folder,
            path,
        )
    return path


def _show(cases: Sequence[Mapping[str, Any]]) -> None:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for case in cases:
        groups.setdefault((case["collection"], case["licence"]), []).append(case)
    for (collection, licence), those in sorted(groups.items()):
        logger.info("%s (%s): %s", collection, licence, _size(those))
    logger.info("together: %s", _size(cases))


def _size(cases: Sequence[Mapping[str, Any]]) -> str:
    patients = {(case["collection"], case["patient_id"]) for case in cases}
    return f"{len(patients)} patients, {len(cases)} series, {sum(case['bytes'] for case in cases) / 1e9:.1f} GB"


def _check_same(path: Path, content: Mapping[str, Any]) -> None:
    """Raise ValueError where a folder holds another cohort than the one that was asked for."""
    there = read_json_object(path)
    for key, remedy in (
        ("format", "name a new folder"),
        ("index", f"install that of {there.get('index')} again, or name a new folder"),
        ("query", "give the same options, or name a new folder"),
        ("cases", "it was changed: name a new folder"),
    ):
        if there.get(key) != content[key]:
            raise ValueError(f"{path} is of another cohort ({key} differs): {remedy}")


def _copy_commands(cases: Sequence[Mapping[str, Any]]) -> bytes:
    """Input of `s5cmd run`, and of the library, which puts them elsewhere: a line a series."""
    return "".join(f"cp {case['url']} dicom/{case['name']}/\n" for case in cases).encode()


def _problem(folder: Path, case: Mapping[str, Any]) -> str:
    """Why a folder is not the whole series; "" where number and bytes of its files are those of the index."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()] if folder.is_dir() else []
    found = (len(files), sum(path.stat().st_size for path in files))
    if found == (case["slices"], case["bytes"]):
        return ""
    return f"{found[0]} of {case['slices']} files, {found[1]:,} of {case['bytes']:,} bytes"


def _fetch(cases: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Fetches what is not there yet; unfinished series stay under a hidden name, where the next call goes on."""
    part = no_link(folder / ".part", "folder of unfinished series")
    target = {case["name"]: inside(folder, f"dicom/{case['name']}", "the patient") for case in cases}
    missing = [case for case in cases if _problem(target[case["name"]], case)]
    if not missing:
        return
    needed, free = sum(case["bytes"] for case in missing), shutil.disk_usage(folder).free
    needed -= _bytes_in(part)
    if needed > free:
        raise ValueError(f"{folder}: {needed / 1e9:.1f} GB are still to be fetched, {free / 1e9:.1f} GB are free")
    _check_network()
    client = _client()
    part.mkdir(exist_ok=True)
    (folder / "dicom").mkdir(exist_ok=True)
    commands = folder / ".batch.s5cmd"  # not in part: what the library finds there it compares with the store
    left: dict[str, str] = {}
    with tqdm(total=sum(case["bytes"] for case in missing), unit="B", unit_scale=True, desc="fetched") as bar:
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            write_bytes(commands, _copy_commands(batch))
            client.download_from_manifest(
                str(commands), str(part), quiet=True, show_progress_bar=False, use_s5cmd_sync=True,
                dirTemplate="%SeriesInstanceUID",
            )  # fmt: skip
            problems = {
                case["name"]: _taken(part / case["series_instance_uid"], target[case["name"]], case) for case in batch
            }
            bar.update(sum(case["bytes"] for case in batch if not problems[case["name"]]))
            left |= {name: problem for name, problem in problems.items() if problem}
            if all(problems.values()):
                break  # the connection has gone; every further batch would wait for it in vain
    commands.unlink()
    if left:
        name, problem = next(iter(left.items()))
        count = sum(bool(_problem(target[case["name"]], case)) for case in cases)
        raise ValueError(
            f"{count} of {len(cases)} series did not come whole, such as {name} ({problem}): the same command goes on; "
            "--verbose shows what the library says"
        )
    shutil.rmtree(part)


def _taken(came: Path, place: Path, case: Mapping[str, Any]) -> str:
    """Moves a series to its place; why not, where it is not whole."""
    problem = _problem(came, case)
    if not problem:
        shutil.rmtree(place, ignore_errors=True)  # what is there was not whole
        os.replace(came, place)
    elif _bytes_in(came) >= case["bytes"]:
        shutil.rmtree(came)  # nothing that could be added makes it whole
    return problem


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _check_network() -> None:
    """Raise ValueError where the store cannot be reached: the library would try for minutes, and not say so."""
    try:
        requests.head(STORE, timeout=30)
    except requests.RequestException as error:
        raise ValueError(
            f"{STORE} cannot be reached ({type(error).__name__}): nothing was fetched; with a network the same command "
            "goes on, and where there is none, cohort.s5cmd says what to fetch elsewhere"
        ) from error


def _client() -> Any:
    """The library's client, which reads the whole index (1.7 GB of memory)."""
    library = require("idc_index")
    logging.getLogger("idc_index").setLevel(logging.DEBUG if logger.isEnabledFor(logging.DEBUG) else logging.CRITICAL)
    return library.IDCClient()


def _thickness_table() -> Path:
    """The table with Slice Thickness, which the library keeps once it was fetched."""
    client = _client()
    try:
        client.fetch_index("ct_index")
    except requests.RequestException as error:
        raise ValueError(
            f"--max_slice_thickness_mm needs a table that is fetched from github.com, which cannot be reached "
            f"({type(error).__name__}): leave it out, or choose by --min_slices"
        ) from error
    path = client.indices_overview["ct_index"]["file_path"]
    if not path:
        raise ValueError(
            "--max_slice_thickness_mm needs the table ct_index, which the library did not get; see --verbose"
        )
    return Path(path)
