"""The tasks of the released models and the conversations that ask for them, ready for `SpeechLM`.

A conversation is a sample without its answer, in the format of `vita_audio.data.chat`: `messages`, and `audios` with
one entry for each audio tag. An entry is a path, a pair (wave, sample rate), or a list of audio codes. An earlier
answer of the model may also have `ids`, the token ids as generated, which are then read in place of its `content`.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Task:
    """Inputs and output of a task.

    Attributes:
        required: Inputs of `make_conversation` that it needs.
        optional: Inputs that it also accepts.
        speaks: Whether the answer is meant to be heard.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    speaks: bool


TEXT, ASR, TTS, STS = "text", "asr", "tts", "sts"
TASKS = {
    TEXT: Task(("text",), ("system",), speaks=False),
    ASR: Task(("audio",), (), speaks=False),
    TTS: Task(("text",), ("voice_prompt", "system"), speaks=True),
    STS: Task(("audio",), ("text", "voice_prompt", "system"), speaks=True),
}
SYSTEMS = {"luke": LUKE_SYSTEM, "omni": OMNI_SYSTEM}  # system messages of the released models


def make_conversation(
    task: str,
    *,
    text: str | None = None,
    audio: Audio | None = None,
    voice_prompt: Audio | None = None,
    system: str | None = None,
) -> Sample:
    """Make the conversation of one task.

    Args:
        task: Key of `TASKS`: chat by text, recognition, synthesis, spoken answer to speech.
        text: Text to say or to answer; with speech, the text before it.
        audio: Speech to recognise or to answer.
        voice_prompt: Speech in the voice wanted for the answer.
        system: System message, or the name of one in `SYSTEMS`.
    Raises: ValueError for an unknown task, or an input that is missing, empty, or of no use to the task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known are {', '.join(TASKS)}")
    inputs = {"text": text, "audio": audio, "voice_prompt": voice_prompt, "system": system}
    given = {name: value for name, value in inputs.items() if value is not None}
    for name in TASKS[task].required:
        if name not in given:
            raise ValueError(f"task {task} needs {name}, got none")
    for name, value in given.items():
        if name not in TASKS[task].required + TASKS[task].optional:
            raise ValueError(f"task {task} has no use for {name}; leave it out")
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"{name} of task {task} must not be empty, got {value!r}")
    if task == TEXT:
        return text_conversation(text, system=system)
    if task == ASR:
        return asr_conversation(audio)
    if task == TTS:
        return tts_conversation(text, voice_prompt=voice_prompt, system=system)
    return sts_conversation(audio, text=text, voice_prompt=voice_prompt, system=system)


def text_conversation(text: str, *, system: str | None = None) -> Sample:
    return _conversation(text, [], None, system)


def asr_conversation(audio: Audio) -> Sample:
    return _conversation(f"{ASR_PROMPT}\n{AUDIO_TAG}", [audio], None, None)


def tts_conversation(text: str, *, voice_prompt: Audio | None = None, system: str | None = None) -> Sample:
    return _conversation(TTS_PROMPT + text, [], voice_prompt, system)


def sts_conversation(
    audio: Audio, *, text: str | None = None, voice_prompt: Audio | None = None, system: str | None = None
) -> Sample:
    content = AUDIO_TAG if text is None else f"{text}\n{AUDIO_TAG}"
    return _conversation(content, [audio], voice_prompt, system)


def _conversation(content: str, audios: Sequence[Audio], voice_prompt: Audio | None, system: str | None) -> Sample:
    if voice_prompt is not None and system is not None:
        raise ValueError("a voice prompt is the system message itself; give voice_prompt or system, not both")
    messages = [{"role": "user", "content": content}]
    audios = list(audios)
    if voice_prompt is not None:
        messages.insert(0, {"role": "system", "content": VOICE_PROMPT_SYSTEM})
        audios.insert(0, voice_prompt)
    elif system is not None:
        messages.insert(0, {"role": "system", "content": SYSTEMS.get(system, system)})
    return {"messages": messages, "audios": audios}
