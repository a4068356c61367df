"""The function `reconstruct`: reads radiographs, reconstructs a CT, runs trust checks, writes files."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from custom.core.angles import angle_difference_deg
from custom.core.atomic_directory import atomic_directory
from custom.core.attenuation import hu_to_attenuation
from custom.core.files import sha256_file
from custom.geometry import ViewRow
from custom.metrics import NOISE_GROUP, SampleStatistics
from custom.models import Model, find_model, load_model
from custom.projection import Projector
from custom.radiographs import Radiograph, read_radiographs
from custom.radiographs.accepted_assumptions import check_accept
from custom.radiographs.acquisition_metadata import value_of
from custom.radiographs.truncation import extrapolate_truncation
from custom.reconstruct.model_detector import resample_for_model
from custom.reconstruct.outputs import OUTPUTS, RESULT, dry_run, write_outputs
from custom.reconstruct.result import Reconstruction
from custom.trust import (
    Evidence,
    PoseTolerance,
    Thresholds,
    Verdict,
    find_prior,
    overall,
    refine_poses,
    run_checks,
    state_intervals,
)
from custom.trust.body_measures import loaded_segmenter
from custom.trust.pose_words import pose_sentences, pose_warnings

__all__ = ["reconstruct"]

logger = logging.getLogger(__name__)


def reconstruct(
    radiographs: Sequence[str | os.PathLike[str] | Radiograph],
    *,
    output: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | Model = "inr_recon",
    samples: int = 0,
    geometry: str | os.PathLike[str] | None = None,
    accept: Sequence[str] | str = (),
    angles_deg: Sequence[float] | None = None,
    refine_poses: bool = False,
    pose_tolerance_deg: float = 12.0,
    pose_tolerance_mm: float = 20.0,
    pose_tolerance_distance: float = 0.05,
    seed: int = 0,
    device: str | None = None,
    precision: str = "auto",
    thresholds: str | os.PathLike[str] | None = None,
    grey_wider_than_hu: float | None = None,
    dicom: bool | None = None,
    report: bool = True,
    overwrite: bool = False,
    uid_seed: str | None = None,
) -> Reconstruction:
    """Reconstruct a CT from radiographs. The same seed, torch, device and number of threads give the same bits.

    Args:
        radiographs: files or folders (`custom.radiographs.read_radiographs`), or radiographs that were read already.
        output: folder to make, see `custom.reconstruct.outputs`; None: the result is given back and not written.
        model: name, folder or weights file (`custom.models.load_model`), or a model that was loaded already.
        samples: how many volumes to draw; their mean is the CT, their standard deviation its uncertainty. 0: the one
            volume that the model gives.
        geometry: JSON with what the radiographs do not say about themselves.
        accept: assumptions that may be made where nothing says otherwise (`custom.radiographs.ACCEPT`).
        angles_deg: views to use, by angle, in this order; None: all, in the order of the files.
        refine_poses: move views until the radiographs agree best (`custom.trust.pose_refinement`), and say what was
            moved; all that follows, checks too, is of the moved views.
        pose_tolerance_deg, pose_tolerance_mm, pose_tolerance_distance: how far a view may be moved then: angle, shift
            along rows and columns each, and distances from the isocentre as a share.
        seed: of the samples.
        device: torch device; None: a GPU where there is one, else the CPU. Not for a model that was loaded already.
        precision: "auto", "bf16" or "fp32". Not for a model that was loaded already.
        thresholds: file of `fewview-ct calibrate`; None: that of the model.
        grey_wider_than_hu: where the interval of a place is wider, the report's planes hide the CT, and wider.nii.gz
            is 1; None: nowhere.
        dicom: write a CT series, and maps of uncertainty and of the intervals' limits. None: where the package for
            the maps is missing, a series without them, and a warning that names them.
        report: write report.html.
        overwrite: replace an output that is there.
        uid_seed: makes the DICOM UIDs a function of it; None: new ones.

    Raises:
        FileNotFoundError, FileExistsError: for a missing input, or an output that is there.
        ValueError: for input that cannot be used (`custom.radiographs.MissingMetadata` where something is not known).
        ModuleNotFoundError: an optional package is missing, naming the extra to install.
    """
    _check_samples(samples)
    if grey_wider_than_hu is not None and not 0 < grey_wider_than_hu < float("inf"):
        raise ValueError(f"grey_wider_than_hu must be a positive number of HU, got {grey_wider_than_hu}")
    tolerance = None
    if refine_poses:
        tolerance = PoseTolerance(pose_tolerance_deg, pose_tolerance_mm, pose_tolerance_distance)
    settings: dict[str, Any] = {
        "samples": samples,
        "seed": seed,
        "accept": sorted(check_accept(accept)),
        "angles_deg": None,
        "refine_poses": None if tolerance is None else asdict(tolerance),
        "grey_wider_than_hu": grey_wider_than_hu,
    }

    def run(folder: Path | None) -> Reconstruction:
        start = time.perf_counter()
        if not isinstance(model, Model):
            find_model(model)  # a mistyped name is said before anything is read
        logger.debug("step: reading the radiographs")
        used = _read(radiographs, geometry, accept)
        if angles_deg is not None:
            used = _choose(used, angles_deg)
            settings["angles_deg"] = [float(angle) for angle in angles_deg]
        logger.debug("step: loading the model")
        loaded = model if isinstance(model, Model) else load_model(model, device, precision)
        loaded.require(samples)
        limits, settings["thresholds"] = _thresholds(thresholds or loaded.thresholds, loaded, samples)
        no_maps = None
        if folder is not None:
            maps = samples > 0 or (limits is not None and bool(limits.intervals))
            no_maps = dry_run(folder, used, loaded, dicom, uncertainty=maps)
        settings.update(device=str(loaded.device), precision=loaded.precision, threads=torch.get_num_threads())
        found = _compute(used, loaded, samples, seed, settings, limits, tolerance)
        found.seconds = {"read": found.seconds.pop("began") - start, **found.seconds}
        if folder is not None:
            logger.debug("step: writing CT and report")
            write_outputs(folder, found, dicom is not False, no_maps, report, uid_seed)
            logger.info("%s: %s, %.1f s", output, found.verdict.value, sum(found.seconds.values()))
            for check in found.checks:
                if check.verdict in (Verdict.REVIEW, Verdict.REJECT):
                    logger.warning("%s: %s", check.verdict.value, check.message)
            if limits is None:
                logger.warning("%s: no thresholds came with the model, so nothing was checked", found.verdict.value)
        return found

    if output is None:
        return run(None)
    with atomic_directory(output, RESULT, overwrite, OUTPUTS) as part:
        found = run(part)
    found.folder = Path(output)
    return found


def _compute(
    radiographs: list[Radiograph],
    model: Model,
    samples: int,
    seed: int,
    settings: dict[str, Any],
    thresholds: Thresholds | None,
    tolerance: PoseTolerance | None,
) -> Reconstruction:
    image, views, field_mask = resample_for_model(radiographs, model)
    names = [radiograph.name for radiograph in radiographs]
    poses, of_poses = None, []
    if tolerance is not None:
        logger.debug("step: looking where the views stood")
        poses = refine_poses(image, views, field_mask, tolerance)
        views, of_poses = poses.views, pose_warnings(poses, names)
        for sentence in pose_sentences(poses, names):
            logger.log(logging.WARNING if sentence in of_poses else logging.INFO, "%s", sentence)
    shown, warnings = extrapolate_truncation(image, field_mask, names, model.pixel_at_isocenter_mm)
    warnings = of_poses + warnings
    began = time.perf_counter()
    logger.info("%s from %d radiograph%s", model.name, len(views), "s"[: len(views) > 1])
    drawn: list[Tensor] = []
    std: Tensor | None = None
    if samples:
        drawn, mean, std = _draw(model, shown, views, samples, seed)
    else:
        mean = model.mean(shown, views)
    hu = mean.round().to(torch.int16)
    reconstructed = time.perf_counter()
    logger.debug("step: checking the CT against the radiographs")
    reprojections = _reproject(hu, model, image, views)
    evidence = Evidence(
        image=image,
        views=views,
        field_mask=field_mask,
        hu=hu.float(),
        grid=model.grid,
        samples_std=std,
        training=model.meta,
        radiograph_metadata=[radiograph.metadata for radiograph in radiographs],
        prior=find_prior(model.network),
    )
    checks = [] if thresholds is None else run_checks(evidence, thresholds)
    intervals = None
    if thresholds is not None:
        segmenter = loaded_segmenter() if thresholds.intervals else None
        intervals = state_intervals(evidence, checks, thresholds, model.hu_window, samples, segmenter)
    if thresholds is None:
        warnings.append(
            f"No thresholds came with the model {model.name}: nothing was checked. Make some with "
            "'fewview-ct calibrate'."
        )
    if model.can_sample and not samples:
        warnings.append(
            f"No samples were drawn: this is the one volume of the network that {model.name} begins from. Pass "
            "--samples 4 or more."
        )
        if thresholds is not None and (drawn_before := thresholds.made_from["model"].get("samples")):
            warnings[-1] += f" The checks judge it by limits that were made for means of {drawn_before} samples."
        logger.warning("%s", warnings[-1])
    isocenter, complaint = _isocenter(radiographs)
    warnings += complaint
    return Reconstruction(
        hu=hu,
        grid=model.grid,
        isocenter_mm=isocenter,
        std=std,
        samples=drawn,
        radiographs=radiographs,
        image=shown,
        views=views,
        field_mask=field_mask,
        reprojections=reprojections,
        checks=checks,
        verdict=overall(checks),
        intervals=intervals,
        poses=poses,
        model=model,
        settings=settings,
        seconds={
            "began": began,
            "reconstruct": reconstructed - began,
            "check": time.perf_counter() - reconstructed,
        },
        warnings=warnings,
    )


def _check_samples(samples: int) -> None:
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0 or samples == 1:
        raise ValueError(f"samples must be 0 or at least 2 (to have a spread), got {samples}")


def _read(
    given: Sequence[str | os.PathLike[str] | Radiograph],
    geometry: str | os.PathLike[str] | None,
    accept: Sequence[str] | str,
) -> list[Radiograph]:
    if isinstance(given, str | os.PathLike):
        given = [given]
    if not given:
        raise ValueError("no radiographs: name files or folders")
    read = [one for one in given if isinstance(one, Radiograph)]
    if not read:
        return read_radiographs([one for one in given if not isinstance(one, Radiograph)], geometry, accept)
    if len(read) < len(given):
        raise ValueError("pass files, or radiographs that were read already, not both")
    if geometry is not None:
        raise ValueError("a geometry is for files: radiographs that were read already have theirs")
    return read


def _choose(radiographs: list[Radiograph], angles_deg: Sequence[float]) -> list[Radiograph]:
    """The radiographs at these angles, in their order."""
    there = [float(ViewRow.from_tensor(radiograph.view).angle_deg) for radiograph in radiographs]
    chosen = []
    for angle in angles_deg:
        found = [i for i, one in enumerate(there) if abs(angle_difference_deg(one, angle)) < 0.01]
        if not found:
            raise ValueError(f"no radiograph at {angle:g} degrees; there are {', '.join(f'{a:g}' for a in there)}")
        chosen += found
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"angles_deg {', '.join(f'{a:g}' for a in angles_deg)} names a radiograph twice")
    if not chosen:
        raise ValueError("angles_deg names no angle")
    return [radiographs[i] for i in chosen]


def _thresholds(
    path: str | os.PathLike[str] | None, model: Model, samples: int
) -> tuple[Thresholds | None, dict[str, str] | None]:
    """Thresholds of this model, and what result.json says of them."""
    if path is None:
        return None, None
    limits = Thresholds.load(path)
    limits.require_model(model.sha256, model.name, path, model.sampling if samples else None)
    return limits, {"file": Path(path).name, "sha256": sha256_file(path)}


def _draw(model: Model, image: Tensor, views: Tensor, count: int, seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Samples (int16), their mean and their standard deviation."""
    statistics, drawn = SampleStatistics(hu_window=model.hu_window, noise_group=NOISE_GROUP), []
    with tqdm(total=count, desc="samples", unit="sample", disable=None) as bar:

        def on_drawn(there: int) -> None:
            bar.update(there - bar.n)
            logger.debug("step: sample %d of %d", there, count)

        for sample in model.samples(image, views, count, seed, on_drawn):
            statistics.update(sample[None, None])
            drawn.append(sample.round().to(torch.int16))
    return drawn, statistics.mean().float(), statistics.std().float()


def _reproject(hu: Tensor, model: Model, image: Tensor, views: Tensor) -> Tensor:
    """Line integrals (K, V, U) of the reconstruction; around it there is air."""
    projector = Projector(model.grid, image.shape[1:])
    with torch.inference_mode():
        return projector(hu_to_attenuation(hu[None, None].float(), model.energy_kev), views)[0]


def _isocenter(radiographs: list[Radiograph]) -> tuple[tuple[float, float, float], list[str]]:
    """Where the isocentre lies in the frame of the files, and what there is to say of it."""
    given = [value_of(r.metadata.isocenter_mm) for r in radiographs]
    known = sorted({tuple(float(x) for x in one) for one in given if one is not None})
    if not known:
        return (0.0, 0.0, 0.0), []
    if len(known) > 1 or None in given:
        places = ", ".join(str(place) for place in known)
        return (0.0, 0.0, 0.0), [
            f"The radiographs do not agree where their isocentre lies in a CT's frame ({places}): the volume is "
            "written in the isocentre's own frame."
        ]
    x, y, z = known[0]
    return (x, y, z), []
