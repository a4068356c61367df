"""Readers of NIfTI and MetaImage volumes, and the checks which every CT passes."""

import gzip
import itertools
import logging
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from custom.core.limits import check_count, check_expansion
from custom.core.names import inside
from custom.core.nifti_files import open_nifti
from custom.core.rejection import Rejected

logger = logging.getLogger(__name__)

_LARGEST_HEAD, _LARGEST_VOXELS = 2**16, 2**30
_BYTES = {"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_FLOAT": 4}
_MM_PER_UNIT = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_VOLUME_SUFFIXES = {".nii.gz": "nifti", ".nii": "nifti", ".mhd": "metaimage", ".mha": "metaimage"}
#: Volumes and archives of formats that are not read, which a folder of CTs may hold.
OTHER_FORMATS = frozenset(
    {".nrrd", ".nhdr", ".hdr", ".mgz", ".mgh", ".mnc", ".gipl", ".vtk", ".vti"}
    | {".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar", ".tar", ".tgz"}
)
#: Every chest has voxels below the first and above the second; beyond the third no HU lie, but 16 bits that wrapped.
LUNG_HU, WATER_HU, FARTHEST_HU = -400.0, 0.0, 2.0**15
#: Sides of what may be a chest in a scanner, across the table, and length of a person.
_NARROWEST_MM, _WIDEST_MM, _LONGEST_MM = 50.0, 1200.0, 2500.0


def volume_suffix(path: Path) -> str:
    """ ".nii.gz", ".nii", ".mhd" or ".mha" in lower case; "" for other files."""
    return next((suffix for suffix in _VOLUME_SUFFIXES if path.name.lower().endswith(suffix)), "")


def volume_kind(path: Path) -> str:
    """ "nifti" or "metaimage", by `volume_suffix`, which is not empty."""
    return _VOLUME_SUFFIXES[volume_suffix(path)]


def not_hu(values: npt.NDArray[Any]) -> str:
    """From where to where values run that cannot be those of a CT in HU; "" where they can."""
    low, high = float(values.min()), float(values.max())
    if -FARTHEST_HU <= low < LUNG_HU and WATER_HU < high <= FARTHEST_HU:
        return ""
    return f"values run from {low:g} to {high:g}; air is -1000 HU, water 0"


def _check_affine(affine: npt.NDArray[np.float64], path: Path) -> None:
    if not np.isfinite(affine).all() or abs(float(np.linalg.det(affine[:3, :3]))) < 1e-9:
        raise Rejected(f"{path.name}: its affine is singular or not finite")


def _check_forms(image: Any, path: Path) -> None:
    """Say where qform and sform, if both are set, place the voxels differently; refuse where directions differ."""
    sform, _ = image.get_sform(coded=True)
    try:
        qform, _ = image.get_qform(coded=True)
    except (ValueError, HeaderDataError) as error:
        raise Rejected(f"{path.name}: its qform is damaged ({error})") from error
    for name, form in (("sform", sform), ("qform", qform)):
        if form is not None and not np.isfinite(form).all():
            raise Rejected(f"{path.name}: its {name} is not finite; correct it, or set its code to 0")
    if sform is None or qform is None:
        return
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in image.shape[:3]], (1,)))).T
    apart = float(np.linalg.norm(((sform - qform) @ corners)[:3], axis=0).max())
    apart_mm = apart * _MM_PER_UNIT[image.header.get_xyzt_units()[0]]
    if apart <= 0.1 * float(np.linalg.norm(sform[:3, :3], axis=0).min()):
        return
    ways = ["".join(str(c) for c in nib.aff2axcodes(form)) for form in (sform, qform)]
    if ways[0] != ways[1]:
        raise Rejected(
            f"{path.name}: its sform says {ways[0]}, its qform {ways[1]}: left and right are unknown; make both say "
            "the same, or set the code of the wrong one to 0"
        )
    logger.warning(
        "%s: its sform and qform place voxels up to %.3g mm apart: the sform is used; if it leads to another "
        "space (a template), set its code to 0", path, apart_mm,
    )  # fmt: skip


def load_nifti(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Values (X, Y, Z) and affine (voxel to RAS+ mm) of a NIfTI file.

    Raises:
        Rejected: damaged, not three-dimensional, colours, without orientation or with two, NaN or infinite values.
    """
    try:
        image = open_nifti(path)
        header, stored = image.header, cast(Any, image.dataobj)
        values = stored.get_unscaled()
        if (stored.slope, stored.inter) != (1, 0) and values.dtype.fields is None:
            # nibabel would scale in 64 bits, which makes eight times as much of a file of bytes.
            values = values.astype(np.float32)
            values *= stored.slope
            values += stored.inter
        while values.ndim > 3 and values.shape[-1] == 1:  # of the first three axes the affine speaks
            values = values[..., 0]
        _check_to_the_end(path)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        said = str(error).removeprefix(f"{path}: ")
        raise Rejected(
            f"{path.name}: {said}" if said != str(error) else f"{path.name} is truncated or damaged ({said})"
        ) from error
    if values.dtype.fields is not None or values.ndim != 3 or min(values.shape) < 2:
        raise Rejected(f"{path.name} is not one volume: shape {values.shape}, type {values.dtype}")
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise Rejected(
            f"{path.name} has no orientation (sform and qform codes are 0): left and right are unknown; set the "
            "code of the one that is right"
        )
    _check_forms(image, path)
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= _MM_PER_UNIT[header.get_xyzt_units()[0]]
    _check_affine(affine, path)
    check_finite(values, path)
    return values, affine


def load_hu(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """`load_nifti` of a volume in HU that a command names: values and sizes that cannot be are warned of.

    Returns:
        (X, Y, Z) float32, axes turned to RAS+ as far as they are along it, and the affine in mm.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `load_nifti`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        values, affine = load_nifti(path)
    except Rejected as error:
        raise ValueError(f"{path.parent / str(error)}") from error
    if said := not_hu(values):
        logger.warning("%s: is it a CT in HU? Its %s", path, said)
    if said := _not_a_chest(grid_facts(values.shape, affine)):
        logger.warning("%s: %s", path, said)
    turned = nib.as_closest_canonical(nib.Nifti1Image(values, affine, dtype=values.dtype))
    return np.asarray(turned.dataobj, dtype=np.float32), np.asarray(turned.affine, dtype=np.float64)


def _check_to_the_end(path: Path) -> None:
    """The check sum at the end of a compressed file, which nibabel does not come to."""
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as stream:
            while stream.read(2**22):
                pass


def check_finite(values: npt.NDArray[Any], path: Path) -> None:
    """Raise Rejected where voxels are NaN or infinite."""
    bad = 0 if np.issubdtype(values.dtype, np.integer) else int((~np.isfinite(values)).sum())
    if bad:
        raise Rejected(f"{path.name} has {bad} voxels that are NaN or infinite")


def check_training_ct(path: Path) -> None:
    """Find NaN in a CT before a network is trained on it; whole numbers, as `prepare` writes them, are not read.

    Raises:
        ValueError: naming the file and what to do.
    """
    try:
        image = open_nifti(path)
        if not np.issubdtype(image.get_data_dtype(), np.integer):
            check_finite(np.asarray(image.dataobj), path)
    except Rejected as error:
        raise ValueError(f"{path}: {error}; repair it, or take the case out of the datalist") from error
    except (ValueError, EOFError, OSError):  # not readable: said where it is loaded
        return


def _metaimage_keys(path: Path) -> dict[str, str]:
    """The header of a MetaImage, up to ElementDataFile, which is its last key."""
    with open(path, "rb") as stream:
        head, mark, rest = stream.read(_LARGEST_HEAD).partition(b"ElementDataFile")
    text = (head + mark + rest.split(b"\n")[0]).decode(errors="replace")
    return dict(re.findall(r"^[ \t]*(\w+)[ \t]*=[ \t]*(.*?)[ \t\r]*$", text, re.MULTILINE))


def _metaimage_direction(path: Path, matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Columns to LPS, by TransformMatrix, which ITK reads as ``matrix``, or else by AnatomicalOrientation.

    Each letter says where an axis begins (RAI: at the right, in front, below), as ITK writes it.

    Raises:
        Rejected: neither of them is there, the letters are no orientation, or they mirror or permute the matrix.
    """
    keys = _metaimage_keys(path)
    told = any(keys.get(key) for key in ("TransformMatrix", "Rotation", "Orientation"))
    letters = keys.get("AnatomicalOrientation", "").upper()
    axes = ["RL", "AP", "IS"]  # from the low to the high end of LPS
    hits = [next((n for n, ends in enumerate(axes) if letter in ends), -1) for letter in letters]
    if sorted(hits) != [0, 1, 2]:
        if told:
            return matrix
        said = f"AnatomicalOrientation is {letters!r}" if letters else "no TransformMatrix, no AnatomicalOrientation"
        raise Rejected(f"{path.name} has no orientation ({said}): left and right are unknown; write one of them")
    direction = np.zeros((3, 3))
    for column, (row, letter) in enumerate(zip(hits, letters, strict=True)):
        direction[row, column] = 1.0 if axes[row][0] == letter else -1.0
    if told and (np.einsum("ij,ij->j", matrix, direction) < 0.5).any():
        raise Rejected(
            f"{path.name}: its TransformMatrix and its AnatomicalOrientation ({letters}) name different directions: "
            "left and right are unknown; make both say the same, or remove the wrong one"
        )
    return matrix if told else direction


def _bytes_before(path: Path, keys: Mapping[str, str], data: Path) -> int:
    """Bytes of a MetaImage's data file before the voxels; -1 where these stand at its end, whatever comes before."""
    if data != path:
        return int(keys.get("HeaderSize") or 0)
    with open(path, "rb") as stream:
        head = stream.read(_LARGEST_HEAD)
    return head.index(b"\n", head.index(b"ElementDataFile")) + 1


def metaimage_data(path: Path) -> Path:
    """The file that holds the voxels of a MetaImage: the one that a .mhd names in its own folder, or the .mha itself.

    Raises:
        Rejected: it names a file elsewhere or several, or voxels that its data file cannot hold.
    """
    keys = _metaimage_keys(path)
    named = keys.get("ElementDataFile", "")
    try:
        data = path if named == "LOCAL" else inside(path.parent, named, f"{path.name}: ElementDataFile")
        if not data.is_file():
            raise ValueError(f"{path.name} or its data file is missing ({named!r})")
        spacing = keys.get("ElementSpacing") or keys.get("ElementSize") or ""
        if not spacing or not all(float(mm) > 0 for mm in spacing.split()):
            raise ValueError(f"{path.name}: its ElementSpacing is {spacing or 'absent'}, it must be mm above 0")
        sizes = [int(n) for n in keys.get("DimSize", "").split()]
        width = _BYTES.get(keys.get("ElementType", ""), 8) * int(keys.get("ElementNumberOfChannels", "1"))
        needed = float(np.prod([float(n) for n in sizes])) * width
        if not sizes or min(sizes) < 1:
            raise ValueError(f"{path.name}: DimSize is {keys.get('DimSize')!r}")
        check_count(path, "voxels", needed / width, _LARGEST_VOXELS)
        if keys.get("CompressedData", "").lower() in ("true", "t", "1", "yes"):
            check_expansion(data, needed)
        else:
            size, before = data.stat().st_size, _bytes_before(path, keys, data)
            if needed + max(before, 0) > size:
                raise ValueError(f"{path.name} is truncated: {size} bytes, {needed + max(before, 0):.0f} are needed")
            if before >= 0 and (left := size - needed - before) >= sizes[0] * width:
                raise ValueError(
                    f"{path.name}: {left:.0f} bytes are left over behind its voxels of {width} bytes: its DimSize or "
                    "ElementType is wrong, and voxels would be read askew"
                )
    except ValueError as error:
        said = str(error)
        raise Rejected(said if path.name in said else f"{path.name}: a damaged header ({said})") from error
    return data


def metaimage_files(path: Path) -> tuple[Path, ...]:
    """A volume's file, and the data file that a .mhd names, where it exists."""
    if path.suffix.lower() != ".mhd":
        return (path,)
    try:
        return (path, metaimage_data(path))
    except Rejected:  # said when it is loaded
        return (path,)


def load_metaimage(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Values (X, Y, Z) and affine (voxel to RAS+ mm) of a MetaImage file (.mhd with .raw or .zraw, .mha).

    Raises:
        Rejected: damaged, its data file missing, not three-dimensional, without orientation, NaN or infinite values.
    """
    import SimpleITK as sitk  # heavy, and for few files

    metaimage_data(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise Rejected(f"{path.name} or its data file is missing, truncated or damaged ({reason})") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise Rejected(f"{path.name} is not one volume: size {image.GetSize()}")
    values = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    lps = np.eye(4)
    direction = _metaimage_direction(path, np.array(image.GetDirection()).reshape(3, 3))
    lps[:3, :3] = direction * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    _check_affine(affine, path)
    check_finite(values, path)
    return values, affine


def check_hu(volume: npt.NDArray[np.generic]) -> dict[str, float]:
    """Whether the values are Hounsfield units: air near -1000, soft tissue near 0.

    Args:
        volume: (X, Y, Z); below -1500 is padding.

    Returns:
        ``air_hu``, the commonest value of air (absent where there is hardly any), and ``tissue_hu``, the median of
        what is denser than -300 HU.

    Raises:
        Rejected: the values cannot be HU; the message says what they are.
    """
    sample = np.asarray(volume[::2, ::2, ::2], dtype=np.float32).ravel()
    inside = sample[sample > -1500]
    span = f"values run from {sample.min():g} to {sample.max():g}"
    if sample.max() > FARTHEST_HU:
        raise Rejected(f"not a CT in HU: {span}; did 16 bits wrap round, of padding or of air?")
    if inside.size < 0.1 * sample.size:
        raise Rejected(f"not a CT in HU: hardly any value above -1500 ({span})")
    if float(((inside > -1150) & (inside < -600)).mean()) < 0.01:
        raise Rejected(f"HU calibration: no air and no lung between -1150 and -600 HU ({span}); rescale missing?")
    tissue = inside[inside > -300]
    if tissue.size < 0.02 * inside.size:
        raise Rejected(f"HU calibration: no soft tissue above -300 HU ({span})")
    facts = {"tissue_hu": round(float(np.median(tissue)), 1)}
    if not -150.0 <= facts["tissue_hu"] <= 120.0:
        raise Rejected(f"HU calibration: soft tissue measures {facts['tissue_hu']:g} HU, expected -150 to 120 ({span})")
    # The scan's own lowest value is padding or clipped air: a mode there would say nothing.
    air = inside[(inside < -930) & (inside > max(-1150.0, float(inside.min()) + 0.5))]
    if air.size > 0.02 * inside.size:
        counts, edges = np.histogram(air, bins=55, range=(-1150, -930))
        facts["air_hu"] = round(float(edges[int(np.argmax(counts))] + 2.0), 1)
        if abs(facts["air_hu"] + 1000.0) > 60.0:
            raise Rejected(f"HU calibration: air measures {facts['air_hu']:g} HU, expected -1000 +- 60")
    return facts


def grid_facts(shape: tuple[int, ...], affine: npt.NDArray[np.floating]) -> dict[str, Any]:
    """``native_spacing_mm``, ``native_shape``, ``slice_mm`` and ``coverage_mm`` for the manifest.

    Args:
        shape: (X, Y, Z) in any axis order.
        affine: voxel to RAS+ mm; the axis closest to superior is the slice axis.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axis = int(np.argmax(np.abs(affine[2, :3]) / spacing))
    return {
        "native_spacing_mm": [round(float(s), 5) for s in spacing],
        "native_shape": [int(n) for n in shape],
        "slice_mm": round(float(spacing[axis]), 5),
        "coverage_mm": round(float(spacing[axis] * shape[axis]), 2),
        "width_mm": sorted(round(float(spacing[k] * shape[k]), 1) for k in {0, 1, 2} - {axis}),
    }


def check_grid(facts: Mapping[str, Any], max_slice_mm: float, min_coverage_mm: float) -> None:
    """Whether slices are thin enough, the scan long enough, and its sides those of a person in a scanner.

    Args:
        facts: of `grid_facts`.
        max_slice_mm: largest slice spacing.
        min_coverage_mm: smallest length along the slice axis.

    Raises:
        Rejected: too coarse, too short, or of a size that cannot be.
    """
    if facts["slice_mm"] > max_slice_mm * 1.001:
        raise Rejected(f"slices are {facts['slice_mm']:g} mm apart, max_slice_mm is {max_slice_mm:g}")
    if facts["coverage_mm"] < min_coverage_mm:
        raise Rejected(f"the scan covers {facts['coverage_mm']:g} mm only, min_coverage_mm is {min_coverage_mm:g}")
    if said := _not_a_chest(facts):
        raise Rejected(said)


def _not_a_chest(facts: Mapping[str, Any]) -> str:
    """What is wrong with the size of a volume, of `grid_facts`; "" where a person in a scanner may have it."""
    low, high = facts["width_mm"]
    if low >= _NARROWEST_MM and high <= _WIDEST_MM and facts["coverage_mm"] <= _LONGEST_MM:
        return ""
    size = f"{low:g} x {high:g} x {facts['coverage_mm']:g} mm"
    return f"the scan is {size} large, which no chest is: are its voxel sizes in mm?"
