"""One DICOM radiograph: its header, made safe to look at, and its stored values.

Whatever a damaged or hostile file holds, the functions here return or raise a ValueError of one line: pydicom and its
decoders raise many other types, which are turned into one at this border.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.datadict import keyword_for_tag, tag_for_keyword

__all__ = [
    "LARGEST_PIXELS",
    "RADIOGRAPH_CLASSES",
    "Header",
    "numbers",
    "one_line",
    "read_header",
    "read_pixels",
    "reason",
    "tag",
    "text",
]

#: Storage SOP classes that are read, and the modality that each stands for.
RADIOGRAPH_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",  # for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1": "DX",  # for processing
    "1.2.840.10008.5.1.4.1.1.12.1": "XA",
    "1.2.840.10008.5.1.4.1.1.12.2": "RF",
    "1.2.840.10008.5.1.4.1.1.481.1": "RTIMAGE",
}
PROCESSING_CLASS = "1.2.840.10008.5.1.4.1.1.1.1.1"
PRESENTATION_CLASS = "1.2.840.10008.5.1.4.1.1.1.1"

#: Bounds of what is read: pixels of a picture, pixels of all frames, bytes of a file.
LARGEST_PIXELS, LARGEST_FRAMES, LARGEST_FILE = 50_000_000, 300_000_000, 2**30
_SMALLEST_SIDE = 8
_LONGEST_TEXT = 512

_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass
class Header:
    """What `read_header` finds.

    Args:
        path: the file.
        dataset: all elements but the pixel data; elements that cannot be decoded are taken out.
        modality: by SOP class.
        damaged: attributes that were taken out, as "Name (gggg,eeee)".
        warnings: about the pixels, of `read_pixels`.
    """

    path: Path
    dataset: pydicom.Dataset
    modality: str
    damaged: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without pydicom's own warnings and log lines about damaged values, which come by the dozen."""
    log = logging.getLogger("pydicom")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def reason(error: BaseException, longest: int = 200) -> str:
    """What an exception says, as one short line that a terminal can show."""
    # pydicom puts the traceback of an error within a sequence or element into the message.
    said = str(error).split("Traceback (most recent call last)")[0]
    return " ".join("".join(c if c.isprintable() else " " for c in said).split())[:longest]


def one_line(error: BaseException) -> str:
    """An exception's type and what it says as one short line."""
    return f"{type(error).__name__}: {reason(error, 160)}".rstrip(": ")


def tag(keyword: str) -> str:
    """An attribute as provenance names it: "(0018,1110)"."""
    number = tag_for_keyword(keyword) or 0
    return f"({number >> 16:04X},{number & 0xFFFF:04X})"


def text(dataset: pydicom.Dataset, keyword: str) -> str:
    """An attribute as one line of text in capitals; "" where it is absent, empty or not decodable."""
    try:
        value = dataset.get(keyword)
        if value is None or isinstance(value, pydicom.Sequence):
            return ""
        if not isinstance(value, str | bytes) and hasattr(value, "__iter__"):
            value = "\\".join(str(v) for v in value)
        printable = "".join(c if c.isprintable() else " " for c in str(value)[:_LONGEST_TEXT])
        return " ".join(printable.split()).upper()
    except Exception:  # a damaged element raises anything
        return ""


def numbers(dataset: pydicom.Dataset, keyword: str, count: int | None = 1) -> tuple[float, ...] | None:
    """An attribute as finite numbers; None where it is absent, empty (type 2), not numbers, or of another count."""
    try:
        value = dataset.get(keyword)
        if value is None or isinstance(value, str | bytes | pydicom.Sequence):
            value = value.split("\\") if isinstance(value, str) and value.strip() else None
        if value is None:
            return None
        values = tuple(float(v) for v in (value if hasattr(value, "__iter__") else [value]))
    except Exception:  # a damaged element raises anything
        return None
    if not values or not all(map(math.isfinite, values)) or (count is not None and len(values) != count):
        return None
    return values


def _clean(dataset: pydicom.Dataset, damaged: list[str], depth: int = 0) -> None:
    """Decode every element now, so that nobody meets a damaged one later; those that fail are taken out."""
    for key in list(dataset.keys()):
        try:
            element = dataset[key]
            if element.VR == "SQ":
                if depth >= 8:
                    raise ValueError("nested too deeply")
                for item in element.value:
                    _clean(item, damaged, depth + 1)
            else:
                str(element.value)
        except Exception:  # whatever pydicom raises for a damaged element
            name = keyword_for_tag(key) or "element"
            damaged.append(f"{name} ({key >> 16:04X},{key & 0xFFFF:04X})")
            del dataset[key]


class _Bounded(io.BufferedReader):
    """A file that reserves no more memory than it has bytes, whatever length an element claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def _read(path: Path, pixels: bool) -> pydicom.FileDataset:
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path}: an empty file")
    if size > LARGEST_FILE:
        raise ValueError(f"{path}: {size / 2**30:.1f} GB are more than a radiograph has")
    with _quiet():
        try:
            with _Bounded(open(path, "rb", buffering=0)) as stream:
                # Inflating is not bounded by the file's size.
                if _has_preamble(path) and _syntax(stream) == _DEFLATED:
                    raise ValueError("deflated transfer syntax; convert it, e.g. dcmconv +te in.dcm out.dcm")
                return pydicom.dcmread(stream, stop_before_pixels=not pixels, force=True)
        except Exception as error:  # whatever pydicom raises for a damaged file
            raise ValueError(f"{path}: damaged or not a DICOM file ({one_line(error)})") from error


def _syntax(stream: _Bounded) -> str:
    """Transfer Syntax UID (0002,0010) of a file with a preamble; the stream stands at its beginning again."""
    stream.seek(132)
    meta = pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda number, *_: number >> 16 != 2)
    stream.seek(0)
    return str(meta.get("TransferSyntaxUID", ""))


def _has_preamble(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_header(path: Path) -> Header:
    """The header of one radiograph.

    Args:
        path: DICOM file.

    Raises:
        ValueError: not DICOM, damaged, another kind of object, colour, or impossible in size.
    """
    dataset = _read(path, pixels=False)
    damaged: list[str] = []
    with _quiet():
        try:
            _clean(dataset, damaged)
            _clean(dataset.file_meta, damaged)
        except Exception as error:  # a data set whose keys cannot be listed
            raise ValueError(f"{path}: damaged DICOM header ({one_line(error)})") from error
    sop_class = text(dataset, "SOPClassUID") or text(getattr(dataset, "file_meta", None) or pydicom.Dataset(),
                                                     "MediaStorageSOPClassUID")  # fmt: skip
    if not sop_class:
        raise ValueError(f"{path}: damaged or not a DICOM file (no SOP class in its header)")
    if sop_class not in RADIOGRAPH_CLASSES:
        raise ValueError(
            f"{path}: a DICOM {_class_name(sop_class)}, not a radiograph: DX, CR, XA, RF and RTIMAGE single frames "
            "are read (others: export as 16-bit PNG with a sidecar)"
        )
    header = Header(path, dataset, RADIOGRAPH_CLASSES[sop_class], damaged)
    samples, photometric = numbers(dataset, "SamplesPerPixel"), text(dataset, "PhotometricInterpretation")
    if not photometric:
        raise ValueError(f"{path}: no Photometric Interpretation (0028,0004); is the file truncated or damaged?")
    if (samples is not None and samples[0] != 1) or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(
            f"{path}: Photometric Interpretation (0028,0004) is {photometric[:40]}; only MONOCHROME1 and MONOCHROME2 "
            "with one sample per pixel are radiographs, colour images are not read"
        )
    rows, columns = (numbers(dataset, key) for key in ("Rows", "Columns"))
    if rows is None or columns is None:
        raise ValueError(f"{path}: no Rows (0028,0010) or Columns (0028,0011)")
    if min(rows[0], columns[0]) < _SMALLEST_SIDE or rows[0] * columns[0] > LARGEST_PIXELS:
        raise ValueError(f"{path}: {columns[0]:g} x {rows[0]:g} pixels are not the size of a radiograph")
    return header


def _class_name(sop_class: str) -> str:
    with _quiet():
        name = pydicom.uid.UID(sop_class).name
    return " ".join(str(name).split())[:80]


def frame_count(header: Header) -> int:
    """Number of Frames (0028,0008), 1 where it is absent or empty.

    Raises:
        ValueError: for a number that is not positive, or more than is read.
    """
    found = numbers(header.dataset, "NumberOfFrames")
    count = 1 if found is None else int(found[0])
    size = int(numbers(header.dataset, "Rows")[0]) * int(numbers(header.dataset, "Columns")[0])  # type: ignore[index]
    if count < 1 or count * size > LARGEST_FRAMES:
        raise ValueError(f"{header.path}: Number of Frames (0028,0008) is {count}, which cannot be read")
    return count


def read_pixels(header: Header, frame: int | None = None) -> npt.NDArray[np.int32]:
    """Stored values (V, U) of the file as int32, unused bits removed; a warning in the header where those held values.

    Args:
        header: of `read_header`.
        frame: number of the frame from 1; needed where there are several.

    Raises:
        ValueError: several frames and none chosen, no or damaged pixel data, a size that is not the header's.
        ModuleNotFoundError: naming the extra, where compressed pixels could not be decoded.
    """
    path, count = header.path, frame_count(header)
    if count > 1 and frame is None:
        raise ValueError(
            f'{path}: {count} frames; choose one: write "frame": 1 (to {count}) into {path.stem}.json beside it'
        )
    if frame is not None and not 1 <= frame <= count:
        raise ValueError(f"{path}: frame {frame} is asked for, there are {count}")
    shape = tuple(int(numbers(header.dataset, key)[0]) for key in ("Rows", "Columns"))  # type: ignore[index]
    dataset = _read(path, pixels=True)
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", "1.2.840.10008.1.2"))
    if "PixelData" not in dataset:
        raise ValueError(f"{path}: holds no Pixel Data (7FE0,0010); is the file truncated?")
    with _quiet():
        try:
            if syntax in _NATIVE:
                pixels = _native(dataset, shape, (frame or 1) - 1, syntax == _BIG_ENDIAN)
            else:
                _check_compressed(dataset, shape)
                pixels = np.asarray(dataset.pixel_array)
                pixels = pixels[(frame or 1) - 1] if count > 1 and pixels.ndim == 3 else pixels
        except Exception as error:  # whatever pydicom and its decoders raise for damaged pixels
            if syntax not in _NATIVE and all(importlib.util.find_spec(m) is None for m in ("pylibjpeg", "gdcm")):
                raise ModuleNotFoundError(
                    f"{path} is compressed; decoding it needs pylibjpeg: pip install 'fewview-ct[dicom]'"
                ) from error
            raise ValueError(
                f"{path}: its pixels cannot be decoded, truncated or damaged ({one_line(error)})"
            ) from error
    if pixels.shape != shape or pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 4:
        raise ValueError(
            f"{path}: pixels of shape {pixels.shape} and type {pixels.dtype}, but its header says {shape}; 8 or 16 "
            "bits are read"
        )
    return _used_bits(header, pixels)


def _native(dataset: pydicom.Dataset, shape: tuple[int, ...], frame: int, big_endian: bool) -> npt.NDArray[Any]:
    """One frame of uncompressed pixels. pydicom would drop bits above Bits Stored, wherever High Bit is."""
    allocated, signed = numbers(dataset, "BitsAllocated"), numbers(dataset, "PixelRepresentation")
    if allocated is None or allocated[0] not in (8, 16):
        raise ValueError("Bits Allocated (0028,0100) must be 8 or 16")
    kind = np.dtype(f"{'>' if big_endian else '<'}{'i' if signed is not None and signed[0] == 1 else 'u'}"
                    f"{int(allocated[0]) // 8}")  # fmt: skip
    size = shape[0] * shape[1]
    data = bytes(dataset.PixelData)
    if len(data) < (frame + 1) * size * kind.itemsize:
        raise ValueError(f"{len(data)} bytes of pixel data, {(frame + 1) * size * kind.itemsize} are needed")
    return np.frombuffer(data, kind, size, frame * size * kind.itemsize).reshape(shape)


def _used_bits(header: Header, pixels: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Values without what other bits than Bits Stored (0028,0101) up to High Bit (0028,0102) hold, as overlays did."""
    stored, high, signed = (numbers(header.dataset, k) for k in ("BitsStored", "HighBit", "PixelRepresentation"))
    bits = 16 if stored is None else int(stored[0])
    shift = 0 if high is None else int(high[0]) + 1 - bits
    if not 1 <= bits <= 16 or not 0 <= shift <= 16 - bits:
        raise ValueError(f"{header.path}: Bits Stored (0028,0101) {bits} and High Bit (0028,0102) do not fit together")
    values = pixels.astype(np.int32)
    share = _share_above(values, shift + bits, _overlay_bits(header.dataset))
    if share:
        header.warnings.append(
            f"{100 * share:.2g} % of the pixels have bits above High Bit (0028,0102), which are not used: their values "
            f"are above what Bits Stored (0028,0101) {bits} allows; is that right?"
        )
    values = (values >> shift) & ((1 << bits) - 1)
    if signed is not None and signed[0] == 1:
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values).astype(np.int32)
    return values


def _share_above(values: npt.NDArray[np.int32], first: int, overlays: list[int]) -> float:
    """Share of the pixels with bits from `first` on, other than overlays and the sign of a negative value."""
    above = values >> first
    # Signed pixels come with their sign continued.
    above = np.where((above == -1) & ((values >> (first - 1)) & 1 == 1), 0, above)
    for bit in overlays:
        if bit >= first:
            above &= ~(1 << (bit - first))
    return float((above != 0).mean())


def _overlay_bits(dataset: pydicom.Dataset) -> list[int]:
    """Overlay Bit Position (60xx,0102) of overlays that are held in unused bits of the pixels."""
    bits = []
    for group in range(0x6000, 0x6020, 2):
        try:
            bits.append(int(dataset[group, 0x0102].value))
        except Exception:  # absent, empty or damaged
            continue
    return [bit for bit in bits if 0 < bit < 16]


def _check_compressed(dataset: pydicom.Dataset, shape: tuple[int, ...]) -> None:
    """Refuse code streams that announce another size than the header: decoders would allocate it."""
    data = dataset.PixelData
    for start in _code_streams(data):
        size = _stream_size(data, start)
        if size is not None and size != shape:
            raise ValueError(f"a code stream of {size[1]} x {size[0]} pixels, the header says {shape[1]} x {shape[0]}")
    if len(data) == 0:
        raise ValueError("no compressed data")


def _code_streams(data: bytes) -> list[int]:
    """Offsets of JPEG (FFD8FF) and JPEG 2000 (FF4FFF51) code streams, at most 64."""
    starts: list[int] = []
    for marker in (b"\xff\xd8\xff", b"\xff\x4f\xff\x51"):
        position = data.find(marker)
        while position >= 0 and len(starts) < 64:
            starts.append(position)
            position = data.find(marker, position + 4)
    return starts


def _stream_size(data: bytes, start: int) -> tuple[int, int] | None:
    """Rows and columns that a code stream announces; None where no frame header follows."""
    if data[start + 1] == 0x4F:  # SIZ: length, capabilities, then width, height, and their offsets, 4 bytes each
        field_bytes = data[start + 8 : start + 24]
        x, y, x0, y0 = (int.from_bytes(field_bytes[i : i + 4], "big") for i in (0, 4, 8, 12))
        return y - y0, x - x0
    position = start + 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xF7):
            return int.from_bytes(data[position + 5 : position + 7], "big"), int.from_bytes(
                data[position + 7 : position + 9], "big"
            )
        if marker == 0xDA or length < 2:
            return None
        position += 2 + length
    return None
