"""Sending DICOM files: C-STORE to an application entity, STOW-RS to a DICOMweb server."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import re
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ImplicitVRLittleEndian

from custom.core.optional_packages import required
from custom.dicom.opener import open_dicom, reason

__all__ = [
    "Address",
    "NetworkError",
    "SendReport",
    "kinds_of",
    "parse_address",
    "quiet_libraries",
    "require",
    "store_scu",
]

logger = logging.getLogger(__name__)

MOST_CONTEXTS = 120
"""Presentation contexts of one association; the standard allows 128 (PS3.8 9.3.2.2)."""


LARGEST_PDU = 2**20
"""Bytes of a PDU that the other side may send; we announce 16382 of data (PS3.8 annex D.1)."""


class NetworkError(OSError):
    """The other side could not be reached, refused, or did not take every file. One line says which."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EIO, message)

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True)
class Address:
    """An application entity on the network."""

    aet: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.aet}@{self.host}:{self.port}"


@dataclass
class SendReport:
    """What became of the files.

    Attributes:
        sent: files that the other side has stored.
        failed: file to the reason why it was not stored.
        warnings: file to what the other side remarked about a file that it stored.
    """

    sent: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    warnings: dict[Path, str] = field(default_factory=dict)


def check_aet(aet: str) -> str:
    """An application entity title (PS3.5 6.2, VR AE): 1 to 16 printable ASCII characters without backslash."""
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", aet) or not aet.strip():
        raise ValueError(f"{aet!r} is no application entity title: 1 to 16 printable ASCII characters, no backslash")
    return aet


def parse_address(text: str) -> Address:
    """``AET@host:port``; an IPv6 address stands in brackets.

    Raises:
        ValueError: the text is none.
    """
    match = re.fullmatch(r"([^@]+)@(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(\d{1,5})", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ValueError(
            f"{text!r} is no address: write AET@host:port for C-STORE (PACS@192.0.2.7:104), or the URL of a DICOMweb "
            "server for STOW-RS (https://pacs.example/dicom-web)"
        )
    return Address(check_aet(match[1]), match[2].strip("[]"), int(match[3]))


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the network's packages from printing, with tracebacks, what is reported as one line of ours anyway."""
    loggers = [logging.getLogger(name) for name in ("pynetdicom", "dicomweb_client", "retrying")]
    levels = [library.level for library in loggers]
    for library in loggers:
        library.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for library, level in zip(loggers, levels, strict=True):
            library.setLevel(level)


def require(module: str) -> Any:
    """Import a module of the extra ``pacs``, or say how to install it."""
    return required(module, "pacs", "the network needs")


def kinds_of(files: Sequence[Path], report: SendReport) -> dict[Path, tuple[UID, UID]]:
    """SOP class and transfer syntax of each file; one that cannot be read goes into the report."""
    kinds = {}
    for path in files:
        try:
            header = open_dicom(path, pixels=False, tags=["SOPClassUID", "SOPInstanceUID"])
            kinds[path] = (UID(header.SOPClassUID), UID(header.file_meta.TransferSyntaxUID))
            if not header.SOPInstanceUID:
                raise AttributeError("no SOP Instance UID")
        except (InvalidDicomError, AttributeError, ValueError, TypeError, EOFError, OSError, KeyError) as error:
            kinds.pop(path, None)
            said = reason(error).removeprefix(f"{path}: ")
            report.failed[path] = said if isinstance(error, ValueError) else f"damaged or not a DICOM file ({said})"
    return kinds


def _contexts(kinds: dict[Path, tuple[UID, UID]]) -> list[tuple[UID, UID]]:
    """Pairs of SOP class and transfer syntax to propose. Uncompressed files may be re-encoded in implicit VR."""
    pairs = dict.fromkeys(kinds.values())
    for sop_class, syntax in list(pairs):
        if syntax.is_little_endian and not syntax.is_compressed:
            pairs[(sop_class, ImplicitVRLittleEndian)] = None
    return list(pairs)


def why_unreachable(address: Address, timeout_s: float, context: ssl.SSLContext | None) -> str:
    """The reason, in words, why no association came about: found out by connecting once more without DICOM."""
    try:
        with socket.create_connection((address.host, address.port), timeout=timeout_s) as plain:
            if context is None:
                return "it closed the connection without an answer; is it a DICOM port, and does it want TLS (--tls)?"
            with context.wrap_socket(plain, server_hostname=address.host):
                return "it closed the TLS connection without an answer; does it want a client certificate?"
    except ssl.SSLCertVerificationError as error:
        return f"its TLS certificate is not trusted ({error.verify_message}); name its authority with --ca_file"
    except ssl.SSLError as error:
        return f"TLS failed ({error.reason or error}); is it a TLS port?"
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except socket.gaierror:
        return "the host name is not known"
    except OSError as error:
        return f"{error.strerror or error}".lower()


def _association_problem(
    assoc: Any, answer: Any | None, address: Address, timeout_s: float, context: ssl.SSLContext | None
) -> str:
    """Why ``associate`` gave no association; `answer` is the rejection, None where none came."""
    if answer is not None:
        return f"{address} rejected the association: {answer.reason_str.lower()} ({answer.result_str.lower()})"
    if assoc.accepted_contexts or assoc.rejected_contexts:
        classes = ", ".join(sorted({UID(c.abstract_syntax).name for c in assoc.rejected_contexts}))
        return f"{address} takes none of these kinds of file: {classes}"
    return f"{address} cannot be reached: {why_unreachable(address, timeout_s, context)}"


def _handlers(rejections: list[Any], answered: list[str], timeout_s: float) -> list[tuple[Any, ...]]:
    """Handlers that bound what a PDU takes, and keep what pynetdicom does not hand on.

    Args:
        rejections: gets an A-ASSOCIATE-RJ (PS3.8 9.3.4) as it arrives. Where the peer closes the connection right after
            it, pynetdicom may only see that there is none.
        answered: gets of each answer the Affected SOP Instance UID (0000,1000), "" where it has none.
        timeout_s: for each PDU.
    """
    pynetdicom = require("pynetdicom")

    def opened(event: Any) -> None:
        ours = event.assoc.dul.socket
        ours.recv = functools.partial(_received, ours, timeout_s)

    def received(event: Any) -> None:
        if type(event.pdu).__name__ == "A_ASSOCIATE_RJ":
            rejections.append(event.pdu.to_primitive())

    def told(event: Any) -> None:
        answered.append(str(event.message.command_set.get("AffectedSOPInstanceUID") or ""))

    return [
        (pynetdicom.evt.EVT_CONN_OPEN, opened),
        (pynetdicom.evt.EVT_PDU_RECV, received),
        (pynetdicom.evt.EVT_DIMSE_RECV, told),
    ]


def _received(ours: Any, timeout_s: float, count: int) -> bytearray:
    """So many bytes of a peer, whole and in time: pynetdicom itself takes what length a PDU claims, and waits for it.

    Raises:
        OSError: it is more than an answer has, or comes too slowly.
    """
    if count > LARGEST_PDU:
        raise OSError(f"a PDU of {count} bytes")
    found, end, before = bytearray(), time.monotonic() + timeout_s, ours.socket.gettimeout()
    try:
        while len(found) < count:
            ours.socket.settimeout(max(end - time.monotonic(), 1e-3))
            part = ours.socket.recv(count - len(found))
            if not part:
                break
            found += part
            if time.monotonic() > end:
                raise TimeoutError
    finally:
        ours.socket.settimeout(before)
    return found


def store_scu(
    files: Sequence[Path], address: Address, calling_aet: str, timeout_s: float, context: ssl.SSLContext | None = None
) -> SendReport:
    """Send files by C-STORE (PS3.4 annex B), without retries.

    Args:
        files: DICOM files.
        address: the application entity that stores.
        calling_aet: our own title.
        timeout_s: longest wait for the connection and for each answer.
        context: TLS, None for a plain connection.

    Returns:
        The report; a file that was refused does not stop the others.

    Raises:
        ModuleNotFoundError: pynetdicom is not installed.
        NetworkError: no association at all.
    """
    pynetdicom = require("pynetdicom")
    report = SendReport()
    kinds = kinds_of(files, report)
    pairs = _contexts(kinds)
    with quiet_libraries():
        for start in range(0, len(pairs), MOST_CONTEXTS):
            batch = set(pairs[start : start + MOST_CONTEXTS])
            entity = pynetdicom.AE(ae_title=check_aet(calling_aet))
            entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
            entity.connection_timeout = timeout_s
            for sop_class, syntax in sorted(batch):
                entity.add_requested_context(sop_class, syntax)
            tls = None if context is None else (context, address.host)
            rejections: list[Any] = []
            answered: list[str] = []
            assoc = entity.associate(
                address.host,
                address.port,
                ae_title=address.aet,
                tls_args=tls,
                evt_handlers=_handlers(rejections, answered, timeout_s),
            )
            if not assoc.is_established:
                answer = rejections[0] if rejections else None
                problem = _association_problem(assoc, answer, address, timeout_s, context)
                if answer is not None or not (assoc.accepted_contexts or assoc.rejected_contexts):
                    raise NetworkError(problem)
                report.failed.update({path: problem for path, kind in kinds.items() if kind in batch})
                continue
            try:
                for path in (p for p, kind in kinds.items() if kind in batch):
                    _store_one(assoc, path, kinds[path], answered, report, timeout_s)
            finally:
                if assoc.is_established:
                    assoc.release()
    return report


def _store_one(
    assoc: Any, path: Path, kind: tuple[UID, UID], answered: list[str], report: SendReport, timeout_s: float
) -> None:
    status_module = require("pynetdicom.status")
    if not assoc.is_established:
        report.failed[path] = "not tried, the connection was lost before"
        return
    try:
        dataset = open_dicom(path)
        answered.clear()
        status = assoc.send_c_store(dataset)
    except ValueError as error:
        if "presentation context" not in str(error).lower():
            report.failed[path] = " ".join(str(error).split())[:200]
        else:
            report.failed[path] = f"the other side takes no {kind[0].name} in transfer syntax {kind[1].name}"
        return
    except (RuntimeError, AttributeError, TypeError, OSError) as error:
        report.failed[path] = " ".join(str(error).split())[:200]
        return
    if "Status" not in status:
        report.failed[path] = f"no answer within {timeout_s:g} s, or the connection was lost"
        if assoc.is_established:
            assoc.abort()
        return
    # An answer need not name the object (PS3.7 9.1.1.1); where it does, it must be this one.
    if any(uid and uid != str(dataset.SOPInstanceUID) for uid in answered):
        report.failed[path] = f"the answer is about another object ({answered[-1][:64]})"
        return
    value = int(status.Status)
    meaning = status_module.STORAGE_SERVICE_CLASS_STATUS.get(value, ("", "unknown"))[1].lower()
    comment = str(status.get("ErrorComment", "") or "")
    text = f"status 0x{value:04X}, {meaning}" + (f": {comment}" if comment else "")
    category = status_module.code_to_category(value)
    if category in ("Success", "Warning"):
        report.sent.append(path)
        if category == "Warning":
            report.warnings[path] = text
    else:
        report.failed[path] = text
