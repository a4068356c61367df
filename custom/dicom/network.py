"""The verb `fewview-ct send`: stores files in a PACS by C-STORE or STOW-RS."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from custom.dicom.identity import PATIENT_ATTRIBUTES, count_patients, patient_of
from custom.dicom.opener import open_dicom
from custom.dicom.store import NetworkError, SendReport, kinds_of, parse_address, store_scu
from custom.dicom.store_web import store_web
from custom.dicom.strict import dicom_files
from custom.dicom.web_session import access_from, check_timeout, check_url, is_loopback

__all__ = ["NetworkError", "SendReport", "send"]

logger = logging.getLogger(__name__)

_PATIENT = ("SpecificCharacterSet", *PATIENT_ATTRIBUTES)


def send(
    *sources: str | os.PathLike[str],
    to: str,
    calling_aet: str = "FEWVIEW",
    timeout_s: float = 30.0,
    tls: bool = False,
    ca_file: Path | None = None,
    certificate_file: Path | None = None,
    key_file: Path | None = None,
    user: str | None = None,
    password_file: Path | None = None,
    token_file: Path | None = None,
) -> SendReport:
    """Sends DICOM files to a PACS, by C-STORE or by STOW-RS.

    Args:
        sources: DICOM files, and folders whose DICOM files are all sent.
        to: AET@host:port for C-STORE, or the URL of a DICOMweb server for STOW-RS.
        calling_aet: our application entity title, C-STORE only.
        timeout_s: longest wait for the connection and for each answer; nothing is tried twice.
        tls: encrypt C-STORE; an https URL is encrypted anyway.
        ca_file: certificates to trust instead of the system's, PEM.
        certificate_file: our own certificate, PEM, where the other side asks for one.
        key_file: its private key, PEM.
        user: user name of the DICOMweb server.
        password_file: a file whose first line is the password.
        token_file: a file whose first line is a bearer token.

    Returns:
        Which files were stored, all of them.

    Raises:
        ValueError: an address that is none, options that do not fit it, no DICOM file in a source.
        FileNotFoundError: a file that was named does not exist.
        NetworkError: unreachable or refused; or some files were not stored, saying how many, which and why.
    """
    web = to.startswith(("http://", "https://"))
    _check_options(web, tls, ca_file, certificate_file, key_file, user, password_file, token_file)
    check_timeout(timeout_s)
    if not sources:
        raise ValueError("nothing to send: name DICOM files or folders")
    files = list(dict.fromkeys(path for source in sources for path in dicom_files(Path(source))))
    unread = SendReport()
    kinds = kinds_of(files, unread)
    if not kinds:
        path, why = next(iter(unread.failed.items()))
        raise ValueError(f"{path}: {why}; nothing was sent")
    patients = count_patients(patient_of(open_dicom(path, pixels=False, tags=_PATIENT)) for path in kinds)
    if patients > 1:
        logger.warning("the %d files are of %d patients; all are sent to %s", len(kinds), patients, to)
    if web:
        if to.startswith("http://") and not is_loopback(urlsplit(to).hostname or ""):
            logger.warning("%s is not encrypted: patient data and passwords can be read on the way", to)
        certificate = None if certificate_file is None or key_file is None else (certificate_file, key_file)
        access = access_from(user, password_file, token_file, ca_file=ca_file, certificate=certificate)
        report = store_web(files, check_url(to, needs_tls=False), timeout_s, access)
    else:
        address = parse_address(to)
        context = _client_context(ca_file, certificate_file, key_file) if tls else None
        report = store_scu(files, address, calling_aet, timeout_s, context)
    for path, text in report.warnings.items():
        logger.warning("%s was stored with a remark: %s", path.name, text)
    if report.failed:
        named = [f"{path.name}: {reason}" for path, reason in list(report.failed.items())[:3]]
        more = len(report.failed) - len(named)
        raise NetworkError(
            f"sent {len(report.sent)} of {len(files)} files to {to}; not stored: {'; '.join(named)}"
            + (f"; and {more} more" if more else "")
        )
    logger.info("sent %d of %d files to %s", len(report.sent), len(files), to)
    return report


def _check_options(
    web: bool,
    tls: bool,
    ca_file: Path | None,
    certificate_file: Path | None,
    key_file: Path | None,
    user: str | None,
    password_file: Path | None,
    token_file: Path | None,
) -> None:
    for path in (ca_file, certificate_file, key_file, password_file, token_file):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
    if (certificate_file is None) != (key_file is None):
        raise ValueError("--certificate_file and --key_file go together")
    if (user is None) != (password_file is None):
        raise ValueError("--user and --password_file go together")
    if user is not None and token_file is not None:
        raise ValueError("give either --user or --token_file")
    if not web and (user is not None or token_file is not None):
        raise ValueError("C-STORE knows no --user and no --token_file; use the URL of a DICOMweb server")
    if not web and not tls and (ca_file is not None or certificate_file is not None):
        raise ValueError("--ca_file and --certificate_file need --tls")


def _client_context(ca_file: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ValueError(f"the certificates cannot be used: {error.reason or error}") from error
    return context
