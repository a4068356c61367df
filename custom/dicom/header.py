"""Headers of DICOM radiographs, read so that damaged tags do no harm.

Whatever a damaged or hostile file holds, the functions here and in `pixels` return or raise a ValueError of one line:
pydicom and its decoders raise many other types, which are turned into one at this border.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.datadict import keyword_for_tag, tag_for_keyword

from custom.core.limits import check_file_size
from custom.dicom.opener import one_line, open_dicom, quiet_pydicom, reason

__all__ = [
    "LARGEST_PIXELS",
    "RADIOGRAPH_CLASSES",
    "Header",
    "NotARadiograph",
    "numbers",
    "one_line",
    "quiet_pydicom",
    "read_dataset",
    "read_header",
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
#: What to do with another object, by the first of these words in the name of its SOP class.
_OTHERS = {
    "Mammography": "a breast, and a chest cannot be made of it",
    "Intra-Oral": "teeth, and a chest cannot be made of them",
    "Enhanced X": "if it is a radiograph, store one frame as XA or RF",
    "Tomosynthesis": "a volume already",
    "Secondary Capture": "if it is a radiograph, such as a scanned film, export it as 16-bit PNG with a sidecar",
    "CT": "a CT already; 'fewview-ct prepare' reads CTs, and a scout of one is not read",
}
_SMALLEST_SIDE = 8
_LONGEST_TEXT = 512


class NotARadiograph(ValueError):
    """An intact DICOM object of another kind: what a folder may hold beside radiographs."""


@dataclass(frozen=True, eq=False)
class Header:
    """What `read_header` finds.

    Args:
        path: the file.
        dataset: all elements but the pixel data; elements that cannot be decoded are taken out.
        modality: by SOP class.
        damaged: attributes that were taken out, as "Name (gggg,eeee)", each with what the file has there.
    """

    path: Path
    dataset: pydicom.Dataset
    modality: str
    damaged: Mapping[str, str] = field(default_factory=dict)

    def unreadable(self, keyword: str, count: int | None = 1) -> str:
        """What the file has where numbers should be and cannot be read, such as "1,5"; "" where they can."""
        said = self.damaged.get(f"{keyword} {tag(keyword)}", text(self.dataset, keyword))
        return said if numbers(self.dataset, keyword, count) is None else ""


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
        return _printable(str(value)).upper()
    except Exception:  # a damaged element raises anything
        return ""


def _printable(value: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in value[:_LONGEST_TEXT]).split())


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


def _clean(dataset: pydicom.Dataset, damaged: dict[str, str], depth: int = 0) -> None:
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
            damaged[f"{name} ({key >> 16:04X},{key & 0xFFFF:04X})"] = _raw_text(dataset, key)
            del dataset[key]


def _raw_text(dataset: pydicom.Dataset, key: pydicom.tag.BaseTag) -> str:
    """The bytes of an element that cannot be decoded, as far as they are a short text."""
    try:
        value = dataset.get_item(key).value
        return _printable(value.decode("latin-1"))[:40] if isinstance(value, bytes) and len(value) <= 64 else ""
    except Exception:  # nothing that can be shown
        return ""


def read_dataset(path: Path, pixels: bool) -> pydicom.FileDataset:
    """A file of a radiograph's size, opened by `open_dicom`."""
    check_file_size(path, LARGEST_FILE)
    return open_dicom(path, pixels)


def read_header(path: Path) -> Header:
    """The header of one radiograph.

    Args:
        path: DICOM file.

    Raises:
        NotARadiograph: another kind of object.
        ValueError: not DICOM, damaged, colour, or impossible in size.
    """
    dataset = read_dataset(path, pixels=False)
    damaged: dict[str, str] = {}
    with quiet_pydicom():
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
        name = _class_name(sop_class)
        advice = "".join([f" ({told})" for word, told in _OTHERS.items() if word in name][:1])
        raise NotARadiograph(
            f"{path}: a DICOM {name}, not a radiograph{advice}: DX, CR, XA, RF and RTIMAGE single frames are read"
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
    with quiet_pydicom():
        name = pydicom.uid.UID(sop_class).name
    return " ".join(str(name).split())[:80]
