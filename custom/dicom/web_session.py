"""HTTP session with a DICOMweb server: no redirect, answers bounded in time and size, credentials kept secret."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from custom.core.limits import check_count
from custom.dicom.store import NetworkError, quiet_libraries, require

__all__ = ["Access", "check_url", "first_line", "is_loopback", "session_of", "tail", "web_errors"]

#: Bytes of one answer, and how fast it has to come beyond the time-out.
LARGEST_ANSWER, SLOWEST_BYTES_PER_S = 2**30, 50_000
_CHUNK = 2**16


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
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is no URL of a DICOMweb server, such as https://pacs.example/dicom-web")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "the URL holds a user or password, which other users of this machine can see: give --password_file or "
            "--token_file, or set FEWVIEW_PACS_USER and FEWVIEW_PACS_PASSWORD, or FEWVIEW_PACS_TOKEN"
        )
    if needs_tls and parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError(f"{url} is not encrypted: patient data is fetched by https only, or from this machine itself")
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether the host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def first_line(path: Path) -> str:
    """The password or token in a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or not lines[0].strip():
        raise ValueError(f"{path} has no first line: it must hold the password or token")
    return lines[0].strip()


def access_from(user: str | None, password_file: Path | None, token_file: Path | None, **trust: Any) -> Access:
    """Credentials out of files, else of FEWVIEW_PACS_USER and FEWVIEW_PACS_PASSWORD, or FEWVIEW_PACS_TOKEN.

    Raises:
        ValueError: a user without a password, or two kinds of credentials.
        FileNotFoundError: a file that was named does not exist.
    """
    for path in (password_file, token_file):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
    user = user or os.environ.get("FEWVIEW_PACS_USER")
    password = first_line(password_file) if password_file else os.environ.get("FEWVIEW_PACS_PASSWORD")
    token = first_line(token_file) if token_file else os.environ.get("FEWVIEW_PACS_TOKEN")
    if token is not None and (token_file or user is None):
        return Access(token=token, **trust)
    if (user is None) != (password is None):
        raise ValueError("a user and a password go together: --user with --password_file, or both in the environment")
    return Access(basic=None if user is None or password is None else (user, password), **trust)


def session_of(access: Access, timeout_s: float) -> Any:
    """A `requests.Session` whose answers come whole, in time, and from the host that was asked."""
    requests = require("requests")

    base: Any = requests.Session

    class Guarded(base):
        def request(self, method: str, url: str, **options: Any) -> Any:
            options |= {"stream": True, "allow_redirects": False, "timeout": (timeout_s, timeout_s)}
            sent = options.get("data")
            allowed = 2 * timeout_s + (len(sent) if isinstance(sent, bytes) else LARGEST_ANSWER) / SLOWEST_BYTES_PER_S
            response = _within(allowed, lambda: super(Guarded, self).request(method, url, **options), requests)
            if response.is_redirect or response.is_permanent_redirect:
                response.close()
                target = urlsplit(response.headers.get("location", "")).hostname or "another address"
                raise NetworkError(f"{url} sends us on to {target}, which is not followed; is it the URL?")
            response._content = _body(response, url, timeout_s, requests)
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
    session.auth = access.basic
    if access.token is not None:
        session.headers["Authorization"] = f"Bearer {access.token}"
        session.auth = lambda request: request  # else requests takes one out of ~/.netrc
    return session


def _within(seconds: float, call: Callable[[], Any], requests: Any) -> Any:
    """The call's result; a server that sends a byte now and then keeps it from ending by itself."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((True, call()))
        except BaseException as error:
            found.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise requests.exceptions.ReadTimeout(f"no answer within {seconds:g} s")
    done, value = found[0]
    if not done:
        raise value
    return value


def _body(response: Any, url: str, timeout_s: float, requests: Any) -> bytes:
    start, parts, total = time.monotonic(), [], 0
    with contextlib.closing(response):
        for part in response.iter_content(_CHUNK):
            parts.append(part)
            total += len(part)
            check_count(url, "bytes of one answer", total, LARGEST_ANSWER)
            if time.monotonic() - start > timeout_s + total / SLOWEST_BYTES_PER_S:
                raise requests.exceptions.ReadTimeout("the answer comes too slowly")
    return b"".join(parts)


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
