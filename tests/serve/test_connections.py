"""Clients that connect and then ask for nothing, or very slowly, do not keep others away."""

import json
import socket
import time
from contextlib import contextmanager, suppress

import httpx2 as httpx
import pytest
from realtime_client import MANUAL, ask, session, until
from toy_server import serve
from websockets.sync.client import connect

from vita_audio.serve.settings import Limits

REQUEST = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
HEADER_SECONDS = 0.5
QUESTION = {"model": "toy", "messages": [{"role": "user", "content": "one two"}]}  # whose answer takes longer than that


@contextmanager
def connected(server):
    with socket.create_connection(("localhost", server.port), timeout=60) as connection:
        yield connection


def is_closed(connection):
    """Wait for the server; return whether it closes the connection without a word."""
    with suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


@pytest.fixture(scope="module")
def hasty(speech_lm):
    with serve(speech_lm, limits=Limits(header_seconds=HEADER_SECONDS, max_new_tokens=400)) as server:
        yield server


@pytest.mark.parametrize("sent", [b"", REQUEST])
def test_a_request_whose_headers_do_not_arrive_ends_its_connection(hasty, sent):
    with connected(hasty) as connection:
        connection.sendall(sent)
        assert is_closed(connection)


def test_headers_that_arrive_slowly_end_the_connection_also_after_a_long_answer(hasty):
    body = json.dumps(QUESTION).encode()
    with connected(hasty) as connection:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        while not connection.recv(65_536).endswith(b"}"):
            pass
        connection.sendall(REQUEST)
        connection.settimeout(HEADER_SECONDS / 5)

        def is_closed_after_another_header():
            with suppress(TimeoutError):
                connection.sendall(b"x: y\r\n")
                return is_closed(connection)

        with suppress(ConnectionError):
            until(is_closed_after_another_header)


def test_an_answer_may_take_longer_than_headers(hasty):
    with httpx.Client(base_url=hasty.url, timeout=60) as client:
        for _ in range(2):
            assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200
    with session(hasty, **MANUAL) as connection:
        time.sleep(2 * HEADER_SECONDS)
        assert ask(connection, "hello")[-1].type == "response.done"


def test_connections_have_a_limit(speech_lm):
    with serve(speech_lm, limits=Limits(max_connections=2)) as server:
        with connected(server) as first, connected(server):
            with connected(server) as third:
                assert is_closed(third)
            first.sendall(REQUEST + b"\r\n")
            assert first.recv(15) == b"HTTP/1.1 200 OK"
        until(lambda: metrics(server))
        assert 'vita_audio_errors_total{code="too_many_connections"}' in metrics(server)


def metrics(server):
    """Return the metrics, or nothing as long as the server does not know that other clients have left."""
    with suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/metrics").text


def test_messages_are_not_compressed(server):
    """A small one could unpack to many megabytes."""
    with connect(f"ws://localhost:{server.port}/v1/realtime") as client:  # which offers to compress
        assert client.protocol.extensions == []
