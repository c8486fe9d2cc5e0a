"""Networks, clients and servers that fail, with a real server process."""

import asyncio
import base64
import http.client
import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
import soundfile
from realtime_client import MANUAL, ask, pcm, read_until, session, silence, until
from server_process import ServerProcess
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.sync.client import connect

OPTIONS = ["--max-new-tokens", 400, "--ping-seconds", 5]
MESSAGE = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
BIG = 100_000_000  # bytes


@pytest.fixture(scope="module")
def server(toy_folders):
    server = ServerProcess.start(toy_folders, *OPTIONS)
    yield server
    server.end()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]  # everything is JSON
    assert [line for line in lines if line["level"] not in ("INFO", "WARNING")] == []
    server.log.unlink()


def is_free(server):
    return not (server.metric("sessions") or server.metric("streams") or server.metric("queue"))


class CuttableProxy:
    """Hands bytes on between a client and the server, until the network is cut: then nothing arrives, no end either."""

    def __init__(self, port):
        self._port, self._is_cut, self._writers = port, False, []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "localhost", 0)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self._writers:
            writer.close()

    @property
    def port(self):
        return self._server.sockets[0].getsockname()[1]

    def cut(self):
        self._is_cut = True

    async def _serve(self, reader, writer):
        other_reader, other_writer = await asyncio.open_connection("localhost", self._port)
        self._writers += [writer, other_writer]
        await asyncio.gather(self._copy(reader, other_writer), self._copy(other_reader, writer))

    async def _copy(self, reader, writer):
        while (data := await reader.read(65_536)) and not self._is_cut:
            writer.write(data)


def test_a_network_that_is_cut_in_mid_answer_frees_the_session(server):
    async def run():
        async with CuttableProxy(server.port) as proxy:
            url = f"ws://localhost:{proxy.port}/v1/realtime"
            async with connect_async(url, ping_interval=None, close_timeout=0) as client:
                for event in ({"type": "conversation.item.create", "item": MESSAGE}, {"type": "response.create"}):
                    await client.send(json.dumps(event))
                while json.loads(await client.recv())["type"] != "response.output_audio.delta":
                    pass
                assert server.metric("sessions") == 1
                proxy.cut()
                await asyncio.to_thread(until, lambda: is_free(server))

    asyncio.run(run())


def test_a_connection_that_is_reset_in_mid_answer_frees_the_session(server):
    cancelled = server.metric('answers_total{outcome="cancelled"}')
    with connect(server.socket_url) as client:
        client.send(json.dumps({"type": "conversation.item.create", "item": MESSAGE}))
        client.send(json.dumps({"type": "response.create"}))
        while json.loads(client.recv())["type"] != "response.created":
            pass
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # no farewell
        client.socket.shutdown(socket.SHUT_RDWR)
    until(lambda: is_free(server))
    assert server.metric('answers_total{outcome="cancelled"}') == cancelled + 1


def test_half_a_frame_ends_only_its_session(server):
    with session(server, **MANUAL) as other:
        with connect(server.socket_url) as client:
            client.recv()
            client.socket.sendall(b"\x81\xfe\x10\x00" + bytes(100))  # of 4096 bytes that were announced
            client.socket.shutdown(socket.SHUT_RDWR)
        until(lambda: server.metric("sessions") == 1)
        assert ask(other, "hello")[-1].type == "response.done"


def test_a_message_of_100_mb_ends_only_its_session(server):
    with session(server, **MANUAL) as other:
        with connect(server.socket_url) as client:
            client.recv()
            with pytest.raises(ConnectionClosedError) as error:
                client.send("x" * BIG)
                client.recv()
            assert error.value.rcvd is None or error.value.rcvd.code == 1009  # or it ended while this one still sent
        until(lambda: server.metric("sessions") == 1)
        assert ask(other, "hello")[-1].type == "response.done"
    request = http.client.HTTPConnection("localhost", server.port)
    request.putrequest("POST", "/v1/audio/speech")
    request.putheader("content-length", str(BIG))
    request.endheaders()
    response = request.getresponse()  # before any of the bytes
    assert response.status == 413 and b"at most 10000000 bytes" in response.read()
    request.close()


def wav(samples, rate):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_audio_that_is_not_a_number_is_named(server):
    data = wav(np.full(16_000, np.nan, dtype=np.float32), 16_000)
    with pytest.raises(openai.BadRequestError, match="16000 of 16000 samples that are NaN"):
        server.client.audio.transcriptions.create(model=server.name, file=("a.wav", data))
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}
    with pytest.raises(openai.BadRequestError, match="16000 of 16000 samples that are NaN"):
        messages = [{"role": "user", "content": [part]}]
        server.client.chat.completions.create(model=server.name, messages=messages)


def test_a_file_at_8_khz_is_resampled_and_a_session_at_8_khz_is_refused(server):
    data = wav(0.1 * np.random.default_rng(0).standard_normal(8000).astype(np.float32), 8000)
    answer = server.client.audio.transcriptions.create(model=server.name, file=("a.wav", data))
    assert isinstance(answer.text, str)
    with session(server, **MANUAL) as connection:
        connection.send_raw(
            json.dumps(
                {
                    "type": "session.update",
                    "session": {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 8000}}}},
                }
            )
        )
        error = connection.recv().error
        assert error.param == "session.audio.input.format.rate" and "24000 or 16000" in error.message


def test_two_tabs_have_conversations_of_their_own(server):
    with session(server, **MANUAL) as connection:
        alone = [texts(ask(connection, "one"))]
    with session(server, **MANUAL) as connection:
        alone.append(texts(ask(connection, "two and three")))
    with session(server, **MANUAL) as first, session(server, **MANUAL) as second:
        for connection, text in ((first, "one"), (second, "two and three")):
            item = MESSAGE | {"content": [{"type": "input_text", "text": text}]}
            connection.conversation.item.create(item=item)
            connection.response.create()
        with ThreadPoolExecutor() as pool:  # a connection that nobody reads does not answer pings
            answers = pool.map(lambda connection: read_until(connection, "response.done"), (first, second))
        together = [texts(events) for events in answers]
        second.session.update(session={"type": "realtime", "instructions": "Be brief."})
        assert read_until(second, "session.updated")[-1].session.instructions == "Be brief."
        first.close()
        assert ask(second, "again")[-1].type == "response.done"
    assert together == alone and alone[0] != alone[1]


def texts(events):
    return "".join(event.delta for event in events if event.type == "response.output_audio_transcript.delta")


def test_after_a_restart_the_client_learns_that_its_conversation_is_gone(toy_folders):
    server = ServerProcess.start(toy_folders, *OPTIONS)
    try:
        with server.client.realtime.connect(model=server.name) as connection:
            old = connection.recv().session
            item = next(event.item for event in ask(connection, "hello") if event.type == "response.output_item.done")
            connection.response.create()
            server.end()
            with pytest.raises(ConnectionClosed):
                while True:
                    connection.recv()
        server.log.unlink()
        server = ServerProcess.start(toy_folders, *OPTIONS, port=server.port)
        with server.client.realtime.connect(model=server.name) as connection:
            assert connection.recv().session.id != old.id
            connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=0)
            error = connection.recv().error
            assert error.code == "item_not_found" and "a conversation ends with its connection" in error.message
            connection.input_audio_buffer.append(audio=pcm(silence(0.1)))
            assert ask(connection, "hello")[-1].type == "response.done"
    finally:
        server.end()
        server.log.unlink()
