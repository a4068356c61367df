"""From values of a picture to line integrals, whatever file they come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from custom.core.attenuation import LARGEST_LINE_INTEGRAL
from custom.radiographs.accepted_assumptions import LOG_RANGE
from custom.radiographs.acquisition_metadata import AcquisitionMetadata, Origin, plain_text, value_of
from custom.radiographs.exposure import dark_borders, find_air, looks_inverted
from custom.radiographs.readings import Reading, ask, found, merge, note

__all__ = ["PictureValues", "to_line_integrals"]

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


def _assumptions(known: AcquisitionMetadata, accept: frozenset[str]) -> Reading:
    """What options allow to assume about the meaning of the values, and what is still asked."""
    own, option = Reading(), "for-presentation"
    accepted = option in accept
    if known.intent is not None and known.intent.value == "presentation" and not accepted:
        problem = (
            f"what its values mean: a picture made for viewing (FOR PRESENTATION by {known.intent.provenance}), whose "
            "values no longer follow the X-ray intensity"
        )
        example = f'"intent": "processing" with {_PHYSICAL}, if the values are physical after all'
        own += ask(problem, ("intent",), example, option)
    relationship = value_of(known.intensity_relationship)
    if relationship is None and accepted:
        relationship = "LOG"
        own += found("intensity_relationship", relationship, Origin.OPTION, option)
    elif relationship is None:
        said = next((one for one in known.unusable if one.value.key == "intensity_relationship"), None)
        why = "absent" if said is None else f"{plain_text(said.value.value)!r}, which is neither LIN nor LOG"
        problem = f"how its values follow from the X-ray intensity: Pixel Intensity Relationship (0028,1040) is {why}"
        own += ask(problem, ("intensity_relationship",), _PHYSICAL, option)
    sign_by_display = {"MONOCHROME1": 1, "MONOCHROME2": -1}.get(value_of(known.photometric) or "")
    if known.intensity_sign is None and accepted and sign_by_display is not None:
        where = f"{option}: bones are bright in {value_of(known.photometric)}"
        own += found("intensity_sign", sign_by_display, Origin.OPTION, where)
    elif known.intensity_sign is None:
        problem = "whether high values mean more or less X-ray intensity: "
        problem += "Pixel Intensity Relationship Sign (0028,1041) is absent"
        own += ask(problem, ("intensity_sign",), '"intensity_sign": 1 (more) or -1 (less)', option)
    if relationship == "LOG" and known.log_scale is None and "log-range" not in accept:
        example = '"log_scale": 1000 (values for one unit of -log(I / I0))'
        own += ask("the scale of its logarithm, which no tag holds", ("log_scale",), example, "log-range")
    return own


def _quantile(values: Array, share: float) -> float:
    return float(np.quantile(values[:: max(1, values.size // 1_000_000)], share))


def to_line_integrals(
    picture: PictureValues, others: Reading, accept: frozenset[str], name: str
) -> tuple[tuple[Tensor, Tensor] | None, Reading]:
    """Line integrals of a picture.

    Linear values are I, logarithmic ones sign * log_scale * log I + constant. The unattenuated intensity is the
    sidecar's, or estimated from air beside the patient.

    Args:
        picture: its values.
        others: what is known of them; not part of the result.
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
    own = _assumptions(merge(others), accept)
    if own.missing:
        return None, own
    known = merge(others, own)
    relationship, sign = str(value_of(known.intensity_relationship)), int(value_of(known.intensity_sign) or 1)
    if _quantile(values[mask], 0.999) <= _quantile(values[mask], 0.001):
        raise ValueError(f"{name}: all pixels have the same value, there is nothing to see")
    scale = 1.0
    if relationship == "LIN":
        highest = picture.code_range[1]
        intensity = values if sign > 0 else np.float32(highest) - values
        if sign < 0:
            own += note(
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
    level, by_air = _unattenuated(q, inside, _Scale(relationship, sign, scale, picture.code_range), known, accept, name)
    own += by_air
    if level is None:
        return None, own
    p = (q - np.float32(level)).astype(np.float32)
    if relationship == "LOG" and known.log_scale is None:
        # The scale was provisional until air was known.
        top = _quantile(p[inside], 0.999)
        p *= np.float32(LOG_RANGE / max(top, 1e-6))
        own += found("log_scale", scale * top / LOG_RANGE, Origin.OPTION, "log-range")
    p = np.where(inside, np.clip(p, -1.0, LARGEST_LINE_INTEGRAL), np.float32(0)).astype(np.float32)
    pictures = torch.from_numpy(p), torch.from_numpy(inside)
    return pictures, own + _exposed_field(inside, picture.masked_by, blades) + _implausible(p, inside)


def _exposed_field(mask: Mask, masked_by: tuple[str, ...], blades: bool) -> Reading:
    text = f"{100 * float(mask.mean()):.0f} % of the picture"
    if masked_by and not blades:
        return found("exposed_field", text, Origin.FILE, ", ".join(masked_by))
    seen = "straight dark borders" if blades else "the picture, no collimator found"
    return found("exposed_field", text, Origin.ESTIMATE, ", ".join([*masked_by, seen]))


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
        own = found("unattenuated", scale.value(air.level), Origin.ESTIMATE, where)
        if scale.is_saturated(scale.value(air.level)):
            own += note(
                "the air beside the patient is at the end of the range of values: the detector is saturated there, so "
                "line integrals are too small by an unknown amount"
            )
        return air.level, own
    if "brightest-as-air" in accept:
        level = _quantile(q[mask], 0.001)
        return level, found("unattenuated", scale.value(level), Origin.OPTION, "brightest-as-air")
    problem = "the unattenuated intensity: no air is seen beside the patient"
    example = '"unattenuated": 12000 (the value where nothing is in the beam)'
    return None, ask(problem, ("unattenuated",), example, "brightest-as-air")


def _implausible(p: Array, mask: Mask) -> Reading:
    own = Reading()
    if looks_inverted(p, mask):
        own += note(
            "the rim of the picture is more attenuated than its middle: is it inverted (MONOCHROME1, "
            "intensity_sign), or is a collimator not masked?"
        )
    top = _quantile(p[mask], 0.99)
    if not 0.5 <= top <= 12:
        own += note(f"line integrals reach {top:.2g}, where a chest has about 4 to 8: check how its values are read")
    return own
