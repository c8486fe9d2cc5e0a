"""Conversations that several test files ask about, and the parts of streamed answers."""

import numpy as np
import torch

from vita_audio.inference.tasks import make_conversation

PLANS = ["vanilla", "balance", "boost", "turbo", [2, 3], None]
QUESTION = list(range(0, 48, 3))
CONVERSATIONS = [
    make_conversation("tts", text="Hello"),
    make_conversation("sts", audio=QUESTION, text="你好吗", voice_prompt=[7, 7, 1]),
    make_conversation("text", text="what is the day", system="luke"),
    make_conversation("asr", audio=[5]),
]
SPEECH_RATE = 16_000


def speech(seconds, seed):
    noise = np.random.default_rng(seed).standard_normal(round(seconds * SPEECH_RATE))
    return torch.from_numpy(0.1 * noise).float()


SPOKEN, VOICE = (speech(1.3, 0), SPEECH_RATE), (speech(0.7, 1), SPEECH_RATE)
PLUS_CONVERSATIONS = [  # for a model with continuous input
    make_conversation("sts", audio=SPOKEN, voice_prompt=VOICE),
    make_conversation("asr", audio=VOICE),
    make_conversation("tts", text="Hello"),
]


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


def codes_of(chunks):
    return [code for chunk in chunks for code in chunk.codes]


def wave_of(chunks):
    return torch.cat([chunk.wave for chunk in chunks])
