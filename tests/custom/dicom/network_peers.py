"""What the tests of sending and receiving talk to."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt

from custom.dicom.network import NetworkError, receive, send
from tests.custom.dicom.stored_radiographs import DX_PROCESSING

TIMEOUT_S = 5.0


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def scp(answer: Callable[[Any], int], contexts: list[tuple[str, list[str]]] | None = None) -> Iterator[str]:
    """A storage provider that answers each C-STORE as told. Yields where it listens."""
    entity = AE(ae_title="SCP")
    for sop_class, syntaxes in contexts or [(DX_PROCESSING, [ImplicitVRLittleEndian])]:
        entity.add_supported_context(sop_class, syntaxes)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)])
    try:
        yield f"SCP@127.0.0.1:{server.server_address[1]}"
    finally:
        entity.shutdown()


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
        status, content = self.server.answers.pop(0) if self.server.answers else (200, {})
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def in_background(**options: Any) -> tuple[threading.Thread, list[Any]]:
    result: list[Any] = []

    def work() -> None:
        try:
            result.append(receive(**options))
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, result


def send_when_it_listens(pair: Path, port: int) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            send(pair, to=f"FEWVIEW@127.0.0.1:{port}", timeout_s=TIMEOUT_S)
            return
        except NetworkError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
