"""From a template and a CT's contours to a plan: isocentre, gantry angles and jaws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from custom.radiotherapy.beam_paths import cut_share
from custom.radiotherapy.contours import NotPossible
from custom.radiotherapy.isocenter_rule import inside, thoracic_spine_isocenter
from custom.radiotherapy.planning_ct import PlanningCT
from custom.radiotherapy.planning_numbers import NUMBERS, PlanTemplate, find_template
from custom.radiotherapy.treatment_plan import Field, Plan

__all__ = ["cut_notes", "unnormalised_plan"]

Masks = Mapping[str, npt.NDArray[np.bool_]]

_NAMES = {0.0: "AP", 180.0: "PA"}


def unnormalised_plan(name: str, ct: PlanningCT, masks: Masks) -> Plan:
    """A template's plan on a CT; its fields' monitor units are their shares of the sum, which is 1.

    Args:
        name: of the template.
        ct: the CT.
        masks: "External", "Lung_L", "Lung_R" and the template's target, bool (X, Y, Z).

    Raises:
        ValueError: an unknown template.
        NotPossible: the isocentre lies outside the body, or the volume cuts too much of a field.
    """
    template = find_template(name)
    make = _isocentric if template.technique == "isocentric" else _tangents
    plan = make(name, template, ct, masks)
    return replace(plan, notes=(*plan.notes, *cut_notes(ct, masks["External"], plan)))


def cut_notes(ct: PlanningCT, external: npt.NDArray[np.bool_], plan: Plan) -> list[str]:
    """What a reviewer has to know of the fields that the volume cuts.

    Raises:
        NotPossible: it cuts too much of one.
    """
    notes = []
    for field, share in zip(plan.fields, cut_share(ct, external, plan), strict=True):
        if share > NUMBERS.largest_cut_share:
            raise NotPossible(
                f"field {field.name}: {100 * share:.0f} % of it are cut by the volume's side, at most "
                f"{100 * NUMBERS.largest_cut_share:g} % may be: the body there is not known"
            )
        if share > 0:
            notes.append(
                f"{100 * share:.1f} % of field {field.name} are cut by the volume's side; its dose there is not known"
            )
    return notes


def _isocentric(name: str, template: PlanTemplate, ct: PlanningCT, masks: Masks) -> Plan:
    assert template.jaws_mm is not None
    fields = tuple(
        Field(_NAMES.get(angle, f"G{angle:g}"), angle, template.jaws_mm, weight)
        for angle, weight in zip(template.gantry_deg, template.weights, strict=True)
    )
    return _plan(name, template, thoracic_spine_isocenter(ct, masks), fields)


def _plan(
    name: str,
    template: PlanTemplate,
    isocenter: tuple[float, float, float],
    fields: tuple[Field, ...],
    notes: tuple[str, ...] = (),
) -> Plan:
    return Plan(
        template=name,
        beam_quality=template.beam_quality,
        isocenter_mm=isocenter,
        fields=fields,
        prescription_gy=template.prescription_gy,
        fractions=template.fractions,
        normalisation=template.normalisation,
        target=template.target,
        notes=notes,
    )


def _tangents(name: str, template: PlanTemplate, ct: PlanningCT, masks: Masks) -> Plan:
    """Two opposed half-beam blocked fields: their common central plane is the border towards the lung.

    Of all gantry angles the one is taken that covers the target best, and of equals the one with the least lung. The
    border lies `margin_mm` behind the target, but never lets more than `deepest_lung_mm` of lung into the field.
    """
    assert template.target is not None
    rule, side = NUMBERS.tangents, template.target[-1]
    target, lung = masks[template.target], masks[f"Lung_{side}"]
    axes = [ct.grid.axis_mm(axis).double().numpy() for axis in range(3)]
    length = np.flatnonzero(target.any((0, 1)))
    low, high = rule.medial_gantry_left_deg
    angles = np.arange(low, high + 1e-6, rule.step_deg)
    if side == "R":
        angles = 360.0 - angles
    points = _points(target, axes)
    lung_points = _points(lung[:, :, length[0] : length[-1] + 1], [axes[0], axes[1], axes[2][length[0] :]])
    best: tuple[tuple[float, float], float, float] | None = None
    for angle in angles:
        outward = _outward(float(angle), side)
        depth, lung_depth = points @ outward, lung_points @ outward
        border = float(np.percentile(depth, rule.covered_percentile)) - rule.margin_mm
        border = max(border, float(lung_depth.max()) - rule.deepest_lung_mm)
        covered = round(float((depth > border).mean()), 2)
        score = (covered, -float((lung_depth > border).sum()))
        if best is None or score > best[0]:
            best = (score, float(angle), border)
    assert best is not None
    (covered, _), angle, border = best
    outward = _outward(angle, side)
    medial = Field("medial", angle, (-1.0, 1.0, -1.0, 1.0), template.weights[0])
    to_source = medial.axes[0]
    along = points @ to_source
    z = axes[2][length]
    middle = outward * border + to_source * (float(along.min()) + float(along.max())) / 2
    isocenter = (float(middle[0]), float(middle[1]), float(z[0] + z[-1]) / 2)
    if not inside(ct, masks["External"], isocenter):
        raise NotPossible(
            f"the isocentre ({', '.join(f'{c:.0f}' for c in isocenter)}) mm of the tangents lies outside the body"
        )
    width = float((points @ outward).max()) - border + NUMBERS.breast.rim_mm + rule.flash_mm
    half = float(z[-1] - z[0]) / 2 + rule.length_margin_mm
    fields = []
    for field_name, gantry, weight in (
        (f"medial {side}", angle, template.weights[0]),
        (f"lateral {side}", (angle + 180.0) % 360.0, template.weights[1]),
    ):
        open_side = Field(field_name, gantry, (-1.0, 1.0, -1.0, 1.0), weight).axes[1] @ outward > 0
        jaws = (0.0, width, -half, half) if open_side else (-width, 0.0, -half, half)
        fields.append(Field(field_name, gantry, jaws, weight))
    deepest = max(0.0, float((lung_points @ outward).max()) - border)
    note = f"tangents at {angle:g} degrees cover {100 * covered:.0f} % of {template.target}, {deepest:.0f} mm of lung"
    return _plan(name, template, isocenter, tuple(fields), (note,))


def _points(mask: npt.NDArray[np.bool_], axes: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    return np.stack([axes[a][index] for a, index in enumerate(np.nonzero(mask))], axis=-1)


def _outward(gantry_deg: float, side: str) -> npt.NDArray[np.float64]:
    """Across the beam, towards the breast: anterior and to its side."""
    g = math.radians(gantry_deg)
    across = np.array([-math.cos(g), -math.sin(g), 0.0])
    wanted = np.array([1.0 if side == "R" else -1.0, 1.0, 0.0])
    return across if across @ wanted > 0 else -across
