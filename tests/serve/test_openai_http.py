"""The HTTP endpoints with OpenAI's own client."""

import base64
import io
import re
from pathlib import Path

import httpx2 as httpx
import numpy as np
import openai
import pytest
import soundfile
from toy_server import serve

from vita_audio.inference.tasks import make_conversation
from vita_audio.serve.settings import Limits

SPEECH = Path(__file__).parents[1] / "assets" / "speech_tokenizer" / "vq_wav" / "speech_short.wav"
LENGTH = 40  # of the server's answers, tokens
SAY = {"model": "toy", "voice": "default", "input": "seven"}  # whose answer ends within this length


def question(text="hello", **fields):
    return {"model": "toy", "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def spoken(text=None):
    data = base64.b64encode(SPEECH.read_bytes()).decode()
    parts = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]
    return [{"type": "text", "text": text}, *parts] if text else parts


def test_the_model_is_listed(server):
    assert [model.id for model in server.client.models.list()] == ["toy"]
    assert server.client.models.retrieve("toy").id == "toy"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "model": "toy"}


def test_speech_is_streamed_as_a_wav_that_says_it_is_generated(server):
    with server.client.audio.speech.with_streaming_response.create(**SAY, response_format="wav") as response:
        data = response.read()
        assert response.headers["content-type"] == "audio/wav" and "content-length" not in response.headers
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert (file.samplerate, file.channels, file.comment) == (24_000, 1, "AI-generated")
        samples = file.read(dtype="int16")
    assert len(samples) > 0
    pcm = server.client.audio.speech.create(**SAY, response_format="pcm").content
    assert len(pcm) % 2 == 0 and len(pcm) > 0


def test_speech_of_a_file_is_recognised(server):
    text = server.client.audio.transcriptions.create(model="toy", file=SPEECH).text
    speech_lm = server.service.speech_lm
    expected = speech_lm.respond(
        make_conversation("asr", audio=SPEECH), "vanilla", max_new_tokens=LENGTH, do_sample=False
    )
    assert text == expected.text.strip()
    plain = server.client.audio.transcriptions.create(model="toy", file=SPEECH, response_format="text")
    assert plain == text


def test_a_completion_is_the_answer_of_the_model(server):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": spoken("What is said?")},
    ]
    completion = server.client.chat.completions.create(model="toy", messages=messages, temperature=0)
    conversation = {
        "messages": [*messages[:3], {"role": "user", "content": "What is said?\n<|audio|>"}],
        "audios": [str(SPEECH)],
    }
    expected = server.service.speech_lm.respond(conversation, do_sample=False, max_new_tokens=LENGTH)
    assert completion.choices[0].message.content == expected.text.strip()
    assert completion.usage.completion_tokens == len(expected.ids)
    assert completion.usage.prompt_tokens == len(server.service.speech_lm.prompt_ids(conversation))


def test_a_completion_may_speak(server):
    audio = {"format": "wav", "voice": "default"}
    body = question(spoken(), modalities=["text", "audio"], audio=audio)
    message = server.client.chat.completions.create(**body).choices[0].message
    with soundfile.SoundFile(io.BytesIO(base64.b64decode(message.audio.data))) as file:
        assert (file.samplerate, file.comment) == (24_000, "AI-generated")
        wave = file.read(dtype="int16")
    body = question(spoken(), modalities=["text", "audio"], audio=audio | {"format": "pcm16"}, stream=True)
    deltas = [chunk.choices[0].delta for chunk in server.client.chat.completions.create(**body) if chunk.choices]
    audios = [delta.audio for delta in deltas if delta.audio]
    assert "".join(audio.transcript or "" for audio in audios).strip() == message.audio.transcript
    streamed = b"".join(base64.b64decode(audio.data or "") for audio in audios)
    np.testing.assert_array_equal(np.frombuffer(streamed, "<i2"), wave)


def test_text_is_streamed_with_its_usage(server):
    whole = server.client.chat.completions.create(**question(max_completion_tokens=12))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(server.client.chat.completions.create(**question(max_completion_tokens=12), **options))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts).strip() == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda client: client.audio.speech.create(**SAY | {"voice": "alloy"}), "voice: Input should be 'default'"),
        (lambda client: client.audio.speech.create(**SAY, response_format="mp3"), "'wav' or 'pcm'"),
        (lambda client: client.audio.speech.create(**SAY, speed=2), "speed: not supported"),
        (lambda client: client.audio.speech.create(**SAY | {"input": "x" * 5000}), "at most 4000 characters"),
        (lambda client: client.audio.speech.create(**SAY | {"input": " \n"}), "must have a letter or digit"),
        (lambda client: client.audio.speech.create(**SAY | {"input": "?!"}), "must have a letter or digit"),
        (lambda client: client.audio.transcriptions.create(model="toy", file=b"RIFF"), "audio is not readable"),
        (
            lambda client: client.audio.transcriptions.create(model="toy", file=SPEECH, language="en"),
            "language: not supported",
        ),
        (lambda client: client.chat.completions.create(**question(n=2)), "n: not supported"),
        (lambda client: client.chat.completions.create(**question(modalities=["text", "audio"])), "go together"),
        (
            lambda client: client.chat.completions.create(**question([{"type": "text", "text": ""}])),
            "messages.0.content.0.text.text: String should have at least 1 character",
        ),
        (
            lambda client: client.chat.completions.create(
                **question([{"type": "input_audio", "input_audio": {"data": "/etc/passwd", "format": "wav"}}])
            ),
            "must be base64",
        ),
        (
            lambda client: client.chat.completions.create(
                **question([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}])
            ),
            "messages.0.content.0: a part needs type, text or input_audio",
        ),
        (
            lambda client: client.chat.completions.create(**question([*spoken(), {"type": "text", "text": "x"}])),
            "the text of a message must stand before its input_audio",
        ),
        (
            lambda client: client.chat.completions.create(
                **question([{"type": "text", "text": "x", "input_audio": {"data": "", "format": "wav"}}])
            ),
            "messages.0.content.0.text.input_audio: not supported",
        ),
        (lambda client: client.chat.completions.create(**question([])), "messages.0.content: List should have"),
    ],
)
def test_what_is_not_supported_is_said(server, call, message):
    with pytest.raises(openai.BadRequestError, match=re.escape(message)):
        call(server.client)


def test_unknown_names_are_not_found(server):
    with pytest.raises(openai.NotFoundError, match="model must be one of 'toy', got 'other'"):
        server.client.chat.completions.create(**question() | {"model": "other"})
    with pytest.raises(openai.NotFoundError):
        server.client.embeddings.create(model="toy", input="x")
    with pytest.raises(openai.NotFoundError, match="model must be one of 'toy', got 'other'"):
        server.client.models.retrieve("other")


@pytest.mark.parametrize(
    "body, kind",
    [
        ("", "application/json"),
        ("{", "application/json"),
        ("[]", "application/json"),
        ('{"model": "toy"}', "text/plain"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(server, body, kind):
    response = httpx.post(f"{server.url}/v1/audio/speech", content=body, headers={"content-type": kind})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] is None
    assert error["message"] == "the body must be a JSON object of type application/json"


def test_a_temperature_of_almost_nothing_is_greedy(server):
    texts = [
        server.client.chat.completions.create(**question(temperature=temperature)).choices[0].message.content
        for temperature in (0, 1e-300)
    ]
    assert texts[0] == texts[1]


def test_too_much_audio_is_refused(server):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000 * (int(Limits.max_audio_seconds) + 1)), 8000, format="FLAC")
    with pytest.raises(openai.BadRequestError, match="at most 30 s long, got 31.0 s"):
        server.client.audio.transcriptions.create(model="toy", file=("a.flac", file.getvalue()))


def test_the_audio_of_a_request_is_bounded(server):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000 * 20), 8000, format="FLAC")
    data = base64.b64encode(file.getvalue()).decode()
    part = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]
    messages = [{"role": "user", "content": part}] * 2
    with pytest.raises(openai.BadRequestError, match="at most 30 s long in all"):
        server.client.chat.completions.create(model="toy", messages=messages)


def test_a_request_keeps_the_latest_messages(speech_lm):
    system, *history, last = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "one two"},
    ]
    kept = {"messages": [system | {"role": "system"}, last]}
    with serve(speech_lm, limits=Limits(max_new_tokens=LENGTH, max_turns=1)) as server:
        for messages in ([system, last], [*history, system, last], [*history * 100, system, last]):
            completion = server.client.chat.completions.create(model="toy", messages=messages)
            assert completion.usage.prompt_tokens == len(speech_lm.prompt_ids(kept))
        with pytest.raises(openai.BadRequestError, match="at most 1 messages of the system, got 2"):
            server.client.chat.completions.create(model="toy", messages=[system, system, last])


def test_what_a_client_says_in_place_of_the_type_is_not_repeated(server):
    with pytest.raises(openai.BadRequestError) as error:
        server.client.chat.completions.create(**question([{"type": "x" * 10_000}]))
    assert len(error.value.message) < 300


def test_metrics_count_answers(server):
    server.client.chat.completions.create(**question())
    text = httpx.get(f"{server.url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    outcomes = ("completed", "incomplete")
    assert sum(float(values.get(f'vita_audio_answers_total{{outcome="{name}"}}', 0)) for name in outcomes) >= 1
    assert float(values["vita_audio_streams"]) == float(values["vita_audio_queue"]) == 0
    assert 'vita_audio_first_audio_seconds_bucket{le="0.5"}' in values
