"""The verb `fewview-ct plan`: a plan and its dose on a CT or on a reconstruction, and how wrong it may be."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from custom import __version__
from custom.cli.exit_codes import ExitCode
from custom.core.atomic_directory import atomic_directory, check_free
from custom.core.devices import usable_device
from custom.core.files import read_json_object, sha256_file, write_json, write_nifti
from custom.models import SEGMENTER, find_model
from custom.networks.segmentation_unet import load_segmenter
from custom.radiotherapy import (
    INTERVAL_PERCENT,
    RT_FILES,
    CalibratedDoses,
    CTReference,
    DoseInterval,
    ModeResult,
    Patient,
    PencilBeamEngine,
    Plan,
    PlanningCT,
    SampleDoses,
    compare_modes,
    dose_interval,
    dose_numbers,
    dose_rules,
    find_template,
    first_header,
    has_ct_series,
    plan_patient,
    read_calibrated_doses,
    read_ct_reference,
    read_planning_ct,
    read_rt_plan,
    sample_doses,
    write_rt_objects,
)
from custom.radiotherapy.contours import heart_warnings
from custom.radiotherapy.dose_metrics import dose_at, require_gamma
from custom.reconstruct.outputs import RESULT, series_sha256
from custom.reconstruct.result import FORMAT as RESULT_FORMAT
from custom.report.plan_page import LIMITS, PlanContent, write_plan_page
from custom.trust import Verdict

__all__ = ["command"]

logger = logging.getLogger(__name__)

FORMAT, PLAN = "fewview-ct plan 1", "plan.json"
OUTPUTS = ("dose.nii.gz", "dose_on_reference.nii.gz", "plan.html", PLAN, *RT_FILES)
#: Dice coefficient of the two bodies below which two CTs do not lie in one frame. A reconstruction from two radiographs
#: has 0.98 with its CT, and 0.53 with that CT half a chest further up.
_SAME_PLACE = 0.8


@dataclass(frozen=True)
class _Source:
    """A CT to plan on: its file, its DICOM series if there is one; of a reconstruction verdict, samples and limits."""

    ct: Path
    series: Path | None
    facts: dict[str, str]
    verdict: str | None = None
    samples: list[Path] = field(default_factory=list)
    doses: CalibratedDoses | str | None = None


def command(
    source: str,
    *,
    output: str,
    template: str = "ap_pa",
    plan: str | None = None,
    reference: str | None = None,
    segmenter: str = SEGMENTER,
    allow_reject: bool = False,
    dicom: bool | None = None,
    overwrite: bool = False,
    device: str | None = None,
) -> ExitCode:
    """Make a radiotherapy plan on a reconstruction or a CT, and say how wrong its dose may be. Research, not clinical.

    The output folder appears whole or not at all. It holds dose.nii.gz (Gy of all fractions), plan.json (fields,
    numbers, intervals, errors), plan.html (isodoses, fields seen from the beam, histograms, tables, limits) and, with a
    reference, dose_on_reference.nii.gz; beside a DICOM CT series also RT Structure Set, Plan and Dose. Where no plan is
    possible plan.json and plan.html say why.

    Args:
        source: folder that 'fewview-ct reconstruct' made, or a CT: a NIfTI or MetaImage file, or a folder with one
            DICOM series. Where the reconstruction has samples, every number gets its interval over them.
        output: folder to make.
        template: ap_pa, pa, breast_left, breast_right, chest_wall_left or chest_wall_right.
        plan: an RT Plan of a clinic, made on this very CT series: computed as it is, instead of a template's. What
            cannot be computed (electrons, arcs, wedges, another frame of reference) is refused.
        reference: the true CT in the same frame, if it is known: the errors are then written in three modes.
        segmenter: weights that contour lungs, heart and spine; seg_guidance by default.
        allow_reject: plan on a reconstruction whose verdict is REJECT.
        dicom: write rtstruct.dcm, rtplan.dcm and rtdose.dcm; by default where the CT is a DICOM series.
        overwrite: replace an output folder that is there.
        device: torch device of contours and doses; a GPU where there is one, else the CPU.

    Returns:
        0; 5 where no plan is possible.

    Raises:
        FileNotFoundError: a missing file.
        FileExistsError: the output exists.
        ValueError: a CT or device that cannot be used, a rejected reconstruction, a reference in another frame.
        ModuleNotFoundError: the extra radiotherapy is not installed.
    """
    start = time.perf_counter()
    if plan is None:
        find_template(template)
    elif template != "ap_pa":
        raise ValueError("--plan is computed as it is: give no --template beside it")
    where = usable_device(device)
    check_free(output, PLAN, overwrite, OUTPUTS)
    found = _find_source(Path(source), allow_reject)
    series = _series(found, dicom, plan)
    given: Plan | str = template
    if plan is not None:
        assert series is not None
        given = read_rt_plan(Path(plan), series)
        template = given.template
        found.facts["RT Plan"] = Path(plan).name
    weights = find_model(segmenter).model
    network = load_segmenter(weights).to(where)
    engine = PencilBeamEngine(where)
    if reference is not None:
        require_gamma()
    ct = read_planning_ct(found.ct)
    true_ct = None if reference is None else read_planning_ct(Path(reference), ct.grid)
    logger.info("planning %s on %s", template, found.ct)
    patient = plan_patient(ct, given, network, engine)
    modes, truth = {}, None
    if true_ct is not None:
        truth = plan_patient(true_ct, given, network, engine)
        _require_same_place(patient, truth, str(reference))
        modes = compare_modes(patient, truth, engine)
    samples = None
    if patient.case is not None and found.samples:
        logger.info("the same plan on %d samples", len(found.samples))
        samples = sample_doses(patient.case, _read_samples(found.samples, ct), network, engine)
    interval = None
    if patient.case is not None and found.doses is not None:
        planned_gy = dose_at(ct, patient.case.dose_gy, patient.case.plan.isocenter_mm)
        rules = dose_rules(engine.name, sha256_file(weights))
        interval = dose_interval(found.doses, patient.case.plan, planned_gy, rules)
    with atomic_directory(output, PLAN, overwrite, OUTPUTS) as folder:
        rt_ct = None if dicom is False else series
        _write(folder, found, rt_ct, template, engine.name, patient, truth, modes, samples, interval, start)
    if patient.case is None:
        logger.warning("%s: no plan is possible: %s", output, patient.reason)
        return ExitCode.NOT_POSSIBLE
    if interval is not None:
        logger.info("dose at the isocentre: %s", interval)
    logger.info("%s: %.1f s", output, time.perf_counter() - start)
    return ExitCode.DONE


def _series(source: _Source, dicom: bool | None, plan: str | None) -> CTReference | None:
    """The CT series that DICOM objects refer to, or that a given plan belongs to; None where neither is wanted.

    Raises:
        ValueError: it is wanted, and there is none or one that plans are not written for.
    """
    if source.series is None:
        if dicom or plan is not None:
            raise ValueError(
                f"{source.ct}: {'--plan' if plan else '--dicom'} needs a DICOM CT series, whose slices and frame of "
                "reference a plan refers to: plan on the series, or on a reconstruction that has a ct/ folder"
            )
        return None
    if dicom is False and plan is None:
        return None
    try:
        return read_ct_reference(source.series)
    except ValueError as error:
        if dicom or plan is not None:
            raise
        logger.warning("no DICOM RT objects are written: %s", error)
        return None


def _find_source(path: Path, allow_reject: bool) -> _Source:
    """What is to be planned on.

    Raises:
        FileNotFoundError, ValueError: it is not there, was changed, or is a reconstruction that was rejected.
    """
    if not (path / RESULT).is_file():
        return _Source(path, path if has_ct_series(path) else None, {"CT": path.name})
    content = read_json_object(path / RESULT)
    if content.get("format") != RESULT_FORMAT:
        raise ValueError(f"{path / RESULT}: format {content.get('format')!r}, expected {RESULT_FORMAT!r}")
    verdict = content.get("verdict")
    if verdict not in [one.value for one in Verdict]:
        raise ValueError(f"{path / RESULT}: verdict {verdict!r} is none of {', '.join(one.value for one in Verdict)}")
    if verdict == Verdict.REJECT.value and not allow_reject:
        raise ValueError(
            f"{path}: the verdict of this reconstruction is REJECT, see its report.html; nothing is planned on it "
            "unless --allow_reject is given"
        )
    hashes, ct = content.get("files"), path / "ct.nii.gz"
    if not isinstance(hashes, dict):
        raise ValueError(f"{path / RESULT}: 'files' is no object with the SHA-256 of each file; reconstruct again")
    files = {one.relative_to(path).as_posix(): one for one in (ct, *sorted((path / "samples").glob("*.nii.gz")))}
    series = path / "ct"
    there = {*files, *(["ct/"] if series.is_dir() else [])}
    lost = [name for name in hashes if name not in there and (name == "ct/" or name.startswith("samples/sample_"))]
    if lost or not ct.is_file():
        raise FileNotFoundError(f"{path / (lost[0] if lost else ct.name)}: missing, but {RESULT} lists it")
    for name, one in files.items():
        if hashes.get(name) != sha256_file(one):
            raise ValueError(f"{one}: is not the file that {RESULT} lists: it was changed; reconstruct again")
    model = content.get("model")
    name = model.get("name", "not named") if isinstance(model, dict) else "not named"
    facts = {
        "Reconstruction": path.resolve().name,
        "Model": str(name),
        "Reconstructed": str(content.get("created", "")),
    }
    if series.is_dir() and hashes.get("ct/") != series_sha256(series):
        raise ValueError(f"{series}: is not the series that {RESULT} lists: it was changed; reconstruct again")
    doses = read_calibrated_doses(content.get("intervals"), str(path / RESULT))
    return _Source(ct, series if series.is_dir() else None, facts, str(verdict), [*files.values()][1:], doses)


def _read_samples(paths: list[Path], ct: PlanningCT) -> Iterator[PlanningCT]:
    for path in paths:
        yield read_planning_ct(path, ct.grid)


def _require_same_place(patient: Patient, truth: Patient, reference: str) -> None:
    """Refuse a reference that lies elsewhere, or is no chest.

    Raises:
        ValueError: as said.
    """
    if not truth.has_chest:
        raise ValueError(f"{reference}: the reference cannot be used: {truth.reason}")
    if not patient.contours.structures:
        return
    one, other = patient.contours.mask("External"), truth.contours.mask("External")
    dice = 2 * float((one & other).sum()) / float(one.sum() + other.sum())
    if dice < _SAME_PLACE:
        raise ValueError(
            f"{reference}: its body and that of the planned CT have a Dice coefficient of {dice:.2f}, less than "
            f"{_SAME_PLACE:g}: another frame or another patient; the reference must lie where the CT does (a "
            "reconstruction from DICOM radiographs has its origin at the isocentre)"
        )


def _write(
    folder: Path,
    source: _Source,
    series: CTReference | None,
    template: str,
    engine: str,
    patient: Patient,
    truth: Patient | None,
    modes: dict[Any, ModeResult],
    samples: SampleDoses | None,
    interval: DoseInterval | None,
    start: float,
) -> None:
    case, delivered = patient.case, modes.get("delivered")
    doses = {"dose.nii.gz": None if case is None else case.dose_gy}
    doses["dose_on_reference.nii.gz"] = None if delivered is None else delivered.true_dose_gy
    files = {}
    for name, dose in doses.items():
        if dose is not None:
            note = f"fewview-ct {__version__}, Gy, research, not for treatment"
            write_nifti(folder / name, dose.astype(np.float32), patient.ct.grid.affine(), note)
            files[name] = sha256_file(folder / name)
    if case is not None and series is not None:
        files |= {path.name: sha256_file(path) for path in write_rt_objects(case, series, folder)}
    numbers = {} if case is None else dose_numbers(patient.ct, patient.contours, case.plan, case.dose_gy)
    warnings = heart_warnings(patient.contours, patient.ct.grid.spacing_mm[0])
    for text in warnings:
        logger.warning("%s", text)
    warnings += case.plan.notes if case is not None else []
    if samples is not None and samples.refused:
        warnings.append(f"{len(samples.refused)} samples could not be contoured: {samples.refused[0]}")
    content = PlanContent(
        patient, template, {**source.facts, "Software": f"fewview-ct {__version__}"},
        None if source.series is None else first_header(source.series), engine, numbers, warnings,
        source.verdict, samples, modes, None if truth is None else truth.contours, files,
        interval,
    )  # fmt: skip
    files["plan.html"] = sha256_file(write_plan_page(folder / "plan.html", content))
    record = {
        "format": FORMAT,
        "software": f"fewview-ct {__version__}",
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "limits": list(LIMITS),
        "source": source.facts,
        "ct_sha256": sha256_file(source.ct) if source.ct.is_file() else None,
        "verdict": source.verdict,
        "template": template,
        "engine": engine,
        "possible": case is not None,
        "reason": patient.reason,
        "warnings": warnings,
        "plan": None if case is None else case.plan.record(),
        "contours": _contours(patient),
        "numbers": numbers,
        "isocenter_dose": None if interval is None else {**asdict(interval), "in_words": str(interval)},
        "samples": _samples(samples, delivered),
        "modes": {mode: _mode(one) for mode, one in modes.items()},
        "grid": {"shape": list(patient.ct.grid.shape), "affine": patient.ct.grid.affine().tolist()},
        "files": files,
        "seconds": round(time.perf_counter() - start, 2),
    }
    write_json(folder / PLAN, record)


def _contours(patient: Patient) -> dict[str, Any]:
    voxel_cm3 = float(np.prod(patient.ct.grid.spacing_mm)) / 1000
    found = {
        name: {"kind": one.kind, "cm3": round(float(one.mask.sum()) * voxel_cm3, 1), "origin": one.origin}
        for name, one in patient.contours.structures.items()
    }
    return {"found": found, "missing": dict(patient.contours.missing)}


def _samples(samples: SampleDoses | None, delivered: ModeResult | None) -> dict[str, Any] | None:
    if samples is None:
        return None
    return {
        "percentiles": list(INTERVAL_PERCENT),
        "intervals": {
            name: {"low": one.low, "median": one.median, "high": one.high, "samples": one.count}
            for name, one in samples.intervals.items()
        },
        "refused": list(samples.refused),
        "true_numbers_inside": None if delivered is None else samples.coverage(delivered.true),
    }


def _mode(one: ModeResult) -> dict[str, Any]:
    return {
        "possible": one.possible,
        "reason": one.reason,
        "true": dict(one.true),
        "estimated": dict(one.estimated),
        "errors": dict(one.errors),
    }
