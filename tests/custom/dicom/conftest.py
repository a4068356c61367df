"""Files to send, a web server, and a certificate."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from custom.dicom.strict import encode
from tests.custom.dicom.network_peers import Web, multipart
from tests.custom.dicom.stored_radiographs import dx, header, save


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    for k in (1, 2):
        save(dx(k), tmp_path / "pair" / f"view{k}.dcm")
    return tmp_path / "pair"


@pytest.fixture
def dx_headers(tmp_path: Path) -> list[Dataset]:
    return [header(save(dx(k), tmp_path / "in" / f"view{k}.dcm")) for k in (1, 2)]


@pytest.fixture
def web() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.got, server.answers, server.objects, server.sends_to = [], [], [], "http://192.0.2.1/"
    server.gives, server.wraps = encode, multipart
    server.url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate can be made")
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-out", str(paths[0]), "-keyout", str(paths[1])],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return paths
