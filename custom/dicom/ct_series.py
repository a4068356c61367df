"""CT series in DICOM: headers of files, the stack they form, and its voxels in HU."""

import importlib.util
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.errors import InvalidDicomError

from custom.core.limits import check_count, check_expansion
from custom.core.rejection import Rejected
from custom.dicom.header import numbers, tag
from custom.dicom.identity import meaning
from custom.dicom.opener import LOSSY_SYNTAXES, decoded_pixels, one_line, open_dicom, quiet_pydicom, reason
from custom.dicom.padding import padding_beside
from custom.dicom.pixels import used_bits

CT_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
    }
)
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
NOT_A_STACK = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM", "MIP", "MINIP", "PROJECTION IMAGE", "SCREEN SAVE"})
LARGEST_VOXELS = 2**30
PADDING_HU = -2000.0
"""What pixels outside the reconstruction circle (Pixel Padding Value, 0028,0120) are set to."""

UNSPECIFIED = "US"
"""Rescale Type (0028,1054) that says nothing (PS3.3 C.11.1.1.2): air and tissue tell whether values are HU."""
_ROUNDED_MM = 0.06
"""How far a slice may lie off the grid because its position was written with one decimal."""

_NATIVE_SYNTAXES = frozenset(
    {
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.5",  # RLE, decoded by pydicom itself
    }
)
_HEADER_ERRORS = (
    InvalidDicomError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError,
    RecursionError, struct.error,
)  # fmt: skip
FACT_TAGS = (
    "Modality", "SeriesDescription", "SeriesNumber", "Manufacturer", "ConvolutionKernel", "KVP", "PatientPosition",
    "FrameOfReferenceUID", "SliceThickness", "LossyImageCompression",
)  # fmt: skip
"""Attributes that go into the manifest as text."""
_IDENTITY = ("PatientName", "PatientBirthDate", "PatientSex")

_TAGS = [
    *FACT_TAGS,
    "SOPClassUID", "SOPInstanceUID", "ImageType", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName",
    "PatientBirthDate", "PatientSex", "AcquisitionNumber", "TemporalPositionIdentifier", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One axial image: a file, or one frame of a multi-frame file. Positions in DICOM's LPS millimetres."""

    path: Path
    frame: int | None
    sop_uid: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, ...]
    shape: tuple[int, int]
    rescale: tuple[float, float] | None
    rescale_type: str
    acquisition: tuple[str, str]

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """Unit vector across the slice."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def depth(self) -> float:
        """Distance of the slice from the origin along its normal, mm, growing towards the head."""
        normal = self.normal
        return float(np.dot(self.position, normal if normal[2] > 0 else -normal))


@dataclass(frozen=True)
class Header:
    """What `read_header` finds in one DICOM file."""

    path: Path
    sop_class: str
    modality: str
    series_uid: str
    study_uid: str
    patient_id: str
    identity: str
    image_type: tuple[str, ...]
    compressed: bool
    slices: tuple[Slice, ...]
    problem: str
    facts: dict[str, str]

    @property
    def person(self) -> str:
        """`identity` without case, padding and what nobody sees, in which the slices of one series may differ."""
        return "|".join(map(meaning, _IDENTITY, self.identity.split("|")))


def _numbers(keyword: str, value: Any, count: int) -> tuple[float, ...]:
    """An attribute as ``count`` finite numbers; ValueError says what it is instead."""
    if value is None or not str(value):
        raise ValueError(f"{keyword} {tag(keyword)} is {'absent' if value is None else 'empty'}")
    try:
        numbers = tuple(float(v) for v in (value if hasattr(value, "__iter__") else [value]))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"{keyword} {tag(keyword)} is {reason(ValueError(value), 60)!r}, not {count} number(s)")
    return numbers


def _slice(path: Path, frame: int | None, dataset: pydicom.Dataset, groups: Sequence[pydicom.Dataset]) -> Slice:
    """Build a `Slice` from the first of ``groups`` (functional groups, then the file) that has each attribute."""

    def find(sequence: str, keyword: str) -> Any:
        for group in groups:
            for item in (group.get(sequence) or [])[:1]:
                if keyword in item:
                    return item.get(keyword)
        return dataset.get(keyword)

    def numbers(sequence: str, keyword: str, count: int) -> tuple[float, ...]:
        return _numbers(keyword, find(sequence, keyword), count)

    transform = "PixelValueTransformationSequence"
    rescale = None
    if all(find(transform, keyword) is not None for keyword in ("RescaleSlope", "RescaleIntercept")):
        rescale = (numbers(transform, "RescaleSlope", 1)[0], numbers(transform, "RescaleIntercept", 1)[0])
    return Slice(
        path=path,
        frame=frame,
        sop_uid=str(dataset.get("SOPInstanceUID") or "") + ("" if frame is None else f"#{frame}"),
        position=numbers("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        pixel_spacing=numbers("PixelMeasuresSequence", "PixelSpacing", 2),
        shape=(int(numbers("", "Rows", 1)[0]), int(numbers("", "Columns", 1)[0])),
        rescale=rescale,
        rescale_type=str(find(transform, "RescaleType") or "").strip().upper(),
        acquisition=(str(dataset.get("AcquisitionNumber", "")), str(dataset.get("TemporalPositionIdentifier", ""))),
    )


def _slices(path: Path, dataset: pydicom.Dataset) -> tuple[Slice, ...]:
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame is None:
        return (_slice(path, None, dataset, ()),)
    frames = int(_numbers("NumberOfFrames", dataset.get("NumberOfFrames"), 1)[0])
    if len(per_frame) != frames:
        raise ValueError(f"NumberOfFrames {tag('NumberOfFrames')} is {frames}, {len(per_frame)} frames are described")
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    return tuple(_slice(path, k, dataset, [group, *shared]) for k, group in enumerate(per_frame))


@quiet_pydicom()
def read_header(path: Path) -> Header | str:
    """The header of one DICOM file, without its pixels.

    Returns:
        The header, or in words what is wrong with the file as a whole (damaged, not DICOM). A CT image whose
        geometry is incomplete comes back as a header with its ``problem``.
    """
    if path.stat().st_size == 0:
        return "empty file"
    try:
        dataset = open_dicom(path, pixels=False, tags=_TAGS)
        sop_class = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", ""))
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2"))
        image_type = tuple(str(v).upper() for v in dataset.get("ImageType") or ())
        identity = "|".join(str(dataset.get(k, "")) for k in _IDENTITY)
        facts = {keyword: str(dataset.get(keyword, "") or "") for keyword in FACT_TAGS}
        facts["LossyImageCompression"] = "01" if syntax in LOSSY_SYNTAXES else facts["LossyImageCompression"]
        uid, study, patient = (
            str(dataset.get(k, "") or "").strip() for k in ("SeriesInstanceUID", "StudyInstanceUID", "PatientID")
        )
    except _HEADER_ERRORS as error:
        said = str(error).removeprefix(f"{path}: ")
        return said if said != str(error) else f"damaged or not a DICOM file ({one_line(error)})"
    if not sop_class:
        return "damaged or not a DICOM file (no SOP class in its header)"
    if sop_class != DIRECTORY_CLASS and not uid:
        if "SeriesInstanceUID" in dataset:
            return (
                f"Series Instance UID {tag('SeriesInstanceUID')} is empty (anonymised?): write one UID for each series"
            )
        return f"no Series Instance UID {tag('SeriesInstanceUID')}: is the file truncated?"
    slices: tuple[Slice, ...] = ()
    problem = ""
    if sop_class in CT_CLASSES and not NOT_A_STACK & set(image_type):
        try:
            slices = _slices(path, dataset)
        except _HEADER_ERRORS as error:
            problem = reason(error) if str(error).endswith(("empty", "number(s)")) else f"{reason(error)} (truncated?)"
    return Header(
        path=path, sop_class=sop_class, modality=facts["Modality"], series_uid=uid, study_uid=study,
        patient_id=patient, identity=identity, image_type=image_type, compressed=syntax not in _NATIVE_SYNTAXES,
        slices=slices, problem=problem, facts=facts,
    )  # fmt: skip


def require_decoders() -> None:
    """Raise ModuleNotFoundError, naming the extra, where compressed pixels could not be decoded."""
    if all(importlib.util.find_spec(m) is None for m in ("pylibjpeg", "gdcm")):
        raise ModuleNotFoundError(
            "the input holds compressed DICOM files; decoding them needs pylibjpeg: pip install 'fewview-ct[dicom]'"
        )


def _fitted_grid(places: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    """Start and step of the uniform grid closest to sorted ``places`` (N,) or (N, 3), without the last digits."""
    number = np.arange(len(places)) - 0.5 * (len(places) - 1)
    step = np.tensordot(number, places, 1) / (number**2).sum()
    return np.round(places.mean(0) + number[0] * step, 10), np.round(step, 10)


def check_stack(slices: Sequence[Slice]) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
    """Affine and facts of a sorted stack of slices.

    Returns:
        The affine from (column, row, slice) to RAS+ mm, and facts for the manifest (native spacing, slices).

    Raises:
        Rejected: not axial, slices that differ in size or direction, missing or uneven slices, no rescale.
    """
    first = slices[0]
    if len(slices) < 2:
        raise Rejected(f"a single image, not a stack: {first.path.name}")
    for item in slices:
        if item.rescale is None:
            raise Rejected(
                f"no Rescale Slope and Intercept in {item.path.name}: stored values cannot be turned into HU"
            )
        if item.rescale[0] == 0:
            raise Rejected(f"Rescale Slope is 0 in {item.path.name}: all its values would be one")
        if item.rescale_type not in ("", "HU", UNSPECIFIED):
            raise Rejected(f"Rescale Type is {item.rescale_type!r}, not HU, in {item.path.name}")
        if (item.rescale_type == UNSPECIFIED) != (first.rescale_type == UNSPECIFIED):
            raise Rejected(
                f"slices differ in Rescale Type: {first.rescale_type or 'none'} in {first.path.name}, "
                f"{item.rescale_type or 'none'} in {item.path.name}"
            )
        if min(item.pixel_spacing) <= 0:
            raise Rejected(f"Pixel Spacing is {list(item.pixel_spacing)} in {item.path.name}: it must be mm above 0")
        across, down = np.reshape(item.orientation, (2, 3))
        if not np.allclose([across @ across, down @ down, across @ down], (1, 1, 0), atol=0.01):
            raise Rejected(
                f"Image Orientation (Patient) is {np.round(item.orientation, 3).tolist()} in {item.path.name}: it must "
                "be two unit vectors at a right angle"
            )
        if item.shape != first.shape or not np.allclose(item.pixel_spacing, first.pixel_spacing, rtol=1e-3):
            raise Rejected(
                f"slices differ in size or pixel spacing: {item.shape} at {item.pixel_spacing} mm in {item.path.name}, "
                f"{first.shape} at {first.pixel_spacing} mm in {first.path.name}"
            )
        if not np.allclose(item.orientation, first.orientation, atol=1e-3):
            raise Rejected(f"slices differ in orientation: {first.path.name} and {item.path.name}")
    if abs(first.normal[2]) < 0.9:
        raise Rejected(f"not axial: the slices' normal is {np.round(first.normal, 2).tolist()} (LPS)")
    depths = np.array([s.depth for s in slices])
    gaps = np.diff(depths)
    widest, usual = int(np.argmax(gaps)), float(np.median(gaps))
    if gaps[widest] > 1.5 * usual:
        raise Rejected(
            f"missing slices: {gaps[widest]:g} mm between {slices[widest].path.name} (z = "
            f"{slices[widest].position[2]:g}) and {slices[widest + 1].path.name} (z = "
            f"{slices[widest + 1].position[2]:g}), {usual:g} mm elsewhere; {int((gaps > 1.5 * usual).sum())} gap(s)"
        )
    # Positions may be rounded: what counts is each slice's distance to the grid, not the gap to its neighbour.
    start, spacing = _fitted_grid(depths)
    off = np.abs(depths - start - np.arange(len(slices)) * spacing)
    if off.max() > 0.05 * spacing + _ROUNDED_MM:
        raise Rejected(
            f"slice spacing is not uniform: {gaps.min():g} to {gaps.max():g} mm; {slices[int(off.argmax())].path.name} "
            f"is {off.max():.2g} mm off a grid of {spacing:.5g} mm"
        )
    positions = np.array([s.position for s in slices])
    origin, step = _fitted_grid(positions)
    line = origin + np.arange(len(slices))[:, None] * step
    if float(np.abs(positions - line).max()) > max(0.5, 0.25 * spacing):
        raise Rejected("the slices' positions do not lie on one line: the table or the gantry moved between them")
    rows, columns = first.pixel_spacing[0], first.pixel_spacing[1]
    lps = np.eye(4)
    lps[:3, 0] = np.array(first.orientation[:3]) * columns
    lps[:3, 1] = np.array(first.orientation[3:]) * rows
    lps[:3, 2] = step
    lps[:3, 3] = origin
    facts = {
        "native_spacing_mm": [round(columns, 5), round(rows, 5), round(float(spacing), 5)],
        "native_shape": [first.shape[1], first.shape[0], len(slices)],
    }
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, facts


def stored_pixels(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Decoded stored values of a file, (V, U) or (K, V, U), and which of them are padding beside the picture.

    Raises:
        Rejected: truncated or damaged, or bits that its tags exclude; the message names the file.
    """
    try:
        dataset = open_dicom(path)
        if "PixelData" not in dataset:
            raise Rejected(f"{path.name} holds no pixel data (truncated?)")
        if hasattr(dataset, "pixel_array_options"):  # pydicom 3 would fold what Bits Stored denies
            dataset.pixel_array_options(correct_unused_bits=False)
        pixels = decoded_pixels(path, dataset)
        outside = _padding(dataset, pixels)
    except (*_HEADER_ERRORS, RuntimeError) as error:
        if isinstance(error, Rejected):
            raise
        raise Rejected(f"{path.name} cannot be decoded, it is truncated or damaged ({reason(error)})") from error
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:
        return pixels, outside
    try:
        return used_bits(path, dataset, np.where(outside, pixels.dtype.type(0), pixels))[0], outside
    except ValueError as error:
        raise Rejected(str(error).replace(f"{path}: ", f"{path.name}: ")) from error


def _padding(dataset: pydicom.Dataset, pixels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where pixels are padding (0028,0120; 0028,0121), whose tags may be signed where the pixels are not."""
    first, last = numbers(dataset, "PixelPaddingValue"), numbers(dataset, "PixelPaddingRangeLimit")
    if first is None or pixels.dtype.kind not in "iu":
        return np.zeros(pixels.shape, dtype=bool)
    low, high = sorted(np.array([first[0], (last or first)[0]], np.int64).astype(pixels.dtype).tolist())
    frames = pixels.reshape(-1, *pixels.shape[-2:]) if pixels.ndim == 3 else pixels[None]
    return np.stack([padding_beside(frame, low, high) for frame in frames]).reshape(pixels.shape)


def load_stack(slices: Sequence[Slice]) -> npt.NDArray[np.float32]:
    """HU volume (columns, rows, slices) of a sorted stack; padding outside the reconstruction circle is -2000.

    Raises:
        Rejected: a file whose pixels are truncated or damaged, named in the message, or more than its files explain.
    """
    rows, columns = slices[0].shape
    voxels = float(rows) * columns * len(slices)
    try:
        check_count(slices[0].path, "voxels of its series", voxels, LARGEST_VOXELS)
        check_expansion(slices[0].path, 2 * voxels, series=sum(p.stat().st_size for p in {s.path for s in slices}))
    except ValueError as error:
        raise Rejected(str(error)) from error
    volume = np.empty((columns, rows, len(slices)), dtype=np.float32)
    opened: tuple[Path, npt.NDArray[Any], npt.NDArray[np.bool_]] | None = None
    for k, item in enumerate(slices):
        if opened is None or opened[0] != item.path:
            opened = (item.path, *stored_pixels(item.path))
        stored, outside = opened[1:]
        if item.frame is not None and stored.ndim > 2:
            stored, outside = stored[item.frame], outside[item.frame]
        if stored.shape != item.shape:
            raise Rejected(f"{item.path.name} decodes to {stored.shape} pixels, its header says {item.shape}")
        assert item.rescale is not None
        values = stored.astype(np.float32) * item.rescale[0] + item.rescale[1]
        values[outside] = PADDING_HU
        volume[:, :, k] = values.T
    return volume
