"""Opening DICOM files, in this one place: no memory is taken that the file's own size does not explain.

pydicom itself inflates a deflated file whole, reserves what an element claims, and makes objects of thousands of bytes
out of eight.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import encaps, filereader

from custom.core.limits import check_count, check_expansion, check_file_size

__all__ = [
    "LOSSY_SYNTAXES",
    "check_pixel_bytes",
    "decoded_pixels",
    "is_lossy",
    "looks_like_dicom",
    "one_line",
    "open_dicom",
    "quiet_pydicom",
    "reason",
]

LARGEST_FILE = 4 * 2**30
#: Bytes that a deflated file, or compressed pixels, may become whatever the file's size.
SMALL_BYTES = 64 * 2**20
#: Items of sequences, and elements beside pixels, of one file.
MOST_ITEMS, MOST_ELEMENTS = 100_000, 20_000
#: Bytes of one element's values (DS, UI, ..., not of long texts), of all numbers of a file (DS, IS, US, ...), each of
#: which pydicom makes 160 of, and of all its texts.
LONGEST_VALUES, MOST_NUMBERS, MOST_TEXT = 2**20, 2 * 2**20, 16 * 2**20

DEFLATED = "1.2.840.10008.1.2.1.99"
_ITEM = b"\xfe\xff\x00\xe0"
_ITEM_BIG_ENDIAN = b"\xff\xfe\xe0\x00"
_CHUNK = 2**20
_BINARY = frozenset({"OB", "OW", "OF", "OD", "OL", "OV", "UN", "SQ"})
_LONG_TEXT = frozenset({"UT", "UR", "LT", "ST"})
_NUMBERS = frozenset({"DS", "IS", "AT", "FL", "FD", "SL", "SS", "SV", "UL", "US", "UV"})
#: Contour Data (3006,0050), megabytes of numbers, which is never taken apart (`custom.data.label_maps`).
_UNTOUCHED = 0x30060050


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
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


class _Bounded(io.BufferedReader):
    """A file that reserves no more memory than it has bytes, whatever length an element claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def looks_like_dicom(path: Path) -> bool:
    """Whether a file has DICOM's preamble, begins as a data set without one, or has a name that promises DICOM."""
    with open(path, "rb") as stream:
        start = stream.read(132)
    # Without preamble it begins with the length of group 0002, or with an element of group 0008.
    bare = start[:4] == b"\x02\x00\x00\x00" or (start[:2] == b"\x08\x00" and start[3:4] == b"\x00")
    return start[128:] == b"DICM" or bare or path.suffix.lower() in (".dcm", ".ima", ".dicom")


def open_dicom(path: Path, pixels: bool = True, tags: Sequence[str] | None = None) -> pydicom.FileDataset:
    """A DICOM file, with or without preamble.

    Args:
        path: the file.
        pixels: False: up to the pixel data.
        tags: keywords of the elements that are read; None: all.

    Raises:
        ValueError: in one line, naming the file: not DICOM, damaged, or more than is read (`custom.core.limits`).
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: an empty file")
    check_file_size(path, LARGEST_FILE)
    with quiet_pydicom():
        try:
            with _Bounded(open(path, "rb", buffering=0)) as stream:
                _check_bytes(path, stream)
                dataset = pydicom.dcmread(
                    stream,
                    stop_before_pixels=not pixels,
                    force=True,
                    specific_tags=None if tags is None else list(tags),
                )
            _check_elements(path, dataset)
            if not dataset.file_meta.get("TransferSyntaxUID"):
                dataset.file_meta.TransferSyntaxUID = _found_syntax(dataset)
            return dataset
        except Exception as error:  # whatever pydicom raises for a damaged file
            if isinstance(error, ValueError) and str(error).startswith(f"{path}: "):
                raise
            raise ValueError(f"{path}: damaged or not a DICOM file ({one_line(error)})") from error


def _found_syntax(dataset: pydicom.FileDataset) -> pydicom.uid.UID:
    """The syntax in which a data set was read whose file names none (PS3.5 10.1: implicit VR, little endian)."""
    if dataset.is_implicit_VR:
        return pydicom.uid.ImplicitVRLittleEndian
    return pydicom.uid.ExplicitVRLittleEndian if dataset.is_little_endian else pydicom.uid.ExplicitVRBigEndian


def _check_bytes(path: Path, stream: _Bounded) -> None:
    """What deflated bytes become and how many items there are, without keeping any; stands at the beginning again."""
    items, tail = 0, b""
    for chunk in _content(path, stream):
        joined = tail + chunk
        items += joined.count(_ITEM) + joined.count(_ITEM_BIG_ENDIAN)
        check_count(path, "sequence items", items, MOST_ITEMS)
        tail = joined[-3:]
    stream.seek(0)


def _content(path: Path, stream: _Bounded) -> Iterator[bytes]:
    """The bytes of the data set in pieces, inflated."""
    filereader.read_preamble(stream, True)
    meta = filereader._read_file_meta_info(stream)
    if str(meta.get("TransferSyntaxUID", "")) != DEFLATED:
        while chunk := stream.read(_CHUNK):
            yield chunk
        return
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while chunk := inflater.unconsumed_tail or stream.read(_CHUNK):
        piece = inflater.decompress(chunk, _CHUNK)
        total += len(piece)
        check_expansion(path, total, SMALL_BYTES)
        yield piece


def _check_elements(path: Path, dataset: pydicom.Dataset) -> None:
    """Hold elements and what becomes of their values to the limits, in sequences too."""
    check_count(path, "elements", len(dataset), MOST_ELEMENTS)
    numbers = text = 0
    for tag, kind, size in _undecoded(dataset):
        if kind not in _LONG_TEXT:
            check_count(path, f"bytes of {tag}", size, LONGEST_VALUES)
        if kind in _NUMBERS:
            numbers += size
            check_count(path, "bytes of numbers", numbers, MOST_NUMBERS)
        else:
            text += size
            check_count(path, "bytes of text", text, MOST_TEXT)


def _undecoded(dataset: pydicom.Dataset) -> Iterator[tuple[pydicom.tag.BaseTag, str, int]]:
    """Tag, VR and bytes of all elements that are text or numbers, those of sequences too, none of them decoded."""
    for tag, element in list(dataset._dict.items()):
        kind = _kind(element)
        if kind == "SQ":
            try:
                items = list(dataset[tag].value)
            except (ValueError, TypeError, LookupError, AttributeError, EOFError, OSError, NotImplementedError):
                continue  # damaged: said where it is read
            for item in items:
                yield from _undecoded(item)
        elif kind not in _BINARY and tag != _UNTOUCHED and isinstance(element.value, bytes):
            yield element.tag, kind, len(element.value)


def _kind(element: pydicom.DataElement | pydicom.dataelem.RawDataElement) -> str:
    """The VR as pydicom will take it: the dictionary's where the file has none, or UN."""
    if element.VR not in (None, "UN"):
        return element.VR
    try:
        return pydicom.datadict.dictionary_VR(element.tag).split(" or ")[-1]  # "US or OW": the binary one is last
    except KeyError:
        return "UN"


#: Begin of a JPEG 2000 code stream, and the markers of JPEG and JPEG-LS that announce a frame's size.
_JPEG2000 = b"\xff\x4f\xff\x51"
_FRAME_HEADERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7)


def decoded_pixels(path: Path, dataset: pydicom.Dataset) -> npt.NDArray[Any]:
    """Stored values of all frames, after what they take was checked against the file and its code streams.

    Raises:
        ValueError, RuntimeError and others of pydicom and its decoders: too large, damaged or not decodable.
    """
    syntax = pydicom.uid.UID(str(getattr(dataset.file_meta, "TransferSyntaxUID", "1.2.840.10008.1.2")))
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
    needed = float(rows) * columns * frames * samples * (int(dataset.get("BitsAllocated") or 16) / 8)
    check_expansion(path, needed, SMALL_BYTES)
    if syntax.is_encapsulated and syntax != pydicom.uid.RLELossless:
        _check_code_streams(dataset.PixelData, frames, (rows, columns), samples)
    if not syntax.is_encapsulated and dataset.get("PhotometricInterpretation") != "YBR_FULL_422":
        check_pixel_bytes(len(dataset.PixelData), int(needed), int(needed / (rows * frames)))
    return np.asarray(dataset.pixel_array)


#: Transfer syntaxes that lose: JPEG of 8 and 12 bits, JPEG-LS near-lossless.
LOSSY_SYNTAXES = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")


def is_lossy(dataset: pydicom.Dataset) -> bool:
    """Whether pixels were compressed with losses, by transfer syntax and code stream, whatever the header says.

    JPEG 2000 is taken to lose where its coding style (marker COD, ISO 15444-1 A.6.1) has the irreversible transform.
    """
    data, syntax = dataset.get("PixelData"), str(getattr(dataset.file_meta, "TransferSyntaxUID", ""))
    start = data.find(_JPEG2000) if isinstance(data, bytes) else -1
    style = data.find(b"\xff\x52", start) if start >= 0 and syntax.startswith("1.2.840.10008.1.2.4.") else -1
    return syntax in LOSSY_SYNTAXES or (style >= 0 and data[style + 13 : style + 14] == b"\0")


def check_pixel_bytes(size: int, needed: int, row: int) -> None:
    """Refuse more uncompressed pixels than the header knows of: with a wrong Columns they would be read askew.

    Args:
        size: bytes of Pixel Data.
        needed: bytes of all frames by the header.
        row: bytes of one row; less than that may be padding.

    Raises:
        ValueError: there is a row or more too much.
    """
    if size >= needed + row:
        raise ValueError(
            f"{size} bytes of pixel data, but Rows (0028,0010), Columns (0028,0011) and Number of Frames (0028,0008) "
            f"say {needed}: which is wrong?"
        )


def _check_code_streams(data: bytes, frames: int, shape: tuple[int, int], samples: int) -> None:
    """Refuse code streams that announce another size than the header, or none: decoders would allocate it.

    Frames are put together from their fragments first, as a decoder does.
    """
    if len(data) == 0:
        raise ValueError("no compressed data")
    for frame in _frames(data, frames):
        for size in _stream_sizes(frame):
            if size[:2] != shape or size[2] > samples:
                raise ValueError(
                    f"a code stream of {size[1]} x {size[0]} pixels of {size[2]} samples, the header says "
                    f"{shape[1]} x {shape[0]} of {samples}"
                )


def _frames(data: bytes, frames: int) -> Iterator[bytes]:
    if hasattr(encaps, "generate_frames"):
        return encaps.generate_frames(data, number_of_frames=frames)
    return encaps.generate_pixel_data_frame(data, frames)  # pydicom 2


def _stream_sizes(frame: bytes) -> list[tuple[int, int, int]]:
    """Rows, columns and samples that a frame announces: one for JPEG and JPEG-LS, each code stream's for JPEG 2000.

    Raises:
        ValueError: if it announces none.
    """
    if frame[:2] == b"\xff\xd8":
        return [_jpeg_size(frame)]
    sizes, start = [], frame.find(_JPEG2000)
    while start >= 0:  # in a JP2 file boxes come before it; whatever looks like one must fit
        # SIZ: length, capabilities, then width, height, and their offsets, 4 bytes each
        x, y, x0, y0 = (int.from_bytes(frame[start + i : start + i + 4], "big") for i in (8, 12, 16, 20))
        sizes.append((y - y0, x - x0, int.from_bytes(frame[start + 40 : start + 42], "big")))
        start = frame.find(_JPEG2000, start + 4)
    if not sizes:
        raise ValueError("a compressed frame that does not say its size")
    return sizes


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    position = 2
    while position + 10 <= len(frame) and frame[position] == 0xFF:
        marker, length = frame[position + 1], int.from_bytes(frame[position + 2 : position + 4], "big")
        if marker in _FRAME_HEADERS:
            rows, columns = (int.from_bytes(frame[position + i : position + i + 2], "big") for i in (5, 7))
            return rows, columns, frame[position + 9]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            position += 2
        elif marker == 0xDA or length < 2:
            break
        else:
            position += 2 + length
    raise ValueError("a JPEG frame that does not say its size")
