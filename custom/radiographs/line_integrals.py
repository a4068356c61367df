"""From values of a picture to line integrals, whatever file they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from custom.core.attenuation import LARGEST_LINE_INTEGRAL
from custom.radiographs.accepted_assumptions import LOG_RANGE
from custom.radiographs.acquisition_metadata import (
    AcquisitionMetadata,
    MetadataValue,
    MissingField,
    Origin,
    Reading,
    merge,
    plain_text,
    value_of,
)
from custom.radiographs.exposure import dark_borders, find_air, looks_inverted

__all__ = ["PictureValues", "assumed_intensity", "to_line_integrals"]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_PHYSICAL = '"intensity_relationship": "LIN" (or "LOG" with "log_scale") and "intensity_sign": 1 (or -1)'


@dataclass(frozen=True, eq=False)
class PictureValues:
    """Values of a picture after the modality transformation (rescale or LUT).

    Args:
        values: (V, U) float32.
        field_mask: bool (V, U), what the tags leave.
        code_range: lowest and highest value that the file can hold.
        masked_by: what `field_mask` comes from.
        unit: distance of neighbouring values; an intensity below half of it counts as half of it.
    """

    values: Array
    field_mask: Mask
    code_range: tuple[float, float]
    masked_by: tuple[str, ...] = ()
    unit: float = 1.0


def assumed_intensity(known: AcquisitionMetadata, accept: frozenset[str]) -> Reading:
    """What options allow to assume about the meaning of the values, and what is still asked."""
    missing: list[MissingField] = []
    values: list[MetadataValue[Any]] = []
    accepted = "for-presentation" in accept
    if value_of(known.intent) == "presentation" and known.intent is not None and not accepted:
        problem = (
            f"what its values mean: a picture made for viewing (FOR PRESENTATION by {known.intent.provenance}), whose "
            "values no longer follow the X-ray intensity"
        )
        example = f'"intent": "processing" with {_PHYSICAL}, if the values are physical after all'
        missing.append(MissingField(problem, ("intent",), example, ("for-presentation",)))
    if known.intensity_relationship is None and accepted:
        values.append(MetadataValue("intensity_relationship", "LOG", Origin.OPTION, "for-presentation"))
    elif known.intensity_relationship is None:
        said = next((one for one in known.unusable if one.value.key == "intensity_relationship"), None)
        why = "absent" if said is None else f"{plain_text(said.value.value)!r}, which is neither LIN nor LOG"
        problem = f"how its values follow from the X-ray intensity: Pixel Intensity Relationship (0028,1040) is {why}"
        missing.append(MissingField(problem, ("intensity_relationship",), _PHYSICAL, ("for-presentation",)))
    photometric = value_of(known.photometric)
    if known.intensity_sign is None and accepted and photometric in ("MONOCHROME1", "MONOCHROME2"):
        sign = 1 if photometric == "MONOCHROME1" else -1
        where = f"for-presentation: bones are bright in {photometric}"
        values.append(MetadataValue("intensity_sign", sign, Origin.OPTION, where))
    elif known.intensity_sign is None:
        problem = (
            "whether high values mean more or less X-ray intensity: Pixel Intensity Relationship Sign (0028,1041) "
        )
        problem += "is absent"
        example = '"intensity_sign": 1 (more) or -1 (less)'
        missing.append(MissingField(problem, ("intensity_sign",), example, ("for-presentation",)))
    own = Reading(tuple(values), tuple(missing))
    relationship = value_of(known.intensity_relationship) or ("LOG" if accepted else None)
    if relationship == "LOG" and known.log_scale is None and "log-range" not in accept:
        example = '"log_scale": 1000 (values for one unit of -log(I / I0))'
        problem = "the scale of its logarithm, which no tag holds"
        own += Reading(missing=(MissingField(problem, ("log_scale",), example, ("log-range",)),))
    return own


def _quantile(values: Array, share: float) -> float:
    return float(np.quantile(values[:: max(1, values.size // 1_000_000)], share))


def to_line_integrals(
    picture: PictureValues, known: AcquisitionMetadata, accept: frozenset[str], name: str
) -> tuple[tuple[Array, Mask] | None, Reading]:
    """Line integrals of a picture.

    Linear values are I, logarithmic ones sign * log_scale * log I + constant. The unattenuated intensity is the
    sidecar's, or estimated from air beside the patient.

    Args:
        picture: its values.
        known: all that is known of them; `assumed_intensity` asked for what is missing.
        accept: assumptions that are allowed, of `ACCEPT`.
        name: of the radiograph, in errors.

    Returns:
        Line integrals (V, U) float32, 0 outside the field, and the field, bool (V, U); None where something has to be
        asked. And what was found on the way.

    Raises:
        ValueError: nothing exposed, or no contrast.
    """
    values, mask = picture.values, picture.field_mask
    if mask.mean() < 0.01:
        raise ValueError(f"{name}: collimator, shutter and padding leave nothing of the picture")
    assumed = assumed_intensity(known, accept)
    if assumed.missing:
        return None, assumed
    known = merge(known.reading(), assumed)
    relationship, sign = str(value_of(known.intensity_relationship)), int(value_of(known.intensity_sign) or 1)
    if _quantile(values[mask], 0.999) <= _quantile(values[mask], 0.001):
        raise ValueError(f"{name}: all pixels have the same value, there is nothing to see")
    scale, notes = 1.0, []
    if relationship == "LIN":
        highest = picture.code_range[1]
        intensity = values if sign > 0 else np.float32(highest) - values
        if sign < 0:
            notes.append(
                f"linear values that fall with the X-ray intensity: the intensity is taken as {highest:g} less "
                "the value, as if the darkness of no X-rays were the highest value"
            )
        q = -np.log(np.maximum(intensity, np.float32(0.5 * picture.unit)))
    else:
        x = values * np.float32(-sign)
        bright, dark = _quantile(x[mask], 0.001), _quantile(x[mask], 0.999)
        scale = float(value_of(known.log_scale) or (dark - bright) / LOG_RANGE)
        q = x / np.float32(scale)
    inside = dark_borders(q, mask)
    blades = bool(inside.sum() < mask.sum())
    own = assumed + Reading(notes=tuple(notes))
    level, by_air = _unattenuated(q, inside, _Scale(relationship, sign, scale, picture.code_range), known, accept, name)
    own += by_air
    if level is None:
        return None, own
    p = (q - np.float32(level)).astype(np.float32)
    if relationship == "LOG" and known.log_scale is None:
        # The scale was provisional until air was known.
        top = _quantile(p[inside], 0.999)
        p *= np.float32(LOG_RANGE / max(top, 1e-6))
        own += Reading((MetadataValue("log_scale", scale * top / LOG_RANGE, Origin.OPTION, "log-range"),))
    p = np.where(inside, np.clip(p, -1.0, LARGEST_LINE_INTEGRAL), np.float32(0)).astype(np.float32)
    own += Reading((_exposed_field(inside, picture.masked_by, blades),), notes=_implausible(p, inside))
    return (p, inside), own


def _exposed_field(mask: Mask, masked_by: tuple[str, ...], blades: bool) -> MetadataValue[str]:
    text = f"{100 * float(mask.mean()):.0f} % of the picture"
    if masked_by and not blades:
        return MetadataValue("exposed_field", text, Origin.FILE, ", ".join(masked_by))
    seen = "straight dark borders" if blades else "the picture, no collimator found"
    return MetadataValue("exposed_field", text, Origin.ESTIMATE, ", ".join([*masked_by, seen]))


@dataclass(frozen=True)
class _Scale:
    """How values and q = -log(intensity) + constant belong together."""

    relationship: str
    sign: int
    log_scale: float
    code_range: tuple[float, float]

    def value(self, level: float) -> float:
        """The picture's value where q is `level`."""
        if self.relationship == "LOG":
            return -self.sign * level * self.log_scale
        return float(np.exp(-level)) if self.sign > 0 else self.code_range[1] - float(np.exp(-level))

    def is_saturated(self, value: float) -> bool:
        """Whether the brightest value lies at the end of the range."""
        end = self.code_range[1] if self.sign > 0 else self.code_range[0]
        return abs(value - end) <= 1e-3 * (self.code_range[1] - self.code_range[0])


def _unattenuated(
    q: Array, mask: Mask, scale: _Scale, known: AcquisitionMetadata, accept: frozenset[str], name: str
) -> tuple[float | None, Reading]:
    """The q of the unattenuated beam; "unattenuated" is in the picture's values."""
    given = value_of(known.unattenuated)
    if given is not None:
        if scale.relationship == "LOG":
            return -scale.sign * float(given) / scale.log_scale, Reading()
        intensity = float(given) if scale.sign > 0 else scale.code_range[1] - float(given)
        if intensity <= 0:
            raise ValueError(f"{name}: unattenuated is {given}, which is no X-ray intensity; it must be positive")
        return -float(np.log(intensity)), Reading()
    air = find_air(q, mask)
    if air is not None:
        where = f"air, {100 * air.share:.0f} % of the exposed pixels"
        found = Reading((MetadataValue("unattenuated", scale.value(air.level), Origin.ESTIMATE, where),))
        if scale.is_saturated(scale.value(air.level)):
            found = replace(
                found,
                notes=(
                    "the air beside the patient is at the end of the range of values: the detector is saturated there, "
                    "so line integrals are too small by an unknown amount",
                ),
            )
        return air.level, found
    if "brightest-as-air" in accept:
        level = _quantile(q[mask], 0.001)
        value: MetadataValue[Any] = MetadataValue("unattenuated", scale.value(level), Origin.OPTION, "brightest-as-air")
        return level, Reading((value,))
    problem = "the unattenuated intensity: no air is seen beside the patient"
    example = '"unattenuated": 12000 (the value where nothing is in the beam)'
    return None, Reading(missing=(MissingField(problem, ("unattenuated",), example, ("brightest-as-air",)),))


def _implausible(p: Array, mask: Mask) -> tuple[str, ...]:
    notes = []
    if looks_inverted(p, mask):
        notes.append(
            "the rim of the picture is more attenuated than its middle: is it inverted (MONOCHROME1, "
            "intensity_sign), or is a collimator not masked?"
        )
    top = _quantile(p[mask], 0.99)
    if not 0.5 <= top <= 12:
        notes.append(f"line integrals reach {top:.2g}, where a chest has about 4 to 8: check how its values are read")
    return tuple(notes)
