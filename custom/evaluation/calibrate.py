"""The verb `fewview-ct calibrate`: measures the thresholds of the trust checks on known CTs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from custom import __version__
from custom.core.files import read_json, sha256_file, sha256_files, write_json
from custom.core.json_models import validated
from custom.core.workers import Workers
from custom.data.datalist import load_cases
from custom.evaluation.delivered_doses import kept_doses
from custom.geometry import BEAMS
from custom.geometry.acquisition_sampler import PAPER_ANGLES_DEG
from custom.models import Model
from custom.trust.body_measures import loaded_segmenter, measure_body
from custom.trust.calibrated_intervals import COVERAGE, CalibratedIntervals, fit_intervals, interval_record
from custom.trust.calibration_groups import fit_groups, measured
from custom.trust.calibration_model import OutOfFold, loaded_model, meeting
from custom.trust.check_statistics import PREDICTORS, STATISTICS
from custom.trust.measure_intervals import Kind, errors_of_measures, growth_of_errors
from custom.trust.reference_ct import SimulationSettings, detector_of, error_hu, load_ct, reconstructed
from custom.trust.thresholds import FEWEST_CASES, Thresholds, TrainedRange, check_shares, group_name

__all__ = ["calibrate"]

logger = logging.getLogger(__name__)

#: What calibration draws its acquisitions from, unless options say otherwise.
SIMULATION = SimulationSettings()


@dataclass(frozen=True)
class _Job:
    case: dict[str, Any]
    index: int
    warp: int
    model: str
    size: int | None
    samples: int
    groups: tuple[tuple[str, int], ...]
    templates: tuple[str, ...]
    simulation: SimulationSettings
    priors: OutOfFold | None
    device: str | None
    threads: int | None
    file: Path

    def settings(self, model: Model) -> dict[str, Any]:
        """All that what the file holds of a beam and number of views depends on."""
        content = {
            "case": self.case["case"],
            "ct_sha256": sha256_files([Path(self.case[key]) for key in ("label", "source") if key in self.case]),
            "index": self.index,
            "warp": self.warp,
            "model_sha256": model.sha256,
            "parents_sha256": model.parents,
            "size": self.size,
            "samples": self.samples,
            "sampler": model.network.settings if self.samples else None,
            "statistics": [*STATISTICS, *PREDICTORS],
            "templates": self.templates,
            "dose_rules": kept_doses(self.templates).rules if self.templates else None,
            "simulation": asdict(self.simulation),
            "priors_sha256": self.priors.sha256 if self.priors else None,
            "segmenter_sha256": None if (segmenter := loaded_segmenter()) is None else segmenter[1],
            "software": f"fewview-ct {__version__}",
        }
        return json.loads(json.dumps(content))


def calibrate(
    datalist: str,
    output: str,
    model: str = "inr_recon",
    phantom_list_file: str | None = None,
    parts: Sequence[str] = ("training", "validation"),
    warps: int = 0,
    views: Sequence[int] = (1, 2, 4, 8),
    beams: Sequence[str] = ("parallel", "cone"),
    size: int | None = None,
    samples: int = 0,
    templates: Sequence[str] = (),
    false_alarms: float = 0.1,
    reject_factor: float = 2.0,
    coverage: float = COVERAGE,
    trained_views: Sequence[int] | None = None,
    trained_beams: Sequence[str] | None = None,
    source_to_isocenter_mm: Sequence[float] | None = None,
    source_to_detector_mm: Sequence[float] | None = None,
    tilt_deg: float = 5.0,
    reject_beyond: float = 0.5,
    photons_per_mm2: Sequence[float] = SIMULATION.photons_per_mm2,
    scatter_to_primary: Sequence[float] = SIMULATION.scatter_to_primary,
    blur_fwhm_mm: Sequence[float] = SIMULATION.blur_fwhm_mm,
    intensity_error: float = SIMULATION.intensity_error,
    pose_error_deg: float = SIMULATION.pose_error_deg,
    pose_error_distance: float = SIMULATION.pose_error_distance,
    field_mm: Sequence[float] = SIMULATION.field_mm,
    priors_from: str | None = None,
    seed: int = 0,
    work: str | None = None,
    workers: int = 1,
    device: str | None = None,
) -> Path:
    """Make the thresholds of the trust checks from CTs that are known.

    Every CT is radiographed without a mistake, the model reconstructs it, and what the checks measure is collected. The
    thresholds are set so that a share `false_alarms` of these cases is above any of them. Take cases that the model has
    not seen: those of the training look better than new ones do. Safe to stop and start again: finished cases are kept,
    also where beams or views are added.

    Args:
        datalist: datalist.json of a prepared cohort, each case with its source.
        output: thresholds to write, usually thresholds.json beside the model.
        model: name, folder or model.pt, as for `fewview-ct reconstruct`.
        phantom_list_file: datalist.json of `fewview-ct phantom`, whose training part is used too.
        parts: of the datalist.
        warps: random deformations of every case of the datalist, in addition to the case itself.
        views: numbers of views, 1, 2, 4 or 8, at the papers' angles.
        beams: "parallel", "cone" (with distances as X-ray units have them).
        size: voxels along each side, to save time; the model's own grid by default.
        samples: drawn of each case for their spread, by a model that draws; 0 for none.
        templates: ap_pa, pa: also what dose the isocentre of such a plan on a reconstruction gets in the patient, which
            'fewview-ct plan' then says. Needs the extra radiotherapy, and 4 to 7 seconds for each template, beam,
            number of views and case.
        false_alarms: share of good cases that may get REVIEW.
        reject_factor: how many times as far from the median as REVIEW begins REJECT does.
        coverage: share of new patients, and of their places, that intervals hold; finished cases are taken for another.
        trained_views: numbers of views that the model was trained for; by default what its checkpoint says.
        trained_beams: likewise.
        source_to_isocenter_mm: smallest and largest in training, cone beam; likewise.
        source_to_detector_mm: likewise.
        tilt_deg: largest tilt of rays or detector rows out of the axial plane that needs no review.
        reject_beyond: share of a trained range's width by which a geometry may be outside before REJECT.
        photons_per_mm2: least and most on the detector without a patient; every acquisition draws its own.
        scatter_to_primary: least and most scatter over primary in the patient's shadow.
        blur_fwhm_mm: least and most blur on the detector.
        intensity_error: the intensity without a patient is wrong by up to this share, each view for itself.
        pose_error_deg: the angles that are stated are wrong by up to this.
        pose_error_distance: the distances that are stated are wrong by up to this share.
        field_mm: least and most width and height of the exposed field, at the isocentre.
        priors_from: checkpoint_last.pt of the training, whose priors out of fold take the place of the model's own for
            the CTs that it was trained on: so they are compared with a population that does not know them.
        seed: of deformations, noise and errors.
        work: folder for finished cases; by default OUTPUT without its suffix, followed by _cases.
        workers: processes; each needs up to 2 GB.
        device: torch device; a GPU where there is one, else the CPU.

    Returns:
        The thresholds' path.

    Raises:
        FileNotFoundError: for a missing datalist, CT or model.
        ValueError: for too few cases, options that make no sense, or a checkpoint that does not say what it was
            trained for.
        ModuleNotFoundError: the extra radiotherapy is not installed, and `templates` need it.
    """
    groups = _groups(beams, views)
    path = Path(output)
    if path.suffix != ".json":
        raise ValueError(f"{path}: thresholds are a JSON file, the output must end in .json")
    if warps < 0 or samples < 0 or samples == 1:
        raise ValueError(f"warps must not be negative and samples be 0 or at least 2, got {warps} and {samples}")
    check_shares(false_alarms, reject_factor)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, thresholds are a file: choose another output")
    folder = Path(work) if work is not None else path.with_name(f"{path.stem}_cases")
    no_folder = next((p for one in (path.parent, folder) for p in (one, *one.parents) if p.is_file()), None)
    if no_folder is not None:
        raise NotADirectoryError(f"{no_folder}: is a file, where a folder is to be: choose another output or --work")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 voxel, got {size}")
    if not 0.5 <= coverage < 1:
        raise ValueError(f"coverage must be at least 0.5 and below 1, got {coverage}")
    templates = tuple(templates)
    if templates:
        kept_doses(templates)
    else:
        logger.info("no dose is calibrated: --templates ap_pa does that, with the extra radiotherapy")
    priors = None if priors_from is None else OutOfFold(priors_from)
    cases = [
        (case, warp)
        for part in parts
        for case in load_cases(datalist, part, folds=priors.folds if priors and part == "training" else 0)
        for warp in range(warps + 1)
    ]
    phantoms = load_cases(phantom_list_file, "training") if phantom_list_file else []
    cases += [(case, 0) for case in phantoms]
    loaded = loaded_model(model, size, device, priors)[0]
    loaded.require(samples)
    simulation = SimulationSettings(
        energy_kev=loaded.energy_kev,
        photons_per_mm2=_range(photons_per_mm2),
        scatter_to_primary=_range(scatter_to_primary),
        blur_fwhm_mm=_range(blur_fwhm_mm),
        intensity_error=intensity_error,
        pose_error_deg=pose_error_deg,
        pose_error_distance=pose_error_distance,
        field_mm=_range(field_mm),
        seed=seed,
    )
    options = (trained_views, trained_beams, source_to_isocenter_mm, source_to_detector_mm)
    trained = _trained(loaded, *options, tilt_deg, reject_beyond)
    if len(cases) < FEWEST_CASES:
        raise ValueError(
            f"{datalist}: {len(cases)} cases; thresholds need at least {FEWEST_CASES}: add phantoms or warps"
        )
    jobs = [
        _Job(
            case, index, warp, model, size, samples, groups, templates, simulation, priors, device,
            1 if workers > 1 else None, folder / f"{case['case']}_{warp}.json",
        )
        for index, (case, warp) in enumerate(cases)
    ]  # fmt: skip
    if len({job.file for job in jobs}) < len(jobs):
        raise ValueError(f"{datalist} and {phantom_list_file}: two cases have the same name")
    with Workers(workers) as pool:
        pool.run(_run, jobs, label="calibrating")
    cases_found = [json.loads(job.file.read_text()) for job in jobs]
    records = [one["groups"] for one in cases_found]
    patients = [str(job.case.get("patient", job.case["case"])) for job in jobs]
    quantiles, fitted, errors, calibrated = fit_groups(records, patients, groups, false_alarms, reject_factor)
    kinds = {p: Kind.TRAINED_ON if "fold" in job.case else Kind.NEW for p, job in zip(patients, jobs, strict=True)}
    kinds |= dict.fromkeys(patients[len(jobs) - len(phantoms) :], Kind.PHANTOM)
    intervals, growth = _intervals(cases_found, jobs, patients, kinds, loaded, coverage)
    made_from = {
        "software": f"fewview-ct {__version__}",
        "model": {
            "name": loaded.name,
            "sha256": loaded.sha256,
            "voxels": list(loaded.grid.shape),
            "samples": samples,
            "sampling": loaded.sampling if samples else None,
        },
        "datalist": {"file": Path(datalist).name, "sha256": sha256_file(Path(datalist)), "parts": list(parts)},
        "phantoms": None
        if phantom_list_file is None
        else {"file": Path(phantom_list_file).name, "sha256": sha256_file(Path(phantom_list_file))},
        "warps": warps,
        "cases": len(cases),
        "false_alarms": false_alarms,
        "reject_factor": reject_factor,
        "simulation": asdict(simulation),
        "priors_sha256": priors.sha256 if priors else None,
        "growth_of_errors": growth,
    }
    Thresholds(fitted, quantiles, trained, made_from, errors, intervals, calibrated).save(path)
    logger.info("%s: thresholds from %d cases for %s", path, len(cases), ", ".join(fitted))
    return path


def _groups(beams: Sequence[str], views: Sequence[int]) -> tuple[tuple[str, int], ...]:
    unknown = [b for b in beams if b not in BEAMS], [n for n in views if n not in PAPER_ANGLES_DEG]
    if any(unknown) or not beams or not views:
        raise ValueError(
            f"beams must be among {sorted(BEAMS)} and views among {sorted(PAPER_ANGLES_DEG)}, got {beams}, {views}"
        )
    return tuple((beam, int(count)) for beam in beams for count in views)


def _range(ends: Sequence[float]) -> tuple[float, float]:
    if len(ends) != 2:
        raise ValueError(f"a range has a least and a most, got {', '.join(f'{end:g}' for end in ends)}")
    return float(ends[0]), float(ends[1])


def _trained(
    model: Model,
    views: Sequence[int] | None,
    beams: Sequence[str] | None,
    to_isocenter: Sequence[float] | None,
    to_detector: Sequence[float] | None,
    tilt_deg: float,
    reject_beyond: float,
) -> TrainedRange:
    """From options, or from the checkpoint's meta where those are None."""
    meta = model.meta
    if views is None and isinstance(meta.get("training_views"), Mapping):
        views = [int(count) for count, weight in meta["training_views"].items() if weight > 0]
    cone = meta.get("cone_prob", meta.get("cone_share"))  # the second in checkpoints of version 0.1.0
    if beams is None and cone is not None:
        beams = [beam for beam, used in (("parallel", float(cone) < 1), ("cone", float(cone) > 0)) if used]
    content = {
        "trained_views": views,
        "trained_beams": beams,
        "source_to_isocenter_mm": meta.get("source_to_isocenter_mm") if to_isocenter is None else to_isocenter,
        "source_to_detector_mm": meta.get("source_to_detector_mm") if to_detector is None else to_detector,
    }
    missing = [f"--{name}" for name, value in content.items() if value is None]
    if missing:
        raise ValueError(
            f"the checkpoint of {model.name} does not say what it was trained for: pass {', '.join(missing)}"
        )
    plain = {name.removeprefix("trained_"): value for name, value in content.items()}
    found = {**plain, "tilt_deg": tilt_deg, "reject_beyond": reject_beyond}
    return validated(TrainedRange, found, f"what {model.name} was trained for")


def _finished(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """By `group_name`, what a file holds that was made with these settings."""
    if file.is_file():
        try:
            content = read_json(file)
            if content["settings"] == settings:
                return content["groups"]
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is damaged and is made again", file)
    return {}


def _run(job: _Job) -> bool:
    """One case as a file; False where it was there already."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    model, meter, priors = loaded_model(job.model, job.size, job.device, job.priors)
    settings = job.settings(model)
    found = _finished(job.file, settings)
    missing = [group for group in job.groups if group_name(*group) not in found]
    if not missing:
        return False
    ct = load_ct(job.case, model.pixel_at_isocenter_mm, job.warp, job.simulation)
    segmenter = loaded_segmenter()
    network = None if segmenter is None else segmenter[0]
    truth = ct.on_grid(model.grid).clamp(*model.hu_window)
    with meeting(model, priors.priors[job.case["fold"]] if "fold" in job.case else None):
        for beam, count in missing:
            sets = PAPER_ANGLES_DEG[count]
            angles = sets[job.index % len(sets)]
            shape, pixel_mm = detector_of(model), model.pixel_at_isocenter_mm
            radiographs = ct.radiographs(angles, beam, shape, pixel_mm, job.simulation)
            evidence = reconstructed(model, radiographs, samples=job.samples, seed=job.simulation.seed)
            assert evidence.hu is not None
            hu = evidence.hu.clamp(*model.hu_window)
            intervals = interval_record(hu, truth, model.grid, network)
            if job.templates:
                doses = kept_doses(job.templates)(hu, model.grid, ct)
                intervals["planned_gy"], intervals["delivered_gy"] = doses
            found[group_name(beam, count)] = {
                **measured(evidence, meter),
                "error_hu": error_hu(model, evidence.hu, ct),
                "intervals": intervals,
            }
    true_measures = dict(measure_body(truth, model.grid, network).values)
    write_json(job.file, {"settings": settings, "groups": found, "measures": true_measures})
    return True


def _intervals(
    found: Sequence[Mapping[str, Any]],
    jobs: Sequence[_Job],
    patients: Sequence[str],
    kinds: Mapping[str, Kind],
    model: Model,
    coverage: float,
) -> tuple[dict[str, CalibratedIntervals], float]:
    """By `group_name`; and how much larger errors of measures are where the network was not trained."""
    segmenter, truths = loaded_segmenter(), [one["measures"] for one in found]
    records = {
        name: [one["groups"][name]["intervals"] for one in found]
        for name in (group_name(*group) for group in jobs[0].groups)
    }
    growth = growth_of_errors(
        [errors_of_measures([r["measures"] for r in own], truths, patients) for own in records.values()], kinds
    )
    if Kind.TRAINED_ON in kinds.values() and Kind.NEW not in kinds.values():
        logger.warning("no CT is new to the network: intervals of measures may be too narrow for new patients")
    rules = kept_doses(jobs[0].templates).rules if jobs[0].templates else None
    intervals = {}
    for beam, count in jobs[0].groups:
        acquisition = {
            "spacing_mm": model.grid.spacing_mm,
            "angles_deg": PAPER_ANGLES_DEG[count],
            "samples": jobs[0].samples,
            "segmenter_sha256": None if segmenter is None else segmenter[1],
        }
        name = group_name(beam, count)
        fitted = fit_intervals(records[name], truths, patients, acquisition, kinds, growth, coverage, rules)
        if fitted is not None:
            intervals[name] = fitted
    return intervals, growth
