"""A conversation of a session: its items, what of an answer was heard, and its form for `SpeechLM`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

from vita_audio.constants import AUDIO_TAG
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.prompts import ChatState
from vita_audio.serve.words import bare_words, num_letters
from vita_audio.text import TextTokenizer


def plain_text(text: str, tokenizer: TextTokenizer) -> str:
    """Return a client's text in a form that encodes to no special token, audio code or audio tag.

    A space breaks the name of each such token, as in `< |im_end|>`.
    """
    text = text.replace("<|", "< |")  # all structural tokens, tags and audio codes begin so
    for name in tokenizer.added_tokens.values():
        if not name.startswith("<|") and name in text:
            text = text.replace(name, f"{name[0]} {name[1:]}")
    return text


def as_read(text: str, tokenizer: TextTokenizer, *, bare: bool) -> str:
    """Return a client's text, already plain, in the form in which a model reads it.

    Args:
        bare: The model knows only bare words.
    """
    return plain_text(bare_words(text), tokenizer) if bare else text


class HasRole(Protocol):
    """A message in any form."""

    role: str


T = TypeVar("T", bound=HasRole)


@dataclass
class Item:
    """A message of a conversation.

    Attributes:
        role: system, user or assistant.
        text: Text; with audio, what precedes it; of an answer, also that of its speech.
        audio: Speech of a user: a wave and its rate, or audio codes once they are known; None for text.
        ids: Token ids of an answer, as generated; empty if nothing of it was heard.
        is_written: Whether a client wrote the text, as people write, for the model to read.
        reading: Of an answer in text that was read aloud: its sentences, and the number of audio codes of each.
        num_tokens: Tokens of the whole message in a prompt once they are counted, by whether it is read `bare`.
    """

    id: str
    role: str
    text: str = ""
    audio: tuple[Tensor, int] | list[int] | None = None
    ids: list[int] | None = None
    is_written: bool = False
    reading: list[tuple[str, int]] = field(default_factory=list)
    num_tokens: dict[bool, int] = field(default_factory=dict)

    @property
    def num_wave_seconds(self) -> float:
        """Seconds of speech that is kept as a wave, not as codes, which are a thousand times smaller."""
        audio = self.audio  # may become codes meanwhile, in the scheduler's thread
        return audio[0].shape[-1] / audio[1] if isinstance(audio, tuple) else 0.0

    def message(self, tokenizer: TextTokenizer, *, bare: bool = False) -> dict[str, Any]:
        """Return it as a message of a sample, without any template token that an answer may have been led to make.

        Args:
            bare: As in `as_read`, for what a client wrote.
        """
        content = as_read(self.text, tokenizer, bare=bare and self.is_written)
        if self.audio is not None:
            content += AUDIO_TAG
        message = {"role": self.role, "content": content}
        if self.ids is None:
            return message
        kept = {tokenizer.begin_of_audio_id, tokenizer.end_of_audio_id}
        ids = [
            token_id
            for token_id in self.ids
            if token_id in kept or tokenizer.is_audio(token_id) or token_id not in tokenizer.added_tokens
        ]
        return message | {"ids": ids}

    def truncate(self, seconds: float, speech_lm: SpeechLM) -> None:
        """Keep of an answer what was heard: everything up to the last code of its first `seconds`.

        Of a text that was read aloud, the sentences of these codes are kept, and of the last one about as much as of
        its codes.
        """
        tokenizer = speech_lm.tokenizer
        num_heard = math.ceil(seconds * speech_lm.audio_tokenizer.frame_rate)
        if self.reading and num_heard:
            self.ids = self.ids[: self._num_heard_ids(num_heard)]
        else:
            positions = [place for place, token_id in enumerate(self.ids) if tokenizer.is_audio(token_id)]
            if num_heard and num_heard >= len(positions):
                return
            self.ids = self.ids[: positions[num_heard - 1] + 1] + [tokenizer.end_of_audio_id] if num_heard else []
        self.text, self.num_tokens = tokenizer.decode(self.ids), {}

    def note_reading(self, sentence: str, num_codes: int) -> None:
        """Note more codes of its text being read aloud; `sentence` begins with them, if it is not empty."""
        if sentence:
            self.reading.append((sentence, 0))
        latest, num_before = self.reading[-1]
        self.reading[-1] = (latest, num_before + num_codes)

    def _num_heard_ids(self, num_heard: int) -> int:
        """Shorten the reading to its first `num_heard` codes, and return how many ids their text has."""
        num_all, heard = max(1, num_letters(self.text)), []
        for sentence, num_codes in self.reading:
            num_kept = min(num_heard, num_codes)
            if num_kept:
                heard.append((sentence[: math.ceil(len(sentence) * num_kept / num_codes)], num_kept))
            num_heard -= num_kept
        self.reading = heard
        return math.ceil(len(self.ids) * sum(num_letters(sentence) for sentence, _ in heard) / num_all)


@dataclass
class Conversation:
    """Items in order, and the state of the model, which has read them up to some point."""

    items: list[Item] = field(default_factory=list)
    state: ChatState = field(default_factory=ChatState)

    @property
    def last_id(self) -> str | None:
        return self.items[-1].id if self.items else None

    @property
    def prompt(self) -> list[int | bytes]:
        """The tokens of the latest prompt; digests stand for audio that is continuous input."""
        return self.state.keys

    def find(self, item_id: str) -> Item | None:
        return next((item for item in self.items if item.id == item_id), None)


def forget_oldest(items: Sequence[T], num_kept: int) -> list[T]:
    """Return the system messages and the last `num_kept` other items, without an answer at their beginning."""
    turns = [place for place, item in enumerate(items) if item.role != "system"]
    kept = turns[max(0, len(turns) - num_kept) :]
    if len(kept) < len(turns) and items[kept[0]].role == "assistant":
        kept = kept[1:]
    return [item for place, item in enumerate(items) if item.role == "system" or place in kept]


def keep_latest(items: Sequence[Item], max_turns: int, max_seconds: float) -> list[Item]:
    """Forget the oldest turns until there are at most `max_turns`, with at most `max_seconds` of waves; one stays."""
    items = forget_oldest(items, max_turns)
    num_turns = sum(item.role != "system" for item in items)
    while num_turns > 1 and sum(item.num_wave_seconds for item in items) > max_seconds:
        num_turns -= 1
        items = forget_oldest(items, num_turns)
    return items


def make_sample(
    items: Sequence[Item],
    instructions: str,
    speech_lm: SpeechLM,
    max_new_tokens: int,
    *,
    bare: bool = False,
    before_reading: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return items as a conversation for `SpeechLM.stream`; the oldest turns that do not fit are left out.

    Each item is read once, and of those that are left out only the latest: its tokens are counted, and the audio of a
    user becomes codes, unless the model hears it as continuous input.

    Args:
        instructions: System message, may be empty.
        bare: As in `Item.message`.
        before_reading: Called before each reading; what it raises ends the work.
    Raises: ValueError if the messages of the system leave no room.
    """

    def size(item: Item) -> int:
        if bare not in item.num_tokens:
            before_reading()
            _read(item, speech_lm, bare)
        return item.num_tokens[bare]

    items = [item for item in items if item.role != "assistant" or item.ids != []]  # not answers that nobody heard
    if instructions:
        items.insert(0, Item("", "system", instructions))
    num_positions, num_fitting = speech_lm.model.config.max_position_embeddings, 0
    room = num_positions - max_new_tokens - len(speech_lm.tokenizer.header("assistant"))
    for item in sorted(items[::-1], key=lambda item: item.role != "system"):  # then the turns, the latest first
        room -= size(item)
        if room >= 0:
            num_fitting += item.role != "system"
        elif item.role == "system":
            raise ValueError(
                f"prompt and answer must fit into the model's {num_positions} positions; the messages of the system "
                f"leave no room for {max_new_tokens} new tokens, shorten them"
            )
        else:
            break
    items = forget_oldest(items, max(1, num_fitting))
    audios = [item.audio for item in items if item.audio is not None]
    return {"messages": [item.message(speech_lm.tokenizer, bare=bare) for item in items], "audios": audios}


def _read(item: Item, speech_lm: SpeechLM, bare: bool) -> None:
    """Encode the audio of an item and count its tokens."""
    tokenizer = speech_lm.tokenizer
    if isinstance(item.audio, tuple) and "user" not in tokenizer.continuous_roles:
        item.audio = speech_lm.audio_tokenizer.encode(*item.audio)
    # A prompt does not end with an answer, so an empty turn follows.
    sample = {"messages": [item.message(tokenizer, bare=bare), {"role": "user", "content": ""}]}
    sample["audios"] = [] if item.audio is None else [item.audio]
    rest = [*tokenizer.header("user"), *tokenizer.footer(), *tokenizer.header("assistant")]
    item.num_tokens[bare] = len(speech_lm.prompt_ids(sample)) - len(rest)
