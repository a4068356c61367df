"""What is done with a damaged radiograph: read it and bring it onto a detector, or the whole command."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import torch

from custom.cli import command_line
from custom.core.checkpoints import save_checkpoint
from custom.core.files import sha256_file
from custom.dicom.header import NotARadiograph
from custom.radiographs import ACCEPT, MissingMetadata, assemble, read_radiographs
from custom.reconstruct import hu_sha256
from custom.reconstruct.outputs import series_sha256
from tests.custom.benchmark.tiny_benchmark import GRID, tiny_network
from tests.custom.dicom.stored_volumes import read_ct_series
from tests.custom.networks.tiny_diffusion import autoencoder, denoiser
from tests.integration.mutated_dicom import Case, Mutations
from tests.integration.supervised import Failure, Outcome

#: Pixel of the tiny model [mm, at the isocentre], and a detector that someone may ask for.
PIXEL_MM, DETECTOR = 20.0, (24, 32)
#: Processor time that a file of a few kilobytes may take [s].
SLOWEST_READ_S, SLOWEST_COMMAND_S = 20.0, 60.0
PARTS = {"ct", "ct.nii.gz", "report.html", "result.json"}
SAMPLED = {"uncertainty.nii.gz", "uncertainty.dcm", "samples"}


def kind_of(message: str) -> str:
    """An error without names and numbers, so that errors can be counted by kind."""
    text = re.sub(r"^(error: )?(\S*/)?\S+\.dcm:? ?", "", message)
    text = re.sub(r"\(\d+\) ", "", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", text)
    return re.sub(r"[-+]?\d[\d.e+-]*", "#", text)[:70]


def _keep(case: Case, folder: Path, number: int, verdict: str, why: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{verdict}_{number:05d}_{case.name}.dcm").write_bytes(case.content)
    text = f"seed file {case.name}\nchanged: {'; '.join(case.done)}\n{why}\n"
    (folder / f"{verdict}_{number:05d}_{case.name}.txt").write_text(text, errors="backslashreplace")


def _checked_error(error: ValueError, *names: str) -> str:
    text = str(error)
    if type(error) not in (ValueError, MissingMetadata, NotARadiograph, FileNotFoundError):
        raise Failure(f"{type(error).__name__} is no error of ours: {text}")
    _check_line(text)
    if not any(name in text for name in names):
        raise Failure(f"the error does not name the file: {text}")
    return text


def _check_line(text: str) -> None:
    if not text.strip() or len(text.splitlines()) != 1 or not text.isprintable():
        raise Failure(f"not one readable line: {text!r}")


def _check_finite(**tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise Failure(f"{name} is not finite")


def reading(seed: int, keep: str) -> Callable[[int], Outcome]:
    """The job of reading: every file with nothing accepted, and with everything."""
    mutations, failures = Mutations(seed), Path(keep)
    torch.set_num_threads(1)

    def job(number: int) -> Outcome:
        case = mutations.case(number)
        try:
            return _read_twice(case, number)
        except BaseException as error:
            _keep(case, failures, number, "read", f"{type(error).__name__}: {error}")
            raise

    return job


def _read_twice(case: Case, number: int) -> Outcome:
    outcome = Outcome(number, "clean", notes={"seed": case.name})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "view.dcm")
        path.write_bytes(case.content)
        for accept in ((), tuple(ACCEPT)):
            try:
                (found,) = read_radiographs([path], accept=accept)
                _check_finite(line_integrals=found.line_integrals, view=found.view)
                if found.line_integrals.shape != found.field_mask.shape or found.line_integrals.dtype != torch.float32:
                    raise Failure("line integrals and exposed do not fit each other")
                for shape in (None, DETECTOR):
                    on = assemble([found], PIXEL_MM, shape)
                    _check_finite(image=on.image, views=on.views)
                    if not (on.image.shape == on.field_mask.shape and on.field_mask.any()):
                        raise Failure("nothing is exposed on the detector")
                for sentence in found.warnings:
                    _check_line(sentence)
                if accept:
                    outcome.notes["accepted"] = "clean"
            except ValueError as error:
                text = _checked_error(error, "view.dcm", "view.json", "a detector of")
                if accept:
                    outcome.notes["accepted"] = kind_of(text)
                else:
                    outcome = Outcome(number, "error", kind_of(text), notes=outcome.notes)
    return outcome


# --- the whole command ---


def tiny_models(folder: Path) -> dict[str, str]:
    """A network, and a denoiser with its parents, that have learnt nothing; each runs in a moment."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "inr.pt", tiny_network())
    ldm = folder / "ldm"
    ldm.mkdir(exist_ok=True)
    parents = {"autoencoder": autoencoder(), "mean": tiny_network()}
    hashes = {role: sha256_file(save_checkpoint(ldm / f"{role}.pt", network)) for role, network in parents.items()}
    meta = {"parents": hashes, "pixel_at_isocenter_mm": PIXEL_MM}
    files = hashes | {"model": sha256_file(save_checkpoint(ldm / "model.pt", denoiser(known_channels=3), meta))}
    content = {"format": "fewview-ct model 1", "name": "tiny", "files": {f"{k}.pt": v for k, v in files.items()}}
    (ldm / "model.json").write_text(json.dumps({**content, "sampler": {"steps": 2}}))
    return {"inr": str(folder / "inr.pt"), "ldm": str(ldm)}


@contextlib.contextmanager
def _caught(path: Path) -> Iterator[None]:
    """Everything that is written to the standard streams goes to a file, by C libraries too."""
    with open(path, "wb") as stream:
        before = os.dup(1), os.dup(2)
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            yield
        finally:
            for number, old in enumerate(before, 1):
                os.dup2(old, number)
                os.close(old)


def commands(seed: int, keep: str) -> Callable[[int], Outcome]:
    """The job of reconstruction: a damaged file alone or beside a clean one, through the command line."""
    mutations, failures = Mutations(seed, deep=True), Path(keep)
    torch.set_num_threads(1)
    models = tiny_models(failures / "models")

    def job(number: int) -> Outcome:
        case = mutations.case(number)
        place = Path(tempfile.mkdtemp())
        try:
            return _command(case, number, place, models, mutations.contents["dx-ll"])
        except BaseException as error:
            _keep(case, failures, number, "command", f"{type(error).__name__}: {error}")
            raise
        finally:
            shutil.rmtree(place, ignore_errors=True)

    return job


def _command(case: Case, number: int, place: Path, models: dict[str, str], other: bytes) -> Outcome:
    r = random.Random(number)
    given, temporary = place / "given", place / "temporary"
    given.mkdir()
    temporary.mkdir()
    (given / "view.dcm").write_bytes(case.content)
    if r.random() < 0.5:
        (given / "lateral.dcm").write_bytes(other)
    sampled = r.random() < 0.35
    words = ["reconstruct", str(given), "--output", str(place / "out"), "--model", models["ldm" if sampled else "inr"]]
    words += ["--samples", "2"] if sampled else []
    words += ["--accept", ",".join(ACCEPT)] if r.random() < 0.6 else []
    before = {path.name: path.read_bytes() for path in given.iterdir()}
    old, tempfile.tempdir = tempfile.tempdir, str(temporary)
    try:
        with _caught(place / "said"):
            try:
                command_line.main(words)
            except SystemExit as end:
                code = end.code
    finally:
        tempfile.tempdir = old
    said = (place / "said").read_text(errors="replace")
    if "Traceback" in said or code not in (0, 2):
        raise Failure(f"exit code {code}: {said[-3000:]}")
    left = sorted(
        str(p.relative_to(place)) for p in place.iterdir() if p.name not in ("given", "temporary", "said", "out")
    )
    # torch keeps compiled kernels in a folder of its own, which any command may be the first to make.
    left += [str(p.relative_to(place)) for p in temporary.iterdir() if not p.name.startswith("torchinductor_")]
    if left or {path.name: path.read_bytes() for path in given.iterdir()} != before:
        raise Failure(f"left behind or changed: {left}")
    notes = {"seed": case.name, "samples": sampled, "pair": len(before) == 2}
    if code == 2:
        if (place / "out").exists():
            raise Failure("an error, and an output folder")
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        if len(lines) != 1 or not said.endswith(lines[0] + "\n"):
            raise Failure(f"not one line of error at the end: {said[-3000:]!r}")
        _check_line(lines[0])
        return Outcome(number, "error", kind_of(lines[0]), notes=notes)
    _check_output(place / "out", PARTS | (SAMPLED if sampled else set()))
    return Outcome(number, "clean", notes=notes)


def _check_output(output: Path, wanted: set[str]) -> None:
    """Complete, finite, and the same volume in every form."""
    found = {path.name for path in output.iterdir()}
    if found != wanted:
        raise Failure(f"the output holds {sorted(found)}, not {sorted(wanted)}")
    hidden = [str(p.relative_to(output)) for p in output.rglob("*") if p.name.startswith(".") or "part" in p.suffix]
    if hidden:
        raise Failure(f"temporary files in the output: {hidden}")
    record = json.loads((output / "result.json").read_text(encoding="utf-8"), parse_constant=_refuse)
    volume = np.asarray(nib.nifti1.load(output / "ct.nii.gz").dataobj)
    series, _ = read_ct_series(output / "ct")
    if not hu_sha256(volume) == hu_sha256(series) == record["volume"]["hu_sha256"]:
        raise Failure("ct.nii.gz, ct/ and result.json do not hold the same volume")
    if volume.shape != GRID.shape or volume.min() < -1024 or volume.max() > 3071:
        raise Failure(f"values from {volume.min()} to {volume.max()} HU")
    for name, digest in record["files"].items():
        if (series_sha256 if name.endswith("/") else sha256_file)(output / name) != digest:
            raise Failure(f"{name} is not what result.json says")
    if "uncertainty.nii.gz" in wanted:
        spread = np.asarray(nib.nifti1.load(output / "uncertainty.nii.gz").dataobj)
        stored = pydicom.dcmread(output / "uncertainty.dcm").pixel_array
        if not np.isfinite(spread).all() or not np.isfinite(stored).all():
            raise Failure("the uncertainty is not finite")
    page = (output / "report.html").read_text(encoding="utf-8")
    if not page.rstrip().endswith("</html>") or "<script>x</script>" in page:
        raise Failure("the report is cut off, or runs what stands in a header")


def _refuse(constant: str) -> None:
    raise Failure(f"result.json holds {constant}")
