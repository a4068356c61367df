"""What plans on reconstructions give to the isocentre in a CT that is known: for calibrations, and to test them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from custom.geometry import VolumeGrid
from custom.networks import SegmentationUNet
from custom.radiotherapy import (
    Patient,
    PencilBeamEngine,
    PlanningCT,
    delivered_at_isocenter,
    dose_rules,
    external_alone,
    find_template,
    plan_patient,
    planning_ct,
)
from custom.radiotherapy.planning_ct import AIR_HU
from custom.radiotherapy.treatment_plan import ISOCENTER
from custom.trust.body_measures import loaded_segmenter
from custom.trust.calibrated_intervals import DoseIntervals
from custom.trust.reference_ct import ReferenceCT

__all__ = ["DeliveredDoses", "Doses", "kept_doses"]

#: By template, Gy of all fractions; None where no plan was possible.
Doses = dict[str, float | None]
#: An isocentre that the reconstruction puts outside of the body gets next to nothing; errors are logarithms.
_LEAST = 0.01


class DeliveredDoses:
    """Plans on reconstructions, as `fewview-ct plan` makes them, and their dose at the isocentre in the true CT.

    Args:
        templates: of planning.json, normalised at their isocentre.

    Attributes:
        rules: of `dose_rules`.

    Raises:
        ValueError: another template, or none of this name.
        FileNotFoundError: seg_guidance is not installed.
        ModuleNotFoundError: the extra radiotherapy is not.
    """

    def __init__(self, templates: Sequence[str]) -> None:
        for name in templates:
            if find_template(name).normalisation != ISOCENTER:
                raise ValueError(f"{name} gives no dose to its isocentre that could be calibrated: take ap_pa or pa")
        found = loaded_segmenter()
        if found is None:
            raise FileNotFoundError("plans need contours of seg_guidance, which is not installed")
        self.templates, self._engine = tuple(templates), PencilBeamEngine()
        self._segmenter: SegmentationUNet = found[0]
        self.rules = dose_rules(self._engine.name, found[1])

    def __call__(self, hu: Tensor, grid: VolumeGrid, ct: ReferenceCT) -> tuple[Doses, Doses]:
        """Doses as planned on a reconstruction, and as delivered to the patient.

        Args:
            hu: reconstruction (X, Y, Z), HU.
            grid: of it, around the isocentre.
            ct: the true CT.
        """
        shown = planning_ct(hu.numpy(), grid.affine())
        true = PlanningCT(np.maximum(ct.on_grid(shown.grid).numpy(), AIR_HU), shown.grid)
        patient = Patient(true, external_alone(true), None)
        planned: Doses = {}
        delivered: Doses = {}
        for name in self.templates:
            estimate = plan_patient(shown, name, self._segmenter, self._engine)
            doses = delivered_at_isocenter(estimate, patient, self._engine)
            planned[name], delivered[name] = doses or (None, None)
            if doses is not None:
                delivered[name] = max(doses[1], _LEAST * doses[0])
        return planned, delivered

    def intervals(
        self, stated: DoseIntervals, hu: Tensor, grid: VolumeGrid, ct: ReferenceCT
    ) -> dict[str, dict[str, float]]:
        """By template "lower" and "upper" as calibrated, and "truth", the dose delivered; Gy of all fractions.

        Args:
            stated: of the reconstruction.
            hu, grid, ct: as above.

        Raises:
            ValueError: they were calibrated by other rules.
        """
        if dict(stated.rules) != self.rules:
            raise ValueError(f"doses were calibrated by {dict(stated.rules)}, and these are by {self.rules}")
        planned, delivered = self(hu, grid, ct)
        found = {}
        for name in self.templates:
            shown, true = planned[name], delivered[name]
            if shown is not None and true is not None:
                lower, upper = stated.templates[name].around(shown, positive=True)
                found[name] = {"lower": lower, "upper": upper, "truth": true}
        return found


@functools.lru_cache(maxsize=1)
def kept_doses(templates: tuple[str, ...]) -> DeliveredDoses:
    """Kept by a process that works on many cases."""
    return DeliveredDoses(templates)
