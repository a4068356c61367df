"""The verb `fewview-ct phantom`: writes a population of phantoms in the layout of `prepare`."""

from __future__ import annotations

import logging
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from custom import __version__
from custom.core.files import read_json_object, remove_parts, sha256_file, write_json, write_nifti
from custom.core.limits import check_count
from custom.core.names import inside, no_link
from custom.data.phantom.anatomy import LABELS
from custom.data.phantom.thorax import make_thorax
from custom.dicom.ct_series import LARGEST_VOXELS

logger = logging.getLogger(__name__)

PARTS = ("training", "validation", "test")


def write_phantoms(
    output: str | Path,
    count: int = 100,
    seed: int = 0,
    size: int = 128,
    spacing_mm: float = 2.5,
    wide_mm: Sequence[float] = (420.0, 420.0, 340.0),
    arms: str = "up",
    fractions: Sequence[float] = (1.0, 0.0, 0.0),
    workers: int = 1,
) -> Path:
    """Write phantoms ``ct/``, ``source/``, ``labels/``, ``datalist.json`` and ``manifest.json``.

    Each thorax is made once on a wide grid (``source``); the cube (``ct``) is its centre. The lists name what is
    finished at any time. Started again with the same arguments it keeps the cases that are there, so it may be
    interrupted, and extended by a larger ``count``, which moves no case from one part of the split to another.

    Args:
        output: folder; made when missing.
        count: how many.
        seed: case number n is made from ``numpy.random.RandomState([seed, n])``.
        size: voxels of the cube's side.
        spacing_mm: voxel size, mm.
        wide_mm: extents (x, y, z) of the source volume, mm; at least the cube's.
        arms: ``up``, ``down`` or ``none``.
        fractions: shares of training, validation and test.
        workers: processes.

    Returns:
        The path of the datalist.

    Raises:
        ValueError: for arguments out of range, or when the folder holds phantoms made with other arguments.
    """
    if count < 1 or workers < 1 or size < 16:
        raise ValueError(f"count and workers must be at least 1 and size at least 16, got {count}, {workers}, {size}")
    shares = np.asarray(fractions, dtype=float)
    if shares.shape != (3,) or shares.min() < 0 or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"fractions must be three shares (training, validation, test) that add to 1, got {fractions}")
    extent = [max(float(size), float(mm) / float(spacing_mm)) for mm in wide_mm]
    check_count("--size, --wide_mm and --spacing_mm", "voxels", math.prod(extent), LARGEST_VOXELS)
    root = no_link(Path(output))
    settings: dict[str, Any] = {
        "seed": int(seed),
        "size": int(size),
        "spacing_mm": float(spacing_mm),
        "wide_mm": [float(v) for v in wide_mm],
        "arms": arms,
        "software": f"fewview-ct {__version__}",
    }
    for name in ("ct", "source", "labels"):
        (root / name).mkdir(parents=True, exist_ok=True)
    known = _read_manifest(root / "manifest.json", settings)
    remove_parts(root)
    todo = [n for n in range(1, count + 1) if not _is_complete(root, known.get(_case(n)))]
    logger.info("%d phantoms to make, %d are there already", len(todo), count - len(todo))
    arguments = [(str(root), n, settings) for n in todo]
    for record in tqdm(_run(arguments, workers), total=len(todo), desc="phantoms", disable=not todo):
        known[record["case"]] = record
        _write_lists(root, settings, known, count, shares)
    return _write_lists(root, settings, known, count, shares)


def make_case(root: str | Path, number: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Make and write one phantom; returns its entry in the manifest."""
    torch.set_num_threads(1)
    spacing, size = settings["spacing_mm"], settings["size"]
    wide = [size + 2 * max(0, round((mm / spacing - size) / 2)) for mm in settings["wide_mm"]]
    rng = np.random.RandomState([settings["seed"], number])
    phantom = make_thorax(rng, wide, spacing, arms=settings["arms"])
    cut = tuple(slice((n - size) // 2, (n - size) // 2 + size) for n in wide)
    case = _case(number)
    files = {}
    for folder, array, offset in (
        ("source", phantom.volume_hu, wide),
        ("ct", phantom.volume_hu[cut], [size] * 3),
        ("labels", phantom.labels[cut], [size] * 3),
    ):
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = [-(n - 1) / 2 * spacing for n in offset]
        path = Path(root) / folder / f"{case}.nii.gz"
        write_nifti(path, np.ascontiguousarray(array), affine)
        files[folder] = {"path": f"{folder}/{path.name}", "sha256": sha256_file(path)}
    return {
        "case": case,
        "seed": [settings["seed"], number],
        "files": files,
        "person": asdict(phantom.person),
        "scan": phantom.scan,
        "licence": "CC0-1.0 (generated, no patient's data)",
    }


def _case(number: int) -> str:
    return f"phantom_{number:04d}"


def _run(arguments: list[tuple[str, int, dict[str, Any]]], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        for argument in arguments:
            yield make_case(*argument)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in as_completed([pool.submit(make_case, *argument) for argument in arguments]):
            yield future.result()


def _is_complete(root: Path, record: dict[str, Any] | None) -> bool:
    if record is None:
        return False
    files = [(root / entry["path"], entry["sha256"]) for entry in record["files"].values()]
    return all(path.is_file() and sha256_file(path) == digest for path, digest in files)


def _read_manifest(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = read_json_object(path)
    if content.get("settings") != settings:
        raise ValueError(
            f"{path} was written with other settings ({content.get('settings')}, now {settings}): "
            "choose another output folder or remove this one"
        )
    try:
        for record in content["cases"].values():
            for one in record["files"].values():
                inside(path.parent, one["path"], f"{path}: path")
        return dict(content["cases"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is damaged ({error!r}): remove it, and the phantoms are made anew") from error


def _write_lists(root: Path, settings: dict[str, Any], known: dict[str, Any], count: int, shares: np.ndarray) -> Path:
    """Write manifest (all cases ever made) and datalist (the finished ones among the first ``count``)."""
    cases = dict(sorted(known.items()))
    write_json(root / "manifest.json", {"settings": settings, "labels": LABELS, "cases": cases}, sort_keys=False)
    content: dict[str, Any] = {
        "name": "fewview-ct phantoms",
        "description": "Procedural thoraces in HU with organ labels; no patient's data.",
        "labels": {str(value): name for name, value in LABELS.items()},
        **{part: [] for part in PARTS},
    }
    for number in range(1, count + 1):
        record = known.get(_case(number))
        if record is None:
            continue
        # The golden ratio spreads the parts evenly over the numbers, whatever the count.
        place = (number - 1) * 0.6180339887498949 % 1.0
        part = PARTS[min(int(np.searchsorted(np.cumsum(shares), place, side="right")), len(PARTS) - 1)]
        content[part].append(
            {
                "case": record["case"],
                "patient": record["case"],
                "label": record["files"]["ct"]["path"],
                "source": record["files"]["source"]["path"],
                "segmentation": record["files"]["labels"]["path"],
            }
        )
    return write_json(root / "datalist.json", content, sort_keys=False)
