"""The tasks of the released models and their conversations, ready for `SpeechLM`.

A conversation is a sample without its answer, in the format of `vita_audio.data.chat`: `messages`, and `audios` with
one entry for each audio tag: a path, a pair (wave, sample rate), or a list of audio codes. An earlier answer of the
model may also have `ids`, the generated token ids, which are then read in place of its `content`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vita_audio.constants import AUDIO_TAG
from vita_audio.text import ASR_PROMPT, LUKE_SYSTEM, OMNI_SYSTEM, TTS_PROMPT, VOICE_PROMPT_SYSTEM

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Audio: TypeAlias = "str | Path | tuple[Tensor | np.ndarray, int] | list[int]"
Sample = dict[str, list[Any]]  # messages, audios
TEXT, ASR, TTS, STS = "text", "asr", "tts", "sts"
SYSTEMS = {"luke": LUKE_SYSTEM, "omni": OMNI_SYSTEM}  # system messages of the released models


def text_conversation(text: str, *, system: str | None = None) -> Sample:
    return one_turn(text, [], system=system)


def asr_conversation(audio: Audio) -> Sample:
    return one_turn(f"{ASR_PROMPT}\n{AUDIO_TAG}", [audio])


def tts_conversation(text: str, *, voice_prompt: Audio | None = None, system: str | None = None) -> Sample:
    return one_turn(TTS_PROMPT + text, [], voice_prompt=voice_prompt, system=system)


def sts_conversation(
    audio: Audio, *, text: str | None = None, voice_prompt: Audio | None = None, system: str | None = None
) -> Sample:
    content = AUDIO_TAG if text is None else f"{text}\n{AUDIO_TAG}"
    return one_turn(content, [audio], voice_prompt=voice_prompt, system=system)


def one_turn(
    content: str, audios: Sequence[Audio], *, voice_prompt: Audio | None = None, system: str | None = None
) -> Sample:
    """Make a conversation of one user turn, after a system message if `voice_prompt` or `system` is given.

    Args:
        audios: One for each audio tag in `content`.
        system: System message, or the name of one in `SYSTEMS`.
    Raises: ValueError if both `voice_prompt` and `system` are given.
    """
    if voice_prompt is not None and system is not None:
        raise ValueError("a voice prompt is the system message itself; give voice_prompt or system, not both")
    messages, audios = [{"role": "user", "content": content}], list(audios)
    if voice_prompt is not None:
        messages.insert(0, {"role": "system", "content": VOICE_PROMPT_SYSTEM})
        audios.insert(0, voice_prompt)
    elif system is not None:
        messages.insert(0, {"role": "system", "content": SYSTEMS.get(system, system)})
    return {"messages": messages, "audios": audios}


@dataclass(frozen=True)
class Task:
    """A task and its inputs.

    Attributes:
        make: Makes its conversation.
        required: Inputs that `make` needs.
        optional: Inputs that `make` also accepts.
        speaks: Whether the answer is meant to be spoken.
    """

    make: Callable[..., Sample]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    speaks: bool


TASKS = {
    TEXT: Task(text_conversation, ("text",), ("system",), speaks=False),
    ASR: Task(asr_conversation, ("audio",), (), speaks=False),
    TTS: Task(tts_conversation, ("text",), ("voice_prompt", "system"), speaks=True),
    STS: Task(sts_conversation, ("audio",), ("text", "voice_prompt", "system"), speaks=True),
}


def make_conversation(task: str, **inputs: Audio | None) -> Sample:
    """Make the conversation of one task.

    Args:
        task: Key of `TASKS`: text chat, recognition, synthesis, spoken answer to speech.
        inputs: Inputs of the task; None counts as not given. `text` to say or to answer (with `audio`: the text before
            it), `audio` to recognise or to answer, `voice_prompt` (speech in the voice wanted for the answer) and
            `system` (a system message, or the name of one in `SYSTEMS`).
    Raises: ValueError for an unknown task, or an input that is missing, empty, or not used by the task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known are {', '.join(TASKS)}")
    given = {name: value for name, value in inputs.items() if value is not None}
    for name in TASKS[task].required:
        if name not in given:
            raise ValueError(f"task {task} needs {name}, got none")
    for name, value in given.items():
        if name not in TASKS[task].required + TASKS[task].optional:
            raise ValueError(f"task {task} has no use for {name}; leave it out")
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"{name} of task {task} must not be empty, got {value!r}")
    return TASKS[task].make(**given)
