"""Datalist (for MONAI) and manifest (where everything comes from) of a prepared cohort."""

import platform
from collections.abc import Mapping, Sequence
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
) -> dict[str, Any]:
    """Provenance of the cohort: options, versions, and for every case its sources, hashes, spacing, licence."""
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
        "datalist_sha256": datalist_sha256,
        "cases": cases,
        "rejected": rejected,
    }
