"""The page of a plan: one offline HTML file with the dose, what it rests on, and how wrong it may be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from custom.radiotherapy import (
    INTERVAL_PERCENT,
    NUMBERS,
    Contours,
    DoseInterval,
    Mode,
    ModeResult,
    Patient,
    Plan,
    SampleDoses,
)
from custom.radiotherapy.dose_metrics import dvh
from custom.radiotherapy.sample_intervals import dvh_doses
from custom.report.document import Markup, hashes, image, write_page
from custom.report.patient_head import patient_facts, patient_line, running_head
from custom.report.plan_pictures import ISODOSES, dvh_picture, fields_picture, isodose_picture
from custom.report.volume_pictures import planes_picture

__all__ = ["LIMITS", "PlanContent", "write_plan_page"]

_NOT_NAMED = "not named"
STAMP = "SYNTHETIC CT, RESEARCH PLAN, NOT FOR TREATMENT"
LIMITS = (
    "Research, not clinical. Before anything is done with it, a clinic draws its own contours and computes the dose "
    "again in its own planning system, and reviews both.",
    "The beam is none that was measured: a beam quality and a penumbra, no head scatter, no profile. Doses mean "
    "something relative to each other; monitor units only by the definition above.",
    "Density is taken into account along each ray alone: in and behind lung the dose is wrong by some percent. Doses "
    "near the skin mean nothing.",
    "What lies outside the volume (a cube of 320 mm where it was reconstructed) is air. The table of the plan says how "
    "much of a field that concerns.",
    "Contours are drafts of a network and of simple rules, nobody has drawn them.",
    "An interval over samples shows where the model's samples differ. It does not know of errors that they share. That "
    "of the dose at the isocentre is calibrated, and speaks of patients like the calibrated alone.",
)
MODE_WORDS: dict[Mode, tuple[str, str]] = {
    "delivered": (
        "delivered",
        "contours, isocentre, plan and monitor units made on the reconstruction, dose on the true CT: what would "
        "happen to the patient",
    ),
    "same_mu": ("same MU", "contours, plan and monitor units of the true CT, dose on both"),
    "papers": ("papers", "each CT planned by itself; rewards a reconstruction that agrees with itself"),
}
ERROR_WORDS = {
    "isocenter_error_percent": "dose at the isocentre, reconstruction minus truth, %",
    "gamma_2_2_percent": "gamma 2 %/2 mm, points that pass, %",
    "gamma_3_3_percent": "gamma 3 %/3 mm, points that pass, %",
    "dose_mae_percent": "mean absolute dose error, % of the prescription",
    "wepl_field_mm": "error of the water-equivalent path over the fields, mm",
    "isocenter_distance_mm": "distance of the two isocentres, mm",
    "monitor_units_error_percent": "monitor units, reconstruction minus truth, %",
}
_ENDINGS = {
    "_mean_gy": "mean dose, Gy",
    "_d2_gy": "D2 (near maximum), Gy",
    "_v90_percent": "V90 % of the prescription, %",
    "_v95_percent": "V95 % of the prescription, %",
    "_v107_percent": "V107 % of the prescription, %",
    "_v20gy_percent": "V20 Gy, %",
}


@dataclass(frozen=True)
class PlanContent:
    """What a plan's page is made of.

    Attributes:
        patient: the CT, its contours and its plan, or why there is none.
        template: name of the template.
        source: what the CT is, in words: name and value.
        header: of a slice of the CT, which says whose it is; None: there is none.
        engine: name of the dose engine.
        numbers: of `dose_numbers`; empty without a plan.
        warnings: one sentence each.
        verdict: of the reconstruction, in words; None for a CT that is none.
        samples: what they say; None: there are none.
        modes: comparison with the true CT; empty: there is none.
        true_contours: of the true CT.
        files: SHA-256 by name.
        isocenter_dose: what the patient gets there; None: nothing is known of this kind of plan.
    """

    patient: Patient
    template: str
    source: Mapping[str, str]
    header: Dataset | None
    engine: str
    numbers: Mapping[str, float]
    warnings: Sequence[str] = ()
    verdict: str | None = None
    samples: SampleDoses | None = None
    modes: Mapping[Mode, ModeResult] = field(default_factory=dict)
    true_contours: Contours | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    isocenter_dose: DoseInterval | None = None


def write_plan_page(path: str | os.PathLike[str], content: PlanContent) -> Path:
    """Write the page, whole or not at all."""
    folder = resources.files("custom.report") / "assets"
    patient, case = content.patient, content.patient.case
    whose = patient_facts([content.header], _NOT_NAMED)
    subject = patient_line(whose, _NOT_NAMED)
    page: dict[str, Any] = {
        "template": "plan.html",
        "title": f"Plan {content.template}",
        "subject": subject,
        "style": (folder / "reconstruction.css").read_text(encoding="utf-8")
        + running_head(f"{subject} · plan {content.template}"),
        "stamp": STAMP,
        "facts": {**whose, **content.source},
        "verdict": content.verdict,
        "warnings": list(content.warnings),
        "reason": patient.reason,
        "limits": LIMITS,
        "contours": _contours(patient),
        "modes": _modes(content.modes),
        "mode_words": [MODE_WORDS[mode] for mode in content.modes],
        "impossible": [[MODE_WORDS[mode][0], one.reason] for mode, one in content.modes.items() if not one.possible],
        "files": [[name, hashes(digest)] for name, digest in content.files.items()],
        "plan": None,
    }
    if case is None:
        words = "Axial, coronal and sagittal plane through the middle of the CT"
        page["planes"] = image(planes_picture(patient.ct.hu, patient.ct.grid.spacing_mm), words, photograph=True)
        return write_page(path, **page)
    page |= {
        "plan": _plan(case.plan, content.engine, content.isocenter_dose),
        "fields": _fields(case.plan),
        "isodoses": image(isodose_picture(case), "Isodoses over the CT in three planes", photograph=True),
        "levels": ", ".join(f"{level} %" for level in ISODOSES),
        "beams": image(fields_picture(case), "The fields as seen from their sources", photograph=True),
        "dvh": _dvh(content),
        "sample_count": max((one.count for one in content.samples.intervals.values()), default=0)
        if content.samples
        else 0,
        "interval": " to ".join(f"{percent:g}th" for percent in INTERVAL_PERCENT),
        "numbers": _numbers(content),
        "coverage": _coverage(content),
    }
    return write_page(path, **page)


def _plan(plan: Plan, engine: str, isocenter_dose: DoseInterval | None) -> list[list[str]]:
    x, y, z = plan.isocenter_mm
    return [
        ["prescription", f"{plan.prescription_gy:g} Gy in {plan.fractions} fraction{'s'[: plan.fractions > 1]}"],
        ["normalised to", plan.normalisation.replace("target", str(plan.target)).replace("isocenter", "isocentre")],
        ["isocentre", f"{x:.1f}, {y:.1f}, {z:.1f} mm (RAS+, the CT's frame)"],
        *([["dose at the isocentre", str(isocenter_dose)]] if isocenter_dose else []),
        [
            "beam quality",
            f"{plan.beam_quality}, TPR20,10 {plan.tpr_20_10:g}; source to axis {plan.source_to_axis_mm:g} mm",
        ],
        ["monitor unit", "1 cGy at 10 cm depth in water, 10 x 10 cm, isocentre at that depth"],
        ["density", f"table “{plan.density_table}”: {NUMBERS.density_tables[plan.density_table].source}"],
        ["dose engine", engine],
        ["patient's position", "supine, head first, by the axes of the CT"],
    ]


def _fields(plan: Plan) -> list[list[str]]:
    return [
        [
            one.name,
            f"{one.gantry_deg:g}°",
            f"{one.collimator_deg:g}°",
            *(f"{jaw:.0f}" for jaw in one.jaws_mm),
            f"{one.monitor_units:.1f}",
        ]
        for one in plan.fields
    ]


def _contours(patient: Patient) -> list[list[str]]:
    voxel_cm3 = float(np.prod(patient.ct.grid.spacing_mm)) / 1000
    rows = [
        [name, f"{one.mask.sum() * voxel_cm3:.0f}", one.origin] for name, one in patient.contours.structures.items()
    ]
    return rows + [[name, "–", reason] for name, reason in patient.contours.missing.items()]


def _label(name: str, structures: Iterable[str]) -> str:
    """A number's name in words, such as "Lung_L, mean dose, Gy".

    Args:
        name: of `dose_numbers`.
        structures: names as they are written.
    """
    if name == "isocenter_gy":
        return "isocentre, Gy"
    ending = next((one for one in _ENDINGS if name.endswith(one)), "")
    key = name.removesuffix(ending)
    written = next((one for one in structures if one.lower() == key), key)
    return f"{written}, {_ENDINGS[ending]}" if ending else name


def _number(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.2f}"


def _numbers(content: PlanContent) -> list[list[str]]:
    """Each number on the plan's own CT, its interval over the samples, and what the true CT receives."""
    delivered = content.modes.get("delivered")
    rows = []
    for name, value in content.numbers.items():
        row = [_label(name, content.patient.contours.structures), _number(value)]
        if content.samples:
            found = content.samples.intervals.get(name)
            row.append(f"{found.low:.2f} to {found.high:.2f} ({found.median:.2f})" if found else "–")
        if delivered is not None:
            row.append(_number(delivered.true.get(name)))
        rows.append(row)
    return rows


def _coverage(content: PlanContent) -> str:
    delivered = content.modes.get("delivered")
    share = content.samples.coverage(delivered.true) if content.samples and delivered else None
    return "" if share is None else f"{100 * share:.0f}"


def _modes(modes: Mapping[Mode, ModeResult]) -> list[list[str]]:
    """Errors by mode, a row each; where a mode has no plan its column is a dash."""
    names = [name for name in ERROR_WORDS if any(name in one.errors for one in modes.values())]
    return [[ERROR_WORDS[name], *(_number(one.errors.get(name)) for one in modes.values())] for name in names]


def _dvh(content: PlanContent) -> Markup:
    case = content.patient.case
    assert case is not None
    doses = dvh_doses(case.plan.prescription_gy)
    drawn = {name: one for name, one in case.contours.structures.items() if one.kind != "EXTERNAL"}
    curves = {name: dvh(case.dose_gy, one.mask, doses) for name, one in drawn.items()}
    of_samples = content.samples.histograms if content.samples else {}
    bands = {name: np.percentile(rows, INTERVAL_PERCENT, axis=0) for name, rows in of_samples.items()}
    delivered, true = content.modes.get("delivered"), {}
    if content.true_contours is not None and delivered is not None and delivered.true_dose_gy is not None:
        true = {
            name: dvh(delivered.true_dose_gy, one.mask, doses)
            for name, one in content.true_contours.structures.items()
            if name in curves
        }
    return image(dvh_picture(doses, curves, bands, true), "Dose-volume histograms of the structures")
