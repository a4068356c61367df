"""Conversion of pixel values to line integrals, whatever file they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from custom.core.attenuation import LARGEST_LINE_INTEGRAL
from custom.radiographs.accepted_assumptions import LOG_RANGE
from custom.radiographs.acquisition_metadata import AcquisitionMetadata, Origin, value_of
from custom.radiographs.exposure import dark_borders, find_air, has_noise, looks_inverted, round_field, seen_sign
from custom.radiographs.intensity_meaning import PictureValues, decide_meaning, quantile
from custom.radiographs.readings import Reading, ask, found, merge, note

__all__ = ["implausible", "to_line_integrals"]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Share of the exposed pixels at an end of the values that is said.
_CLIPPED = 0.01
#: Clipped values are more than so many times as frequent as those within this share of the range beside them.
_PILE, _NEAR = 5.0, 0.01
#: The least line integral of a radiograph is at most so large: 15 cm of water.
_LEAST = 3.0
#: Air that is brighter than the rest of it, by the heel effect or scatter, is above the negative of this line integral.
_BRIGHTER = 0.3
#: A picture has more different values than this, even one of 8 bits.
_FEWEST_VALUES = 64
_NO_COLLIMATOR = "the picture, no collimator found"


def to_line_integrals(
    picture: PictureValues, others: Reading, accept: frozenset[str], name: str
) -> tuple[tuple[Tensor, Tensor] | None, Reading]:
    """Line integrals of a picture.

    Linear values are sign * I + zero_intensity, logarithmic ones sign * log_scale * log I + constant. The unattenuated
    intensity is the sidecar's, or estimated from air beside the patient.

    Args:
        picture: its values.
        others: what is known of them.
        accept: assumptions that are allowed, of `ACCEPT`.
        name: of the radiograph, in errors.

    Returns:
        Line integrals (V, U) float32, 0 outside the field, and the field, bool (V, U); None where something has to be
        asked. And all readings, the others and what was found on the way.

    Raises:
        ValueError: nothing exposed, or no contrast.
    """
    values, mask, sign = picture.values, picture.field_mask, value_of(merge(others).intensity_sign)
    if sign and value_of(merge(others).modality) in ("XA", "RF"):  # where image intensifiers are
        mask = round_field(values, mask, sign)
    seen = ["a round field"] if mask.sum() < picture.field_mask.sum() else []
    picture = replace(picture, field_mask=mask)
    if mask.mean() < 0.01:
        raise ValueError(f"{name}: collimator, shutter and padding leave nothing of the picture")
    if quantile(values[mask], 0.999) <= quantile(values[mask], 0.001):
        raise ValueError(f"{name}: all pixels have the same value, there is nothing to see")
    relationship = value_of(merge(others).intensity_relationship)
    everything = decide_meaning(picture, others, accept, seen_sign(values, mask, relationship == "LIN"))
    known = merge(everything)
    if len(known.questions) > len(merge(others).questions):
        return None, everything
    scale = _scale(picture, known)
    q = scale.q(values)
    inside = dark_borders(q, mask)
    if scale.relationship == "LIN":
        if quantile(scale.intensity(values[inside]), 0.999) <= 0:
            raise ValueError(f"{name}: zero_intensity is {scale.zero:g}, which leaves no pixel any X-ray intensity")
        floor, said = _floor(picture, scale, inside)
        q, everything = np.minimum(q, np.float32(-np.log(floor))), everything + said
    seen += ["straight dark borders"] if inside.sum() < mask.sum() else []
    level, by_air = _unattenuated(q, inside, scale, known, accept, name)
    everything += by_air
    if level is None:
        return None, everything
    p = (q - np.float32(level)).astype(np.float32)
    if scale.relationship == "LOG" and known.log_scale is None:
        # The scale was provisional until air was known.
        top = quantile(p[inside], 0.999)
        p *= np.float32(LOG_RANGE / max(top, 1e-6))
        everything += found("log_scale", scale.log_scale * top / LOG_RANGE, Origin.OPTION, "log-range")
    everything += _brighter(p, inside)
    p = np.where(inside, np.clip(p, -1.0, LARGEST_LINE_INTEGRAL), np.float32(0)).astype(np.float32)
    everything += _exposed_field(inside, picture.masked_by, seen) + _clipped(
        picture, scale, value_of(known.unattenuated), p, inside
    )
    return (torch.from_numpy(p), torch.from_numpy(inside)), everything + implausible(p, inside)


def _exposed_field(mask: Mask, masked_by: tuple[str, ...], seen: list[str]) -> Reading:
    text = f"{100 * float(mask.mean()):.0f} % of the picture"
    if masked_by and not seen:
        return found("exposed_field", text, Origin.FILE, ", ".join(masked_by))
    return found("exposed_field", text, Origin.ESTIMATE, ", ".join([*masked_by, *seen] or [_NO_COLLIMATOR]))


@dataclass(frozen=True)
class _Scale:
    """How values and q = -log(intensity) + constant belong together.

    Here a picture is inverted: `sign` is -1 where higher values mean less intensity behind the patient, +1 where they
    mean more. MONOCHROME1 and the other attributes decide it in `intensity_meaning`.
    """

    relationship: str
    sign: int
    log_scale: float
    zero: float
    smallest: float

    def intensity(self, values: Array) -> Array:
        """Of linear values."""
        return np.float32(self.sign) * (values - np.float32(self.zero))

    def q(self, values: Array) -> Array:
        """-log(intensity) + constant, float32."""
        if self.relationship == "LOG":
            return values * np.float32(-self.sign / self.log_scale)
        return -np.log(np.maximum(self.intensity(values), np.float32(self.smallest)))

    def value(self, level: float) -> float:
        """The picture's value where q is `level`."""
        if self.relationship == "LOG":
            return -self.sign * level * self.log_scale
        return self.zero + self.sign * float(np.exp(-level))


def _scale(picture: PictureValues, known: AcquisitionMetadata) -> _Scale:
    sign = int(value_of(known.intensity_sign) or 1)
    x = picture.values[picture.field_mask] * np.float32(-sign)
    provisional = (quantile(x, 0.999) - quantile(x, 0.001)) / LOG_RANGE
    return _Scale(
        str(value_of(known.intensity_relationship)),
        sign,
        float(value_of(known.log_scale) or provisional),
        float(value_of(known.zero_intensity) or 0.0),
        0.5 * picture.unit,
    )


def _floor(picture: PictureValues, scale: _Scale, inside: Mask) -> tuple[float, Reading]:
    """The lowest intensity that was measured, and what is to be said where much of the picture has none.

    A detector that gives 0 says that the beam was weaker than it can tell: at least as much attenuation as the weakest
    beam that it did tell.
    """
    intensity = scale.intensity(picture.values[inside])
    none = intensity <= 0.5 * picture.unit
    share, least = float(none.mean()), float(np.count_nonzero(~none))
    if share <= _CLIPPED or not least:
        return scale.smallest, Reading()
    lowest = max(quantile(intensity[~none], 0.001), scale.smallest)
    return lowest, note(
        f"{100 * share:.0f} % of the exposed pixels have no X-ray intensity left (underexposed, or their zero is "
        f"another): they are read as {lowest:g}, the lowest intensity of the others, so line integrals there are too "
        "small by an unknown amount"
    )


def _clipped(picture: PictureValues, scale: _Scale, given: float | None, p: Array, inside: Mask) -> Reading:
    """What is to be said of values that pile up at an end of the picture."""
    values, own = picture.values[inside], Reading()
    low, high = picture.code_range
    bright, dark = ("high", "low") if scale.sign > 0 else ("low", "high")
    ends = {"low": float(values.min()), "high": float(values.max())}
    limit = {"low": low, "high": high}[bright]
    at_limit = abs(ends[bright] - limit) <= 1e-3 * (high - low) or _fills_bits(picture, ends[bright])
    # Whoever says that the beam has just this value knows it.
    told = given is not None and abs(float(given) - ends[bright]) <= 0.5 * picture.unit
    full = picture.values == ends[bright]
    if not told and float(full[inside].mean()) > _CLIPPED:
        where = "at the end of the range of values"
        if not at_limit:
            where = f"of one value, {ends[bright]:g}, without the noise of the rest"
        # Air without noise is a computed picture's, in which nothing has any.
        if at_limit or has_noise(picture.values, inside & ~full):
            own += note(
                f"the brightest part of the picture is {where}: the detector is saturated there, so line integrals are "
                "too small by an unknown amount"
            )
    piled = values == ends[dark]
    near = (np.abs(values - ends[dark]) <= max(_NEAR * (ends["high"] - ends["low"]), 3 * picture.unit)) & ~piled
    without = scale.relationship == "LIN" and scale.sign * (ends[dark] - scale.zero) <= 0.5 * picture.unit
    at_end = abs(ends[dark] - {"low": low, "high": high}[dark]) <= 0.5 * picture.unit
    if not without and piled.mean() > _CLIPPED and (at_end or piled.sum() > _PILE * near.sum()):
        own += note(
            f"{100 * float(piled.mean()):.0f} % of the exposed pixels have the darkest value, {ends[dark]:g}: the "
            f"picture is clipped there, and line integrals above {float(p[inside].max()):.2g} are lost"
        )
    return own


def _fills_bits(picture: PictureValues, value: float) -> bool:
    """Whether a stored value is the highest of 8 to 15 bits: where detectors end that are stored in more."""
    stored = round((value - picture.stored_zero) / picture.unit)
    return stored >= 255 and stored & (stored + 1) == 0


def _unattenuated(
    q: Array, mask: Mask, scale: _Scale, known: AcquisitionMetadata, accept: frozenset[str], name: str
) -> tuple[float | None, Reading]:
    """The q of the unattenuated beam; "unattenuated" is in the picture's values."""
    given = value_of(known.unattenuated)
    if given is not None:
        if scale.relationship == "LOG":
            return -scale.sign * float(given) / scale.log_scale, Reading()
        intensity = scale.sign * (float(given) - scale.zero)
        if intensity <= 0:
            raise ValueError(f"{name}: unattenuated is {given}, which is no X-ray intensity; it must be positive")
        return -float(np.log(intensity)), Reading()
    air = find_air(q, mask)
    if air is not None:
        where = f"air, {100 * air.share:.0f} % of the exposed pixels"
        return air.level, found("unattenuated", scale.value(air.level), Origin.ESTIMATE, where)
    if "brightest-as-air" in accept:
        level = quantile(q[mask], 0.001)
        return level, found("unattenuated", scale.value(level), Origin.OPTION, "brightest-as-air")
    problem = "the unattenuated intensity: no air is seen beside the patient"
    example = '"unattenuated": 12000 (the value where nothing is in the beam)'
    return None, ask(problem, ("unattenuated",), example, "brightest-as-air")


def _brighter(p: Array, mask: Mask) -> Reading:
    """What is to be said of pixels with more intensity than the unattenuated beam."""
    share = float((p[mask] < -_BRIGHTER).mean())
    if share <= _CLIPPED:
        return Reading()
    return note(
        f"{100 * share:.0f} % of the exposed pixels are brighter than the unattenuated beam: is unattenuated wrong?"
    )


def implausible(p: Array, mask: Mask) -> Reading:
    """What is to be said of line integrals (V, U) that no chest has, within the field (V, U)."""
    own, values = Reading(), np.unique(p[mask])
    if len(values) <= _FEWEST_VALUES < p.size / _FEWEST_VALUES:
        step = float(np.ptp(values)) / max(1, len(values) - 1)
        own += note(
            f"the picture has only {len(values)} different values: it was rounded, and its line integrals are known to "
            f"steps of about {step:.2g} alone; take it from before it was converted"
        )
    if looks_inverted(p, mask):
        own += note(
            "the rim of the picture is more attenuated than its middle: is it inverted (MONOCHROME1, "
            "intensity_sign), or is a collimator not masked?"
        )
    least, top = quantile(p[mask], 0.001), quantile(p[mask], 0.99)
    if least > _LEAST:
        own += note(
            f"no line integral is below {least:.2g}, where some rays always pass a body's rim or lung: is unattenuated "
            "too high?"
        )
    if not 0.5 <= top <= 12:
        own += note(f"line integrals reach {top:.2g}, where a chest has about 4 to 8: check how its values are read")
    return own
