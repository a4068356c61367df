"""HTTP session with a DICOMweb server: no redirect, answers bounded in time and size, credentials kept secret."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from custom.core.limits import check_count
from custom.dicom.store import NetworkError, quiet_libraries, require

__all__ = [
    "Access",
    "check_timeout",
    "check_url",
    "first_line",
    "is_loopback",
    "read_body",
    "session_of",
    "tail",
    "web_errors",
    "within",
]

logger = logging.getLogger(__name__)

#: Bytes of one answer, a table of results or an object, and how fast it has to come beyond the time-out.
LARGEST_TABLE, LARGEST_OBJECT, SLOWEST_BYTES_PER_S = 2**24, 2**30, 50_000
_CHUNK, _LONGEST_SECRET, _LONGEST_TIMEOUT_S = 2**16, 2**16, 86_400.0


@dataclass(frozen=True)
class Access:
    """How a server is trusted and what it is shown.

    Attributes:
        ca_file: certificates to trust instead of the system's.
        certificate: our own certificate and its key.
        basic: user and password.
        token: bearer token.
    """

    ca_file: Path | None = None
    certificate: tuple[Path, Path] | None = None
    basic: tuple[str, str] | None = None
    token: str | None = None


def check_url(url: str, needs_tls: bool) -> str:
    """The base of a DICOMweb service, without a slash at its end.

    Raises:
        ValueError: no URL, one with a password in it, or, where `needs_tls`, one that is not encrypted on its way.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except ValueError:  # a port or an IPv6 address that is none
        host = None
    if host is None or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is no URL of a DICOMweb server, such as https://pacs.example/dicom-web")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "the URL holds a user or password, which other users of this machine can see: give --password_file or "
            "--token_file, or set FEWVIEW_PACS_USER and FEWVIEW_PACS_PASSWORD, or FEWVIEW_PACS_TOKEN"
        )
    if needs_tls and parts.scheme == "http" and not is_loopback(host):
        raise ValueError(f"{url} is not encrypted: patient data is fetched by https only, or from this machine itself")
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether the host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_timeout(timeout_s: float) -> None:
    """Raises ValueError for a time-out that is none."""
    if not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
        raise ValueError(f"timeout_s must be positive and at most {_LONGEST_TIMEOUT_S:g}, got {timeout_s:g}")


def first_line(path: Path) -> str:
    """The password or token in a file.

    Raises:
        ValueError: naming the file: its first line is empty, or holds what cannot be in a password.
    """
    mode = path.stat().st_mode
    if mode & 0o007:
        logger.warning("%s can be read by all users of this machine; chmod 600 keeps it to yourself", path)
    with path.open("rb") as stream:
        content = stream.read(_LONGEST_SECRET)
    try:
        line = content.decode("utf-8-sig").split("\n")[0].removesuffix("\r")
    except UnicodeDecodeError:
        line = "\0"
    if not line.strip():
        raise ValueError(f"{path} has no first line: it must hold the password or token")
    return _secret(line, str(path))


def _secret(text: str, where: str) -> str:
    """A password or token; one with a line break would become a header of its own, and an error could show it."""
    if not text.isprintable():
        raise ValueError(f"{where} holds characters that cannot be in a password or token; is it the right one?")
    return text


def _variable(name: str) -> str | None:
    text = os.environ.get(name)
    return None if text is None else _secret(text, name)


def access_from(user: str | None, password_file: Path | None, token_file: Path | None, **trust: Any) -> Access:
    """Credentials out of files, else of FEWVIEW_PACS_USER and FEWVIEW_PACS_PASSWORD, or FEWVIEW_PACS_TOKEN.

    Raises:
        ValueError: a user without a password, or two kinds of credentials.
        FileNotFoundError: a file that was named does not exist.
    """
    for path in (password_file, token_file):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
    user = user or _variable("FEWVIEW_PACS_USER")
    password = first_line(password_file) if password_file else _variable("FEWVIEW_PACS_PASSWORD")
    token = first_line(token_file) if token_file else _variable("FEWVIEW_PACS_TOKEN")
    if token is not None and (token_file or user is None):
        if not token.strip().isascii():
            raise ValueError(f"{token_file or 'FEWVIEW_PACS_TOKEN'} holds letters that cannot be in a token")
        return Access(token=token.strip(), **trust)
    if user is not None and ":" in user:
        raise ValueError(f"a user name cannot hold a colon (RFC 7617), got {user!r}")
    if (user is None) != (password is None):
        raise ValueError("a user and a password go together: --user with --password_file, or both in the environment")
    return Access(basic=None if user is None or password is None else (user, password), **trust)


def session_of(access: Access, timeout_s: float) -> Any:
    """A `requests.Session` whose answers come whole, in time, and from the host that was asked.

    Its requests take `into`, a stream that gets the body of an object; other answers are tables and kept in memory.
    """
    requests = require("requests")

    base: Any = requests.Session

    class Guarded(base):
        def request(self, method: str, url: str, into: BinaryIO | None = None, **options: Any) -> Any:
            options |= {"stream": True, "allow_redirects": False, "timeout": (timeout_s, timeout_s)}
            if is_loopback(urlsplit(url).hostname or ""):  # a proxy would get what shall not leave this machine
                options["proxies"] = {"http": None, "https": None, "all": None}
            sent = options.get("data")
            size = len(sent) if isinstance(sent, bytes) else 0 if sent is None else LARGEST_OBJECT
            allowed = 2 * timeout_s + size / SLOWEST_BYTES_PER_S
            response = within(lambda: allowed, lambda: super(Guarded, self).request(method, url, **options))
            if response.is_redirect or response.is_permanent_redirect:
                response.close()
                target = urlsplit(response.headers.get("location", "")).hostname or "another address"
                raise NetworkError(f"{url} sends us on to {target}, which is not followed; is it the URL?")
            limit = LARGEST_TABLE if into is None else LARGEST_OBJECT
            response._content = read_body(response, url, timeout_s, limit, into)
            response._content_consumed = True
            return response

    session = Guarded()
    session.headers["Accept-Encoding"] = "identity"
    if access.ca_file is not None:
        # Session.verify would lose against REQUESTS_CA_BUNDLE of the environment.
        merge = session.merge_environment_settings
        session.merge_environment_settings = lambda *args: {**merge(*args), "verify": str(access.ca_file)}
    if access.certificate is not None:
        session.cert = tuple(str(path) for path in access.certificate)
    session.auth = None if access.basic is None else tuple(part.encode() for part in access.basic)
    if access.token is not None:
        session.headers["Authorization"] = f"Bearer {access.token}"
        session.auth = lambda request: request  # else requests takes one out of ~/.netrc
    return session


def within(seconds: Callable[[], float], call: Callable[[], Any]) -> Any:
    """The call's result; a server that sends a byte now and then keeps it from ending by itself.

    Raises:
        requests.exceptions.ReadTimeout: it took longer.
    """
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((True, call()))
        except BaseException as error:
            found.append((False, error))

    thread, start = threading.Thread(target=run, daemon=True), time.monotonic()
    thread.start()
    while thread.is_alive() and time.monotonic() - start < seconds():
        thread.join(0.05)
    if not found:
        raise require("requests").exceptions.ReadTimeout(f"no answer within {seconds():g} s")
    done, value = found[0]
    if not done:
        raise value
    return value


def read_body(response: Any, url: str, timeout_s: float, limit: int, into: BinaryIO | None = None) -> bytes:
    """The body of a `requests` answer, or, where it went into a stream, nothing.

    Args:
        response: asked for with `stream`.
        url: for messages.
        timeout_s: that may pass beyond what `SLOWEST_BYTES_PER_S` allows for what has come.
        limit: bytes.
        into: gets the body.

    Raises:
        NetworkError: it has more bytes.
        requests.exceptions.RequestException: it does not come, or too slowly.
    """
    table, total, stopped = io.BytesIO(), 0, threading.Event()

    def read() -> None:
        nonlocal total
        with contextlib.closing(response):  # here, since closing waits for a read
            for part in response.iter_content(_CHUNK):
                if stopped.is_set():
                    return
                total += len(part)
                try:
                    check_count(url, "bytes of one answer", total, limit)
                except ValueError as error:
                    raise NetworkError(str(error)) from error
                (into or table).write(part)

    try:
        within(lambda: timeout_s + (total + _CHUNK) / SLOWEST_BYTES_PER_S, read)
    finally:
        stopped.set()
    return table.getvalue()


@contextlib.contextmanager
def web_errors(url: str, timeout_s: float, doing: str, so_far: Callable[[], str]) -> Iterator[None]:
    """What `requests` raises as a `NetworkError` of one line.

    Args:
        url: of the server.
        timeout_s: for the message.
        doing: "store" or "give".
        so_far: what was done before.
    """
    exceptions = require("requests").exceptions
    try:
        with quiet_libraries():
            yield
    except exceptions.SSLError as error:
        raise NetworkError(f"{url} cannot be trusted: {tail(error)}; name its authority with --ca_file") from error
    except exceptions.Timeout as error:
        raise NetworkError(f"{url}: no answer within {timeout_s:g} s; {so_far()}") from error
    except exceptions.HTTPError as error:
        code = error.response.status_code
        denied = code in (401, 403)
        hint = "give --user and --password_file, or --token_file" if denied else "is it the URL?"
        text = f"HTTP {code} {error.response.reason}".strip()
        raise NetworkError(f"{url} refuses to {doing}: {text}; {hint}") from error
    except exceptions.RequestException as error:
        raise NetworkError(f"{url} cannot be reached: {tail(error)}; {so_far()}") from error


def tail(error: BaseException) -> str:
    """The cause at the end of urllib3's chain of exceptions, without addresses of objects."""
    text = " ".join(str(error).split())
    detail = re.search(r"certificate verify failed: ([^(]+)", text)
    if detail:
        return f"certificate verify failed, {detail[1].strip()}"
    for known in ("Connection refused", "Name or service not known", "WRONG_VERSION_NUMBER"):
        if known in text:
            return known.lower().replace("_", " ")
    return re.sub(r"<[^>]*>:? ?", "", text)[-200:]
