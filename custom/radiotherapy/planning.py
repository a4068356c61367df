"""A plan on one CT: contours, fields, monitor units and dose. What cannot be planned is a result, with its reason."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from custom.networks import SegmentationUNet
from custom.radiotherapy.contours import (
    Contours,
    NotPossible,
    Structure,
    external_contour,
    organ_masks,
    require_chest,
)
from custom.radiotherapy.dose_engine import DoseEngine
from custom.radiotherapy.dose_metrics import dose_at, structure_numbers, volume_at_dose
from custom.radiotherapy.isocenter_rule import inside
from custom.radiotherapy.plan_templates import cut_notes, unnormalised_plan
from custom.radiotherapy.planning_ct import PlanningCT
from custom.radiotherapy.planning_numbers import NUMBERS, find_template
from custom.radiotherapy.relative_density import relative_density
from custom.radiotherapy.target_rules import breast, chest_wall
from custom.radiotherapy.treatment_plan import ISOCENTER, Plan

__all__ = ["PlannedCase", "contour", "dose_numbers", "external_alone", "plan_case"]

FloatArray = npt.NDArray[np.float32]

_TARGETS = {"Breast": breast, "Chestwall": chest_wall}


@dataclass(frozen=True)
class PlannedCase:
    """A CT with its contours, a plan made on it, and the dose of all fractions.

    Attributes:
        ct: the CT.
        contours: found on it.
        plan: with monitor units that meet the prescription on this CT.
        dose_gy: (X, Y, Z) Gy, of all fractions.
    """

    ct: PlanningCT
    contours: Contours
    plan: Plan
    dose_gy: FloatArray


def external_alone(ct: PlanningCT) -> Contours:
    """The external: all that a dose needs.

    Raises:
        NotPossible: no body.
    """
    origin = "above -500 HU, opened, largest piece, holes filled"
    return Contours({"External": Structure("External", "EXTERNAL", external_contour(ct), origin)})


def contour(ct: PlanningCT, segmenter: SegmentationUNet, target: str | None = None) -> Contours:
    """External, lungs, heart and spine, and a target.

    Args:
        ct: the CT.
        segmenter: `custom.networks.segmentation_unet.load_segmenter`.
        target: such as "Breast_L"; None: none.

    Raises:
        NotPossible: no body, or no two lungs where they belong.
    """
    outline = external_alone(ct).structures["External"]
    external = outline.mask
    organs = {name: mask & external for name, mask in organ_masks(ct, segmenter).items()}
    require_chest(ct, organs)
    found = [outline]
    missing = {}
    for name, mask in organs.items():
        if mask.any():
            found.append(Structure(name, "ORGAN", mask, "found by a network, largest piece"))
        else:
            missing[name] = "the network that finds organs finds none"
    if target is not None:
        kind, side = target.rsplit("_", 1)
        mask_or_reason = _TARGETS[kind](ct, {"External": external, **organs}, side)
        if isinstance(mask_or_reason, str):
            missing[target] = mask_or_reason
        else:
            found.append(Structure(target, "CTV", mask_or_reason, "by rule, see target_rules"))
    return Contours({one.name: one for one in found}, missing)


def plan_case(ct: PlanningCT, template: str | Plan, contours: Contours, engine: DoseEngine) -> PlannedCase:
    """Make a template's plan on a CT, or take one that is given, and compute its dose.

    Raises:
        ValueError: an unknown template.
        NotPossible: no such plan on this CT.
    """
    masks = {name: one.mask for name, one in contours.structures.items()}
    if isinstance(template, Plan):
        return _as_given(ct, template, contours, engine)
    target = find_template(template).target
    if target is not None:
        contours.mask(target)
    plan = unnormalised_plan(template, ct, masks)
    density = relative_density(ct.hu, masks["External"], plan.density_table)
    dose = engine.dose(density, ct.grid, plan)
    if plan.normalisation == ISOCENTER:
        where = dose_at(ct, dose, plan.isocenter_mm)
    else:
        where = float(np.median(dose[contours.mask(str(plan.target))]))
    if where <= 0:
        raise NotPossible(f"the fields give no dose where the plan is normalised ({plan.normalisation})")
    factor = plan.prescription_gy / plan.fractions / where
    plan, dose = plan.scaled(factor), dose * np.float32(factor * plan.fractions)
    if plan.target is not None:
        covered = volume_at_dose(dose, contours.mask(plan.target), 0.9 * plan.prescription_gy)
        if covered < NUMBERS.acceptable_v90_percent:
            note = (
                f"V90 of {plan.target} is {covered:.0f} %, an acceptable plan has {NUMBERS.acceptable_v90_percent:g} %"
            )
            plan = replace(plan, notes=(*plan.notes, note))
    return PlannedCase(ct, contours, plan, dose)


def _as_given(ct: PlanningCT, plan: Plan, contours: Contours, engine: DoseEngine) -> PlannedCase:
    external = contours.mask("External")
    if not inside(ct, external, plan.isocenter_mm):
        x, y, z = plan.isocenter_mm
        raise NotPossible(f"the plan's isocentre ({x:.0f}, {y:.0f}, {z:.0f}) mm lies outside the body")
    plan = replace(plan, notes=(*plan.notes, *cut_notes(ct, external, plan)))
    dose = engine.dose(relative_density(ct.hu, external, plan.density_table), ct.grid, plan)
    return PlannedCase(ct, contours, plan, dose * np.float32(plan.fractions))


def dose_numbers(ct: PlanningCT, contours: Contours, plan: Plan, dose_gy: FloatArray) -> dict[str, float]:
    """All numbers of one dose: in every structure, and at the isocentre where the plan is normalised there.

    The isocentre of half-beam blocked fields lies on their edge, where a millimetre changes the dose by percents.

    Args:
        ct: that the dose was computed on.
        contours: of the patient in whom it is asked for.
        plan: that gave the dose.
        dose_gy: (X, Y, Z) Gy of all fractions.
    """
    numbers = {}
    if plan.has_point_dose:
        numbers["isocenter_gy"] = dose_at(ct, dose_gy, plan.isocenter_mm)
    for name, one in contours.structures.items():
        if one.kind != "EXTERNAL":
            numbers |= structure_numbers(dose_gy, one.mask, plan.prescription_gy, name, one.kind == "CTV")
    return numbers
