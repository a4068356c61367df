"""Intensity of DICOM radiographs: values after the modality transformation, and what they mean.

References: PS3.3 C.8.11.3.1.2 (Pixel Intensity Relationship of DX: about stored values, not about display), C.8.7.1.1.2
(XA: with LOG, the Modality LUT leads back to linear), C.11.1 (Modality LUT), C.7.5.1.1.2 (Pixel Padding). VOI LUT,
window and Presentation LUT are for viewing and change no stored value, so they play no part.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pydicom

from custom.dicom.detector_tags import tagged_exposure
from custom.dicom.header import PRESENTATION_CLASS, PROCESSING_CLASS, Header, numbers, tag, text
from custom.dicom.padding import padding_beside
from custom.dicom.pixels import LOSSY
from custom.radiographs.acquisition_metadata import AcquisitionMetadata, Origin
from custom.radiographs.dicom_pose import tagged
from custom.radiographs.intensity_meaning import NO_INTENSITY, PictureValues
from custom.radiographs.readings import Reading, found, merge, note, unusable

__all__ = ["picture_values", "read_intensity"]


#: Padding of radiographs is at least so many pixels thick; thinner lines are values of the picture.
_THICKNESS = 3


class _Rescale(NamedTuple):
    """A linear modality transformation: slope * stored + intercept."""

    slope: float = 1.0
    intercept: float = 0.0


def read_intensity(header: Header, given: Reading) -> Reading:
    """What the tags say about the meaning of values after the modality transformation.

    Args:
        header: of `read_header`.
        given: what geometry file and sidecar say; they speak of values after the modality transformation.

    Returns:
        intent, photometric, presentation_lut_shape, intensity_relationship, intensity_sign and rescale.

    Raises:
        ValueError: a Modality LUT that is not followed.
    """
    dataset, own = header.dataset, _intents(header.dataset)
    own += tagged("photometric", text(dataset, "PhotometricInterpretation"), "PhotometricInterpretation")
    own += tagged("presentation_lut_shape", text(dataset, "PresentationLUTShape") or None, "PresentationLUTShape")
    relationship = text(dataset, "PixelIntensityRelationship")
    is_known = relationship in ("LIN", "LOG")
    stated = tagged("intensity_relationship", relationship if is_known else None, "PixelIntensityRelationship")
    if not is_known:
        place = tag("PixelIntensityRelationship")
        own += unusable("intensity_relationship", relationship[:20], "is neither LIN nor LOG", place)
    number = numbers(dataset, "PixelIntensityRelationshipSign")
    sign = int(number[0]) if number is not None and abs(number[0]) == 1 else None
    if number is not None and sign is None:
        own += unusable("intensity_sign", number[0], "is neither 1 nor -1", tag("PixelIntensityRelationshipSign"))
    by_sign = tagged("intensity_sign", sign, "PixelIntensityRelationshipSign")
    if header.modality in ("XA", "RF") and stated.values:
        # C.8.7.1.1.2: no sign belongs to them, values are proportional to the intensity or its logarithm.
        where = f"DICOM {tag('PixelIntensityRelationship')}: what {relationship} means in {header.modality}"
        by_sign += found("intensity_sign", 1, Origin.FILE, where)
    if text(dataset, "LossyImageCompression") == "01":
        own += note(LOSSY)
    if text(dataset, "BurnedInAnnotation") == "YES":
        own += note("the picture has burned-in annotation, which is read as if it were patient")
    if "ModalityLUTSequence" in dataset:
        return own + _by_lookup(header, merge(given), sign)
    rescale, said = _rescale(dataset)
    own += stated + note(*said)
    if rescale != _Rescale():
        shown = f"{rescale.slope:g} * stored + {rescale.intercept:g}"
        own += tagged("rescale", shown, "RescaleSlope", "RescaleIntercept")
    own += tagged("rescale_type", text(dataset, "RescaleType") or None, "RescaleType")
    if rescale.slope > 0:
        return own + by_sign
    # The sign is about stored values, which a negative slope turns round.
    turned = (replace(v, value=-v.value, where=f"{v.where}, turned by the negative slope") for v in by_sign.values)
    return own + Reading(tuple(turned))


def _intents(dataset: pydicom.Dataset) -> Reading:
    by_class = {PROCESSING_CLASS: "processing", PRESENTATION_CLASS: "presentation"}.get(text(dataset, "SOPClassUID"))
    by_type = text(dataset, "PresentationIntentType").removeprefix("FOR ").lower()
    own = tagged("intent", by_type if by_type in ("processing", "presentation") else None, "PresentationIntentType")
    own += tagged("intent", by_class, "SOPClassUID")
    # Where they disagree the careful reading comes first.
    return Reading(tuple(sorted(own.values, key=lambda one: one.value != "presentation")))


def _by_lookup(header: Header, given: AcquisitionMetadata, sign: int | None) -> Reading:
    """Relationship and sign of values that a Modality LUT leads back to linear."""
    dataset = header.dataset
    first, last = _stored_range(dataset)
    curve = _lookup(dataset, np.arange(first, last + 1, dtype=np.int32))
    ends = None if curve is None else (float(curve[0]), float(curve[-1]))
    logarithmic = text(dataset, "PixelIntensityRelationship") == "LOG" and given.intensity_relationship is None
    if ends is None or ends[0] == ends[1] or header.modality not in ("XA", "RF") or not logarithmic:
        raise ValueError(
            f"{header.path}: has a Modality LUT {tag('ModalityLUTSequence')}, which is only followed in XA and RF "
            "with Pixel Intensity Relationship LOG, where it leads back to linear; export the picture without it"
        )
    rising = int(np.sign(ends[1] - ends[0]))
    if curve is not None and (np.diff(curve) * rising).min() < 0:
        raise ValueError(
            f"{header.path}: its Modality LUT {tag('ModalityLUTSequence')} both rises and falls, so that one value "
            "stands for two intensities; export the picture without it"
        )
    kind = text(dataset.ModalityLUTSequence[0], "ModalityLUTType")
    if kind.startswith(NO_INTENSITY):
        raise ValueError(
            f"{header.path}: Modality LUT Type {tag('ModalityLUTType')} is {kind[:20]}, no intensity, but the LUT of "
            "an XA or RF with LOG leads back to it; correct one of them, or export the picture without the LUT"
        )
    where = f"DICOM {tag('PixelIntensityRelationship')}, linear by Modality LUT {tag('ModalityLUTSequence')}"
    linear = found("intensity_relationship", "LIN", Origin.FILE, where)
    linear += found("intensity_sign", rising * (sign or 1), Origin.FILE, where)
    if _rescale(dataset)[0] != _Rescale():
        linear += note(
            "a file has a Modality LUT or a rescale: Rescale Slope and Intercept beside the LUT are not used"
        )
    return linear


def _rescale(dataset: pydicom.Dataset) -> tuple[_Rescale, list[str]]:
    """Rescale Slope and Intercept, and what is to be said of them."""
    notes = []
    slope, intercept = numbers(dataset, "RescaleSlope"), numbers(dataset, "RescaleIntercept")
    m, b = (1.0 if slope is None else slope[0]), (0.0 if intercept is None else intercept[0])
    if m == 0 or not 1e-9 < abs(m) < 1e9 or abs(b) > 1e9:
        notes.append(f"Rescale Slope {m:g} and Intercept {b:g} cannot be and are not used")
        return _Rescale(), notes
    return _Rescale(m, b), notes


def _stored_range(dataset: pydicom.Dataset) -> tuple[int, int]:
    """Lowest and highest value that the file can hold, by Bits Stored (0028,0101) and Pixel Representation."""
    stored, signed = numbers(dataset, "BitsStored"), numbers(dataset, "PixelRepresentation")
    bits = 16 if stored is None else int(stored[0])
    return (
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed is not None and signed[0] == 1 else (0, (1 << bits) - 1)
    )


def _lookup(dataset: pydicom.Dataset, stored: npt.NDArray[np.int32]) -> npt.NDArray[np.float32] | None:
    """Values through the Modality LUT Sequence (0028,3000), None where it is unusable."""
    try:
        item = dataset.ModalityLUTSequence[0]
        count, first, bits = (int(v) for v in item.LUTDescriptor)
        raw = item.LUTData
        table = np.frombuffer(raw, "<u2") if isinstance(raw, bytes) else np.asarray(raw, dtype=np.int64)
    except Exception:  # absent, empty or damaged
        return None
    count = 65536 if count == 0 else count
    if not (1 <= count <= 65536 and len(table) >= count and 8 <= bits <= 16):
        return None
    return table[np.clip(stored - first, 0, count - 1)].astype(np.float32)


def picture_values(
    header: Header, stored: npt.NDArray[np.int32], active: npt.NDArray[np.bool_] | None
) -> PictureValues:
    """Values of a DICOM radiograph after the modality transformation, as stored (not flipped).

    Args:
        header: of `read_header`, whose tags passed `read_intensity`.
        stored: (V, U) of `read_pixels`.
        active: bool (V, U), the active area of the detector; None where it is not told.
    """
    dataset = header.dataset
    mask, masked_by = tagged_exposure(dataset, (stored.shape[0], stored.shape[1]))
    first, last = numbers(dataset, "PixelPaddingValue"), numbers(dataset, "PixelPaddingRangeLimit")
    if first is not None:
        low, high = sorted([first[0], (last or first)[0]])
        padding = padding_beside(stored, low, high, _THICKNESS)
        mask &= ~padding
        if padding.any():
            masked_by.append(f"Pixel Padding {tag('PixelPaddingValue')}")
    if active is not None and active.shape == stored.shape and not active.all():
        mask &= active
        masked_by.append(f"detector active area {tag('DetectorActiveDimensions')}")
    ends = np.array(_stored_range(dataset), dtype=np.int32)
    if "ModalityLUTSequence" in dataset:
        values, looked_up = _lookup(dataset, stored), _lookup(dataset, ends)
        assert values is not None and looked_up is not None
        return PictureValues(values, mask, (float(looked_up.min()), float(looked_up.max())), tuple(masked_by))
    rescale, _ = _rescale(dataset)
    m, b = rescale.slope, rescale.intercept
    values = (stored * np.float32(m) + np.float32(b)).astype(np.float32)
    low, high = sorted(float(end * m + b) for end in ends)
    return PictureValues(values, mask, (low, high), tuple(masked_by), abs(m), b if m > 0 else 0.0)
