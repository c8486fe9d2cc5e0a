"""Samples of the tasks in the format of the training data."""

from typing import Any

from vita_audio.constants import AUDIO_TAG
from vita_audio.text import ASR_PROMPT, TTS_PROMPT

Sample = dict[str, Any]


def chat_sample(user: str, assistant: str, *audios: str) -> Sample:
    """Return a conversation of two turns; `audios` are the paths of the audio tags in reading order."""
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages, "audios": list(audios)} if audios else {"messages": messages}


def recognition_sample(audio: str, text: str) -> Sample:
    return chat_sample(f"{ASR_PROMPT}\n{AUDIO_TAG}", text, audio)


def synthesis_sample(text: str, audio: str) -> Sample:
    return chat_sample(TTS_PROMPT + text, AUDIO_TAG, audio)


def spoken_answer_sample(question_audio: str, answer: str, answer_audio: str) -> Sample:
    return chat_sample(AUDIO_TAG, f"{answer}\n{AUDIO_TAG}", question_audio, answer_audio)
