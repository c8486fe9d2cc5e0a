"""Recordings of a new voice as a decoder learns them: their codes, the same words in the old voice, and disguises."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tools.codec.code_mel_pairs import Pair, WaveAndMel, disguise, encode_pairs, mel_of
from tools.codec.corpus import FULL_SCALE, MANIFEST, Utterance, hold_out, load_corpus
from vita_audio.audio_tokenizers.front_end import frame_speech
from vita_audio.audio_tokenizers.glm4voice import GLM4VoiceTokenizer
from vita_audio.speech_decoder.mel import SAMPLE_RATE
from vita_audio.speech_decoder.streaming import FrameNoise

SHORTEST_SECONDS = 30  # of speech in the new voice
REFERENCE_SECONDS = 30  # of speech that defines the speaker for the judge


def read_voice(folder: Path, speaker: str | None) -> list[Utterance]:
    """Read the recordings of the only speaker of a corpus folder, or of the named one.

    Raises: FileNotFoundError without a manifest; ValueError if the speaker has to be named or says too little.
    """
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"no {folder / MANIFEST}; python tools/prepare_speech.py --from RECORDINGS writes it")
    utterances = load_corpus(folder, speaker)
    speakers = Counter(utterance.voice for utterance in utterances)
    if len(speakers) > 1:
        shown = ", ".join(f"{name} ({count} clips)" for name, count in speakers.most_common(5))
        raise ValueError(f"{folder} must have one speaker, got {len(speakers)}: {shown}; choose one with --speaker")
    seconds = sum(utterance.seconds for utterance in utterances)
    if seconds < SHORTEST_SECONDS:
        raise ValueError(
            f"a voice needs at least {SHORTEST_SECONDS} s of speech, better five minutes, got "
            f"{seconds:.1f} s in {folder}"
        )
    return utterances


def as_heard(utterance: Utterance, level: float | None) -> Utterance:
    """Return a recording at SAMPLE_RATE with the level and the silence that the tokenizer gives to all speech."""
    wave = utterance.float_wave(SAMPLE_RATE)
    if level is not None:
        wave = frame_speech(torch.from_numpy(wave), SAMPLE_RATE, level).numpy()
    return with_wave(utterance, wave)


def with_wave(utterance: Utterance, wave: np.ndarray) -> Utterance:
    """Return an utterance with another wave, (samples,) float32 at SAMPLE_RATE."""
    samples = np.rint(wave * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    return replace(utterance, wave=samples, rate=SAMPLE_RATE)


class VoiceData:
    """Recordings of a new voice, and the same words at the same timing in the old voice.

    Attributes:
        decoder: The decoder of the old voice.
        train: Recordings to learn from.
        held_out: Recordings to judge by.
        repeated: The recordings of `train` in the old voice.
        held_out_repeated: The recordings of `held_out` in the old voice.
    """

    def __init__(self, utterances: Sequence[Utterance], tokenizer: GLM4VoiceTokenizer, held_out: int, seed: int):
        """Hold out recordings, and let the old decoder repeat all of them.

        Args:
            tokenizer: Has the decoder of the old voice.
            held_out: Number of recordings to hold out, at most a third of them.
        """
        self.tokenizer, self.decoder = tokenizer, tokenizer.decoder
        utterances = [as_heard(utterance, tokenizer.speech_level) for utterance in utterances]
        tokenizer.speech_level = None  # from here on, codes must stay aligned with the mels: nothing may be cut off
        random.Random(seed).shuffle(utterances)
        self.train, self.held_out = hold_out(utterances, min(held_out, max(1, len(utterances) // 3)))
        self.repeated, self.held_out_repeated = (
            [self._repeat(utterance) for utterance in tqdm(part, desc="old voice", unit="clip")]
            for part in (self.train, self.held_out)
        )

    def codes(self, utterance: Utterance) -> list[int]:
        return self.tokenizer.encode(utterance.float_wave(SAMPLE_RATE), SAMPLE_RATE)

    def _repeat(self, utterance: Utterance) -> Utterance:
        return with_wave(utterance, self.decoder.decode(self.codes(utterance)).numpy())

    def judged(self) -> tuple[list[list[int]], list[str]]:
        """Return the codes of the held-out recordings, and of the same in the old voice, with their texts."""
        spoken = [*self.held_out, *self.held_out_repeated]
        return [self.codes(utterance) for utterance in spoken], [utterance.text for utterance in spoken]

    def reference(self) -> Tensor:
        """Return about REFERENCE_SECONDS of the new voice, (samples,), which are not held out."""
        waves = np.concatenate([utterance.float_wave(SAMPLE_RATE) for utterance in self.train])
        return torch.from_numpy(waves[: REFERENCE_SECONDS * SAMPLE_RATE])

    def new_pairs(self, disguises: int, rng: random.Random) -> list[Pair]:
        """Return codes with the mel of the new voice: those of recordings, old voice, and a number of disguises."""

        def pairs() -> Iterator[WaveAndMel]:
            for utterance, repeated in zip(self.train, self.repeated, strict=True):
                wave = utterance.float_wave(SAMPLE_RATE)
                mel = mel_of(wave)
                yield wave, mel
                yield repeated.float_wave(SAMPLE_RATE), mel
                for _ in range(disguises):
                    yield disguise(wave, rng), mel

        unknown = [()] * ((2 + disguises) * len(self.train))
        return encode_pairs(pairs(), self.tokenizer, self.decoder.flow.num_frames, unknown)

    def held_out_pairs(self) -> list[Pair]:
        """Return the codes of the held-out recordings, and of the same in the old voice, with the new voice's mel."""
        pairs = [
            (wave.float_wave(SAMPLE_RATE), mel_of(utterance.float_wave(SAMPLE_RATE)))
            for utterance, repeated in zip(self.held_out, self.held_out_repeated, strict=True)
            for wave in (utterance, repeated)
        ]
        return encode_pairs(pairs, self.tokenizer, self.decoder.flow.num_frames, [()] * len(pairs))

    @torch.inference_mode()
    def old_pairs(self, pieces: Sequence[Tensor], seed: int) -> list[Pair]:
        """Return sequences of codes, (codes,), with the mel that the old decoder makes of them."""
        flow, device, items = self.decoder.flow, self.decoder.device, []
        for codes in tqdm(pieces, desc="old speech", unit="piece"):
            num_frames = flow.num_frames(len(codes))
            noise = FrameNoise(flow.config.output_size, torch.Generator().manual_seed(seed)).read(0, num_frames)
            mel = flow.inference(codes[None].to(device), noise.T[None].to(device))
            items.append(Pair(codes, mel[0].T.half().cpu()))
        return items
