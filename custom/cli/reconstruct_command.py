"""The verb `fewview-ct reconstruct`: a thin face of `custom.reconstruct.reconstruct`."""

from __future__ import annotations

from collections.abc import Sequence

from custom.cli.exit_codes import ExitCode
from custom.reconstruct.pipeline import reconstruct
from custom.trust import Verdict

__all__ = ["command"]


def command(
    *radiographs: str,
    output: str | None = None,
    model: str = "inr_recon",
    samples: int = 0,
    geometry: str | None = None,
    accept: Sequence[str] = (),
    angles_deg: Sequence[float] | None = None,
    refine_poses: bool = False,
    pose_tolerance_deg: float = 12.0,
    pose_tolerance_mm: float = 20.0,
    pose_tolerance_distance: float = 0.05,
    seed: int = 0,
    device: str | None = None,
    precision: str = "auto",
    thresholds: str | None = None,
    grey_wider_than_hu: float | None = None,
    dicom: bool | None = None,
    report: bool = True,
    strict: bool = False,
    overwrite: bool = False,
) -> ExitCode:
    """Turn one to eight radiographs of a patient into a CT, with its uncertainty and a report on how far to trust it.

    The output folder appears whole or not at all. It holds ct.nii.gz (int16 HU), ct/ (the same as a DICOM series),
    report.html and result.json (hashes, views, the origin of every value, checks, intervals), interval_lower and
    interval_upper (.nii.gz, .dcm) where intervals were calibrated; with samples also uncertainty.nii.gz,
    uncertainty.dcm and samples/. What is not known about a radiograph is never assumed in silence:
    the error names each missing thing, and how to say it.

    Args:
        radiographs: files or folders: DICOM DX, CR, XA, RF or RTIMAGE; PNG or TIFF with a JSON sidecar; a NIfTI stack
            of line integrals with a geometry.
        output: folder to make; it has to be named.
        model: inr_recon, ldm_recon, x2ct or voxel_diffusion; a folder that 'fewview-ct export' made; a bundle; or a
            weights file.
        samples: how many volumes to draw, at least 2, from a model that draws samples (ldm_recon, voxel_diffusion);
            the CT is their mean, the uncertainty their standard deviation. With 0 it is the model's one volume.
        geometry: JSON with what the radiographs do not say about themselves.
        accept: assumptions that may be made where nothing says otherwise, by their names; see the how-to page.
        angles_deg: views to use, by angle; all by default.
        refine_poses: move views until the radiographs agree best, where much speaks for it; the report says what was
            moved.
        pose_tolerance_deg: how far a view may be turned then.
        pose_tolerance_mm: how far it may be shifted along rows and columns.
        pose_tolerance_distance: by what share source and detector may stand closer or farther away.
        seed: of the samples.
        device: torch device, such as cuda:0; a GPU where there is one, else the CPU.
        precision: "auto" (bf16 where the device is fast at it), "bf16" or "fp32".
        thresholds: of the trust checks, made by 'fewview-ct calibrate'; those of the model by default.
        grey_wider_than_hu: hide the CT in the report's planes where its interval is wider than so many HU, and write
            where that is.
        dicom: write the CT as a DICOM series too, and the maps of uncertainty and intervals as parametric maps. By
            default the maps are left out, with a warning, where the extra dicom is not installed; with --dicom that is
            an error.
        report: write report.html.
        strict: end with exit code 3 if the verdict is REJECT, 4 if it is REVIEW.
        overwrite: replace an output folder that is there.

    Returns:
        0; with strict 3 or 4.

    Raises:
        FileNotFoundError: a missing file.
        FileExistsError: the output exists.
        ValueError: radiographs that cannot be used, or an option that makes no sense.
    """
    _check_form(radiographs, output)
    found = reconstruct(
        radiographs,
        output=output,
        model=model,
        samples=samples,
        geometry=geometry,
        accept=accept,
        angles_deg=angles_deg,
        refine_poses=refine_poses,
        pose_tolerance_deg=pose_tolerance_deg,
        pose_tolerance_mm=pose_tolerance_mm,
        pose_tolerance_distance=pose_tolerance_distance,
        seed=seed,
        device=device,
        precision=precision,
        thresholds=thresholds,
        grey_wider_than_hu=grey_wider_than_hu,
        dicom=dicom,
        report=report,
        overwrite=overwrite,
    )
    if not strict or found.verdict is Verdict.PASS:
        return ExitCode.DONE
    return ExitCode.REJECTED if found.verdict is Verdict.REJECT else ExitCode.TO_REVIEW


def _check_form(radiographs: Sequence[str], output: str | None) -> None:
    """Refuses the arguments of version 0.1 (RADIOGRAPHS GEOMETRY OUTPUT CHECKPOINT), saying what they are now."""
    if len(radiographs) == 4 and radiographs[1].endswith(".json") and radiographs[2].endswith((".nii", ".nii.gz")):
        image, geometry, volume, checkpoint = radiographs
        folder = output or volume.removesuffix(".gz").removesuffix(".nii")
        raise ValueError(
            "the arguments of reconstruct have changed: a folder with CT, report and checks is written instead of one "
            f"file; write: fewview-ct reconstruct {image} --geometry {geometry} --output {folder} --model {checkpoint}"
        )
    if not radiographs:
        raise ValueError("no radiographs: name files or folders; fewview-ct reconstruct --help shows the options")
    if output is None:
        raise ValueError("no output: pass --output DIR, the folder to make")
