"""Label maps of LIDC-IDRI and LUNA16 for `prepare`: nodules from the readers' annotations, lungs from LUNA16."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from custom.core.files import write_json, write_nifti
from custom.core.optional_packages import required
from custom.core.rejection import Rejected
from custom.data.case import load
from custom.data.scan import scan, volume_suffix, walk
from custom.data.volume_files import load_metaimage
from custom.dicom import ct_series

__all__ = ["consensus_nodules", "sphere_nodules", "write_lidc_labels"]

logger = logging.getLogger(__name__)

#: A finding of too few readers is neither nodule nor none: a name that no class knows leaves its voxels open.
NODULE_NAMES = {"1": "nodule", "2": "disputed_finding"}
#: Numbers in the lung masks that LUNA16 ships.
LUNA16_NAMES = {"3": "lung_right", "4": "lung_left", "5": "trachea"}
CSV_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")

Array = npt.NDArray[Any]


def write_lidc_labels(
    input_dir: str,
    output_dir: str,
    annotations: str | None = None,
    lung_masks: str | None = None,
    min_readers: int = 3,
) -> str:
    """Write label maps of nodules, and of lungs, for the scans of LIDC-IDRI or LUNA16.

    'fewview-ct prepare --labels OUTPUT_DIR' carries them onto the cubes. A scan without nodule gets a map too: it is
    known to have none.

    Args:
        input_dir: the scans: LIDC-IDRI's DICOM series or LUNA16's MetaImages.
        output_dir: where <case>_nodule.nii.gz, <case>_lungs.nii.gz and their names go.
        annotations: LUNA16's annotations.csv (spheres); by default LIDC's XML contours through pylidc (extra lidc),
            which need the DICOM series.
        lung_masks: folder of LUNA16's lung masks; none by default.
        min_readers: contours of a finding by fewer of the four readers teach nothing, neither nodule nor none.

    Raises:
        FileNotFoundError: an input that does not exist.
        ModuleNotFoundError: pylidc is missing.
        ValueError: no scan, annotations of none of the scans, or a file that is no annotations.csv.
    """
    if not 1 <= int(min_readers) <= 4:
        raise ValueError(f"min_readers must be 1 to 4, got {min_readers}")
    pylidc = None if annotations else _pylidc()
    spheres = read_annotations(Path(annotations)) if annotations else {}
    masks = _lung_files(Path(lung_masks)) if lung_masks else {}
    output = Path(output_dir)
    candidates, _ = scan(Path(input_dir), [output, *([Path(lung_masks)] if lung_masks else [])])
    found = 0
    for candidate in tqdm(candidates, desc="label maps", unit="scan", disable=None):
        uid = candidate.series_uid or _stem(candidate.files[0])
        try:
            if pylidc is not None:
                scans = pylidc.query(pylidc.Scan).filter(pylidc.Scan.series_instance_uid == uid).all()
                if candidate.kind != "dicom" or not scans:
                    logger.warning("%s: not a DICOM series of LIDC-IDRI, left out", candidate.source)
                    continue
                affine, facts = ct_series.check_stack(candidate.slices)
                labels = consensus_nodules(scans[0], affine, facts["native_shape"], int(min_readers), pylidc)
            else:
                volume, affine = load(candidate)
                labels = sphere_nodules(spheres.get(uid, []), affine, volume.shape)
        except Rejected as error:
            logger.warning("%s: %s, left out", candidate.source, error)
            continue
        found += 1
        _write(output, f"{candidate.case}_nodule", labels, affine, NODULE_NAMES)
        if uid in masks:
            values, own_affine = load_metaimage(masks[uid])
            kept = np.where(np.isin(values, [int(n) for n in LUNA16_NAMES]), values, 0).astype(np.uint8)
            _write(output, f"{candidate.case}_lungs", kept, own_affine, LUNA16_NAMES)
    if not found:
        raise ValueError(f"{input_dir}: none of its {len(candidates)} scans is one of LIDC-IDRI with annotations")
    logger.info("%s: label maps of %d scans", output, found)
    return str(output)


def _pylidc() -> Any:
    what = "without LUNA16's annotations.csv LIDC's own need"
    required("pylidc.utils", "lidc", what)
    return required("pylidc", "lidc", what)


def _write(folder: Path, name: str, labels: Array, affine: Array, names: Mapping[str, str]) -> None:
    write_nifti(folder / f"{name}.nii.gz", labels, affine)
    write_json(folder / f"{name}.json", names)


def _stem(path: Path) -> str:
    return path.name[: -len(volume_suffix(path))] if volume_suffix(path) else path.stem


def _lung_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of lung masks")
    return {_stem(path): path for path in walk(folder) if volume_suffix(path) in (".mhd", ".mha")}


def read_annotations(path: Path) -> dict[str, list[tuple[float, float, float, float]]]:
    """LUNA16's annotations.csv: by series, centre in RAS+ mm and diameter of every nodule.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of annotations")
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    with open(path, newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in CSV_COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path} is not LUNA16's annotations.csv: no column {', '.join(missing)}")
        for row in reader:
            x, y, z, diameter = (float(row[name]) for name in CSV_COLUMNS[1:])
            found.setdefault(row["seriesuid"], []).append((-x, -y, z, diameter))
    return found


def sphere_nodules(
    nodules: Sequence[tuple[float, float, float, float]], affine: Array, shape: Sequence[int]
) -> npt.NDArray[np.uint8]:
    """Nodules as spheres.

    Args:
        nodules: centre (x, y, z) in RAS+ mm and diameter in mm, of each.
        affine: voxel to RAS+ mm.
        shape: of the result.
    """
    labels = np.zeros(tuple(shape), dtype=np.uint8)
    inverse = np.linalg.inv(affine)
    reach_per_mm = np.abs(inverse[:3, :3]).sum(1)
    for x, y, z, diameter in nodules:
        centre = inverse[:3, :3] @ (x, y, z) + inverse[:3, 3]
        reach = diameter / 2 * reach_per_mm + 1
        low = np.clip(np.floor(centre - reach), 0, shape).astype(int)
        high = np.clip(np.ceil(centre + reach) + 1, 0, shape).astype(int)
        if (high <= low).any():
            continue
        index = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1)
        offset = (index - centre) @ affine[:3, :3].T
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        labels[box][(offset**2).sum(-1) <= (diameter / 2) ** 2] = 1
    return labels


def consensus_nodules(
    lidc_scan: Any, affine: Array, shape: Sequence[int], min_readers: int, pylidc: Any
) -> npt.NDArray[np.uint8]:
    """Nodules that enough readers have outlined: voxels inside at least half of their contours.

    Args:
        lidc_scan: pylidc's Scan.
        affine: (column, row, slice) of the DICOM series to RAS+ mm.
        shape: columns, rows, slices.
        min_readers: findings of fewer are labelled 2, the others 1.
        pylidc: the package.

    Raises:
        Rejected: the series has not the slices that were annotated.
    """
    labels = np.zeros(tuple(shape), dtype=np.uint8)
    heights = np.asarray(lidc_scan.slice_zvals, dtype=float)
    for mask, readers in _findings(lidc_scan, pylidc):
        rows, columns, slices = mask[1]
        for k, z in enumerate(heights[slices]):
            index = (z - affine[2, 3]) / affine[2, 2]
            if abs(index - round(index)) > 0.1 or not 0 <= round(index) < shape[2]:
                raise Rejected(f"no slice at z = {z:g} mm, where a nodule was outlined")
            plane = labels[columns, rows, round(index)]
            plane[mask[0][:, :, k].T & (plane != 1)] = 1 if readers >= min_readers else 2
    return labels


def _findings(lidc_scan: Any, pylidc: Any) -> Iterator[tuple[tuple[Array, tuple[slice, slice, slice]], int]]:
    for cluster in lidc_scan.cluster_annotations(verbose=False):
        yield pylidc.utils.consensus(cluster, clevel=0.5, ret_masks=False), len(cluster)
