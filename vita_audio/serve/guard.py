"""Who may talk to the server, and how much: hosts, origins, a token, the size of requests."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Network, ip_address
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


class ClientLimit:
    """What clients have in progress: how much there may be in all, and of one address."""

    def __init__(self, most: int, most_per_address: int):
        self._most, self._most_per_address = most, most_per_address
        self._taken: Counter[str | None] = Counter()

    @property
    def num_taken(self) -> int:
        return self._taken.total()

    def refusal(self, scope: Scope, things: str) -> str | None:
        """Return why the client of a connection may not have one more of `things`, or None."""
        address = client_address(scope)
        if self.num_taken >= self._most:
            return f"the server has too many {things}; try again later"
        if address is not None and self._taken[address] >= self._most_per_address:
            return f"an address has at most {self._most_per_address} {things} at the same time; try again later"
        return None

    @contextmanager
    def taken(self, scope: Scope) -> Iterator[None]:
        """Count one for the client of a connection."""
        address = client_address(scope)
        self._taken[address] += 1
        try:
            yield
        finally:
            self._taken[address] -= 1
            self._taken += Counter()  # forgets addresses without any


class RateLimit:
    """Allows an amount of something per second on average, and `burst` at once."""

    def __init__(self, rate: float, burst: float):
        self._rate, self._burst, self._left, self._time = rate, burst, burst, perf_counter()

    def allows(self, amount: float) -> bool:
        """Take an amount if it is left; otherwise nothing changes."""
        now = perf_counter()
        self._left, self._time = min(self._burst, self._left + (now - self._time) * self._rate), now
        if amount > self._left:
            return False
        self._left -= amount
        return True


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
        self._request_limit = ClientLimit(limits.max_requests, limits.max_per_address)  # of requests with a body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        if refusal := self._refusal(Headers(scope=scope), scope["path"]):
            return await self._refuse(scope, receive, send, *refusal)
        if scope["type"] == "websocket" or scope["method"] != "POST":  # the server limits messages; others have no body
            return await self.app(scope, receive, send)
        if message := self._request_limit.refusal(scope, "requests"):
            return await self._refuse(scope, receive, send, 429, message)
        with self._request_limit.taken(scope):
            await self._limit_body(scope, receive, send)

    async def _limit_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; it sees a client that leaves in place of a body that is too long or arrives too slowly."""
        num_bytes, is_whole, refusal = 0, False, None
        end = perf_counter() + self.limits.body_seconds

        async def receive_some() -> Message:
            nonlocal num_bytes, is_whole, refusal
            try:
                message = await asyncio.wait_for(receive(), None if is_whole else max(0, end - perf_counter()))
            except asyncio.TimeoutError:
                refusal = 408, f"the request did not arrive within {self.limits.body_seconds:g} s"
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


def client_address(scope: Scope) -> str | None:
    """Return the address of a client; of IPv6 the network, of which one client has all; None for this machine's own.

    A proxy on this machine that names its clients in X-Forwarded-For has their addresses, as uvicorn reads them.
    """
    name = scope["client"][0] if scope.get("client") else None
    try:
        address = ip_address(name)
    except ValueError:
        return name
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback:
        return None
    return str(address if isinstance(address, IPv4Address) else IPv6Network((address, 64), strict=False))


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
