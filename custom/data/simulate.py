"""The verb `fewview-ct simulate`: stored radiographs of a prepared cohort."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from custom.core.attenuation import water_attenuation_per_mm
from custom.core.devices import usable_device
from custom.core.files import read_json_object, remove_parts, sha256_file, write_json, write_nifti
from custom.core.names import inside, no_link, plain_name
from custom.core.workers import Workers
from custom.data.datalist import FILE_KEYS, read_datalist
from custom.data.volume_files import load_hu
from custom.dicom.write_dx import write_dx
from custom.geometry import Geometry, VolumeGrid
from custom.projection.degradation import DetectorBlur, QuantumNoise, Scatter
from custom.projection.simulation import SIMULATION_PRESETS, grid_of_ct, simulate_fine, simulate_paper

__all__ = ["Acquisition", "case_geometry", "simulate", "simulate_case"]

logger = logging.getLogger(__name__)

#: The papers' eight views; their one, two and four views are among them.
EIGHT_ANGLES_DEG = (0.0, 22.5, 45.0, 67.5, 90.0, 112.5, 135.0, 157.5)


@dataclass(frozen=True)
class Acquisition:
    """How every case of a cohort is radiographed; see `simulate` for the arguments."""

    setting: str = "fine"
    angles_deg: tuple[float, ...] = EIGHT_ANGLES_DEG
    beam: str = "parallel"
    source_to_isocenter_mm: float = 1000.0
    source_to_detector_mm: float = 1500.0
    detector_shape: tuple[int, int] | None = None
    pixel_mm: float | None = None
    energy_kev: float = 70.0
    scatter_to_primary: float = 0.0
    blur_fwhm_mm: float = 0.0
    photons: float = 0.0
    seed: int = 0
    presets: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        if self.setting not in SIMULATION_PRESETS:
            raise ValueError(f"setting must be one of {sorted(SIMULATION_PRESETS)}, got {self.setting!r}")
        object.__setattr__(self, "presets", json.loads(json.dumps(asdict(SIMULATION_PRESETS[self.setting]))))
        # Said before hours of work rather than in the middle of it.
        water_attenuation_per_mm(self.energy_kev)
        self.degrade(torch.zeros(1, 1, 1), torch.zeros(1, 13), "")
        case_geometry((128,) * 3, np.diag([2.5, 2.5, 2.5, 1.0]), self)

    def degrade(self, image: Tensor, views: Tensor, case: str) -> Tensor:
        """Scatter, blur and noise on line integrals (K, V, U), as far as they are asked for."""
        if self.scatter_to_primary:
            image = Scatter(self.scatter_to_primary)(image, views)
        if self.blur_fwhm_mm:
            image = DetectorBlur(self.blur_fwhm_mm)(image, views)
        if self.photons:
            noise = QuantumNoise(self.photons)
            # A case's noise depends on its name and the seed, not on which cases came before it.
            noise.set_random_state(seed=zlib.crc32(f"{self.seed} {case}".encode()))
            image = noise(image)
        return image


@dataclass(frozen=True)
class _Job:
    case: str
    label: Path
    source: Path | None
    image: Path
    geometry: Path
    acquisition: Acquisition
    dicom: bool = False
    device: str = "cpu"

    def dicom_file(self, angle_deg: float) -> Path:
        return self.image.parent / self.case / f"{angle_deg:g}_degrees.dcm"


def case_geometry(shape: Sequence[int], affine: np.ndarray, acquisition: Acquisition) -> Geometry:
    """The geometry of one case: its cube's grid, isocentre at the cube's centre.

    Args:
        shape: of the cube, (X, Y, Z).
        affine: of the cube, (4, 4), RAS+ and unrotated.
        acquisition: views and detector.
    """
    cube = grid_of_ct(shape, affine, (0.0, 0.0, 0.0))
    return Geometry.from_angles(
        acquisition.angles_deg,
        acquisition.beam,
        acquisition.source_to_isocenter_mm,
        acquisition.source_to_detector_mm,
        acquisition.detector_shape,
        acquisition.pixel_mm,
        grid=VolumeGrid(cube.shape, cube.spacing_mm),
        isocenter_mm=cube.center_mm,
    )


def simulate_case(
    cube_hu: np.ndarray,
    cube_affine: np.ndarray,
    acquisition: Acquisition,
    source_hu: np.ndarray | None = None,
    source_affine: np.ndarray | None = None,
    case: str = "",
    device: str = "cpu",
) -> tuple[Tensor, Geometry]:
    """Radiographs of one CT, without a file.

    Args:
        cube_hu: CT values [HU] of the cube; only its shape matters for the setting "fine".
        cube_affine: (4, 4), RAS+.
        acquisition: views, detector, setting, degradations.
        source_hu: CT values [HU] before cropping and resizing; needed for the setting "fine".
        source_affine: its affine.
        case: name that the noise depends on.
        device: torch device that projects.

    Returns:
        Line integrals (K, V, U), float32, on the CPU, and the geometry.

    Raises:
        ValueError: where the source is missing, or see `simulate_fine`.
    """
    geometry = case_geometry(cube_hu.shape, cube_affine, acquisition)
    preset = SIMULATION_PRESETS[acquisition.setting]
    if not preset.from_source:
        cube = torch.as_tensor(cube_hu, device=device)
        image = simulate_paper(cube, geometry, acquisition.energy_kev, preset.hu_window, preset.oversampling)
    elif source_hu is None or source_affine is None:
        raise ValueError(f"the setting {acquisition.setting!r} needs the uncropped CT ('source'), which is missing")
    else:
        source = torch.as_tensor(source_hu, device=device)
        image = simulate_fine(source, source_affine, geometry, acquisition.energy_kev, preset.oversampling)
    return acquisition.degrade(image.cpu(), geometry.tensor(), case), geometry


def simulate(
    datalist: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    name: str | None = None,
    setting: str = "fine",
    angles_deg: Sequence[float] = EIGHT_ANGLES_DEG,
    beam: str = "parallel",
    source_to_isocenter_mm: float = 1000.0,
    source_to_detector_mm: float = 1500.0,
    detector_shape: Sequence[int] | None = None,
    pixel_mm: float | None = None,
    energy_kev: float = 70.0,
    scatter_to_primary: float = 0.0,
    blur_fwhm_mm: float = 0.0,
    photons: float = 0.0,
    seed: int = 0,
    parts: Sequence[str] | None = None,
    dicom: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    device: str = "cpu",
) -> Path:
    """Compute and store radiographs of every case of a prepared cohort.

    For every case `radiographs/<name>/<case>.nii.gz` (line integrals, float32, axes u, v, view) and `<case>.json` (the
    geometry), and a copy of the datalist with the entries "image" and "geometry". What is there already, with the same
    settings from the same CT, is kept.

    Args:
        datalist: datalist.json of a prepared cohort.
        output: folder for radiographs and the new datalist; the cohort's own by default.
        name: of this set of radiographs; the setting by default.
        setting: "fine" (the CT before resizing, not clipped, finer detector averaged down) or "paper" (the cube).
        angles_deg: of the sources; 0 lateral, source at the patient's right, 90 frontal (AP).
        beam: "parallel" or "cone".
        source_to_isocenter_mm: cone beam.
        source_to_detector_mm: cone beam.
        detector_shape: rows and columns; by default as many rows as the cube is high, half as many columns again.
        pixel_mm: detector pixel; by default a voxel's size, magnified.
        energy_kev: photon energy, 20 to 200.
        scatter_to_primary: scatter over primary in the patient's shadow; 0 for none.
        blur_fwhm_mm: width of the detector's blur; 0 for none.
        photons: counted by a pixel without a patient, for quantum noise; 0 for none.
        seed: of the noise.
        parts: of the datalist that get radiographs, such as "test"; all by default.
        dicom: write each view as a DICOM DX file, too: radiographs/<name>/<case>/<angle>_degrees.dcm, as an X-ray unit
            would (14 bits, for processing, all tags), one study for each case. Cone beam only.
        workers: processes, each of which needs up to 2 GB.
        scheduler: address of a Dask scheduler, such as tcp://host:8786, whose workers compute instead; it must be one
            that you trust (docs/how-to/cluster.md).
        device: torch device that projects, such as cuda:0; the CPU gives the same bits everywhere.

    Returns:
        The new datalist's path, datalist_<name>.json.

    Raises:
        FileNotFoundError: for a datalist or a CT that is not there.
        ValueError: for a datalist without cases, settings that make no sense, or a CT that cannot be projected.
    """
    acquisition = Acquisition(
        setting,
        tuple(float(angle) for angle in angles_deg),
        beam,
        float(source_to_isocenter_mm),
        float(source_to_detector_mm),
        None if detector_shape is None else (int(detector_shape[0]), int(detector_shape[1])),
        pixel_mm,
        float(energy_kev),
        float(scatter_to_primary),
        float(blur_fwhm_mm),
        float(photons),
        int(seed),
    )
    if dicom and beam != "cone":
        raise ValueError("DICOM knows no parallel beam: pass --beam cone with --dicom")
    usable_device(device)
    name = setting if name is None else name
    plain_name(name, "--name")
    path = Path(datalist)
    content, wanted = _read_datalist(path, parts)
    root, folder = path.parent, no_link(Path(output)) if output is not None else path.parent
    jobs = []
    cts: dict[str, tuple[Any, Any]] = {}
    for part, entries in content.items():
        for entry in entries if isinstance(entries, list) else []:
            ct = (entry["label"], entry.get("source"))
            if cts.setdefault(str(entry["case"]), ct) != ct:
                raise ValueError(f"{path}: the case {entry['case']!r} is there twice, with other CTs: rename one")
            stem = inside(folder, f"radiographs/{name}/{entry['case']}", f"{path}: the case")
            source = root / entry["source"] if "source" in entry else None
            image, geometry = (stem.with_name(stem.name + suffix) for suffix in (".nii.gz", ".json"))
            if part in wanted:
                jobs.append(
                    _Job(str(entry["case"]), root / entry["label"], source, image, geometry, acquisition, dicom, device)
                )
            for key in FILE_KEYS:
                if key in entry:
                    entry[key] = os.path.relpath(root / entry[key], folder)
            if part in wanted:
                entry.update(image=os.path.relpath(image, folder), geometry=os.path.relpath(geometry, folder))
    remove_parts(folder / "radiographs" / name)
    with Workers(workers, scheduler) as pool:
        pool.run(_run, jobs, label=f"radiographs {name}")
    new = folder / f"datalist_{name}.json"
    write_json(new, content)
    count, views = len(jobs), len(acquisition.angles_deg)
    logger.info("%d case%s with %d radiographs each: %s", count, "s"[: count != 1], views, new)
    return new


def _read_datalist(path: Path, parts: Sequence[str] | None) -> tuple[dict[str, Any], set[str]]:
    """The datalist, and the parts that get radiographs; the others stay in it as they are."""
    content = read_datalist(path)
    lists = {part for part, entries in content.items() if isinstance(entries, list)}
    wanted = lists if parts is None else {parts} if isinstance(parts, str) else set(parts)
    if not wanted <= lists:
        raise ValueError(f"{path} has no part {sorted(wanted - lists)}; it has {sorted(lists)}")
    if not any(content[part] for part in wanted):
        held = sorted(part for part in lists if content[part])
        raise ValueError(f"{path} holds no cases in {sorted(wanted)}; it holds some in {held}")
    for entry in [entry for part in lists for entry in content[part]]:
        if not isinstance(entry, dict) or "case" not in entry or "label" not in entry:
            raise ValueError(f"{path}: every entry needs 'case' and 'label', got {entry}")
    return content, wanted


def _run(job: _Job) -> bool:
    """Radiographs of one case as files; False where they were there already."""
    from_source = SIMULATION_PRESETS[job.acquisition.setting].from_source
    if from_source and job.source is None:
        raise ValueError(
            f"{job.case}: the datalist has no 'source' (the uncropped CT), which the setting "
            f"{job.acquisition.setting!r} needs; use the setting 'paper', or prepare the cohort again"
        )
    used = job.source if from_source and job.source is not None else job.label
    if missing := [one for one in (used, job.label) if not one.is_file()]:
        raise FileNotFoundError(f"{missing[0]}: the datalist names this CT, but it is not there")
    # The cube says where the isocentre is, also where the CT is the uncropped one.
    cube, cube_affine = load_hu(job.label)
    try:
        geometry = case_geometry(cube.shape, cube_affine, job.acquisition)
        record = {**asdict(job.acquisition), "ct_sha256": sha256_file(used)}
        record = json.loads(json.dumps({**geometry.to_dict(), "simulation": record}))
        if _is_done(job, record):
            return False
        source, source_affine = load_hu(job.source) if from_source and job.source is not None else (None, None)
        image, _ = simulate_case(cube, cube_affine, job.acquisition, source, source_affine, job.case, job.device)
    except ValueError as error:
        raise ValueError(f"{job.case} ({used}): {error}") from error
    pixel_v, pixel_u = geometry.pixel_mm[0]
    write_nifti(job.image, image.permute(2, 1, 0).contiguous().numpy(), np.diag([pixel_u, pixel_v, 1.0, 1.0]))
    if job.dicom:
        for view, picture, angle in zip(geometry.tensor(), image, job.acquisition.angles_deg, strict=True):
            # The noise is in the line integrals already.
            write_dx(
                job.dicom_file(angle),
                picture,
                view,
                patient_id=job.case,
                patient_name=job.case,
                study=job.image.parent.name,
                photons=None,
            )
    # The geometry comes last: it says that the radiographs are complete, and which bytes they have.
    write_json(job.geometry, {**record, "files": _hashes(job)})
    return True


def _is_done(job: _Job, record: dict[str, Any]) -> bool:
    if not job.geometry.is_file():
        return False
    try:
        content = read_json_object(job.geometry)
    except ValueError as error:
        logger.warning("%s is damaged and is made again (%s)", job.geometry, error)
        return False
    return content == {**record, "files": _hashes(job)}


def _hashes(job: _Job) -> dict[str, str | None]:
    """SHA-256 of a case's files by their names; None for one that is missing."""
    files = [job.image, *(map(job.dicom_file, job.acquisition.angles_deg) if job.dicom else ())]
    return {file.name: sha256_file(file) if file.is_file() else None for file in files}
