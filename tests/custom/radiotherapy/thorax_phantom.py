"""A thorax of ellipsoids with lungs, heart, spine and breasts, whose masks are known; and boxes of water."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from custom.geometry import VolumeGrid
from custom.radiotherapy import (
    Contours,
    DoseEngine,
    Field,
    NotPossible,
    Patient,
    Plan,
    PlanningCT,
    Structure,
    plan_case,
)
from custom.radiotherapy.target_rules import breast

GRID = VolumeGrid((72, 60, 56), (5.0, 5.0, 5.0))


def _ellipsoid(grid: VolumeGrid, center: tuple[float, ...], half: tuple[float, ...]) -> np.ndarray:
    points = grid.points().numpy()
    return (((points - np.array(center)) / np.array(half)) ** 2).sum(-1) < 1


def thorax(breasts: bool = True, grid: VolumeGrid = GRID) -> tuple[PlanningCT, dict[str, np.ndarray]]:
    """The CT and its masks; the vertebral bodies' axis is at x = 0, y = -55 mm."""
    high = 1e6
    body = _ellipsoid(grid, (0, 0, 0), (150, 105, high))
    masks = {
        "Lung_L": _ellipsoid(grid, (-72, -5, 0), (50, 70, 130)),
        "Lung_R": _ellipsoid(grid, (72, -5, 0), (50, 70, 130)),
        "Heart": _ellipsoid(grid, (-15, 30, -30), (45, 40, 50)),
        "Spine": _ellipsoid(grid, (0, -55, 0), (18, 18, high)),
    }
    masks["Lung_L"] &= ~masks["Heart"]
    front = _ellipsoid(grid, (-75, 85, 0), (60, 50, 65)) | _ellipsoid(grid, (75, 85, 0), (60, 50, 65))
    if breasts:
        body = body | front
    hu = np.full(grid.shape, -1000.0, dtype=np.float32)
    hu[body] = 20.0
    if breasts:
        hu[front & ~_ellipsoid(grid, (0, 0, 0), (145, 100, high))] = -50.0
    hu[masks["Lung_L"] | masks["Lung_R"]] = -750.0
    hu[masks["Spine"]] = 200.0
    return PlanningCT(hu, grid), {"External": body, **masks}


def contoured(ct: PlanningCT, masks: dict[str, np.ndarray], target: str | None = None) -> Contours:
    """Contours of known masks, and a target by rule."""
    found = {name: Structure(name, "EXTERNAL" if name == "External" else "ORGAN", m, "") for name, m in masks.items()}
    if target is None:
        return Contours(found)
    mask = breast(ct, masks, target[-1])
    if isinstance(mask, str):
        return Contours(found, {target: mask})
    return Contours({**found, target: Structure(target, "CTV", mask, "")})


def patient(
    ct: PlanningCT, masks: dict[str, np.ndarray], engine: DoseEngine, template: str = "ap_pa", target: str | None = None
) -> Patient:
    """With a plan, or the reason why there is none."""
    contours = contoured(ct, masks, target)
    try:
        return Patient(ct, contours, plan_case(ct, template, contours, engine))
    except NotPossible as error:
        return Patient(ct, contours, None, str(error))


def with_hu(ct: PlanningCT, hu: np.ndarray) -> PlanningCT:
    return replace(ct, hu=hu.astype(np.float32))


def plan(
    *fields: Field, beam_quality: str = "6 MV", isocenter_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Plan:
    """One fraction of 2 Gy."""
    return Plan("test", beam_quality, isocenter_mm, fields, 2.0, 1)


def field(gantry_deg: float = 0.0, jaws_mm: tuple[float, ...] = (-50, 50, -50, 50), **more: float) -> Field:
    x1, x2, y1, y2 = jaws_mm
    return Field("f", gantry_deg, (x1, x2, y1, y2), **{"monitor_units": 100.0, **more})
