"""Decision what pixel values mean, from files and options, and the contradictions between them.

References: PS3.3 C.8.11.3.1.2 (relationship and sign of DX: about stored values), C.8.7.1.1.2 (XA and RF have no sign:
LIN is proportional to the intensity), C.7.6.3.1.2 and C.8.11.3 (Photometric Interpretation and Presentation LUT Shape).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from custom.radiographs.acquisition_metadata import SAID, AcquisitionMetadata, MetadataValue, Origin, value_of
from custom.radiographs.readings import Reading, ask, exclude, found, merge, note

__all__ = ["NO_INTENSITY", "PictureValues", "decide_meaning", "quantile"]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_PHYSICAL = '"intensity_relationship": "LIN" (or "LOG" with "log_scale") and "intensity_sign": 1 (or -1)'
_OPTION = "for-presentation"
#: Presentation LUT Shape (2050,0020) that belongs to each Photometric Interpretation (0028,0004).
_SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}
#: Rescale Types (0028,1054) of values that are no intensity: optical density, and attenuation.
NO_INTENSITY = ("OD", "HU")
#: Share of the values that may lie below zero intensity, as noise without X-rays does.
_BELOW_ZERO = 0.02


@dataclass(frozen=True, eq=False)
class PictureValues:
    """Values of a picture after the modality transformation (rescale or LUT).

    Args:
        values: (V, U) float32.
        field_mask: bool (V, U), what the tags leave.
        code_range: lowest and highest value that the file can hold.
        masked_by: what `field_mask` comes from.
        unit: distance of neighbouring values; an intensity below half of it counts as half of it.
        stored_zero: value of a stored 0, where values rise with the stored ones.
    """

    values: Array
    field_mask: Mask
    code_range: tuple[float, float]
    masked_by: tuple[str, ...] = ()
    unit: float = 1.0
    stored_zero: float = 0.0


def quantile(values: Array, share: float) -> float:
    """Of at most about a million of the values."""
    return float(np.quantile(values[:: max(1, values.size // 1_000_000)], share))


def decide_meaning(picture: PictureValues, others: Reading, accept: frozenset[str], seen_sign: int) -> Reading:
    """All readings of a picture, with what options allow, and with questions where something is not known.

    Args:
        picture: its values.
        others: what is known of them.
        accept: assumptions that are allowed, of `ACCEPT`.
        seen_sign: sign that the picture shows, of `custom.radiographs.exposure.seen_sign`; 0 for none.
    """
    everything = _intent(others, accept)
    everything = _relationship(everything, accept)
    everything = _sign(everything, accept, seen_sign)
    everything += _zero(picture, merge(everything))
    return everything + _idle(merge(everything))


def _idle(known: AcquisitionMetadata) -> Reading:
    """What somebody said of the values, and is of no use with the relationship that they have."""
    linear = value_of(known.intensity_relationship) == "LIN"
    idle = known.log_scale if linear else known.zero_intensity
    if idle is None or idle.origin not in SAID:
        return Reading()
    other = "a logarithm" if linear else "linear values"
    return note(f"{idle.key} {idle} is of {other}, but they are {known.intensity_relationship}: it is not used")


def _intent(others: Reading, accept: frozenset[str]) -> Reading:
    intent = merge(others).intent
    if intent is None or intent.value != "presentation":
        return others
    if _OPTION in accept:
        return others + found("tone_curve", "not undone", Origin.OPTION, _OPTION)
    problem = (
        f"what its values mean: a picture made for viewing (FOR PRESENTATION by {intent.provenance}), whose "
        "values no longer follow the X-ray intensity"
    )
    example = f'"intent": "processing" with {_PHYSICAL}, if the values are physical after all'
    return others + ask(problem, ("intent",), example, _OPTION)


def _relationship(others: Reading, accept: frozenset[str]) -> Reading:
    known = merge(others)
    if known.intensity_relationship is None and _OPTION in accept:
        others += found("intensity_relationship", "LOG", Origin.OPTION, _OPTION)
    elif known.intensity_relationship is None:
        problem = "how its values follow from the X-ray intensity: Pixel Intensity Relationship (0028,1040) "
        problem += known.state_of_tag("intensity_relationship")
        others += ask(problem, ("intensity_relationship",), _PHYSICAL, _OPTION)
    linear = known.intensity_relationship
    if linear is not None and linear.origin is Origin.FILE and linear.value == "LIN":
        kind = next((one for one in NO_INTENSITY if (value_of(known.rescale_type) or "").startswith(one)), None)
        if kind is not None and known.rescale_type is not None:
            problem = (
                f"how its values follow from the X-ray intensity: LIN by {linear.provenance}, but Rescale Type is "
            )
            problem += str(known.rescale_type)
            others = replace(others, values=tuple(v for v in others.values if v.key != "intensity_relationship"))
            return others + exclude(problem, ("intensity_relationship",), _PHYSICAL, linear, known.rescale_type)
    logarithm = value_of(merge(others).intensity_relationship) == "LOG"
    if logarithm and known.log_scale is None and "log-range" not in accept:
        example = '"log_scale": 1000 (values for one unit of -log(I / I0))'
        others += ask("the scale of its logarithm, which no tag holds", ("log_scale",), example, "log-range")
    return others


def _display(known: AcquisitionMetadata) -> MetadataValue[int] | None:
    """The sign by which bones look as they are shown: bright, in fluoroscopy dark; None where that is not known."""
    photometric, modality = value_of(known.photometric), value_of(known.modality)
    # Portal images are shown either way.
    if photometric not in _SHAPES or _display_is_contradictory(known) or modality == "RTIMAGE":
        return None
    dark, rising = modality in ("XA", "RF"), photometric == "MONOCHROME2"
    where = f"bones are {'dark' if dark else 'bright'} in {photometric}"
    return MetadataValue("intensity_sign", 1 if rising is dark else -1, Origin.DERIVED, where)


def _display_is_contradictory(known: AcquisitionMetadata) -> bool:
    shape = value_of(known.presentation_lut_shape)
    return shape in _SHAPES.values() and shape != _SHAPES.get(value_of(known.photometric) or "", shape)


def _is_for_viewing(known: AcquisitionMetadata) -> bool:
    """Whether bones have to look as radiographs show them: CR has no intent, but its logarithms are for viewing."""
    if known.intent is not None:
        return known.intent.value == "presentation"
    return value_of(known.modality) == "CR" and value_of(known.intensity_relationship) == "LOG"


def _sign(others: Reading, accept: frozenset[str], seen: int) -> Reading:
    """The sign, where files, display and picture agree on one; else a question that proposes what the picture shows."""
    known = merge(others)
    if value_of(known.intensity_relationship) not in ("LIN", "LOG", None):
        return others
    signs = list({one.value: one for one in others.values if one.key == "intensity_sign"}.values())
    if known.intensity_sign is not None and known.intensity_sign.origin in SAID:
        return others + (_seen_otherwise(known.intensity_sign, seen) if seen else Reading())
    display, viewing, accepted = _display(known), _is_for_viewing(known), _OPTION in accept
    if _display_is_contradictory(known) and (viewing or accepted):
        by_lut = [one for one in (known.photometric, known.presentation_lut_shape) if one is not None]
        problem = f"whether high values are shown bright: {by_lut[0]}, but {by_lut[-1]}"
        return _without_sign(others) + _ask_sign(problem, seen, None, *by_lut)
    shown = display if viewing or (accepted and not signs) else None
    if accepted and shown is not None and len(signs) <= 1:
        if signs and signs[0].value != shown.value:
            others = _without_sign(others) + note(f"{_against(signs[0], shown)}; the latter is used")
            signs = []
        if not signs:
            signs = [replace(shown, origin=Origin.OPTION, where=f"{_OPTION}: {shown.where}")]
            others += Reading((signs[0],))
    elif shown is not None and signs and any(one.value != shown.value for one in signs):
        return _without_sign(others) + _ask_sign(_against(signs[0], shown), seen, shown, signs[0])
    if len(signs) > 1:
        problem = f"two signs that exclude each other: intensity_sign {signs[0]}, but {signs[1]}"
        return _without_sign(others) + _ask_sign(problem, seen, None, *signs)
    if not signs:
        problem = "whether high values mean more or less X-ray intensity: "
        problem += f"Pixel Intensity Relationship Sign (0028,1041) {known.state_of_tag('intensity_sign')}"
        return others + _ask_sign(problem, seen, display)
    if seen and signs[0].value != seen:
        problem = f"intensity_sign {signs[0]} makes the air beside the patient the densest part of the picture"
        return _without_sign(others) + _ask_sign(problem, seen, None, signs[0])
    return others


def _without_sign(others: Reading) -> Reading:
    return replace(others, values=tuple(one for one in others.values if one.key != "intensity_sign"))


def _against(stated: MetadataValue[Any], shown: MetadataValue[int]) -> str:
    return f"intensity_sign {stated}, but a picture for viewing has the other sign where {shown.where}"


def _ask_sign(problem: str, seen: int, shown: MetadataValue[int] | None, *values: MetadataValue[Any]) -> Reading:
    example = '"intensity_sign": 1 (high values mean more intensity) or -1 (less)'
    if seen:
        level = "high" if seen > 0 else "low"
        example = f'"intensity_sign": {seen} (the picture shows it: its {level} values touch the border, as air does)'
    options = (_OPTION,) if shown is not None and seen in (0, shown.value) else ()
    if values:
        return exclude(problem, ("intensity_sign",), example, *values, accept=options)
    return ask(problem, ("intensity_sign",), example, *options)


def _seen_otherwise(stated: MetadataValue[int], seen: int) -> Reading:
    if stated.value == seen:
        return Reading()
    return note(
        f"intensity_sign {stated} makes the densest part of the picture of what touches its border as air does: is it "
        "inverted?"
    )


def _zero(picture: PictureValues, known: AcquisitionMetadata) -> Reading:
    """The value without X-rays, where linear values do not begin with 0."""
    linear = known.intensity_relationship
    if value_of(linear) != "LIN" or linear is None or known.zero_intensity is not None or known.intensity_sign is None:
        return Reading()
    values = picture.values[picture.field_mask]
    low, high = picture.code_range
    if known.intensity_sign.value < 0:
        if quantile(values, 0.999) >= 0.5 * (low + high):
            where = "the darkness of no X-rays is the highest value of the file"
            own = found("zero_intensity", high, Origin.USUAL_VALUE, where)
            return own + note(
                f"linear values that fall with the X-ray intensity: the intensity is taken as {high:g} less "
                "the value, as if the darkness of no X-rays were the highest value"
            )
        problem = (
            f"where its intensity is zero: linear values that fall with the X-ray intensity, up to "
            f"{float(values.max()):g} of {high:g} that the file can hold"
        )
        return ask(problem, ("zero_intensity",), f'"zero_intensity": {float(values.max()):g} (value without X-rays)')
    if linear.origin is not Origin.FILE:
        return Reading()
    zero, below = picture.stored_zero, float((values < -picture.unit).mean())
    moved = abs(zero) > 0.5 * picture.unit and abs(low) > 0.5 * picture.unit
    if not moved and below <= _BELOW_ZERO:
        return Reading()
    problem = (
        f"where its intensity is zero: LIN by {linear.provenance} says that stored values are proportional to it, but "
    )
    if moved:
        problem += f"Rescale Intercept (0028,1052) moves their zero to {zero:g}"
    else:
        problem += f"{100 * below:.0f} % of them lie below 0"
        zero = float(values.min())
    example = f'"zero_intensity": {zero:g} (value without X-rays'
    if moved and below > _BELOW_ZERO:
        example += f"; the picture shows it: {100 * below:.0f} % of the values lie below 0)"
    else:
        example += ") or 0 (values after rescale are proportional)" if moved else "; the lowest value here)"
    return exclude(problem, ("zero_intensity",), example, linear, *([known.rescale] if known.rescale else []))
