"""From values of a picture to line integrals, whatever file they come from."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from custom.core.attenuation import LARGEST_LINE_INTEGRAL
from custom.radiographs.acquisition_metadata import LOG_RANGE, FactSheet
from custom.radiographs.exposure import dark_borders, find_air, looks_inverted

__all__ = ["relate"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_PHYSICAL = '"intensity_relationship": "LIN" (or "LOG" with "log_scale") and "intensity_sign": 1 (or -1)'


def _check_facts(sheet: FactSheet) -> tuple[str, int] | None:
    """Relationship and sign, or None with gaps noted."""
    known = len(sheet.gaps)
    accepted = sheet.accepts("for-presentation")
    if sheet.get("intent") == "presentation" and not accepted:
        sheet.gap(
            f"what its values mean: a picture made for viewing (FOR PRESENTATION by {sheet.source('intent')}), whose "
            "values no longer follow the X-ray intensity",
            f'"intent": "processing" with {_PHYSICAL}, if the values are physical after all',
            ["for-presentation"],
        )
    option = "option --accept for-presentation"
    if sheet.get("intensity_relationship") is None:
        if accepted:
            sheet.offer("intensity_relationship", "LOG", option)
        else:
            sheet.gap(
                "how its values follow from the X-ray intensity: Pixel Intensity Relationship (0028,1040) is "
                + sheet.refused.get("intensity_relationship", "absent"),
                _PHYSICAL,
                ["for-presentation"],
            )
    if sheet.get("intensity_sign") is None:
        photometric = sheet.get("photometric")
        if accepted and photometric in ("MONOCHROME1", "MONOCHROME2"):
            sign = 1 if photometric == "MONOCHROME1" else -1
            sheet.offer("intensity_sign", sign, f"{option}: bones are bright in {photometric}")
        else:
            sheet.gap(
                "whether high values mean more or less X-ray intensity: Pixel Intensity Relationship Sign (0028,1041) "
                "is absent",
                '"intensity_sign": 1 (more) or -1 (less)',
                ["for-presentation"],
            )
    relationship, sign = sheet.get("intensity_relationship"), sheet.get("intensity_sign")
    if relationship == "LOG" and sheet.get("log_scale") is None and not sheet.accepts("log-range"):
        sheet.gap(
            "the scale of its logarithm, which no tag holds",
            '"log_scale": 1000 (values for one unit of -log(I / I0))',
            ["log-range"],
        )
    return None if len(sheet.gaps) > known else (str(relationship), int(sign))


def _quantile(values: Array, share: float) -> float:
    return float(np.quantile(values[:: max(1, values.size // 1_000_000)], share))


def relate(
    values: Array,
    exposed: Mask,
    sheet: FactSheet,
    code_range: tuple[float, float],
    masked_by: Sequence[str] = (),
    unit: float = 1.0,
) -> tuple[Array, Mask] | None:
    """Line integrals of a picture.

    Linear values are I, logarithmic ones sign * log_scale * log I + constant. The unattenuated intensity is the
    sidecar's, or estimated from air beside the patient.

    Args:
        values: (V, U) float32, after the modality transformation (rescale or LUT).
        exposed: bool (V, U), what the tags leave.
        sheet: facts; the result's are added.
        code_range: lowest and highest value that the file can hold, after the modality transformation.
        masked_by: what `exposed` comes from, for provenance.
        unit: distance of neighbouring values; an intensity below half of it counts as half of it.

    Returns:
        Line integrals (V, U) float32, 0 where not exposed, and exposed; None where gaps were noted.

    Raises:
        ValueError: nothing exposed, or no contrast.
    """
    if exposed.mean() < 0.01:
        raise ValueError(f"{sheet.name}: collimator, shutter and padding leave nothing of the picture")
    facts = _check_facts(sheet)
    if facts is None:
        return None
    relationship, sign = facts
    if _quantile(values[exposed], 0.999) <= _quantile(values[exposed], 0.001):
        raise ValueError(f"{sheet.name}: all pixels have the same value, there is nothing to see")
    scale = 1.0
    if relationship == "LIN":
        intensity = values if sign > 0 else np.float32(code_range[1]) - values
        if sign < 0:
            sheet.warn(
                f"linear values that fall with the X-ray intensity: the intensity is taken as {code_range[1]:g} less "
                "the value, as if the darkness of no X-rays were the highest value"
            )
        q = -np.log(np.maximum(intensity, np.float32(0.5 * unit)))
    else:
        x = values * np.float32(-sign)
        bright, dark = _quantile(x[exposed], 0.001), _quantile(x[exposed], 0.999)
        scale = float(sheet.get("log_scale") or (dark - bright) / LOG_RANGE)
        q = x / np.float32(scale)
    masked = dark_borders(q, exposed)
    masked_by = [*masked_by, *(["straight dark borders"] if masked.sum() < exposed.sum() else [])]
    exposed = masked
    level = _unattenuated(q, exposed, sheet, relationship, sign, scale, code_range)
    if level is None:
        return None
    p = (q - np.float32(level)).astype(np.float32)
    if relationship == "LOG" and sheet.get("log_scale") is None:
        # The scale was provisional until air was known.
        top = _quantile(p[exposed], 0.999)
        p *= np.float32(LOG_RANGE / max(top, 1e-6))
        sheet.offer("log_scale", scale * top / LOG_RANGE, "option --accept log-range")
    p = np.where(exposed, np.clip(p, -1.0, LARGEST_LINE_INTEGRAL), np.float32(0)).astype(np.float32)
    percent = 100 * float(exposed.mean())
    sheet.offer("exposed", f"{percent:.0f} % of the picture", ", ".join(masked_by) or "no collimator found")
    _plausible(p, exposed, sheet)
    return p, exposed


def _unattenuated(
    q: Array,
    exposed: Mask,
    sheet: FactSheet,
    relationship: str,
    sign: int,
    scale: float,
    code_range: tuple[float, float],
) -> float | None:
    """The q of the unattenuated beam; the fact "unattenuated" is in the picture's values."""

    def value(level: float) -> float:
        if relationship == "LOG":
            return -sign * level * scale
        return float(np.exp(-level)) if sign > 0 else code_range[1] - float(np.exp(-level))

    given = sheet.get("unattenuated")
    if given is not None:
        if relationship == "LOG":
            return -sign * float(given) / scale
        intensity = float(given) if sign > 0 else code_range[1] - float(given)
        if intensity <= 0:
            raise ValueError(f"{sheet.name}: unattenuated is {given}, which is no X-ray intensity; it must be positive")
        return -float(np.log(intensity))
    air = find_air(q, exposed)
    if air is not None:
        sheet.offer(
            "unattenuated", value(air.level), f"estimated from air, {100 * air.share:.0f} % of the exposed pixels"
        )
        _check_saturation(value(air.level), sign, sheet, code_range)
        return air.level
    if sheet.accepts("brightest-as-air"):
        level = _quantile(q[exposed], 0.001)
        sheet.offer("unattenuated", value(level), "option --accept brightest-as-air")
        return level
    sheet.gap(
        "the unattenuated intensity: no air is seen beside the patient",
        '"unattenuated": 12000 (the value where nothing is in the beam)',
        ["brightest-as-air"],
    )
    return None


def _check_saturation(value: float, sign: int, sheet: FactSheet, code_range: tuple[float, float]) -> None:
    end = code_range[1] if sign > 0 else code_range[0]
    if abs(value - end) <= 1e-3 * (code_range[1] - code_range[0]):
        sheet.warn(
            "the air beside the patient is at the end of the range of values: the detector is saturated there, so line "
            "integrals are too small by an unknown amount"
        )


def _plausible(p: Array, exposed: Mask, sheet: FactSheet) -> None:
    if looks_inverted(p, exposed):
        sheet.warn(
            "the rim of the picture is more attenuated than its middle: is it inverted (MONOCHROME1, "
            "intensity_sign), or is a collimator not masked?"
        )
    top = _quantile(p[exposed], 0.99)
    if not 0.5 <= top <= 12:
        sheet.warn(f"line integrals reach {top:.2g}, where a chest has about 4 to 8: check how its values are read")
