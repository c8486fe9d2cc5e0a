"""From conversations to what `generate` reads: token ids, and features where audio is continuous input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vita_audio.audio_tokenizers import AudioTokenizer
from vita_audio.audio_tokenizers.base import prepare_wave
from vita_audio.data.audio import Channel, load_audio, stated_seconds
from vita_audio.data.chat import encode_prompt
from vita_audio.inference.tasks import Audio
from vita_audio.interleave import InterleavePlan
from vita_audio.speech_features import QUERIES, ROWS_PER_SECOND, SenseVoiceFrontEnd
from vita_audio.text import CONTINUOUS, DISCRETE, TextTokenizer


@dataclass(frozen=True)
class Prompt:
    """An encoded conversation that waits for its answer.

    Args:
        features: Of each audio that is continuous input, (rows, 560), in reading order.
        starts: Place of the first placeholder of each.
    """

    ids: list[int]
    features: list[Tensor]
    starts: list[int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes conversations.

    Args:
        front_end: Makes features; None where no audio is continuous input.
        num_positions: Tokens the model can read.
    """

    tokenizer: TextTokenizer
    audio_tokenizer: AudioTokenizer
    front_end: SenseVoiceFrontEnd | None
    num_positions: int

    def encode(self, conversation: Mapping[str, Any], plan: InterleavePlan) -> Prompt:
        """Encode a conversation and the header of the answer to come.

        Args:
            plan: How earlier spoken answers are laid out.
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
        return codec.encode(*self._load(audio, codec.sample_rate, codec.frame_rate))

    def _features(self, audio: Audio, role: str) -> Tensor:
        if isinstance(audio, list):
            raise ValueError(f"audio of {role} is continuous input, got {len(audio)} codes; give a file or a wave")
        wave, rate = self._load(audio, self.front_end.sample_rate, ROWS_PER_SECOND, channel="mean")
        wave = torch.as_tensor(wave)
        if wave.dim() == 2 and wave.shape[0] <= wave.shape[1] and wave.is_floating_point():
            wave = wave.mean(dim=0)
        return self.front_end(prepare_wave(wave, rate, self.front_end.sample_rate))

    def _load(
        self, audio: Audio, rate: int, places_per_second: float, *, channel: Channel = "first"
    ) -> tuple[Tensor, int]:
        """Return the samples of an audio and their rate; a file that says it is too long is not read."""
        max_seconds = self.num_positions / places_per_second

        def check(name: object, seconds: float) -> None:
            if seconds > max_seconds:
                raise ValueError(
                    f"{name}: too long, the model reads at most {max_seconds:.0f} s, got {seconds:.0f} s; cut it into "
                    "parts"
                )

        if isinstance(audio, tuple):
            wave, rate = audio
            check("audio", wave.shape[-1] / rate if rate > 0 else 0)  # other rates are refused where it is prepared
            return wave, rate
        check(audio, stated_seconds(audio))
        wave = load_audio(audio, rate, channel=channel)
        check(audio, len(wave) / rate)
        return wave, rate


def generate_inputs(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Any]:
    """Return the arguments of `generate` for a batch of prompts, padded on the left."""
    length = max(map(len, prompts))
    padding = [length - len(prompt) for prompt in prompts]
    # a repetition penalty counts padding too, so it repeats a token that the prompt has anyway
    ids = [prompt.ids[:1] * pad + prompt.ids for prompt, pad in zip(prompts, padding, strict=True)]
    mask = [[0] * pad + [1] * len(prompt) for prompt, pad in zip(prompts, padding, strict=True)]
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
    if audios := [features.to(device) for prompt in prompts for features in prompt.features]:
        inputs |= {"audios": audios, "audio_indices": []}
        for row, (prompt, pad) in enumerate(zip(prompts, padding, strict=True)):
            for features, start in zip(prompt.features, prompt.starts, strict=True):
                places = torch.arange(len(QUERIES) + len(features), device=device) + pad + start
                inputs["audio_indices"].append(torch.stack([torch.full_like(places, row), places])[:, None])
    return inputs
