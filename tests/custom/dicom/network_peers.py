"""What the tests of sending talk to."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pydicom
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt

from tests.custom.dicom.stored_radiographs import DX_PROCESSING

CT = "1.2.840.10008.5.1.4.1.1.2"
TIMEOUT_S = 5.0


@contextmanager
def scp(
    answer: Callable[[Any], int],
    contexts: list[tuple[str, list[str]]] | None = None,
    sent: Callable[[Any], None] = lambda event: None,
) -> Iterator[str]:
    """A storage provider that answers each C-STORE as told; `sent` sees answers as they go. Yields where it listens."""
    entity = AE(ae_title="SCP")
    for sop_class, syntaxes in contexts or [(DX_PROCESSING, [ImplicitVRLittleEndian])]:
        entity.add_supported_context(sop_class, syntaxes)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer), (evt.EVT_DIMSE_SENT, sent)]
    )
    try:
        yield f"SCP@127.0.0.1:{server.server_address[1]}"
    finally:
        entity.shutdown()


TAGS = {
    "0020000D": "StudyInstanceUID", "0020000E": "SeriesInstanceUID", "00080018": "SOPInstanceUID",
    "00080060": "Modality",
}  # fmt: skip


def confirmation(body: bytes) -> dict[str, Any]:
    """The answer of a server that has stored the object in a request."""
    sent = pydicom.dcmread(io.BytesIO(body[body.index(b"DICM") - 128 :]), stop_before_pixels=True)
    uid = {"00081155": {"vr": "UI", "Value": [str(sent.SOPInstanceUID)]}}
    return {"00081199": {"vr": "SQ", "Value": [uid]}}


def multipart(data: bytes) -> tuple[str, bytes]:
    """Content type and body of a WADO-RS answer."""
    body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n--x--\r\n"
    return 'multipart/related; type="application/dicom"; boundary=x', body


@contextmanager
def talking(*pieces: bytes, again: bytes = b"", pause_s: float = 0.0) -> Iterator[str]:
    """A server that says the pieces to whoever comes, then the last one without end. Yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    with contextlib.suppress(OSError), peer:
                        peer.recv(2**16)
                        for piece in pieces:
                            peer.sendall(piece)
                        while again:
                            peer.sendall(again)
                            time.sleep(pause_s)

        threading.Thread(target=talk, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/dicom-web"


class Web(http.server.BaseHTTPRequestHandler):
    """A DICOMweb server that keeps what it is sent and answers each request as told: (HTTP status, JSON)."""

    server: Any

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        status, content = self.server.answers.pop(0) if self.server.answers else (200, None)
        data = json.dumps(confirmation(body) if content is None else content).encode()
        self.answer(status, "application/dicom+json", data)

    def do_GET(self) -> None:
        """QIDO-RS and WADO-RS over `server.objects`, datasets; `server.gives` makes other bytes of one, and
        `server.wraps` the answer of them."""
        self.server.got.append((self.path, dict(self.headers), b""))
        if self.server.answers:
            status, content = self.server.answers.pop(0)
            self.answer(status, "application/dicom+json", json.dumps(content).encode())
            return
        place, _, query = self.path.removeprefix("/dicom-web").partition("?")
        words = [word for word in place.split("/") if word]
        asked = dict(urllib.parse.parse_qsl(query))
        levels = dict(zip(words[::2], [*words[1::2], ""], strict=False))
        keys = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
        wanted = {keys[level]: uid for level, uid in levels.items() if uid}
        wanted |= {key: value for key, value in asked.items() if key in ("PatientID", "AccessionNumber")}
        found = [one for one in self.server.objects if all(str(one.get(k, "")) == v for k, v in wanted.items())]
        if len(words) == 6:
            data = self.server.gives(found[0])
            self.answer(200, *self.server.wraps(data))
            return
        level = keys[words[-1]]
        unique = {str(one[level].value): one for one in found}
        answers = [
            {tag: {"vr": "UI", "Value": [str(one.get(key, ""))]} for tag, key in TAGS.items()}
            for one in unique.values()
        ][int(asked.get("offset", 0)) :][: int(asked.get("limit", 100))]
        self.answer(200 if answers else 204, "application/dicom+json", json.dumps(answers).encode())

    def answer(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        if status in (301, 302, 307, 308):
            self.send_header("Location", self.server.sends_to)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Store:
    """A storage provider as a PACS is one; `received` is what it holds."""

    to: str
    received: list[pydicom.Dataset]


@contextmanager
def store(context: ssl.SSLContext | None = None, from_aet: Sequence[str] = ()) -> Iterator[Store]:
    """Takes CT and DX in any transfer syntax, for FEWVIEW alone, from those titles if any are named."""
    entity = AE(ae_title="FEWVIEW")
    for sop_class in (DX_PROCESSING, CT):
        entity.add_supported_context(sop_class, ALL_TRANSFER_SYNTAXES)
    entity.require_called_aet, entity.require_calling_aet = True, list(from_aet)
    received: list[pydicom.Dataset] = []

    def keep(event: Any) -> int:
        received.append(pydicom.dcmread(io.BytesIO(event.encoded_dataset())))
        return 0x0000

    handlers = [(evt.EVT_C_STORE, keep)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=context)
    try:
        yield Store(f"FEWVIEW@127.0.0.1:{server.server_address[1]}", received)
    finally:
        entity.shutdown()
