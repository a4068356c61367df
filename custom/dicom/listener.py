"""A C-STORE listener (Storage SCP, PS3.4 annex B) that writes what it is sent into a folder."""

from __future__ import annotations

import io
import logging
import re
import shutil
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pydicom

from custom.core.files import write_bytes
from custom.dicom.store import NetworkError, check_aet, quiet_libraries, require

__all__ = ["STORED_CLASSES", "Listener"]

logger = logging.getLogger(__name__)

#: Radiographs, and what this package writes.
STORED_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.1": "Computed Radiography Image",
    "1.2.840.10008.5.1.4.1.1.1.1": "Digital X-Ray Image, For Presentation",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "Digital X-Ray Image, For Processing",
    "1.2.840.10008.5.1.4.1.1.12.1": "X-Ray Angiographic Image",
    "1.2.840.10008.5.1.4.1.1.12.2": "X-Ray Radiofluoroscopic Image",
    "1.2.840.10008.5.1.4.1.1.481.1": "RT Image",
    "1.2.840.10008.5.1.4.1.1.2": "CT Image",
    "1.2.840.10008.5.1.4.1.1.30": "Parametric Map",
}
VERIFICATION = "1.2.840.10008.1.1"
MOST_ASSOCIATIONS = 4
GRACE_S = 5.0
"""How long a sender may go on after the last file that was waited for."""

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
SUCCESS, OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND, DUPLICATE = 0x0000, 0xA700, 0xA900, 0xC000, 0x0111


def is_uid(text: str) -> bool:
    """Whether the text is a UID (PS3.5 chapter 9): digits and dots, at most 64. Nothing else becomes a file name."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


class Listener:
    """Listens while the context is open; ``OUTPUT/STUDY-UID/SOP-INSTANCE-UID.dcm`` is written for each object.

    A file is complete from the moment it has its name. An object that is there already with the same content is
    acknowledged, one with another content is refused (status 0x0111), so that nothing is overwritten.

    Args:
        output: folder, made where it does not exist.
        host: address to listen on.
        port: 0 takes a free one.
        aet: our application entity title; others who call for another are rejected.
        from_aet: titles that may send; empty for anyone.
        max_file_mb: a sender of a larger object is cut off.
        context: TLS, None for a plain connection.

    Attributes:
        received: files of this run, in the order of their first arrival.
        refused: number of objects that were not written.
        address: host and port.

    Raises:
        ModuleNotFoundError: pynetdicom is not installed.
        ValueError: a title that is none.
        NetworkError: the address cannot be listened on.
    """

    def __init__(
        self,
        output: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 11112,
        aet: str = "FEWVIEW",
        from_aet: Sequence[str] = (),
        max_file_mb: float = 512.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        if max_file_mb <= 0 or not 0 <= port < 65536:
            raise ValueError(f"max_file_mb must be positive and port below 65536; got {max_file_mb:g} and {port}")
        self.output = output
        self.received: list[Path] = []
        self.refused = 0
        self._limit = int(max_file_mb * 1e6)
        self._host, self._port, self._context = host, port, context
        self._lock = threading.Lock()
        self._quiet = quiet_libraries()
        self._entity = require("pynetdicom").AE(ae_title=check_aet(aet))
        syntaxes = require("pynetdicom").ALL_TRANSFER_SYNTAXES
        for sop_class in STORED_CLASSES:
            self._entity.add_supported_context(sop_class, syntaxes)
        self._entity.add_supported_context(VERIFICATION)
        self._entity.require_called_aet = True
        self._entity.require_calling_aet = [check_aet(title) for title in from_aet]
        self._entity.maximum_associations = MOST_ASSOCIATIONS
        self._server: Any = None

    def __enter__(self) -> Listener:
        evt = require("pynetdicom").evt
        self.output.mkdir(parents=True, exist_ok=True)
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
            (evt.EVT_DATA_RECV, self._count_bytes),
        ]
        self._quiet.__enter__()
        try:
            self._server = self._entity.start_server(
                (self._host, self._port), block=False, evt_handlers=handlers, ssl_context=self._context
            )
        except OSError as error:
            self._quiet.__exit__(None, None, None)
            reason = (error.strerror or str(error)).lower()
            raise NetworkError(
                f"cannot listen on {self._host}:{self._port}: {reason}; choose another --port"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entity.shutdown()
        self._quiet.__exit__(None, None, None)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def finish(self) -> None:
        """Wait until those who are sending have finished, at most some seconds."""
        end = time.monotonic() + GRACE_S
        while self._server.active_associations and time.monotonic() < end:
            time.sleep(0.02)

    def _count_bytes(self, event: Any) -> None:
        """Cut off a sender before an object of any size fills the memory."""
        total = getattr(event.assoc, "_fewview_bytes", 0) + len(event.data)
        event.assoc._fewview_bytes = total
        # Encoding of the protocol adds little to the data set.
        if total > self._limit * 1.01 + 65536 and not getattr(event.assoc, "_fewview_cut", False):
            event.assoc._fewview_cut = True
            self.refused += 1
            logger.warning(
                "%s sends an object of more than %g MB (--max_file_mb): cut off",
                event.assoc.requestor.ae_title,
                self._limit / 1e6,
            )
            event.assoc.abort()

    def _store(self, event: Any) -> int:
        event.assoc._fewview_bytes = 0
        status, reason = self._take(event)
        if status != SUCCESS:
            with self._lock:
                self.refused += 1
            logger.warning("an object from %s was refused: %s", event.assoc.requestor.ae_title, reason)
        return status

    def _take(self, event: Any) -> tuple[int, str]:
        """Check and write one object. Returns the status of the answer and the reason in words."""
        wanted = str(event.request.AffectedSOPInstanceUID)
        content = event.encoded_dataset()
        try:
            header = pydicom.dcmread(
                io.BytesIO(content),
                stop_before_pixels=True,
                specific_tags=["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"],
            )
            uid, study = str(header.get("SOPInstanceUID", "")), str(header.get("StudyInstanceUID", ""))
            sop_class = str(header.get("SOPClassUID", ""))
        except Exception as error:  # whatever a stranger's bytes provoke must not end the listener
            return CANNOT_UNDERSTAND, f"its header cannot be read ({type(error).__name__})"
        if not is_uid(uid) or not is_uid(study):
            return CANNOT_UNDERSTAND, "its SOP Instance UID or Study Instance UID is no UID"
        if uid != wanted or sop_class != str(event.request.AffectedSOPClassUID):
            return MISMATCH, "its SOP class or instance is not the one that was announced"
        path = self.output / study / f"{uid}.dcm"
        with self._lock:
            try:
                if shutil.disk_usage(self.output).free < 2 * len(content):
                    return OUT_OF_RESOURCES, "the disk is full"
                if path.exists():
                    if path.read_bytes() != content:
                        return DUPLICATE, f"{path.name} is there already with another content"
                else:
                    write_bytes(path, content)
            except OSError as error:
                return OUT_OF_RESOURCES, str(error.strerror or error)
            if path not in self.received:
                self.received.append(path)
        return SUCCESS, ""
