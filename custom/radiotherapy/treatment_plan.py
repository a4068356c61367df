"""Fields and plans: records with the terms of a plan, all angles and jaws as IEC 61217 has them.

The patient lies supine, head first. Seen from the isocentre, the source of gantry angle g stands at
(-sin g, cos g, 0) in RAS+: 0 is anterior, 90 the patient's left, 180 posterior. The jaws' axes at collimator angle 0
are Xg = (-cos g, -sin g, 0), towards the patient's left at gantry 0, and Yg = (0, 0, 1), towards the head.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from custom.radiotherapy.planning_numbers import NUMBERS

__all__ = ["AS_GIVEN", "ISOCENTER", "Field", "Leaves", "Plan"]

ISOCENTER = "isocenter"
AS_GIVEN = "nothing: monitor units as given"
#: Half the side of the largest field.
_LARGEST_MM = 200.0
#: Where every field is open this far around the isocentre, its dose is a number that means something.
_CLEAR_MM = 10.0


@dataclass(frozen=True)
class Leaves:
    """A multileaf collimator's aperture, at the isocentre plane, along the collimator's axes.

    Attributes:
        along: "X" or "Y", the axis that the leaves move along.
        boundaries_mm: (N + 1,) of the leaves on the other axis, rising.
        low_mm, high_mm: (N,) ends of the opening of each pair.

    Raises:
        ValueError: lengths that do not fit, boundaries that do not rise, leaves that cross, no finite numbers.
    """

    along: str
    boundaries_mm: tuple[float, ...]
    low_mm: tuple[float, ...]
    high_mm: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.low_mm)
        if (
            self.along not in ("X", "Y")
            or not count
            or (len(self.high_mm), len(self.boundaries_mm)) != (count, count + 1)
        ):
            raise ValueError(
                f"leaves along {self.along}: {count} and {len(self.high_mm)} positions, {len(self.boundaries_mm)} "
                "boundaries; both sides need as many, and one boundary more"
            )
        if not all(map(math.isfinite, (*self.boundaries_mm, *self.low_mm, *self.high_mm))):
            raise ValueError("positions and boundaries of leaves must be finite")
        if any(b <= a for a, b in zip(self.boundaries_mm, self.boundaries_mm[1:], strict=False)):
            raise ValueError("boundaries of leaves must rise")
        if any(low > high for low, high in zip(self.low_mm, self.high_mm, strict=True)):
            raise ValueError("leaves cross each other")

    def outline(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """What the open pairs reach along the leaves and across them; where all are closed, a millimetre."""
        pairs = zip(self.boundaries_mm, self.boundaries_mm[1:], self.low_mm, self.high_mm, strict=False)
        is_open = [pair for pair in pairs if pair[3] > pair[2]] or [(-0.5, 0.5, -0.5, 0.5)]
        along = (min(pair[2] for pair in is_open), max(pair[3] for pair in is_open))
        return along, (is_open[0][0], is_open[-1][1])

    def opening(self, at_mm: float) -> tuple[float, float]:
        """The ends of the opening of the pair at a place across the leaves; nothing beyond the outermost."""
        for first, last, low, high in zip(
            self.boundaries_mm, self.boundaries_mm[1:], self.low_mm, self.high_mm, strict=False
        ):
            if first <= at_mm < last:
                return low, high
        return at_mm, at_mm


@dataclass(frozen=True)
class Field:
    """One static photon field.

    Attributes:
        name: of the field.
        gantry_deg, collimator_deg: IEC 61217.
        jaws_mm: X1, X2, Y1, Y2 at the isocentre plane, along the collimator's axes; X1 < X2, Y1 < Y2.
        monitor_units: a fraction; the fields' shares before the plan is normalised.
        couch_deg: 0; others are not computed.
        leaves: what of the jaws' opening the leaves leave open; None: all of it.

    Raises:
        ValueError: jaws that are crossed or too wide, a turned couch, numbers that are not finite.
    """

    name: str
    gantry_deg: float
    jaws_mm: tuple[float, float, float, float]
    monitor_units: float
    collimator_deg: float = 0.0
    couch_deg: float = 0.0
    leaves: Leaves | None = None

    def __post_init__(self) -> None:
        x1, x2, y1, y2 = self.jaws_mm
        numbers = (*self.jaws_mm, self.gantry_deg, self.collimator_deg, self.monitor_units)
        if not all(map(math.isfinite, numbers)) or self.monitor_units < 0:
            raise ValueError(f"field {self.name}: angles, jaws and monitor units must be finite, got {numbers}")
        if not (x1 < x2 and y1 < y2) or max(map(abs, self.jaws_mm)) > _LARGEST_MM:
            raise ValueError(
                f"field {self.name}: jaws X1 < X2 and Y1 < Y2 within {_LARGEST_MM:g} mm, got {self.jaws_mm}"
            )
        if self.couch_deg:
            raise ValueError(f"field {self.name}: couch at {self.couch_deg:g} degrees; only 0 can be computed")

    @property
    def axes(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Unit vectors in RAS+: from the isocentre to the source, and Xg and Yg of the gantry."""
        g = math.radians(self.gantry_deg)
        to_source = np.array([-math.sin(g), math.cos(g), 0.0])
        return to_source, np.array([-math.cos(g), -math.sin(g), 0.0]), np.array([0.0, 0.0, 1.0])

    def on_gantry(self, xb: npt.NDArray[Any], yb: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Points of the collimator's frame in the gantry's, mm; seen from the source it turns counter-clockwise."""
        c = math.radians(self.collimator_deg)
        return xb * math.cos(c) - yb * math.sin(c), xb * math.sin(c) + yb * math.cos(c)

    def covers_isocenter(self) -> bool:
        """Whether the field is open at least 10 mm around the isocentre."""
        x1, x2, y1, y2 = self.jaws_mm
        if min(-x1, x2, -y1, y2) < _CLEAR_MM:
            return False
        if self.leaves is None:
            return True
        openings = [self.leaves.opening(at) for at in np.arange(-_CLEAR_MM, _CLEAR_MM + 1)]
        return all(low <= -_CLEAR_MM and high >= _CLEAR_MM for low, high in openings)

    def outline(self) -> npt.NDArray[np.float64]:
        """Corners of the field at the isocentre plane (4, 2), mm along Xg and Yg."""
        x1, x2, y1, y2 = self.jaws_mm
        return np.stack(self.on_gantry(np.array([x1, x2, x2, x1]), np.array([y1, y1, y2, y2])), -1)


@dataclass(frozen=True)
class Plan:
    """Fields about one isocentre, and the dose that they shall give.

    Attributes:
        template: its name.
        beam_quality: such as "15 MV"; what it stands for is in planning.json.
        isocenter_mm: x, y, z, RAS+, in the CT's frame.
        fields: with their monitor units a fraction.
        prescription_gy: of all fractions.
        fractions: how many.
        normalisation: where the prescription is met: "isocenter" or "median of target"; `AS_GIVEN`: nowhere.
        target: name of the target's contour; None: there is none.
        density_table: name of the table from HU to relative density.
        notes: what a reviewer has to know of how the plan came about.
    """

    template: str
    beam_quality: str
    isocenter_mm: tuple[float, float, float]
    fields: tuple[Field, ...]
    prescription_gy: float
    fractions: int
    normalisation: str = ISOCENTER
    target: str | None = None
    density_table: str = NUMBERS.density_table
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.beam_quality not in NUMBERS.beam.tpr_20_10:
            known = ", ".join(NUMBERS.beam.tpr_20_10)
            raise ValueError(f"beam quality {self.beam_quality!r} is not known: there are {known}")
        if not self.fields or self.prescription_gy <= 0 or self.fractions < 1:
            raise ValueError("a plan needs fields, a prescription above 0 Gy and at least one fraction")

    @property
    def tpr_20_10(self) -> float:
        """Tissue phantom ratio TPR20,10 of the beam quality."""
        return NUMBERS.beam.tpr_20_10[self.beam_quality]

    @property
    def source_to_axis_mm(self) -> float:
        return NUMBERS.beam.source_to_axis_mm

    @property
    def has_point_dose(self) -> bool:
        """Whether the dose at the isocentre is one of its numbers: never where that lies on a field's edge."""
        if self.normalisation == AS_GIVEN:
            return all(one.covers_isocenter() for one in self.fields)
        return self.normalisation == ISOCENTER

    @property
    def monitor_units(self) -> float:
        """Of all fields, a fraction."""
        return sum(one.monitor_units for one in self.fields)

    def scaled(self, factor: float) -> Plan:
        """With `factor` times the monitor units."""
        fields = tuple(replace(one, monitor_units=one.monitor_units * factor) for one in self.fields)
        return replace(self, fields=fields)

    def record(self) -> dict[str, Any]:
        """What plan.json says of it."""
        beam = {"tpr_20_10": self.tpr_20_10, "source_to_axis_mm": self.source_to_axis_mm}
        return {**asdict(self), **beam, "frame": "RAS+ mm of the CT; angles and jaws IEC 61217, supine, head first"}
