"""Turn detection: who speaks when, by Silero VAD."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vita_audio.optional import require

VAD_RATE = 16_000  # Hz
CHUNK = 512  # samples that Silero VAD reads at once at this rate
SPEECH_PAD_MS = 100  # kept after the last speech
PAUSE_MS = 150  # of silence that may be the end of a turn


@dataclass(frozen=True)
class SpeechStarted:
    """Someone began to speak; `start` is the first sample of the turn, counted from the start of the stream."""

    start: int


@dataclass(frozen=True)
class SpeechStopped:
    """A turn has ended.

    Attributes:
        end: Sample of the stream where the turn is cut, shortly after the last speech.
        num_silent: Samples from the last speech up to the decision that the turn has ended.
        wave: (samples,), float32.
    """

    end: int
    num_silent: int
    wave: Tensor


@cache
def load_vad() -> Any:
    """Load the network of Silero VAD from its package, once; it holds no state, so all streams share it.

    The package's model holds the state of one stream, so a stream would need one of its own: 9 MB, and 90 ms of work
    before its first chunks.

    Raises: MissingPackageError.
    """
    num_threads = torch.get_num_threads()
    silero_vad = require("silero_vad", purpose="turn detection", install="silero-vad")
    torch.set_num_threads(num_threads)  # importing it sets 1 for the whole process
    network = silero_vad.load_silero_vad()._model  # the part for VAD_RATE
    stream = VadStream(network)
    for _ in range(3):  # TorchScript optimises during the first calls
        stream(torch.zeros(CHUNK), VAD_RATE)
    return network


class VadStream:
    """The state of one stream, with the methods that `VADIterator` calls."""

    def __init__(self, network: Any):
        self._network = network
        self.reset_states()

    def reset_states(self) -> None:
        self._state, self._context = torch.zeros(0), torch.zeros(1, self._network.context_size_samples)

    @torch.no_grad()
    def __call__(self, chunk: Tensor, rate: int) -> Tensor:
        """Return the probability of speech in the next chunk, (1, 1)."""
        samples = torch.cat([self._context, chunk[None]], dim=1)
        probability, self._state = self._network(samples, self._state)
        self._context = samples[:, -self._context.shape[1] :]
        return probability


class TurnDetector:
    """Cuts a stream of audio at 16 kHz into turns.

    Memory is bounded: outside a turn only the padding is kept, and a turn ends when it reaches `max_seconds`.
    """

    def __init__(
        self, network: Any, *, threshold: float, prefix_padding_ms: int, silence_duration_ms: int, max_seconds: float
    ):
        """Begin a stream.

        Args:
            network: From `load_vad`.
            threshold: Probability of speech that begins a turn.
            prefix_padding_ms: Audio kept before the first speech of a turn.
            silence_duration_ms: Silence that ends a turn.
        """
        silero_vad = require("silero_vad", purpose="turn detection", install="silero-vad")
        self._vad = silero_vad.VADIterator(VadStream(network), threshold, VAD_RATE, silence_duration_ms, SPEECH_PAD_MS)
        self._prefix = prefix_padding_ms * VAD_RATE // 1000
        self._max_samples = int(max_seconds * VAD_RATE)
        self._buffer = torch.zeros(0)
        self._unread = torch.zeros(0)
        self.position = 0  # number of samples read
        self._start: int | None = None

    @property
    def is_speaking(self) -> bool:
        return self._start is not None

    @property
    def pause(self) -> int | None:
        """Sample of the stream where the turn is cut if the pause it is in lasts; None outside a pause."""
        vad = self._vad
        if self._start is None or not vad.temp_end or vad.current_sample - vad.temp_end < PAUSE_MS * VAD_RATE // 1000:
            return None
        return int(vad.temp_end + vad.speech_pad_samples) - CHUNK - vad.current_sample + self.position

    def turn_until(self, end: int) -> Tensor:
        """Return the wave of the turn as it is so far, up to a sample of the stream."""
        return self._buffer[: end - self._start]

    def push(self, wave: Tensor) -> list[SpeechStarted | SpeechStopped]:
        """Read the next samples, any number of them, and return what happened."""
        self._unread = torch.cat([self._unread, wave])
        events = []
        while len(self._unread) >= CHUNK:
            chunk, self._unread = self._unread[:CHUNK], self._unread[CHUNK:]
            if event := self._read(chunk):
                events.append(event)
        return events

    def end_turn(self) -> Tensor:
        """End the turn now and return its wave; without a turn, the buffered audio."""
        wave = torch.cat([self._buffer, self._unread])
        self.position += len(self._unread)
        self._unread = torch.zeros(0)
        self._start_over()
        return wave

    def _start_over(self) -> None:
        self._buffer, self._start = torch.zeros(0), None
        self._vad.reset_states()

    def _read(self, chunk: Tensor) -> SpeechStarted | SpeechStopped | None:
        self._buffer = torch.cat([self._buffer, chunk])
        self.position += CHUNK
        found = self._vad(chunk) or {}
        first = self.position - len(self._buffer)
        if "start" in found:
            self._start = max(first, self.position - CHUNK - self._prefix)
            self._buffer = self._buffer[self._start - first :]
            return SpeechStarted(self._start)
        if self._start is None:
            self._buffer = self._buffer[-max(self._prefix, CHUNK) :]
        elif "end" in found:
            end = found["end"] - self._vad.current_sample + self.position
            wave, self._buffer, self._start = self._buffer[: end - first], self._buffer[end - first :], None
            return SpeechStopped(end, self.position - end + SPEECH_PAD_MS * VAD_RATE // 1000, wave)
        elif len(self._buffer) >= self._max_samples:
            stopped = SpeechStopped(self.position, 0, self._buffer)
            self._start_over()
            return stopped
        return None
