"""Who may use the server and how much; a client that leaves frees everything."""

import http.client
import json
import time
from contextlib import ExitStack

import httpx2 as httpx
import openai
import pytest
import websockets.sync.client
from realtime_client import MANUAL, append, ask, pcm, read_until, session, silence, speech, until
from toy_server import serve

from vita_audio.serve.guard import client_address
from vita_audio.serve.settings import Limits

LONG = Limits(max_new_tokens=400, max_streams=1, max_queue=1)
QUESTION = {"model": "toy", "messages": [{"role": "user", "content": "hello"}]}
LONGEST = "one two"  # is answered with all 400 tokens
MESSAGE = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": LONGEST}]}


@pytest.fixture(scope="module")
def guarded(speech_lm):
    with serve(speech_lm, hosts=["localhost"], token="secret", limits=Limits(max_bytes=50_000)) as server:
        yield server


def connect(server, **options):
    return websockets.sync.client.connect(f"ws://localhost:{server.port}/v1/realtime", **options)


def is_free(server):
    """Return whether nothing is generated, one answer was cancelled, and nobody is connected."""
    service = server.service
    is_free = service.scheduler.is_idle and not service.num_sessions
    return is_free and 'vita_audio_answers_total{outcome="cancelled"} 1.0' in service.metrics.text().decode()


def test_the_token_is_needed_but_for_the_page(guarded):
    for path, status in (
        ("/", 200),
        ("/health", 200),
        ("/static/talk.js", 200),
        ("/v1/models", 401),
        ("/metrics", 401),
    ):
        assert httpx.get(guarded.url + path).status_code == status, path
    with pytest.raises(openai.AuthenticationError, match="needs its token") as error:
        guarded.client.models.list()
    assert error.value.code == "invalid_api_key"
    assert 'vita_audio_errors_total{code="invalid_api_key"}' in guarded.service.metrics.text().decode()
    assert guarded.client.copy(api_key="secret").models.list().data
    with pytest.raises(websockets.exceptions.InvalidStatus):
        connect(guarded)
    with connect(guarded, subprotocols=["realtime", "openai-insecure-api-key.secret"]) as socket:
        assert socket.subprotocol == "realtime" and json.loads(socket.recv())["type"] == "session.created"


@pytest.mark.parametrize("origin", ["http://example.com", "http://localhost:1", "null"])
def test_pages_of_others_are_refused(server, origin):
    assert httpx.get(f"{server.url}/v1/models", headers={"origin": origin}).status_code == 403
    with pytest.raises(websockets.exceptions.InvalidStatus):
        connect(server, origin=origin)
    with connect(server, origin=server.url) as socket:
        assert json.loads(socket.recv())["type"] == "session.created"


def test_other_hosts_are_refused(server):
    response = httpx.get(f"{server.url}/v1/models", headers={"host": "example.com"})
    assert response.status_code == 400 and "--allow-host" in response.json()["error"]["message"]


@pytest.mark.parametrize("headers, status", [({"host": "["}, 400), ({"origin": "http://["}, 403)])
def test_malformed_names_are_refused(server, headers, status):
    assert httpx.get(f"{server.url}/health", headers=headers).status_code == status


@pytest.mark.parametrize("path", ["/", "/static/index.html"])
def test_the_page_is_under_its_policy_at_each_address(server, path):
    response = httpx.get(server.url + path)
    assert "<html" in response.text and "default-src 'self'" in response.headers["content-security-policy"]


def test_no_file_outside_the_page_is_served(server):
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/..%2fapp.py"):
        assert httpx.get(server.url + path).status_code == 404, path


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_request_that_is_too_large_is_refused(guarded, is_chunked):
    body = json.dumps({"model": "toy", "input": "x" * 60_000}).encode()
    headers = {"authorization": "Bearer secret", "content-type": "application/json"}
    content = iter([body[:30_000], body[30_000:]]) if is_chunked else body
    response = httpx.post(f"{guarded.url}/v1/audio/speech", content=content, headers=headers)
    assert response.status_code == 413 and response.json()["error"]["message"] == "a request has at most 50000 bytes"


def test_an_event_that_is_too_large_ends_the_session(guarded):
    with connect(guarded, additional_headers={"authorization": "Bearer secret"}) as socket:
        socket.recv()
        with pytest.raises(websockets.exceptions.ConnectionClosedError) as error:
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": "A" * 60_000}))
            socket.recv()
        assert error.value.rcvd.code == 1009


def test_too_many_events_end_the_session(speech_lm):
    with serve(speech_lm, limits=Limits(events_per_second=10)) as server, session(server, **MANUAL) as connection:
        end = time.monotonic() + 30
        with pytest.raises(websockets.exceptions.ConnectionClosedError):
            while time.monotonic() < end:
                connection.input_audio_buffer.append(audio=pcm(silence(0.001)))
        assert read_until(connection, "error")[-1].error.code == "rate_limit_exceeded"


def test_audio_that_arrives_too_fast_is_left_out(speech_lm):
    with serve(speech_lm, limits=Limits(audio_rate=0.001, max_audio_seconds=1)) as server:
        with session(server, **MANUAL) as connection:
            connection.input_audio_buffer.append(audio=pcm(silence(0.9)))
            connection.input_audio_buffer.append(audio=pcm(silence(0.9)))
            error = connection.recv().error
            assert error.code == "rate_limit_exceeded" and "0.001 s per second" in error.message
            assert ask(connection, "hello")[-1].type == "response.done"


def test_messages_of_the_system_have_a_limit(speech_lm):
    item = MESSAGE | {"role": "system"}
    with serve(speech_lm, limits=Limits(max_turns=2)) as server, session(server, **MANUAL) as connection:
        for _ in range(3):
            connection.conversation.item.create(item=item)
        assert "at most 2 messages of the system" in read_until(connection, "error")[-1].error.message


def test_an_idle_session_ends_though_its_microphone_is_on(speech_lm):
    with serve(speech_lm, limits=Limits(idle_seconds=1)) as server, session(server) as connection:
        start = time.monotonic()
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            while time.monotonic() < start + 30:
                append(connection, silence(0.1))
                time.sleep(0.05)
        events = []
        with pytest.raises(websockets.exceptions.ConnectionClosedOK):
            while True:
                events.append(connection.recv())
    assert events[-1].error.code == "idle_timeout"


def begin_request(server, **headers):
    """Send a part of a request."""
    request = http.client.HTTPConnection("localhost", server.port)
    request.putrequest("POST", "/v1/audio/speech")
    request.putheader("content-type", "application/json")
    request.putheader("content-length", "100")
    for name, value in headers.items():
        request.putheader(name, value)
    request.endheaders(b"{")
    return request


def test_requests_have_a_limit(speech_lm):
    with serve(speech_lm, limits=Limits(max_requests=1, max_new_tokens=4)) as server:

        def status():
            return httpx.post(f"{server.url}/v1/chat/completions", json=QUESTION).status_code

        request = begin_request(server)
        until(lambda: status() == 429)
        assert httpx.get(f"{server.url}/health").status_code == 200
        request.close()
        until(lambda: status() == 200)


def test_a_request_that_stops_arriving_is_refused(speech_lm):
    with serve(speech_lm, limits=Limits(body_seconds=1)) as server:
        request = begin_request(server)
        response = request.getresponse()
        assert response.status == 408 and b"the request did not arrive within 1 s" in response.read()
        request.close()


def test_sessions_have_a_limit(speech_lm):
    with serve(speech_lm, limits=Limits(max_sessions=1)) as server:
        with connect(server):
            assert refusal(server) == "too_many_sessions"
        until(lambda: not server.service.num_sessions)
        with connect(server) as socket:
            assert json.loads(socket.recv())["type"] == "session.created"


@pytest.mark.parametrize("query", ["model=other", "model=toy&intent=transcription", "x=%00"])
def test_a_connection_that_asks_for_something_else_is_refused(server, query):
    assert refusal(server, query) == "invalid_query"


@pytest.mark.parametrize(
    "host, address",
    [
        ("127.0.0.1", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("203.0.113.1", "203.0.113.1"),
        ("::ffff:203.0.113.1", "203.0.113.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("unknown", "unknown"),
    ],
)
def test_the_address_of_a_client(host, address):
    assert client_address({"client": (host, 1)}) == address and client_address({"client": None}) is None


def forwarded(number):
    """What a proxy on the server's machine says about one of its clients."""
    return {"x-forwarded-for": f"203.0.113.{number}"}


def test_the_sessions_of_an_address_have_a_limit(speech_lm):
    with serve(speech_lm, limits=Limits(max_per_address=1)) as server:
        with connect(server, additional_headers=forwarded(1)):
            assert refusal(server, additional_headers=forwarded(1)) == "too_many_sessions"
            with ExitStack() as stack:
                for headers in (forwarded(2), {}, {}, {}):  # another client; tabs on the server's own machine
                    socket = stack.enter_context(connect(server, additional_headers=headers))
                    assert json.loads(socket.recv())["type"] == "session.created"
        until(lambda: refusal(server, "x=1", additional_headers=forwarded(1)) == "invalid_query")  # there is room


def test_the_requests_of_an_address_have_a_limit(speech_lm):
    with serve(speech_lm, limits=Limits(max_per_address=1, max_new_tokens=4)) as server:

        def status(headers):
            return httpx.post(f"{server.url}/v1/chat/completions", json=QUESTION, headers=headers).status_code

        request = begin_request(server, **forwarded(1))
        until(lambda: status(forwarded(1)) == 429)
        assert status(forwarded(2)) == status({}) == 200
        request.close()
        until(lambda: status(forwarded(1)) == 200)


def refusal(server, query="", **options):
    """Return the code of the error with which the server closes a new connection."""
    with websockets.sync.client.connect(f"ws://localhost:{server.port}/v1/realtime?{query}", **options) as socket:
        error = json.loads(socket.recv())["error"]
        with pytest.raises(websockets.exceptions.ConnectionClosedError):
            socket.recv()
    return error["code"]


def test_who_waits_sees_a_place_and_who_finds_no_place_an_error(speech_lm):
    with (
        serve(speech_lm, limits=LONG) as server,
        session(server, **MANUAL) as first,
        session(server, **MANUAL) as second,
    ):
        for connection in (first, second):
            connection.conversation.item.create(item=MESSAGE)
            connection.response.create()
            read_until(connection, "response.created")
        events = read_until(second, "vita.queue")
        assert events[-1].to_dict()["place"] == 1
        with session(server, **MANUAL) as third:
            error = ask(third, "hello")[-1].response.status_details.error
            assert (error.type, error.code) == ("server_error", "server_busy")
        with pytest.raises(openai.RateLimitError, match="busy"):
            server.client.chat.completions.create(**QUESTION)
        assert read_until(second, "response.done")[-1].response.output  # its turn comes


def test_a_session_that_leaves_in_mid_answer_frees_everything(speech_lm):
    with serve(speech_lm, limits=LONG) as server:
        with session(server) as connection:
            append(connection, silence(0.5))
            append(connection, speech())
            append(connection, silence(1))
            read_until(connection, "response.output_audio.delta")
            assert server.service.scheduler.num_active == 1
        until(lambda: is_free(server))


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_request_whose_client_leaves_frees_everything(speech_lm, is_streamed):
    with serve(speech_lm, limits=LONG) as server:
        asked = [{"role": "user", "content": LONGEST}]
        body = {"model": "toy", "messages": asked, "stream": is_streamed}
        url = f"{server.url}/v1/chat/completions"
        if is_streamed:
            with httpx.stream("POST", url, json=body, timeout=30) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url, json=body, timeout=httpx.Timeout(10, read=0.05))
        until(lambda: is_free(server))
