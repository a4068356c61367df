"""The verb `fewview-ct app`: checks its options, then serves the pages until it is stopped."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import os
import socket
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from custom.app.case_folder import Cases, Limits
from custom.app.work_queue import Installation
from custom.core.optional_packages import required
from custom.dicom.store import parse_address
from custom.dicom.web_session import access_from, check_url, first_line, is_loopback
from custom.models import MODEL_NAMES, find_model
from custom.radiotherapy.planning_numbers import NUMBERS

__all__ = ["serve"]

logger = logging.getLogger(__name__)

TOKEN_VARIABLE, SHORTEST_TOKEN = "FEWVIEW_APP_TOKEN", 20
#: Seconds that clients have, once the server was told to end, for what they send or fetch.
_LAST_S = 5


def serve(
    folder: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8700,
    names: Sequence[str] = (),
    token_file: Path | None = None,
    pacs: str | None = None,
    send_to: str | None = None,
    pacs_user: str | None = None,
    pacs_password_file: Path | None = None,
    pacs_token_file: Path | None = None,
    pacs_ca_file: Path | None = None,
    device: str | None = None,
    file_mb: int = 200,
    files: int = 16,
    cases: int = 200,
    samples: int = 16,
    keep_days: float = 30.0,
    browser: bool = False,
) -> None:
    """Serves a web page on which radiographs become a CT: dropped or fetched, asked about, reconstructed, reported.

    By default only this machine reaches it. Anything else needs a token, which everyone who uses the page has to give,
    and encryption by a reverse proxy; see docs/how-to/app.md.

    Args:
        folder: where cases are kept, for this user alone; fewview-ct/app in the user's data folder by default.
        host: address to listen on.
        port: to listen on.
        names: further host names by which the page is reached, such as that of a reverse proxy.
        token_file: a file whose first line is the token, or FEWVIEW_APP_TOKEN; at least 20 characters.
        pacs: DICOMweb URL that radiographs are fetched from, and results sent to; off by default.
        send_to: where results are sent instead, a DICOMweb URL or AET@host:port.
        pacs_user: user name of the DICOMweb server.
        pacs_password_file: a file whose first line is the password.
        pacs_token_file: a file whose first line is a bearer token.
        pacs_ca_file: certificates to trust instead of the system's, PEM.
        device: torch device, such as cuda:0; a GPU where there is one, else the CPU.
        file_mb: megabytes that a file may have.
        files: that a case may have.
        cases: that are kept at a time.
        samples: volumes that may be drawn of a case.
        keep_days: after which a case is removed; 0 for never.
        browser: open the page in this machine's browser.

    Raises:
        ValueError: an option that makes no sense, an address in use, a missing token, no model.
        FileNotFoundError: a file that was named does not exist.
        ModuleNotFoundError: the extra app is not installed.
    """
    uvicorn, pages = required("uvicorn", "app", "the page needs"), required("custom.app.pages", "app", "the page needs")
    token = _token(token_file, host, names)
    limits = _limits(Limits(file_mb, files, cases, keep_days, samples))
    fetch_options = _words(
        user=pacs_user, password_file=pacs_password_file, token_file=pacs_token_file, ca_file=pacs_ca_file
    )
    if pacs is not None:
        check_url(pacs, needs_tls=True)
    target = send_to or pacs
    web = target is not None and target.startswith(("http://", "https://"))
    if target is not None:
        check_url(target, needs_tls=True) if web else parse_address(target)
    access_from(pacs_user, pacs_password_file, pacs_token_file)
    if pacs_ca_file is not None and not pacs_ca_file.is_file():
        raise FileNotFoundError(f"{pacs_ca_file} does not exist")
    here = Installation(_models(), device, pacs, target, fetch_options, fetch_options if web else (), _templates())
    listening = _listen(host, port)
    kept = Cases(folder or _data_folder(), limits)
    allowed = {"127.0.0.1", "localhost", "::1", host, *names}
    application = pages.create_app(kept, here, allowed, token)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
    logger.info("%s (cases in %s); stop with Ctrl-C", address, kept.folder)
    if not is_loopback(host):
        logger.warning("%s is not encrypted: put a reverse proxy with TLS before it", address)
    if browser:
        webbrowser.open(address)
    config = uvicorn.Config(
        application, log_level="warning", access_log=False, server_header=False, ws="none",
        timeout_graceful_shutdown=_LAST_S,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listening])


def _token(file: Path | None, host: str, names: Sequence[str]) -> str | None:
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    token = first_line(file) if file is not None else os.environ.get(TOKEN_VARIABLE)
    if token is None:
        if is_loopback(host) and not names:
            return None
        raise ValueError(
            f"others than this machine could reach the page ({', '.join([host, *names])}): give --token_file, or set "
            f"{TOKEN_VARIABLE}, to at least {SHORTEST_TOKEN} characters, such as 'openssl rand -hex 20' prints"
        )
    if len(token) < SHORTEST_TOKEN:
        raise ValueError(f"the token has {len(token)} characters; it needs at least {SHORTEST_TOKEN}")
    return token


def _limits(limits: Limits) -> Limits:
    for name in ("file_mb", "files", "cases"):
        if getattr(limits, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(limits, name)}")
    if limits.samples < 0 or not limits.keep_days >= 0:
        raise ValueError("--samples and --keep_days must be 0 or more")
    return limits


def _words(**options: object) -> tuple[str, ...]:
    """Options as words of a command, files with their whole path."""
    whole = ((key, value.resolve() if isinstance(value, Path) else value) for key, value in options.items())
    return tuple(f"--{key}={value}" for key, value in whole if value is not None)


def _models() -> dict[str, tuple[Path, bool]]:
    found = {}
    for name, draws_samples in MODEL_NAMES.items():
        try:
            found[name] = find_model(name).model.resolve(), draws_samples
        except FileNotFoundError:
            logger.debug("%s has no weights here", name)
    if not found:
        raise ValueError(f"none of the models {', '.join(MODEL_NAMES)} has weights here: see 'fewview-ct weights'")
    return found


def _templates() -> tuple[str, ...]:
    """Plans that can be made here: none without the extra radiotherapy."""
    return tuple(NUMBERS.templates) if importlib.util.find_spec("pydosert") else ()


def _data_folder() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "fewview-ct" / "app"


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that an address in use is said before anything else begins."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        family = socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # who opens the address as soon as it is said waits for the server, and is not refused
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{host}, port {port} cannot be listened on: {reason}; give --host or --port") from error
    return listening
