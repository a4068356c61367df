"""Preparation of one scan to its files and record: the unit of work that workers, or a cluster, run."""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from custom.core.files import read_json_object, sha256_file, sha256_files, write_json, write_nifti
from custom.core.limits import check_count
from custom.core.names import inside
from custom.core.rejection import Rejected
from custom.data import label_maps
from custom.data.preprocess import PreparedCase, prepare_volume
from custom.data.scan import Candidate
from custom.data.volume_files import check_grid, check_hu, grid_facts, load_metaimage, load_nifti
from custom.dicom import ct_series

logger = logging.getLogger(__name__)

RECIPE = 6
"""Raised when the code changes what comes out for the same input and options, so that old outputs are made anew."""


_FILTERS = frozenset({"max_slice_mm", "min_coverage_mm"})
"""Options that leave a case out or take it, and change nothing in it."""


@dataclass(frozen=True)
class CaseOptions:
    """How a scan is prepared; see `custom.data.prepare.prepare`."""

    size: int = 128
    cube_mm: float = 320.0
    anchor: str = "center"
    spacing_mm: float = 1.0
    max_slice_mm: float = 5.0
    min_coverage_mm: float = 200.0
    remove_couch: bool = True

    def __post_init__(self) -> None:
        for name, value in (("cube_mm", self.cube_mm), ("spacing_mm", self.spacing_mm)):
            if not 0 < value < math.inf:
                raise ValueError(f"--{name} is {value}: it must be mm above 0")
        if math.isnan(self.max_slice_mm + self.min_coverage_mm):
            raise ValueError("--max_slice_mm or --min_coverage_mm is no number")
        check_count("--size", "voxels of the cube", float(self.size) ** 3, ct_series.LARGEST_VOXELS)


def load(candidate: Candidate) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """The scan's voxels in HU and its affine (voxel to RAS+ mm), whatever files it is made of.

    Raises:
        Rejected: the files are damaged or no CT volume; the message names the file.
    """
    if candidate.kind == "dicom":
        affine, _ = ct_series.check_stack(candidate.slices)
        return ct_series.load_stack(candidate.slices), affine
    return (load_nifti if candidate.kind == "nifti" else load_metaimage)(candidate.files[0])


def _segmentation(
    candidate: Candidate,
    label_files: Sequence[Path],
    prepared: PreparedCase,
    shape: tuple[int, int, int],
    affine: npt.NDArray[np.float64],
) -> tuple[label_maps.Labels, dict[int, str], list[Path]] | None:
    """Label map on the cube's grid, its names and its files: the scan's own RTSTRUCT before files beside it."""
    grid = (prepared.cube_affine, (prepared.cube.shape[0], prepared.cube.shape[1], prepared.cube.shape[2]))
    if candidate.structures:
        frame = str(candidate.facts.get("FrameOfReferenceUID", ""))
        found = label_maps.load_rtstruct(candidate.structures, candidate.series_uid, frame, affine, shape, *grid)
        if found is not None:
            return found
    if label_files:
        return *label_maps.load_labels(label_files, *grid), list(label_files)
    return None


def resume_key(candidate: Candidate, label_files: Sequence[Path], options: CaseOptions) -> str:
    """Changes whenever the inputs (by name, size and time), the options that shape a case, or the recipe do."""
    inputs = [*candidate.files, *candidate.structures, *label_files]
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in inputs]
    shaping = {name: value for name, value in vars(options).items() if name not in _FILTERS}
    content = json.dumps([RECIPE, shaping, stats, candidate.case, candidate.patient, candidate.facts], default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def finished_record(case: str, key: str, output: Path) -> dict[str, Any] | None:
    """The record of a case that an earlier run completed, if key and hashes of its outputs still hold."""
    path = inside(output, f"cases/{case}.json", "case")
    if not path.is_file():
        return None
    try:
        record = read_json_object(path)
        if record.get("resume_key") != key:
            return None
        for item in record["outputs"].values():
            target = inside(output, item["path"], f"{path}: path")
            if not target.is_file() or sha256_file(target) != item["sha256"]:
                return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is damaged and is made again (%s)", path, error)
        return None
    return record


def prepare_case(
    candidate: Candidate, output: Path, options: CaseOptions, label_files: Sequence[Path] = ()
) -> dict[str, Any]:
    """Prepare one scan and write its files, or take over what an earlier run completed.

    Writes ``ct/<case>.nii.gz``, ``source/<case>.nii.gz``, where there is a segmentation ``labels/<case>.nii.gz`` and
    ``labels/<case>.json`` (names), and last of all the record ``cases/<case>.json``.

    Args:
        candidate: the scan.
        output: folder of the cohort.
        options: how.
        label_files: NIfTI label maps of the scan.

    Returns:
        The record: sources, hashes, spacing, findings. ``problems`` lists labels that could not be carried.

    Raises:
        Rejected: the scan is unusable; the message says why.
    """
    case = candidate.case
    key = resume_key(candidate, label_files, options)
    done = finished_record(case, key, output)
    if done is not None:
        check_grid(done, options.max_slice_mm, options.min_coverage_mm)
        return done
    volume, affine = load(candidate)
    geometry = grid_facts(volume.shape, affine)
    check_grid(geometry, options.max_slice_mm, options.min_coverage_mm)
    try:
        voxels = geometry["coverage_mm"] * math.prod(geometry["width_mm"]) / options.spacing_mm**3
        check_count(candidate.files[0], "voxels at --spacing_mm", voxels, ct_series.LARGEST_VOXELS)
    except ValueError as error:
        raise Rejected(str(error)) from error
    calibration = check_hu(volume)
    prepared = prepare_volume(
        volume, affine, size=options.size, cube_mm=options.cube_mm, anchor=options.anchor,
        spacing_mm=options.spacing_mm, remove_couch=options.remove_couch,
    )  # fmt: skip
    shape = (volume.shape[0], volume.shape[1], volume.shape[2])
    problems = []
    segmentation = None
    try:
        segmentation = _segmentation(candidate, label_files, prepared, shape, affine)
    except Rejected as error:
        problems.append(str(error))

    outputs: dict[str, dict[str, str]] = {}

    def write(kind: str, array: npt.NDArray[Any], grid: npt.NDArray[np.float64]) -> None:
        target = inside(output, f"{kind}/{case}.nii.gz", "case")
        write_nifti(target, array, grid)
        outputs[kind] = {"path": f"{kind}/{case}.nii.gz", "sha256": sha256_file(target)}

    write("source", prepared.source, prepared.source_affine)
    write("ct", prepared.cube, prepared.cube_affine)
    record: dict[str, Any] = {
        "case": case,
        "patient": candidate.patient,
        "kind": candidate.kind,
        "input": candidate.source,
        "input_files": len(candidate.files),
        "input_sha256": sha256_files(candidate.files),
        "series_instance_uid": candidate.series_uid,
        "study_instance_uid": candidate.study_uid,
        **candidate.facts,
        **geometry,
        **calibration,
        **prepared.facts,
        "problems": problems,
        "resume_key": key,
    }
    if segmentation is not None:
        array, names, used = segmentation
        write("labels", array, prepared.cube_affine)
        write_json(output / "labels" / f"{case}.json", {str(n): name for n, name in names.items()})
        record["labels"] = {"files": [p.name for p in used], "sha256": sha256_files(used), "structures": len(names)}
    record["outputs"] = outputs
    write_json(inside(output, f"cases/{case}.json", "case"), record)
    return record
