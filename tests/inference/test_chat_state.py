"""Conversations of several turns: with a state, answers are those of reading everything again."""

import pytest
import torch
from toy_conversations import QUESTION, codes_of, text_of
from toy_speech_lm import load_toy, make_toy_folders

from vita_audio.inference.prompts import ChatState
from vita_audio.text import CONTINUOUS_INPUT

OPTIONS = {"max_new_tokens": 12, "decode_audio": False}
RATE = 16_000
PLANS = ["vanilla", "boost", "turbo", [2, 3]]


def noise(seed, seconds=0.5):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(int(seconds * RATE), generator=generator), RATE


@pytest.fixture(scope="module")
def plus(tmp_path_factory):
    return load_toy(make_toy_folders(tmp_path_factory.mktemp("plus"), audio_input=CONTINUOUS_INPUT))


@pytest.fixture(params=["discrete", "plus"])
def talker(request, speech_lm):
    """A model and the questions of several turns for it; those of the Plus model are waves that its encoder hears."""
    if request.param == "discrete":
        return speech_lm, [QUESTION, "and now", [5, 9, 2], "again", QUESTION[:7]]
    return request.getfixturevalue("plus"), [noise(0), "and now", noise(1), noise(2, 0.8), "again"]


def ask(conversation, question):
    """Return the conversation with one more question, a text or an audio."""
    is_text = isinstance(question, str)
    message = {"role": "user", "content": question if is_text else "<|audio|>"}
    return {
        "messages": [*conversation["messages"], message],
        "audios": [*conversation["audios"], *([] if is_text else [question])],
    }


def add(conversation, message):
    return conversation | {"messages": [*conversation["messages"], message]}


START = {"messages": [{"role": "system", "content": "Be brief."}], "audios": []}


class Reads:
    """Counts positions that the backbone reads, call by call, and audios that the encoder hears."""

    def __init__(self, speech_lm):
        self.lengths, self.num_audios = [], 0
        layers, encoder = speech_lm.model.model.layers, getattr(speech_lm.model.model, "audio_model", None)
        self.handles = [layers[0].register_forward_pre_hook(lambda module, args: self.lengths.append(args[0].shape[1]))]
        if encoder is not None:
            self.handles.append(encoder.register_forward_pre_hook(self.count_audios))

    def count_audios(self, module, args):
        self.num_audios += len(args[0])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_turn_answers_as_if_everything_was_read_again(talker, plan):
    speech_lm, questions = talker
    conversation, state, num_known = START, ChatState(), 0
    for question in questions:
        conversation = ask(conversation, question)
        expected = speech_lm.respond(conversation, plan, **OPTIONS)
        num_prompt = len(speech_lm.prompt_ids(conversation))
        num_unread = num_prompt - (state.decoding.num_read or [0])[0]
        with Reads(speech_lm) as reads:
            response = speech_lm.respond(conversation, plan, state=state, **OPTIONS)
        assert response.ids == expected.ids
        assert reads.lengths[0] == num_unread <= num_prompt - num_known + 12
        assert reads.num_audios == (not isinstance(question, str) and speech_lm.tokenizer.continuous_roles != [])
        assert sum(reads.lengths) <= num_unread + 12
        conversation, num_known = add(conversation, response.message), num_prompt + len(response.ids)
    assert num_unread < num_prompt / 3  # of five turns, the last one was read


@pytest.mark.parametrize("plan", ["vanilla", "boost"])
def test_streams_continue_also_when_they_were_closed_early(talker, plan):
    speech_lm, questions = talker
    conversation, state = START, ChatState()
    for number, question in enumerate(questions):
        conversation = ask(conversation, question)
        expected = speech_lm.respond(conversation, plan, **OPTIONS)
        stream = speech_lm.stream(conversation, plan, state=state, **OPTIONS)
        if number % 2:  # the user interrupts
            chunks = [next(stream)]
            stream.close()
        else:
            chunks = list(stream)
            assert text_of(chunks) == expected.text and codes_of(chunks) == expected.codes
        ids = [token_id for chunk in chunks for token_id in chunk.ids]
        assert ids == expected.ids[: len(ids)]
        conversation = add(conversation, {"role": "assistant", "content": text_of(chunks), "ids": ids})
    assert state.decoding.num_read[0] > 0.8 * len(speech_lm.prompt_ids(ask(conversation, "x")))


def test_an_answer_is_read_as_generated_and_closed_as_every_turn(speech_lm):
    tokenizer = speech_lm.tokenizer
    conversation = ask(START, "hello")
    prompt = speech_lm.prompt_ids(conversation)
    response = speech_lm.respond(conversation, "boost", **OPTIONS)
    assert response.codes and tokenizer.begin_of_audio_id in response.ids or len(response.ids) == 12
    question = [
        *tokenizer.header("user"),
        *tokenizer.encode("more"),
        *tokenizer.footer(),
        *tokenizer.header("assistant"),
    ]
    for end in ([], [tokenizer.im_end_id], [tokenizer.pad_id]):
        message = response.message | {"ids": [*response.ids, *end]}
        expected = [*prompt, *response.ids, *tokenizer.footer(), *question]
        assert speech_lm.prompt_ids(ask(add(conversation, message), "more")) == expected


def test_ids_of_an_answer_that_is_text_are_those_of_the_text(speech_lm):
    """So that a conversation has the same ids whether an answer is given by its ids or its text."""
    text = "The sun is a star."
    ids = [*speech_lm.tokenizer.encode(text), speech_lm.tokenizer.im_end_id]
    conversations = [
        ask(add(ask(START, QUESTION), {"role": "assistant", "content": text} | more), [3, 4])
        for more in ({}, {"ids": ids})
    ]
    assert speech_lm.prompt_ids(conversations[0]) == speech_lm.prompt_ids(conversations[1])


@pytest.mark.parametrize("plan", ["vanilla", "boost"])
def test_answers_given_in_other_words_are_read_again(talker, plan):
    """As servers do: what is common stays, the rest is read again; also where an answer comes without its ids."""
    speech_lm, questions = talker
    conversation, state = ask(START, questions[0]), ChatState()
    first = speech_lm.respond(conversation, plan, state=state, **OPTIONS)
    num_prompt = len(speech_lm.prompt_ids(conversation))
    for message in ({"role": "assistant", "content": "something else"}, {"role": "assistant", "content": first.text}):
        changed = ask(add(conversation, message), questions[2])
        with Reads(speech_lm) as reads:
            response = speech_lm.respond(changed, plan, state=state, **OPTIONS)
        assert response.ids == speech_lm.respond(changed, plan, **OPTIONS).ids
        assert reads.lengths[0] <= len(speech_lm.prompt_ids(changed)) - num_prompt + 4  # modules read ahead


def test_another_audio_of_the_same_length_is_heard(plus):
    """Its placeholders are the same ids."""
    state = ChatState()
    for audio in (noise(0), noise(3)):
        conversation = ask(START, audio)
        response = plus.respond(conversation, "boost", state=state, **OPTIONS)
        assert response.ids == plus.respond(conversation, "boost", **OPTIONS).ids
    assert plus.prompt_ids(ask(START, noise(0))) == plus.prompt_ids(conversation)
    assert plus.respond(ask(START, noise(0)), "boost", **OPTIONS).ids != response.ids


def test_the_same_turn_may_be_asked_again(talker):
    speech_lm, questions = talker
    conversation, state = ask(START, questions[0]), ChatState()
    answers = [speech_lm.respond(conversation, "boost", state=state, **OPTIONS).ids for _ in range(3)]
    assert answers[0] == answers[1] == answers[2] == speech_lm.respond(conversation, "boost", **OPTIONS).ids
    sampled = OPTIONS | {"do_sample": True, "temperature": 1.5}
    torch.manual_seed(1)
    expected = speech_lm.respond(conversation, "boost", **sampled).ids
    torch.manual_seed(1)
    assert speech_lm.respond(conversation, "boost", state=state, **sampled).ids == expected


def test_a_refused_turn_leaves_the_state_usable(speech_lm):
    conversation, state = ask(START, QUESTION), ChatState()
    first = speech_lm.respond(conversation, "boost", state=state, **OPTIONS)
    conversation = ask(add(conversation, first.message), "more")
    for wrong in ({"top_p": 2.0}, {"num_beams": 2}, {"max_new_tokens": 600}):
        with pytest.raises(ValueError):
            speech_lm.respond(conversation, "boost", state=state, **OPTIONS | wrong)
    with pytest.raises(ValueError, match="only an assistant turn may have ids"):
        speech_lm.prompt_ids(add(START, {"role": "user", "content": "a", "ids": [1]}))
    response = speech_lm.respond(conversation, "boost", state=state, **OPTIONS)
    assert response.ids == speech_lm.respond(conversation, "boost", **OPTIONS).ids


def test_a_state_moves_to_another_model_and_back(speech_lm, plus):
    """Whose cache it cannot use; everything, with its audio, is read again."""
    state = ChatState()
    conversation = ask(START, noise(0))
    for model in (plus, speech_lm, plus):
        response = model.respond(conversation, "boost", state=state, **OPTIONS)
        assert response.ids == model.respond(conversation, "boost", **OPTIONS).ids
