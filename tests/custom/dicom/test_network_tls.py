"""Encrypted ways to and from a PACS."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from custom.dicom.listener import Listener
from custom.dicom.network import NetworkError, send
from tests.custom.dicom.network_peers import TIMEOUT_S, free_port, in_background


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def test_encrypted_store(certificate: tuple[Path, Path], pair: Path, tmp_path: Path) -> None:
    with Listener(tmp_path / "in", port=0, context=server_context(certificate)) as listener:
        to = f"FEWVIEW@127.0.0.1:{listener.address[1]}"
        assert len(send(pair, to=to, tls=True, ca_file=certificate[0], timeout_s=TIMEOUT_S).sent) == 2
        with pytest.raises(NetworkError, match=r"certificate is not trusted .*--ca_file"):
            send(pair, to=to, tls=True, timeout_s=TIMEOUT_S)
        with pytest.raises(NetworkError, match=r"does it want TLS|cannot be reached"):
            send(pair, to=to, timeout_s=2)


def test_tls_to_a_plain_port(certificate: tuple[Path, Path], pair: Path, tmp_path: Path) -> None:
    with Listener(tmp_path / "in", port=0) as listener, pytest.raises(NetworkError, match="cannot be reached"):
        send(pair, to=f"FEWVIEW@127.0.0.1:{listener.address[1]}", tls=True, ca_file=certificate[0], timeout_s=2)


def test_receive_with_certificates(certificate: tuple[Path, Path], pair: Path, tmp_path: Path) -> None:
    port = free_port()
    thread, result = in_background(
        output=tmp_path / "in", port=port, count=2, timeout_s=60, certificate_file=certificate[0],
        key_file=certificate[1], ca_file=certificate[0],
    )  # fmt: skip
    end = time.monotonic() + 20
    while True:
        try:
            send(
                pair, to=f"FEWVIEW@127.0.0.1:{port}", tls=True, ca_file=certificate[0], certificate_file=certificate[0],
                key_file=certificate[1], timeout_s=TIMEOUT_S,
            )  # fmt: skip
            break
        except NetworkError:
            assert time.monotonic() < end
            time.sleep(0.05)
    thread.join(15)
    assert len(result[0]) == 2


def test_web_server_over_tls(
    certificate: tuple[Path, Path], pair: Path, web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none.pem").write_text("")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    web.socket = server_context(certificate).wrap_socket(web.socket, server_side=True)
    url = web.url.replace("http:", "https:")
    assert len(send(pair, to=url, ca_file=certificate[0], timeout_s=TIMEOUT_S).sent) == 2
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(NetworkError, match=r"cannot be trusted: certificate verify failed, .*--ca_file"):
        send(pair, to=url, timeout_s=TIMEOUT_S)
