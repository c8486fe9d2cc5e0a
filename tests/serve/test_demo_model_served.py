"""The model of the package as its clients meet it: with texts as people write them."""

import base64
import io
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx
import pytest
import soundfile
from realtime_client import ask, read_until, session
from toy_server import serve

from tools.demo.domain import ENGLISH as domain
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.serve.conversation import Item, make_sample
from vita_audio.serve.demo import load_demo
from vita_audio.serve.settings import Limits
from vita_audio.serve.words import bare_words
from vita_audio.text import TTS_PROMPT

FOLDER = Path(__file__).parents[2] / "vita_audio" / "assets" / "demo_model"
DEMO = load_demo(FOLDER)
LIMITS = Limits(max_new_tokens=120, max_turns=1)
MANUAL = {"audio": {"input": {"turn_detection": None}}}


@pytest.fixture(scope="module")
def speech_lm():
    return SpeechLM.from_pretrained(FOLDER, get_audio_tokenizer("glm4voice"), "cpu")


@pytest.fixture(scope="module")
def server(speech_lm):
    """A server of the model, and of the same weights as a model of which nothing is known."""
    with serve({"toy": speech_lm, "unknown": speech_lm}, demo=DEMO, limits=LIMITS) as server:
        yield server


def answers():
    """The right answers, by their questions in bare words."""
    items = domain.questions("demo")
    return {text: item.answer for item in items for text in (*item.phrasings, item.held_out_phrasing)}


def sound(events):
    deltas = [event.delta for event in events if event.type == "response.output_audio.delta"]
    return b"".join(map(base64.b64decode, deltas))


def test_the_questions_of_the_page_are_answered(server):
    right, given = answers(), {}
    with server.client.realtime.connect(model="toy") as connection:
        connection.recv()
        connection.session.update(session={"type": "realtime", "output_modalities": ["text"], **MANUAL})
        for question in DEMO.questions:
            events = ask(connection, question)
            shown = [event.item for event in events if event.type == "conversation.item.added"]
            assert shown[0].content[0].text == question
            given[question] = events[-1].response.output[0].content[0].text.strip()
        written_with_digits = ask(connection, "How much is 3 plus 3?")[-1].response.output[0].content[0].text
    assert given == {question: right[bare_words(question)] for question in DEMO.questions}
    assert written_with_digits.strip() == given["How much is three plus three?"]


def test_a_model_of_single_questions_reads_the_latest_alone(speech_lm):
    with serve(speech_lm, demo=DEMO) as server, session(server, **MANUAL) as connection:
        first, second, third = (ask(connection, DEMO.questions[0])[-1].response for _ in range(3))
    assert first.usage.input_tokens == second.usage.input_tokens == third.usage.input_tokens
    assert len({response.output[0].content[0].transcript for response in (first, second, third)}) == 1


def test_only_what_clients_write_for_the_model_is_made_bare(speech_lm):
    items = [
        Item("", "system", "Be Brief.", is_written=False),
        Item("", "user", "Who's THAT?\n", audio=[1], is_written=True),
        Item("", "assistant", "A Dog.", ids=[5]),
        Item("", "user", "Convert the speech to text.\n", audio=[1]),
    ]
    prompts = [
        [message["content"] for message in make_sample(items, "Be KIND.", speech_lm, 10, bare=bare)["messages"]]
        for bare in (True, False)
    ]
    rest = ["A Dog.", "Convert the speech to text.\n<|audio|>"]
    assert prompts[0] == ["Be KIND.", "Be Brief.", "who's that\n<|audio|>", *rest]
    assert prompts[1] == ["Be KIND.", "Be Brief.", "Who's THAT?\n<|audio|>", *rest]


def test_completions_read_text_so_too_and_other_models_as_it_is(server, speech_lm):
    asked = []
    for model, text in (("toy", "what is the capital of egypt"), ("unknown", DEMO.questions[0])):
        messages = [{"role": "system", "content": "Be Brief."}, {"role": "user", "content": DEMO.questions[0]}]
        usage = server.client.chat.completions.create(model=model, messages=messages).usage
        asked.append(usage.prompt_tokens)
        messages[1] = {"role": "user", "content": text}
        assert usage.prompt_tokens == len(speech_lm.prompt_ids({"messages": messages}))
    assert asked[0] != asked[1]


def test_a_conversation_that_changes_its_model_is_read_as_each_knows_it(server, speech_lm):
    with session(server, output_modalities=["text"], **MANUAL) as connection:
        for model in ("toy", "unknown", "toy"):
            connection.session.update(session={"type": "realtime", "model": model})
            text = DEMO.questions[0] if model == "unknown" else bare_words(DEMO.questions[0])
            (*_, done) = ask(connection, DEMO.questions[0])[1:]
            expected = len(speech_lm.prompt_ids({"messages": [{"role": "user", "content": text}]}))
            assert done.response.usage.input_tokens == expected


def test_a_text_to_speak_is_read_so_too(server, speech_lm, monkeypatch):
    def stream(conversation, *arguments, **options):
        asked.append(conversation["messages"][0]["content"].removeprefix(TTS_PROMPT))
        return original(conversation, *arguments, **options)

    asked, original = [], speech_lm.stream
    monkeypatch.setattr(speech_lm, "stream", stream)
    say = {"voice": "default", "response_format": "pcm"}
    written, bare = (
        server.client.audio.speech.create(model="toy", input=text, **say).content
        for text in ("The capital of Egypt is Cairo. FIVE!", "the capital of egypt is cairo\nfive")
    )
    assert len(written) > 0 and written == bare
    with suppress(httpx.RemoteProtocolError):  # it may not end
        server.client.audio.speech.create(model="unknown", input="Five.", **say)
    assert asked == ["the capital of egypt is cairo", "five"] * 2 + ["Five."]


def test_typed_questions_are_answered_aloud(server):
    """With the times and tokens of the sound, as of an answer that is spoken by itself."""
    audio = {"format": "wav", "voice": "default"}
    messages = [{"role": "user", "content": DEMO.questions[0]}]
    completion = server.client.chat.completions.create(
        model="toy", messages=messages, modalities=["text", "audio"], audio=audio
    )
    made = completion.choices[0].message.audio
    wave, _ = soundfile.read(io.BytesIO(base64.b64decode(made.data)), dtype="int16")
    streamed = server.client.chat.completions.create(
        model="toy",
        messages=messages,
        modalities=["text", "audio"],
        audio=audio | {"format": "pcm16"},
        stream=True,
    )
    deltas = [chunk.choices[0].delta.audio or {} for chunk in streamed if chunk.choices and chunk.choices[0].delta]
    with session(server, **MANUAL) as connection:
        events = ask(connection, DEMO.questions[0])
    response = events[-1].response
    assert response.status == "completed" and wave.tobytes() == sound(events)
    assert b"".join(base64.b64decode(getattr(delta, "data", "") or "") for delta in deltas) == wave.tobytes()
    assert response.output[0].content[0].transcript.strip() == made.transcript == "the capital of egypt is cairo"
    assert int(response.metadata["model_ms"]) > 0 and int(response.metadata["decoder_ms"]) > 0
    num_seconds = response.usage.output_token_details.audio_tokens / server.service.speech_lm.audio_tokenizer.frame_rate
    assert num_seconds == pytest.approx(len(wave) / 24_000, abs=0.1)
    assert completion.usage.completion_tokens == response.usage.output_tokens


def test_a_typed_question_is_remembered_with_what_was_heard_of_its_answer(speech_lm):
    demo = DEMO.model_copy(update={"max_turns": None})
    with serve(speech_lm, demo=demo) as server, session(server, **MANUAL) as connection:
        connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": DEMO.questions[0]}]}
        )
        connection.response.create()
        item_id = read_until(connection, "response.output_audio.delta")[-1].item_id
        connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=300)
        *_, done, truncated = read_until(connection, "conversation.item.truncated")
        assert done.response.status == "cancelled"
        assert "the capital of egypt is cairo".startswith(truncated.transcript.strip())
        assert 0 < len(truncated.transcript.split()) < 6
        events = ask(connection, DEMO.questions[1])
        messages = [{"role": "user", "content": bare_words(question)} for question in DEMO.questions[:2]]
        messages.insert(1, {"role": "assistant", "content": truncated.transcript})
        assert events[-1].response.usage.input_tokens == len(speech_lm.prompt_ids({"messages": messages}))


def test_the_page_is_told_about_each_model(server):
    client = server.client.with_options(base_url=server.url)
    known, unknown = (client.get(f"/demo{query}", cast_to=dict) for query in ("", "?model=unknown"))
    assert known == DEMO.model_dump() and not known["system_prompt"] and "stands alone" in known["domain"]
    assert unknown["system_prompt"] and not unknown["domain"]
