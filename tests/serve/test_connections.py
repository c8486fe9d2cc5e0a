"""Clients that connect and then ask for nothing, or very slowly, do not keep others away."""

import http.client
import socket
import threading
import time
from contextlib import closing, contextmanager, suppress

import httpx2 as httpx
import pytest
from realtime_client import MANUAL, ask, session, until
from toy_server import serve
from websockets.sync.client import connect

from vita_audio.serve.settings import Limits

REQUEST = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
HEADER_SECONDS = 2


@contextmanager
def connected(server):
    with socket.create_connection(("localhost", server.port), timeout=60) as connection:
        yield connection


def is_closed(connection):
    """Wait for the server; return whether it closes the connection without a word."""
    with suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


class Slow:
    """An endpoint whose answers take longer than headers may."""

    def __init__(self):
        self._may_answer = threading.Event()

    def __call__(self):
        self._may_answer.wait(60)

    def ask(self, client):
        """Ask it through an open connection; return the status."""
        self._may_answer.clear()
        client.request("GET", "/slow")
        time.sleep(1.5 * HEADER_SECONDS)
        self._may_answer.set()
        response = client.getresponse()
        response.read()
        return response.status


@pytest.fixture(scope="module")
def slow():
    return Slow()


@pytest.fixture(scope="module")
def hasty(speech_lm, slow):
    with serve(speech_lm, limits=Limits(header_seconds=HEADER_SECONDS), routes={"/slow": slow}) as server:
        yield server


@pytest.fixture
def client(hasty):
    with closing(http.client.HTTPConnection("localhost", hasty.port, timeout=60)) as client:
        yield client


@pytest.mark.parametrize("sent", [b"", REQUEST])
def test_a_request_whose_headers_do_not_arrive_ends_its_connection(hasty, sent):
    with connected(hasty) as connection:
        connection.sendall(sent)
        assert is_closed(connection)


def test_headers_that_arrive_slowly_end_the_connection_also_after_a_long_answer(slow, client):
    assert slow.ask(client) == 200
    client.sock.sendall(REQUEST)
    client.sock.settimeout(HEADER_SECONDS / 5)

    def is_closed_after_another_header():
        with suppress(TimeoutError):
            client.sock.sendall(b"x: y\r\n")
            return is_closed(client.sock)

    with suppress(ConnectionError):
        until(is_closed_after_another_header)


def test_an_answer_and_a_session_may_take_longer_than_headers(hasty, slow, client):
    with session(hasty, **MANUAL) as connection:
        assert [slow.ask(client), slow.ask(client)] == [200, 200]
        assert ask(connection, "hello")[-1].type == "response.done"


def test_connections_have_a_limit(speech_lm):
    with serve(speech_lm, limits=Limits(max_connections=2)) as server:
        with connected(server) as first, connected(server):
            with connected(server) as third:
                assert is_closed(third)
            first.sendall(REQUEST + b"\r\n")
            assert first.recv(15) == b"HTTP/1.1 200 OK"
        until(lambda: 'vita_audio_errors_total{code="too_many_connections"}' in metrics(server))


def metrics(server):
    """Return the metrics, or an empty text as long as the server does not know that other clients have left."""
    with suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/metrics").text
    return ""


def test_messages_are_not_compressed(server):
    """A small one could unpack to many megabytes."""
    with connect(f"ws://localhost:{server.port}/v1/realtime") as client:  # which offers to compress
        assert client.protocol.extensions == []
