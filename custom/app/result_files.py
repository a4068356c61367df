"""What a case gives away: reports, volumes, and a zip of its DICOM objects."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from custom.app.case_folder import EARLIER, RESULT, Case

__all__ = ["REPORTS", "downloads", "file_of", "zipped"]

#: Files by the name in the link, which is also the end of the name that a client gets.
_FILES = {
    "ct.nii.gz": f"{RESULT}/ct.nii.gz",
    "report.html": f"{RESULT}/report.html",
    "result.json": f"{RESULT}/result.json",
    "uncertainty.nii.gz": f"{RESULT}/uncertainty.nii.gz",
    "plan.html": "plan/plan.html",
    "earlier-ct.nii.gz": f"{EARLIER}/ct.nii.gz",
    "earlier-report.html": f"{EARLIER}/report.html",
}
#: Those that are read in the browser.
REPORTS = tuple(name for name in _FILES if name.endswith(".html"))


def file_of(case: Case, name: str) -> Path | None:
    """A file by the name in its link; None for the zip, which is made when it is asked for."""
    return case.folder / _FILES[name] if name in _FILES else None


def downloads(case: Case) -> list[str]:
    """Names of what there is."""
    return [name for name, path in _FILES.items() if case.has(path)] + (["dicom.zip"] if _dicom(case) else [])


def zipped(case: Case) -> bytes:
    """The DICOM objects of result and plan."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _dicom(case):
            archive.write(path, path.relative_to(case.folder).as_posix())
    return stream.getvalue()


def _dicom(case: Case) -> list[Path]:
    result = case.folder / RESULT
    return sorted([*result.glob("ct/*.dcm"), *result.glob("*.dcm"), *(case.folder / "plan").glob("*.dcm")])
