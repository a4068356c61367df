"""The numbers of planning.json: density table, beam, rules of contours and isocentre, templates of plans."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Literal

from custom.core.json_models import StrictModel

__all__ = ["NUMBERS", "PlanTemplate", "PlanningNumbers", "dose_rules", "find_template"]

Range = tuple[float, float]


class DensityTable(StrictModel):
    """HU and relative density (of water), each rising."""

    hu: tuple[float, ...]
    relative_density: tuple[float, ...]
    source: str


class ExternalRule(StrictModel):
    threshold_hu: float
    opening_mm: float


class BeamNumbers(StrictModel):
    """The beam: none that was measured. `tpr_20_10` by beam quality is what the engine takes."""

    source_to_axis_mm: float
    penumbra_fwhm_mm: float
    kernel_reach_mm: float
    tpr_20_10: dict[str, float]


class ChestRule(StrictModel):
    smallest_lung_cm3: float
    lung_median_hu: Range


class IsocenterRule(StrictModel):
    in_front_of_posterior_lung_mm: float
    slab_mm: float
    posterior_percentile: float


class BreastRule(StrictModel):
    wall_mm: float
    rim_mm: float
    from_midline_mm: float
    from_middle_mm: float
    opening_mm: float
    smallest_cm3: float
    thinnest_mm: float
    thickness_percentile: float
    lung_height_share: Range


class ChestWallRule(StrictModel):
    depth_mm: float
    rim_mm: float
    from_midline_mm: float
    from_middle_mm: float
    smallest_cm3: float
    lung_height_share: Range


class TangentRule(StrictModel):
    medial_gantry_left_deg: Range
    step_deg: float
    covered_percentile: float
    margin_mm: float
    deepest_lung_mm: float
    flash_mm: float
    length_margin_mm: float


class PlanTemplate(StrictModel):
    """What of a plan does not depend on the patient."""

    technique: Literal["isocentric", "tangents"]
    beam_quality: str
    prescription_gy: float
    fractions: int
    normalisation: Literal["isocenter", "median of target"]
    weights: tuple[float, ...]
    gantry_deg: tuple[float, ...] = ()
    jaws_mm: tuple[float, float, float, float] | None = None
    target: str | None = None


class PlanningNumbers(StrictModel):
    """All of planning.json."""

    density_table: str
    density_tables: dict[str, DensityTable]
    external: ExternalRule
    dose_grid_mm: float
    beam: BeamNumbers
    chest: ChestRule
    isocenter: IsocenterRule
    largest_cut_share: float
    acceptable_v90_percent: float
    breast: BreastRule
    chest_wall: ChestWallRule
    tangents: TangentRule
    templates: dict[str, PlanTemplate]


_FILE = (resources.files("custom.radiotherapy") / "planning.json").read_bytes()
NUMBERS = PlanningNumbers.model_validate_json(_FILE)


def dose_rules(engine: str, segmenter_sha256: str) -> dict[str, str]:
    """All that plan and dose on a CT depend on, beside the template: engine, SHA-256 of the contours' weights and of
    planning.json.

    Args:
        engine: name of the dose engine.
        segmenter_sha256: of the weights that contour lungs, heart and spine.
    """
    planning_sha256 = hashlib.sha256(_FILE).hexdigest()
    return {"engine": engine, "segmenter_sha256": segmenter_sha256, "planning_sha256": planning_sha256}


def find_template(name: str) -> PlanTemplate:
    """The template of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in NUMBERS.templates:
        raise ValueError(f"template {name!r} is not known: there are {', '.join(NUMBERS.templates)}")
    return NUMBERS.templates[name]
