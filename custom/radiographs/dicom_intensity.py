"""From stored values of a DICOM radiograph to line integrals.

Sources: PS3.3 C.8.11.3.1.2 (Pixel Intensity Relationship of DX: about stored values, not about display), C.8.7.1.1.2
(XA: with LOG, the Modality LUT leads back to linear), C.11.1 (Modality LUT), C.7.5.1.1.2 (Pixel Padding). VOI LUT,
window and Presentation LUT are for viewing and change no stored value, so they play no part.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pydicom

from custom.dicom.detector_tags import tagged_exposure
from custom.dicom.header import PRESENTATION_CLASS, PROCESSING_CLASS, Header, numbers, tag, text
from custom.radiographs import dicom_pose as dicom_pose
from custom.radiographs.acquisition_metadata import FactSheet
from custom.radiographs.line_integrals import relate

__all__ = ["line_integrals", "offer_intensity"]


def offer_intensity(header: Header, sheet: FactSheet) -> None:
    """Facts about the meaning of values: intent, photometric, intensity_relationship, intensity_sign."""
    dataset = header.dataset
    by_class = {PROCESSING_CLASS: "processing", PRESENTATION_CLASS: "presentation"}.get(text(dataset, "SOPClassUID"))
    by_type = text(dataset, "PresentationIntentType").removeprefix("FOR ").lower()
    sources = [("PresentationIntentType", by_type), ("SOPClassUID", by_class)]
    # Where they disagree the careful reading comes first.
    for keyword, intent in sorted(sources, key=lambda s: s[1] != "presentation"):
        if intent in ("processing", "presentation"):
            sheet.offer("intent", intent, f"DICOM {tag(keyword)}")
    sheet.offer("photometric", text(dataset, "PhotometricInterpretation"), f"DICOM {tag('PhotometricInterpretation')}")
    relationship = text(dataset, "PixelIntensityRelationship")
    if relationship in ("LIN", "LOG"):
        sheet.offer("intensity_relationship", relationship, f"DICOM {tag('PixelIntensityRelationship')}")
    elif relationship:
        sheet.refused["intensity_relationship"] = f"{relationship[:20]!r}, which is neither LIN nor LOG"
        sheet.warn(
            f"Pixel Intensity Relationship (0028,1040) is {relationship[:20]!r}: values are not said to follow the "
            "X-ray intensity"
        )
    sign = numbers(dataset, "PixelIntensityRelationshipSign")
    if sign is not None and abs(sign[0]) == 1:
        sheet.offer("intensity_sign", int(sign[0]), f"DICOM {tag('PixelIntensityRelationshipSign')}")
    photometric = sheet.get("photometric")
    shown = {"MONOCHROME1": 1, "MONOCHROME2": -1}.get(photometric)
    if sheet.get("intent") == "presentation" and sheet.get("intensity_sign") == -(shown or 0):
        sheet.warn(
            f"{photometric} and intensity_sign {sheet.get('intensity_sign')} together show bones dark: one of them may "
            "be wrong"
        )
    if text(dataset, "LossyImageCompression") == "01":
        sheet.warn("the picture was compressed with losses before it came here")
    if text(dataset, "BurnedInAnnotation") == "YES":
        sheet.warn("the picture has burned-in annotation, which is read as if it were patient")


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


def _modality(
    header: Header, sheet: FactSheet, stored: npt.NDArray[np.int32], bits: int, signed: bool
) -> tuple[npt.NDArray[np.float32], tuple[float, float], float]:
    """Values after the Modality LUT or rescale, their range and unit; the sheet's sign follows a falling one."""
    dataset = header.dataset
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if "ModalityLUTSequence" in dataset:
        ends = _lookup(dataset, np.array([low, high], dtype=np.int32))
        values = _lookup(dataset, stored)
        logarithmic = sheet.source("intensity_relationship").startswith("DICOM") and (
            sheet.get("intensity_relationship") == "LOG"
        )
        if (
            values is None
            or ends is None
            or ends[0] == ends[1]
            or header.modality not in ("XA", "RF")
            or not logarithmic
        ):
            raise ValueError(
                f"{header.path}: has a Modality LUT {tag('ModalityLUTSequence')}, which is only followed in XA and RF "
                "with Pixel Intensity Relationship LOG, where it leads back to linear; export the picture without it"
            )
        sign = int(np.sign(ends[1] - ends[0])) * int(sheet.get("intensity_sign") or 1)
        del sheet.facts["intensity_relationship"]
        sheet.facts.pop("intensity_sign", None)
        source = f"DICOM {tag('PixelIntensityRelationship')}, linear by Modality LUT {tag('ModalityLUTSequence')}"
        sheet.offer("intensity_relationship", "LIN", source)
        sheet.offer("intensity_sign", sign, source)
        return values, (float(ends.min()), float(ends.max())), 1.0
    slope, intercept = numbers(dataset, "RescaleSlope"), numbers(dataset, "RescaleIntercept")
    for keyword, found in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        if found is None and text(dataset, keyword):
            said = text(dataset, keyword)[:20]
            sheet.warn(f"{keyword} {tag(keyword)} is {said!r}, which is no number, and is not used")
    m, b = (1.0 if slope is None else slope[0]), (0.0 if intercept is None else intercept[0])
    if m == 0 or not 1e-9 < abs(m) < 1e9 or abs(b) > 1e9:
        sheet.warn(f"Rescale Slope {m:g} and Intercept {b:g} cannot be and are not used")
        m, b = 1.0, 0.0
    if (m, b) != (1.0, 0.0):
        sheet.offer("rescale", f"{m:g} * stored + {b:g}", f"DICOM {tag('RescaleSlope')}, {tag('RescaleIntercept')}")
        sign = sheet.get("intensity_sign")
        if m < 0 and sign is not None and sheet.source("intensity_sign").startswith("DICOM"):
            # The sign is about stored values, which a negative slope turns round.
            source = sheet.source("intensity_sign")
            del sheet.facts["intensity_sign"]
            sheet.offer("intensity_sign", -sign, f"{source}, turned by the negative slope")
    ends = np.array([low * m + b, high * m + b])
    values = (stored * np.float32(m) + np.float32(b)).astype(np.float32)
    return values, (float(ends.min()), float(ends.max())), abs(m)


def line_integrals(
    header: Header, stored: npt.NDArray[np.int32], pose: dicom_pose.Pose, sheet: FactSheet
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]] | None:
    """Line integrals of a DICOM radiograph, as stored (not turned).

    Args:
        header: of `read_header`.
        stored: (V, U) of `read_pixels`.
        pose: with the active area of the detector.
        sheet: facts of `offer_intensity` and the sidecar.

    Returns:
        (V, U) float32 and exposed, bool (V, U); None where gaps were noted.

    Raises:
        ValueError: nothing exposed, or no contrast.
    """
    dataset = header.dataset
    exposed, masked_by = tagged_exposure(dataset, stored.shape)  # type: ignore[arg-type]
    padding, limit = numbers(dataset, "PixelPaddingValue"), numbers(dataset, "PixelPaddingRangeLimit")
    if padding is not None:
        low, high = sorted([padding[0], padding[0] if limit is None else limit[0]])
        exposed &= ~((stored >= low) & (stored <= high))
        masked_by.append(f"Pixel Padding {tag('PixelPaddingValue')}")
    if pose.active is not None and pose.active.shape == stored.shape and not pose.active.all():
        exposed &= pose.active
        masked_by.append(f"detector active area {tag('DetectorActiveDimensions')}")
    bits, signed = numbers(dataset, "BitsStored"), numbers(dataset, "PixelRepresentation")
    found = _modality(
        header, sheet, stored, 16 if bits is None else int(bits[0]), signed is not None and signed[0] == 1
    )
    return relate(found[0], exposed, sheet, found[1], masked_by, found[2])
