"""Who may talk to the server, and how much: hosts, origins, a token, the size of requests."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
TOKEN_PROTOCOL = "openai-insecure-api-key."  # before the token, in the subprotocols of a browser's WebSocket
OPEN_PATHS = ("/", "/health")  # need no token; files of the page do not either
STATIC = "/static/"


class Guard:
    """ASGI middleware that refuses requests.

    A request must name a host in `hosts` (against DNS rebinding), come from a page of such a host if it comes from a
    browser, and carry the token, if there is one: as `Authorization: Bearer`, or as a WebSocket's subprotocol.
    """

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str], token: str | None, max_bytes: int):
        self.app, self.hosts, self.token, self.max_bytes = app, set(hosts), token, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        if refusal := self._refusal(scope):
            status, message = refusal
            return await refuse(status, message)(scope, receive, send)
        num_bytes = 0

        async def limited() -> Any:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_bytes:
                raise TooLargeError
            return message

        try:
            await self.app(scope, limited if scope["type"] == "http" else receive, send)
        except TooLargeError:
            await refuse(413, f"a request has at most {self.max_bytes} bytes")(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if host not in self.hosts:
            return 400, f"this server does not answer for the host {host!r}; see --allow-host"
        if (origin := headers.get("origin")) and urlsplit(origin).hostname not in self.hosts:
            return 403, f"pages of {origin!r} may not use this server; see --allow-host"
        if (
            int(headers.get("content-length", "0") if headers.get("content-length", "0").isdigit() else "0")
            > self.max_bytes
        ):
            return 413, f"a request has at most {self.max_bytes} bytes"
        is_open = scope["path"] in OPEN_PATHS or scope["path"].startswith(STATIC)
        if (
            self.token
            and not is_open
            and not secrets.compare_digest(given_token(headers).encode(), self.token.encode())
        ):
            return 401, "this server needs its token, as Authorization: Bearer TOKEN"
        return None


class TooLargeError(Exception):
    """A request has too many bytes."""


def given_token(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token
    protocols = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
    return next((name[len(TOKEN_PROTOCOL) :] for name in protocols if name.startswith(TOKEN_PROTOCOL)), "")


def refuse(status: int, message: str) -> ASGIApp:
    """Return an app that answers with an error."""
    error = {"type": "invalid_request_error", "code": None, "param": None, "message": message}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()  # the request to connect; a close in its place becomes status 403
            return await WebSocketClose(1008, message)(scope, receive, send)
        await JSONResponse({"error": error}, status)(scope, receive, send)

    return app
