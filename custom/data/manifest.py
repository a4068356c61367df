"""Datalist (for MONAI), manifest (where everything comes from) and notice (whom to cite) of a cohort."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from custom.data.split import FLAG, PARTS

_PACKAGES = ("fewview-ct", "numpy", "scipy", "nibabel", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "SimpleITK")


def software() -> dict[str, str]:
    """Versions of Python and of the packages that shape the output; "absent" where an optional one is missing."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def datalist(
    name: str, records: Sequence[Mapping[str, Any]], part_of: Mapping[str, str], samples: Sequence[str]
) -> dict[str, Any]:
    """MONAI datalist: lists of entries with paths relative to the file.

    Args:
        name: of the cohort.
        records: of the cases, as `custom.data.prepare.prepare_case` returns them.
        part_of: part of every case; cases without one are left out.
        samples: cases flagged as the example.
    """
    lists: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for record in sorted(records, key=lambda r: str(r["case"])):
        case = record["case"]
        if case not in part_of:
            continue
        outputs = record["outputs"]
        entry = {"case": case, "patient": record["patient"], "label": outputs["ct"]["path"]}
        entry["source"] = outputs["source"]["path"]
        if "labels" in outputs:
            entry["segmentation"] = outputs["labels"]["path"]
        if case in samples:
            entry[FLAG] = True
        lists[part_of[case]].append(entry)
    if not lists["stress"]:
        del lists["stress"]
    return {
        "name": name,
        "description": "CTs prepared by fewview-ct: 'label' is the cube (int16 HU), 'source' the uncropped CT",
        "modality": {"0": "CT"},
        "numTraining": len(lists["training"]),
        "numTest": len(lists["test"]),
        **lists,
    }


def manifest(
    name: str,
    options: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    part_of: Mapping[str, str],
    datalist_sha256: str,
    rejected: int,
    licence: str = "",
    chosen: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Provenance of the cohort: options, versions, and for every case its sources, hashes, spacing, licence.

    ``chosen`` is what `fewview-ct fetch-cohort` says of the choice: query and version of the index.
    """
    cases = {
        str(r["case"]): {
            **{k: v for k, v in r.items() if k != "resume_key"},
            "licence": r.get("provenance", {}).get("licence") or licence or "not given",
            "part": part_of.get(str(r["case"]), "none"),
        }
        for r in records
    }
    return {
        "name": name,
        "software": software(),
        "options": dict(options),
        **({"chosen": dict(chosen)} if chosen else {}),
        "datalist_sha256": datalist_sha256,
        "cases": cases,
        "rejected": rejected,
    }


def notice(cases: Iterable[Mapping[str, Any]]) -> str:
    """Licences and citations in Markdown, to go with the cohort and into the card of what is trained on it.

    Args:
        cases: ``licence`` and ``patient_id`` of each, and where they are known ``collection``, ``doi``, ``citation``.
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    citations: dict[str, str] = {}
    for case in cases:
        collection, licence, doi, citation = (
            " ".join(str(case.get(key) or "").split()).replace("|", "\\|")
            for key in ("collection", "licence", "doi", "citation")
        )
        groups.setdefault((collection or "not given", licence or "not given", doi), []).append(str(case["patient_id"]))
        if citation:
            citations[collection] = citation
    lines = [
        "# Sources and licences",
        "",
        "Whoever shows or passes on these images, or a model trained on them, names these sources as the licences ask,",
        "and says what was changed. Nobody may try to find out who the patients are.",
        "",
        "| collection | licence | patients | scans | DOI |",
        "|---|---|---|---|---|",
    ]
    for (collection, licence, doi), patients in sorted(groups.items()):
        lines.append(f"| {collection} | {licence} | {len(set(patients))} | {len(patients)} | {doi} |")
    if citations:
        lines += ["", *(f"- {collection}: {citation}" for collection, citation in sorted(citations.items()))]
    return "\n".join(lines) + "\n"
