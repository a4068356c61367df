"""Sending DICOM files by STOW-RS to a DICOMweb server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pydicom

from custom.dicom.opener import one_line, open_dicom
from custom.dicom.store import NetworkError, SendReport, kinds_of, require
from custom.dicom.web_session import Access, session_of, web_errors

__all__ = ["store_web"]


def store_web(files: Sequence[Path], url: str, timeout_s: float, access: Access) -> SendReport:
    """Send files by STOW-RS (PS3.18 10.5), one request a file, without retries.

    Args:
        files: DICOM files.
        url: base of the DICOMweb service, without ``/studies``.
        timeout_s: longest wait for the connection and for each answer.
        access: trust and credentials.

    Returns:
        The report; a file that was refused, or that the answer does not confirm, does not stop the others.

    Raises:
        ModuleNotFoundError: dicomweb-client is not installed.
        NetworkError: the server cannot be reached, is not trusted, sends us elsewhere, or refuses us altogether.
    """
    require("dicomweb_client")
    requests = require("requests")
    web = require("dicomweb_client.web")
    report = SendReport()
    with session_of(access, timeout_s) as session:
        client = web.DICOMwebClient(url, session=session, timeout=(timeout_s, timeout_s))
        client.set_http_retry_params(retry=False)
        for path in kinds_of(files, report):
            with web_errors(url, timeout_s, "store", lambda: f"{len(report.sent)} of {len(files)} files were stored"):
                try:
                    dataset = _as_file(open_dicom(path))
                    _read_answer(path, str(dataset.SOPInstanceUID), client.store_instances([dataset]), report)
                except requests.exceptions.HTTPError as error:
                    if error.response.status_code in (401, 403, 404, 405):
                        raise
                    report.failed[path] = f"HTTP {error.response.status_code} {error.response.reason}".strip()
                except requests.exceptions.JSONDecodeError as error:
                    report.failed[path] = f"the server's answer cannot be read ({one_line(error)})"
                except (requests.exceptions.RequestException, NetworkError):
                    raise
                except Exception as error:  # whatever a damaged file, or an answer, makes of pydicom and its readers
                    report.failed[path] = f"it cannot be sent, or the server's answer not be read ({one_line(error)})"
    return report


def _as_file(dataset: pydicom.FileDataset) -> pydicom.FileDataset:
    """What a data set lacks that came without the head of a file (PS3.10 7.1), which STOW-RS sends."""
    if not dataset.preamble:
        dataset.preamble, meta = bytes(128), dataset.file_meta
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        meta.FileMetaInformationGroupLength = 0  # is counted when it is written
        pydicom.dataset.validate_file_meta(meta, enforce_standard=True)
    return dataset


def _read_answer(path: Path, uid: str, answer: pydicom.Dataset, report: SendReport) -> None:
    """Read the Store Instances Response Module (PS3.18 I.2): stored is what it confirms by its UID."""
    refused = answer.get("FailedSOPSequence") or []
    if refused:
        reason = int(refused[0].get("FailureReason", 0))
        report.failed[path] = f"the server refused it, failure reason 0x{reason:04X}"
        return
    stored = [one for one in answer.get("ReferencedSOPSequence") or [] if one.get("ReferencedSOPInstanceUID") == uid]
    if not stored:
        report.failed[path] = "the server's answer does not confirm it (no Referenced SOP Instance UID of it)"
        return
    if "WarningReason" in stored[0]:
        report.warnings[path] = f"warning reason 0x{int(stored[0].WarningReason):04X}"
    report.sent.append(path)
