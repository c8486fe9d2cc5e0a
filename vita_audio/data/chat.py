"""Encode conversations as token ids and labels: ChatML turns, audio in place of its tags, interleaved answers.

A sample is a dict with `messages` (or `conversations`), a list of `{"role", "content"}`, and `audios`, one entry for
each `<|audio|>` tag in reading order. The caller's `audio_ids` converts an entry (path or wave) to the ids between the
audio markers: codes, or placeholders for continuous features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vita_audio.constants import AUDIO_TAG, BEGIN_OF_AUDIO, END_OF_AUDIO, IGNORE_INDEX
from vita_audio.interleave import InterleavePlan
from vita_audio.text import ROLES, TTS_PROMPT, TextTokenizer

AudioIds = Callable[[Any, str], list[int]]  # (entry of `audios`, role) -> token ids between the audio markers

ROLE_NAMES = {**{role: role for role in ROLES}, "human": "user", "gpt": "assistant"}
MESSAGE_KEYS = ("conversations", "messages")  # the first that is present and not empty is used

_LITERAL_AUDIO = re.compile(re.escape(BEGIN_OF_AUDIO) + ".*?" + re.escape(END_OF_AUDIO), re.DOTALL)


class SampleError(ValueError):
    """A sample cannot be used; the message says which rule it breaks."""


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation; `ids` are the token ids that an earlier answer was generated as, read in its place."""

    role: str
    content: str
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Conversation:
    """A checked sample: roles are user, assistant or system, and every audio tag has its audio."""

    turns: tuple[Turn, ...]
    audios: tuple[Any, ...]

    @classmethod
    def parse(cls, sample: Mapping[str, Any], *, with_ids: bool = False) -> Conversation:
        """Check a sample; `with_ids` reads the ids of answers, which training ignores. Raises: SampleError."""
        if not isinstance(sample, Mapping):
            raise SampleError(f"a sample must be a JSON object, got {type(sample).__name__}")
        messages = next((sample[key] for key in MESSAGE_KEYS if sample.get(key)), None)
        if not isinstance(messages, list):
            raise SampleError(f"a sample needs a list of messages under {' or '.join(MESSAGE_KEYS)}, got {messages!r}")
        turns = tuple(_parse_turn(message, with_ids) for message in messages)
        audios = sample.get("audios") or []
        if not isinstance(audios, list | tuple):
            raise SampleError(f"audios must be a list, got {audios!r}")
        audios = () if any(audio is None for audio in audios) else tuple(audios)
        num_tags = sum(turn.content.count(AUDIO_TAG) for turn in turns)
        if num_tags != len(audios):
            raise SampleError(
                f"a sample needs one audio per {AUDIO_TAG} tag, got {num_tags} tags, {len(audios)} audios"
            )
        return cls(turns, audios)

    @property
    def audio_roles(self) -> list[str]:
        """Role of the speaker of each of `audios`."""
        return [turn.role for turn in self.turns for _ in range(turn.content.count(AUDIO_TAG))]


def _parse_turn(message: Any, with_ids: bool) -> Turn:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise SampleError(f"a message needs role and content, got {message!r}")
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or role not in ROLE_NAMES:
        raise SampleError(f"role must be one of {', '.join(ROLE_NAMES)}, got {role!r}")
    if not isinstance(content, str):
        raise SampleError(f"content must be text, got {content!r}")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise SampleError(f"content must be valid Unicode, got half of a surrogate pair in {content!r}") from error
    turn, ids = Turn(ROLE_NAMES[role], content), message.get("ids") if with_ids else None
    if ids is None:
        return turn
    if turn.role != "assistant" or not all(isinstance(token_id, int) for token_id in ids):
        raise SampleError(f"only an assistant turn may have ids, and they must be token ids, got {message!r}")
    return replace(turn, ids=tuple(ids))


@dataclass(frozen=True)
class AudioSpan:
    """An audio in the ids of a conversation: markers included, it is at `start:stop`.

    Attributes:
        num_ids: Number of ids between the markers.
        num_rows: Number of these ids, the first ones, that are placeholders for continuous input.
    """

    audio: Any
    role: str
    start: int
    stop: int
    num_ids: int
    num_rows: int = 0


@dataclass(frozen=True)
class EncodedConversation:
    """One document; `labels` are IGNORE_INDEX where nothing is learnt; `loss_weights` is None if all are 1."""

    input_ids: list[int]
    labels: list[int]
    audio_spans: list[AudioSpan]
    loss_weights: list[float] | None = None


def encode_conversation(
    sample: Mapping[str, Any],
    tokenizer: TextTokenizer,
    audio_ids: AudioIds,
    plan: InterleavePlan,
    *,
    user_audio_loss_weight: float = 0.0,
) -> EncodedConversation:
    """Encode a training sample; labels cover the content of assistant turns, `<|im_end|>` and the newline after it.

    Args:
        audio_ids: Returns the ids of an entry of `audios`.
        user_audio_loss_weight: If positive, the audio codes of user turns are learnt too, with this loss weight.
    Raises: SampleError, and the exceptions of `audio_ids`.
    """
    input_ids: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    spans: list[AudioSpan] = []
    for turn, header, body, turn_spans in _encode_turns(Conversation.parse(sample), tokenizer, audio_ids, plan):
        spans += turn_spans
        if turn.role == "assistant":
            body_labels, body_weights = body, [1.0] * len(body)
        else:
            learns = [turn.role == "user" and user_audio_loss_weight > 0 and tokenizer.is_audio(i) for i in body]
            body_labels = [i if learn else IGNORE_INDEX for i, learn in zip(body, learns, strict=True)]
            body_weights = [user_audio_loss_weight * learn for learn in learns]
        input_ids += header + body
        labels += [IGNORE_INDEX] * len(header) + body_labels
        weights += [0.0] * len(header) + body_weights
    return EncodedConversation(input_ids, labels, spans, weights if user_audio_loss_weight > 0 else None)


def encode_prompt(
    sample: Mapping[str, Any], tokenizer: TextTokenizer, audio_ids: AudioIds, plan: InterleavePlan
) -> tuple[list[int], list[AudioSpan]]:
    """Encode a conversation that expects an answer: its turns and the header of the next assistant turn.

    An earlier answer with `ids` is read exactly as generated: these ids without their end token, then the
    `<|im_end|>` and newline that end every turn.

    Returns: Ids, and the positions of the audios.
    Raises: SampleError, also if the last turn is the assistant's.
    """
    conversation = Conversation.parse(sample, with_ids=True)
    if conversation.turns[-1].role == "assistant":
        raise SampleError("a prompt must not end with an assistant turn; leave the answer out")
    ids: list[int] = []
    spans: list[AudioSpan] = []
    for _, header, body, turn_spans in _encode_turns(conversation, tokenizer, audio_ids, plan):
        spans += turn_spans
        ids += header + body
    return ids + tokenizer.header("assistant"), spans


def _encode_turns(
    conversation: Conversation, tokenizer: TextTokenizer, audio_ids: AudioIds, plan: InterleavePlan
) -> Iterator[tuple[Turn, list[int], list[int], list[AudioSpan]]]:
    """Yield each turn with its header ids, content and footer ids, and audio spans."""
    audios, length = iter(conversation.audios), 0
    for turn in _with_spoken_text(conversation.turns):
        turn_audios = [next(audios) for _ in range(turn.content.count(AUDIO_TAG))]
        if turn.ids is not None:
            has_end = turn.ids[-1:] in ((tokenizer.im_end_id,), (tokenizer.pad_id,))
            content, spans = list(turn.ids[: len(turn.ids) - has_end]), []
        else:
            content, spans = _content_ids(turn, turn_audios, tokenizer, audio_ids)
            if turn.role == "assistant":
                content, spans = _lay_out_answer(content, spans, tokenizer, plan)
        header, body = tokenizer.header(turn.role), content + tokenizer.footer()
        offset = length + len(header)
        yield turn, header, body, [replace(span, start=offset + span.start, stop=offset + span.stop) for span in spans]
        length = offset + len(body)


def _with_spoken_text(turns: Iterable[Turn]) -> Iterator[Turn]:
    """Prepend the text to be spoken to an answer that is only audio and follows the instruction to speak."""
    instruction = TTS_PROMPT.strip()
    spoken_text = ""
    for turn in turns:
        if turn.role == "assistant":
            has_audio = AUDIO_TAG in turn.content or BEGIN_OF_AUDIO in turn.content
            own_text = _LITERAL_AUDIO.sub("", turn.content.replace(AUDIO_TAG, "")).strip()
            yield replace(turn, content=spoken_text + turn.content) if has_audio and not own_text else turn
            spoken_text = ""
            continue
        if turn.role == "user":
            asked = turn.content.replace(TTS_PROMPT, "").replace(instruction, "").replace(AUDIO_TAG, "")
            spoken_text = asked.strip() if instruction in turn.content else ""
        yield turn


def _content_ids(
    turn: Turn, audios: Sequence[Any], tokenizer: TextTokenizer, audio_ids: AudioIds
) -> tuple[list[int], list[AudioSpan]]:
    first_text, *later_texts = turn.content.split(AUDIO_TAG)
    ids, spans = tokenizer.encode(first_text), []
    if later_texts and tokenizer.begin_of_audio_id is None:
        raise SampleError("the sample has audio, the text tokenizer has no audio codes; load it with num_audio_codes")
    for audio, text in zip(audios, later_texts, strict=True):
        inner = audio_ids(audio, turn.role)
        start = len(ids)
        ids += [tokenizer.begin_of_audio_id, *inner, tokenizer.end_of_audio_id]
        num_rows = inner.count(tokenizer.context_of_audio_id)
        spans.append(AudioSpan(audio, turn.role, start, len(ids), len(inner), num_rows))
        ids += tokenizer.encode(text)
    return ids, spans


def _lay_out_answer(
    content: list[int], spans: list[AudioSpan], tokenizer: TextTokenizer, plan: InterleavePlan
) -> tuple[list[int], list[AudioSpan]]:
    """Interleave text and audio of one answer; audio codes written as text count as audio."""
    begin_id, end_id = tokenizer.begin_of_audio_id, tokenizer.end_of_audio_id
    begins = [i for i, token_id in enumerate(content) if token_id == begin_id]
    ends = [i for i, token_id in enumerate(content) if token_id == end_id]
    if not begins and not ends:
        return content, spans
    if len(begins) != 1 or len(ends) != 1 or begins > ends:
        raise SampleError(
            f"an assistant turn may hold one audio, begin before end, got {len(begins)} begin, {len(ends)} end markers"
        )
    begin, end = begins[0], ends[0]
    laid_out = plan.interleave(content[:begin] + content[end + 1 :], content[begin + 1 : end], begin_id, end_id)
    stop = len(laid_out) - laid_out[::-1].index(end_id)
    return laid_out, [replace(span, start=laid_out.index(begin_id), stop=stop) for span in spans]
