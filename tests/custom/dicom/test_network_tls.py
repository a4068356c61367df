"""Encrypted ways to a PACS."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from custom.dicom.network import NetworkError, send
from tests.custom.dicom.network_peers import TIMEOUT_S, store


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def test_encrypted_store(certificate: tuple[Path, Path], pair: Path) -> None:
    with store(server_context(certificate)) as pacs:
        assert len(send(pair, to=pacs.to, tls=True, ca_file=certificate[0], timeout_s=TIMEOUT_S).sent) == 2
        with pytest.raises(NetworkError, match=r"certificate is not trusted .*--ca_file"):
            send(pair, to=pacs.to, tls=True, timeout_s=TIMEOUT_S)
        with pytest.raises(NetworkError, match=r"does it want TLS|cannot be reached"):
            send(pair, to=pacs.to, timeout_s=2)


def test_tls_to_a_plain_port(certificate: tuple[Path, Path], pair: Path) -> None:
    with store() as pacs, pytest.raises(NetworkError, match="cannot be reached"):
        send(pair, to=pacs.to, tls=True, ca_file=certificate[0], timeout_s=2)


def test_a_server_that_asks_for_our_certificate(certificate: tuple[Path, Path], pair: Path) -> None:
    context = server_context(certificate)
    context.load_verify_locations(certificate[0])
    context.verify_mode = ssl.CERT_REQUIRED
    own = {"tls": True, "ca_file": certificate[0], "timeout_s": TIMEOUT_S}
    with store(context) as pacs:
        with pytest.raises(NetworkError):
            send(pair, to=pacs.to, **own)  # type: ignore[arg-type]
        assert not pacs.received
        send(pair, to=pacs.to, certificate_file=certificate[0], key_file=certificate[1], **own)  # type: ignore[arg-type]
    assert len(pacs.received) == 2


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
