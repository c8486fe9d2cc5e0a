"""The server's connections: how many there may be, and how long a client may take to send the headers of a request."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from vita_audio.serve.service import Service

MAX_UNREAD = 4  # events of a socket in memory; a client that sends faster waits


class Connection(H11Protocol):
    """A connection that is closed if there are too many, or if the headers of a request do not arrive in time.

    uvicorn ends only a connection that is silent between two requests: a client that sends a header now and then would
    hold one forever. Its `limit_concurrency` counts such connections, but answers those that send a request with 503.
    """

    def __init__(self, *args: Any, service: Service, **kwargs: Any):
        """Wait for a client; `service` has the limits, and counts who is refused."""
        super().__init__(*args, **kwargs)
        self._service, self._deadline = service, None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self._service.limits.max_connections:
            self._service.note_error("too_many_connections")
            return transport.abort()
        self._await_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self._deadline is not None:
            self._deadline.cancel()

    def _await_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(self._service.limits.header_seconds, self._close_without_request)

    def _close_without_request(self) -> None:
        is_websocket = self not in self.connections  # another protocol has taken over
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if not (is_websocket or is_answering):
            self.transport.close()


def server_config(app: FastAPI, service: Service, **options: Any) -> uvicorn.Config:
    """Return the configuration of a server with the limits of a service; other arguments as in `uvicorn.Config`."""
    limits = service.limits
    return uvicorn.Config(
        app,
        http=partial(Connection, service=service),
        ws_max_size=limits.max_bytes,
        ws_max_queue=MAX_UNREAD,
        ws_per_message_deflate=False,  # would unpack `max_bytes` of a message before refusing it; sound hardly shrinks
        ws_ping_interval=limits.ping_seconds,
        ws_ping_timeout=limits.ping_seconds,
        timeout_graceful_shutdown=5,  # seconds; a connection that stays open does not keep the program alive
        **options,
    )
