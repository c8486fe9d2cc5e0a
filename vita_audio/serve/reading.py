"""Read an answer in text alone aloud, as a part of the same answer: models answer what was typed in text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.response import Chunk
from vita_audio.inference.tasks import tts_conversation
from vita_audio.serve.conversation import as_read, plain_text
from vita_audio.serve.words import bare_words, split_text

SECONDS_PER_TOKEN = 0.5  # of text, spoken slowly


@dataclass(frozen=True)
class ReadChunk(Chunk):
    """A piece of an answer's text being read aloud; its ids are those of the reading.

    Attributes:
        sentence: The part of the text whose speech begins here; empty if nothing begins.
    """

    sentence: str = ""


def sentences(text: str, speech_lm: SpeechLM, longest: int, *, bare: bool) -> list[str]:
    """Return the parts of a text that a model should speak one by one, since it was trained on single sentences.

    Args:
        longest: Tokens that the speech of a part may have.
        bare: As in `as_read`, which the parts still need.
    """
    num_per_token = 1 + SECONDS_PER_TOKEN * speech_lm.audio_tokenizer.frame_rate  # tokens of the answer

    def num_tokens(part: str) -> float:
        return num_per_token * len(speech_lm.tokenizer.encode(bare_words(part) if bare else part))

    return split_text(plain_text(text, speech_lm.tokenizer), num_tokens, longest)


def read_aloud(
    answer: Iterator[Chunk], speech_lm: SpeechLM, max_new_tokens: int, *, bare: bool, **options: Any
) -> Iterator[Chunk]:
    """Yield an answer and, if it is text alone, then its speech.

    Args:
        answer: A generator.
        max_new_tokens: Of the answer and its speech together; the speech ends there.
        bare: As in `as_read`.
        options: As in `SpeechLM.stream`.
    """
    text, num_tokens, is_spoken = "", 0, False
    with closing(answer):
        for chunk in answer:
            text, num_tokens = text + chunk.text, num_tokens + len(chunk.ids)
            is_spoken |= bool(chunk.codes)
            yield chunk
    for sentence in [] if is_spoken else sentences(text, speech_lm, max_new_tokens, bare=bare):
        if num_tokens == max_new_tokens:
            return
        prompt = tts_conversation(as_read(sentence, speech_lm.tokenizer, bare=bare))
        with closing(speech_lm.stream(prompt, max_new_tokens=max_new_tokens - num_tokens, **options)) as speech:
            for chunk in speech:
                num_tokens += len(chunk.ids)
                yield ReadChunk(**{**vars(chunk), "text": ""}, sentence=sentence)
                sentence = ""
