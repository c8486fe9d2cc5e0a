"""Who may talk to the server, and how much: hosts, origins, a token, the size of requests."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from time import perf_counter
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from vita_audio.serve.settings import Limits

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
TOKEN_PROTOCOL = "openai-insecure-api-key."  # before the token, in the subprotocols of a browser's WebSocket
OPEN_PATHS = ("/", "/health")  # need no token, as do files of the page
STATIC = "/static/"
CODES = {401: "invalid_api_key", 429: "server_busy"}  # of errors, by their HTTP status


class Guard:
    """ASGI middleware that refuses requests.

    A request must name a host in `hosts` (against DNS rebinding), come from this server's own page if it comes from a
    browser, and carry the token, if there is one: as `Authorization: Bearer`, or as a WebSocket's subprotocol.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Sequence[str],
        token: str | None,
        limits: Limits,
        note_error: Callable[[str | int], None],
    ):
        """Guard an application; `note_error` gets the code or status of each refusal."""
        self.app, self.token, self.limits, self._note_error = app, token, limits, note_error
        self.hosts = {host.lower() for host in hosts}
        self._num_requests = 0  # with a body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        if refusal := self._refusal(Headers(scope=scope), scope["path"]):
            return await self._refuse(scope, receive, send, *refusal)
        if scope["type"] == "websocket" or scope["method"] != "POST":  # the server limits messages; others have no body
            return await self.app(scope, receive, send)
        if self._num_requests >= self.limits.max_requests:
            return await self._refuse(scope, receive, send, 429, "the server has too many requests; try again later")
        self._num_requests += 1
        try:
            await self._limit_body(scope, receive, send)
        finally:
            self._num_requests -= 1

    async def _limit_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; it sees a client that leaves in place of a body that is too long or arrives too slowly."""
        num_bytes, is_whole, refusal = 0, False, None
        end = perf_counter() + self.limits.idle_seconds

        async def receive_some() -> Message:
            nonlocal num_bytes, is_whole, refusal
            try:
                message = await asyncio.wait_for(receive(), None if is_whole else max(0, end - perf_counter()))
            except asyncio.TimeoutError:
                refusal = 408, f"the request did not arrive within {self.limits.idle_seconds:g} s"
                return {"type": "http.disconnect"}
            num_bytes += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if num_bytes > self.limits.max_bytes:
                refusal = self._too_large()
            return {"type": "http.disconnect"} if refusal else message

        async def send_answer(message: Message) -> None:
            if not refusal:
                await send(message)

        try:
            await self.app(scope, receive_some, send_answer)
        finally:
            if refusal:
                await self._refuse(scope, receive, send, *refusal)

    def _refusal(self, headers: Headers, path: str) -> tuple[int, str] | None:
        host, length = headers.get("host", ""), headers.get("content-length", "0")
        if parse_url(f"//{host}").hostname not in self.hosts:
            return 400, f"this server does not answer for the host {host!r}; see --allow-host"
        if (origin := headers.get("origin")) is not None and parse_url(origin).netloc != host:
            return 403, f"pages of {origin!r} may not use this server"
        if not length.isdecimal() or int(length) > self.limits.max_bytes:
            return self._too_large()
        is_open = path in OPEN_PATHS or path.startswith(STATIC)
        if (
            self.token
            and not is_open
            and not secrets.compare_digest(given_token(headers).encode(), self.token.encode())
        ):
            return 401, "this server needs its token, as Authorization: Bearer TOKEN"
        return None

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int, message: str) -> None:
        """Answer with an error; a WebSocket is closed before it opens, which clients see as status 403."""
        code = CODES.get(status)
        self._note_error(code or status)
        if scope["type"] == "websocket":
            return await WebSocketClose(1008, message)(scope, receive, send)
        kind = "server_error" if status == 429 else "invalid_request_error"
        error = {"type": kind, "code": code, "param": None, "message": message}
        await JSONResponse({"error": error}, status)(scope, receive, send)

    def _too_large(self) -> tuple[int, str]:
        return 413, f"a request has at most {self.limits.max_bytes} bytes"


def parse_url(text: str) -> SplitResult:
    """Split a URL; a malformed one has no parts."""
    try:
        return urlsplit(text)
    except ValueError:
        return urlsplit("")


def given_token(headers: Headers) -> str:
    """Return the token that a request carries, or an empty string."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token
    protocols = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
    return next((name[len(TOKEN_PROTOCOL) :] for name in protocols if name.startswith(TOKEN_PROTOCOL)), "")
