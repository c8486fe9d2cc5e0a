"""A server of a base and two adapters on it: each request and each turn of a session chooses one of them."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import openai
import pytest
from page_browser import needs_chromium, opened
from realtime_client import GREEDY, MANUAL, SPEECH, ask, session
from toy_adapters import save_toy_adapter
from toy_server import serve
from toy_speech_lm import load_toy, make_toy_folders
from websockets.exceptions import ConnectionClosedError

from vita_audio.inference.tasks import make_conversation
from vita_audio.serve.__main__ import load_models, parse_arguments
from vita_audio.serve.audio import read_audio
from vita_audio.serve.conversation import Item
from vita_audio.serve.service import Service
from vita_audio.serve.settings import Limits
from vita_audio.serve.transcription import Transcriber
from vita_audio.training.lora import LoraSettings

NAMES = ("toy", "one", "two")
LENGTH = 40


@pytest.fixture(scope="module")
def adapters(toy_folders, tmp_path_factory):
    folder, lora = tmp_path_factory.mktemp("adapters"), LoraSettings(r=2, save=("norm", "lm_head"))
    one = save_toy_adapter(toy_folders, folder / "one")
    return {"one": one, "two": save_toy_adapter(toy_folders, folder / "two", lora=lora, seed=2)}


@pytest.fixture(scope="module")
def models(speech_lm, adapters):
    return {"toy": speech_lm, **{name: speech_lm.with_adapter(folder) for name, folder in adapters.items()}}


@pytest.fixture(scope="module")
def server(models):
    with serve(models) as server:
        yield server


def messages(*texts):
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def text_of(events):
    return events[-1].response.output[0].content[0].transcript


def test_all_models_are_listed_and_the_first_is_the_default(server):
    assert [model.id for model in server.client.models.list()] == list(NAMES)
    assert server.client.models.retrieve("two").id == "two"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "model": "toy"}
    with server.client.realtime.connect(model="one") as connection:
        assert connection.recv().session.model == "one"
    with server.client.realtime.connect(extra_query={"model": "two"}, model="two") as connection:
        assert connection.recv().session.model == "two"


def test_answers_at_the_same_time_are_those_of_each_model_alone(server, models):
    def answer(name):
        return server.client.chat.completions.create(model=name, messages=messages("hello"), temperature=0)

    names = NAMES * 2
    with ThreadPoolExecutor(len(names)) as pool:
        completions = list(pool.map(answer, names))
    for name, completion in zip(names, completions, strict=True):
        expected = models[name].respond({"messages": messages("hello")}, do_sample=False, max_new_tokens=LENGTH)
        assert completion.model == name and completion.usage.completion_tokens == len(expected.ids)
        assert completion.choices[0].message.content == expected.text.strip()
    assert len({completion.choices[0].message.content for completion in completions}) == len(NAMES)


def recognised(speech_lm):
    conversation = make_conversation("asr", audio=SPEECH)
    return speech_lm.respond(conversation, "vanilla", do_sample=False, max_new_tokens=LENGTH).text.strip()


def test_files_are_recognised_by_the_chosen_model(server, models):
    texts = [server.client.audio.transcriptions.create(model=name, file=SPEECH).text for name in NAMES]
    assert texts == [recognised(models[name]) for name in NAMES] and len(set(texts)) == len(NAMES)


def test_turns_that_wait_are_transcribed_by_the_models_they_were_said_to(models):
    texts = {}

    async def run():
        async def send(kind, *, item_id, transcript, **_):
            texts[item_id] = transcript

        service = Service(models, Limits(max_new_tokens=LENGTH))
        transcriber, audio = Transcriber(service, send, "session"), read_audio(SPEECH.read_bytes(), 30)
        for name in NAMES:
            await transcriber.add(Item(name, "user", audio=audio), name)
        await transcriber.run()
        service.scheduler.close()

    asyncio.run(run())
    assert texts == {name: recognised(models[name]) for name in NAMES} and len(set(texts.values())) == len(NAMES)


def test_a_session_may_change_its_model(server, models):
    """Each turn is what a fresh conversation with the same words would be."""
    conversation, texts = {"messages": []}, ("hello", "what is the day", "and then")
    with session(server, **MANUAL) as connection:
        for name, text in zip(("one", "two", "one"), texts, strict=True):
            connection.session.update(session={"type": "realtime", "model": name})
            assert connection.recv().session.model == name
            events = ask(connection, text)
            conversation["messages"].append({"role": "user", "content": text})
            expected = models[name].respond(conversation, GREEDY["plan"], do_sample=False, max_new_tokens=LENGTH)
            answer = Item("", "assistant", expected.text, ids=expected.ids)
            conversation["messages"].append(answer.message(models[name].tokenizer))
            assert text_of(events) == expected.text
            assert events[-1].response.usage.output_tokens == len(expected.ids)


def test_the_program_loads_the_base_once_and_names_all(toy_folders, adapters):
    named = [f"first={adapters['one']}", adapters["two"]]
    flags = ["--model", toy_folders.model, "--audio-tokenizer-path", toy_folders.audio_tokenizer, "--device", "cpu"]
    loaded = load_models(parse_arguments([str(flag) for flag in (*flags, "--adapter", *named)]))
    assert list(loaded) == ["model", "first", "two"]
    layers = [one.model.model.layers[0].mlp.up_proj for one in loaded.values()]
    assert len({getattr(layer, "base_layer", layer).weight.data_ptr() for layer in layers}) == 1
    (alone,) = load_models(parse_arguments([str(flag) for flag in (*flags, "--adapter", named[0])]))
    assert alone == "first"


def test_an_unknown_model_gets_the_names(server):
    offered = "model must be one of 'toy', 'one', 'two', got 'three'"
    with pytest.raises(openai.NotFoundError, match=offered):
        server.client.chat.completions.create(model="three", messages=messages("hello"))
    with pytest.raises(openai.NotFoundError, match=offered):
        server.client.audio.speech.create(model="three", voice="default", input="hello")
    for name in ("three", "x" * 201):  # names of models have at most 200 characters
        with server.client.realtime.connect(model=name) as connection:
            message = connection.recv().error.message
            assert message.startswith(
                "the only query parameter is model; model must be one of 'toy', 'one', 'two', got"
            )
            with pytest.raises(ConnectionClosedError) as closed:
                connection.recv()
        assert closed.value.rcvd.reason == "invalid_query"
    with session(server) as connection:
        transcription = {"audio": {"input": {"transcription": {"model": "three"}}}}
        for change, param in (
            ({"model": "three"}, "session.model"),
            (transcription, "session.audio.input.transcription.model"),
        ):
            connection.session.update(session={"type": "realtime", **change})
            error = connection.recv().error
            assert (error.message, error.param) == (offered, param)


def test_models_of_other_tokenizers_are_refused(models, tmp_path):
    plus = load_toy(make_toy_folders(tmp_path, audio_input={"user": "both"}))
    with pytest.raises(ValueError, match="the models of a server need the same text tokenizer; toy and plus differ"):
        Service({"toy": models["toy"], "plus": plus})


@needs_chromium
def test_the_page_talks_to_the_model_in_its_address(server, chromium):
    with opened(chromium, server, url=f"{server.url}/?model=two") as page:
        assert page.text_content("#model") == "two"
        asked = page.evaluate("import('/static/wire.js').then((wire) => wire.model)")
    with opened(chromium, server) as page:
        assert page.text_content("#model") == "toy" and asked == "two"
