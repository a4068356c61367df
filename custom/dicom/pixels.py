"""Reader of the stored pixel values of a DICOM radiograph."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from custom.dicom.header import LARGEST_FRAMES, Header, numbers, one_line, quiet_pydicom, read_dataset
from custom.dicom.opener import check_pixel_bytes, decoded_pixels, is_lossy

__all__ = ["LOSSY", "frame_count", "read_pixels", "used_bits"]

LOSSY = "the picture was compressed with losses before it came here"
_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
#: Share of the pixels that may hold other bits than the tags say: stray values, not the picture.
_STRAY = 0.001
_BIG_ENDIAN = "1.2.840.10008.1.2.2"


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


def read_pixels(header: Header, frame: int | None = None) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """Stored values (V, U) of the file as int32, unused bits removed, and what is to be said where those held values.

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
    dataset = read_dataset(path, pixels=True)
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", "1.2.840.10008.1.2"))
    _check_depth(header, dataset)
    if "PixelData" not in dataset:
        raise ValueError(f"{path}: holds no Pixel Data (7FE0,0010); is the file truncated?")
    with quiet_pydicom():
        try:
            if syntax in _NATIVE:
                pixels = _native(dataset, shape, (frame or 1) - 1, count, syntax == _BIG_ENDIAN)
            else:
                if hasattr(dataset, "pixel_array_options"):  # pydicom 3 would drop bits above Bits Stored here, too
                    dataset.pixel_array_options(correct_unused_bits=False)
                pixels = decoded_pixels(path, dataset)
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
    values, notes = used_bits(path, header.dataset, pixels)
    return values, (*notes, LOSSY) if is_lossy(dataset) else notes


_DEPTHS = {
    1: "a mask of one bit is no radiograph",
    12: "packed pixels, two in three bytes, are not read; export them unpacked, with 16 bits",
    32: "pixels of 32 bits, such as sums of frames or doses, are not read; export them with 16 bits",
}


def _check_depth(header: Header, dataset: pydicom.Dataset) -> None:
    """Refuse depths that no radiograph has, each in its own words, and tags about bits that exclude each other."""
    path, found = header.path, numbers(header.dataset, "BitsAllocated")
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise ValueError(f"{path}: holds Float Pixel Data (7FE0,0008), no stored values; export it with 16 bits")
    if found is None:
        said = header.unreadable("BitsAllocated") or "absent"
        raise ValueError(f"{path}: Bits Allocated (0028,0100) is {said}, it must be 8 or 16")
    allocated = int(found[0])
    if allocated not in (8, 16):
        why = _DEPTHS.get(allocated, "it must be 8 or 16")
        raise ValueError(f"{path}: Bits Allocated (0028,0100) is {allocated}: {why}")
    bits, high = _bits(header.dataset)
    if not (1 <= bits <= allocated and bits - 1 <= high < allocated):
        raise ValueError(
            f"{path}: Bits Stored (0028,0101) {bits} and High Bit (0028,0102) {high} do not fit together or into Bits "
            f"Allocated (0028,0100) {allocated}; correct them"
        )


def _bits(dataset: pydicom.Dataset) -> tuple[int, int]:
    """Bits Stored (0028,0101), else all that are allocated, and High Bit (0028,0102), else the highest of them."""
    allocated, stored, high = (numbers(dataset, k) for k in ("BitsAllocated", "BitsStored", "HighBit"))
    bits = int((stored or allocated or (16,))[0])
    return bits, int(high[0]) if high is not None else bits - 1


def _native(
    dataset: pydicom.Dataset, shape: tuple[int, ...], frame: int, count: int, big_endian: bool
) -> npt.NDArray[Any]:
    """One frame of uncompressed pixels. pydicom would drop bits above Bits Stored, wherever High Bit is."""
    allocated, signed = numbers(dataset, "BitsAllocated"), numbers(dataset, "PixelRepresentation")
    assert allocated is not None
    kind = np.dtype(f"{'>' if big_endian else '<'}{'i' if signed is not None and signed[0] == 1 else 'u'}"
                    f"{int(allocated[0]) // 8}")  # fmt: skip
    size = shape[0] * shape[1]
    data = bytes(dataset.PixelData)
    check_pixel_bytes(len(data), count * size * kind.itemsize, shape[1] * kind.itemsize)
    if len(data) < (frame + 1) * size * kind.itemsize:
        raise ValueError(f"{len(data)} bytes of pixel data, {(frame + 1) * size * kind.itemsize} are needed")
    return np.frombuffer(data, kind, size, frame * size * kind.itemsize).reshape(shape)


def used_bits(
    path: Path, dataset: pydicom.Dataset, pixels: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """Values without what other bits than Bits Stored (0028,0101) up to High Bit (0028,0102) hold, as overlays did.

    Args:
        path: of the file, which an error begins with.
        dataset: its header.
        pixels: stored values of 8 or 16 bits, all their bits as the file has them.

    Returns:
        The values, and what is to be said of bits that are not used.

    Raises:
        ValueError: the values need other bits than these tags say.
    """
    signed = numbers(dataset, "PixelRepresentation")
    (bits, high), overlays = _bits(dataset), _overlay_bits(dataset)
    if bits == high + 1 == 8 * pixels.dtype.itemsize:
        return pixels.astype(np.int32), ()
    shift = high + 1 - bits
    values = pixels.astype(np.int32)
    share = _share_above(values, shift + bits, overlays)
    told = f"Bits Stored (0028,0101) {bits} and High Bit (0028,0102) {high}"
    if share > _STRAY:
        raise ValueError(
            f"{path}: {100 * share:.2g} % of the pixels have bits above High Bit: their values reach "
            f"{int(values.max())}, which {told} do not allow; correct these tags, or remove what is not the picture"
        )
    if shift and _lie_below(values, bits, shift, overlays):
        raise ValueError(
            f"{path}: {told} say that values lie in bits {high} to {shift}, but those of the pixels lie in bits "
            f"{bits - 1} to 0; correct these tags"
        )
    notes: tuple[str, ...] = ()
    if share:
        notes = (
            f"{100 * share:.2g} % of the pixels have bits above High Bit (0028,0102), which are not used: their values "
            f"are above what Bits Stored (0028,0101) {bits} allows; is that right?",
        )
    values = (values >> shift) & ((1 << bits) - 1)
    if signed is not None and signed[0] == 1:
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values).astype(np.int32)
    return values, notes


def _lie_below(values: npt.NDArray[np.int32], bits: int, shift: int, overlays: list[int]) -> bool:
    """Whether values use the lowest bits as pictures do, and none of the highest."""
    lowest = values & ((1 << shift) - 1)
    for bit in overlays:
        lowest &= ~(1 << bit)
    return bool(values.max() < 1 << bits and (lowest != lowest.flat[0]).mean() > _STRAY)


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
