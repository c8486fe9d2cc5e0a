"""Encode conversations for `generate`: token ids, and features of audio that is continuous input."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from vita_audio.audio_tokenizers import AudioTokenizer
from vita_audio.audio_tokenizers.base import prepare_wave
from vita_audio.data.audio import Channel, load_audio, stated_seconds
from vita_audio.data.chat import encode_prompt
from vita_audio.inference.tasks import Audio
from vita_audio.interleave import InterleavePlan
from vita_audio.models.decode_state import DecodeState, MTPModel
from vita_audio.speech_features import QUERIES, ROWS_PER_SECOND, SenseVoiceFrontEnd
from vita_audio.text import CONTINUOUS, DISCRETE, TextTokenizer


@dataclass(frozen=True)
class Prompt:
    """An encoded conversation that waits for its answer.

    Attributes:
        ids: Token ids.
        features: Features of each audio that is continuous input, (rows, 560), in reading order.
        starts: Position of the first placeholder of each of these audios.
    """

    ids: list[int]
    features: list[Tensor]
    starts: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def keys(self) -> list[int | bytes]:
        """The ids, with a digest of an audio's features in place of its first placeholder.

        Prompts whose keys are equal up to some position are equal input up to that position.
        """
        keys: list[int | bytes] = list(self.ids)
        for features, start in zip(self.features, self.starts, strict=True):
            keys[start] = hashlib.blake2b(features.cpu().numpy().tobytes(), digest_size=16).digest()
        return keys


@dataclass
class ChatState:
    """The tokens and cache of one conversation, so that each turn reads only its new tokens.

    The caller creates an empty state and passes it to every turn, with the whole conversation so far. Answers are the
    same as without a state. Only one call at a time may use it; it remains usable after a stream was closed early. If
    the conversation differs from the one that was read, their common prefix is kept and the rest is read again.

    Attributes:
        keys: Keys of the latest prompt.
        decoding: State of the model.
    """

    keys: list[int | bytes] = field(default_factory=list)
    decoding: DecodeState = field(default_factory=DecodeState)

    def resume(self, model: MTPModel, prompt: Prompt) -> int:
        """Keep the prefix that a prompt shares with the conversation so far.

        Returns: The number of the prompt's positions that the backbone does not have to read again.
        Raises: ValueError while another call uses the state.
        """
        known, keys = self.keys + self.decoding.tokens.flatten()[len(self.keys) :].tolist(), prompt.keys
        num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(known, keys, strict=False)))
        num_read = self.decoding.rewind(model, min(num_shared, len(prompt) - 1))
        self.keys = keys
        return num_read


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes conversations.

    Attributes:
        audio_tokenizer: Makes the codes of discrete input.
        front_end: Computes the features of continuous input; None without continuous input.
        num_positions: Maximum number of tokens the model can read.
    """

    tokenizer: TextTokenizer
    audio_tokenizer: AudioTokenizer
    front_end: SenseVoiceFrontEnd | None
    num_positions: int

    def encode(self, conversation: Mapping[str, Any], plan: InterleavePlan) -> Prompt:
        """Encode a conversation and the header of the answer to come, as `encode_prompt` does.

        Args:
            plan: Layout of earlier spoken answers without `ids`.
        Raises: SampleError (a ValueError), AudioError, FileNotFoundError; ValueError if the audio alone is too long.
        """
        features: list[Tensor] = []

        def audio_ids(audio: Audio, role: str) -> list[int]:
            how, ids = self.tokenizer.audio_input[role], []
            if how != DISCRETE:
                features.append(self._features(audio, role))
                ids += [self.tokenizer.context_of_audio_id] * (len(QUERIES) + len(features[-1]))
            return ids if how == CONTINUOUS else ids + self.tokenizer.audio_ids(self._codes(audio))

        ids, spans = encode_prompt(conversation, self.tokenizer, audio_ids, plan)
        return Prompt(ids, features, [span.start + 1 for span in spans if span.num_rows])

    def _codes(self, audio: Audio) -> list[int]:
        if isinstance(audio, list):
            if not audio:
                raise ValueError("a list of audio codes must not be empty, got []; leave the audio out")
            return audio
        codec = self.audio_tokenizer
        return codec.encode(self._load(audio, codec.sample_rate, codec.frame_rate), codec.sample_rate)

    def _features(self, audio: Audio, role: str) -> Tensor:
        if isinstance(audio, list):
            raise ValueError(f"audio of {role} is continuous input, got {len(audio)} codes; give a file or a wave")
        return self.front_end(self._load(audio, self.front_end.sample_rate, ROWS_PER_SECOND, channel="mean"))

    def _load(self, audio: Audio, rate: int, positions_per_second: float, *, channel: Channel = "first") -> Tensor:
        """Return the samples of an audio at a rate; an overlong file is refused before it is read."""
        max_seconds = self.num_positions / positions_per_second

        def check(name: object, seconds: float) -> None:
            if seconds > max_seconds:
                limit = f"the model reads at most {max_seconds:.0f} s, got {seconds:.0f} s"
                raise ValueError(f"{name}: too long, {limit}; cut it into parts")

        if isinstance(audio, tuple):
            name, wave = "audio", prepare_wave(*audio, rate, channel=channel)
        else:
            check(audio, stated_seconds(audio))
            name, wave = audio, load_audio(audio, rate, channel=channel)
        check(name, len(wave) / rate)
        return wave


def generate_inputs(prompts: Sequence[Prompt], device: torch.device, *, num_read: int = 0) -> dict[str, Any]:
    """Return the arguments of `generate` for a batch of prompts, padded on the left.

    Args:
        num_read: Number of positions of a single prompt that are not read again; their audio is omitted.
    """
    length = max(map(len, prompts))
    padding = [length - len(prompt) for prompt in prompts]
    # a repetition penalty also counts padding, so the padding is a token that the prompt has anyway
    ids = [prompt.ids[:1] * pad + prompt.ids for prompt, pad in zip(prompts, padding, strict=True)]
    mask = [[0] * pad + [1] * len(prompt) for prompt, pad in zip(prompts, padding, strict=True)]
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
    audios, indices = [], []
    for row, (prompt, pad) in enumerate(zip(prompts, padding, strict=True)):
        for features, start in zip(prompt.features, prompt.starts, strict=True):
            num_rows = len(QUERIES) + len(features)
            places = torch.arange(num_rows, device=device) + pad + start
            if start + num_rows > num_read:
                audios.append(features.to(device))
                indices.append(torch.stack([torch.full_like(places, row), places])[:, None])
    return inputs | ({"audios": audios, "audio_indices": indices} if audios else {})
