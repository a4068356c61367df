"""Segmentations beside a CT (NIfTI, RTSTRUCT), resampled to the grid of its cube."""

import csv
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from matplotlib.path import Path as Polygon
from scipy import ndimage

from custom.core.files import read_json_object
from custom.core.limits import check_file_size
from custom.core.rejection import Rejected
from custom.data.scan import volume_suffix, walk
from custom.data.volume_files import load_nifti
from custom.dicom.opener import open_dicom, reason

logger = logging.getLogger(__name__)

Labels = npt.NDArray[np.unsignedinteger[Any]]

_ONE_PLANE_MM = 0.05
"""Contours closer than this lie in one plane."""
_LARGEST_LABEL, _LARGEST_CSV = 60000, 2**20
_CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})


def label_files(folder: Path, cases: Iterable[str]) -> tuple[dict[str, list[Path]], list[Path]]:
    """The label files of every case: named as the case, or the case and something after "_", "-" or ".".

    Args:
        folder: looked through with its subfolders, for .nii and .nii.gz.
        cases: case names; the longest that fits a file takes it.

    Returns:
        Files by case, and the files that belong to none.
    """
    names = sorted(cases, key=lambda c: (-len(c), c))
    found: dict[str, list[Path]] = {}
    strays = []
    for path in walk(folder):
        if volume_suffix(path) not in (".nii", ".nii.gz"):
            continue
        stem = path.name[: -len(volume_suffix(path))]
        owner = next((n for n in names if stem == n or (stem.startswith(n) and stem[len(n)] in "_-.")), None)
        if owner is None:
            strays.append(path)
        else:
            found.setdefault(owner, []).append(path)
    return found, strays


def _smallest(labels: npt.NDArray[Any]) -> Labels:
    """uint8 where the numbers allow, else uint16."""
    return labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16)


def on_grid(
    labels: npt.NDArray[Any],
    affine: npt.NDArray[np.floating],
    grid_affine: npt.NDArray[np.floating],
    shape: tuple[int, int, int],
) -> Labels:
    """Nearest-neighbour resampling of a label map through world coordinates; 0 outside.

    Args:
        labels: (X, Y, Z) whole numbers.
        affine: voxel to RAS+ mm of ``labels``.
        grid_affine: voxel to RAS+ mm of the result.
        shape: of the result.
    """
    to_label = np.linalg.inv(affine) @ grid_affine
    return ndimage.affine_transform(
        _smallest(labels), to_label[:3, :3], to_label[:3, 3], output_shape=shape, order=0, mode="constant", cval=0
    )


def names_beside(path: Path) -> dict[int, str]:
    """Names of a map's labels out of a JSON ({"1": "liver"}) or CSV (columns id, structure or name) beside it.

    Raises:
        Rejected: it cannot be read.
    """
    stem = path.with_name(path.name[: -len(volume_suffix(path))])
    as_json, as_csv = (stem.with_name(stem.name + suffix) for suffix in (".json", ".csv"))
    used = as_json if as_json.is_file() else as_csv
    try:
        if used == as_json:
            return {int(k): str(v) for k, v in read_json_object(as_json).items()}
        if not as_csv.is_file():
            return {}
        check_file_size(as_csv, _LARGEST_CSV)
        with open(as_csv, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
        key = next((k for k in ("structure", "name", "label") if rows and k in rows[0]), None)
        if key is None or "id" not in rows[0]:
            raise Rejected(f"{as_csv.name} has no columns 'id' and 'structure'")
        return {int(row["id"]): str(row[key] or "") for row in rows}
    except (ValueError, TypeError, csv.Error) as error:
        if isinstance(error, Rejected):
            raise
        raise Rejected(
            f"{used.name} holds no names of labels ({reason(error)}): each is a number and a structure, in UTF-8"
        ) from error


def load_labels(
    paths: Sequence[Path], grid_affine: npt.NDArray[np.floating], shape: tuple[int, int, int]
) -> tuple[Labels, dict[int, str]]:
    """One label map on the grid out of the label files of a case.

    One file keeps its numbers. Of several, each gets numbers above those of the file before; where they overlap the
    later one stands.

    Returns:
        The map, and the names of its numbers ("<file>" or "<file>:<number>" where no names lie beside the file); a
        number that is named beside the file but has no voxel keeps its name.

    Raises:
        Rejected: damaged, not whole numbers, negative, too large, or nothing of it inside the cube.
    """
    merged = np.zeros(shape, dtype=np.uint16)
    names: dict[int, str] = {}
    offset = 0
    for path in paths:
        values, affine = load_nifti(path)
        low, high = values.min(), values.max()
        if low < 0 or high > _LARGEST_LABEL or not np.array_equal(values, whole := values.astype(np.uint16)):
            raise Rejected(f"{path.name} is no label map: values from {low:g} to {high:g}")
        values = whole
        numbers = [int(n) for n in np.unique(values) if n]
        carried = on_grid(values, affine, grid_affine, shape)
        if numbers and not carried.any():
            raise Rejected(f"{path.name}: nothing of it lies inside the cube; does it belong to this scan?")
        own = names_beside(path)
        stem = path.name[: -len(volume_suffix(path))]
        for number in numbers:
            names[number + offset] = stem if len(numbers) == 1 else f"{stem}:{number}"
        # A structure that is named but has no voxel was looked for and is absent.
        names |= {number + offset: name for number, name in own.items() if number > 0}
        if max(names, default=0) > _LARGEST_LABEL:
            raise Rejected(
                f"{path.name}: its labels would be numbered up to {max(names)}, at most {_LARGEST_LABEL} are carried"
            )
        merged = np.where(carried > 0, carried.astype(np.uint16) + offset, merged)
        offset = max(names, default=0)
    return _smallest(merged), names


def rasterise_contours(
    contours: Sequence[npt.NDArray[np.floating]],
    affine: npt.NDArray[np.floating],
    shape: tuple[int, int, int],
    grid_affine: npt.NDArray[np.floating],
    grid_shape: tuple[int, int, int],
) -> tuple[npt.NDArray[np.bool_], int]:
    """Fill closed planar contours: a voxel of the grid is inside when its centre is, in a plane of contours that is at
    most half a CT slice away.

    Contours of one plane combine by exclusive or, so that a contour inside another is a hole (PS3.3 C.8.8.6), and one
    that is there twice counts once; planes that reach one voxel are united, wherever they lie between the slices. The
    grid is filled directly: going through
    the CT's own pixels would shift contours drawn along pixel centres by half a pixel.

    Args:
        contours: each (N, 3) points in RAS+ mm.
        affine: the CT's (column, row, slice) to RAS+ mm.
        shape: the CT's.
        grid_affine: voxel to RAS+ mm of the result.
        grid_shape: of the result.

    Returns:
        Mask on the grid, and the number of contours that lie beyond the CT's slices.
    """
    inverse = np.linalg.inv(affine)
    native = [points @ inverse[:3, :3].T + inverse[:3, 3] for points in contours]
    inside = sorted((p for p in native if _in_stack(_slice_of(p), shape[2])), key=_slice_of)
    planes: list[tuple[float, list[npt.NDArray[np.floating]]]] = []
    last = -np.inf
    for polygon in (p for p in inside if len(p) >= 3):
        k = _slice_of(polygon)
        if k - last > _ONE_PLANE_MM / np.linalg.norm(affine[:3, 2]):
            planes.append((k, []))
        if not any(np.array_equal(polygon[:, :2], other) for other in planes[-1][1]):
            planes[-1][1].append(polygon[:, :2])
        last = k
    mask = np.zeros(grid_shape, dtype=bool)
    to_native = inverse @ grid_affine
    plane = np.indices(grid_shape[:2]).reshape(2, -1).T @ to_native[:3, :2].T + to_native[:3, 3]
    for z in range(grid_shape[2]):
        voxels = plane + z * to_native[:3, 2]
        flat = np.zeros(len(voxels), dtype=bool)
        lowest, highest = voxels[:, 2].min() - 1, voxels[:, 2].max() + 1
        for k, polygons in (p for p in planes if lowest < p[0] < highest):
            # Half open, with a tolerance: a voxel half way between two planes belongs to the upper one.
            off = voxels[:, 2] - k + 1e-6
            near = (off >= -0.5) & (off < 0.5) & _in_stack(voxels[:, 2], shape[2])
            if near.any():
                flat |= _filled(polygons, voxels[:, :2], near)
        mask[:, :, z] = flat.reshape(grid_shape[:2])
    return mask, len(native) - len(inside)


def _slice_of(polygon: npt.NDArray[np.floating]) -> float:
    """The slice, as a fraction, in which a contour in voxels of the CT lies."""
    return float(polygon[:, 2].mean())


def _in_stack(k: Any, slices: int) -> Any:
    return (k >= -0.5 - 1e-6) & (k < slices - 0.5 + 1e-6)


def _filled(
    polygons: Sequence[npt.NDArray[np.floating]], points: npt.NDArray[np.floating], among: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Which of ``points`` (N, 2), of those ``among``, lie inside the contours of one plane."""
    flat = np.zeros(len(points), dtype=bool)
    for polygon in polygons:
        low, high = polygon.min(axis=0), polygon.max(axis=0)
        near = among & ((points >= low) & (points <= high)).all(axis=1)
        if near.any():
            flat[near] ^= Polygon(polygon).contains_points(points[near])
    return flat


def _native_slices(points: npt.NDArray[np.floating], affine: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """The slice of each point in RAS+ mm, as a fraction."""
    inverse = np.linalg.inv(affine)
    return points @ inverse[2, :3] + inverse[2, 3]


def _is_level(points: npt.NDArray[np.floating], affine: npt.NDArray[np.floating]) -> bool:
    """Whether a contour lies in one slice: a sagittal or tilted one would be pressed flat."""
    return len(points) == 0 or float(np.ptp(_native_slices(points, affine))) <= 0.5


def usual_distance(contours: Sequence[npt.NDArray[np.floating]], affine: npt.NDArray[np.floating]) -> float:
    """Median distance between neighbouring planes of contours, in slices of the CT; 0 where there is one plane."""
    places = np.unique(np.round([_native_slices(points, affine).mean() for points in contours if len(points)], 2))
    return float(np.median(np.diff(places))) if len(places) > 1 else 0.0


def off_slices(contours: Sequence[npt.NDArray[np.floating]], affine: npt.NDArray[np.floating]) -> tuple[int, float]:
    """How many contours lie between the CT's slices, by more than a tenth of the spacing, and how far at most, mm."""
    slices = np.array([_native_slices(points, affine).mean() for points in contours])
    off = np.abs(slices - np.rint(slices))
    return int((off > 0.1).sum()), float(off.max(initial=0.0) * np.linalg.norm(affine[:3, 2]))


def _frames_of(dataset: pydicom.Dataset) -> list[str]:
    """Frames of reference that an RTSTRUCT names (3006,0010)."""
    return [str(one.get("FrameOfReferenceUID", "")) for one in dataset.get("ReferencedFrameOfReferenceSequence") or []]


def _refers_to(dataset: pydicom.Dataset, series_uid: str, frame_of_reference: str) -> bool:
    """Whether an RTSTRUCT refers to the series (3006,0010 ...), or names no series and shares its frame."""
    series = []
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            series += [str(s.get("SeriesInstanceUID")) for s in study.get("RTReferencedSeriesSequence") or []]
    return series_uid in series if series else bool(frame_of_reference) and frame_of_reference in _frames_of(dataset)


def load_rtstruct(
    paths: Sequence[Path],
    series_uid: str,
    frame_of_reference: str,
    affine: npt.NDArray[np.floating],
    shape: tuple[int, int, int],
    grid_affine: npt.NDArray[np.floating],
    grid_shape: tuple[int, int, int],
) -> tuple[Labels, dict[int, str], list[Path]] | None:
    """The structures that belong to a series, as a label map on a grid.

    Numbers follow the ROIs' order in the file (3006,0020). Where ROIs overlap the smaller one stands, so that a
    tumour is not lost in the organ around it.

    Args:
        paths: RTSTRUCT files of the patient.
        series_uid: SeriesInstanceUID of the CT.
        frame_of_reference: FrameOfReferenceUID of the CT.
        affine: the CT's (column, row, slice) to RAS+ mm.
        shape: the CT's.
        grid_affine: voxel to RAS+ mm of the result.
        grid_shape: of the result.

    Returns:
        Label map, names of its numbers, the files used; None where no file refers to the series.

    Raises:
        Rejected: damaged, or no ROI has a closed contour inside the grid.
    """
    masks: list[tuple[int, str, npt.NDArray[np.bool_]]] = []
    used = []
    number = 0
    for path in paths:
        try:
            dataset = open_dicom(path)
            if not _refers_to(dataset, series_uid, frame_of_reference):
                continue
            contours = {int(r.ReferencedROINumber): r for r in dataset.get("ROIContourSequence") or []}
            rois = [(int(r.ROINumber), str(r.get("ROIName", ""))) for r in _in_frame(path, dataset, frame_of_reference)]
            polygons = {n: _closed(path, contours[n]) for n, _ in rois if n in contours}
        except (AttributeError, ValueError, KeyError, TypeError, EOFError, OSError) as error:
            raise Rejected(f"{path.name} is a damaged RTSTRUCT ({type(error).__name__}: {error})") from error
        used.append(path)
        for roi, name in rois:
            number += 1
            drawn = [points for points in polygons.get(roi, []) if _is_level(points, affine)]
            if askew := len(polygons.get(roi, [])) - len(drawn):
                logger.warning(
                    "%s: %d contours of %r do not lie in the plane of the CT's slices and are left out: were they "
                    "drawn on another series?", path.name, askew, name,
                )  # fmt: skip
            mask, outside = rasterise_contours(drawn, affine, shape, grid_affine, grid_shape)
            if outside:
                logger.warning("%s: %d contours of %r lie beyond the CT's slices", path.name, outside, name)
            if (apart := usual_distance(drawn, affine)) > 1.5:
                logger.warning(
                    "%s: the contours of %r are %.2g slices apart, and each is drawn one slice thick: there are gaps",
                    path.name, name, apart,
                )  # fmt: skip
            between, farthest = off_slices(drawn, affine)
            if between:
                logger.warning(
                    "%s: %d contours of %r lie between the CT's slices, up to %.2g mm off: each is drawn where it "
                    "lies, one slice thick; were they drawn on this series?", path.name, between, name, farthest,
                )  # fmt: skip
            if mask.any():
                masks.append((number, name or f"ROI {roi}", mask))
            else:
                logger.warning("%s: %r has no closed contour inside the cube and is left out", path.name, name)
    if not used:
        return None
    if not masks:
        raise Rejected(f"{', '.join(p.name for p in used)}: no ROI has a closed contour inside the cube")
    labels = np.zeros(grid_shape, dtype=np.uint16)
    for roi_number, _, mask in sorted(masks, key=lambda m: -int(m[2].sum())):
        labels[mask] = roi_number
    return _smallest(labels), {n: name for n, name, _ in masks}, used


def _numbers(value: Any) -> npt.NDArray[np.float64]:
    """Numbers of a decimal string as it stands in the file: pydicom takes 160 bytes for each of them.

    Raises:
        ValueError: one of them is none.
    """
    if not isinstance(value, bytes):
        return np.asarray([float(v) for v in value or ()])
    text = value.decode("ascii").strip(" \0")
    numbers = np.asarray(text.split("\\"), dtype=np.float64) if text else np.zeros(0)
    if not np.isfinite(numbers).all():
        raise ValueError("Contour Data (3006,0050) that are no numbers")
    return numbers


def _in_frame(path: Path, dataset: pydicom.Dataset, frame_of_reference: str) -> list[pydicom.Dataset]:
    """The ROIs (3006,0020) that lie in the CT's frame of reference, as far as the file knows that; others are said."""
    rois, frames = list(dataset.StructureSetROISequence), _frames_of(dataset)
    if not frame_of_reference or not any(frames):
        return rois
    if frame_of_reference not in frames:
        logger.warning(
            "%s names the CT's series, but another frame of reference: its contours are drawn as they stand; were they "
            "drawn on this CT?", path.name,
        )  # fmt: skip
        return rois
    own = [one for one in rois if str(one.get("ReferencedFrameOfReferenceUID") or "") in ("", frame_of_reference)]
    if len(own) < len(rois):
        logger.warning(
            "%s: %d ROIs lie in another frame of reference than the CT (3006,0024) and are left out", path.name,
            len(rois) - len(own),
        )  # fmt: skip
    return own


def _closed(path: Path, roi: pydicom.Dataset) -> list[npt.NDArray[np.float64]]:
    """Closed contours (3006,0040) of one ROI as (N, 3) points in RAS+ mm; others, but points, are said."""
    items = list(roi.get("ContourSequence") or [])
    kinds = [str(item.get("ContourGeometricType", "")).strip().upper() for item in items]
    closed = [
        _numbers(item.get_item("ContourData").value).reshape(-1, 3) * np.array([-1.0, -1.0, 1.0])
        for item, kind in zip(items, kinds, strict=True)
        if kind in _CLOSED
    ]
    areas = [points for points in closed if len(points) > 2]
    if lost := len(items) - len(areas) - kinds.count("POINT"):
        logger.warning(
            "%s: %d contours of ROI %s are not closed, or have fewer than three points, and are left out", path.name,
            lost, roi.get("ReferencedROINumber"),
        )  # fmt: skip
    return areas
