"""The output folder of a reconstruction.

| file | content |
|---|---|
| ct.nii.gz | int16 HU, RAS+ |
| ct/ | the same as a DICOM CT series |
| uncertainty.nii.gz, uncertainty.dcm | standard deviation of the samples, HU, where samples were drawn |
| interval_lower.nii.gz, interval_upper.nii.gz, .dcm | limits of 90 % intervals, HU, where they were calibrated |
| wider.nii.gz | 1 where the interval is wider than `grey_wider_than_hu`, where that was asked for |
| samples/ | each sample, int16 HU |
| report.html | what was made of what, and how far to trust it |
| result.json | software, hashes (ct/: `series_sha256`), views, metadata with origins, checks and verdict, seconds |
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from custom import __version__
from custom.core.files import sha256_file, write_json
from custom.dicom.write_ct import SyntheticCT, write_ct_series
from custom.dicom.write_map import LOWER, SPREAD, UPPER, why_no_map, write_uncertainty_map
from custom.models import Model, save_volume
from custom.radiographs import Radiograph
from custom.reconstruct.result import Reconstruction
from custom.report.reconstruction_page import ReportContent, write_report

__all__ = ["OUTPUTS", "RESULT", "dry_run", "series_sha256", "write_outputs"]

logger = logging.getLogger(__name__)

RESULT = "result.json"
#: All that an output folder may hold.
OUTPUTS = (
    "ct.nii.gz", "ct", "uncertainty.nii.gz", "uncertainty.dcm", "interval_lower.nii.gz", "interval_upper.nii.gz",
    "interval_lower.dcm", "interval_upper.dcm", "wider.nii.gz", "samples", "report.html", RESULT,
)  # fmt: skip
#: So many samples are shown in the report; all are written as files.
SAMPLES_SHOWN = 4


def dry_run(
    folder: Path, radiographs: list[Radiograph], model: Model, dicom: bool | None, uncertainty: bool
) -> str | None:
    """Write a tiny series with these headers and remove it: what cannot be written is said before long work.

    Args:
        folder: to write it in.
        radiographs: whose headers it takes.
        model: that it names.
        dicom: write a series and maps; None: the series alone where the package for the maps is missing.
        uncertainty: whether maps may have to be written too.

    Returns:
        Why maps cannot be written as DICOM, and what to install; None: they can.

    Raises:
        ValueError: headers that no CT series can be made of, such as those of two patients; maps have to be written,
            and the package for them is missing, naming the extra.
    """
    if dicom is False:
        return None
    reason = why_no_map() if uncertainty else None
    if reason is not None and dicom:
        raise ValueError(f"--dicom: {reason}; without --dicom the maps are written as NIfTI alone")
    hu, identity = torch.zeros(2, 2, 2), {"name": model.name, "sha256": model.sha256, "version": __version__}
    ct = SyntheticCT(hu, np.eye(4), _headers(radiographs), identity, "Dry run.")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".dry_run") as place:
        write_ct_series(ct, Path(place, "ct"))
        if uncertainty and reason is None:
            write_uncertainty_map(hu, Path(place, "ct"), Path(place, "map.dcm"), identity)
    return reason


def _headers(radiographs: list[Radiograph]) -> list:
    return [radiograph.header for radiograph in radiographs if radiograph.header is not None]


def series_sha256(folder: Path) -> str:
    """One SHA-256 for all files of a folder, hexadecimal: that of what ``LC_ALL=C sha256sum *`` prints in it.

    Args:
        folder: holds files alone; each gives the line ``HASH  NAME``, in the order of the names.
    """
    lines = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_outputs(
    folder: Path, found: Reconstruction, dicom: bool, no_maps: str | None, report: bool, uid_seed: str | None
) -> None:
    """Fill a folder (see the module) with a reconstruction; result.json comes last.

    Args:
        folder: exists, and is empty.
        found: to write.
        dicom: write ct/ and the maps as DICOM.
        no_maps: why maps cannot be written as DICOM, which `dry_run` found: a warning then names those that are not.
        report: write report.html.
        uid_seed: of the DICOM UIDs.

    Raises:
        OSError: a file cannot be written.
        ValueError: headers that no CT series can be made of.
    """
    start = time.perf_counter()
    files = {"ct.nii.gz": save_volume(folder / "ct.nii.gz", found.hu, found.grid, found.isocenter_mm)}
    maps = [("uncertainty", SPREAD, found.std)]
    if found.intervals is not None:
        maps += [("interval_lower", LOWER, found.intervals.lower), ("interval_upper", UPPER, found.intervals.upper)]
    for name, kind, volume in maps:
        if volume is not None:
            path = folder / f"{name}.nii.gz"
            kept = torch.float32 if kind is SPREAD else torch.int16
            files[path.name] = save_volume(path, volume, found.grid, found.isocenter_mm, kept)
    width = found.settings.get("grey_wider_than_hu")
    wider = None if width is None or found.intervals is None else found.intervals.wider_than(width)
    if wider is not None:
        path = folder / "wider.nii.gz"
        files[path.name] = save_volume(path, wider, found.grid, found.isocenter_mm, torch.uint8)
    for index, sample in enumerate(found.samples):
        name = f"samples/sample_{index:03d}.nii.gz"
        files[name] = save_volume(folder / name, sample, found.grid, found.isocenter_mm)
    if dicom:
        headers = _headers(found.radiographs)
        ct = SyntheticCT(found.hu, found.affine, headers, found.model_identity, found.derivation)
        write_ct_series(ct, folder / "ct", uid_seed=uid_seed)
        unwritten = [f"{name}.dcm" for name, _, volume in maps if volume is not None and no_maps]
        if unwritten:
            found.warnings.append(f"Not written: {', '.join(unwritten)} ({no_maps}). The .nii.gz hold the same values.")
            logger.warning("%s", found.warnings[-1])
        for name, kind, volume in maps:
            if volume is not None and not no_maps:
                path = folder / f"{name}.dcm"
                write_uncertainty_map(volume, folder / "ct", path, found.model_identity, kind=kind, uid_seed=uid_seed)
                files[path.name] = path
    hashes = {name: sha256_file(path) for name, path in files.items()}
    if dicom:
        hashes["ct/"] = series_sha256(folder / "ct")
    if report:
        written = write_report(folder / "report.html", _content(found, hashes))
        hashes["report.html"] = sha256_file(written)
    found.seconds["write"] = time.perf_counter() - start
    write_json(folder / RESULT, found.record(hashes))


def _content(found: Reconstruction, hashes: dict[str, str]) -> ReportContent:
    model = found.model
    low, high = model.hu_window
    size = " x ".join(map(str, found.grid.shape))
    described = {
        "name": model.name,
        "sha256": model.sha256,
        **{f"{role}_sha256": value for role, value in model.parents.items()},
        "volume": f"{size} voxels of {found.grid.spacing_mm[0]:g} mm, {low:g} to {high:g} HU",
        "radiographs": f"line integrals at {model.energy_kev:g} keV, pixels of {model.pixel_at_isocenter_mm:g} mm",
        "card": model.card or "",
    }
    return ReportContent(
        radiographs=found.radiographs,
        image=found.image,
        views=found.views,
        field_mask=found.field_mask,
        reprojections=found.reprojections,
        energy_kev=model.energy_kev,
        hu=found.hu,
        grid=found.grid,
        checks=found.checks,
        verdict=found.verdict,
        model=described,
        warnings=found.warnings,
        std=found.std,
        intervals=found.intervals,
        poses=found.poses,
        grey_wider_than_hu=found.settings.get("grey_wider_than_hu"),
        samples=[sample.float() for sample in found.samples[:SAMPLES_SHOWN]],
        files=hashes,
        created=found.created,
    )
