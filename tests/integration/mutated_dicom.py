"""DICOM radiographs damaged in every way that a seed can name: bytes, elements, whole files.

A case is a function of its seed and number, so that a failure is made again by its number.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword

from tests.integration.fuzz_seeds import SHAPE, seeds

_LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UC", "UN", "UR", "UT", "SV", "UV")
_PIXELS = 0x7FE00010


# --- a file as a list of elements, written by ourselves: pydicom would not write what is wrong ---


@dataclass
class Element:
    """One element as it stands in the file: its value's bytes, and the length that is claimed for it."""

    tag: int
    vr: str
    value: bytes
    length: int | None = None

    def write(self, explicit: bool = True, order: str = "<") -> bytes:
        length = len(self.value) if self.length is None else self.length
        value = self.value if order == "<" else _swapped(self.value, self.vr)
        head = struct.pack(f"{order}HH", self.tag >> 16, self.tag & 0xFFFF)
        if not explicit:
            return head + struct.pack(f"{order}I", length & 0xFFFFFFFF) + value
        head += self.vr.encode("latin-1")[:2].ljust(2)
        if self.vr in _LONG:
            return head + b"\0\0" + struct.pack(f"{order}I", length & 0xFFFFFFFF) + value
        return head + struct.pack(f"{order}H", length & 0xFFFF) + value


def _swapped(value: bytes, vr: str) -> bytes:
    """Numbers of two or four bytes in the other order; what does not fill them stays."""
    size = {"US": 2, "SS": 2, "OW": 2, "UL": 4, "SL": 4}.get(vr, 1)
    whole = len(value) // size * size
    return b"".join(value[i : i + size][::-1] for i in range(0, whole, size)) + value[whole:]


def split(content: bytes) -> tuple[bytes, list[Element]]:
    """Preamble with file meta, and the elements of a file in explicit little endian."""
    stream = BytesIO(content)
    dataset = pydicom.dcmread(stream)
    start = 132 + 12 + int(dataset.file_meta.FileMetaInformationGroupLength)
    elements, position = [], start
    while position < len(content):
        group, number = struct.unpack_from("<HH", content, position)
        vr = content[position + 4 : position + 6].decode("latin-1")
        if vr in _LONG:
            (length,) = struct.unpack_from("<I", content, position + 8)
            position += 12
        else:
            (length,) = struct.unpack_from("<H", content, position + 6)
            position += 8
        if length == 0xFFFFFFFF:  # encapsulated pixels, the last element
            elements.append(Element(group << 16 | number, vr, content[position:], length))
            break
        elements.append(Element(group << 16 | number, vr, content[position : position + length]))
        position += length
    return content[:start], elements


def join(start: bytes, elements: list[Element]) -> bytes:
    return start + b"".join(element.write() for element in elements)


# --- mutations ---

NUMBERS = (
    "0", "-0", "1", "-1", "2", "0.5", "1e-30", "1e30", "-1e9", "1e308", "1e999", "-inf", "nan", "NaN", "inf", "65535",
    "65536", "89.999", "1e7", "4e-5", "1e-6", "0.001", "1500", "1799.9999", "1e5", "123456789012", "0x10", "1,5", "",
    " ", "abc", "--1", "1 2", "+5", ".", "1e", "1_0", "٣", "100000000000000000000",
)  # fmt: skip
WORDS = (
    "AP", "PA", "LL", "RL", "LLO", "L", "R", "A", "P", "H", "F", "LF", "HFS", "FFP", "HFDR", "YES", "NO", "LIN", "LOG",
    "DISP", "OTHER", "MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "FOR PRESENTATION", "FOR PROCESSING", "CARM",
    "COLUMN", "NONE", "GEOMETRY", "FIDUCIAL", "RECTANGULAR", "CIRCULAR", "POLYGONAL", "NORMAL", "NON_NORMAL", "DRR",
    "BLANK", "INVERSE", "01", "00", "M", "X", "20261399", "19000101", "999Y", "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.12.1", "../../../etc/passwd", "1..2", "1.02", "9" * 70,
    "ISO_IR 192", "ISO_IR 100", "ISO 2022 IR 149", "GB18030", "ISO_IR 999", "UTF-8", "latin-1", "<script>x</script>",
    "a\nb", "a\r\nerror: b", "a\x1b[2Jb", "\x1b$B;3ED", "\x00", "a\x00b", "''\"", "=^=^=^=", "^" * 80, "ÄÖ", "x" * 300,
    "\\", "\\\\", "\\\\\\\\", "山田", "a\x0bb\x85c", "%s{0}", "</html>", "😀",
)  # fmt: skip
RAW = (
    b"\xff" * 4, b"\0" * 4, b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\xdd\xe0\0\0\0\0", b"SQ", b"OB", b"UN",
    b"1e999 ", b"nan ", b"\xfe\xff\x0d\xe0\0\0\0\0", b"\x28\0\x10\0US\2\0\xff\xff", b"\x28\0\x11\0US\2\0\xff\xff",
    b"\xe0\x7f\x10\0OW\0\0\4\0\0\0abcd", b"\xff\xfc\xff\xfcOB\0\0\0\0\0\0", b"DICM", b"\r\n",
)  # fmt: skip
VRS = (
    "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FL", "FD", "IS", "LO", "LT", "OB", "OD", "OF", "OL", "OV", "OW", "PN",
    "SH", "SL", "SQ", "SS", "ST", "SV", "TM", "UC", "UI", "UL", "UN", "UR", "US", "UT", "UV", "ZZ", "\0\0", "sq",
)  # fmt: skip
#: What is put into a file that had none.
ADDED = (
    "NumberOfFrames", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "PositionerPrimaryAngle", "PositionerSecondaryAngle", "PositionerType", "ColumnAngulation", "PixelSpacing",
    "PixelSpacingCalibrationType", "NominalScannedPixelSpacing", "DetectorPrimaryAngle", "DetectorSecondaryAngle",
    "PatientSupportAngle", "GantryAngle", "XRayImageReceptorAngle", "ShutterShape", "ShutterLeftVerticalEdge",
    "CollimatorShape", "RadiusOfCircularCollimator", "CenterOfCircularCollimator", "VerticesOfThePolygonalCollimator",
    "DetectorActiveDimensions", "DetectorActiveOrigin", "DetectorElementSpacing", "FieldOfViewOrigin",
    "FieldOfViewRotation", "FieldOfViewHorizontalFlip", "SourceImageSequence", "ExposureSequence", "ViewCodeSequence",
    "ModalityLUTSequence", "VOILUTSequence", "SpecificCharacterSet", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod", "PlanarConfiguration", "SmallestImagePixelValue", "OtherPatientIDsSequence",
    "PatientPosition", "PatientAge", "IssuerOfPatientID", "TimezoneOffsetFromUTC", "DistanceSourceToPatient",
    "EstimatedRadiographicMagnificationFactor", "PixelIntensityRelationshipSign", "XRayImageReceptorTranslation",
)  # fmt: skip


def _item(r: random.Random, depth: int = 0) -> bytes:
    """A sequence's value: items, good or not, nested or not."""
    kind = r.randrange(7)
    if kind == 0:
        return b""
    if kind == 1:
        return b"\xfe\xff\x00\xe0\0\0\0\0"
    if kind == 2:
        return b"\xfe\xff\x00\xe0" + struct.pack("<I", r.choice([4, 2**31, 2**32 - 1])) + r.randbytes(r.randrange(20))
    if kind == 3 and depth < 40:
        inner = Element(0x00081140, "SQ", _item(r, depth + r.choice([1, 8]))).write()
        return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(inner)) + inner
    if kind == 4:  # as deep as files of attackers are
        value = b""
        for _ in range(r.choice([10, 60, 1200])):
            value = Element(0x00081140, "SQ", value).write()
            value = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(value)) + value
        return value
    inner = b"".join(
        Element(tag_for_keyword(key) or 0, vr, wrong_value(r, vr)).write()
        for key, vr in (
            ("CodeValue", "SH"), ("ReferencedSOPInstanceUID", "UI"), ("LUTDescriptor", "US"), ("LUTData", "OW"),
            ("KVP", "DS"), ("GantryAngle", "DS"),
        ) if r.random() < 0.6
    )  # fmt: skip
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(inner)) + inner


def wrong_value(r: random.Random, vr: str) -> bytes:
    """A value of this representation that nobody expects."""
    if vr == "SQ":
        return _item(r)
    count = r.choice([1, 1, 1, 2, 2, 3, 6, 0, 40])
    if vr in ("US", "SS", "UL", "SL", "AT"):
        size = 2 if vr in ("US", "SS") else 4
        picked = [r.choice([0, 1, 7, 8, 16, 32, 40, 255, 32768, 65535, 2**32 - 1, r.randrange(65536)])
                  for _ in range(count)]  # fmt: skip
        whole = b"".join((n % 2 ** (8 * size)).to_bytes(size, "little") for n in picked)
        return whole if r.random() < 0.85 else whole[: -r.randrange(1, 3)] + b"\1" * r.randrange(3)
    if vr in ("FL", "FD"):
        picked_floats = [float(r.choice(["0", "-1", "1e30", "nan", "inf", "-inf", "1e-30"])) for _ in range(count)]
        return struct.pack(f"<{count}{'f' if vr == 'FL' else 'd'}", *picked_floats)
    if vr in ("OB", "OW", "UN", "OF", "OD", "OL", "OV"):
        return r.randbytes(r.choice([0, 1, 2, 3, 64, 512, 4096]))
    pool = NUMBERS if vr in ("DS", "IS") and r.random() < 0.85 else WORDS
    said = "\\".join(r.choice(pool) for _ in range(count)).encode("utf-8", "replace")[:65000]
    if r.random() < 0.1:
        said = r.randbytes(r.choice([2, 10, 100, 1000]))
    return said + b" " * (len(said) % 2)


def _mutate_element(r: random.Random, elements: list[Element]) -> str:
    """One change to one element; what was done."""
    if r.random() < 0.25:
        key = r.choice(ADDED)
        vr = dictionary_VR(key)[:2]
        new = Element(tag_for_keyword(key) or 0, vr, wrong_value(r, vr))
        elements[:] = sorted([e for e in elements if e.tag != new.tag] + [new], key=lambda e: e.tag)
        return f"put {key}"
    index = r.randrange(len(elements))
    element = elements[index]
    name = pydicom.datadict.keyword_for_tag(element.tag) or f"{element.tag:08X}"
    kind = r.choice(["value"] * 8 + ["empty", "delete", "vr", "length", "copy", "move", "multiply"])
    if kind == "value" and element.tag != _PIXELS:
        element.value = wrong_value(r, element.vr)
    elif kind == "value":
        kind = _mutate_pixels(r, element)
    elif kind == "empty":
        element.value, element.length = b"", None
    elif kind == "delete":
        del elements[index]
    elif kind == "vr":
        element.vr = r.choice(VRS)
    elif kind == "length":
        element.length = r.choice(
            [0, 1, len(element.value) + 2, len(element.value) - 1, 65535, 2**31, 2**32 - 1, 2**24]
        )
    elif kind == "copy":
        elements.insert(r.randrange(len(elements)), Element(element.tag, element.vr, wrong_value(r, element.vr)))
    elif kind == "move":
        elements.insert(r.randrange(len(elements)), elements.pop(index))
    else:
        element.value = b"\\".join([element.value.rstrip()] * r.choice([2, 3, 500]))[:65000]
    return f"{kind} {name}"


def _mutate_pixels(r: random.Random, element: Element) -> str:
    data = bytearray(element.value)
    kind = r.choice(["flip", "constant", "noise", "cut", "extreme", "longer"])
    if kind == "flip":
        for _ in range(r.choice([1, 8, 200])):
            if data:
                data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    elif kind == "constant":
        data[:] = bytes([r.randrange(256)]) * len(data)
    elif kind == "noise":
        data[:] = r.randbytes(len(data))
    elif kind == "cut":
        del data[r.randrange(len(data) + 1) :]
    elif kind == "extreme":
        data[:] = b"".join(r.choice([b"\0\0", b"\xff\xff"]) for _ in range(len(data) // 2))
    else:
        data += r.randbytes(r.choice([1, 2, 4096]))
    element.value = bytes(data)
    return kind


def _mutate_bytes(r: random.Random, content: bytearray, header: int) -> str:
    position = r.randrange(132, header)
    kind = r.choice(["byte", "bit", "word", "cut", "insert", "length", "swap"])
    if kind == "byte":
        content[position : position + 1] = bytes([r.randrange(256)])
    elif kind == "bit":
        content[position] ^= 1 << r.randrange(8)
    elif kind == "word":
        word = r.choice(RAW)
        content[position : position + len(word)] = word
    elif kind == "cut":
        del content[position : position + r.randrange(1, 60)]
    elif kind == "insert":
        content[position:position] = r.choice(RAW) if r.random() < 0.5 else r.randbytes(r.randrange(1, 40))
    elif kind == "length":
        content[position : position + 4] = struct.pack("<I", r.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**24]))
    else:
        other = r.randrange(132, header)
        content[position : position + 8], content[other : other + 8] = (
            content[other : other + 8], content[position : position + 8],
        )  # fmt: skip
    return f"{kind} at {position}"


SYNTAXES = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.5", "1.2.840.10008.1.1", "1.2.3", "",
)  # fmt: skip


def _file_meta(syntax: str) -> bytes:
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    uid = Element(0x00020010, "UI", value).write()
    return b"\0" * 128 + b"DICM" + Element(0x00020000, "UL", struct.pack("<I", len(uid))).write() + uid


def _mutate_file(r: random.Random, start: bytes, elements: list[Element]) -> tuple[bytes, str]:
    kind = r.choice(["truncate", "truncate", "syntax", "syntax", "implicit", "big endian", "bare", "twice", "size"])
    content = join(start, elements)
    if kind == "truncate":
        return content[: r.randrange(len(content))], kind
    if kind == "syntax":  # it says one thing and is another
        return _file_meta(r.choice(SYNTAXES)) + b"".join(e.write() for e in elements), kind
    if kind == "implicit":
        return _file_meta("1.2.840.10008.1.2") + b"".join(e.write(explicit=False) for e in elements), kind
    if kind == "big endian":
        return _file_meta("1.2.840.10008.1.2.2") + b"".join(e.write(order=">") for e in elements), kind
    if kind == "bare":
        return b"".join(e.write(explicit=r.random() < 0.5) for e in elements), kind
    if kind == "twice":
        return content + content, kind
    # Sizes that do not fit the pixels, up to more than there is memory for.
    rows, columns = (r.choice([0, 1, 7, 8, 32, 40, 64, 4096, 7000, 65535]) for _ in range(2))
    for element in elements:
        if element.tag in (0x00280010, 0x00280011):
            element.value = struct.pack("<H", rows if element.tag == 0x00280010 else columns)
        if element.tag == _PIXELS and r.random() < 0.7 and rows * columns < 2_000_000 and element.length is None:
            element.value = (element.value * (rows * columns * 2 // max(1, len(element.value)) + 1))[
                : rows * columns * 2
            ]
    return join(start, elements), f"{kind} {columns} x {rows}"


@dataclass(frozen=True)
class Case:
    """One damaged file.

    Args:
        name: of the seed.
        content: of the file.
        done: what was changed.
    """

    name: str
    content: bytes
    done: tuple[str, ...]


class Mutations:
    """Cases by number.

    Args:
        seed: of all of them.
        deep: changes to elements alone, mostly to those that a reader does not need: more files get through.
    """

    def __init__(self, seed: int, deep: bool = False) -> None:
        self.seed, self.deep = seed, deep
        self.contents = seeds()
        self._split = {name: split(content) for name, content in self.contents.items()}

    def case(self, number: int) -> Case:
        r = random.Random(f"{self.seed} {number} {self.deep}")
        name = r.choice(sorted(self.contents))
        start, originals = self._split[name]
        elements = [Element(e.tag, e.vr, e.value, e.length) for e in originals]
        level = "element" if self.deep and r.random() < 0.8 else r.choice(["byte", "element", "element", "file", "all"])
        done: list[str] = []
        if level in ("element", "all"):
            done += [_mutate_element(r, elements) for _ in range(r.choice([1, 1, 2, 3, 5]))]
        content = join(start, elements)
        if level == "file" or (level == "all" and r.random() < 0.5):
            content, what = _mutate_file(r, start, elements)
            done.append(what)
        if level in ("byte", "all"):
            changed = bytearray(content)
            header = max(140, len(content) - 2 * SHAPE[0] * SHAPE[1] + 40)
            steps: list[Callable[[], str]] = [lambda: _mutate_bytes(r, changed, min(header, len(changed) - 1))]
            for step in steps * r.choice([1, 2, 4]):
                if len(changed) > 150:
                    done.append(step())
            content = bytes(changed)
        return Case(name, content, tuple(done))
