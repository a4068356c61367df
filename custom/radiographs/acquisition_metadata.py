"""Collecting facts about one radiograph from several sources: the first that knows wins, the others may disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from custom.radiographs.radiograph import Gap, Sourced

__all__ = ["ACCEPT", "LIMITS", "FactSheet", "check_accept"]

#: Line integral that `--accept log-range` gives to the most attenuated exposed pixels: about 25 cm of water at 70 keV.
LOG_RANGE = 5.0
#: Distances that `--accept default-distances` takes: a chest radiograph at the wall stand [mm].
DEFAULT_SOURCE_TO_DETECTOR_MM = 1800.0
DEFAULT_ISOCENTER_TO_DETECTOR_MM = 150.0

#: Names that `--accept` takes, each with what it assumes.
ACCEPT: dict[str, str] = {
    "default-distances": (
        f"where distances are missing: source to detector {DEFAULT_SOURCE_TO_DETECTOR_MM:g} mm, the middle of the "
        f"patient {DEFAULT_ISOCENTER_TO_DETECTOR_MM:g} mm in front of the detector (a chest radiograph at the wall "
        "stand)"
    ),
    "pixel-spacing-at-detector": (
        "Pixel Spacing (0028,0030) is measured on the detector where neither Imager Pixel Spacing nor a calibration "
        "type says so"
    ),
    "pixel-spacing-at-isocenter": (
        "Pixel Spacing (0028,0030) is measured in the middle of the patient, and is magnified onto the detector by the "
        "distances"
    ),
    "as-displayed": (
        "a frontal radiograph without Patient Orientation is stored as it is shown: the patient's left at the right "
        "of the picture, head up"
    ),
    "seen-from-source": "a radiograph without Patient Orientation is stored as seen from the source, head up",
    "seen-from-detector": "a radiograph without Patient Orientation is stored as seen from the detector, head up",
    "head-first-supine": "an RTIMAGE without Patient Position shows a patient head first, supine",
    "for-presentation": (
        "a picture made for viewing, or one that does not say how its values follow from the X-ray intensity, is read "
        "as a logarithm of the intensity (or as Pixel Intensity Relationship says), dark or bright by Photometric "
        "Interpretation; tone curves and enhancement are not undone, so line integrals are only roughly right"
    ),
    "log-range": (
        "a logarithmic picture without a scale: the most attenuated 0.1 % of the exposed pixels have a line integral "
        f"of {LOG_RANGE:g}"
    ),
    "brightest-as-air": (
        "where no air is seen beside the patient, the 0.1 % of the exposed pixels with the highest intensity are "
        "taken as the unattenuated beam"
    ),
    "several-patients": "radiographs that name different patients belong to one; no CT series, give --nodicom",
}

#: Lowest and highest value that can be: beyond them a sidecar is refused, and a tag is not used.
LIMITS: dict[str, tuple[float, float]] = {
    "elevation_deg": (-85, 85),
    "source_to_detector_mm": (10, 10000),
    "source_to_isocenter_mm": (10, 10000),
    "pixel_mm": (1e-3, 50),
    "detector_offset_mm": (-2000, 2000),
    "detector_angles_deg": (-80, 80),
    "kvp": (1, 1e5),
}

#: Order of facts in a report.
_ORDER = (
    "modality", "beam", "view_position", "angle_deg", "elevation_deg", "source_to_detector_mm",
    "source_to_isocenter_mm", "magnification", "pixel_mm", "detector_offset_mm", "detector_angles_deg",
    "detector_roll_deg", "patient_position", "orientation", "flips", "isocenter_mm", "kvp", "frame", "intent",
    "photometric", "intensity_relationship", "intensity_sign", "rescale", "log_scale", "unattenuated", "exposed",
)  # fmt: skip


def check_accept(accept: Sequence[str] | str) -> frozenset[str]:
    """The accepted assumptions as a set.

    Raises:
        ValueError: for a name that is not in `ACCEPT`.
    """
    names = [accept] if isinstance(accept, str) else list(accept)
    names = [part.strip() for name in names for part in str(name).split(",") if part.strip()]
    for name in names:
        if name not in ACCEPT:
            raise ValueError(f"--accept {name} is not known; it takes {', '.join(ACCEPT)}")
    return frozenset(names)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    # Adding 0 makes -0.0 a plain 0.
    return round(value, 6) + 0.0 if isinstance(value, float) else value


def _agree(key: str, one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_agree(key, a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, int | float) and isinstance(other, int | float):
        if key.endswith("_deg"):
            return abs((one - other + 180) % 360 - 180) <= tolerance
        relative = 0.0 if key == "detector_offset_mm" else tolerance
        return math.isclose(one, other, rel_tol=relative, abs_tol=tolerance)
    return bool(one == other)


def _possible(key: str, value: Any) -> bool:
    low, high = LIMITS.get(key, (-math.inf, math.inf))
    numbers = value if isinstance(value, tuple) else (value,)
    return all(low <= number <= high for number in numbers if isinstance(number, int | float))


class FactSheet:
    """Facts, warnings and gaps of one radiograph while it is read.

    Args:
        name: of the radiograph, in messages.
        sidecar_name: of the file that the reader of a message should write into.
        accept: assumptions that the caller allows, of `ACCEPT`.
    """

    def __init__(self, name: str, sidecar_name: str, accept: frozenset[str] = frozenset()) -> None:
        self.name, self.sidecar_name, self.accept = name, sidecar_name, accept
        self.facts: dict[str, Sourced] = {}
        self.refused: dict[str, str] = {}
        self.warnings: list[str] = []
        self.gaps: list[Gap] = []

    def offer(self, key: str, value: Any, source: str, tolerance: float = 1e-3) -> None:
        """Take a value, unless a better source gave one already; a value that differs from it is a warning.

        Args:
            key: of the fact, with its unit.
            value: None is no offer.
            source: where it comes from.
            tolerance: difference of numbers that is no conflict: absolute, and except of angles and offsets relative.
        """
        if value is None:
            return
        value = _plain(value)
        if source.startswith("DICOM") and not _possible(key, value):
            self.refused[key] = f"{_text(value)} by {source} cannot be"
            self.warn(f"{key} {self.refused[key]} and is not used")
        elif key not in self.facts:
            self.facts[key] = Sourced(value, source)
        elif not _agree(key, self.facts[key].value, value, tolerance):
            mine = self.facts[key]
            self.warn(
                f"{key} is {_text(mine.value)} by {mine.source}, but {_text(value)} by {source}; the first is used"
            )

    def default(self, key: str, value: Any, source: str) -> None:
        """Take a value where no source gave one; that a source knew better is no conflict."""
        if key not in self.facts:
            self.offer(key, value, source)

    def get(self, key: str) -> Any:
        """The value of a fact, None where it is not known."""
        return self.facts[key].value if key in self.facts else None

    def missing(self, key: str) -> str:
        """What to add where a fact is asked for: that a tag has it, with an impossible value."""
        return f"; {self.refused[key]}" if key in self.refused else ""

    def source(self, key: str) -> str:
        """Where a fact comes from, "" where it is not known."""
        return self.facts[key].source if key in self.facts else ""

    def warn(self, sentence: str) -> None:
        """A sentence for the reader of the report; said once."""
        sentence = f"{self.name}: {sentence}"
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def gap(self, problem: str, example: str, accept: Sequence[str] = ()) -> None:
        """Something missing.

        Args:
            problem: what, with its tag.
            example: JSON members that a sidecar would need, such as '"angle_deg": 90'.
            accept: names of `ACCEPT` that would do.
        """
        remedy = f"write {example} into {self.sidecar_name} or the file of --geometry"
        if accept:
            remedy += ", or give --accept " + " or --accept ".join(accept)
        self.gaps.append(Gap(self.name, problem, remedy))

    def accepts(self, name: str) -> bool:
        """Whether the caller allows an assumption."""
        return name in self.accept

    def ordered(self) -> dict[str, Sourced]:
        """The facts in the order of a report."""
        keys = [*(k for k in _ORDER if k in self.facts), *(k for k in self.facts if k not in _ORDER)]
        return {key: self.facts[key] for key in keys}


def _text(value: Any) -> str:
    return "(" + ", ".join(_text(v) for v in value) + ")" if isinstance(value, tuple) else str(value)
