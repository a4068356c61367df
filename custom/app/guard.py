"""`Guard`: who may ask, from where, and what every answer carries.

The Host header is one of ours (against DNS rebinding), whatever changes something comes from a page of ours (Origin,
against cross-site requests), and where a token is set, a cookie shows that it was given once.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Callable, Collection
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from custom.app.case_folder import ID, Refused

__all__ = ["Guard", "chunks_of", "form_of"]

COOKIE = "fewview_session"
#: Seconds that a wrong token costs, and bytes of a form.
_PAUSE_S, _LARGEST_FORM = 1.0, 64_000
#: Seconds until a client that sends nothing more is taken for gone: its case waits for what it began to send.
_SILENCE_S = 60.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


async def chunks_of(request: Request) -> AsyncIterator[bytes]:
    """What a client sends, as it comes.

    Raises:
        Refused: it broke off, nothing came for a minute, or the server ends.
    """
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(_SILENCE_S):
                chunk = await anext(stream, None)
        except (TimeoutError, ClientDisconnect) as error:
            raise Refused(408, "That did not come whole: send it again.") from error
        except asyncio.CancelledError as error:  # by uvicorn alone, at its end
            raise Refused(503, "This page is being stopped: send it again when it is back.") from error
        if chunk is None:
            return
        yield chunk


async def form_of(request: Request) -> dict[str, list[str]]:
    """The fields of a form, read no further than a form can be long.

    Raises:
        Refused: it is longer, or does not come whole.
    """
    body = b""
    async for chunk in chunks_of(request):
        body += chunk
        if len(body) > _LARGEST_FORM:
            raise Refused(413, "That is more than a form holds.")
    fields: dict[str, list[str]] = {}
    for key, value in parse_qsl(body.decode(errors="replace"), keep_blank_values=True):
        fields.setdefault(key, []).append(value)
    return fields


class Guard:
    """Around the whole application.

    Args:
        app: the application.
        hosts: names and addresses that this server is reached by.
        token: that has to be given; None: nobody else can reach this server.
        sign_in: makes the page that asks for the token, of the request and of whether a wrong one was given.
    """

    def __init__(
        self, app: ASGIApp, hosts: Collection[str], token: str | None, sign_in: Callable[[Request, bool], Response]
    ) -> None:
        self.app, self.hosts, self.sign_in = app, {host.lower() for host in hosts}, sign_in
        self.token = None if token is None else token.encode()
        self.proof = hmac.new(self.token or b"", b"signed in", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        answer = await self._answer(request)
        await (self.app if answer is None else answer)(scope, receive, with_headers)

    async def _answer(self, request: Request) -> Response | None:
        """An answer that stands before the application, None where it may go on."""
        host = request.headers.get("host", "")
        if (_hostname(host) or "") not in self.hosts:
            return PlainTextResponse("This server does not go by that name; see --names.\n", 421)
        if request.method not in ("GET", "HEAD") and request.headers.get("origin", "").partition("://")[2] != host:
            return PlainTextResponse("Only pages of this server may ask for that.\n", 403)
        path = request.scope["path"]  # not request.url, of which the Host header is a part
        open_to_all = path == "/health" or path.startswith("/static/")
        if self.token is None or open_to_all:
            return None
        if path == "/sign-in" and request.method == "POST":
            return await self._sign_in(request)
        if hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self.proof.encode()):
            return None
        return self.sign_in(request, False)

    async def _sign_in(self, request: Request) -> Response:
        try:
            fields = await form_of(request)
        except Refused as error:
            return PlainTextResponse(f"{error}\n", error.status)
        given, target = fields.get("token", [""])[0], fields.get("next", ["/"])[0]
        if not hmac.compare_digest(given.strip().encode(), self.token or b""):
            await asyncio.sleep(_PAUSE_S)
            return self.sign_in(request, True)
        answer = RedirectResponse(target if re.fullmatch(f"/(cases/{ID})?", target) else "/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, self.proof, httponly=True, samesite="lax", secure=secure)
        return answer


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
